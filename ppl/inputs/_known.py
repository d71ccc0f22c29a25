"""Numbers of a traced program that are known before it runs: those computed from its arguments and constants alone.

Input: a jaxpr in which the values of some inputs are known. Output: for each equation its operands, known or not; what is known
is computed when it is asked for, once. In the body of a scan a known number has a value for each step (`depth` leading axes); a
carry that grows by a constant is one, as the counter of `fori_loop`. The
branches of a cond know what they are given, and a loop with a traced end what stays as it is in it; what either makes is not
known, since it may not be run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._compat import (
    CALLS,
    ClosedJaxpr,
    Equation,
    Jaxpr,
    Literal,
    Tracer,
    Var,
    bind,
    scan_counts,
    while_counts,
)
from .._types import Key
from ..jaxprs import inner_jaxpr, inner_jaxprs

_ELEMENTWISE: dict[str, Callable[..., PyTree]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "max": np.maximum, "min": np.minimum,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "copy": np.asarray, "copy_p": np.asarray, "stop_gradient": np.asarray,
}  # fmt: skip


class Known:
    """A number that is known, and how it is made.

    Attributes:
        name: of the operation that makes it; "input" or "constant".
        operands: what it is made of.
        inputs: numbers of the inputs that it depends on.
        depth: scans around it that give it a value for each step, as leading axes.
    """

    def __init__(
        self,
        name: str,
        operands: Sequence[Known],
        inputs: frozenset[int],
        depth: int,
        eqn: PyTree = None,
    ) -> None:
        self.name, self.operands, self.inputs, self.depth = name, operands, inputs, depth
        self.eqn: PyTree = eqn
        self._value: Array | np.ndarray | None = None
        self._compute: Callable[[], PyTree] = self._computed

    @classmethod
    def of(cls, value: PyTree, number: int | None = None) -> Known:
        """A value that is there: of an input, or a constant."""
        made = cls(
            "constant" if number is None else "input",
            (),
            frozenset() if number is None else frozenset([number]),
            0,
        )
        made._value = value
        return made

    def value(self) -> np.ndarray:
        """Its elements, steps of scans in front."""
        if self._value is None:
            self._value = self._compute()
        return np.asarray(self._value)

    def stepwise(self) -> Known:
        """What a scan over it sees in its steps: the same numbers, the first axis being that of steps."""
        made = Known(self.name, self.operands, self.inputs, self.depth + 1, self.eqn)
        made._compute = self.value
        return made

    def _computed(self) -> Array | np.ndarray:
        name, eqn, values = self.name, self.eqn, [o.value() for o in self.operands]
        depths = {o.depth for o in self.operands} - {0}
        if name in _ELEMENTWISE and len(depths) <= 1:
            return _ELEMENTWISE[name](*values).astype(eqn.outvars[0].aval.dtype)
        # NaN and infinity become what JAX makes of them, which is not what NumPy does.
        if name == "convert_element_type" and (
            values[0].dtype.kind != "f" or np.isfinite(values[0]).all()
        ):
            return values[0].astype(eqn.params["new_dtype"])
        run = lambda *args: bind(eqn, list(args))[0]
        for level in range(self.depth, 0, -1):
            run = jax.vmap(run, [0 if o.depth >= level else None for o in self.operands])
        with jax.ensure_compile_time_eval():
            return run(*values)


def walk(
    closed: ClosedJaxpr, values: Sequence[Array | Key | np.ndarray | None]
) -> Iterator[tuple[Equation, list[Known | None]]]:
    """Each equation with what is known of its operands.

    Args:
        closed: the program.
        values: of its inputs; None where one is not known.
    """
    known = [None if x is None else Known.of(x, i) for i, x in enumerate(values)]
    found: list[tuple[Equation, list[Known | None]]] = []
    _run(closed.jaxpr, closed.consts, known, found)
    yield from found


def _run(
    jaxpr: Jaxpr,
    consts: Sequence[PyTree],
    known: Sequence[Known | None],
    found: list[tuple[Equation, PyTree]],
) -> list[Known | None]:
    env: dict[Var, Known | None] = {}
    env.update(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    env.update(zip(jaxpr.invars, known, strict=True))
    read = lambda v: Known.of(v.val) if isinstance(v, Literal) else env.get(v)
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        found.append((eqn, operands))
        env.update(zip(eqn.outvars, _results(eqn, operands, found), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(value: PyTree) -> Known | None:
    """What is closed over; unknown where it is a key, or a value of a trace outside (a parameter, under `jax.jit`)."""
    return None if _is_key(value) or isinstance(value, Tracer) else Known.of(value)


def _is_key(value: PyTree) -> bool:
    return jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.extended)


def _results(
    eqn: Equation, operands: list[Known | None], found: list[tuple[Equation, PyTree]]
) -> list[Known | None]:
    name, unknown = eqn.primitive.name, [None] * len(eqn.outvars)
    if name in CALLS:
        inner = eqn.params[CALLS[name]]
        # What is known of the operands is known of the arguments of the call's body.
        consts = inner.consts if isinstance(inner, ClosedJaxpr) else ()
        jaxpr = inner_jaxpr(inner)
        if jaxpr is None or len(jaxpr.invars) != len(operands):
            return list(unknown)
        return _run(jaxpr, consts, operands, found)
    if name == "scan":
        _scan(eqn, operands, found)
        return list(unknown)
    if name == "cond":
        # Every branch is looked at; which one is taken, and so what comes out, is not known.
        for branch in eqn.params["branches"]:
            _run(branch.jaxpr, branch.consts, operands[1:], found)
        return list(unknown)
    if name == "while":
        body, (skipped, own) = eqn.params["body_jaxpr"], while_counts(eqn.params)
        # What a loop carries is known of no turn in particular.
        fixed = operands[skipped : skipped + own]
        carried = [None] * len(eqn.outvars)
        _run(body.jaxpr, body.consts, [*fixed, *carried], found)
        return list(unknown)
    # One result of known operands: kept as an expression, computed where somebody asks for its value.
    is_plain = not eqn.effects and next(inner_jaxprs(eqn), None) is None and len(eqn.outvars) == 1
    is_plain = is_plain and not _is_key(eqn.outvars[0].aval)
    if not is_plain or any(o is None for o in operands):
        return list(unknown)
    all_known = [o for o in operands if o is not None]
    inputs = functools.reduce(frozenset.union, (o.inputs for o in all_known), frozenset())
    depth = max((o.depth for o in all_known), default=0)
    return [Known(name, all_known, inputs, depth, eqn)]


def _scan(
    eqn: Equation, operands: list[Known | None], found: list[tuple[Equation, list[Known | None]]]
) -> None:
    num_consts, num_carry = scan_counts(eqn.params)
    consts, xs = operands[:num_consts], operands[num_consts + num_carry :]
    # The steps of an inner scan lie behind those of the outer one, and so do the axes of what goes through both.
    deepest = max((o.depth for o in (*consts, *xs) if o is not None), default=0)
    steps = [None if x is None or x.depth != deepest else x.stepwise() for x in xs]
    body = eqn.params["jaxpr"]
    carry = operands[num_consts : num_consts + num_carry]
    lead = next((o.value().shape[:deepest] for o in (*consts, *xs) if o and o.depth == deepest), ())
    counters = [
        _counter(eqn, num_consts + n, out, first, deepest, lead)
        for n, (out, first) in enumerate(zip(body.jaxpr.outvars, carry, strict=False))
    ]
    _run(body.jaxpr, body.consts, [*consts, *counters, *steps], found)


def _counter(
    eqn: Equation, place: int, out: PyTree, first: Known | None, deepest: int, lead: tuple[int, ...]
) -> Known | None:
    """The values of a carry that is a known number at first and grows by a constant; None of any other."""
    body, length = eqn.params["jaxpr"].jaxpr, eqn.params["length"]
    carry = body.invars[place]
    made = next((e for e in body.eqns if out in e.outvars), None)
    is_sum = made is not None and made.primitive.name == "add" and carry in made.invars
    if not is_sum or first is None or carry.aval.shape or first.depth not in (0, deepest):
        return None
    assert made is not None  # it is a sum
    (step,) = [v for v in made.invars if v is not carry] or [carry]
    if not isinstance(step, Literal):
        return None

    def values() -> np.ndarray:
        begin = np.broadcast_to(first.value(), lead)[..., None]
        return (begin + int(step.val) * np.arange(length)).astype(carry.aval.dtype)

    counter = Known("counter", (), first.inputs, deepest + 1)
    counter._compute = values
    return counter
