"""What estimators of series take as X: tables, arrays of series, lists of series of unequal lengths, `Series`."""

from __future__ import annotations

import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import PyTree
from sklearn.utils.validation import check_array, validate_data

from ._estimator import StoredEstimator
from ._series import Series, series

Layout = Literal["table", "series"]


class Given(NamedTuple):
    """Series read from X, in their own units.

    Attributes:
        data: the series; at least as many steps as those that the estimator was fitted on.
        cells: the cells as given, NaN where they are missing, [series, time, channels]; float32 if X is, else float64.
        kind: what X was, so that results look like it.
        num_steps: of the array, or of each series of a list.
    """

    data: Series
    cells: np.ndarray
    kind: Literal["table", "array", "list", "series"]
    num_steps: Any

    @property
    def layout(self) -> Layout:
        """Whether the rows are single steps, or series."""
        return "table" if self.kind == "table" else "series"

    def like(self, values: np.ndarray) -> Any:
        """Values [..., series, time, channels] in the form of X, with leading axes (of a list, in each of its series)."""
        if self.kind == "table":
            return values[..., 0, :]
        if self.kind == "list":
            return [values[..., row, :steps, :] for row, steps in enumerate(self.num_steps)]
        return values[..., : self.num_steps, :]


def given(estimator: StoredEstimator, X: PyTree, *, reset: bool, least: int = 1) -> Given:
    """Read X, and compare it with what the estimator was fitted on.

    Args:
        estimator: gets `n_features_in_` and, of frames, `feature_names_in_`.
        X: see `SeriesImputer.fit`.
        reset: whether it is fitted now.
        least: number of steps to pad to.
    """
    if isinstance(X, Series):
        cells = np.where(X.observed, np.asarray(X.values), np.nan)
        _checked(estimator, cells.reshape(-1, cells.shape[-1]), reset)
        times, lengths = np.asarray(X.times), np.asarray(X.valid).sum(1)
        return _made(cells, "series", cells.shape[1], lengths, times, least)
    if _is_list_of_series(X):
        several = [_checked(estimator, x, reset and i == 0) for i, x in enumerate(X)]
        lengths = np.array([len(x) for x in several])
        dtype = np.result_type(*several)
        cells = np.full((len(several), lengths.max(), several[0].shape[1]), np.nan, dtype)
        for row, x in enumerate(several):
            cells[row, : len(x)] = x
        return _made(cells, "list", lengths, lengths, None, least)
    if getattr(X, "ndim", 2) == 3:
        cells = _array(check_array(X, allow_nd=True, **_RULES))
        _checked(estimator, cells.reshape(-1, cells.shape[-1]), reset)
        lengths = np.full(len(cells), cells.shape[1])
        return _made(cells, "array", cells.shape[1], lengths, None, least)
    cells = _checked(estimator, X, reset)[:, None]
    return _made(cells, "table", 1, np.ones(len(cells), int), None, 1)


_RULES: dict[str, Any] = {"ensure_all_finite": "allow-nan", "dtype": [np.float64, np.float32]}


def _checked(estimator: StoredEstimator, X: PyTree, reset: bool) -> np.ndarray:
    return _array(validate_data(estimator, X, reset=reset, **_RULES))


def _array(X: PyTree) -> np.ndarray:
    return np.asarray(X)


def _is_list_of_series(X: PyTree) -> bool:
    """A list of tables; a list of lists of numbers is one table."""
    if isinstance(X, np.ndarray):
        is_list = X.dtype == object and X.ndim == 1
    else:
        is_list = isinstance(X, list | tuple)
    return is_list and len(X) > 0 and all(getattr(x, "ndim", None) == 2 for x in X)


def _made(
    cells: np.ndarray, kind: Any, num_steps: Any, lengths: np.ndarray, times: PyTree, least: int
) -> Given:
    more = max(least - cells.shape[1], 0)
    cells = np.pad(cells, ((0, 0), (0, more), (0, 0)), constant_values=np.nan)
    if times is not None:
        later = times[:, -1:] + np.arange(1, more + 1)
        times = np.concatenate([times, later.astype(times.dtype)], 1)
    return Given(series(cells, times=times, lengths=lengths), cells, kind, num_steps)


def digest(data: Series, row: int) -> int:
    """A number made of what is known of a series, for draws that depend on nothing else."""
    steps = int(np.asarray(data.valid)[row].sum())
    known = (data.values[row, :steps], data.observed[row, :steps], data.times[row, :steps])
    return zlib.crc32(b"".join(np.ascontiguousarray(a).tobytes() for a in known))
