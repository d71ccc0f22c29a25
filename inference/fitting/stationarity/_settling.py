"""When to stop: an optimiser that slows down once the value has settled, and says when it is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

Array = jax.Array

_SLOTS = 64  # means of blocks of steps, over the whole run
_NUMBERS = np.arange(_SLOTS)[:, None]
_FIRST_BLOCK = 16  # steps in a block at the beginning
_ENOUGH = 48  # blocks before the question is asked
_LEAST_DECAY = 200  # steps
MAX_STEPS = 100_000
TOLERANCE, RELATIVE_TOLERANCE, CONFIDENCE = 0.02, 0.1, 3.0
MOST_NATS = (
    0.5  # of the tolerance, where the value is a bound on all data of a guide near the posterior
)
_DRIFT, _DRIFT_CONFIDENCE = 0.15, 2.0  # of watched parameters, in their units; standard errors


class Rule(NamedTuple):
    """When a run has settled; see `settling`."""

    tolerance: float = TOLERANCE
    relative_tolerance: float = RELATIVE_TOLERANCE
    confidence: float = CONFIDENCE
    most: float = math.inf
    max_steps: int = MAX_STEPS
    by_gradients: bool = False


class SettlingState(NamedTuple):
    """The run so far in at most 64 blocks of equally many steps; when they are full, neighbours merge.

    Attributes:
        inner: state of the optimiser itself.
        step: steps so far.
        settled_at: the step at which the value had settled; 0 before.
        first: the first loss, nats; sums are of differences from it.
        last: the last loss.
        means: mean loss, and means of the watched parameters, of each full block, [64, 1 + number].
        num_blocks: full blocks.
        size: steps in a block.
        total: sums over the block that is being filled, [1 + number].
        square: running mean of squared differences between neighbouring losses, halved: the variance of one.
    """

    inner: PyTree
    step: Array
    settled_at: Array
    first: Array
    last: Array
    means: Array
    num_blocks: Array
    size: Array
    total: Array
    square: Array


def settling(
    optimizer: PyTree,
    *,
    tolerance: float = TOLERANCE,
    relative_tolerance: float = RELATIVE_TOLERANCE,
    confidence: float = CONFIDENCE,
    most: float = math.inf,
    watched: Sequence[str] = (),
    by: Literal["places", "gradients"] = "places",
    max_steps: int = MAX_STEPS,
) -> PyTree:
    """An optimiser that goes on at full pace until the value has settled, then slows down to a halt.

    The run is split into blocks of equal length. Let m_1 and m_2 be the mean gain over the last third of the blocks but one and
    over the last third, s the standard error of m_2 - m_1, from the spread of the blocks' means (so correlation between steps
    counts), and sigma the standard deviation of one estimate. The value has settled when

        m_2 - m_1 + confidence * s <= max(tolerance, min(relative_tolerance * sigma, most)):

    not when no gain is seen, but when a gain worth having is ruled out. While noise leaves that open, the run goes on, and the
    thirds grow with it. Then the updates shrink by half a cosine over half as many steps as there were; the parameters come to
    rest, and their noise with them.

    With `watched` parameters, whose unit is the width of the posterior, their means over the two thirds must not differ by more
    than 0.15 either, two standard errors included. Where each step sees a minibatch, the value's noise is that of the batch and
    says little, and steps are short. With `by="gradients"` the mean gradient of these parameters over the last third must be no
    more than 0.15, two standard errors included, and the value is not asked: in these units the curvature is near 1, so that the
    gradient is how far the optimum is.

    Args:
        optimizer: an optax transformation.
        tolerance: gain over a third of the run that is not worth having, nats.
        relative_tolerance: the same in standard deviations of one estimate, where that is more. Small gains take long to rule
            out: steps grow with the square of 1 / relative_tolerance.
        confidence: number of standard errors.
        most: the most that the relative tolerance may come to, nats.
        watched: names of parameters, in units of the posterior's width.
        by: what of them tells.
        max_steps: steps after which the run slows down in any case.

    Returns:
        An optax transformation that takes the loss as `value`. `fit(num_steps=None)` ends when it is done.

    Raises:
        ValueError: an argument is not positive.
    """
    import optax

    if not min(tolerance, relative_tolerance, confidence, most, max_steps) > 0:
        raise ValueError(
            "settling: tolerance, relative_tolerance, confidence, most and max_steps must be positive, got "
            f"{tolerance}, {relative_tolerance}, {confidence}, {most} and {max_steps}."
        )
    by_gradients = by == "gradients" and len(watched) > 0
    rule = Rule(tolerance, relative_tolerance, confidence, most, max_steps, by_gradients)
    place = lambda params: jnp.concatenate(
        [jnp.ravel(params[n]) for n in watched] or [jnp.zeros(0)]
    )
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree) -> PyTree:
        place_now = place(updates if by_gradients else params)
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        scale = _pace(state)
        loss = jnp.asarray(extra["value"], float)
        state = noticed(state._replace(inner=inner), loss, rule, place_now)
        return jax.tree.map(lambda u: scale.astype(u.dtype) * u, updates), state

    init = lambda params: start(optimizer.init(params), place(params).size)
    return optax.GradientTransformationExtraArgs(init, update)


def start(inner: PyTree, num_watched: int = 0) -> SettlingState:
    """The state before the first step."""
    number, count, width = jnp.zeros(()), jnp.int32(0), 1 + num_watched
    return SettlingState(
        inner, count, count, number, number, jnp.zeros((_SLOTS, width)), count, jnp.int32(_FIRST_BLOCK), jnp.zeros(width), number,
    )  # fmt: skip


def noticed(
    state: SettlingState, loss: Array, rule: Rule, place: Array | None = None
) -> SettlingState:
    """The state after one more loss, at this place of the watched parameters.

    `settled_at` is this step if the run has settled now.
    """
    place = jnp.zeros(0) if place is None else place
    state = _seen(state, loss, place)
    is_settled = _is_at_rest if rule.by_gradients else _is_flat
    has_settled = jax.lax.cond(
        _is_time(state), lambda: is_settled(state, rule), lambda: jnp.array(False)
    )
    has_settled |= state.step >= rule.max_steps
    has_settled &= state.settled_at == 0
    return state._replace(settled_at=jnp.where(has_settled, state.step, state.settled_at))


def is_done(state: tuple[PyTree, ...]) -> Array | None:
    """Whether something in this tree ends the run: an optimiser that has come to rest, iterates that are enough for an average.

    None if there is nothing of the kind.
    """
    is_one = lambda x: isinstance(x, SettlingState) or hasattr(x, "is_done")
    found = [x for x in jax.tree.leaves(state, is_leaf=is_one) if is_one(x)]
    if not found:
        return None
    done = [_pace(x) == 0 if isinstance(x, SettlingState) else x.is_done for x in found]
    return jnp.all(jnp.stack(done), 0)


def _pace(state: SettlingState) -> Array:
    decay = jnp.maximum(state.settled_at // 2, _LEAST_DECAY)
    part = jnp.clip((state.step - state.settled_at) / decay, 0.0, 1.0)
    slowed = jnp.where(part < 1, 0.5 * (1 + jnp.cos(jnp.pi * part)), 0.0)
    return jnp.where(state.settled_at == 0, 1.0, slowed)


def _seen(state: SettlingState, loss: Array, place: Array) -> SettlingState:
    """The state after one more loss and place."""
    first = jnp.where(state.step == 0, loss, state.first)
    step = state.step + 1
    jump = jnp.where(step == 1, 0.0, 0.5 * (loss - state.last) ** 2)
    # The mean of recent steps: those of the beginning are of another scale.
    weight = 1 / jnp.minimum(jnp.maximum(step - 1, 1), 200)
    square = state.square + weight * (jump - state.square)
    # Sizes double, so that blocks end where halves of later ones do.
    is_full = step % state.size == 0
    total = state.total + jnp.concatenate([(loss - first)[None], place])
    # A mask in place of an index: such small programs are as quick, and are compiled sooner.
    means = jnp.where(is_full & (_NUMBERS == state.num_blocks), total / state.size, state.means)
    num_blocks = state.num_blocks + is_full
    must_merge = num_blocks == _SLOTS
    halved = means.reshape(_SLOTS // 2, 2, means.shape[1]).mean(1)
    halved = jnp.concatenate([halved, jnp.zeros_like(halved)])
    return state._replace(
        step=step,
        first=first,
        last=loss,
        means=jnp.where(must_merge, halved, means),
        num_blocks=jnp.where(must_merge, _SLOTS // 2, num_blocks),
        size=jnp.where(must_merge, 2 * state.size, state.size),
        total=jnp.where(is_full, 0.0, total),
        square=square,
    )


def _is_flat(state: SettlingState, rule: Rule) -> Array:
    """Whether a fall of the loss that is worth having is ruled out, and a drift of any watched parameter either way."""
    worth = jnp.minimum(rule.relative_tolerance * jnp.sqrt(state.square), rule.most)
    worth = jnp.maximum(rule.tolerance, worth)
    mean, variance = _thirds(state)
    error = jnp.sqrt(variance.sum(0) / (state.num_blocks // 3))
    gain = mean[0] - mean[1]  # losses fall
    is_loss = np.arange(len(gain)) == 0
    size = jnp.where(is_loss, gain, jnp.abs(gain))
    confidence = np.where(is_loss, rule.confidence, _DRIFT_CONFIDENCE).astype(error.dtype)
    return jnp.all(size + confidence * error <= jnp.where(is_loss, worth, _DRIFT))


def _is_at_rest(state: SettlingState, rule: Rule) -> Array:
    """Whether the mean gradient of each watched parameter over the last third is known to be small."""
    mean, variance = _thirds(state)
    error = jnp.sqrt(variance[1, 1:] / (state.num_blocks // 3))
    return jnp.all(jnp.abs(mean[1, 1:]) + _DRIFT_CONFIDENCE * error <= _DRIFT)


def _is_time(state: SettlingState) -> Array:
    return (state.num_blocks >= _ENOUGH) & (state.step % state.size == 0)


def _thirds(state: SettlingState) -> tuple[Array, Array]:
    """Means and variances of the blocks' means over the last third but one and over the last, [2, 1 + number] each."""
    third = state.num_blocks // 3
    behind = state.num_blocks - _NUMBERS[:, 0]  # 1 is the last block
    which = jnp.stack([(third < behind) & (behind <= 2 * third), (0 < behind) & (behind <= third)])
    which = which[:, :, None]
    mean = jnp.sum(jnp.where(which, state.means, 0.0), 1) / third
    gap = jnp.where(which, state.means - mean[:, None], 0.0)
    return mean, jnp.sum(gap**2, 1) / (third - 1)
