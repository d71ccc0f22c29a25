"""Rows completed under drawn parameters, in few shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ....ppl._checks import is_integer
from ....ppl._types import Key
from ..tables import Cells, Completion, Levels, TableParameters, completed

MOST_ROWS = 4096  # at once
LEAST_SIZE = 64  # rows are filled up to it, and to powers of two: few shapes, few compilations


def completions(
    params: TableParameters, x: np.ndarray, c: np.ndarray, keys: Key, levels: Levels, num_sweeps: int
) -> Completion:  # fmt: skip
    """Completions of rows under each draw of the parameters, [draws, rows, ...].

    Args:
        params: draws, [draws, ...].
        x: numbers in standard units, NaN where they are missing, [rows, d]; or of each draw its own, [draws, rows, d].
        c: numbers of levels, -1 where they are missing.
        keys: of the rows.
        levels: numbers of levels.
        num_sweeps: numbers and categories are drawn in turn so many times.
    """
    size = len(c)
    rows = np.resize(np.arange(size), max(LEAST_SIZE, 1 << (size - 1).bit_length()))
    keys, found = keys[rows], []
    cells = Cells.of(x[rows], c[rows]) if x.ndim == 2 else None
    for number in range(len(params.tril)):
        own = jax.tree.map(lambda a, number=number: a[number], params)
        given = Cells.of(x[number, rows], c[rows]) if cells is None else cells
        one = _complete(own, given, keys, number, levels, num_sweeps)
        found.append(jax.tree.map(lambda a: np.asarray(a)[:size], one))
    return jax.tree.map(lambda *a: np.stack(a), *found)


@functools.partial(jax.jit, static_argnames="levels")
def _complete(
    params: TableParameters,
    cells: Cells,
    keys: Key,
    number: ArrayLike,
    levels: Levels,
    num_sweeps: Array,
) -> Completion:
    """Completions from keys of their own for each row and number."""
    own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    return completed(params, cells, own, levels, num_sweeps)


def check_seed(label: str, seed: int) -> None:
    """Refuse what is no seed of draws that are the same each time; `label` is the function that was called."""
    if not is_integer(seed) or seed < 0:
        raise ValueError(
            f"{label}: random_state must be an integer, got {seed!r}. Give one from 0, another one for other draws."
        )


def in_parts(rows: np.ndarray) -> list[np.ndarray]:
    """The rows, at most `MOST_ROWS` at once."""
    return [rows[i : i + MOST_ROWS] for i in range(0, len(rows), MOST_ROWS)]


def row_keys(seed: int, numbers: list[int] | np.ndarray) -> Key:
    """A key for each row, of its number."""
    key = jax.random.key(seed)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(
        jnp.asarray(np.asarray(numbers, np.uint32))
    )
