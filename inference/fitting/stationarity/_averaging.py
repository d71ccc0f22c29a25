"""The average of stationary iterates with its Monte Carlo error: batch means, R-hat.

The iterates l_1, ..., l_n after the value had settled are cut into blocks of n / 20 in a row. With s^2 the variance of all of
them and v that of the blocks' means,

    error^2 = v / 20,    R-hat^2 = ((b - 1) / b W + v) / W,    W = s^2 - v,    b = n / 20:

the blocks stand for chains, and R-hat is near one if each block has seen what all have.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._settling import MAX_STEPS

Array = jax.Array
_BLOCKS, _LEAST_SPAN = 20, 1000
R_HAT, NOISE = (
    1.1,
    (0.5, 0.1),
)  # above which the summary says so; noise of iterates and of their average


class Iterates(NamedTuple):
    """Running moments: number, mean and squared distances of iterates, and of the means of full blocks.

    `start` is the step of the first one, `span` the number of those wanted (0 before that is known).
    """

    start: Array
    span: Array
    is_done: Array
    count: Array
    mean: PyTree
    square: PyTree
    total: PyTree
    block_mean: PyTree
    block_square: PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["start", "count", "spread", "error", "r_hat"],
    meta_fields=["noise"],
)
@dataclasses.dataclass(frozen=True)
class Averaging:
    """What `fit(average="stationary")` knows of the iterates that it averaged.

    With several seeds all arrays have a leading axis of seeds.

    Attributes:
        start: step of the first of them; -1 if the value had not settled: nothing was averaged then.
        count: their number.
        spread: parameters -> standard deviation of the iterates, unconstrained.
        error: parameters -> standard error of their average, from batch means.
        r_hat: the largest over parameters, of 20 blocks taken for chains; NaN with fewer than 40 iterates.
        noise: site -> (noise of an iterate, noise of the average), each the largest over coordinates of the standard deviation
            over that of the guide's draws. Of one run with a guide; else empty.
    """

    start: PyTree
    count: Array
    spread: PyTree
    error: PyTree
    r_hat: Array
    noise: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def is_averaged(self) -> bool:
        """Whether there is an average (of every seed)."""
        return bool(np.all(np.asarray(self.start) >= 0))

    def __str__(self) -> str:
        if not self.is_averaged:
            return "nothing: the value had not settled, these are the last iterates"
        span = lambda x: f"{np.min(x):,}" if np.ptp(x) == 0 else f"{np.min(x):,} to {np.max(x):,}"
        text = f"{span(self.count)} iterates from step {span(self.start)} on"
        if np.isnan(self.r_hat).any():
            return f"{text}: too few to tell whether they have mixed, take more steps"
        text += f", R-hat {np.max(self.r_hat):.2f}"
        return text if np.max(self.r_hat) <= R_HAT else f"{text}: above {R_HAT}, take more steps"

    def noise_text(self) -> str | None:
        """Noise of iterates and of their average, in standard deviations of the guide; what to do where it is too much."""
        if not self.noise:
            return None
        site = max(self.noise, key=lambda n: self.noise[n])
        one, mean = self.noise[site]
        text = f"'{site}' by {one:.2g} of the guide's sd, averaged {mean:.2g}"
        if one > NOISE[0]:
            return f"widths are biased, lower the rate: {text}"
        return text if mean <= NOISE[1] else f"take more steps: {text}"


def no_iterates(params: PyTree) -> Iterates:
    """Before the first one."""
    none = jnp.int32(0)
    zero = jax.tree.map(jnp.zeros_like, params)
    return Iterates(none, none, jnp.array(False), none, zero, zero, zero, zero, zero)


def with_iterate(
    iterates: Iterates, params: PyTree, step: Array, settled_at: Array, num_steps: int | None
) -> Iterates:
    """The iterates with that of this step, if the value has settled.

    Without `num_steps` as many are wanted as there were steps, at least 1,000. If they have an R-hat above 1.1, they are dropped,
    and it begins anew, with as many as there were steps by then, up to `MAX_STEPS`.
    """
    begins = (iterates.span == 0) & (settled_at > 0)
    wanted = jnp.maximum(step + 1, _LEAST_SPAN) if num_steps is None else num_steps - step
    span = jnp.where(begins, wanted, iterates.span)
    start = jnp.where(begins, step, iterates.start)
    found = _added(iterates._replace(span=span, start=start), params, span > 0)
    if num_steps is not None:
        return found

    def judged(found: Iterates) -> Iterates:
        is_good = (_r_hat(found) <= R_HAT) | (step >= MAX_STEPS)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(is_good, o, n), new, old)
        anew = no_iterates(params)._replace(start=step + 1, span=step + 1)
        return keep(anew, found._replace(is_done=jnp.array(True)))

    is_full = (span > 0) & (found.count == span) & ~found.is_done
    return jax.lax.cond(is_full, judged, lambda found: found, found)


def _added(iterates: Iterates, params: PyTree, counts: Array) -> Iterates:
    count = iterates.count + counts
    length = _length(iterates)
    is_full = counts & (count % length == 0)
    number = jnp.maximum(count // length, 1)

    def moved(
        mean: PyTree, square: PyTree, new: PyTree, number: Array, when: Array
    ) -> tuple[PyTree, PyTree]:
        step_to = lambda m, x: m + jnp.where(when, (x - m) / number, 0).astype(m.dtype)
        now = jax.tree.map(step_to, mean, new)
        grown = lambda s, m, n, x: s + jnp.where(when, (x - m) * (x - n), 0).astype(s.dtype)
        return now, jax.tree.map(grown, square, mean, now, new)

    mean, square = moved(iterates.mean, iterates.square, params, jnp.maximum(count, 1), counts)
    total = jax.tree.map(lambda t, x: t + jnp.where(counts, x, 0), iterates.total, params)
    of_block = jax.tree.map(lambda t: t / length, total)
    block = moved(iterates.block_mean, iterates.block_square, of_block, number, is_full)
    total = jax.tree.map(lambda t: jnp.where(is_full, 0, t).astype(t.dtype), total)
    return iterates._replace(
        count=count, mean=mean, square=square, total=total, block_mean=block[0], block_square=block[1]
    )  # fmt: skip


def averaged(iterates: Iterates, params: PyTree) -> PyTree:
    """The average; `params` where nothing was averaged."""
    return jax.tree.map(lambda m, p: jnp.where(iterates.count > 0, m, p), iterates.mean, params)


def summary(iterates: Iterates) -> Averaging:
    """What is known of the average, for one run."""
    number = iterates.count // _length(iterates)
    root = lambda x: jnp.sqrt(jnp.maximum(x, 0.0))
    spread = jax.tree.map(lambda s: root(_variance(s, iterates.count)), iterates.square)
    error = lambda s: root(_variance(s, number) / jnp.maximum(number, 1))
    start = jnp.where(iterates.count > 0, iterates.start, -1)
    errors = jax.tree.map(error, iterates.block_square)
    return Averaging(start, iterates.count, spread, errors, _r_hat(iterates))


def _length(iterates: Iterates) -> Array:
    return jnp.maximum(iterates.span // _BLOCKS, 1)


def _variance(square: Array, number: Array) -> Array:
    return square / jnp.maximum(number - 1, 1)


def _r_hat(iterates: Iterates) -> Array:
    """The largest over parameters; NaN where there are not enough iterates."""
    length = _length(iterates)
    number = iterates.count // length

    def ratio(square: Array, block_square: Array) -> Array:
        all_of_them, of_blocks = _variance(square, iterates.count), _variance(block_square, number)
        within = jnp.maximum(all_of_them - of_blocks, 1e-12 * all_of_them)
        found = jnp.sqrt((length - 1) / length + of_blocks / jnp.where(within > 0, within, 1.0))
        return jnp.max(jnp.where(within > 0, found, 1.0), initial=1.0)

    ratios = jax.tree.leaves(jax.tree.map(ratio, iterates.square, iterates.block_square))
    return jnp.where((number >= 2) & (length >= 2), jnp.max(jnp.stack(ratios)), jnp.nan)
