"""Episodes: small data sets of one population, each split into support and query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

Array = Any


class Points(NamedTuple):
    """Labelled points of a batch of episodes, padded to one number of points n.

    Attributes:
        x: inputs, [episodes, n, *input].
        y: labels, [episodes, n], floating point or integer, or vectors [episodes, n, k]; None for queries whose labels are not
            known.
        mask: true where a point is no padding, [episodes, n].
    """

    x: Array
    y: Array
    mask: Array


class Episodes(NamedTuple):
    """A batch of episodes. All arrays have the episodes as leading axis, so `fit(subsample={"episodes": n})` slices them.

    Attributes:
        support: the points that an episode is adapted on.
        query: the points that it is to predict.
    """

    def stated(self) -> Episodes:
        """Episodes with zeros for unknown labels of the queries, in the form of the support's, for programs that state some."""
        if self.query.y is not None:
            return self
        like = np.shape(self.support.y)[2:], self.support.y.dtype
        y = np.zeros((*np.shape(self.query.x)[:2], *like[0]), like[1])
        return self._replace(query=self.query._replace(y=y))

    support: Points
    query: Points


def check_classes(label: str, points: Points, num_ways: int) -> None:
    """Refuse labels that count and are no classes 0 ... num_ways - 1; `label` says where they were found.

    Raises:
        ValueError: with one of them.
    """
    y, mask = np.asarray(points.y), np.asarray(points.mask, bool)
    wrong = mask & ~np.isin(y, np.arange(num_ways))
    if wrong.any():
        raise ValueError(
            f"{label}: {int(wrong.sum())} of {int(mask.sum())} labels are no classes of 0 to {num_ways - 1}, e.g. {y[wrong][0]}; "
            "each would be read as another class. Give labels of the episode's ways."
        )


def pad_points(parts: Sequence[tuple[Any, Any]], num_points: int | None = None) -> Points:
    """Episodes of unequal size in one array each.

    Args:
        parts: (x [n_i, *input], y [n_i]) of each episode; (x, None) for queries whose labels are not known, then in all of them.
        num_points: size to pad to; default, that of the largest episode.

    Returns:
        `Points`; padding is zero and masked, and moves no number of a masked likelihood.

    Raises:
        ValueError: x and y of an episode differ in length, some episodes have labels and others not, or an episode is larger
            than `num_points`.
    """
    sizes = [len(x) for x, _ in parts]
    is_blind = bool(parts) and all(y is None for _, y in parts)
    labels = sizes if is_blind else [0 if y is None else len(y) for _, y in parts]
    if not parts or sizes != labels:
        raise ValueError(
            f"pad_points: {len(parts)} episodes of {sizes} points with {labels} labels. Give at least one episode, and one label "
            "per point."
        )
    length = max(sizes) if num_points is None else num_points
    if max(sizes) > length:
        raise ValueError(
            f"pad_points: an episode has {max(sizes)} points, more than num_points={length}. Raise num_points, or leave points "
            "out."
        )

    def padded(array: PyTree) -> np.ndarray:
        array = np.asarray(array)
        return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))

    xs = np.stack([padded(x) for x, _ in parts])
    ys = None if is_blind else np.stack([padded(y) for _, y in parts])
    return Points(xs, ys, np.arange(length) < np.asarray(sizes)[:, None])
