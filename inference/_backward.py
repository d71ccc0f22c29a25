"""Paths with other ancestors than the genealogy's: ancestor sampling and backward sampling.

Input: for each loop of a run its filter (states and weights before each step, choices made in it) and the densities of the
steps ahead, `_transition.py`. A path is drawn from its end: given its choices after step t, the particle that it was before
step t is drawn from

    B_t(k) proportional to W_k F_t(s_k, x_t, x_{t+1}, ...).

Invariants: a path's choices are choices of one run's particles. Where no particle has a positive density (rounding, kernels
without density) the path keeps its own parent.

Reference: Godsill, Doucet and West 2004; Whiteley 2010, discussion of particle MCMC; Lindsten, Jordan and Schön 2014,
arXiv:1401.0604; Dau and Chopin 2023, arXiv:2207.00976.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._population import in_batches, is_key
from ._resampling import multinomial, systematic
from ._transition import Future

Array = jax.Array


class Filter(NamedTuple):
    """The record of one loop of T steps.

    Attributes:
        future: densities of the steps ahead.
        states: where particles stand before each step, [steps, particles, ...].
        log_weights: normalised weights before each step (and its resampling), nats, [steps, particles].
        ancestors: the slot before the step of the particle in each slot after it, [steps, particles].
        made: choices made in each step, [steps, particles, ...].
    """

    future: Future
    states: Any
    log_weights: Array
    ancestors: Array
    made: Any


class Segment(NamedTuple):
    """Choices made before a loop, [particles, ...], and the loop (None after the last)."""

    values: Any
    filter: Filter | None

    def sites(self) -> set[str]:
        """Names of the segment's sites (a program's)."""
        return {*self.values, *(self.filter.made if self.filter else ())}


class Step(NamedTuple):
    """What a draw of a particle before one step may look at; n paths.

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
    states: Any
    log_weights: Array
    window: Any
    parents: Array
    t: Array

    def log_densities(self, index: Array) -> Array:
        """Logs of F for particle index[i] and path i, [n]."""
        return self.future(jax.tree.map(lambda x: x[index], self.states), self.window, self.t)


class Drawn(NamedTuple):
    """Particles before a step, [n]; and how often a proposal was accepted (NaN where there are none)."""

    index: Array
    acceptance: Array


def new_ancestor(
    key: Array, future: Future, states: Any, log_weights: Array, retained: Any, t: Array,
    batch_size: int | None,
) -> Array:  # fmt: skip
    """A particle before step t as the ancestor of the retained path (choices [steps, ...]), drawn from B_t."""
    at = jnp.minimum(t + jnp.arange(max(future.memory, 1)), future.length - 1)
    window = jax.tree.map(lambda x: x[at], retained)

    def log_densities(states: Any, batch: Any, window: Any) -> Array:
        lanes = lambda x: jnp.broadcast_to(x, (batch.size, *x.shape))
        return jnp.broadcast_to(future(states, jax.tree.map(lanes, window), t), (batch.size,))

    ahead = in_batches(log_densities, len(log_weights), batch_size)(states, window)
    return _choose(jax.random.fold_in(key, 1), log_weights + ahead, jnp.zeros((), jnp.int32))


def turned(particles: Any, index: Array) -> Any:
    """Particles shifted so that number `index` becomes particle 0.

    Resampling given that slot 0 descends from particle 0 has a law without special labels (`_conditional_resampling.py`):
    after the shift it is resampling given any other ancestor.
    """
    return jax.tree.map(lambda x: x if is_key(x) else jnp.roll(x, -index, axis=0), particles)


def draw_paths(
    key: Array,
    segments: list[Segment],
    log_weights: Array,
    num_samples: int,
    draw: Callable[[Step], Drawn],
) -> tuple[list[tuple[Any, Any]], Array, list[Array]]:
    """Paths of a run.

    Args:
        key: random key.
        segments: the run's.
        log_weights: final weights, [particles].
        num_samples: number of paths n.
        draw: how a particle before a step is drawn.

    Returns:
        For each segment its values [n, ...] and its loop's choices [steps, n, ...]; the paths' slots, one row for each
        resampling place and one for the end, [places, n]; acceptance [steps] of each loop.
    """
    key_end, key_back = jax.random.split(key)
    index = systematic(key_end, log_weights, num_samples)
    parts, slots, rates = [], [index[None]], []
    for number, segment in reversed(list(enumerate(segments))):
        made = None
        if segment.filter is not None:
            index, made, visited, rate = _backward(
                jax.random.fold_in(key_back, number), segment.filter, index, draw
            )
            slots.insert(0, visited)
            rates.insert(0, rate)
        parts.insert(0, (jax.tree.map(lambda x, i=index: x[i], segment.values), made))
    return parts, jnp.concatenate(slots), rates


