"""Forms, and the noise of statements, arranged row by row: axes of rows in front, all other axes in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from ._forms import Form, PointValues, RowsMeet


def matrix_of(form: Form, columns: int) -> Array:
    """The coefficients of a form, shape (*rows, numbers, columns)."""
    wide = form.wide(columns)
    rows = tuple(a + 1 for a in form.rows)
    x = jnp.moveaxis(wide, rows, range(len(rows)))  # rows, columns, others
    lead = x.shape[: len(rows) + 1]
    return x.reshape(*lead, math.prod(x.shape[len(lead) :])).mT


class Shaped(NamedTuple):
    """What of a value does not depend on the basis: shape, type, and axes along which its rows stand."""

    shape: tuple[int, ...]
    dtype: Any
    rows: tuple[int, ...]

    @classmethod
    def of(cls, value: Form | PointValues) -> Shaped:
        """That of a form, or of a value at points."""
        if isinstance(value, PointValues):
            return cls(value.values.shape[1:], value.values.dtype, value.rows)
        return cls(value.const.shape, value.const.dtype, value.rows)

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return math.prod(n for a, n in enumerate(self.shape) if a not in self.rows)


def unit_forms(values: Sequence[Shaped]) -> list[Form]:
    """Forms of values that, one after the other, are the basis."""
    total, start, found = sum(x.size for x in values), 0, []
    for value in values:
        found.append(_unit_form(value, start, total))
        start += value.size
    return found


def _unit_form(value: Shaped, start: int, columns: int) -> Form:
    """The form of a value whose numbers are the basis from `start` on."""
    shape, dtype, rows = value
    row_sizes = [shape[a] for a in rows]
    unit = jnp.eye(columns, value.size, -start, dtype=dtype)
    unit = unit.reshape(columns, *[1] * len(rows), value.size)
    unit = jnp.broadcast_to(unit, (columns, *row_sizes, value.size))
    is_unit = len(shape) == 1 and not rows and value.size == columns
    return Form(jnp.zeros(shape, dtype), unflat(unit, rows, shape), rows, is_unit)


def spread(value: PyTree, shape: tuple[int, ...]) -> PyTree:
    """An array or form broadcast to a shape."""
    if not isinstance(value, Form):
        return jnp.broadcast_to(value, shape)
    missing = len(shape) - value.const.ndim
    rows = tuple(a + missing for a in value.rows)
    for number, (a, old) in enumerate(zip(rows, value.rows, strict=True)):
        if shape[a] != value.const.shape[old]:
            raise RowsMeet.along(number)
    coefs = value.coefs.reshape(value.coefs.shape[0], *[1] * missing, *value.const.shape)
    coefs = jnp.broadcast_to(coefs, (value.coefs.shape[0], *shape))
    return Form(jnp.broadcast_to(value.const, shape), coefs, rows)


def flat(x: Array, rows: tuple[int, ...]) -> Array:
    """From a value's shape to (*rows, numbers)."""
    x = jnp.moveaxis(x, rows, range(len(rows)))
    lead = x.shape[: len(rows)]
    return x.reshape(*lead, math.prod(x.shape[len(lead) :]))


def unflat(x: Array, rows: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """From (*lead, *rows, numbers) to (*lead, *shape)."""
    lead = x.ndim - len(rows) - 1
    others = [n for a, n in enumerate(shape) if a not in rows]
    x = x.reshape(*x.shape[:-1], *others)
    return jnp.moveaxis(x, range(lead, lead + len(rows)), [lead + a for a in rows])
