"""A hash of what a traced program computes.

It is equal for a program that is written down or traced anew, whatever its functions and variables are called, in which order
independent statements stand, which parts are jitted, and what else is computed and not used. It differs if an operation, a
number or an array of constants does.

Each variable is hashed by its operation and the hashes of its operands, as in a Merkle tree; calls of one inner program are
opened.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ....ppl._compat import CALLS, ClosedJaxpr, Jaxpr, Literal
from ....ppl.jaxprs import called

_ADDRESS = re.compile(r"0x[0-9a-f]+")
_PLAIN = bool | int | float | complex | str | bytes | None
_LABELS = ("name", "debug", "debug_info")  # parameters of equations that change no number


def digests(closed: ClosedJaxpr, inputs: Sequence[str]) -> list[str]:
    """A hash of each output, in which the inputs count by these names."""
    known = [_hash("input", name) for name in inputs]
    return [x.hex() for x in _outputs(closed.jaxpr, [*map(_constant, closed.consts)], known)]


def numbers(closed: ClosedJaxpr) -> list[str]:
    """The scalars that a program contains, in order."""
    found = []
    for eqn in closed.jaxpr.eqns:
        found += [str(v.val) for v in eqn.invars if isinstance(v, Literal)]
        for value in eqn.params.values():
            inner = value if isinstance(value, tuple | list) else [value]
            found += [x for p in inner if isinstance(p, ClosedJaxpr) for x in numbers(p)]
    return found + [str(x) for x in closed.consts if np.ndim(x) == 0 and not _is_key(x)]


def _outputs(jaxpr: Jaxpr, consts: Sequence[bytes], inputs: Sequence[bytes]) -> list[bytes]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    read = lambda v: _literal(v) if isinstance(v, Literal) else known[v]
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if eqn.primitive.name in CALLS:
            inner = called(eqn)
            results = _outputs(inner.jaxpr, [*map(_constant, inner.consts)], operands)
        else:
            params = {k: v for k, v in eqn.params.items() if k not in _LABELS}
            applied = _hash("equation", eqn.primitive.name, _value(params), *operands)
            results = [_hash(applied, str(i)) for i in range(len(eqn.outvars))]
        known |= zip(eqn.outvars, results, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _value(value: object) -> bytes:
    """Bytes that tell a parameter of an equation from others."""
    again = lambda items: [_value(x) for x in items]
    match value:
        case ClosedJaxpr():
            return _program(value.jaxpr, [*map(_constant, value.consts)])
        case Jaxpr():
            return _program(
                value, [_hash("constant", str(i)) for i, _ in enumerate(value.constvars)]
            )
        case jax.Array() | np.ndarray() | np.generic():
            return _constant(value)
        case Mapping():
            pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
            return _hash("dict", *(x for k, v in pairs for x in (_value(k), _value(v))))
        case set() | frozenset():
            return _hash("set", *sorted(again(value)))
        case tuple() | list():
            return _hash("list", *again(value))
        case functools.partial():
            return _hash("partial", *again([value.func, value.args, value.keywords]))
        case types.FunctionType():
            return _function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _hash("record", type(value).__name__, _value(fields))
    return _hash("other", type(value).__name__, _ADDRESS.sub("", str(value)))


def _program(jaxpr: Jaxpr, consts: Sequence[bytes]) -> bytes:
    inputs = [_hash("input", str(i), str(v.aval)) for i, v in enumerate(jaxpr.invars)]
    return _hash("program", *_outputs(jaxpr, consts, inputs))


def _function(function: types.FunctionType) -> bytes:
    """Bytes that tell a function that runs on the host from others: its code, wherever it stands, and what it closes over."""
    cells = [c.cell_contents for c in function.__closure__ or () if _is_number(c)]
    return _hash("function", _code(function.__code__), *map(_constant, cells))


def _is_number(cell: types.CellType) -> bool:
    try:
        value = cell.cell_contents
    except ValueError:  # not yet assigned
        return False
    return isinstance(value, _PLAIN | jax.Array | np.ndarray | np.generic)


def _code(code: types.CodeType) -> bytes:
    inner = [_code(x) if isinstance(x, types.CodeType) else _value(x) for x in code.co_consts]
    return _hash("code", code.co_code, *inner, *code.co_names)


def _literal(literal: PyTree) -> bytes:
    return _constant(literal.val, literal.aval.dtype)


def _constant(value: PyTree, dtype: DTypeLike | None = None) -> bytes:
    if not hasattr(value, "dtype") and dtype is None:
        return _hash("object", _ADDRESS.sub("", repr(value)))
    if _is_key(value):
        value = jax.random.key_data(value)
    array = np.asarray(value, dtype if not hasattr(value, "dtype") else None)
    return _hash("array", f"{array.dtype} {array.shape}", array.tobytes())


def _is_key(value: PyTree) -> bool:
    return hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _hash(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()
