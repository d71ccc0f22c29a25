"""What the data teach: posterior z-scores and shrinkage."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, PyTree

from ...ppl._calls import checked_call
from ...ppl._show import shown
from ...ppl._table import table
from ._simulations import Simulations


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class ZScores:
    """See `z_scores`.

    Attributes:
        labels: latent coordinates.
        z_scores: [S, coordinates]; +-inf where all draws are one value that is not the truth.
        shrinkage: [S, coordinates].
        num_draws: behind each. With it, as many infinite z-scores as a right posterior of a discrete site may have are left out
            of the root mean square.
    """

    labels: tuple[str, ...]
    z_scores: Float[np.ndarray, "simulations coordinates"]
    shrinkage: Float[np.ndarray, "simulations coordinates"]
    num_draws: int | None = None

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A word for each coordinate, from its median shrinkage and the root mean square of its z-scores."""
        middle, size = np.median(self.shrinkage, 0), self._sizes()
        return tuple(
            "overfitted"
            if z > 2 and s > 0.5
            else "prior and data in conflict"
            if z > 2
            else "poorly identified"
            if s < 0.1
            else "identified"
            for s, z in zip(middle, size, strict=True)
        )

    def _sizes(self) -> Float[np.ndarray, " coordinates"]:
        """Root mean square of the z-scores."""
        # L draws of a right posterior are all v while the truth is not in p^L (1 - p) <= 1 / (L + 1) of the simulations.
        chance = 0.0 if self.num_draws is None else 1 / (self.num_draws + 1)
        missed = np.isinf(self.z_scores)
        is_left_out = missed & (missed.mean(0) <= chance + 3 * (chance / len(missed)) ** 0.5)
        return np.sqrt(np.mean(self.z_scores**2, axis=0, where=~is_left_out))

    def _facts(self) -> dict[str, PyTree]:
        return {
            "simulations": len(self.z_scores),
            "verdicts": dict(zip(self.labels[:6], self.verdicts[:6], strict=True)),
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows = [("coordinate", "mean z", "rms z", "median shrinkage", "verdict")]
        sizes = self._sizes()
        for i, label in enumerate(self.labels):
            z = self.z_scores[:, i]
            middle = np.median(self.shrinkage[:, i])
            with np.errstate(invalid="ignore"):  # of both infinities there is no mean
                numbers = f"{z.mean():+.2f}", f"{sizes[i]:.2f}", f"{middle:.2f}"
            rows.append((label, *numbers, self.verdicts[i]))
        return [rows]

    def __str__(self) -> str:
        return table(*self._tables())


@checked_call
def z_scores(simulations: Simulations) -> ZScores:
    """Posterior z-scores and shrinkage of each simulation and coordinate.

        z = (E[theta | x] - theta*) / sd[theta | x],   shrinkage = 1 - Var[theta | x] / Var[theta],

    moments of the draws, and of all truths for the prior. Under a right posterior E[z] = 0 and, with many draws, E[z^2] = 1.
    Shrinkage near 1 says that the data decide, near 0 that the prior does; together with |z| they tell an overfitted
    coordinate (large, near 1) from a poorly identified one (small, near 0) and from a prior that the data contradict (large,
    near 0). Where all draws are one value, z is 0 if it is the truth and +-inf if not.

    Args:
        simulations: of `simulate`, with two draws or more.

    Returns:
        `ZScores`.

    Raises:
        ValueError: a single draw.

    Validity: a description, no test; with L draws E[z^2] is above 1 by a factor of about 1 + 3 / L.

    Reference: Betancourt 2018, arXiv:1803.08393, section 1.3.
    """
    truth, draws = simulations.truth_matrix, simulations.draw_matrix
    if draws.shape[1] < 2:
        raise ValueError(
            "z_scores: one draw has no deviation. Let posterior_fn return at least two draws."
        )
    variance = draws.var(1, ddof=1)
    # Draws of one value: a point mass is right where it hits the truth, and nowhere else.
    is_point = (draws == draws[:, :1]).all(1)
    gap = np.where(is_point, draws[:, 0], draws.mean(1)) - truth
    point = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
    z = np.where(is_point, point, gap / np.sqrt(np.where(is_point, 1.0, variance)))
    prior = truth.var(0, ddof=1)
    shrinkage = 1 - variance / np.where(prior > 0, prior, np.inf)
    return ZScores(simulations.coordinates, z, shrinkage, draws.shape[1])
