"""Simulation-based calibration: does an inference algorithm return posteriors?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from scipy.special import chdtrc

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._show import shown
from ...ppl._table import table
from ...ppl._types import Key
from .._simulated import draws_of, refuse_unlike_draws
from ..inputs import checked

Array = jax.Array


@shown
@dataclasses.dataclass(frozen=True)
class Calibration:
    """See `calibrate`; printing it shows a table.

    Attributes:
        ranks: site -> number of posterior draws below the true value, [simulations, ...], between 0 and `num_draws`.
        num_draws: posterior draws of each simulation.
        p_values: site -> p-value of uniform ranks, one for each coordinate.
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    p_values: dict[str, np.ndarray]

    @property
    def smallest_p_value(self) -> float:
        """Smallest p-value times the number of coordinates (Bonferroni), at most 1."""
        every = np.concatenate([np.ravel(p) for p in self.p_values.values()])
        return float(min(1.0, every.min() * every.size))

    def _facts(self) -> dict[str, PyTree]:
        return {
            "simulations": len(next(iter(self.ranks.values()))),
            "num_draws": f"{self.num_draws} for each",
            "p-values": {name: float(p.min()) for name, p in self.p_values.items()},
            "smallest": f"{self.smallest_p_value:.3g}, corrected for all coordinates",
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows = [("site", "coordinates", "mean rank / draws", "spread / uniform's", "smallest p")]
        for name, ranks in self.ranks.items():
            share = ranks.reshape(len(ranks), -1) / self.num_draws
            uniform = np.sqrt((1 + 2 / self.num_draws) / 12)
            rows.append(
                (
                    name, str(share.shape[1]), f"{share.mean():.3f}",
                    f"{share.std(0).mean() / uniform:.3f}", f"{self.p_values[name].min():.3g}",
                )
            )  # fmt: skip
        return [rows]

    def __str__(self) -> str:
        return f"{table(*self._tables())}\nsmallest p-value, corrected for all coordinates: {self.smallest_p_value:.3g}"


@checked_call
def calibrate(
    model: ppl.Program | Callable[..., PyTree],
    posterior_fn: Callable[[Array, Mapping[str, Array]], Mapping[str, PyTree]],
    key: Key,
    *args: PyTree,
    num_simulations: int = 200,
    batch_size: int | None = None,
    **kwargs: PyTree,
) -> Calibration:
    """Draw parameters and data from the model, infer, and rank the true values among the draws.

    If `posterior_fn` draws independently from the exact posterior, ranks are uniform on 0, ..., L. Too wide posteriors give
    ranks in the middle, too narrow ones at both ends, a shift ranks at one end.

    Args:
        model: the program.
        posterior_fn: `(key, observed) -> draws`: observed sites by name as the model drew them; latent sites by name, [L, ...]
            (a subset will do). Must be traceable by JAX.
        key: PRNG key of either kind.
        args: the model's arguments; observations in them give shapes only.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_simulations: S.
        batch_size: simulations that run at once; None for all.

    Returns:
        A `Calibration`.

    Raises:
        ValueError: draws of unknown sites, of other shapes, without a leading axis in common, none, or NaN; a model that observes
            nothing, has a factor, or a scaled log-prob.
        TypeError: `posterior_fn` returns no mapping.

    Validity: the test is exact for independent draws; draws of a Markov chain must be thinned until they are nearly independent.
    Ties (discrete sites) are broken at random. Uniform ranks do not prove a posterior right: one that ignores the data, the
    prior, has them as well.

    Reference: Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv:1804.06788; p-values by the chi-square test over 10
    bins (fewer where S < 100).
    """
    args = checked(calibrate, model, args, kwargs)
    program = ppl.as_program(model)
    check_counts("calibrate", 20, num_simulations=num_simulations)
    check_counts("calibrate", batch_size=1 if batch_size is None else batch_size)

    def simulate(key: Array) -> tuple[dict[str, Array], dict[str, Array], Array]:
        model_key, posterior_key, tie_key = jax.random.split(key, 3)
        trace = program.predict_trace(model_key, {}, *args)
        refuse_unlike_draws("calibrate", program, trace.sites)
        if not trace.observed:
            raise ValueError(
                f"calibrate: {program!r} observes nothing, so that no data would be inferred from and the prior would pass. Pass "
                "data of the right shape as its arguments (their values are not used)."
            )
        draws = draws_of("calibrate", posterior_fn(posterior_key, trace.observed))
        _check(draws, trace.choices)
        ranks = {
            name: _rank(
                jax.random.fold_in(tie_key, i), trace.choices[name], jnp.asarray(draws[name])
            )
            for i, name in enumerate(sorted(draws))
        }
        is_nan = {name: jnp.isnan(x).any() for name, x in draws.items()}
        return ranks, is_nan, jnp.asarray(len(next(iter(draws.values()))))

    keys = jax.random.split(typed_key(key), num_simulations)
    run = jax.jit(lambda keys: jax.lax.map(simulate, keys, batch_size=batch_size or len(keys)))
    ranks, is_nan, lengths = run(keys)
    for name, bad in is_nan.items():
        if bad.any():
            raise ValueError(
                f"calibrate: draws of site '{name}' are NaN in {int(bad.sum())} of {num_simulations} simulations, so they have "
                "no rank. Mend posterior_fn where it fails."
            )
    num_draws = int(lengths[0])
    found = {name: np.asarray(r) for name, r in ranks.items()}
    return Calibration(
        found, num_draws, {name: _p_values(r, num_draws) for name, r in found.items()}
    )


def _rank(key: Array, truth: Array, draws: Array) -> Array:
    below = (draws < truth).sum(0)
    ties = (draws == truth).sum(0)
    return below + jax.random.randint(key, jnp.shape(truth), 0, ties + 1)


def _check(draws: Mapping[str, Any], choices: Mapping[str, Array]) -> None:
    if not draws:
        raise ValueError(
            "calibrate: posterior_fn returned no site. Let it return a dict from latent sites to their posterior draws."
        )
    unknown = sorted(set(draws) - set(choices))
    if unknown:
        raise ValueError(
            f"calibrate: posterior_fn returned {unknown}, which are not latent sites of the model {sorted(choices)}. Let "
            "it return draws of these sites only, under their names."
        )
    lengths = {name: jnp.shape(x)[:1] for name, x in draws.items()}
    if len(set(lengths.values())) > 1 or () in lengths.values():
        raise ValueError(
            f"calibrate: draws need one leading axis in common, got {lengths}. Return [draws, ...] for every site."
        )
    if (0,) in lengths.values():
        raise ValueError(
            "calibrate: posterior_fn returned no draw, and every rank would be 0. Return at least one, [draws, ...]."
        )
    for name, x in draws.items():
        if jnp.shape(x)[1:] != jnp.shape(choices[name]):
            raise ValueError(
                f"calibrate: site '{name}' has shape {jnp.shape(choices[name])}, but its draws have {jnp.shape(x)}. Return "
                "[draws, *site shape]."
            )


def _p_values(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """Chi-square test of uniform ranks on 0, ..., num_draws, in bins of nearly equal size."""
    num_bins = min(10, max(2, len(ranks) // 10), num_draws + 1)
    edges = np.round(np.linspace(0, num_draws + 1, num_bins + 1)).astype(int)
    expected = len(ranks) * np.diff(edges) / (num_draws + 1)
    flat = ranks.reshape(len(ranks), -1)
    counts = np.stack([np.histogram(column, edges - 0.5)[0] for column in flat.T])
    statistics = ((counts - expected) ** 2 / expected).sum(1)
    return chdtrc(num_bins - 1, statistics).reshape(ranks.shape[1:])
