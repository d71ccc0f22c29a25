"""Feynman-Kac correctors: weighted particles of powers, products and tilts of diffusion models.

Target, t a noising time that falls from noise to data, W = sum_i w_i, S = sum_i w_i s_i with s_i = grad log q_i:

    p_t(x) proportional to exp(h_t(x)) prod_i q_i,t(x)^w_i(t).

Simulation, for every noise scale zeta >= 0, over a time step dt towards the data (f = a x the drift of the noising process,
g2 its squared diffusion coefficient):

    dx = [-f + (1 + zeta^2)/2 g2 S + zeta^2/2 g2 grad h] dt + zeta sqrt(g2) dB
    d log weight = [(W - 1) div f + g2/2 (|S|^2 - sum_i w_i |s_i|^2) + dh/dt - f . grad h + g2/2 S . grad h
                    + sum_i dw_i/dt log q_i] dt.

The rate of the weights does not depend on zeta, and no divergence of a score occurs: this drift is the one for which it cancels.
All correctors of the paper are settings of w, h and zeta.

On a grid the coefficients enter by their integrals over a step, A of a and V of g2 (to second order, exact where alpha or std
is constant), so that only the path of (alpha, std) matters and not how fast time runs. The step is

    M_n(y | x) = Normal(x - A x + (zeta^2 + 1)/2 V S(x) + zeta^2/2 V grad h(x), zeta^2 V)

and its weight one of

    euler   the rate at x, with A and V in place of a dt and g2 dt
    exact   log p_{n+1}(y) - log p_n(x) + log B_n(x | y) - log M_n(y | x),
            B_n(x | y) = Normal(y + A y + (zeta^2 - 1)/2 V S(y) + zeta^2/2 V grad h(y), zeta^2 V)
    rne     the same with each log q_i,n+1(y) - log q_i,n(x) replaced by log R_i(y | x) - log F_i(x | y), the model's own
            kernels at this noise: M_n and B_n for the target q_i alone.

Invariants: the state of a particle holds the scores (and what else the weights need) at its place, so that every model is
evaluated once a step and all of it moves with its particle; "exact" weights have the mean Z_{n+1} / Z_n for every dt and
every score, since B and M are densities whatever their drifts; a model alone has weights 1.

Reference: Skreta et al. 2025, arXiv:2503.02819 (correctors); He et al. 2025, arXiv:2506.05668 (path ratios, here with kernels
that carry the noise of the simulation: with those of zeta = 1 the limit is wrong at any other zeta); Del Moral, Doucet and
Jasra 2006 (backward kernels).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ...ppl._compat import is_concrete
from ..particles._feynman_kac import FeynmanKac
from ._composition import Composition, Exponent, Reward, as_composition, product
from ._diffusion import Diffusion, check_times
from ._noise_scale import NoiseScale, on_grid, warn_of_infinite_variance

Weighting = Literal["auto", "euler", "rne", "exact"]


class Tilt(NamedTuple):
    """The reward at a particle: h, its gradient in x, its derivative in the noising time (None where no weight needs it)."""

    value: Float[Array, ""]
    gradient: Float[Array, " *shape"]
    slope: Any


class Diffused(NamedTuple):
    """State of a particle.

    Attributes:
        x: its place.
        scores: of each model there, [models, *shape].
        log_densities: log q_i there, or its estimate along the path; [models], None where no weight needs it.
        tilt: the reward there, None without.
    """

    x: Float[Array, " *shape"]
    scores: Float[Array, " models *shape"]
    log_densities: Any
    tilt: Tilt | None


@dataclasses.dataclass(frozen=True)
class CorrectedDiffusion(FeynmanKac):
    """The Feynman-Kac model that `fkc` makes; its states are `Diffused`.

    Attributes:
        composition: the models, exponents and reward of the target.
        times: the noising times of the grid, [steps + 1].
        zeta: the noise scale before each step, [steps].
        weights: how each model's density ratio enters: "euler" for all, or "exact" or "rne" for each.
    """

    composition: Composition = dataclasses.field(kw_only=True)
    times: Float[Array, " steps+1"] = dataclasses.field(kw_only=True)
    zeta: Float[Array, " steps"] = dataclasses.field(kw_only=True)
    weights: Literal["euler"] | tuple[Literal["exact", "rne"], ...] = dataclasses.field(
        kw_only=True
    )


def fkc(
    models: Diffusion | CorrectedDiffusion | Sequence[Diffusion | CorrectedDiffusion],
    times: Float[Array, " steps+1"],
    *,
    exponents: Exponent | Sequence[Exponent] = 1.0,
    reward: Reward | None = None,
    zeta: NoiseScale = "auto",
    weights: Weighting = "auto",
    start: dist.Distribution | None = None,
    max_score_norm: float | None = None,
) -> CorrectedDiffusion:
    """Sample p(x) proportional to exp(h(x)) prod_i q_i(x)^w_i from diffusion models q_i, by weighted particles.

    The result is a `FeynmanKac`: `smc(fkc(...), key, num_particles=...)` returns particles `.x` with weights, and
    `log_evidence`, the log of the integral of exp(h) prod q_i^w_i in nats. Some targets:

        annealing to temperature 1 / beta         fkc(q, times, exponents=beta)
        geometric average (guidance)              fkc([unconditional, conditional], times, exponents=[1 - beta, beta])
        product of experts                        fkc([q1, q2], times, exponents=[1, 1])
        reward                                    fkc(q, times, reward=lambda x, t: (1 - t) * r(x))
        annealed product of guided models         fkc([guided, other], times, exponents=[beta, beta])

    In the last one `guided` is itself the result of `fkc`: exponents multiply, and one corrector runs for all. Only its models,
    exponents and reward are taken over.

    Args:
        models: one or several models of one noising process.
        times: noising times, descending: `noising.times(num_steps)`.
        exponents: w, one for all models or one for each; numbers, or functions of the noising time (right at its end).
        reward: `(x, t) -> h_t(x)` for one point, in nats, differentiable in both; h at the last time is the reward of the result.
            Best zero at the first time, where particles are drawn without it.
        zeta: scale of the noise, 1 for that of the reverse process; a number, a function of the noising time, or "auto":
            zeta^2 = max(1, c (1 - 1/W)) with c = 10, less where the steps are too long for that, but at least 2.1 (with
            "euler" weights 2.5 in place of 10).
        weights: "exact" (needs `log_density` of all models), "rne" (scores at both ends of a step), "euler"; "auto" takes
            "euler" where zeta may be 0, else for each model "exact" if its density is known and "rne" if it is not.
        start: law of x at the first time, Normal(0, variance / W) by default. Weights correct for it.
        max_score_norm: scores longer than this are cut to it, in drift and weight alike.

    Returns:
        A `CorrectedDiffusion`.

    Raises:
        ValueError: models of several processes or shapes; times that do not descend; W <= 0 at the first time without `start`;
            densities that "exact" needs, that exponents vary with at zeta = 0, or that times which do not begin at the end of the
            process need; zeta = 0 with "rne" or "exact"; scores at noise 0 where they are not known to exist.

    Warns:
        UserWarning: zeta^2 <= 2 (1 - 1/W): the weights may have infinite variance, and their ESS will not show it.

    Validity: with "exact" weights E[exp(log_evidence)] is the integral for every grid, score and clipping. With "rne" and
    "euler" this holds as dt -> 0 (Euler's bias grows with zeta^2 dt) for true scores and marginals at the first time that are
    Normal(0, variance) where their density is not known. The target must be integrable at all times, which negative exponents
    may violate. Learned scores and clipping make "rne" and "euler" approximate.

    Example:
        >>> import jax
        >>> from lapilli import inference
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP(0.1, 8.0)
        >>> q = diffusion.gaussian_mixture(noising, [1.0], [0.5], 0.2)
        >>> cold = inference.fkc(q, noising.times(100), exponents=2.0)
        >>> result = inference.smc(cold, jax.random.key(0), num_particles=200, history="none")
        >>> result.particles.x.shape
        (200,)

    Reference: Skreta et al. 2025, arXiv:2503.02819, propositions 3.1 to 3.4 and D.1 to D.6; weights as in the module's text.
    """
    composition = _compose(models, exponents, reward)
    noising = composition.models[0].noising
    times = check_times("fkc", noising, times)
    grid = _grid(composition, times, zeta, weights)
    is_positive = not (isinstance(zeta, int | float) and zeta == 0)
    if is_concrete(grid.zeta):
        is_positive = bool(jnp.all(grid.zeta > 0))
    ratios = _weighting(weights, composition, is_positive)
    tracks = ratios != "euler" or composition.varies
    _check_known(composition, grid, ratios, tracks)
    steps = _Steps(composition, grid, ratios, tracks, max_score_norm)
    law = _start(composition, grid, start)

    def init(key: Array) -> Diffused:
        return steps.at(jnp.asarray(law.sample(key)), jnp.zeros((), int), None)

    def log_potential(previous: Diffused, state: Diffused, n: Array) -> Array:
        first = lambda: steps.log_start(state) - law.log_prob(state.x)
        return jax.lax.cond(n == 0, first, lambda: steps.log_weight(previous, state, n - 1))

    return CorrectedDiffusion(
        init,
        steps.move,
        log_potential,
        len(times) - 1,
        steps.log_transition,
        composition=composition,
        times=times,
        zeta=grid.zeta,
        weights=ratios,
    )


class _Grid(NamedTuple):
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


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The functions of the module's text, for one particle."""

    composition: Composition
    grid: _Grid
    ratios: Any
    tracks: bool
    max_score_norm: float | None

    def at(self, x: Array, n: Array, previous: Diffused | None) -> Diffused:
        """The state at x after n steps."""
        t = self.grid.times[n]
        models, reward = self.composition.models, self.composition.reward
        scores = jnp.stack([_clipped(m.score(x, t), self.max_score_norm) for m in models])
        tilt = None
        if reward is not None:
            value, gradient = jax.value_and_grad(reward)(x, t)
            needs_slope = self.ratios == "euler"
            slope = jax.grad(lambda t: reward(x, t))(t) if needs_slope else None
            tilt = Tilt(value, gradient, slope)
        state = Diffused(x, scores, None, tilt)
        return state._replace(log_densities=self._log_densities(state, n, previous))

    def _log_densities(self, state: Diffused, n: Array, previous: Diffused | None) -> Array | None:
        """Log q_i where it is known and wanted; else the last one plus the log-ratio of the model's kernels."""
        if not self.tracks:
            return None
        values = []
        for i, model in enumerate(self.composition.models):
            known = model.log_density
            if known is not None and (
                previous is None or self.ratios == "euler" or self.ratios[i] == "exact"
            ):
                values.append(known(state.x, self.grid.times[n]))
            elif previous is None:
                values.append(model.prior().log_prob(state.x))
            else:
                values.append(
                    previous.log_densities[i] + self._path_ratio(i, previous, state, n - 1)
                )
        return jnp.stack(values)

    def _path_ratio(self, i: int, previous: Diffused, state: Diffused, n: Array) -> Array:
        """The ratio log R_i(y | x) - log F_i(x | y) over step n."""
        grid, zeta2 = self.grid, self.grid.zeta[n] ** 2
        reverse = (
            0.5 * (zeta2 + 1) * grid.noise[n] * previous.scores[i] - grid.drift[n] * previous.x
        )
        noising = 0.5 * (zeta2 - 1) * grid.noise[n] * state.scores[i] + grid.drift[n] * state.x
        return self._log_ratio(previous.x, state.x, reverse, noising, n)

    def _log_ratio(self, x: Array, y: Array, there: Array, back: Array, n: Array) -> Array:
        """The ratio log Normal(y; x + there, V) - log Normal(x; y + back, V), V the variance of the move of step n.

        As a product of sum and difference: the squares are of the size of the dimension, what is left of them is small.
        """
        variance = self.grid.zeta[n] ** 2 * self.grid.noise[n]
        return jnp.sum((there + back) * (2 * (y - x) + back - there)) / (2 * variance)

    def _shift(self, state: Diffused, n: Array, w: Array, sign: int) -> Array:
        """The mean displacement of step n from a state: of M at its start with sign +1, of B at its end with sign -1."""
        grid, zeta2 = self.grid, self.grid.zeta[n] ** 2
        shift = 0.5 * (zeta2 + sign) * grid.noise[n] * _combined(state, w)
        shift = shift - sign * grid.drift[n] * state.x
        return (
            shift
            if state.tilt is None
            else shift + 0.5 * zeta2 * grid.noise[n] * state.tilt.gradient
        )

    def _moments(self, previous: Diffused, n: Array) -> tuple[Array, Array]:
        mean = previous.x + self._shift(previous, n, self.grid.exponents[n], 1)
        return mean, self.grid.zeta[n] * jnp.sqrt(self.grid.noise[n])

    def move(self, key: Array, previous: Diffused, n: Array) -> Diffused:
        """A draw from M, number n counting from 1."""
        mean, scale = self._moments(previous, n - 1)
        return self.at(mean + scale * jax.random.normal(key, mean.shape), n, previous)

    def log_transition(self, previous: Diffused, state: Diffused, n: Array) -> Array:
        """Log M(y | x)."""
        mean, scale = self._moments(previous, n - 1)
        return dist.Normal(mean, scale).log_prob(state.x).sum()

    def log_start(self, state: Diffused) -> Array:
        """Log p at the first time, not normalised; marginals whose density is not known are Normal(0, variance)."""
        total = jnp.zeros(())
        for w, model in zip(self.grid.exponents[0], self.composition.models, strict=True):
            known = model.log_density
            log_q = (
                model.prior().log_prob(state.x)
                if known is None
                else known(state.x, self.grid.times[0])
            )
            total = total + w * log_q
        return total if state.tilt is None else total + state.tilt.value

    def log_weight(self, previous: Diffused, state: Diffused, n: Array) -> Array:
        """Log G of step n."""
        if self.ratios == "euler":
            return self._euler(previous, n)
        there = self._shift(previous, n, self.grid.exponents[n], 1)
        back = self._shift(state, n, self.grid.exponents[n + 1], -1)
        ratio = self._log_ratio(previous.x, state.x, there, back, n)
        return self._log_target(state, n + 1) - self._log_target(previous, n) - ratio

    def _log_target(self, state: Diffused, n: Array) -> Array:
        total = self.grid.exponents[n] @ state.log_densities
        return total if state.tilt is None else total + state.tilt.value

    def _euler(self, state: Diffused, n: Array) -> Array:
        grid, w = self.grid, self.grid.exponents[n]
        score, half = _combined(state, w), 0.5 * grid.noise[n]
        squares = jnp.sum(state.scores**2, axis=tuple(range(1, state.scores.ndim)))
        log_weight = (w.sum() - 1) * grid.drift[n] * state.x.size
        log_weight = log_weight + half * (jnp.sum(score**2) - w @ squares)
        if state.tilt is not None:
            _, gradient, slope = state.tilt
            # The slope is one in the noising time, which falls.
            change = slope * (grid.times[n + 1] - grid.times[n])
            log_weight += change + jnp.sum(gradient * (half * score - grid.drift[n] * state.x))
        if self.composition.varies:
            log_weight += (grid.exponents[n + 1] - w) @ state.log_densities
        return log_weight


def _combined(state: Diffused, w: Array) -> Array:
    return jnp.tensordot(w, state.scores, 1)


def _clipped(score: Array, max_norm: float | None) -> Array:
    if max_norm is None:
        return score
    norm = jnp.sqrt(jnp.sum(score**2))
    return score * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))


