"""Paths with other ancestors than the genealogy's, drawn backwards.

Input: for each loop of a run its filter (states and weights before each step, choices made in it) and the densities of the
steps ahead. A path is drawn from its end, particle by particle, as `_backward_kernels.py` says; all its choices are choices of
the run's particles.

Reference: Whiteley 2010, discussion of particle MCMC (backward sampling).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..engine import NO_PATH_GRADIENT, Filter, Segment
from ..population import underived
from ..resampling import systematic
from ._backward_kernels import Draw, DrawnBefore, StepBefore

Array = jax.Array


def draw_slots(
    key: Array, segments: list[Segment], log_weights: Array, num_samples: int, draw: Draw
) -> tuple[Array, list[DrawnBefore]]:
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
    index = systematic(key_end, underived(NO_PATH_GRADIENT, log_weights), num_samples)
    slots, reports = [index[None]], []
    for number, segment in reversed(list(enumerate(segments))):
        if segment.filter is not None:
            drawn = _backward(
                jax.random.fold_in(key_back, number), segment.filter, slots[0][0], draw
            )
            slots.insert(0, drawn.index)
            reports.insert(0, drawn)
    return jnp.concatenate(slots), reports


def _backward(key: Array, record: Filter, index: Array, draw: Draw) -> DrawnBefore:
    """The particles before each step of a loop, given those after it."""
    future = record.future()
    width = max(future.memory, 1)
    empty = lambda x: jnp.zeros((len(index), width, *x.shape[2:]), x.dtype)

    def back(carry: PyTree, inputs: PyTree) -> PyTree:
        index, window = carry
        t, states, log_weights, ancestors, made = inputs
        push = lambda x, w: jnp.concatenate([x[index][:, None], w[:, :-1]], 1)
        window = jax.tree.map(push, made, window)
        step = StepBefore(
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
