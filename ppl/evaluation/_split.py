"""The steps of a chain, all at once: arrays whose enumeration dimensions show the states that each step sees.

Terms
- Step t of a chain of memory `lag` sees the states at t - lag, ..., t, a *window*. Its number has lag + 1 digits, one for each.
- Windows are *relative* if a digit stands for an age: the state `age` steps back, the oldest first. What holds at all steps
  alike, such as the transitions of a homogeneous chain, is then one array.
- Windows are *by place* if digit p stands for the steps s with s mod (lag + 1) = p. A window then is one path, and a loop can run
  along it.

Arrays [dimensions, axes] are in windows by place, `Split`s [time, dimensions, other axes] in relative ones. `whole_at` and
`relative` turn one into the other.

Rows of a plate may stand in front of the dimensions in the same way (`estimation/_sweep.py`): `Split`s [rows, dimensions, other
axes] without first steps. No dimension is a chain's then, and both orders are one.
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
        why_joint: why times that meet are enumerated jointly, where they are.
        time: name of the time axis, where chains of several times may meet (`enumeration/_total.py`).
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
    """A chain among enumeration dimensions: its axis, its layout, the site's index."""

    axis: int
    layout: Layout
    site: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """An array with a time axis, in front, and relative windows. Its first steps, whose past is not the chain's, stand apart.

    Attributes:
        first: the steps 0, 1, ..., each with a time axis of size 1.
        rest: the later steps, or one where all are the same.
        length: number of all steps.
        start: (site, state) of chains that begin in a known state. Step 0 is then like all others, and counts in windows
            only whose digit of age 1 shows this state.
        older: age -> the same, seen that many steps later. While a program is evaluated only.
    """

    first: list[Array]
    rest: PyTree
    length: int = dataclasses.field(metadata={"static": True})
    start: Start = dataclasses.field(default=(), metadata={"static": True})
    older: Callable[[int], Split] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def apart(self, count: int) -> Split:
        """This array with the first `count` steps apart (fewer than all)."""
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
        """This array with deferred parts evaluated, so that it holds nothing but arrays."""
        return Split([whole(x) for x in self.first], whole(self.rest), self.length, self.start)


def repeated(x: Array, size: int) -> Array:
    """One step for all as `size` steps."""
    return x if x.shape[0] == size else jnp.broadcast_to(x, (size, *x.shape[1:]))


def by_parts(
    fn: Callable[..., Array], *arrays: PyTree, axis: int, chains: Sequence[Chain] = ()
) -> PyTree:
    """`fn(*arrays)`, which broadcasts along time, axis `axis` where it is not split: part by part where all arrays are."""
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
    """The sum over all elements of an array, which may be split."""
    if not isinstance(x, Split):
        return jnp.sum(x)
    # One array that stands for all later steps counts once for each of them.
    later = x.length - len(x.first) if len(x.rest) == 1 else 1
    return sum(map(jnp.sum, x.first), later * jnp.sum(x.rest))


def whole_at(x: Split, axis: int, chains: Sequence[Chain]) -> Array:
    """A split array as an array, with time at `axis`, in windows by place."""
    x = begun(x, chains)
    joined = jnp.concatenate([*x.first, repeated(x.rest, x.length - len(x.first))])
    return jnp.moveaxis(_by_residue(joined, chains, _place_order), 0, axis)


def relative(x: Array, axis: int, chains: Sequence[Chain], length: int) -> Split:
    """An array in windows by place, of `length` steps along `axis` or one for all, as a split one."""
    return Split([], _by_residue(jnp.moveaxis(x, axis, 0), chains, _age_order), length)


def spread(x: PyTree, dims: Sequence[int], target: Sequence[int]) -> PyTree:
    """Add the dimensions of `target` that an array with `dims` does not have, of size 1."""
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
    """The chains among enumeration dimensions; where they have times of their own, those of `time`.

    Only they are in relative windows in an array that is split along this time: a chain of another time, such as one inside of
    each step, is by place, along an axis that stands behind.
    """
    is_chain = lambda i: i in layouts and layouts[i].is_chain and layouts[i].time in (None, time)
    return [Chain(a, layouts[i], i) for a, i in enumerate(dims) if is_chain(i)]


