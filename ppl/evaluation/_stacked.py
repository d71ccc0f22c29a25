"""Alike equations of straight code as one.

Input: a function whose traced program has many small equations that are the same but for their operands, as a hundred sites
in a Python loop have. Output: a function of the same numbers, up to rounding, in which each group of them is one equation with
an axis of its members in front. XLA takes seconds for a hundred copies of a random number generator, and milliseconds for one of
a hundred keys; derivatives and batches of the function are traced of the short program.

Alike are equations of one primitive, parameters, shapes and surroundings, none of which needs another one's result. A group
runs when all its members can; where groups wait for each other, the one that stands earlier on average goes ahead with the
members that can. Chains a + b + c + ... of which nobody reads the partial sums are sums of a stack. Single values are taken out
of a stack where they are asked for.

Invariants: what has effects or derivatives of its own, loops and branches run as they stand; so do large operands, which would
be copied, and a program that is not halved.

Reference: Neubig, Goldberg and Dyer 2017, arXiv:1705.07860.
"""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import CUSTOM, Atom, ClosedJaxpr, Equation, Literal, Var, aval_of, bind, is_concrete
from ..jaxprs import Interpreter, holds_marker, inner_jaxprs, needed
from ._passes import is_on

LEAST_EQUATIONS = 200  # of a program, inner ones included: a shorter one is compiled in no time
LEAST_MEMBERS = 8  # of a group
MOST_ENTRIES = 256  # of an operand or result of one member
MOST_FUSED = 8  # single equations in a row: XLA repeats such a chain for all that reads from it
_ROUNDS = 3  # of surroundings
type Member = Equation | StackedSum
type Groups = list[list[Member]]  # in the order in which they run
type Texts = dict[int, tuple[object, ClosedJaxpr]]  # id of a body -> what is equal for equal ones
_ALONE = frozenset("scan while cond".split())
_PICKS = frozenset("slice dynamic_slice gather".split())  # out of one array, which may be large


def stacked(fn: Callable[..., list[PyTree]]) -> Callable[..., list[PyTree]]:
    """`fn`, a function of arrays to a list of arrays, with alike equations run as one.

    It is traced once for all calls with arrays of the same kinds, under whatever transformation.
    """
    traced: dict[tuple[object, ...], tuple[ClosedJaxpr, Groups | None]] = {}

    def run(*args: PyTree) -> list[PyTree]:
        if not is_on("stacks"):
            return fn(*args)
        key = jax.config.jax_enable_x64, *map(jax.typeof, args)
        found = traced.get(key)
        if found is None:
            closed = jax.make_jaxpr(fn)(*args)
            found = closed, order_of(closed)
            if is_concrete(closed.consts):
                traced[key] = found
        closed, order = found
        return (
            _Stacks(closed, args).outputs() if order is None else run_stacked(closed, args, order)
        )

    return run


def run_stacked(closed: ClosedJaxpr, inputs: Sequence[Array], order: Groups) -> list[Array]:
    """The outputs of a program whose equations run in groups."""
    run = _Stacks(closed, inputs)
    for members in order:
        run.group(members)
    return [run.read(v) for v in closed.jaxpr.outvars]


def order_of(closed: ClosedJaxpr) -> Groups | None:
    """The equations in an order in which they can be run, those side by side that can be run as one; None where few can."""
    eqns, _ = needed(closed.jaxpr.eqns, closed.jaxpr.outvars)
    if closed.jaxpr.effects or len(eqns) < LEAST_MEMBERS or _number(eqns) < LEAST_EQUATIONS:
        return None
    order = _scheduled(_with_long_sums(eqns, closed.jaxpr.outvars))
    return order if len(order) <= len(eqns) // 2 else None


def _number(eqns: Sequence[Equation]) -> int:
    inner = (jaxpr for eqn in eqns for jaxpr in inner_jaxprs(eqn))
    return len(eqns) + sum(_number(jaxpr.eqns) for jaxpr in inner)


class StackedSum(NamedTuple):
    """In place of a chain of additions of scalars."""

    invars: list[Atom]
    outvars: list[Var]
    effects: frozenset[object] = frozenset()


