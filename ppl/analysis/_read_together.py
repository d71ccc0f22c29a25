"""Which numbers of a source a suspected operation reads together: the search for jumps moves these alone, too.

Where a whole network moves, its output changes so much from one point of a path to the next that a jump in what it reads is lost
among the changes. What is upstream reads fewer numbers than what follows: on a path along the numbers that one operation reads
all else stays where it is, and the jumps that this operation makes are all that happens.

Input: a traced program. Output: for each source sets of its numbers, as masks. A set that is larger than need be costs power
only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._compat import CALLS, Equation, Jaxpr, Literal, Var
from ..jaxprs import (
    CUTS,
    DOMAINS,
    ELEMENTWISE,
    OPAQUE,
    PARAMS,
    SOLVED,
    STEPS,
    ZEROS,
    called,
    inner_jaxprs,
    is_continuous_call,
    is_real,
    shape_of,
    site_p,
)
from ..strategies import StrategySite
from ._analysed import Analysed
from ._upstream import axis_order

MOST_SETS = 10  # those of steps before those of poles, the smallest first
MOST_PARTS = 8
JUMPING = STEPS | CUTS | OPAQUE | {"sort", "top_k", "eigh", "svd"}


class TogetherRead(NamedTuple):
    """What an array depends on, as numbers of `_ReadWalk.parts`: in each element on all, or on the part's number at its place."""

    everywhere: frozenset[int] = frozenset()
    by_element: frozenset[int] = frozenset()

    @property
    def all(self) -> frozenset[int]:
        """What any of its elements depends on."""
        return self.everywhere | self.by_element


def read_together(program: Analysed, sources: Sequence[int | str]) -> list[np.ndarray]:
    """For each source masks over its numbers, [sets, numbers], of which the first one is whole.

    The numbers of the parameters are those of all their arrays, one after the other; those of a site are in the order of its
    value.
    """
    walk = _ReadWalk(program)
    whole = lambda source: np.ones(walk.sizes[source], bool)
    return [np.stack([whole(source), *walk.masks(source)]) for source in sources]


