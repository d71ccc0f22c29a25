"""Arrays over all steps of a chain at once: along enumeration dimensions stand the states on which each step depends.

Terms
- A *chain* is an enumerated site in a scan whose states are needed at most `lag` steps later. The states
  z[t - lag], ..., z[t] are the *window* of step t. Its index along the enumeration dimension is a number of lag + 1
  digits in base num_states, the first digit the most significant.
- Windows are *relative* if each digit has an age: it is the state `age` steps back, the oldest first. What is the same
  at all steps, such as the transitions of a homogeneous chain, is then one array.
- Windows are *by place* if digit p is the state of the last step s <= t with s mod (lag + 1) = p. One index then fixes
  the states of all steps, a path that repeats lag + 1 states, and the program's own loop can run with them.

Arrays [dimensions, axes] are in windows by place, `Split`s [time, dimensions, other axes] in relative ones. `whole_at`
and `relative` turn one into the other.

A `Split` may also have rows of a plate in front, [rows, dimensions, other axes], with nothing in `first`
(`estimation/_sweep.py`). None of its dimensions is a chain's, and there is only one order of the digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ._same import whole

Array = jax.Array
Start = tuple[tuple[int, int], ...]  # (site, state) pairs


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the elements of an enumerated site stand along its enumeration dimension.

    Attributes:
        joint: element axes enumerated jointly (all combinations); the other axes share the dimension.
        size: of the enumeration dimension: num_states, or num_states ** (lag + 1) windows for a chain.
        num_states: num_values ** (number of joint elements).
        axis: the time axis of a chain, else None.
        lag: memory of the chain in steps.
        why_joint: why elements along `joint` are enumerated jointly, in words.
        time: name of a chain's time axis in an elimination, where chains of several scans may meet
            (`enumeration/_total.py`); None in an expectation.
    """

    joint: tuple[int, ...]
    size: int
    num_states: int
    axis: int | None = None
    lag: int = 0
    why_joint: str = ""
    time: str | None = None

    @property
    def is_chain(self) -> bool:
        """Whether times are summed by a forward recursion."""
        return self.axis is not None


class Chain(NamedTuple):
    """A chain among enumeration dimensions: the position of its dimension, its layout, the site's index."""

    axis: int
    layout: Layout
    site: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """An array [time, dimensions, other axes] in relative windows.

    Attributes:
        first: the steps 0, 1, ... that are stored apart, each with a time axis of size 1: those that depend on the
            loop's initial carry, and so differ from later ones.
        rest: the later steps, or one where all are the same.
        length: number of all steps.
        start: (site, state) of chains whose state before step 0 is known. Step 0 is then computed as all others are, so
            that it is right only in windows whose digit of age 1 is this state.
        older: age -> this array, in which step t is written in the digits of the window of step t + age; None where no
            program is being evaluated.
    """

    first: list[Array]
    rest: PyTree
    length: int = dataclasses.field(metadata={"static": True})
    start: Start = dataclasses.field(default=(), metadata={"static": True})
    older: Callable[[int], Split] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def apart(self, count: int) -> Split:
        """This array with at least the first `count` steps in `first`; `count` is less than `length`."""
        known = len(self.first)
        if count <= known:
            return self
        more = [self.steps(s, s + 1) for s in range(known, count)]
        rest = self.steps(count, self.length)
        return Split([*self.first, *more], rest, self.length, self.start)

    def steps(self, start: int, stop: int) -> PyTree:
        """The steps from `start` to before `stop`, or one where all are the same."""
        count = len(self.first)
        if start >= count:
            return self.rest if len(self.rest) == 1 else self.rest[start - count : stop - count]
        if stop == start + 1:
            return self.first[start]
        parts = [whole(x) for x in self.first[start:stop]]
        if stop > count:
            parts.append(repeated(whole(self.steps(count, stop)), stop - count))
        return jnp.concatenate(parts)

    def arrays(self) -> Split:
        """This array with parts that are stored as one number (`Same`) made arrays."""
        return Split([whole(x) for x in self.first], whole(self.rest), self.length, self.start)


