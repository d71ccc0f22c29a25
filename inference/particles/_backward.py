"""Paths with other ancestors than the genealogy's: ancestor sampling and backward sampling.

Input: for each loop of a run its filter (states and weights before each step, choices made in it) and the densities of the
steps ahead. A path is drawn from its end, particle by particle, as `_backward_kernels.py` says; all its choices are choices of
the run's particles.

Reference: Whiteley 2010, discussion of particle MCMC (backward sampling); Lindsten, Jordan and Schön 2014, arXiv:1401.0604
(ancestor sampling).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._backward_kernels import NO_GRADIENT, Draw, Drawn, Step, choose
from ._guard import underived
from ._population import in_batches, is_key, times
from ._resampling import systematic
from ._transition import Future

Array = jax.Array


class Filter(NamedTuple):
    """The record of one loop of T steps.

    Attributes:
        future: how to make the densities of the steps ahead; raises where there are none.
        states: where particles stand before each step, [steps, particles, ...].
        log_weights: normalised weights before each step (and its resampling), nats, [steps, particles].
        ancestors: the slot before the step of the particle in each slot after it, [steps, particles].
        made: choices made in each step, [steps, particles, ...].
    """

    future: Callable[[], Future]
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


def new_ancestor(
    key: Array, future: Future, states: Any, log_weights: Array, retained: Any, t: Array,
    batch_size: int | None,
) -> Array:  # fmt: skip
    """A particle before step t as the ancestor of the retained path (choices [steps, ...]), drawn from B_t.

    The number of particles where a density is NaN: no particle.
    """
    at = jnp.minimum(t + jnp.arange(max(future.memory, 1)), future.length - 1)
    window = jax.tree.map(lambda x: x[at], retained)

    def log_densities(states: Any, batch: Any, window: Any) -> Array:
        lanes = lambda x: jnp.broadcast_to(x, (batch.size, *x.shape))
        return jnp.broadcast_to(future(states, jax.tree.map(lanes, window), t), (batch.size,))

    ahead = in_batches(log_densities, len(log_weights), batch_size)(states, window)
    logits = times(log_weights, ahead)
    return choose(jax.random.fold_in(key, 1), logits, jnp.zeros((), jnp.int32))


def turned(particles: Any, index: Array) -> Any:
    """Particles shifted so that number `index` becomes particle 0.

    Resampling given that slot 0 descends from particle 0 has a law without special labels (`_conditional_resampling.py`):
    after the shift it is resampling given any other ancestor.
    """
    return jax.tree.map(lambda x: x if is_key(x) else jnp.roll(x, -index, axis=0), particles)


def draw_slots(
    key: Array, segments: list[Segment], log_weights: Array, num_samples: int, draw: Draw
) -> tuple[Array, list[Drawn]]:
    """Slots that n paths occupy before each step of the run's loops and at the end, [steps + 1, n].

    Args:
        key: random key.
        segments: the run's.
        log_weights: final weights, [particles].
        num_samples: number of paths n; their ends are drawn by systematic resampling.
        draw: how the particles before a step are drawn.

    Returns:
        The slots, and what each loop's draws say, leaves [steps].
    """
    key_end, key_back = jax.random.split(key)
    index = systematic(key_end, underived(NO_GRADIENT, log_weights), num_samples)
    slots, reports = [index[None]], []
    for number, segment in reversed(list(enumerate(segments))):
        if segment.filter is not None:
            drawn = _backward(
                jax.random.fold_in(key_back, number), segment.filter, slots[0][0], draw
            )
            slots.insert(0, drawn.index)
            reports.insert(0, drawn)
    return jnp.concatenate(slots), reports


def _backward(key: Array, record: Filter, index: Array, draw: Draw) -> Drawn:
    """The particles before each step of a loop, given those after it."""
    future = record.future()
    width = max(future.memory, 1)
    empty = lambda x: jnp.zeros((len(index), width, *x.shape[2:]), x.dtype)

    def back(carry: Any, inputs: Any) -> Any:
        index, window = carry
        t, states, log_weights, ancestors, made = inputs
        push = lambda x, w: jnp.concatenate([x[index][:, None], w[:, :-1]], 1)
        window = jax.tree.map(push, made, window)
        step = Step(
            jax.random.fold_in(key, t), future, states, log_weights, window, ancestors[index], t
        )
        drawn = draw(step)
        return (drawn.index, window), drawn

    steps = jnp.arange(future.length, dtype=jnp.int32)
    start = (index, jax.tree.map(empty, record.made))
    return jax.lax.scan(back, start, (steps, *record[1:]), reverse=True)[1]


def taken(segments: list[Segment], slots: Array, is_chain: bool) -> Any:
    """Values along slots [steps + 1, n].

    Of a program site -> [n, ...] (in scans [n, time, ...]), of a chain [n, steps + 1, ...].
    """
    parts, place = [], 0
    pick = jax.vmap(lambda x, i: x[i], out_axes=1)
    for values, record in segments:
        made = {}
        start = jax.tree.map(lambda x, i=slots[place]: x[i], values)
        if record is not None:
            rows = slots[place + 1 : place + 1 + len(record.log_weights)]
            made = jax.tree.map(lambda x, rows=rows: pick(x, rows), record.made)
            place += len(rows)
        parts.append((start, made))
    if is_chain:
        ((start, made),) = parts
        return jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b], 1), start, made)
    return {name: x for part in parts for values in part for name, x in values.items()}
