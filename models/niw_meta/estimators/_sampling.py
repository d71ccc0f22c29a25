"""Episodes made of the rows of many classes."""

from __future__ import annotations

import numpy as np

from .._episodes import Episodes, Points


def made_episodes(
    draw: np.random.Generator,
    X: np.ndarray,
    rows: list[np.ndarray],
    shots: int,
    queries: int,
    classes: np.ndarray,
    ways: int,
    count: int,
) -> Episodes:
    """Small data sets of some classes each.

    Args:
        draw: of classes and rows.
        X: all rows, [rows, features].
        rows: those of each class.
        shots: of a class in the support.
        queries: of a class in the query, others than these.
        classes: to draw from.
        ways: classes in an episode.
        count: of episodes.
    """
    size = shots + queries
    index = np.empty((count, ways, size), int)
    for episode in index:
        for own, k in zip(episode, draw.choice(classes, ways, replace=False), strict=True):
            own[:] = draw.choice(rows[k], size, replace=False)
    labels = np.broadcast_to(np.arange(ways, dtype=np.int32)[:, None], index.shape)

    def points(part: slice) -> Points:
        x, y = X[index[..., part]], labels[..., part]
        flat = y.reshape(count, -1)
        return Points(x.reshape(*flat.shape, X.shape[1]), flat, np.ones(flat.shape, bool))

    return Episodes(points(slice(shots)), points(slice(shots, None)))