def repeated(x: Array, size: int) -> Array:
    """An array [size, ...], from one of that shape or from one step [1, ...] that stands for all."""
    return x if x.shape[0] == size else jnp.broadcast_to(x, (size, *x.shape[1:]))


def by_parts(
    fn: Callable[..., Array], *arrays: PyTree, axis: int, chains: Sequence[Chain] = ()
) -> PyTree:
    """`fn(*arrays)`: a `Split`, computed part by part, if all arrays are split; else an array with time at `axis`.

    `fn` has to broadcast along time.
    """
    if not all(isinstance(x, Split) for x in arrays):
        return fn(*(whole_at(x, axis, chains) if isinstance(x, Split) else x for x in arrays))
    # All get the same number of steps apart, and the later steps of all are one call.
    count = max(len(x.first) for x in arrays)
    if count:
        arrays = tuple(begun(x, chains).apart(count) for x in arrays)
    first = [fn(*(x.first[s] for x in arrays)) for s in range(count)]
    start = {pair for x in arrays for pair in x.start}
    return Split(first, fn(*(x.rest for x in arrays)), arrays[0].length, tuple(sorted(start)))


def total_of(x: Array) -> Array:
    """The sum over all elements of an array, which may be a `Split` without `start`."""
    if not isinstance(x, Split):
        return jnp.sum(x)
    # One array that stands for all later steps counts once for each of them.
    later = x.length - len(x.first) if len(x.rest) == 1 else 1
    return sum(map(jnp.sum, x.first), later * jnp.sum(x.rest))


def whole_at(x: Split, axis: int, chains: Sequence[Chain]) -> Array:
    """A split array as one array in windows by place, with time at `axis`."""
    x = begun(x, chains)
    joined = jnp.concatenate([*x.first, repeated(x.rest, x.length - len(x.first))])
    return jnp.moveaxis(_by_residue(joined, chains, _place_order), 0, axis)


def relative(x: Array, axis: int, chains: Sequence[Chain], length: int) -> Split:
    """The `Split` of an array in windows by place, whose time `axis` has `length` steps, or one that stands for all."""
    return Split([], _by_residue(jnp.moveaxis(x, axis, 0), chains, _age_order), length)


def spread(x: PyTree, dims: Sequence[int], target: Sequence[int]) -> PyTree:
    """An array with the dimensions `dims` and, of size 1, those that only `target` has, in the order of `target`."""
    front = isinstance(x, Split)
    missing = [front + a for a, dim in enumerate(target) if dim not in dims]
    return jax.tree.map(lambda x: jnp.expand_dims(x, missing), x)


def at_dims(index: Sequence[slice | ArrayLike], x: PyTree) -> PyTree:
    """An array indexed along its enumeration dimensions."""
    front = (slice(None),) if isinstance(x, Split) else ()
    return jax.tree.map(lambda x: x[*front, *index], x)


def chains_of(
    dims: Sequence[int], layouts: Mapping[int, Layout], time: str | None = None
) -> list[Chain]:
    """The chains among enumeration dimensions whose time axis has no name (in an expectation) or the name `time`.

    Only these are in relative windows in an array that is split along `time`. A chain of another time, such as one
    inside of each step, is in windows by place, and its time is one of the other axes.
    """
    is_chain = lambda i: i in layouts and layouts[i].is_chain and layouts[i].time in (None, time)
    return [Chain(a, layouts[i], i) for a, i in enumerate(dims) if is_chain(i)]


def begun(x: Split, chains: Sequence[Chain]) -> Split:
    """A split array without `start`: one that had it gets step 0 in `first`, right in all windows.

    The value of step 0 in windows whose digit of age 1 is the known state is repeated over that digit.
    """
    if not x.start:
        return x
    known, head = dict(x.start), x.steps(0, 1)
    for chain in chains:
        if chain.site in known and head.shape[1 + chain.axis] > 1:
            # Axes of `opened`: [1, ..., age lag, ..., age 1, age 0, ...].
            opened = open_window(head, 1 + chain.axis, chain.layout)
            before = chain.axis + chain.layout.lag  # the axis of age 1
            state = known[chain.site]
            one = jax.lax.slice_in_dim(opened, state, state + 1, axis=before)
            head = jnp.broadcast_to(one, opened.shape).reshape(head.shape)
    return Split([head], x.steps(1, x.length), x.length)