def _compose(models: Any, exponents: Any, reward: Reward | None) -> Composition:
    several = models if isinstance(models, Sequence) else [models]
    if not several or not all(isinstance(m, Diffusion | CorrectedDiffusion) for m in several):
        kinds = [type(m).__name__ for m in several]
        raise TypeError(f"fkc: models must be Diffusion or results of fkc, got {kinds}.")
    powers = exponents if isinstance(exponents, Sequence) else [exponents] * len(several)
    if len(powers) != len(several):
        raise ValueError(
            f"fkc: {len(powers)} exponents for {len(several)} models. Give one number for all, or one for each."
        )
    factors = [
        m.composition if isinstance(m, CorrectedDiffusion) else as_composition(m) for m in several
    ]
    composition = product(factors, powers, reward)
    first, *others = composition.models
    for other in others:
        if other.noising != first.noising:
            raise ValueError(
                f"fkc: all models need one noising process, got {first.noising} and {other.noising}: the weights are those of "
                "marginals of one process. Train them with one, or change the time of one of them."
            )
        if other.shape != first.shape:
            raise ValueError(
                f"fkc: all models need points of one shape, got {first.shape} and {other.shape}."
            )
    return composition


def _grid(composition: Composition, times: Array, zeta: NoiseScale, weights: Weighting) -> _Grid:
    noising, exponents = composition.models[0].noising, composition.exponents_at(times)
    variance, log_alpha = (jax.vmap(fn)(times) for fn in (noising.variance, noising.log_alpha))
    drift = -jnp.diff(log_alpha)
    # g2 = d variance / dt - 2 a variance, the last term by the trapezoidal rule.
    noise = -jnp.diff(variance) - drift * (variance[1:] + variance[:-1])
    totals = exponents[:-1].sum(1)
    scales = on_grid(zeta, times[:-1], totals, noise, variance[1:], weights == "euler")
    warn_of_infinite_variance(scales, totals)
    return _Grid(times, exponents, variance, drift, noise, scales)


