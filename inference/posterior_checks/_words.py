"""What is wrong with a posterior, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ._c2st import LocalC2ST
from ._local import LocalCoverage
from ._misspecification import Misspecification
from ._ranks import RankCheck
from ._shrinkage import ZScores

_LEVEL = 0.9  # of the intervals that sentences quote


def bias(check: RankCheck, threshold: float) -> list[str]:
    """Sentences on ranks from below, where the truth lies to one side."""
    out = []
    for i in objecting(check.p_values, threshold):
        above = 1 - _at(check, 0.5, i)
        # Ranks that are spread evenly over both sides object by their width, which another check tells.
        if abs(above - 0.5) * 2 * len(check.ranks) ** 0.5 < 2:
            continue
        side = "low" if above > 0.5 else "high"
        out.append(
            f"{check.labels[i]}: biased, its draws lie too {side}: the truth is above their median in {above:.0%} of the "
            "simulations"
        )
    return out


def width(check: RankCheck, threshold: float) -> list[str]:
    """Sentences on central or densest regions that hold the truth too seldom or too often."""
    return [
        f"{check.labels[i]}: {_narrow_or_wide(check, i)}" for i in objecting(check.p_values, threshold)
    ]  # fmt: skip


def joint(check: RankCheck, threshold: float) -> list[str]:
    """Sentences on ellipsoids of all coordinates, or on balls around points."""
    told = _narrow_or_wide(check, 0)
    if "points" in check.name:  # balls need not be about the posterior's middle
        told = told.partition(": ")[2].replace("regions", "balls")
    return [
        f"all coordinates together, {check.name}: {told}"
        for _ in objecting(check.p_values, threshold)
    ]


def along(check: RankCheck, ways: np.ndarray, labels: Sequence[str], threshold: float) -> list[str]:
    """Sentences on intervals along directions."""
    return [
        f"along {combination(ways[i], labels)}: {_narrow_or_wide(check, i)}"
        for i in objecting(check.p_values, threshold)
    ]


def locally(check: LocalCoverage, z: ZScores, threshold: float) -> list[str]:
    """Sentences on ranks that depend on the data."""
    out = []
    size = check.p_values.size
    for i, label in enumerate(check.labels):
        unmoved = np.median(z.shrinkage[:, i]) < 0.1
        if size * check.p_values[i, 0] < threshold:
            most = int(np.abs(check.shift_slopes[i]).argmax())
            slope = check.shift_slopes[i, most]
            side = "low" if slope > 0 else "high"
            why = (
                "; it is as wide as the prior, as if the data had not been used" if unmoved else ""
            )
            out.append(
                f"{label}: locally wrong, too {side} where {check.features[most]} is large and the other way where it is small "
                f"({abs(slope):.2f} posterior deviations for each of its own){why}"
            )
        if size * check.p_values[i, 1] < threshold:
            most = int(np.abs(check.width_slopes[i]).argmax())
            side = "narrow" if check.width_slopes[i, most] > 0 else "wide"
            out.append(
                f"{label}: locally wrong, too {side} where {check.features[most]} is large, beside where it is small"
            )
    return out


def here(check: LocalC2ST, threshold: float) -> list[str]:
    """Sentences on the posterior at the data that were seen."""
    if check.p_value >= threshold:
        return []
    order = np.argsort(-np.maximum(np.abs(check.shifts), np.abs(np.log(check.scales.clip(1e-3)))))
    moves = [
        f"{check.labels[i]} by {check.shifts[i]:+.1f} deviations and to {check.scales[i]:.1f} times its width"
        for i in order[:3]
    ]
    if len(check.labels) > 1:
        where = combination(check.way, check.labels)
        moves.append(f"and {where} (each in deviations) to {check.way_scale:.1f} times its width")
    return [f"at the observed data: a classifier would move {', '.join(moves)}"]


def surprised(check: Misspecification, threshold: float) -> list[str]:
    """Sentences on data that the model does not predict."""
    if check.p_value >= threshold:
        return []
    i = int(np.abs(check.tails - 0.5).argmax())
    share = check.tails[i]
    side, part = ("above", share) if share > 0.5 else ("below", 1 - share)
    return [
        f"the observed data are unlike the model's predictions (distance {check.distance:.1f}, {len(check.labels) ** 0.5:.1f} is "
        f"usual): {check.labels[i]} is {side} {part:.1%} of them; the model is wrong for them, whatever the posterior"
    ]


def combination(way: np.ndarray, labels: Sequence[str]) -> str:
    """The largest terms of a direction, the first positive: "0.71 a - 0.71 b"."""
    largest = sorted(np.argsort(-np.abs(way))[:4])
    kept = [i for i in largest if abs(way[i]) > 0.1 * np.abs(way).max()]
    way = way * np.sign(way[kept[0]])
    terms = [f"{'-' if way[i] < 0 else '+'} {abs(way[i]):.2f} {labels[i]}" for i in kept]
    return " ".join(terms).removeprefix("+ ") + (" ..." if len(kept) < len(way) else "")


def objecting(p_values: np.ndarray, threshold: float) -> list[int]:
    """Columns whose p-values, corrected for their number, are below."""
    return [i for i, p in enumerate(p_values.tolist()) if p * p_values.size < threshold]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979)."""
    order = sorted(p_values, key=lambda name: p_values[name])
    out, largest = {}, 0.0
    for i, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - i) * p_values[name]))
        out[name] = largest
    return {name: out[name] for name in p_values}


def _narrow_or_wide(check: RankCheck, column: int) -> str:
    gaps = check.curves[:, column] - check.levels
    most, least = gaps.max(), -gaps.min()
    if min(most, least) > 0.5 * max(most, least):
        how = "of the wrong shape"
    else:
        how = "too wide" if most > least else "too narrow"
    held = [
        f"{level:.0%} regions hold the truth in {_at(check, level, column):.0%}"
        for level in (0.5, _LEVEL)
    ]
    return f"{how}: its {held[0]}, its {held[1]} of the simulations"


def _at(check: RankCheck, level: float, column: int) -> float:
    grid = np.concatenate([[0.0], check.levels, [1.0]])
    return float(np.interp(level, grid, np.concatenate([[0.0], check.curves[:, column], [1.0]])))
