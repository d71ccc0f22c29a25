"""What is told of how far a law is from a tilt: numbers with their standard errors, and the page of them."""

from __future__ import annotations

import dataclasses

from jaxtyping import PyTree

from ...ppl._show import shown


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number with its standard error, 0 where it is exact."""

    value: float
    error: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" +- {self.error:.1g}" if self.error else "")


@shown
@dataclasses.dataclass(frozen=True)
class TiltReport:
    """How far a law q is from a tilt p*; made by `tilts.report`. Nats.

    Attributes:
        kl: KL(q || p*); None where the density of q is not known.
        kl_is: what `kl` is: "exact"; "estimate", of a mean that is at most the divergence, whose bias vanishes with the draws;
            "plug-in", from counts of draws, of a mean above the divergence by some (outcomes - 1) / (2 draws).
        kl_at_most: an estimate whose mean is at least KL(q || p*), with given draws of the tilt; else None.
        log_z: log of the total of p exp(r / b); where it is not exact, of a mean that is at most log Z.
        reward: mean of r under q, unbiased.
        reward_base: the same under p.
        reward_tilt: the same under p*; by weighted draws of p where it is not exact.
        entropy: of q; None where its density is not known.
        residual: variance of the log-weights under q, nats squared: what is left of trajectory balance, and 0 at p*.
        k_hat: Pareto shape of the weights of q's draws; None where all is exact. Above 0.7 the weights may have no variance.
        k_hat_base: the same of the weights behind `log_z`: draws of p, and of q where its density is known.
        narrow_tails: share of the rays from the law's centre on which p*^2 / q grows, as far as they were followed (32 times a
            draw's distance, at least the middle one's). Where it is not 0 the weights of the law's draws have no variance, of
            which k-hat may see nothing yet; None where sites are discrete.
        evaluations: of the reward, for this report.
        seconds: of this report.
    """

    kl: Measured | None
    kl_is: str
    kl_at_most: Measured | None
    log_z: Measured
    reward: Measured
    reward_base: Measured
    reward_tilt: Measured
    entropy: Measured | None
    residual: float | None
    k_hat: float | None
    k_hat_base: float | None
    narrow_tails: float | None
    evaluations: int
    seconds: float

    def _facts(self) -> dict[str, PyTree]:
        told = None if self.kl is None else f"{self.kl} ({self.kl_is})"
        rows = {
            "KL to the tilt": told or "unknown: the law has no density here",
            "at most (in the mean)": self.kl_at_most,
            "log Z": self.log_z,
            "mean reward": f"{self.reward} (model {self.reward_base}, tilt {self.reward_tilt})",
            "entropy": self.entropy,
            "variance of log-weights": None if self.residual is None else f"{self.residual:.4g}",
            "k-hat": self._k_hats(),
            "weights": self._tails(),
            "evaluations": f"{self.evaluations:,} of the reward, {self.seconds:.2g} s",
        }
        return {name: x if x is None else str(x) for name, x in rows.items()}

    def _k_hats(self) -> str | None:
        if self.k_hat_base is None:
            return None
        own = "unknown" if self.k_hat is None else f"{self.k_hat:.2f}"
        return f"{own} of the law's weights, {self.k_hat_base:.2f} behind log Z (up to 0.7)"

    def _tails(self) -> str | None:
        if not self.narrow_tails:
            return None
        return f"have NO variance: the law is narrower than the tilt on {self.narrow_tails:.0%} of rays outwards"
