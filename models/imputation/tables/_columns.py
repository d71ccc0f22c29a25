"""Which columns of a table hold numbers and which categories; tables made into arrays, and back with their holes filled."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import ArrayLike, PyTree

MOST_LEVELS = 50
ROWS_PER_LEVEL = 3
LEAST_ROWS = (
    3  # residual degrees of freedom of a column, and rows in which two columns are seen together
)


def is_frame(X: ArrayLike) -> bool:
    """Whether X is a frame of pandas."""
    return all(hasattr(X, name) for name in ("iloc", "dtypes", "columns"))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table, as `fit` found them.

    Attributes:
        names: of all columns; their numbers, of arrays.
        levels: of columns of categories, None of the others.
        numbers: places of the columns of numbers, those with more holes later.
        constants: value of each column that was the same in all rows and without a hole; these are left out.
        mean: of `numbers`.
        scale: their standard deviations.
    """

    names: tuple[Hashable, ...]
    levels: tuple[tuple[Any, ...] | None, ...]
    numbers: tuple[int, ...]
    constants: dict[int, Any]
    mean: np.ndarray
    scale: np.ndarray

    @property
    def categories(self) -> tuple[int, ...]:
        """Places of the columns of categories."""
        return tuple(
            j for j, levels in enumerate(self.levels) if levels and j not in self.constants
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of levels of `categories`."""
        return tuple(len(self.levels[j] or ()) for j in self.categories)

    @property
    def features(self) -> list[str]:
        """What the summaries of a chain belong to: dummies by column, then numbers."""
        dummies = [
            str(self.names[j])
            for j in self.categories
            for _ in range(len(self.levels[j] or ()) - 1)
        ]
        return [*dummies, *(str(self.names[j]) for j in self.numbers)]

    @classmethod
    def of(cls, X: ArrayLike, categories: Sequence[Hashable] | None) -> Self:
        """Read off a table.

        Args:
            X: a frame, or an array of numbers.
            categories: names (of arrays, places) of columns of numbers that are categories; None: those with two values.

        Raises:
            ValueError: all that is wrong with the columns.
        """
        names = _names(X)
        unknown = [c for c in categories or () if c not in names]
        problems = [f"categories names {unknown!r}, which are none of its columns"] * bool(unknown)
        levels: list[tuple[Any, ...] | None] = []
        constants: dict[int, Any] = {}
        numeric: dict[int, np.ndarray] = {}
        for j, name in enumerate(names):
            told = None if categories is None else name in categories
            try:
                found, values = _read(_column(X, j), told)
            except ValueError as err:
                problems.append(f"column {name!r} {err}")
                levels.append(None)
                continue
            levels.append(found)
            is_missing = values < 0 if found else np.isnan(values)
            problem = _problem(found, values[~is_missing], bool(is_missing.any()))
            if problem:
                problems.append(f"column {name!r} {problem}")
            elif len(np.unique(values[~is_missing])) == 1:
                constants[j] = found[int(values[0])] if found else float(values[0])
            elif not found:
                numeric[j] = values
        if problems:
            raise ValueError(
                f"TableImputer: {'; '.join(problems)}. Mend these columns, or leave them out."
            )
        numbers = tuple(sorted(numeric, key=lambda j: int(np.isnan(numeric[j]).sum())))
        mean = np.array([np.nanmean(numeric[j]) for j in numbers])
        scale = np.array([np.nanstd(numeric[j]) for j in numbers])
        return cls(tuple(names), tuple(levels), numbers, constants, mean, scale)

    def arrays(self, X: PyTree) -> tuple[np.ndarray, np.ndarray]:
        """Numbers in standard units with NaN, [rows, d], and levels with -1, [rows, k], where cells are missing.

        Raises:
            ValueError: a level that `fit` has not seen, a hole in a constant column, or what `of` refuses of cells.
        """
        problems: list[str] = []
        values: dict[int, np.ndarray] = {}
        for j, name in enumerate(self.names):
            try:
                values[j] = _values(_column(X, j), self.levels[j])
            except ValueError as err:
                problems.append(f"column {name!r} {err}")
                continue
            is_missing = values[j] < 0 if self.levels[j] else np.isnan(values[j])
            if j in self.constants and is_missing.any():
                problems.append(
                    f"column {name!r} has {is_missing.sum()} holes, but was {self.constants[j]!r} in all rows of fit, "
                    "which leaves nothing to learn of it"
                )
        if problems:
            raise ValueError(
                f"TableImputer: {'; '.join(problems)}. Mend these columns, or fit on rows like these."
            )
        rows = len(X)
        x = [values[j] for j in self.numbers]
        c = [values[j] for j in self.categories]
        standard = (np.stack(x, 1) if x else np.zeros((rows, 0))) - self.mean
        return standard / self.scale, np.stack(c, 1) if c else np.zeros((rows, 0), int)

    def check(self, x: np.ndarray, c: np.ndarray) -> None:
        """Refuse columns that the rows cannot tell apart.

        Raises:
            ValueError: a column has fewer observed cells than coefficients, or two columns are never seen together.
        """
        problems = []
        places = [*self.numbers, *self.categories]
        seen = np.concatenate([~np.isnan(x), c >= 0], 1)
        used = 1 + x.shape[1] + sum(self.counts) - len(self.counts)
        for i, j in enumerate(self.numbers):
            count, least = int(seen[:, i].sum()), used - 1 + LEAST_ROWS
            if count < least:
                problems.append(
                    f"column {self.names[j]!r} is observed in {count} rows, and {least} are needed to tell how it depends on "
                    f"{used - 2} others: leave columns out"
                )
        together = seen.T.astype(float) @ seen
        for a, b in zip(*np.nonzero(np.triu(together < LEAST_ROWS, 1)), strict=True):
            problems.append(
                f"columns {self.names[places[a]]!r} and {self.names[places[b]]!r} are both observed in "
                f"{int(together[a, b])} rows, so that nothing tells how they go together: leave one of them out"
            )
        if problems:
            raise ValueError(f"TableImputer: {'; '.join(problems)}.")

    def filled(self, X: PyTree, x: np.ndarray, c: np.ndarray) -> PyTree:
        """X with its holes filled from numbers in standard units and levels; observed cells stay as they are."""
        units = x * self.scale + self.mean
        made = {j: units[:, i] for i, j in enumerate(self.numbers)}
        made |= {
            j: np.array(self.levels[j], object)[c[:, i]] for i, j in enumerate(self.categories)
        }
        if not is_frame(X):
            found = X.copy()
            for j, values in made.items():
                holes = np.isnan(X[:, j])
                found[holes, j] = values[holes]
            return found
        found = X.copy()
        for j, values in made.items():
            column = X.iloc[:, j]
            holes = column.isna().to_numpy()
            if holes.any():
                found.isetitem(j, _with(column, holes, values[holes], bool(self.levels[j])))
        return found


def _names(X: PyTree) -> list[Hashable]:
    return list(X.columns) if is_frame(X) else list(range(X.shape[1]))


def _column(X: PyTree, j: int) -> Any:
    return X.iloc[:, j] if is_frame(X) else X[:, j]


def _read(column: object, told: bool | None) -> tuple[tuple[PyTree, ...] | None, np.ndarray]:
    """Levels, or None, and values: numbers of levels or numbers. `told`: that it is of categories, None where nobody says."""
    kind = _kind(column)
    if kind == "number":
        values = _values(column, None)
        seen = np.unique(values[~np.isnan(values)])
        repeats = len(seen) == 2 and (~np.isnan(values)).sum() > LEAST_ROWS
        if not (repeats if told is None else told):
            return None, values
    levels = _levels(column)
    return levels, _values(column, levels)


def _kind(column: Any) -> str:
    """What a column holds: "number" or "category"."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "fiu":
        return "number"
    if hasattr(dtype, "categories") or (isinstance(dtype, np.dtype) and dtype.kind == "b"):
        return "category"
    if getattr(dtype, "kind", "O") in "fiu":  # pandas' own numbers
        return "number"
    if getattr(dtype, "kind", "O") == "b":
        return "category"
    if getattr(dtype, "kind", "O") not in "OTU" or hasattr(dtype, "tz"):
        raise ValueError(f"holds {dtype}: turn it into numbers, e.g. days since a date")
    seen = column[~column.isna()]
    is_number = [isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in seen]
    if all(is_number) and len(seen):
        return "number"
    if any(is_number):
        others = sorted({repr(v) for v, n in zip(seen, is_number, strict=True) if not n})
        raise ValueError(
            f"holds numbers and {', '.join(others[:3])}: make texts that stand for nothing missing (NaN), and all others numbers"
        )
    return "category"


def _levels(column: Any) -> tuple[PyTree, ...]:
    """The levels that were seen, in the order of a categorical column, else sorted."""
    missing = np.isnan(column) if isinstance(column, np.ndarray) else column.isna().to_numpy()
    seen = set(column[~missing].tolist())
    declared = getattr(column.dtype, "categories", None)
    if declared is not None:
        return tuple(level for level in declared.tolist() if level in seen)
    return tuple(sorted(seen, key=lambda v: (str(type(v)), v)))


def _values(column: Any, levels: tuple[Any, ...] | None) -> np.ndarray:
    """Numbers, NaN where they are missing; or numbers of levels, -1 there.

    Raises:
        ValueError: what cannot be one; read on after the column's name.
    """
    missing = np.isnan(column) if isinstance(column, np.ndarray) else column.isna().to_numpy()
    if levels is None:
        try:
            values = np.full(len(missing), np.nan)
            values[~missing] = np.asarray(column[~missing], float)
        except (TypeError, ValueError):
            raise ValueError(
                "held numbers in fit and does not now: convert it to numbers"
            ) from None
        if np.isinf(values).any():
            raise ValueError(
                f"holds {np.isinf(values).sum()} infinite values: make them missing (NaN) or finite"
            )
        return values
    place = {level: i for i, level in enumerate(levels)}
    found = np.full(len(missing), -1)
    found[~missing] = [place.get(v, len(levels)) for v in column[~missing].tolist()]
    new = sorted({repr(v) for v in column[found == len(levels)].tolist()})
    if new:
        raise ValueError(
            f"has the level{'s' * (len(new) > 1)} {', '.join(new[:3])}, which fit has not seen ({len(levels)} were: "
            f"{', '.join(map(repr, levels[:5]))}{', ...' * (len(levels) > 5)}): make such cells missing"
        )
    return found


def _problem(levels: tuple[Any, ...] | None, seen: np.ndarray, has_holes: bool) -> str | None:
    """What is wrong with a column, its observed values given; read on after its name."""
    if not len(seen):
        return "has no observed cell: nothing is known of it"
    if len(np.unique(seen)) == 1 and has_holes:
        return "is the same in all observed cells: nothing tells how its holes differ, so fill them in yourself"
    if levels and len(levels) > MOST_LEVELS:
        return f"has {len(levels)} levels, more than {MOST_LEVELS}: join rare ones"
    if levels and len(levels) > 2 and len(seen) < ROWS_PER_LEVEL * len(levels):
        return f"has {len(levels)} levels in {len(seen)} observed cells, fewer than {ROWS_PER_LEVEL} for each: join rare ones"
    return None


def _with(column: Any, holes: np.ndarray, values: np.ndarray, is_category: bool) -> Any:
    """The column with values in its holes, in its own dtype where that can hold them."""
    dtype = column.dtype
    is_numpy_float = isinstance(dtype, np.dtype) and dtype.kind == "f"
    if not is_category and not is_numpy_float:
        # Whole numbers of pandas with holes: what is drawn is not whole, and rounding it would bias what is computed from it.
        own = "Float64" if getattr(dtype, "kind", "O") in "iuf" else float
        column = column.where(~holes, 0).astype(own)
    found = column.copy()
    found[holes] = values.tolist() if is_category else values.astype(found.dtype.name.lower())
    return found
