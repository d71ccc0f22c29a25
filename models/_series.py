"""Series with missing cells, as one pytree that programs take as their argument."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..ppl._checks import check_counts
from ..ppl._show import shown


@shown
class Series(NamedTuple):
    """N series of at most T steps and D channels; made by `series`.

    Attributes:
        values: cells, [N, T, D]; NaN-free, as precise as they were given. What stands in a cell that is not observed is never
            read.
        observed: which cells are observed, boolean [N, T, D]; false at steps that do not exist.
        times: time of each step, [N, T]; ascending.
        valid: which steps exist, boolean [N, T]: the first ones of each series.
        labels: class of each series, integers [N], or None.
    """

    values: Float[Array, "series time channels"] | np.ndarray
    observed: Bool[Array, "series time channels"] | np.ndarray
    times: Float[Array, "series time"] | np.ndarray
    valid: Bool[Array, "series time"] | np.ndarray
    labels: Int[Array, " series"] | np.ndarray | None = None

    def rows(self, index: Any) -> Series:
        """The series that `index` chooses."""
        labels = None if self.labels is None else self.labels[index]
        return Series(
            self.values[index], self.observed[index], self.times[index], self.valid[index], labels
        )

    def until(self, num_steps: int) -> Series:
        """What is known after the first `num_steps` steps, in arrays of the same shape: later steps do not exist.

        Weights and predictions from it are those of an observer at that time; nothing of the future enters them.

        Raises:
            ValueError: no step is left.
        """
        check_counts("Series.until", num_steps=num_steps)
        early = np.arange(np.shape(self.valid)[1]) < num_steps
        valid = np.asarray(self.valid) & early
        return self.hidden(np.broadcast_to(valid[..., None], np.shape(self.values)))._replace(
            valid=valid
        )

    def hidden(self, seen: PyTree) -> Series:
        """These series with only those observed cells left that are true in `seen` [N, T, D]; the others become zero."""
        observed = np.asarray(self.observed) & np.asarray(seen, bool)
        return self._replace(observed=observed, values=np.where(observed, self.values, 0))


def series(
    values: PyTree,
    *,
    observed: Any = None,
    times: PyTree = None,
    lengths: list[int] | np.ndarray | None = None,
    labels: PyTree = None,
) -> Series:
    """Check and complete series of cells.

    Args:
        values: real, [N, T, D]; NaN is a missing cell.
        observed: boolean [N, T, D], cells observed beside those that are NaN; all by default.
        times: ascending times of the steps, [T] or [N, T]; 0, 1, ... by default.
        lengths: number of steps of each series, integers [N] in 1 to T; T by default.
        labels: classes 0, 1, ..., integers [N].

    Returns:
        `Series` of NumPy arrays.

    Raises:
        ValueError: a shape does not fit, a label is negative, times do not ascend or have more digits than 32 bits hold, or an
            observed value is infinite; all problems at once.
    """
    values = np.asarray(values)
    # Until they are standardised: 32 bits hold nothing of a spread of 1 about 1e8.
    values = values.astype(np.float32 if values.dtype == np.float32 else np.float64, copy=False)
    if values.ndim != 3:
        raise ValueError(
            f"series: argument 'values' has shape {values.shape}; give [series, time, channels]."
        )
    num_series, num_steps, _ = values.shape
    seen = np.ones(values.shape, bool) if observed is None else np.asarray(observed, bool)
    times = np.arange(num_steps) if times is None else times
    times = np.asarray(times, np.float64)
    times = np.broadcast_to(times, (num_series, num_steps)) if times.ndim == 1 else times
    lengths = np.full(num_series, num_steps) if lengths is None else np.asarray(lengths)
    labels = None if labels is None else np.asarray(labels)
    problems = [
        f"argument '{name}' has shape {array.shape}, not {shape}, which it needs"
        for name, array, shape in (
            ("observed", seen, values.shape),
            ("times", times, (num_series, num_steps)),
            ("lengths", lengths, (num_series,)),
            ("labels", labels, (num_series,)),
        )
        if array is not None and array.shape != shape
    ]
    if not problems:
        valid = np.arange(num_steps) < lengths[:, None]
        seen = seen & valid[..., None] & ~np.isnan(values)
        problems += _wrong_values(values[seen], times, lengths, labels, valid)
    if problems:
        raise ValueError(f"series: {'; '.join(problems)}.")
    values, times = np.where(seen, values, 0), times.astype(np.float32)
    return Series(values, seen, times, valid, None if labels is None else labels.astype(np.int32))


def _wrong_values(
    seen: np.ndarray, times: PyTree, lengths: np.ndarray, labels: PyTree, valid: np.ndarray
) -> list[str]:
    problems = []
    if np.isinf(seen).any():
        problems.append("argument 'values' holds an infinite observed cell; mark it as missing")
    if not ((lengths >= 1) & (lengths <= valid.shape[1]) & (lengths % 1 == 0)).all():
        problems.append(
            f"argument 'lengths' lies in {lengths.min()} to {lengths.max()}, not in 1 to {valid.shape[1]}, or holds no integers"
        )
    else:
        gaps, kept = (
            np.diff(x.astype(np.float64), axis=1)[valid[:, 1:]]
            for x in (times, times.astype(np.float32))
        )
        if not (gaps > 0).all():
            problems.append("argument 'times' does not ascend within a series")
        elif gaps.size and ((kept <= 0) | (abs(kept - gaps) > 0.01 * np.median(gaps))).any():
            problems.append(
                f"argument 'times' lies in {times[valid].min():g} to {times[valid].max():g} with steps of {np.median(gaps):g}, "
                "and 32 bits round such steps by more than a hundredth; subtract one start from all times"
            )
    if labels is not None and (labels.dtype.kind not in "iu" or labels.min() < 0):
        problems.append("argument 'labels' must be integers from 0")
    return problems


class Standardisation(NamedTuple):
    """Mean and standard deviation of each channel's observed cells, [D] each; made by `standardise`."""

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, data: Series) -> Series:
        """The series in standard units, float32; missing cells become zero."""
        values = (np.asarray(data.values) - self.mean) / self.scale
        return data._replace(values=np.where(data.observed, values, 0).astype(np.float32))

    def undo(self, values: PyTree) -> np.ndarray:
        """Values in standard units, [..., D], in their own units."""
        return np.asarray(values) * self.scale + self.mean


def standardise(train: Series) -> Standardisation:
    """Statistics of the observed cells of `train`, for `Standardisation.apply` on it and on test series.

    A channel with fewer than two observed cells, or without spread, keeps its scale.

    Args:
        train: the series that are trained on.
    """
    seen = np.asarray(train.observed)
    cells = np.where(seen, np.asarray(train.values, np.float64), np.nan)
    count = seen.sum((0, 1))
    mean = np.where(count > 0, np.where(seen, cells, 0).sum((0, 1)) / np.maximum(count, 1), 0.0)
    spread = np.where(seen, (cells - mean) ** 2, 0).sum((0, 1)) / np.maximum(count, 1)
    # Of equal cells a rounded mean may leave a spread of rounding errors.
    limits = np.where(seen, cells, -np.inf).max((0, 1)), np.where(seen, cells, np.inf).min((0, 1))
    scale = np.where((spread > 0) & (limits[0] > limits[1]), np.sqrt(spread), 1.0)
    return Standardisation(mean, scale)