def _weighting(weights: Weighting, composition: Composition, is_positive: bool) -> Any:
    """Where the density ratio of each model comes from, or "euler"."""
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
    return tuple("exact" if k and weights != "rne" else "rne" for k in known)


def _check_known(composition: Composition, grid: _Grid, ratios: Any, tracks: bool) -> None:
    """Refuse what a model without log_density cannot give: its marginal inside the process, its score without noise."""
    unknown = [i for i, m in enumerate(composition.models) if m.log_density is None]
    if not unknown or not is_concrete(grid):
        return
    end, first, last = (
        composition.models[0].noising.end,
        float(grid.times[0]),
        float(grid.times[-1]),
    )
    if first < end * (1 - 1e-5):
        raise ValueError(
            f"fkc: times begin at {first:g}, short of the end {end:g} of the process, and the marginal of model {unknown[0]} "
            "there is not known. Begin at the end, or give its log_density."
        )
    if tracks and float(grid.variance[-1]) == 0:
        raise ValueError(
            f"fkc: times end at {last:g}, where no noise is left and the score of model {unknown[0]} need not exist, and the "
            "weights ask for it. End at a small positive time, e.g. noising.times(num_steps), or use weights='euler'."
        )
    if tracks and not bool(jnp.all(grid.zeta > 0)):
        raise ValueError(
            f"fkc: exponents that vary with time weigh log q, which for model {unknown[0]} is followed along the path by its "
            "noise, and zeta is 0 at a step. Use a positive zeta, or give the log_density."
        )


def _start(
    composition: Composition, grid: _Grid, start: dist.Distribution | None
) -> dist.Distribution:
    shape = composition.models[0].shape
    if start is not None:
        if start.batch_shape + start.event_shape != shape or start.batch_shape:
            raise ValueError(
                f"fkc: start has batch shape {start.batch_shape} and event shape {start.event_shape}; it must draw one "
                f"point of shape {shape}, e.g. with .to_event()."
            )
        return start
    total = grid.exponents[0].sum()
    if is_concrete(total) and float(total) <= 0:
        raise ValueError(
            f"fkc: the exponents add up to {float(total):g} at the first time, where the target is then not integrable. Give "
            "exponents of positive sum, or the law of the first points as start=."
        )
    scale = jnp.sqrt(grid.variance[0] / total)
    return dist.Normal(0.0, scale).expand(shape).to_event(len(shape))
