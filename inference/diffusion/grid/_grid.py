"""What the steps of a corrected diffusion need of its composition and its times, and what is refused beforehand."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from ....ppl._compat import is_concrete
from .. import _points as points
from .._composition import Composition
from ._noise_scale import NoiseScale, automatic, given
from ._steps import Coefficients, Integrator, Steps, euler, exponential, lengths

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
        steps: their coordinate and coefficients.
    """

    times: Array
    exponents: Array
    variance: Array
    drift: Array
    noise: Array
    zeta: Array
    steps: Steps


def coefficients(
    composition: Composition, times: np.ndarray, zeta: NoiseScale, weights: Weighting, integrator: Integrator
) -> Coefficients:  # fmt: skip
    """All quantities of the grid, which are known numbers even where a program is traced."""
    if integrator not in ("euler", "exponential"):
        raise ValueError(f"fkc: integrator must be 'euler' or 'exponential', got {integrator!r}.")
    noising = composition.models[0].noising
    with jax.ensure_compile_time_eval():
        at = jnp.asarray(times, float)
        exponents = _known("exponents", composition.exponents_at(at))
        variance, log_alpha = (
            _known("the noising process", jax.vmap(fn)(at))
            for fn in (noising.variance, noising.log_alpha)
        )
        is_auto = isinstance(zeta, str) and zeta == "auto"
        chosen = None if is_auto else _known("zeta", given(zeta, at[:-1]))
    drift = -np.diff(log_alpha)
    # g2 = d variance / dt - 2 a variance, the last term by the trapezoidal rule.
    noise = -np.diff(variance) - drift * (variance[1:] + variance[:-1])
    is_exact = integrator == "exponential"
    if is_exact and variance[-1] <= 0:
        raise ValueError(
            f"fkc: times end at {times[-1]:g}, where no noise is left, and integrator='exponential' follows the log "
            "signal-to-noise ratio. End at a small positive time, e.g. noising.times(num_steps), or use integrator='euler'."
        )
    with np.errstate(divide="ignore"):
        contraction = lengths(log_alpha, variance) if is_exact else noise / variance[1:]
    if chosen is None:
        chosen = automatic(
            exponents[:-1], contraction, is_exact=is_exact, is_euler=weights == "euler"
        )
    totals = exponents[:-1].sum(1)
    steps = exponential(log_alpha, variance, chosen, totals) if is_exact else euler(drift, noise)
    return Coefficients(times, exponents, log_alpha, variance, drift, noise, chosen, steps)


def as_grid(known: Coefficients) -> Grid:
    """A grid of arrays, which keep their values where a program is traced."""
    fields = known._asdict()
    del fields["log_alpha"]
    with jax.ensure_compile_time_eval():
        return Grid(**jax.tree.map(lambda x: jnp.asarray(x, float), fields))


def _known(what: str, values: Array) -> np.ndarray:
    """In double precision; refuses values that depend on what a transformation traces."""
    if not is_concrete(values):
        raise ValueError(
            f"fkc: {what} must be concrete numbers, known while a program is traced, and depend on a traced value here: whether "
            "the weights are sound could not be checked. Make them outside jax.jit, jax.grad and jax.vmap (NumPy, or "
            "noising.times(num_steps)), or close over Python numbers."
        )
    return np.asarray(values, np.float64)


def choose_ratios(
    weights: Weighting, composition: Composition, is_positive: bool, integrator: Integrator
) -> Ratios:
    """The source of each model's density ratio, or "euler"; `is_positive`: zeta is, at every step."""
    ratios = _ratios(weights, composition, is_positive)
    if integrator == "exponential" and set(ratios) != {"exact"}:
        raise ValueError(
            f"fkc: integrator='exponential' makes long steps, and weights {ratios!r} are those of short ones; only 'exact' "
            "weights are right at any length. Give the log_density of every model and a positive zeta, or use "
            "integrator='euler' with times even in the log signal-to-noise ratio (noising.log_snr_times(num_steps))."
        )
    return ratios


def _ratios(weights: Weighting, composition: Composition, is_positive: bool) -> Ratios:
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


def check_known(composition: Composition, known: Coefficients, ratios: Ratios) -> None:
    """Refuse what a model without log_density cannot give: its marginal inside the process, its score without noise."""
    unknown = [i for i, m in enumerate(composition.models) if m.log_density is None]
    if not unknown:
        return
    end = composition.models[0].noising.end
    first, last = known.times[0], known.times[-1]
    needs_last = ratios != "euler" or composition.varies
    if first < end * (1 - 1e-5):
        raise ValueError(
            f"fkc: times begin at {first:g}, short of the end {end:g} of the process, and the marginal of model {unknown[0]} "
            "there is not known. Begin at the end, or give its log_density."
        )
    if needs_last and known.variance[-1] == 0:
        raise ValueError(
            f"fkc: times end at {last:g}, where no noise is left and the score of model {unknown[0]} need not exist, and the "
            "weights ask for it. End at a small positive time, e.g. noising.times(num_steps), or use weights='euler'."
        )
    if composition.varies and not np.all(known.zeta > 0):
        raise ValueError(
            f"fkc: exponents that vary with time weigh log q, which for model {unknown[0]} is followed along the path by its "
            "noise, and zeta is 0 at a step. Use a positive zeta, or give the log_density."
        )


def start_law(
    composition: Composition, known: Coefficients, start: dist.Distribution | None
) -> dict[str, dist.Distribution] | dist.Distribution:
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
    with jax.ensure_compile_time_eval():
        scale = jnp.sqrt(jnp.asarray(known.variance[0] / known.exponents[0].sum(), float))
    return points.normal_law(shape, scale)