def joined(parts: list[tuple[Any, Any]], is_chain: bool) -> Any:
    """Paths from their parts: of a program, site -> values [n, ...] (in scans [n, time, ...]); of a chain [n, steps + 1, ...]."""
    parts = [
        (values, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), made)) for values, made in parts
    ]
    if is_chain:
        ((values, made),) = parts
        return jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b], 1), values, made)
    return {name: x for values, made in parts for name, x in {**values, **(made or {})}.items()}


def _backward(
    key: Array, record: Filter, index: Array, draw: Callable[[Step], Drawn]
) -> tuple[Array, Any, Array, Array]:
    """Slots before the loop, choices in it [steps, n, ...], slots before each step [steps, n], acceptance [steps]."""
    width = max(record.future.memory, 1)
    window = jax.tree.map(
        lambda x: jnp.zeros((len(index), width, *x.shape[2:]), x.dtype), record.made
    )

    def back(carry: Any, inputs: Any) -> Any:
        index, window = carry
        t, states, log_weights, ancestors, made = inputs
        made = jax.tree.map(lambda x: x[index], made)
        window = jax.tree.map(
            lambda x, w: jnp.concatenate([x[:, None], w[:, :-1]], 1), made, window
        )
        drawn = draw(
            Step(
                jax.random.fold_in(key, t), record.future, states, log_weights, window,
                ancestors[index], t,
            )
        )  # fmt: skip
        return (drawn.index, window), (made, drawn)

    steps = jnp.arange(record.future.length, dtype=jnp.int32)
    inputs = (steps, *record[1:])
    (index, _), (made, drawn) = jax.lax.scan(back, (index, window), inputs, reverse=True)
    return index, made, drawn.index, drawn.acceptance


# Ways to draw a particle before a step.


def genealogy(step: Step) -> Drawn:
    """The parent."""
    return Drawn(step.parents, jnp.asarray(jnp.nan))


def exact(step: Step) -> Drawn:
    """From B_t by all K densities; paths in blocks of about 2^20 densities (memory)."""

    def one(inputs: Any) -> Array:
        key, window, parent = inputs
        lanes = lambda x: jnp.broadcast_to(x, (len(step.log_weights), *x.shape))
        ahead = step.future(step.states, jax.tree.map(lanes, window), step.t)
        return _choose(key, step.log_weights + ahead, parent)

    num, size = len(step.parents), max(1, 2**20 // len(step.log_weights))
    inputs = (jax.random.split(step.key, num), step.window, step.parents)
    index = jax.vmap(one)(inputs) if num <= size else jax.lax.map(one, inputs, batch_size=size)
    return Drawn(index, jnp.asarray(jnp.nan))


def metropolis(num_moves: int) -> Callable[[Step], Drawn]:
    """Moves that keep B_t, from the parent: propose by weight, accept by the ratio of densities."""

    def draw(step: Step) -> Drawn:
        num = len(step.parents)

        def move(carry: Any, key: Array) -> Any:
            index, density = carry
            key_propose, key_accept = jax.random.split(key)
            other = multinomial(key_propose, step.log_weights, num)
            ahead = step.log_densities(other)
            # A current density of zero (rounding) gives way to anything; NaN ratios count as rejected.
            ratio = jnp.where(density == -jnp.inf, jnp.inf, ahead - density)
            accepted = jnp.log(jax.random.uniform(key_accept, (num,))) < ratio
            accepted = accepted & (ahead > -jnp.inf)
            state = jnp.where(accepted, other, index), jnp.where(accepted, ahead, density)
            return state, accepted.mean()

        start = (step.parents, jnp.broadcast_to(step.log_densities(step.parents), (num,)))
        (index, _), rates = jax.lax.scan(move, start, jax.random.split(step.key, num_moves))
        return Drawn(index, rates.mean())

    return draw


def _choose(key: Array, logits: Array, fallback: Array) -> Array:
    """An index drawn in proportion to exp(logits); `fallback` where all are zero. NaN counts as -inf."""
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    is_lost = ~(logits.max() > -jnp.inf)
    return jnp.where(is_lost, fallback, multinomial(key, logits, 1)[0])
