"""The steps of a corrected diffusion and their weights, for one particle.

On a grid the coefficients enter by their integrals over a step, A of a and V of g2 (to second order, exact where alpha or std
is constant), so that only the path of (alpha, std) matters and not how fast time runs. With S = sum_i w_i s_i the step is, by
Euler (exponential steps have other coefficients, see `grid/_steps.py`),

    M_n(y | x) = Normal(x - A x + (zeta^2 + 1)/2 V S(x) + zeta^2/2 V grad h(x), zeta^2 V)

and its weight one of

    euler   the rate of the weights at x (see `_fkc`), with A and V in place of a dt and g2 dt
    exact   log p_{n+1}(y) - log p_n(x) + log B_n(x | y) - log M_n(y | x),
            B_n(x | y) = Normal(y + A y + (zeta^2 - 1)/2 V S(y) + zeta^2/2 V grad h(y), zeta^2 V)
    rne     the same with each log q_i,n+1(y) - log q_i,n(x) replaced by log R_i(y | x) - log F_i(x | y), the model's own
            kernels at this noise: M_n and B_n for the target q_i alone.

A control (see `_drift_control`) adds V sum_i c_i b_i(x) to the mean of M, takes V sum_i c_i b_i(y) from that of B, and adds
V sum_i c_i (div b_i + b_i . grad log p)(x) to Euler's weights.

Invariants: the state of a particle holds the scores (and what else the weights need) at its place, so that every model is
evaluated once a step and all of it moves with its particle; "exact" weights have the mean Z_{n+1} / Z_n for every dt and
every score, since B and M are densities whatever their drifts; a model alone has weights 1; a weight depends on no state but
the two at the ends of its step, unless log q of a model is followed along the path (`is_followed`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...ppl._precision import full_precision
from ...ppl._show import shown
from . import _points as points
from ._composition import Composition
from ._langevin import Langevin, moved
from .grid import Coefficients, Grid, Ratios, Unseen, penalty


class Tilt(NamedTuple):
    """The reward at a particle: h, its gradient in x, its derivative in the noising time (None where no weight needs it)."""

    value: Float[Array, ""]
    gradient: PyTree
    slope: Any


@shown
class Diffused(NamedTuple):
    """State of a particle.

    Attributes:
        x: its place, an array or a tree of arrays as the models' `shape` says.
        scores: of each model there, of the structure of x, leaves [models, ...].
        log_densities: for each model log q_i there, or its estimate along the path, or None where no weight needs it.
        tilt: the reward there, None without.
        fields: functions of the user's that a control is made of, leaves [functions, ...], None without.
        divergences: of all that a control is made of, [bases], None where no weight needs them.
        log_weight: of the step that led here, where Langevin moves came after it; None without.
    """

    x: PyTree
    scores: Any
    log_densities: tuple[Any, ...]
    tilt: Tilt | None
    fields: Any = None
    divergences: Any = None
    log_weight: Any = None


@dataclasses.dataclass(frozen=True)
class AddedDrift:
    """A drift beyond that of the target, sum_i c_i b_i, with the b_i in this order.

    Attributes:
        num_scores: how many of the b_i are scores of the models, all or none.
        has_reward: whether the reward's gradient is one.
        functions: others, `(x, t) -> b(x, t)`.
        coefficients: c of each step, [steps, bases].
    """

    num_scores: int
    has_reward: bool
    functions: tuple[Callable[[PyTree, Array], PyTree], ...]
    coefficients: Array


@dataclasses.dataclass(frozen=True)
class Corrector:
    """The functions of the module's text.

    Attributes:
        composition: models, exponents and reward.
        grid: the coefficients of the steps.
        ratios: where density ratios come from.
        law: of the first points.
        langevin: moves after each step; None for none.
        known: the grid in double precision.
        unseen: what of the target is checked by the weights of the first points.
        control: a drift beyond that of the target; None for none.
    """

    composition: Composition
    grid: Grid
    ratios: Ratios
    law: Any
    langevin: Langevin | None
    known: Coefficients
    unseen: Unseen
    control: AddedDrift | None = None

    @property
    def is_followed(self) -> bool:
        """Whether a log q is followed along the path, so that a weight depends on more than the ends of its step."""
        unknown = any(m.log_density is None for m in self.composition.models)
        return self.composition.varies and unknown

    def init(self, key: Array) -> Diffused:
        """The state at a first point."""
        return self.at(points.draw(self.law, key), jnp.zeros((), int), None)

    def move(self, key: Array, previous: Diffused, n: Array) -> Diffused:
        """A draw from M, number n counting from 1, and Langevin moves if there are any."""
        mean, scale = self.moments(previous, n - 1)
        if self.langevin is None:
            noise = points.noise_like(key, mean)
            x = jax.tree.map(lambda m, e: m + scale * e, mean, noise)
            return self.at(x, n, previous)
        step_key, key = jax.random.split(key)
        noise = points.noise_like(step_key, mean)
        x = jax.tree.map(lambda m, e: m + scale * e, mean, noise)
        state = self.at(x, n, previous)
        log_weight = self.log_weight(previous, state, n - 1)
        total = jnp.maximum(jnp.maximum(self.grid.exponents[n], 0.0).sum(), 1.0)
        state = moved(self, self.langevin, key, state, n, self.grid.variance[n] / total)
        return state._replace(log_weight=log_weight)

    def log_transition(self, previous: Diffused, state: Diffused, n: Array) -> Array:
        """Log M(y | x)."""
        return points.log_prob(self.step_law(previous, n), state.x)

    def step_law(self, previous: Diffused, n: Array) -> dist.Distribution:
        """M, as a law of points; number n counting from 1."""
        return points.normals_at(*self.moments(previous, n - 1))

    def log_potential(self, previous: Diffused, state: Diffused, n: Array) -> Array:
        """Log G of step n, counting from 1; at n = 0 that of the start."""
        if self.langevin is None:
            later = lambda: self.log_weight(previous, state, n - 1)
        else:
            later = lambda: state.log_weight
        return jax.lax.cond(n == 0, lambda: self.log_start(state), later)

    def at(self, x: ArrayLike, n: Array, previous: Diffused | None) -> Diffused:
        """The state at x after n steps, the one before it being `previous`."""
        state = self.plain_at(x, n, previous)
        if self.control is None or self.ratios != "euler":
            return state
        pushes = lambda x: self.pushes(self.plain_at(x, n, previous))
        return state._replace(divergences=points.divergences(pushes, x))

    def plain_at(self, x: PyTree, n: Array, previous: Diffused | None) -> Diffused:
        """The state at step n, without divergences."""
        t = self.grid.times[n]
        models, reward = self.composition.models, self.composition.reward
        scores = [m.score_at(x, t) for m in models]
        tilt = None
        if reward is not None:
            value, gradient = jax.value_and_grad(reward)(x, t)
            needs_slope = self.ratios == "euler"
            slope = jax.grad(lambda t: reward(x, t))(t) if needs_slope else None
            tilt = Tilt(value, gradient, slope)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scores)
        log_weight = None if self.langevin is None else jnp.zeros(())
        fields = None
        if self.control is not None and self.control.functions:
            values = [points.checked("a control", fn(x, t), x) for fn in self.control.functions]
            fields = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
        state = Diffused(x, stacked, (), tilt, fields, None, log_weight)
        return state._replace(log_densities=self._log_densities(state, n, previous))

    @full_precision
    def log_target(self, state: Diffused, n: Array) -> Array:
        """Log p after n steps, not normalised; the densities of all models must be known."""
        total = jnp.stack(state.log_densities) @ self.grid.exponents[n]
        return total if state.tilt is None else total + state.tilt.value

    def slope(self, state: Diffused, n: Array) -> PyTree:
        """The gradient of log p after n steps."""
        score = _combined(state, self.grid.exponents[n])
        if state.tilt is None:
            return score
        return jax.tree.map(jnp.add, score, state.tilt.gradient)

    def log_start(self, state: Diffused) -> Array:
        """Log p / law at the first time; marginals whose density is not known are Normal(0, variance)."""
        total = -points.log_prob(self.law, state.x)
        for w, model in zip(self.grid.exponents[0], self.composition.models, strict=True):
            if model.log_density is None:
                total = total + w * points.log_prob(model.prior(), state.x)
            else:
                total = total + w * model.log_density_at(state.x, self.grid.times[0])
        total = total + penalty(self.unseen, self.composition, self.known, state.x)
        return total if state.tilt is None else total + state.tilt.value

    def log_weight(self, previous: Diffused, state: Diffused, n: Array) -> Array:
        """Log G of step n, counting from 0; NaN where the reward is -inf too early, see `fkc`."""
        if self.ratios == "euler":
            rate = self.rate(previous, n) + self._lost(state, n)
            if self.control is None:
                return rate
            pushed = self.pushed_rates(previous, previous.divergences, n)
            with full_precision():
                return rate + pushed @ self.control.coefficients[n]
        now, then = self.grid.exponents[n], self.grid.exponents[n + 1]
        log_weight = -self._kernel_ratio(
            previous.x,
            state.x,
            self._shift(previous, n, now, 1),
            self._shift(state, n, then, -1),
            n,
        )
        for i, ratio in enumerate(self.ratios):
            before, after = previous.log_densities[i], state.log_densities[i]
            if ratio == "exact":
                log_weight += then[i] * after - now[i] * before
                continue
            log_weight += then[i] * self._path_ratio(i, previous, state, n)
            if self.composition.varies:
                log_weight += (then[i] - now[i]) * before
        if state.tilt is not None and previous.tilt is not None:
            log_weight += state.tilt.value - previous.tilt.value + self._lost(state, n)
        return log_weight

    def _lost(self, state: Diffused, n: Array) -> ArrayLike:
        """0, or NaN where a constraint is broken before the last step: from there the end may be within it.

        Weights that follow derivatives see no constraint at the last one, either.
        """
        if state.tilt is None:
            return 0.0
        is_early = self.ratios == "euler" or n + 1 < len(self.known.zeta)
        return jnp.where((state.tilt.value == -jnp.inf) & is_early, jnp.nan, 0.0)

    def moments(self, previous: Diffused, n: Array) -> tuple[Array, Array]:
        """Mean and scale of M of step n, counting from 0."""
        steps = self.grid.steps
        shift = self._shift(previous, n, self.grid.exponents[n], 1)
        unit, to = steps.unit[n], steps.unit[n + 1]
        mean = jax.tree.map(lambda x, a: to * (x / unit + a), previous.x, shift)
        return mean, to * self.grid.zeta[n] * jnp.sqrt(steps.noise[n])

    def backward_moments(self, state: Diffused, n: Array) -> tuple[PyTree, Array]:
        """Mean and scale of B of step n, counting from 0, given where it ends."""
        steps = self.grid.steps
        shift = self._shift(state, n, self.grid.exponents[n + 1], -1)
        to, unit = steps.unit[n], steps.unit[n + 1]
        mean = jax.tree.map(lambda y, a: to * (y / unit + a), state.x, shift)
        return mean, to * self.grid.zeta[n] * jnp.sqrt(steps.noise[n])

    def pushes(self, state: Diffused) -> Array:
        """The functions b_i of the control at a particle, leaves [bases, ...]."""
        control = self.control
        assert control is not None
        parts = [state.scores] * bool(control.num_scores)
        if control.has_reward and state.tilt is not None:
            parts.append(jax.tree.map(lambda g: g[None], state.tilt.gradient))
        if state.fields is not None:
            parts.append(state.fields)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def pushed_rates(self, state: Diffused, divergences: Array, n: Array) -> Array:
        """What each b_i adds to the log-weight of step n by Euler, per unit of its coefficient."""
        slope, pushes = self.slope(state, n), self.pushes(state)
        along = jax.vmap(lambda push: points.total(jnp.multiply, push, slope))
        return self.grid.noise[n] * (divergences + along(pushes))

    def _log_densities(
        self, state: Diffused, n: Array, previous: Diffused | None
    ) -> tuple[Array | None, ...]:
        """Log q_i where a weight needs it: by the model, else by the one before plus the ratio of the model's kernels."""
        values: list[Array | None] = []
        is_metropolis = self.langevin is not None and self.langevin.is_metropolis(self.composition)
        for i, model in enumerate(self.composition.models):
            is_exact = self.ratios != "euler" and self.ratios[i] == "exact"
            if not (is_exact or is_metropolis or self.composition.varies):
                values.append(None)
            elif model.log_density is not None:
                values.append(model.log_density_at(state.x, self.grid.times[n]))
            elif previous is None:
                values.append(points.log_prob(model.prior(), state.x))
            else:
                step = self._path_ratio(i, previous, state, n - 1)
                values.append(previous.log_densities[i] + step)
        return tuple(values)

    def _path_ratio(self, i: int, previous: Diffused, state: Diffused, n: Array) -> Array:
        """The ratio log R_i(y | x) - log F_i(x | y) over step n."""
        steps = self.grid.steps
        score = lambda state: jax.tree.map(lambda s: s[i], state.scores)
        there = self._displacement(previous.x, score(previous), None, n, 1, steps.forward[n])
        back = self._displacement(state.x, score(state), None, n, -1, steps.backward[n])
        return self._kernel_ratio(previous.x, state.x, there, back, n)

    def _kernel_ratio(self, x: Array, y: Array, there: Array, back: Array, n: Array) -> Array:
        """The ratio log Normal(y; x + there, V) - log Normal(x; y + back, V), V the variance of step n.

        Displacements and V are in the units of the step. As a product of sum and difference: the squares are of the size of the
        dimension, what is left of them is small.
        """
        steps = self.grid.steps
        unit, to = steps.unit[n], steps.unit[n + 1]
        variance = self.grid.zeta[n] ** 2 * steps.noise[n]
        parts = lambda x, y, there, back: (there + back) * (2 * (y / to - x / unit) + back - there)
        size = points.size_of(self.composition.models[0].shape)
        return points.total(parts, x, y, there, back) / (2 * variance) + size * jnp.log(unit / to)

    def _shift(self, state: Diffused, n: Array, w: Array, sign: int) -> Array:
        """The mean displacement of step n from a state: of M at its start with sign +1, of B at its end with sign -1."""
        steps = self.grid.steps
        push = steps.forward[n] if sign > 0 else steps.backward[n]
        shift = self._displacement(state.x, _combined(state, w), state.tilt, n, sign, push)
        if self.control is None:
            return shift
        unit = steps.unit[n] if sign > 0 else steps.unit[n + 1]
        c = sign * push * unit * self.control.coefficients[n]
        pushes = self.pushes(state)
        with full_precision():
            return jax.tree.map(lambda a, b: a + jnp.tensordot(c, b, 1), shift, pushes)

    def _displacement(
        self, x: Array, score: Array, tilt: Tilt | None, n: Array, sign: int, push: Array
    ) -> Array:
        """The displacement by a target of this score and reward, in units of the step; `push` is "forward" or "backward"."""
        steps, zeta2 = self.grid.steps, self.grid.zeta[n] ** 2
        unit = steps.unit[n] if sign > 0 else steps.unit[n + 1]
        half, drift = 0.5 * (zeta2 + sign) * push * unit, sign * steps.drift[n] / unit
        shift = jax.tree.map(lambda s, x: half * s - drift * x, score, x)
        if tilt is None:
            return shift
        tilted = 0.5 * zeta2 * push * unit
        return jax.tree.map(lambda a, g: a + tilted * g, shift, tilt.gradient)

    @full_precision
    def rate(self, state: Diffused, n: Array) -> Array:
        """The log-weight of step n by Euler, without a control."""
        grid, w = self.grid, self.grid.exponents[n]
        score, half = _combined(state, w), 0.5 * grid.noise[n]
        size = points.size_of(self.composition.models[0].shape)
        # |S|^2 - sum_i w_i |s_i|^2, coordinate by coordinate: the parts cancel where models agree.
        excess = points.total(
            lambda s, each: s**2 - jnp.tensordot(w, each**2, 1), score, state.scores
        )
        log_weight = (w.sum() - 1) * grid.drift[n] * size + half * excess
        if state.tilt is not None:
            _, gradient, slope = state.tilt
            # The slope is one in the noising time, which falls.
            change = slope * (grid.times[n + 1] - grid.times[n])
            along = lambda g, s, x: g * (half * s - grid.drift[n] * x)
            log_weight += change + points.total(along, gradient, score, state.x)
        if self.composition.varies:
            log_weight += (grid.exponents[n + 1] - w) @ jnp.stack(state.log_densities)
        return log_weight


@full_precision
def _combined(state: Diffused, w: Array) -> Array:
    return jax.tree.map(lambda s: jnp.tensordot(w, s, 1), state.scores)