def _with_long_sums(eqns: Sequence[Equation], outvars: Sequence[Atom]) -> list[Member]:
    """The equations with each chain whose partial sums nobody else reads as one."""
    readers = collections.Counter(v for eqn in eqns for v in _variables(eqn.invars))
    readers.update(_variables(outvars))
    terms: dict[Var, list[Atom]] = {}  # result of an addition -> what it is the sum of
    inside: dict[Var, list[Var]] = {}  # and the additions for that
    for eqn in eqns:
        if not _is_plain_sum(eqn):
            continue
        out = eqn.outvars[0]
        partial = [v for v in _variables(eqn.invars) if v in terms and readers[v] == 1]
        inside[out] = [out, *(w for v in partial for w in inside.pop(v))]
        terms[out] = [t for v in eqn.invars for t in (terms.pop(v) if v in partial else [v])]
    long = {v: found for v, found in terms.items() if len(found) >= LEAST_MEMBERS}
    gone = {w for v in long for w in inside[v] if w is not v}
    return [
        StackedSum(long[v], [v]) if v in long else eqn
        for eqn in eqns
        if (v := eqn.outvars[0] if eqn.outvars else None) not in gone
    ]


def _variables(atoms: Sequence[Atom]) -> list[Var]:
    return [v for v in atoms if not isinstance(v, Literal)]


def _is_plain_sum(eqn: Equation) -> bool:
    return eqn.primitive.name in ("add", "add_any") and all(
        aval_of(v).shape == () and aval_of(v).dtype == aval_of(eqn.outvars[0]).dtype
        and jnp.issubdtype(aval_of(v).dtype, jnp.floating)
        for v in eqn.invars
    )  # fmt: skip


def _scheduled(eqns: Sequence[Member]) -> Groups:
    makers = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    before = [
        {makers[v] for v in eqn.invars if not isinstance(v, Literal) and v in makers}
        for eqn in eqns
    ]
    after: list[list[int]] = [[] for _ in eqns]
    depths: list[int] = []
    for i, sources in enumerate(before):
        depths.append(1 + max((depths[j] for j in sources), default=0))
        for j in sources:
            after[j].append(i)
    kinds = _kinds(eqns, makers)
    places: dict[int, list[int]] = collections.defaultdict(list)
    for kind, depth in zip(kinds, depths, strict=True):
        places[kind].append(depth)
    mean_depth = {kind: sum(found) / len(found) for kind, found in places.items()}
    left = {kind: len(found) for kind, found in places.items()}
    ready: dict[int, list[int]] = collections.defaultdict(list)
    whole: list[int] = []  # kinds of which all that is left can run
    some: list[tuple[float, int]] = []  # those of which a part can

    def enter(i: int) -> None:
        kind = kinds[i]
        ready[kind].append(i)
        if len(ready[kind]) == left[kind]:
            whole.append(kind)
        elif len(ready[kind]) == 1:
            heapq.heappush(some, (mean_depth[kind], kind))

    waits = [len(sources) for sources in before]
    for i, number in enumerate(waits):
        if not number:
            enter(i)
    order: Groups = []
    while whole or some:
        kind = whole.pop() if whole else heapq.heappop(some)[1]
        members = sorted(ready.pop(kind, []))  # none, where the kind was whole meanwhile
        left[kind] -= len(members)
        alike = [eqns[i] for i in members]
        order += [[eqn] for eqn in alike] if len(alike) < LEAST_MEMBERS else [alike]
        for j in (j for i in members for j in after[i]):
            waits[j] -= 1
            if not waits[j]:
                enter(j)
    return order


def _kinds(eqns: Sequence[Member], makers: dict[Var, int]) -> list[int]:
    """A number for each equation, equal for those that may run as one."""
    texts: Texts = {}
    own = _numbered([_signature(eqn, texts) or i for i, eqn in enumerate(eqns)])

    def source(atom: Atom) -> int:
        return -2 if isinstance(atom, Literal) else found[makers[atom]] if atom in makers else -1

    found = own
    for _ in range(_ROUNDS):
        found = _numbered([(own[i], *map(source, eqn.invars)) for i, eqn in enumerate(eqns)])
    return found


def _numbered(things: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(thing, len(numbers)) for thing in things]


