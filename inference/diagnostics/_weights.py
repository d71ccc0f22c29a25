"""Importance weights: what they say about a proposal, and resampling by them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ...ppl._calls import checked_call
from ...ppl._data import as_numbers
from ...ppl._show import shown
from ...ppl._types import Key
from .._digits import unknown_digits
from ._pareto import pareto_smoothed

# Ratios of weights within 0.1% of each other: a Pareto fit would see rounding only.
_EQUAL = 1e-3


@shown
class ImportanceDiagnostics(NamedTuple):
    """What S log-weights say about the proposal they come from; see `importance_diagnostics`.

    Attributes:
        num_draws: S.
        k_hat: Pareto shape of the largest weights; -inf where they are equal, NaN where it cannot be fitted or rounding has taken
            the weights.
        k_threshold: largest k-hat at which S draws are enough, min(1 - 1 / log10 S, 0.7).
        ess: effective sample size, between 1 and S; NaN where rounding has taken the weights.
        log_evidence: log of the mean weight, nats.
        log_evidence_std_error: standard error of `log_evidence`, nats.
        elbo: mean log-weight, nats; a lower bound of the log evidence in expectation.
        smoothed_log_weights: Pareto-smoothed log-weights, normalised so that their exponentials sum to 1; float64 [S].
    """

    num_draws: int
    k_hat: float
    k_threshold: float
    ess: float
    log_evidence: float
    log_evidence_std_error: float
    elbo: float
    smoothed_log_weights: np.ndarray

    def _facts(self) -> dict[str, PyTree]:
        return {
            "k_hat": f"{self.k_hat:.3g} (draws are enough up to {self.k_threshold:.3g})",
            "ess": f"{self.ess:.6g} of {self.num_draws} draws",
            "log_evidence": f"{self.log_evidence:.6g} +- {self.log_evidence_std_error:.2g} nats",
            "elbo": f"{self.elbo:.6g} nats",
        }


@checked_call
def importance_diagnostics(
    log_weights: Float[Array, " draws"] | np.ndarray,
) -> ImportanceDiagnostics:
    """Whether draws from a proposal q can stand for their target p: k-hat, ESS and evidence.

    With w_s = p(x, z_s) / q(z_s):

        ess = (sum_s w_s)^2 / sum_s w_s^2,   log_evidence = log (1/S) sum_s w_s,
        log_evidence_std_error = sqrt(1 / ess - 1 / S),   elbo = (1/S) sum_s log w_s,

    and k_hat is the shape of the generalised Pareto distribution fitted to the largest min(S / 5, 3 sqrt(S)) weights.

    Args:
        log_weights: log w_s in nats, shape [S]; -inf is a draw of no weight.

    Returns:
        `ImportanceDiagnostics`.

    Raises:
        ValueError: `log_weights` is not a vector, holds NaN or +inf, or no draw has any weight.

    Validity:
        The draws are independent and from q itself (not resampled, not a Markov chain). The mean weight is unbiased for the
        evidence, so `log_evidence` is too low by about half its squared standard error; that error is first order in 1 / S.
        Where k_hat exceeds `k_threshold`, neither ess, log_evidence nor a weighted mean can be trusted at this S; above 1 the
        mean weight need not settle at any S. A small k_hat does not show that q covers p: a region that no draw has met leaves
        no trace. Under an improper prior (`ImproperUniform`) the evidence is that of a density without a total: log_evidence
        has no meaning of its own, nor have differences to models with other improper sites. k_hat is -inf where the largest
        weights agree within 0.1% (an exact guide), and NaN for fewer than 30 draws or where most of the
        largest weights are ties. Numbers of the size of log w are known to a nat or worse above 8.4e6 in single precision (4.5e15
        in double): k_hat and ess are NaN there.

    Example:
        >>> import numpy as np
        >>> d = importance_diagnostics(np.log([1.0, 1.0, 2.0, 4.0]))
        >>> round(d.ess, 3), round(float(np.exp(d.log_evidence)), 3), d.k_hat
        (2.909, 2.0, nan)

    Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646; for variational fits Yao et al. 2018,
    arXiv:1802.02538.
    """
    lw = _checked(log_weights)
    size, top = len(lw), lw.max()
    ratios = np.exp(lw - top)
    ess = float(ratios.sum() ** 2 / (ratios**2).sum())
    smoothed, k_hat = _pareto_smoothed(lw)
    if unknown_digits(log_weights) is not None:
        k_hat = ess = np.nan
    return ImportanceDiagnostics(
        num_draws=size,
        k_hat=k_hat,
        k_threshold=float(min(1 - 1 / np.log10(size), 0.7)) if size > 1 else -np.inf,
        ess=ess,
        log_evidence=float(top + np.log(ratios.mean())),
        log_evidence_std_error=float(np.sqrt(np.maximum(1 / ess - 1 / size, 0.0))),
        elbo=float(lw.mean()),
        smoothed_log_weights=smoothed,
    )


def resampling_indices(key: Key, log_weights: np.ndarray) -> Int[np.ndarray, " draws"]:
    """S indices, drawn in proportion to S normalised weights by stratified resampling, in ascending order.

    Each index i occurs S w_i times in expectation, give or take less than two. Copies of one draw stay neighbours, so that
    an effective sample size from autocorrelations, such as ArviZ's, sees them.

    Reference: Kitagawa 1996; Douc, Cappe and Moulines 2005, arXiv:cs/0507025.
    """
    size = len(log_weights)
    points = (np.arange(size) + np.asarray(jax.random.uniform(key, (size,)), float)) / size
    cumulative = np.cumsum(np.exp(log_weights))
    return np.searchsorted(cumulative / cumulative[-1], points, side="right").clip(0, size - 1)


def _checked(log_weights: PyTree) -> np.ndarray:
    lw = as_numbers("importance_diagnostics: argument 'log_weights'", log_weights)
    if lw.ndim != 1 or not len(lw):
        raise ValueError(
            f"importance_diagnostics: argument 'log_weights' has shape {lw.shape}; give one log-weight per "
            "draw, shape [num_draws]."
        )
    bad = np.isnan(lw) | (lw == np.inf)
    if bad.any():
        raise ValueError(
            f"importance_diagnostics: argument 'log_weights' holds {bad.sum()} NaN or +inf among "
            f"{len(lw)} draws, the first at draw {bad.argmax()}. Find the site whose log-prob breaks "
            "there, e.g. with objective.site_report(params, key, *args)."
        )
    if (lw == -np.inf).all():
        raise ValueError(
            f"importance_diagnostics: argument 'log_weights' is -inf at all {len(lw)} draws: none lies "
            "in the target's support. Use a proposal that covers it."
        )
    return lw


def _pareto_smoothed(lw: np.ndarray) -> tuple[np.ndarray, float]:
    """Normalised log-weights, Pareto-smoothed where that is possible, and k-hat."""
    size = len(lw)
    normalised = lw - lw.max()
    normalised -= np.log(np.exp(normalised).sum())
    num_tail = int(min(size / 5, 3 * size**0.5))
    tail = np.sort(lw)[size - num_tail - 1 :] if num_tail >= 5 else lw
    if np.ptp(tail) < _EQUAL:
        return normalised, -np.inf
    if num_tail < 5 or tail[1 + num_tail // 4] == tail[0]:  # versions of ArviZ differ on ties
        return normalised, np.nan
    with np.errstate(all="ignore"):  # ties and weights of zero end in NaN, which is reported
        smoothed, k_hat = pareto_smoothed(lw, num_tail)
    return (smoothed, k_hat) if np.isfinite(k_hat) else (normalised, np.nan)