def open_window(x: Array, axis: int, layout: Layout) -> Array:
    """An array with a chain's windows along `axis` as lag + 1 axes, one for each digit."""
    digits = (layout.num_states,) * (layout.lag + 1)
    return x.reshape(*x.shape[:axis], *digits, *x.shape[axis + 1 :])


def open_windows(x: Split, chains: Sequence[Chain]) -> Split:
    """A split array with each chain's windows as lag + 1 axes, one for each digit."""

    def opened(x: Array) -> Array:
        # From the last chain to the first, so that axes in front keep their positions. Size 1: the array does not
        # depend on the chain.
        for chain in reversed(chains):
            if x.shape[1 + chain.axis] > 1:
                x = open_window(x, 1 + chain.axis, chain.layout)
            else:
                x = jnp.expand_dims(x, [1 + chain.axis + i for i in range(chain.layout.lag)])
        return x

    return jax.tree.map(opened, x)


def close_windows(x: Split, chains: Sequence[Chain]) -> Split:
    """A split array with each chain's digits as one axis of windows again: the inverse of `open_windows`."""

    def closed(x: Array) -> Array:
        for chain in chains:
            a = 1 + chain.axis
            x = x.reshape(*x.shape[:a], -1, *x.shape[a + chain.layout.lag + 1 :])
        return x

    return jax.tree.map(closed, x)


def agreed(arrays: Sequence[tuple[PyTree, Sequence[Chain]]]) -> tuple[list[PyTree], dict[int, int]]:
    """The arrays, some of them split, such that each chain begins in one state in all; and site -> this state."""
    # A site with two states, each from another array: then no state is assumed, and step 0 is set apart in all arrays.
    starts = {pair for x, _ in arrays if isinstance(x, Split) for pair in x.start}
    if len(dict(starts)) == len(starts):
        return [x for x, _ in arrays], dict(starts)
    return [begun(x, chains) if isinstance(x, Split) else x for x, chains in arrays], {}


def _place_order(residue: int, lag: int) -> list[int]:
    """For each place, the axis at which relative windows have its digit, at steps s with s mod (lag + 1) = residue."""
    # The state at place p is that of the last step t <= s with t mod (lag + 1) = p, of age (s - p) mod (lag + 1), and
    # relative windows have it at axis lag - age.
    return [lag - (residue - place) % (lag + 1) for place in range(lag + 1)]


def _age_order(residue: int, lag: int) -> list[int]:
    """For each age, oldest first, the place of its digit, at steps s with s mod (lag + 1) = residue."""
    # The step s - age stands at place (s - age) mod (lag + 1); the inverse permutation of `_place_order`.
    return [(residue - age) % (lag + 1) for age in range(lag, -1, -1)]


def _by_residue(x: Array, chains: Sequence[Chain], order: Callable[[int, int], list[int]]) -> Array:
    """An array [time, ...] with the digits of windows in the order `order(t mod (lag + 1), lag)` at step t."""
    turning = [(1 + a, layout) for a, layout, _ in chains if layout.lag and x.shape[1 + a] > 1]
    if not turning:
        return x
    # x: [time, ..., windows, ...]. Take every (lag + 1)-th step, all of which have one permutation, permute the digits,
    # and put the steps back in order at the end.
    lag, length = turning[0][1].lag, len(x)
    parts = []
    for residue in range(min(lag + 1, length)):
        part = x[residue :: lag + 1]
        for a, layout in turning:
            opened = open_window(part, a, layout)
            axes = list(range(opened.ndim))
            axes[a : a + lag + 1] = [a + d for d in order(residue, lag)]
            part = jnp.transpose(opened, axes).reshape(part.shape)
        # Each part is padded to ceil(length / (lag + 1)) steps. Stacked to [steps, lag + 1, ...], the parts flatten to
        # time, with the padding behind its end.
        missing = -(-length // (lag + 1)) - len(part)
        parts.append(jnp.pad(part, [(0, missing), *[(0, 0)] * (x.ndim - 1)]))
    return jnp.stack(parts, 1).reshape(-1, *x.shape[1:])[:length]
