"""Ways to draw, for paths that are drawn from their end, the particle before a step.

All draw from, or keep invariant,

    B_t(k) proportional to W_k F_t(s_k, x_t, x_{t+1}, ...),

W_k and s_k the weights and states of the particles before step t, F_t the density of the path's later choices and data
(`programs/_transition.py`). Where no particle has a positive density (rounding, kernels without density) a path keeps its own
parent.

Reference: Godsill, Doucet and West 2004 (exact); Douc, Garivier, Moulines and Olsson 2011 (rejection); Bunch and Godsill 2013,
Dau and Chopin 2023, arXiv:2207.00976 (Metropolis; rejection that gives up in time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..engine import NO_PATH_GRADIENT, choose
from ..population import times, underived
from ..programs import Future
from ..resampling import multinomial

Array = jax.Array


class StepBefore(NamedTuple):
    """What a draw of the particles before one step may look at; n paths.

    Attributes:
        key: random key.
        future: densities of the steps ahead.
        states: of the particles before the step, [particles, ...].
        log_weights: of the particles, [particles].
        window: the paths' choices of this and the following steps, [n, memory, ...].
        parents: particles that the genealogy gives, [n].
        t: number of the step.
    """

    key: Array
    future: Future
    states: PyTree
    log_weights: Array
    window: Any
    parents: Array
    t: Array

    def ahead(self, index: Array) -> Array:
        """Logs of F for particle index[i] and path i, [n]."""
        states = jax.tree.map(lambda x: x[index], self.states)
        return _known(self.future(states, self.window, self.t), index.shape)


class DrawnBefore(NamedTuple):
    """Particles before a step, and what their draws say.

    Attributes:
        index: particles, [n].
        acceptance: share of proposals that were accepted; NaN without proposals.
        excess: largest log F above the bound that was given; -inf without a bound, NaN or +inf if some log F is.
    """

    index: Array
    acceptance: Array | float = jnp.nan
    excess: Array | float = -jnp.inf


Draw = Callable[[StepBefore], DrawnBefore]


def exact(step: StepBefore) -> DrawnBefore:
    """By all K densities of each path; paths in blocks of about 2^20 densities (memory)."""
    num, size = len(step.parents), max(1, 2**20 // len(step.log_weights))
    one = lambda inputs: _exact(step, *inputs)
    inputs = (jax.random.split(step.key, num), step.window, step.parents)
    index = jax.vmap(one)(inputs) if num <= size else jax.lax.map(one, inputs, batch_size=size)
    return DrawnBefore(index, excess=_no_number(index, step))


def _exact(step: StepBefore, key: Array, window: object, parent: Array) -> Array:
    """For one path."""
    repeated = lambda x: jnp.broadcast_to(x, (len(step.log_weights), *x.shape))
    ahead = step.future(step.states, jax.tree.map(repeated, window), step.t)
    return choose(key, times(step.log_weights, ahead), parent)


def metropolis(num_moves: int) -> Draw:
    """Independent Metropolis moves from the parent: propose by weight, accept by the ratio of the F."""

    def draw(step: StepBefore) -> DrawnBefore:
        def move(carry: PyTree, key: Array) -> PyTree:
            index, density = carry
            key_propose, key_accept = jax.random.split(key)
            other = _by_weight(key_propose, step)
            ahead = step.ahead(other)
            # A density of zero at the parent (rounding) gives way to any other.
            ratio = jnp.where(density == -jnp.inf, 0.0, ahead - density)
            uniform = jax.random.uniform(key_accept, index.shape)
            accepted = (jnp.log(uniform) < ratio) & (ahead > -jnp.inf)
            state = jnp.where(accepted, other, index), jnp.where(accepted, ahead, density)
            return state, (accepted.mean(), _is_odd(ahead))

        start = (step.parents, step.ahead(step.parents))
        (index, _), (rates, is_odd) = jax.lax.scan(
            move, start, jax.random.split(step.key, num_moves)
        )
        is_odd = is_odd.any() | _is_odd(start[1])
        return DrawnBefore(index, rates.mean(), jnp.where(is_odd, jnp.nan, -jnp.inf))

    return draw


def rejection(log_bound: Callable[[Array], PyTree], num_proposals: int | None) -> Draw:
    """Propose by weight, accept with probability F / exp(log_bound(t)); paths that fail `num_proposals` times are drawn exactly.

    Giving up keeps the law, since it does not depend on which particle would have been accepted.
    """

    def draw(step: StepBefore) -> DrawnBefore:
        num, bound = len(step.parents), log_bound(step.t + step.future.first)
        limit = len(step.log_weights) if num_proposals is None else num_proposals
        key_loop, key_rest = jax.random.split(step.key)

        def goes_on(carry: PyTree) -> Array:
            attempt, _, is_done, _, _ = carry
            return (attempt < limit) & ~is_done.all()

        def attempt(carry: PyTree) -> PyTree:
            number, index, is_done, tried, excess = carry
            key_propose, key_accept = jax.random.split(jax.random.fold_in(key_loop, number))
            other = _by_weight(key_propose, step)
            above = step.ahead(other) - bound
            accepted = jnp.log(jax.random.uniform(key_accept, (num,))) < above
            index = jnp.where(accepted & ~is_done, other, index)
            tried = tried + (~is_done).sum(dtype=jnp.int32)
            return number + 1, index, is_done | accepted, tried, jnp.maximum(excess, above.max())

        start = (
            0,
            step.parents,
            jnp.zeros(num, bool),
            jnp.zeros((), jnp.int32),
            jnp.asarray(-jnp.inf),
        )
        _, index, is_done, tried, excess = jax.lax.while_loop(goes_on, attempt, start)

        def rest(inputs: PyTree) -> Array:
            key, window, parent, index, is_done = inputs
            return jax.lax.cond(is_done, lambda: index, lambda: _exact(step, key, window, parent))

        inputs = (jax.random.split(key_rest, num), step.window, step.parents, index, is_done)
        index = jax.lax.cond(is_done.all(), lambda: index, lambda: jax.lax.map(rest, inputs))
        # A maximum of NaN and anything is NaN.
        excess = jnp.maximum(excess, _no_number(index, step))
        return DrawnBefore(index, is_done.sum() / jnp.maximum(tried, 1), excess)

    return draw


def _by_weight(key: Array, step: StepBefore) -> Array:
    return multinomial(key, underived(NO_PATH_GRADIENT, step.log_weights), len(step.parents))


def _no_number(index: Array, step: StepBefore) -> Array:
    """NaN where `choose` met a NaN or +inf, else -inf."""
    return jnp.where((index == len(step.log_weights)).any(), jnp.nan, -jnp.inf)


def _is_odd(log_densities: Array) -> Array:
    """Whether one is no density: a ratio to infinity, too, says nothing."""
    return ~(log_densities < jnp.inf).all()


def _known(log_densities: Array, shape: tuple[int, ...]) -> Array:
    return underived(NO_PATH_GRADIENT, jnp.broadcast_to(log_densities, shape))
