"""When to stop: an optimiser that slows down once the value has settled, and says when it is done."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

_SLOTS = 64  # means of blocks of steps, over the whole run
_FIRST_BLOCK = 16  # steps in a block at the beginning
_ENOUGH = 48  # blocks before the question is asked
_LEAST_DECAY = 200  # steps
MAX_STEPS = 100_000
TOLERANCE, RELATIVE_TOLERANCE, CONFIDENCE = 0.02, 0.1, 3.0


class SettlingState(NamedTuple):
    """The run so far in at most 64 blocks of equally many steps; when they are full, neighbours merge.

    Attributes:
        inner: state of the optimiser itself.
        step: steps so far.
        settled_at: the step at which the value had settled; 0 before.
        first: the first loss, nats; sums are of differences from it.
        last: the last loss.
        means: mean loss of each full block.
        num_blocks: full blocks.
        size: steps in a block.
        total: sum over the block that is being filled.
        square: running mean of squared differences between neighbouring losses, halved: the variance of one.
    """

    inner: Any
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
    optimizer: Any,
    *,
    tolerance: float = TOLERANCE,
    relative_tolerance: float = RELATIVE_TOLERANCE,
    confidence: float = CONFIDENCE,
    max_steps: int = MAX_STEPS,
) -> Any:
    """An optimiser that goes on at full pace until the value has settled, then slows down to a halt.

    The run is split into blocks of equal length. Let m_1 and m_2 be the mean gain over the last third of the blocks but one and
    over the last third, s the standard error of m_2 - m_1, from the spread of the blocks' means (so correlation between steps
    counts), and sigma the standard deviation of one estimate. The value has settled when

        m_2 - m_1 + confidence * s <= max(tolerance, relative_tolerance * sigma):

    not when no gain is seen, but when a gain worth having is ruled out. While noise leaves that open, the run goes on, and the
    thirds grow with it. Then the updates shrink by half a cosine over half as many steps as there were; the parameters come to
    rest, and their noise with them.

    Args:
        optimizer: an optax transformation.
        tolerance: gain over a third of the run that is not worth having, nats.
        relative_tolerance: the same in standard deviations of one estimate, where that is more. Small gains take long to rule
            out: steps grow with the square of 1 / relative_tolerance.
        confidence: number of standard errors.
        max_steps: steps after which the run slows down in any case.

    Returns:
        An optax transformation that takes the loss as `value`. `fit(num_steps=None)` ends when it is done.

    Raises:
        ValueError: an argument is not positive.
    """
    import optax

    if not min(tolerance, relative_tolerance, confidence, max_steps) > 0:
        raise ValueError(
            "settling: tolerance, relative_tolerance, confidence and max_steps must be positive, got "
            f"{tolerance}, {relative_tolerance}, {confidence} and {max_steps}."
        )
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        scale = _pace(state)
        loss = jnp.asarray(extra["value"], float)
        state = noticed(
            state._replace(inner=inner), loss, tolerance, relative_tolerance, confidence, max_steps
        )
        return jax.tree.map(lambda u: scale.astype(u.dtype) * u, updates), state

    init = lambda params: start(optimizer.init(params))
    return optax.GradientTransformationExtraArgs(init, update)


def start(inner: Any) -> SettlingState:
    """The state before the first step."""
    number, count = jnp.zeros(()), jnp.int32(0)
    return SettlingState(
        inner, count, count, number, number, jnp.zeros(_SLOTS), count, jnp.int32(_FIRST_BLOCK), number, number
    )  # fmt: skip


def noticed(
    state: SettlingState,
    loss: Array,
    tolerance: float = TOLERANCE,
    relative_tolerance: float = RELATIVE_TOLERANCE,
    confidence: float = CONFIDENCE,
    max_steps: int = MAX_STEPS,
) -> SettlingState:
    """With one more loss; `settled_at` is this step if the value has settled now."""
    state = _seen(state, loss)
    worth = jnp.maximum(tolerance, relative_tolerance * jnp.sqrt(state.square))
    has_settled = _has_settled(state, worth, confidence) | (state.step >= max_steps)
    has_settled = has_settled & (state.settled_at == 0)
    return state._replace(settled_at=jnp.where(has_settled, state.step, state.settled_at))


def is_done(state: Any) -> Array | None:
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


def _seen(state: SettlingState, loss: Array) -> SettlingState:
    """With one more loss."""
    first = jnp.where(state.step == 0, loss, state.first)
    step = state.step + 1
    jump = jnp.where(step == 1, 0.0, 0.5 * (loss - state.last) ** 2)
    # The mean of recent steps: those of the beginning are of another scale.
    weight = 1 / jnp.minimum(jnp.maximum(step - 1, 1), 200)
    square = state.square + weight * (jump - state.square)
    is_full = (
        step % state.size == 0
    )  # sizes double, so that blocks end where halves of later ones do
    total = state.total + (loss - first)
    means = jnp.where(
        is_full, state.means.at[state.num_blocks].set(total / state.size), state.means
    )
    num_blocks = state.num_blocks + is_full
    must_merge = num_blocks == _SLOTS
    merged = jnp.concatenate([means.reshape(-1, 2).mean(1), jnp.zeros(_SLOTS // 2)])
    return state._replace(
        step=step,
        first=first,
        last=loss,
        means=jnp.where(must_merge, merged, means),
        num_blocks=jnp.where(must_merge, _SLOTS // 2, num_blocks),
        size=jnp.where(must_merge, 2 * state.size, state.size),
        total=jnp.where(is_full, 0.0, total),
        square=square,
    )


def _has_settled(state: SettlingState, worth: Array, confidence: float) -> Array:
    third = state.num_blocks // 3
    number = jnp.arange(_SLOTS)
    after = (number >= state.num_blocks - third) & (number < state.num_blocks)
    before = (number >= state.num_blocks - 2 * third) & (number < state.num_blocks - third)

    def moments(which: Array) -> tuple[Array, Array]:
        mean = jnp.sum(jnp.where(which, state.means, 0.0)) / third
        return mean, jnp.sum(jnp.where(which, (state.means - mean) ** 2, 0.0)) / (third - 1)

    (m_1, v_1), (m_2, v_2) = moments(before), moments(after)
    gain, error = m_1 - m_2, jnp.sqrt((v_1 + v_2) / third)  # losses fall
    is_time = (state.num_blocks >= _ENOUGH) & (state.step % state.size == 0)
    return is_time & (gain + confidence * error <= worth)
