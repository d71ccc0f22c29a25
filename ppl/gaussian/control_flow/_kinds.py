"""What carried values and results of a scan or a branch are: certain, forms, or beyond what is affine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._forms import Beyond, Form, RowsMeet

Array = jax.Array
Kind = Any  # of a value: None (certain), the axes of its rows (a form), or Beyond


def kind_of(value: PyTree) -> Kind:
    """What a value is."""
    return value.rows if isinstance(value, Form) else value if isinstance(value, Beyond) else None


def either(a: Kind, b: Kind) -> Kind:
    """What a value is that may be of both kinds."""
    if a is None or a == b:
        return b
    if b is None:
        return a
    return a if isinstance(a, Beyond) else b if isinstance(b, Beyond) else Beyond("different rows")


def as_arrays(values: Sequence[PyTree], kinds: Sequence[Kind], columns: int) -> list[PyTree]:
    """Values as what JAX's control flow takes: a form is its constant and its coefficients, what is beyond None."""
    return [
        _pair(x, columns) if isinstance(k, tuple) else None if isinstance(k, Beyond) else x
        for x, k in zip(values, kinds, strict=True)
    ]


def as_values(arrays: Sequence[PyTree], kinds: Sequence[Kind]) -> list[PyTree]:
    """The values that `as_arrays` has taken apart."""
    return [
        Form(x[0], x[1], k) if isinstance(k, tuple) else k if isinstance(k, Beyond) else x
        for x, k in zip(arrays, kinds, strict=True)
    ]


def rows_of_step(rows: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of rows in one step of what is scanned over."""
    for number, axis in enumerate(rows):
        if axis == 0:
            raise RowsMeet.along(number)
    return tuple(axis - 1 for axis in rows)


def _pair(value: Array, columns: int) -> tuple[Array, Array]:
    """Constant and coefficients of a value."""
    if isinstance(value, Form):
        return value.const, value.wide(columns)
    value = jnp.asarray(value)
    return value, jnp.zeros((columns, *value.shape), value.dtype)
