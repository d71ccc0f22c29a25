"""What the steps of a corrected diffusion need of its composition and its times, and what is refused beforehand."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...ppl._compat import is_concrete
from . import _points as points
from ._composition import Composition
from ._noise_scale import NoiseScale, on_grid, warn_of_infinite_variance

Weighting = Literal["auto", "euler", "rne", "exact"]
Ratios = Literal["euler"] | tuple[Literal["exact", "rne"], ...]


class Grid(NamedTuple):
    """What the steps need.

    Attributes:
        times: noising times, [steps + 1].
        exponents: [steps + 1, models].
        variance: std^2 of the noise, [steps + 1].
        drift: the integral of the drift a over each step, [steps], <= 0.
        noise: the integral of g2 over each step, [steps], > 0.
        zeta: noise scale of each step, [steps].
    """

    times: Array
    exponents: Array
    variance: Array
    drift: Array
    noise: Array
    zeta: Array


def make_grid(composition: Composition, times: Array, zeta: NoiseScale, weights: Weighting) -> Grid:
    """All quantities of the grid; warns where weights may have infinite variance."""
    noising, exponents = composition.models[0].noising, composition.exponents_at(times)
    variance, log_alpha = (jax.vmap(fn)(times) for fn in (noising.variance, noising.log_alpha))
    drift = -jnp.diff(log_alpha)
    # g2 = d variance / dt - 2 a variance, the last term by the trapezoidal rule.
    noise = -jnp.diff(variance) - drift * (variance[1:] + variance[:-1])
    totals = exponents[:-1].sum(1)
    scales = on_grid(zeta, times[:-1], totals, noise, variance[1:], weights == "euler")
    warn_of_infinite_variance(scales, totals)
    return Grid(times, exponents, variance, drift, noise, scales)


def choose_ratios(weights: Weighting, composition: Composition, is_positive: bool) -> Ratios:
    """Where the density ratio of each model comes from, or "euler"; `is_positive`: zeta is, at every step."""
    if weights not in ("auto", "euler", "rne", "exact"):
        raise ValueError(
            f"fkc: weights must be 'auto', 'euler', 'rne' or 'exact', got {weights!r}."
        )
    if weights == "euler" or (weights == "auto" and not is_positive):
        return "euler"
    if not is_positive:
        raise ValueError(
            f"fkc: weights={weights!r} are ratios of Normal densities of scale zeta, and zeta is 0 at a step. Use a positive "
            "zeta, or weights='euler'."
        )
    known = [m.log_density is not None for m in composition.models]
    if weights == "exact" and not all(known):
        raise ValueError(
            f"fkc: weights='exact' need the log_density of every model, and model {known.index(False)} has none. Use "
            "weights='rne', which needs scores only."
        )
    ratios: list[Literal["exact", "rne"]] = [
        "exact" if k and weights != "rne" else "rne" for k in known
    ]
    return tuple(ratios)


def check_known(composition: Composition, grid: Grid, ratios: Ratios) -> None:
    """Refuse what a model without log_density cannot give: its marginal inside the process, its score without noise."""
    unknown = [i for i, m in enumerate(composition.models) if m.log_density is None]
    if not unknown or not is_concrete(grid):
        return
    end = composition.models[0].noising.end
    first, last = float(grid.times[0]), float(grid.times[-1])
    needs_last = ratios != "euler" or composition.varies
    if first < end * (1 - 1e-5):
        raise ValueError(
            f"fkc: times begin at {first:g}, short of the end {end:g} of the process, and the marginal of model {unknown[0]} "
            "there is not known. Begin at the end, or give its log_density."
        )
    if needs_last and float(grid.variance[-1]) == 0:
        raise ValueError(
            f"fkc: times end at {last:g}, where no noise is left and the score of model {unknown[0]} need not exist, and the "
            "weights ask for it. End at a small positive time, e.g. noising.times(num_steps), or use weights='euler'."
        )
    if composition.varies and not bool(jnp.all(grid.zeta > 0)):
        raise ValueError(
            f"fkc: exponents that vary with time weigh log q, which for model {unknown[0]} is followed along the path by its "
            "noise, and zeta is 0 at a step. Use a positive zeta, or give the log_density."
        )


def start_law(composition: Composition, grid: Grid, start: Any) -> Any:
    """The law of the first points: `start`, or Normal(0, variance / W)."""
    shape = composition.models[0].shape
    if start is not None:
        drawn = points.shape_of_law(start)
        if drawn != shape or not points.is_unbatched(start):
            raise ValueError(
                f"fkc: start draws points of shape {drawn}, and the models' points have shape {shape}; it must draw one "
                f"point of shape {shape}, e.g. with .to_event()."
            )
        return start
    total = grid.exponents[0].sum()
    if is_concrete(total) and float(total) <= 0:
        raise ValueError(
            f"fkc: the exponents add up to {float(total):g} at the first time, where the target is then not integrable. Give "
            "exponents of positive sum, or the law of the first points as start=."
        )
    return points.normal_law(shape, jnp.sqrt(grid.variance[0] / total))