def _signature(eqn: Member, texts: Texts) -> tuple[Hashable, ...] | None:
    """What alike equations have in common; None where one is to run as it stands."""
    # Runs as it stands: what is stacked already, has effects or markers, or is dearer in a stack.
    if isinstance(eqn, StackedSum) or eqn.effects or holds_marker(eqn) or _holds(eqn, _ALONE):
        return None
    name, params = eqn.primitive.name, dict(eqn.params)
    if name in CUSTOM:
        return None
    picks = name in _PICKS
    atoms = (*eqn.invars, *eqn.outvars)
    # Large arrays gain nothing: their time is in the arithmetic, not in the number of equations.
    if any(aval_of(v).size > MOST_ENTRIES for v in atoms[picks:]):
        return None
    if name == "slice":
        if len(aval_of(eqn.invars[0]).shape) != 1 or params["strides"] is not None:
            return None
        # Slices of one vector differ in their places only, which become an input of the stack.
        params = {}
    key = tuple((n, _hashable(params[n], texts)) for n in sorted(params))
    # Picks are alike where they pick from the same array.
    whole = eqn.invars[0] if picks and not isinstance(eqn.invars[0], Literal) else None
    found = name, key, whole, *((aval_of(v), isinstance(v, Literal)) for v in atoms)
    try:
        hash(found)
    except TypeError:
        return None
    return found


def _holds(eqn: Equation, names: frozenset[str]) -> bool:
    return eqn.primitive.name in names or any(
        _holds(inner, names) for jaxpr in inner_jaxprs(eqn) for inner in jaxpr.eqns
    )


def _hashable(param: object, texts: Texts) -> object:
    """A parameter in a form that is equal for equal ones."""
    if not isinstance(param, ClosedJaxpr):
        return tuple(param) if isinstance(param, list) else param
    if id(param) not in texts:
        # Rules of derivatives are not in the text.
        is_plain = not param.consts and not any(_holds(eqn, CUSTOM) for eqn in param.jaxpr.eqns)
        text = str(param.jaxpr) if is_plain else id(param)
        texts[id(param)] = text, param  # kept, so that the number stays its own
    return texts[id(param)][0]


class _StackedRow(NamedTuple):
    """One member's part of a stack."""

    stack: Array
    at: int


