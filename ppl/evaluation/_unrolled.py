"""Loops whose steps need nothing but the last few sites, evaluated without a loop.

Input: a scan equation in which sites are forced to `Windows`: what step t computes sees a site's element at t - a as the digit of
age a, whatever t is. Once sites are forced, the carry of a Markov chain is known at every step: it is what the body makes of
the step before, one age up, and of what entered that, until nothing of a carry is left. All steps are then evaluated together,
as one batch, and what is the same at all of them, such as the density of a homogeneous chain's state, is computed once. The
first steps, which see the carry that comes from outside, stand apart, unless it is a state of the chain: then step 0 is like all
others, in some of its states. Outputs are `Split` (`_split.py`).

A number of a window stands for different elements at different ages, so it never meets one that a loop made: where something
cannot be done without a loop, `NeedsLoop` is raised, and the whole evaluation starts again with loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import Atom, Equation, Jaxpr, Literal, Var, aval_of, bind, scan_counts
from ..jaxprs import ELEMENTWISE, inner_jaxprs, needed, site_p
from ._evaluate import Evaluator, Forced
from ._same import Same, States, Uniform, whole
from ._split import Split, Start, repeated
from ._steps import at_all_steps

Array = jax.Array
type Values = Callable[[list[Atom]], list[PyTree]]  # of atoms of a body


class NeedsLoop(Exception):
    """Something cannot be evaluated at all steps at once."""


class Windows(NamedTuple):
    """Replacements for the steps of a site in a scan: `values[-1]` for a step's own, `values[-2]` for the one before, and so on.

    Each has the shape of one step. With `states`, each is one number in all of its elements.
    """

    values: tuple[Array, ...]
    states: tuple[States, ...] | None = None

    def at(self, age: int) -> Forced | Uniform:
        """The replacement `age` steps back; where that is too long ago, nothing that is read depends on it."""
        digit = max(len(self.values) - 1 - age, 0)
        if self.states is None:
            return Forced(self.values[digit])
        return Uniform(self.values[digit].reshape(-1)[0], self.states[digit])

    def in_loop(self, length: int) -> Forced:
        """These values for a loop: all steps along a leading axis, digit t mod len(values) at step t."""
        return Forced(jnp.stack(self.values)[jnp.arange(length) % len(self.values)])


def elementwise(eqn: Equation, args: list[PyTree]) -> list[Split]:
    """An equation that keeps the leading axis, on split operands, part by part.

    Raises:
        NeedsLoop: it is no such equation.
    """
    if eqn.primitive.name not in ELEMENTWISE or len(eqn.outvars) > 1:
        raise NeedsLoop
    shape = aval_of(eqn.outvars[0]).shape
    if any(not isinstance(a, Split) and jnp.shape(a) not in ((), shape) for a in args):
        raise NeedsLoop
    split = [a for a in args if isinstance(a, Split)]
    count, start = max(len(a.first) for a in split), _merged([a.start for a in split])
    if count and start:
        raise NeedsLoop

    def at(start: int, stop: int) -> Array:
        here = [_steps(a, start, stop) for a in args]
        size = max(len(x) for x in here if jnp.ndim(x))
        return bind(eqn, [repeated(x, size) if jnp.ndim(x) else x for x in here])[0]

    def older(age: int) -> Split:
        seen = [a.older(age) if isinstance(a, Split) else a for a in args]  # type: ignore[misc]
        return elementwise(eqn, seen)[0]

    # Steps apart one by one, the later ones in one call.
    first = [at(s, s + 1) for s in range(count)]
    return [Split(first, at(count, shape[0]), shape[0], start, older)]


def _merged(starts: Sequence[Start]) -> Start:
    """The states in which chains begin."""
    merged = {pair for start in starts for pair in start}
    if len(dict(merged)) < len(merged):
        raise NeedsLoop
    return tuple(sorted(merged))


def _steps(x: PyTree, start: int, stop: int) -> Array:
    """Steps of an operand; those of a scalar are itself."""
    if isinstance(x, Split):
        return whole(x.steps(start, stop))
    return x[start:stop] if jnp.ndim(x) else x


def unrolled_scan(
    eqn: Equation,
    args: list[PyTree],
    forced: dict[int, PyTree],
    evaluator: type[Evaluator],
    wanted: Sequence[bool],
) -> list[Split | None]:
    """The outputs of a scan that are wanted, split.

    Args:
        eqn: the scan.
        args: its operands, some of them split.
        forced: replacements of the sites in its body.
        evaluator: what evaluates its body.
        wanted: which outputs are needed.

    Raises:
        NeedsLoop: one of them depends on a carry that depends on itself for longer, or on the last carry.
    """
    num_carry = scan_counts(eqn.params)[1]
    if eqn.params["reverse"] or eqn.effects or any(wanted[:num_carry]):
        raise NeedsLoop
    return _UnrolledLoop(eqn, args, forced, evaluator, wanted).outputs()


class _UnrolledLoop:
    """A scan whose steps are evaluated together."""

    def __init__(
        self,
        eqn: Equation,
        args: list[PyTree],
        forced: dict[int, PyTree],
        evaluator: type[Evaluator],
        wanted: Sequence[bool],
    ) -> None:
        num_consts, num_carry = scan_counts(eqn.params)
        self.body, self.length = eqn.params["jaxpr"], eqn.params["length"]
        self.forced, self.evaluator, self.num_carry = forced, evaluator, num_carry
        if any(isinstance(a, Split) for a in args[: num_consts + num_carry]):
            raise NeedsLoop
        self.consts = args[:num_consts]
        self.init = args[num_consts : num_consts + num_carry]
        self.xs = args[num_consts + num_carry :]
        windows = [f for f in forced.values() if isinstance(f, Windows)]
        self.states = [value for f in windows for value in f.values]
        # Sites whose value is replaced in all elements: what computes it is not run, and dependence ends there.
        self.cut = {i for i, f in forced.items() if isinstance(f, Windows) or f.mask is None}
        self.read = self.body.jaxpr.outvars
        self.variables = self.body.jaxpr.invars[num_consts:]
        self.needs = _needs(self.body.jaxpr, self.variables, self.cut)
        # A carry that the body hands on unchanged is a constant of the loop.
        self.constant = {j for j in range(num_carry) if self.read[j] is self.variables[j]}
        self.changing = {j for j in range(num_carry) if j not in self.constant}
        self.depths = {n: self._depth(n) for n, is_wanted in enumerate(wanted) if is_wanted}
        self._enters = functools.cache(self._entering)
        self.start = self._known_start()

    def outputs(self, age: int = 0, wanted: Sequence[int] | None = None) -> list[Split | None]:
        """The outputs that are wanted (else None), seen `age` steps later."""
        found: list[Split | None] = [None] * len(self.read)
        wanted = list(self.depths) if wanted is None else wanted
        for depth in {self.depths[n] for n in wanted}:
            members = [n for n in wanted if self.depths[n] == depth]
            # The first `depth` steps see the initial carry and stand apart, unless that carry is a state of the chain.
            if age and depth and self.start:
                raise NeedsLoop  # the state before the first step has no older digits
            apart = 0 if self.start else depth
            first = [self._at(members, s, s + 1, age) for s in range(apart)]
            rest = self._at(members, apart, self.length, age)
            for k, n in enumerate(members):
                given = [x.start for x in self._needed_xs([n]) if isinstance(x, Split)]
                if apart and any(given):
                    raise NeedsLoop
                start = _merged([*given, self.start if depth else ()])
                older = functools.partial(self._older, n, age)
                found[n] = Split([x[k] for x in first], rest[k], self.length, start, older)
        return found

    def _older(self, output: int, age: int, more: int) -> Split:
        found = self.outputs(age + more, [output])[output]
        assert found is not None
        return found

    def _needed_xs(self, outputs: list[int]) -> list[PyTree]:
        """The inputs of the steps that outputs depend on, None in place of others."""
        needed = set[int]().union(*(self.needs[n] for n in outputs))
        return [x if self.num_carry + k in needed else None for k, x in enumerate(self.xs)]

    def _depth(self, output: int) -> int:
        """How many steps back an output of the body sees the initial carry."""
        # Carries read by the output at step t are outputs of step t - 1, which read carries of t - 1, ...: after `depth` rounds
        # none is left, since sites are forced; a carry that depends on itself never ends.
        depth, met = 0, self.needs[output] & self.changing
        while met:
            depth += 1
            if depth > self.num_carry or depth >= self.length:
                raise NeedsLoop
            met = set[int]().union(*(self.needs[j] for j in met)) & self.changing
        return depth

    def _known_start(self) -> Start:
        """(site, state) in which chains begin, where all that enters the first step are states of theirs."""
        if max(self.depths.values(), default=0) != 1:
            return ()
        seen = set[int]().union(*(self.needs[n] for n in self.depths)) & self.changing
        found = {self._state_of(j) for j in seen}
        if None in found or len({pair[0] for pair in found if pair}) < len(found):
            return ()
        return tuple(sorted(found))  # type: ignore[type-var]

    def _state_of(self, carry: int) -> tuple[int, int] | None:
        """(site, state) that a carry shows at the first step, if it is that of the step before at all others."""
        before, init = self._at([carry], 0, self.length, 1)[0], self.init[carry]
        if isinstance(init, Same):
            init = init.value
        if not isinstance(before, Same) or before.states is None or isinstance(init, jax.Array):
            return None
        site, age = before.states.name
        states = np.flatnonzero(before.states.numbers == init)
        return (site, int(states[0])) if age == 1 and len(states) == 1 else None

    def _entering(self, carry: int, start: int, stop: int, age: int) -> PyTree:
        """A carry that enters the steps from `start` to before `stop`, or one where all are the same."""
        if carry in self.constant or start == 0 and not self.start:
            dtype = self.variables[carry].aval.dtype
            return jnp.asarray(whole(self.init[carry]), dtype)[None]
        # The carry into step t is the body's output at t - 1, in which each digit is one step older.
        if start == 0:
            return self._at([carry], 0, 1, age + 1)[0]
        return self._at([carry], start - 1, stop - 1, age + 1)[0]

    def _at(self, outputs: list[int], start: int, stop: int, age: int) -> list[PyTree]:
        """Outputs of the body at the steps from `start` to before `stop`; once where they are the same at all of them."""
        size = stop - start
        read = [self.read[n] for n in outputs]
        needed = set[int]().union(*(self.needs[n] for n in outputs))
        fixed = {
            i: f.at(age) if isinstance(f, Windows) else f
            for i, f in self.forced.items()
            if not isinstance(f, Forced)
        }
        given = {
            i: jax.tree.map(lambda x: x[start:stop], f)
            for i, f in self.forced.items()
            if isinstance(f, Forced)
        }
        inputs = [
            self._enters(j, start, stop, age) if j in needed else None
            for j in range(self.num_carry)
        ]
        for x in self._needed_xs(outputs):
            if isinstance(x, Split):
                seen = x.older(age) if age else x  # type: ignore[misc]
                inputs.append(seen.steps(start, stop))
            else:
                inputs.append(None if x is None else x[start:stop])
        # inputs: [steps, ...], or [1, ...] where they are the same at all steps.
        moves = [x is not None and size > 1 and len(x) == size for x in inputs]

        def once(read: list[Atom]) -> list[PyTree]:
            here = jax.tree.map(lambda x: x[0], given)
            now = [None if x is None else x[0] for x in inputs]
            found = self.evaluator(self.body, [*self.consts, *now], fixed | here).outputs(read)
            return [
                Same(x.value, (1, *x.shape), x.states)
                if isinstance(x, Same)
                else jnp.asarray(x)[None]
                for x in found
            ]

        def each(read: list[Atom]) -> list[Array]:
            still = [None if m or x is None else x[0] for x, m in zip(inputs, moves, strict=True)]
            moving = [x if m else None for x, m in zip(inputs, moves, strict=True)]

            def one(moving: PyTree, still: PyTree) -> list[Array]:
                moving, given = moving
                consts, still, fixed = still
                inputs = [s if m is None else m for m, s in zip(moving, still, strict=True)]
                found = self.evaluator(self.body, [*consts, *inputs], {**fixed, **given}).outputs(
                    read
                )
                return [jnp.asarray(whole(x)) for x in found]

            held = self.consts, still, fixed
            return at_all_steps(one, size, (moving, given), held, self.states)

        # What depends on an input that moves is evaluated at each step, all else once.
        seeds = {v for v, m in zip(self.variables, moves, strict=True) if m}
        moving = set(given) if size > 1 else set()
        return _sorted(read, _dependents(self.body.jaxpr, seeds, self.cut, moving), once, each)


def _sorted(read: list[Atom], moved: set[Var], still: Values, moving: Values) -> list[PyTree]:
    """The values of `read` in order: those in `moved` from one function, all others from another."""
    is_moved = [not isinstance(v, Literal) and v in moved for v in read]
    parts = []
    for wanted, fn in ((False, still), (True, moving)):
        chosen = [v for v, m in zip(read, is_moved, strict=True) if m is wanted]
        parts.append(iter(fn(chosen) if chosen else []))
    return [next(parts[m]) for m in is_moved]


def _dependents(jaxpr: Jaxpr, seeds: set[Var], cut: set[int], moving: set[int]) -> set[Var]:
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
            depends |= bool(moving) and any(True for _ in inner_jaxprs(eqn))
        if depends:
            found.update(eqn.outvars)
    return found


def _needs(jaxpr: Jaxpr, inputs: list[Var], cut: set[int]) -> list[set[int]]:
    """For each output of the body, the inputs on which it depends with sites forced."""

    def read(eqn: Equation) -> list[Atom]:
        is_cut = eqn.primitive is site_p and eqn.params["index"] in cut
        return [] if is_cut else eqn.invars

    live = [needed(jaxpr.eqns, [out], read)[1] for out in jaxpr.outvars]
    return [{j for j, v in enumerate(inputs) if v in seen} for seen in live]
