"""Bounds of each coordinate that are affine in those before it, by exact elimination from the last one.

p x + A >= a and -q x + B >= b, p, q > 0, hold for some x iff (q / p) A + B >= (q / p) a + b (Fourier 1826; Motzkin 1936),
strictly if either is strict. A row that came of more than k + 1 rows after k eliminations, or of all those that another row came
of, follows from the others (Chernikov 1965), so that rows do not pile up. All in fractions: what is called empty is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ._statements import Row

# Rows at one coordinate: beyond this, elimination takes minutes.
_LIMIT = 2_000


@dataclass(frozen=True)
class LinearBound:
    """x_i >= constant + sum weights_j x_j over coordinates j before i, or <=."""

    weights: dict[int, Fraction]
    constant: Fraction


@dataclass(frozen=True)
class Solved:
    """A coordinate: `fixed` is its value where an equality gives it, otherwise it lies between all `lower` and all `upper`."""

    coordinate: int
    lower: tuple[LinearBound, ...] = ()
    upper: tuple[LinearBound, ...] = ()
    fixed: LinearBound | None = None


@dataclass(frozen=True)
class _Derived:
    weights: tuple[Fraction, ...]
    constant: Fraction
    is_strict: bool
    origin: dict[int, Fraction]  # row -> how often it was taken

    @property
    def history(self) -> frozenset[int]:
        return frozenset(self.origin)


def solve(rows: Sequence[Row], names: Sequence[str], order: Sequence[int]) -> list[Solved]:
    """Bounds of the coordinates, in their order.

    Raises:
        ValueError: no vector keeps all rows; or all that do lie in a plane.
    """
    derived = [
        _Derived(row.weights, row.constant, row.is_strict, {i: Fraction(1)})
        for i, row in enumerate(rows)
    ]
    equalities = [d for d, row in zip(derived, rows, strict=True) if row.is_equality]
    left = [d for d, row in zip(derived, rows, strict=True) if not row.is_equality]
    solved: dict[int, Solved] = {}
    while equalities:
        equality = equalities.pop()
        pivot = next((i for i in reversed(order) if equality.weights[i]), None)
        if pivot is None:
            if equality.constant:
                raise _empty(rows, equality)
            continue  # it follows from the others
        solved[pivot] = Solved(pivot, fixed=_bound(equality, pivot))
        equalities = [_substituted(d, equality, pivot) for d in equalities]
        left = [_substituted(d, equality, pivot) for d in left]
    # Equalities that were taken count for nothing in a history: they may be taken as often as one likes.
    free = {i for i, row in enumerate(rows) if not row.is_equality}
    num_eliminated = 0
    for coordinate in reversed(order):
        if coordinate in solved:
            continue
        above = [d for d in left if d.weights[coordinate] > 0]
        below = [d for d in left if d.weights[coordinate] < 0]
        solved[coordinate] = Solved(
            coordinate, _bounds(above, coordinate), _bounds(below, coordinate)
        )
        if len(above) * len(below) > 50 * _LIMIT:
            raise _too_many(names[coordinate], len(above) * len(below))
        num_eliminated += 1
        pairs = [_sum(a, b, coordinate) for a in above for b in below]
        kept = [d for d in left if not d.weights[coordinate]]
        left = _irredundant(kept + pairs, free, num_eliminated + 1)
        if len(left) > _LIMIT:
            raise _too_many(names[coordinate], len(left))
        left = [d for d in left if not _settled(d, rows)]
    for d in left:
        _settled(d, rows)
    return [solved[i] for i in order]


def _bound(row: _Derived, coordinate: int) -> LinearBound:
    weight = row.weights[coordinate]
    others = {j: -w / weight for j, w in enumerate(row.weights) if w and j != coordinate}
    return LinearBound(others, row.constant / weight)


def _bounds(rows: Sequence[_Derived], coordinate: int) -> tuple[LinearBound, ...]:
    """Different bounds: of those with one direction the tightest."""
    is_lower = bool(rows) and rows[0].weights[coordinate] > 0
    tightest: dict[tuple[tuple[int, Fraction], ...], LinearBound] = {}
    for row in rows:
        bound = _bound(row, coordinate)
        direction = tuple(sorted(bound.weights.items()))
        known = tightest.get(direction)
        if known is None or (bound.constant > known.constant) == is_lower:
            tightest[direction] = bound
    return tuple(tightest.values())


def _combined(a: _Derived, factor_a: Fraction, b: _Derived, factor_b: Fraction) -> _Derived:
    weights = tuple(factor_a * v + factor_b * w for v, w in zip(a.weights, b.weights, strict=True))
    origin = {i: factor_a * m for i, m in a.origin.items()}
    for i, m in b.origin.items():
        origin[i] = origin.get(i, Fraction(0)) + factor_b * m
    return _Derived(
        weights,
        factor_a * a.constant + factor_b * b.constant,
        a.is_strict or b.is_strict,
        {i: m for i, m in origin.items() if m},
    )


def _sum(above: _Derived, below: _Derived, coordinate: int) -> _Derived:
    return _combined(above, 1 / above.weights[coordinate], below, -1 / below.weights[coordinate])


def _substituted(row: _Derived, equality: _Derived, pivot: int) -> _Derived:
    if not row.weights[pivot]:
        return row
    return _combined(row, Fraction(1), equality, -row.weights[pivot] / equality.weights[pivot])


def _irredundant(rows: list[_Derived], inequalities: set[int], most: int) -> list[_Derived]:
    histories = [row.history & inequalities for row in rows]
    pairs = sorted(
        (pair for pair in zip(histories, rows, strict=True) if len(pair[0]) <= most),
        key=lambda pair: len(pair[0]),
    )
    kept: list[tuple[frozenset[int], _Derived]] = []
    for history, row in pairs:
        if not any(known <= history for known, _ in kept):
            kept.append((history, row))
    return [row for _, row in kept]


def _settled(row: _Derived, rows: Sequence[Row]) -> bool:
    """Whether a row without coordinates holds; others are left."""
    if any(row.weights):
        return False
    if row.constant > 0 or (row.constant == 0 and row.is_strict):
        raise _empty(rows, row)
    if row.constant == 0 and sum(not rows[i].is_equality for i in row.origin) > 1:
        named = " and ".join(dict.fromkeys(repr(rows[i].text) for i in row.origin))
        raise ValueError(
            f"LinearConstraints: {named} leave no room between them: together they hold with equality only. State the "
            "equality with ==, which takes a coordinate away."
        )
    return True


def _empty(rows: Sequence[Row], row: _Derived) -> ValueError:
    terms = " + ".join(f"{m} ({rows[i].text})" for i, m in row.origin.items())
    relation = (
        "==" if all(rows[i].is_equality for i in row.origin) else ">" if row.is_strict else ">="
    )
    return ValueError(
        f"LinearConstraints: no vector keeps all statements: the sum {terms} says 0 {relation} {row.constant}. Take one of "
        "them away."
    )


def _too_many(name: str, count: int) -> ValueError:
    return ValueError(
        f"LinearConstraints: solving for {name!r} makes {count} rows, more than {_LIMIT}. Give coordinates that meet in many "
        "statements first (`order`), or state fewer."
    )