class _ReadWalk:
    """One walk through a program, with what each suspected operation reads.

    Attributes:
        sizes: how many numbers each source has.
        parts: arrays of numbers of a source: which source, which of its numbers.
    """

    def __init__(self, program: Analysed) -> None:
        self._program = program
        self.parts: list[tuple[int | str, np.ndarray]] = []
        self.sizes: dict[int | str, int] = {
            i: math.prod(_shape_of_value(site)) for i, site in program.sites.items()
        }
        self._steps: dict[
            frozenset[int], bool
        ] = {}  # whether an operation that reads these is a step
        jaxpr, size = program.closed.jaxpr, 0
        reads = []
        for leaf in jaxpr.invars:
            is_parameter = PARAMS in program.facts[leaf].relations
            reads.append(
                self._part(PARAMS, size + _places(leaf)) if is_parameter else TogetherRead()
            )
            size += is_parameter * math.prod(shape_of(leaf))
        self.sizes[PARAMS] = size
        self._run(jaxpr, reads, is_top=True)

    def masks(self, source: int | str) -> list[np.ndarray]:
        """Sets of numbers of a source, but for those of all."""
        found: dict[bytes, tuple[bool, int, np.ndarray]] = {}
        for read, is_step in self._steps.items():
            mask = np.zeros(self.sizes[source], bool)
            for n in read:
                if self.parts[n][0] == source:
                    mask[self.parts[n][1]] = True
            # All numbers, and none, are sets that are tried anyway.
            if mask.any() and not mask.all():
                name = np.packbits(mask).tobytes()
                is_step |= name in found and not found[name][0]
                found[name] = (not is_step, int(mask.sum()), mask)
        # Sets that an operation jumps at come first, then small ones: few moves at once show the most.
        return [mask for *_, mask in sorted(found.values(), key=lambda f: f[:2])[:MOST_SETS]]

    def _part(self, source: int | str, places: np.ndarray) -> TogetherRead:
        self.parts.append((source, places))
        return TogetherRead(by_element=frozenset([len(self.parts) - 1]))

    def _run(self, jaxpr: Jaxpr, reads: list[TogetherRead], *, is_top: bool) -> list[TogetherRead]:
        env: dict[Var, TogetherRead] = dict(zip(jaxpr.invars, reads, strict=True))
        read = lambda atom: (
            TogetherRead() if isinstance(atom, Literal) else env.get(atom, TogetherRead())
        )
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._results(eqn, operands, is_top), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _results(
        self, eqn: Equation, operands: list[TogetherRead], is_top: bool
    ) -> list[TogetherRead]:
        name = eqn.primitive.name
        if eqn.primitive is site_p:
            return [self._site(eqn, operands[0], is_top)]
        if name in CALLS and not is_continuous_call(eqn):
            return self._run(called(eqn).jaxpr, operands, is_top=is_top)
        self._suspect(name, eqn, operands)
        everywhere = frozenset[int]().union(*(r.all for r in operands))
        if name in CALLS:
            return [TogetherRead(everywhere)] * len(eqn.outvars)
        for inner in inner_jaxprs(eqn):
            self._run(inner, [TogetherRead(everywhere)] * len(inner.invars), is_top=False)
        if name in VIEWS and operands[0].by_element:
            return self._viewed(eqn, operands[0])
        if name in ELEMENTWISE:
            return [self._elementwise(eqn, operands)]
        return [TogetherRead(everywhere)] * len(eqn.outvars)

    def _suspect(self, name: str, eqn: Equation, operands: list[TogetherRead]) -> None:
        """Note what an operation reads, if it may jump."""
        is_step = name in JUMPING or not all(map(is_real, eqn.outvars))
        if not any(map(is_real, eqn.invars)):
            return
        # Only one operand's zeros matter, e.g. the divisor's.
        if name in ZEROS and not is_step:
            operands = [operands[ZEROS[name]]]
        if is_step or name in DOMAINS or name in ZEROS or name in SOLVED:
            read = frozenset[int]().union(*(r.all for r in operands))
            self._steps[read] = self._steps.get(read, False) or is_step

    def _site(self, eqn: Equation, draw: TogetherRead, is_top: bool) -> TogetherRead:
        index = eqn.params["index"]
        site = self._program.sites[index]
        own = TogetherRead()
        if is_top:
            places = np.arange(self.sizes[index]).reshape(_shape_of_value(site))
            order = np.argsort(axis_order(site)).tolist()
            # The marker has its axes in another order than the site's value.
            own = self._part(index, places.transpose([*order, *range(len(order), places.ndim)]))
        if not site.strategy.is_pathwise:
            return own
        return TogetherRead(draw.everywhere, draw.by_element | own.by_element)

    def _viewed(self, eqn: Equation, read: TogetherRead) -> list[TogetherRead]:
        """The parts of an array that an operation takes apart or moves."""
        results = [set[int]() for _ in eqn.outvars]
        for n in read.by_element:
            source, places = self.parts[n]
            for found, part in zip(results, VIEWS[eqn.primitive.name](eqn, places), strict=True):
                found |= self._part(source, part).by_element
        return [TogetherRead(read.everywhere, frozenset(found)) for found in results]

    def _elementwise(self, eqn: Equation, operands: list[TogetherRead]) -> TogetherRead:
        shape = shape_of(eqn.outvars[0])
        everywhere, by_element = set[int](), set[int]()
        for atom, read in zip(eqn.invars, operands, strict=True):
            everywhere |= read.everywhere
            # An operand that is broadcast is read by many elements at once.
            (by_element if shape_of(atom) == shape else everywhere).update(read.by_element)
        if len(by_element) > MOST_PARTS:
            return TogetherRead(frozenset(everywhere | by_element))
        return TogetherRead(frozenset(everywhere), frozenset(by_element))


def _shape_of_value(site: StrategySite) -> tuple[int, ...]:
    return (*site.sizes, *site.event_shape)


def _places(atom: object) -> np.ndarray:
    return np.arange(math.prod(shape_of(atom))).reshape(shape_of(atom))


def _slice(eqn: Equation, x: np.ndarray) -> list[np.ndarray]:
    p = eqn.params
    strides = p["strides"] or (1,) * x.ndim
    return [x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]]


def _broadcast(eqn: Equation, x: np.ndarray) -> list[np.ndarray]:
    kept = eqn.params["broadcast_dimensions"]
    shape = shape_of(eqn.outvars[0])
    sizes = [x.shape[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape))]
    return [np.broadcast_to(x.reshape(sizes), shape)]


def _split(eqn: Equation, x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"])


def _unstack(eqn: Equation, x: np.ndarray) -> list[np.ndarray]:
    return list(np.moveaxis(x, eqn.params["axis"], 0))


def _reshape(eqn: Equation, x: np.ndarray) -> list[np.ndarray]:
    return [x.reshape(shape_of(eqn.outvars[0]))]


# What each makes of the numbers of its operand's elements.
VIEWS = {
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": lambda eqn, x: [x.transpose(eqn.params["permutation"])],
}
