"""Loops whose steps need nothing but the last few sites, evaluated without a loop.

Input: a scan equation in which sites are forced to `Windows`: at step t to one of R values, that of place t mod R. Once sites are
forced, the carry of a Markov chain is known at every step: it is what the step before makes of its own site. The steps of
each place are then evaluated together, as one batch, and a number that depends on few of the R values is computed for these
alone, however many lanes the others have. What is the same at all steps of a place, such as the density of a homogeneous chain's
state, is computed once for them; the first step, whose carry comes from outside, stands apart then. Outputs stay `Split` by
places until an operation needs them whole.

A scan whose carry depends on itself for longer (an accumulator) is left to the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ._axis_rules import ELEMENTWISE
from ._compat import bind, scan_counts
from ._primitive import site_p
from ._same import Lane, Same, Uniform

Array = jax.Array


class Forced(NamedTuple):
    """A replacement for a site's value: everywhere, or only where `mask` is true (mask broadcasts from the left axes)."""

    value: Array
    mask: Array | None = None


class Windows(NamedTuple):
    """Replacements for the steps of a site in a scan: step t takes `values[t % len(values)]`, of the shape of one step.

    With `lanes`, each of them is one number in all of its elements.
    """

    values: tuple[Array, ...]
    lanes: tuple[Lane, ...] | None = None

    def at(self, place: int) -> Forced | Uniform:
        """The replacement at the steps of a place."""
        if self.lanes is None:
            return Forced(self.values[place])
        return Uniform(self.values[place].reshape(-1)[0], self.lanes[place])

    def stacked(self, length: int) -> Forced:
        """The same for a loop: all steps along a leading axis."""
        return Forced(jnp.stack(self.values)[jnp.arange(length) % len(self.values)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """An array with a leading time axis: `parts[r]` holds the steps r, r + R, r + 2R, ..., or one where all are the same.

    A part may be one number in all elements (`_same.py`), that of a chain's own state.

    With `first`, step 0 stands apart: `parts[0]` begins at step R.
    """

    parts: list[Any]
    length: int = dataclasses.field(metadata={"static": True})
    first: Array | None = None

    def apart(self) -> Split:
        """The same with step 0 apart."""
        if self.first is not None:
            return self
        part, *others = self.parts
        return Split([part if len(part) == 1 else part[1:], *others], self.length, part[:1])

    def joined(self) -> list[Array]:
        """The parts with step 0 among them."""
        if self.first is None:
            return self.parts
        part, *others = self.parts
        later = -(-self.length // len(self.parts)) - 1
        return [jnp.concatenate([whole(self.first), _repeated(whole(part), later)]), *others]

    def arrays(self) -> Split:
        """The same with arrays as parts."""
        return Split([whole(x) for x in self.parts], self.length, whole(self.first))

    def whole(self) -> Array:
        """The array."""
        parts = self.joined()
        longest = -(-self.length // len(parts))
        stacked = jnp.stack([_padded(whole(x), longest) for x in parts], axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])[: self.length]


def whole_at(x: Split, axis: int) -> Array:
    """A split array whose time axis lies at `axis`."""
    return jnp.moveaxis(_front(x, axis).whole(), 0, axis)


def total_of(x: Any, axis: int) -> Array:
    """The sum over all elements of an array, which may be split along the time axis `axis`."""
    if not isinstance(x, Split):
        return jnp.sum(x)
    counts = [len(range(r, x.length, len(x.parts))) for r in range(len(x.parts))]
    counts[0] -= x.first is not None
    sums = [
        jnp.sum(part) * (n if part.shape[axis] == 1 else 1)
        for part, n in zip(x.parts, counts, strict=True)
    ]
    return sum(sums, jnp.zeros(()) if x.first is None else jnp.sum(x.first))


def by_parts(fn: Callable[..., Array], *arrays: Any, axis: int) -> Any:
    """`fn(*arrays)`, which broadcasts along the time axis `axis`: part by part where all arrays are split."""
    if not all(isinstance(x, Split) for x in arrays):
        return fn(*(whole_at(x, axis) if isinstance(x, Split) else x for x in arrays))
    if any(x.first is not None for x in arrays):
        arrays = tuple(
            jax.tree.map(lambda part: jnp.moveaxis(part, 0, axis), _front(x, axis).apart())
            for x in arrays
        )
    parts = [fn(*parts) for parts in zip(*(x.parts for x in arrays), strict=True)]
    first = None if arrays[0].first is None else fn(*(x.first for x in arrays))
    return Split(parts, arrays[0].length, first)


def _front(x: Split, axis: int) -> Split:
    return jax.tree.map(lambda part: jnp.moveaxis(part, axis, 0), x)


def _padded(x: Array, size: int) -> Array:
    """Steps of one place, or one step for all, as `size` steps (one more than there are, at most)."""
    if len(x) == size - 1 > 1:
        return jnp.concatenate([x, x[-1:]])
    return _repeated(x, size)


def whole(x: Any) -> Any:
    """An operand that may be split, or one number, whole."""
    return x.whole() if isinstance(x, Split | Same) else x


def elementwise(eqn: Any, args: list[Any]) -> list[Any] | None:
    """An elementwise equation on split arrays and scalars, part by part; None if it is none."""
    if eqn.primitive.name not in ELEMENTWISE or len(eqn.outvars) > 1:
        return None
    split = [a for a in args if isinstance(a, Split)]
    counts = {(len(a.parts), a.length) for a in split}
    if len(counts) != 1 or any(not isinstance(a, Split) and jnp.ndim(a) for a in args):
        return None
    if any(a.first is not None for a in split):
        args = [a.apart() if isinstance(a, Split) else a for a in args]

    def at(part: Callable[[Split], Array]) -> Array:
        here = [whole(part(a)) if isinstance(a, Split) else a for a in args]
        size = max(len(x) for x, a in zip(here, args, strict=True) if isinstance(a, Split))
        sized = zip(here, args, strict=True)
        return bind(eqn, [_repeated(x, size) if isinstance(a, Split) else x for x, a in sized])[0]

    (places, length), one = counts.pop(), next(a for a in args if isinstance(a, Split))
    first = None if one.first is None else at(lambda a: a.first)  # type: ignore[arg-type,return-value]
    return [Split([at(lambda a, r=r: a.parts[r]) for r in range(places)], length, first)]


def _repeated(x: Array, size: int) -> Array:
    return x if x.shape[0] == size else jnp.broadcast_to(x, (size, *x.shape[1:]))


def unrolled_scan(
    eqn: Any, args: list[Any], forced: dict[int, Any], run: Callable[..., list[Any]]
) -> list[Any] | None:
    """Evaluate a scan place by place: final carries, then split outputs. None where it needs the loop.

    Args:
        eqn: the scan.
        args: its operands, some of them split.
        forced: replacements of the sites in its body.
        run: `_evaluate._walk`.
    """
    num_consts, num_carry = scan_counts(eqn.params)
    counts = {len(f.values) for f in forced.values() if isinstance(f, Windows)}
    counts |= {len(a.parts) for a in args[num_consts + num_carry :] if isinstance(a, Split)}
    if len(counts) != 1 or eqn.params["reverse"] or eqn.effects:
        return None
    places = counts.pop()
    if eqn.params["length"] < places:
        return None
    return _Loop(eqn, args, forced, run, places).outputs()


class _Carry(NamedTuple):
    """A carry: what enters the first step, and for each place what enters its (later) steps, or one if all are the same."""

    first: Array
    later: list[Any]

    @classmethod
    def constant(cls, value: Any, places: int) -> _Carry:
        """The same at all steps."""
        value = jnp.asarray(value)[None]
        return cls(value, [value] * places)


class _Loop:
    """A scan whose steps are evaluated place by place."""

    def __init__(
        self, eqn: Any, args: list[Any], forced: dict[int, Any], run: Any, places: int
    ) -> None:
        num_consts, num_carry = scan_counts(eqn.params)
        self.body, self.length, self.places = eqn.params["jaxpr"], eqn.params["length"], places
        self.num_carry, self.forced, self.run = num_carry, forced, run
        self.consts = [whole(a) for a in args[:num_consts]]
        self.init = [whole(a) for a in args[num_consts : num_consts + num_carry]]
        by_place = lambda x: (
            x.joined() if isinstance(x, Split) else [x[r::places] for r in range(places)]
        )
        self.xs = [by_place(a) for a in args[num_consts + num_carry :]]
        self.sizes = [-(-(self.length - r) // places) for r in range(places)]
        self.cut = {i for i, f in forced.items() if isinstance(f, Windows) or f.mask is None}
        self.variables = self.body.jaxpr.invars[num_consts:]
        self.known: dict[int, _Carry] = {}
        for j in range(num_carry):
            if self.body.jaxpr.outvars[j] is self.variables[j]:  # never changes
                self.known[j] = _Carry.constant(self.init[j], places)

    def outputs(self) -> list[Any] | None:
        """Final carries, then split outputs; None if a carry depends on itself for longer."""
        read, num_carry = self.body.jaxpr.outvars, self.num_carry
        needs = _needs(self.body.jaxpr, self.variables[:num_carry], self.cut)
        while len(self.known) < num_carry:
            ready = [
                j for j in range(num_carry) if j not in self.known and needs[j] <= self.known.keys()
            ]
            if not ready:
                return None
            made = self._at_all([read[j] for j in ready])
            self.known.update(
                {j: self._carried(j, m.joined()) for j, m in zip(ready, made, strict=True)}
            )
        out = self._at_all(read)
        carries = [x.joined()[(self.length - 1) % self.places][-1] for x in out[:num_carry]]
        return [*map(whole, carries), *out[num_carry:]]

    def _at_all(self, read: list[Any]) -> list[Split]:
        """`read` at all steps."""
        firsts, parts = self._at_first_place(read)
        places = [parts, *(self._at_place(r, read) for r in range(1, self.places))]
        return [Split([p[n] for p in places], self.length, firsts[n]) for n in range(len(read))]

    def _carried(self, j: int, after: list[Array]) -> _Carry:
        """The carry that enters, from the one that leaves at all steps of each place."""
        enters = [after[-1], *after[:-1]]
        sizes = [self.sizes[0] - 1, *self.sizes[1:]]
        later = [x if len(x) == 1 else x[:n] for x, n in zip(enters, sizes, strict=True)]
        return _Carry(jnp.asarray(self.init[j], later[0].dtype)[None], later)

    def _carries(self) -> list[_Carry]:
        constant = lambda j: _Carry.constant(
            self.init[j], self.places
        )  # not known: nothing needs it yet
        return [self.known.get(j) or constant(j) for j in range(self.num_carry)]

    def _at_place(self, place: int, read: list[Any]) -> list[Array]:
        """`read` at all steps of a place after the first."""
        return self._at_steps(place, slice(None), [c.later[place] for c in self._carries()], read)

    def _at_first_place(self, read: list[Any]) -> tuple[list[Array | None], list[Array]]:
        """`read` at step 0, where that stands apart, and at all (other) steps of the first place."""
        carry = self._carries()
        first, later = [c.first for c in carry], [c.later[0] for c in carry]
        changes = [c.later[0] is not c.first for c in carry]
        together: list[Array | None] = [None] * len(read)
        if self.sizes[0] == 1 or not any(changes):
            return together, self._at_steps(0, slice(None), first, read)
        if self.sizes[0] == 2 or not any(
            c and len(x) == 1 for c, x in zip(changes, later, strict=True)
        ):
            both = zip(first, later, changes, strict=True)
            joined = [jnp.concatenate([f, whole(x)]) if c else f for f, x, c in both]
            return together, self._at_steps(0, slice(None), joined, read)
        # Later steps have a carry in common, and the first one another.
        seeds = {v for v, c in zip(self.variables, changes, strict=False) if c}
        moved = _dependents(self.body.jaxpr, seeds, self.cut, set())
        is_apart = [not isinstance(v, Literal) and v in moved for v in read]
        chosen = [v for v, a in zip(read, is_apart, strict=True) if a]
        if chosen:
            heads = iter(self._at_steps(0, slice(0, 1), first, chosen))
            together = [next(heads) if a else None for a in is_apart]
        parts = _sorted(
            read,
            moved,
            lambda read: self._at_steps(0, slice(None), first, read),
            lambda read: self._at_steps(0, slice(1, None), later, read),
        )
        return together, parts

    def _at_steps(self, place: int, steps: slice, carry: list[Any], read: list[Any]) -> list[Any]:
        """`read` at some steps of a place, from the carries there; once where it is the same at all of them."""
        size = len(range(self.sizes[place])[steps])
        fixed = {i: f.at(place) for i, f in self.forced.items() if isinstance(f, Windows)}
        given = {
            i: jax.tree.map(lambda x: x[place :: self.places][steps], f)
            for i, f in self.forced.items()
            if isinstance(f, Forced)
        }
        xs = [x[place] if len(x[place]) == 1 else x[place][steps] for x in self.xs]
        inputs = [*carry, *xs]
        moves = [size > 1 and len(x) == size for x in inputs]

        def step(inputs: list[Any], given: Any, read: list[Any]) -> list[Any]:
            body = self.body
            return self.run(body.jaxpr, body.consts, [*self.consts, *inputs], fixed | given, read)

        def once(read: list[Any]) -> list[Any]:
            here = jax.tree.map(lambda x: x[0], given)
            found = step([x[0] for x in inputs], here, read)
            return [
                Same(x.value, (1, *x.shape), x.lane)
                if isinstance(x, Same)
                else jnp.asarray(whole(x))[None]
                for x in found
            ]

        def each(read: list[Any]) -> list[Array]:
            still = [None if m else x[0] for x, m in zip(inputs, moves, strict=True)]

            def one(moving: list[Any], given: Any) -> list[Array]:
                inputs = [m if s is None else s for m, s in zip(moving, still, strict=True)]
                return [jnp.asarray(whole(x)) for x in step(inputs, given, read)]

            moving = [x if m else None for x, m in zip(inputs, moves, strict=True)]
            return jax.vmap(one, axis_size=size)(moving, given)

        seeds = {v for v, m in zip(self.variables, moves, strict=True) if m}
        moving = set(given) if size > 1 else set()
        return _sorted(read, _dependents(self.body.jaxpr, seeds, self.cut, moving), once, each)


def _sorted(read: list[Any], moved: set[Any], still: Any, moving: Any) -> list[Array]:
    """The values of `read` in order: those in `moved` from one function, all others from another."""
    is_moved = [not isinstance(v, Literal) and v in moved for v in read]
    parts = []
    for wanted, fn in ((False, still), (True, moving)):
        chosen = [v for v, m in zip(read, is_moved, strict=True) if m is wanted]
        parts.append(iter(fn(chosen) if chosen else []))
    return [next(parts[m]) for m in is_moved]


def _dependents(jaxpr: Any, seeds: set[Any], cut: set[int], moving: set[int]) -> set[Any]:
    """The variables that depend on `seeds`, or on the values of sites in `moving`; those in `cut` depend on nothing else."""
    found = set(seeds)
    for eqn in jaxpr.eqns:
        is_site = eqn.primitive is site_p
        if is_site and eqn.params["index"] in moving:
            depends = True
        elif is_site and eqn.params["index"] in cut:
            depends = False
        else:
            depends = not found.isdisjoint(v for v in eqn.invars if not isinstance(v, Literal))
            depends |= bool(moving) and any(map(_is_program, eqn.params.values()))
        if depends:
            found.update(eqn.outvars)
    return found


def _is_program(parameter: Any) -> bool:
    items = parameter if isinstance(parameter, tuple | list) else (parameter,)
    return any(isinstance(x, ClosedJaxpr | Jaxpr) for x in items)


def _needs(jaxpr: Any, carries: list[Any], cut: set[int]) -> list[set[int]]:
    """For each carry that leaves the body, the carries that enter it on which it depends with sites forced."""
    needs = []
    for out in jaxpr.outvars[: len(carries)]:
        live = set() if isinstance(out, Literal) else {out}
        for eqn in reversed(jaxpr.eqns):
            is_cut = eqn.primitive is site_p and eqn.params["index"] in cut
            if is_cut or live.isdisjoint(eqn.outvars):
                continue
            live.update(v for v in eqn.invars if not isinstance(v, Literal))
        needs.append({j for j, v in enumerate(carries) if v in live})
    return needs