class _Stacks(Interpreter):
    """An evaluation whose values may be rows of stacks.

    Attributes:
        env: variable -> value, or `_StackedRow`.
    """

    def __init__(self, closed: ClosedJaxpr, inputs: Sequence[Array]) -> None:
        super().__init__(closed, inputs)
        # Stacks, behind which XLA does not look for what made a single row.
        self._apart: dict[int, tuple[Array, Array]] = {}
        # Of the longest chain of single equations that ends at a variable.
        self._length: dict[Var, int] = {}

    def read(self, atom: Atom) -> PyTree:
        found = self._short(atom)
        if isinstance(found, _StackedRow) and isinstance(atom, Var):
            if id(found.stack) not in self._apart:
                self._apart[id(found.stack)] = found.stack, _barrier(found.stack)
            _, stack = self._apart[id(found.stack)]
            found = self.env[atom] = jax.lax.index_in_dim(stack, found.at, keepdims=False)
        return found

    def _short(self, atom: Atom) -> PyTree:
        return atom.val if isinstance(atom, Literal) else self.env[atom]

    def group(self, members: list[Member]) -> None:
        """Run equations as one; a single one as it stands."""
        if len(members) == 1:
            self._single(members[0])
            return
        eqns = [eqn for eqn in members if not isinstance(eqn, StackedSum)]  # which run alone
        eqns = self._in_order(eqns, lambda eqn: eqn.invars)
        first = eqns[0]
        if first.primitive.name == "slice":
            found = [self._slices(eqns)]
        else:
            columns = [[eqn.invars[k] for eqn in eqns] for k in range(len(first.invars))]
            operands = [self._column(column) for column in columns]
            if all(axis is None for _, axis in operands):
                found = bind(first, [x for x, _ in operands])
                for eqn in eqns:
                    self.env.update(zip(eqn.outvars, found, strict=True))
                return
            axes = tuple(axis for _, axis in operands)
            found = jax.vmap(lambda *args: bind(first, list(args)), axes)(*(x for x, _ in operands))
        for at, eqn in enumerate(eqns):
            self.env.update(
                {v: _StackedRow(x, at) for v, x in zip(eqn.outvars, found, strict=True)}
            )

    def _single(self, eqn: Member) -> None:
        if isinstance(eqn, StackedSum):
            found = [self._sum(eqn.invars)]
        elif eqn.primitive.name == "stack" and eqn.params["axis"] == 0:
            found = [jnp.concatenate([self._joined(part) for part in self._parts(eqn.invars)])]
        elif eqn.primitive.name == "concatenate" and len(aval_of(eqn.outvars[0]).shape) == 1:
            rows = (self._joined(part) for part in self._parts(eqn.invars))
            found = [jnp.concatenate([x.reshape(-1) for x in rows])]
        else:
            found = bind(eqn, [self.read(v) for v in eqn.invars])
        variables = _variables(eqn.invars)
        length = 1 + max((self._length.get(v, 0) for v in variables), default=0)
        if length > MOST_FUSED:
            found, length = [_barrier(x) for x in found], 0
        self._length.update(dict.fromkeys(eqn.outvars, length))
        self.env.update(zip(eqn.outvars, found, strict=True))

    def _sum(self, terms: list[Atom]) -> ArrayLike:
        rows = self._in_order([[v] for v in terms], lambda atoms: atoms)
        parts = list(self._parts([v for [v] in rows]))
        single = [part[0] for part in parts if not isinstance(part[0], _StackedRow)]
        # One number may be the term of many.
        times = collections.Counter(map(id, single))
        found = [times[number] * x for number, x in {id(x): x for x in single}.items()]
        stacks = [part for part in parts if isinstance(part[0], _StackedRow)]
        return sum([jnp.sum(self._joined(part)) for part in stacks] + found)

    def _in_order[M](self, members: list[M], atoms_of: Callable[[M], list[Atom]]) -> list[M]:
        """Members whose operands are rows of one stack side by side."""
        numbers: dict[int, int] = {}

        def place(member: M) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
            rows = [x for x in map(self._short, atoms_of(member)) if isinstance(x, _StackedRow)]
            stacks = tuple(numbers.setdefault(id(x.stack), len(numbers)) for x in rows)
            return len(rows), stacks, tuple(x.at for x in rows)

        return sorted(members, key=place)

    def _slices(self, members: list[Equation]) -> Array:
        """Pieces of one vector, as rows."""
        whole = self.read(members[0].invars[0])
        starts = np.array([eqn.params["start_indices"][0] for eqn in members])
        size = aval_of(members[0].outvars[0]).shape[0]
        if size and (np.diff(starts) == size).all():
            return whole[starts[0] : starts[0] + size * len(starts)].reshape(len(starts), size)
        return _rows(whole, starts[:, None] + np.arange(size))

    def _column(self, atoms: list[Atom]) -> tuple[ArrayLike, int | None]:
        """An operand of all members, and its axis of members; None where it is one for all."""
        found = [self._short(a) for a in atoms]
        if all(isinstance(a, Literal) for a in atoms):
            if all(_is_equal(x, found[0]) for x in found):
                return found[0], None
            return np.stack(
                [np.asarray(x, aval_of(a).dtype) for x, a in zip(found, atoms, strict=True)]
            ), 0
        if all(_is_same(x, found[0]) for x in found):
            return self.read(atoms[0]), None
        return jnp.concatenate([self._joined(part) for part in self._parts(atoms)]), 0

    def _parts(self, atoms: Sequence[Atom]) -> Iterator[list[PyTree]]:
        """Values that follow each other, rows of one stack together."""
        stack = lambda x: id(x.stack) if isinstance(x, _StackedRow) else None
        for kind, values in itertools.groupby(map(self._short, atoms), stack):
            found = list(values)
            yield from [found] if kind else [[x] for x in found]

    def _joined(self, part: list[PyTree]) -> Array:
        """Such values with an axis of theirs in front."""
        if not isinstance(part[0], _StackedRow):
            return jnp.expand_dims(part[0], 0)
        stack, rows = part[0].stack, np.array([x.at for x in part])
        return stack if np.array_equal(rows, np.arange(len(stack))) else _rows(stack, rows)


def _is_same(x: ArrayLike | _StackedRow, y: ArrayLike | _StackedRow) -> bool:
    if isinstance(x, _StackedRow) and isinstance(y, _StackedRow):
        return x.stack is y.stack and x.at == y.at
    return x is y


def _rows(stack: Array, rows: np.ndarray) -> Array:
    if (
        rows.ndim == 1
        and len(rows)
        and len(set(steps := np.diff(rows).tolist())) < 2
        and min(steps, default=1) > 0
    ):
        return jax.lax.slice_in_dim(
            stack, int(rows[0]), int(rows[-1]) + 1, steps[0] if steps else 1
        )
    return stack.at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _barrier(x: Array) -> Array:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return x if is_key else jax.lax.optimization_barrier(x)


def _is_equal(x: ArrayLike, y: ArrayLike) -> bool:
    x, y = np.asarray(x), np.asarray(y)
    return np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.inexact))
