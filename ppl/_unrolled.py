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
from ._same import Same

Array = jax.Array


class Forced(NamedTuple):
    """A replacement for a site's value: everywhere, or only where `mask` is true (mask broadcasts from the left axes)."""

    value: Array
    mask: Array | None = None


class Windows(NamedTuple):
    """Replacements for the steps of a site in a scan: step t takes `values[t % len(values)]`, of the shape of one step."""

    values: tuple[Array, ...]

    def stacked(self, length: int) -> Forced:
        """The same for a loop: all steps along a leading axis."""
        return Forced(jnp.stack(self.values)[jnp.arange(length) % len(self.values)])


@dataclasses.dataclass(frozen=True)
class Split:
    """An array with a leading time axis: `parts[r]` holds the steps r, r + R, r + 2R, ..., or one where all are the same."""

    parts: list[Array]
    length: int

    def part(self, r: int) -> Array:
        """All steps of a place, padded to the number of the first one's."""
        longest, part = -(-self.length // len(self.parts)), self.parts[r]
        if part.shape[0] == longest - 1 > 1:
            return jnp.concatenate([part, part[-1:]])
        return _repeated(part, longest)

    def whole(self) -> Array:
        """The array."""
        stacked = jnp.stack([self.part(r) for r in range(len(self.parts))], axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])[: self.length]


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
    places, length = counts.pop()
    parts = []
    for r in range(places):
        size = max(a.parts[r].shape[0] for a in split)
        part = lambda a, r=r, n=size: _repeated(a.parts[r], n) if isinstance(a, Split) else a
        parts.append(bind(eqn, [part(a) for a in args])[0])
    return [Split(parts, length)]


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
        run: `_evaluate._run`.
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
    later: list[Array]

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
            x.parts if isinstance(x, Split) else [x[r::places] for r in range(places)]
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
            made = [self._at_place(r, [read[j] for j in ready]) for r in range(self.places)]
            self.known.update(
                {j: self._carried(j, [m[n] for m in made]) for n, j in enumerate(ready)}
            )
        out = [self._at_place(r, read) for r in range(self.places)]
        last = out[(self.length - 1) % self.places]
        ys = zip(*(o[num_carry:] for o in out), strict=True)
        return [*(x[-1] for x in last[:num_carry]), *(Split(list(y), self.length) for y in ys)]

    def _carried(self, j: int, after: list[Array]) -> _Carry:
        """The carry that enters, from the one that leaves at all steps of each place."""
        enters = [after[-1], *after[:-1]]
        sizes = [self.sizes[0] - 1, *self.sizes[1:]]
        later = [x if len(x) == 1 else x[:n] for x, n in zip(enters, sizes, strict=True)]
        return _Carry(jnp.asarray(self.init[j], later[0].dtype)[None], later)

    def _at_place(self, place: int, read: list[Any]) -> list[Array]:
        """`read` at all steps of a place."""
        constant = lambda j: _Carry.constant(
            self.init[j], self.places
        )  # not known: nothing needs it yet
        carry = [self.known.get(j) or constant(j) for j in range(self.num_carry)]
        first, later = [c.first for c in carry], [c.later[place] for c in carry]
        changes = [c.later[0] is not c.first for c in carry]
        if place > 0:
            return self._at_steps(place, slice(None), later, read)
        if self.sizes[0] == 1 or not any(changes):
            return self._at_steps(0, slice(None), first, read)
        if self.sizes[0] == 2 or not any(
            c and len(x) == 1 for c, x in zip(changes, later, strict=True)
        ):
            both = zip(first, later, changes, strict=True)
            joined = [jnp.concatenate([f, x]) if c else f for f, x, c in both]
            return self._at_steps(0, slice(None), joined, read)
        # Later steps have a carry in common, and the first one another.
        seeds = {v for v, c in zip(self.variables, changes, strict=False) if c}
        moved = _dependents(self.body.jaxpr, seeds, self.cut, set())
        return _sorted(
            read,
            moved,
            lambda read: self._at_steps(0, slice(None), first, read),
            lambda read: [
                jnp.concatenate([a, _repeated(b, self.sizes[0] - 1)])
                for a, b in zip(
                    self._at_steps(0, slice(0, 1), first, read),
                    self._at_steps(0, slice(1, None), later, read),
                    strict=True,
                )
            ],
        )

    def _at_steps(
        self, place: int, steps: slice, carry: list[Array], read: list[Any]
    ) -> list[Array]:
        """`read` at some steps of a place, from the carries there; once where it is the same at all of them."""
        size = len(range(self.sizes[place])[steps])
        fixed = {
            i: Forced(f.values[place]) for i, f in self.forced.items() if isinstance(f, Windows)
        }
        given = {
            i: jax.tree.map(lambda x: x[place :: self.places][steps], f)
            for i, f in self.forced.items()
            if isinstance(f, Forced)
        }
        xs = [x[place] if len(x[place]) == 1 else x[place][steps] for x in self.xs]
        inputs = [*carry, *xs]
        moves = [size > 1 and len(x) == size for x in inputs]

        def step(inputs: list[Any], given: Any, read: list[Any]) -> list[Array]:
            body = self.body
            return self.run(body.jaxpr, body.consts, [*self.consts, *inputs], fixed | given, read)

        def once(read: list[Any]) -> list[Array]:
            start, here = jax.tree.map(lambda x: x[0], (inputs, given))
            return [jnp.asarray(x)[None] for x in step(start, here, read)]

        def each(read: list[Any]) -> list[Array]:
            axes = [0 if m else None for m in moves]
            values = [x if m else x[0] for x, m in zip(inputs, moves, strict=True)]
            one = lambda values, given: step(values, given, read)
            return jax.vmap(one, (axes, 0), axis_size=size)(values, given)

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
