"""Columns of anything as values 0, 1, ..., and back."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from jaxtyping import Int, PyTree


def cells(X: PyTree) -> np.ndarray:
    """The cells of a table or frame as Python's objects, [rows, columns]; None where they are missing.

    Raises:
        TypeError: a sparse matrix, or cells that are no numbers, texts or the like.
        ValueError: no table, or one without columns; complex numbers.
    """
    if hasattr(X, "tocsr"):
        raise TypeError("Sparse data was passed, but dense data is required. Use X.toarray().")
    table = X.to_numpy(dtype=object) if hasattr(X, "to_numpy") else np.asarray(X)
    if table.ndim != 2:
        raise ValueError(
            f"X has shape {table.shape}; it must be a table [rows, columns], one row a case. Reshape your data: "
            "X.reshape(-1, 1) is one column, X.reshape(1, -1) one row."
        )
    if table.shape[1] < 1:
        raise ValueError(
            f"Found array with 0 feature(s) (shape={table.shape}) while a minimum of 1 is required. Give columns."
        )
    if not len(table):
        raise ValueError(
            f"Found array with 0 sample(s) (shape={table.shape}) while a minimum of 1 is required. Give rows."
        )
    found = np.empty(table.shape, object)
    for i, row in enumerate(table):
        found[i] = [x.item() if isinstance(x, np.generic) else x for x in row]
    if any(isinstance(x, complex) for x in found.flat):
        raise ValueError("Complex data not supported. Give real and imaginary parts as columns.")
    if strange := {type(x).__name__ for x in found.flat if not isinstance(x, Hashable)}:
        raise TypeError(
            f"Cells of X are of type {', '.join(sorted(strange))}; each argument must be a string or a number, or another value "
            "that can be told from others. Take them apart into columns."
        )
    found[_is_missing(found)] = None
    return found


def _is_missing(table: np.ndarray) -> np.ndarray:
    # NaN alone, of floats and of dates, is not itself; pandas' own missing value has no truth.
    missing = [[x is None or type(x).__name__ == "NAType" or x != x for x in row] for row in table]
    return np.array(missing, bool).reshape(table.shape)


def levels(table: np.ndarray) -> list[np.ndarray]:
    """The different values of each column, in order."""
    found = []
    for column in table.T:
        values = list(dict.fromkeys(x for x in column if x is not None))
        try:
            values.sort()
        except TypeError:  # of several types
            values.sort(key=lambda x: (type(x).__name__, str(x)))
        own = np.empty(len(values), object)
        own[:] = values
        found.append(own)
    return found


def tokens(
    name: str, table: np.ndarray, known: list[np.ndarray], names: list[str]
) -> Int[np.ndarray, "rows columns"]:
    """0 where a cell is missing, v + 1 for the value number v.

    Raises:
        ValueError: a value that was not there before.
    """
    out = np.zeros(table.shape, np.int32)
    for j, (column, values) in enumerate(zip(table.T, known, strict=True)):
        number = {value: v + 1 for v, value in enumerate(values)} | {None: 0}
        try:
            out[:, j] = [number[x] for x in column]
        except KeyError as err:
            raise ValueError(
                f"{name}: column {names[j]} has the value {err.args[0]!r}, which no row of fit had; its values are "
                f"{list(values[:10])}{' ...' if len(values) > 10 else ''}. Leave such rows out, or make the cell missing (None)."
            ) from err
    return out