def begun(x: Split, chains: Sequence[Chain]) -> Split:
    """A split array whose step 0 stands apart, and counts alike in all windows.

    Where a chain begins in a known state, step 0 counts only in windows whose digit of age 1 shows this state. Apart, its value
    there is repeated over that digit.
    """
    if not x.start:
        return x
    known, head = dict(x.start), x.steps(0, 1)
    for chain in chains:
        if chain.site in known and head.shape[1 + chain.axis] > 1:
            # [1, ..., age lag, ..., age 1, age 0, ...]: take the known state along age 1, and repeat it over all states.
            opened = open_window(head, 1 + chain.axis, chain.layout)
            before = chain.axis + chain.layout.lag  # the axis of age 1
            state = known[chain.site]
            one = jax.lax.slice_in_dim(opened, state, state + 1, axis=before)
            head = jnp.broadcast_to(one, opened.shape).reshape(head.shape)
    return Split([head], x.steps(1, x.length), x.length)


def open_window(x: Array, axis: int, layout: Layout) -> Array:
    """The windows of a chain opened into their digits."""
    digits = (layout.num_states,) * (layout.lag + 1)
    return x.reshape(*x.shape[:axis], *digits, *x.shape[axis + 1 :])


def open_windows(x: Split, chains: Sequence[Chain]) -> Split:
    """A split array with the windows of chains opened into digits."""

    def opened(x: Array) -> Array:
        # From the last axis on, so that the axes in front keep their positions. Size 1: the array does not see the chain.
        for chain in reversed(chains):
            if x.shape[1 + chain.axis] > 1:
                x = open_window(x, 1 + chain.axis, chain.layout)
            else:
                x = jnp.expand_dims(x, [1 + chain.axis + i for i in range(chain.layout.lag)])
        return x

    return jax.tree.map(opened, x)


def close_windows(x: Split, chains: Sequence[Chain]) -> Split:
    """The inverse of `open_windows`."""

    def closed(x: Array) -> Array:
        for chain in chains:
            a = 1 + chain.axis
            x = x.reshape(*x.shape[:a], -1, *x.shape[a + chain.layout.lag + 1 :])
        return x

    return jax.tree.map(closed, x)


def agreed(arrays: Sequence[tuple[PyTree, Sequence[Chain]]]) -> tuple[list[PyTree], dict[int, int]]:
    """Arrays, some of them split, such that all agree on the states in which chains begin; and these states."""
    # Two pairs with one site: its chain begins in different states in different arrays, and step 0 is set apart in all.
    starts = {pair for x, _ in arrays if isinstance(x, Split) for pair in x.start}
    if len(dict(starts)) == len(starts):
        return [x for x, _ in arrays], dict(starts)
    return [begun(x, chains) if isinstance(x, Split) else x for x, chains in arrays], {}


def _place_order(residue: int, lag: int) -> list[int]:
    """For each place the axis of its age, oldest first, at steps s with s mod (lag + 1) = residue."""
    # Place p holds the latest step t <= s with t mod (lag + 1) = p: its age is (s - p) mod (lag + 1), its axis lag - age.
    return [lag - (residue - place) % (lag + 1) for place in range(lag + 1)]


def _age_order(residue: int, lag: int) -> list[int]:
    """For each age, oldest first, its place, at steps s with s mod (lag + 1) = residue."""
    # The step s - age stands at place (s - age) mod (lag + 1); the inverse permutation of `_place_order`.
    return [(residue - age) % (lag + 1) for age in range(lag, -1, -1)]


def _by_residue(x: Array, chains: Sequence[Chain], order: Callable[[int, int], list[int]]) -> Array:
    """Reorder the digits of windows at the steps of each residue mod (lag + 1); time is in front."""
    turning = [(1 + a, layout) for a, layout, _ in chains if layout.lag and x.shape[1 + a] > 1]
    if not turning:
        return x
    # x: [time, ..., windows, ...]. The permutation of digits depends on time mod (lag + 1) only: take every (lag + 1)-th step,
    # permute its digits, and put the steps back in order at the end.
    lag, length = turning[0][1].lag, len(x)
    parts = []
    for residue in range(min(lag + 1, length)):
        part = x[residue :: lag + 1]
        for a, layout in turning:
            opened = open_window(part, a, layout)
            axes = list(range(opened.ndim))
            axes[a : a + lag + 1] = [a + d for d in order(residue, lag)]
            part = jnp.transpose(opened, axes).reshape(part.shape)
        # Padded to ceil(length / (lag + 1)) steps each, the parts are stacked behind time: [steps, lag + 1, ...] flattens to
        # time, and what was padded is behind its end.
        missing = -(-length // (lag + 1)) - len(part)
        parts.append(jnp.pad(part, [(0, missing), *[(0, 0)] * (x.ndim - 1)]))
    return jnp.stack(parts, 1).reshape(-1, *x.shape[1:])[:length]
