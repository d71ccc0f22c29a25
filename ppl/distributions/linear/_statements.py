"""Linear statements, such as `a + 2 * b >= c` or a mapping of weights, as exact rows."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import PyTree

# In a tuple: weights by name, relation, constant.
Statement = str | tuple[Mapping[str, float], str, float]
_RELATIONS: dict[type, str] = {
    ast.GtE: ">=",
    ast.Gt: ">",
    ast.LtE: "<=",
    ast.Lt: "<",
    ast.Eq: "==",
}
_WHAT = "compare sums of names times numbers, such as 'a + 2 * b >= c' or '0 <= a <= 1'"


@dataclass(frozen=True)
class Row:
    """sum w_i x_i >= c, or > c if `is_strict`, or == c if `is_equality`.

    `text` is how the user wrote it.
    """

    weights: tuple[Fraction, ...]
    constant: Fraction
    is_strict: bool
    is_equality: bool
    text: str


def exact(number: PyTree) -> Fraction:
    """The number that its shortest decimal says: 0.1 is a tenth."""
    return Fraction(str(float(number)))


def rows_of(statements: Sequence[Statement], names: Sequence[str]) -> list[Row]:
    """Exact rows of statements, in the order in which they came."""
    found = []
    for statement in statements:
        if isinstance(statement, str):
            found += _rows_of_text(statement, names)
            continue
        weights, relation, constant = statement
        unknown = set(weights) - set(names)
        if unknown:
            raise _unknown(f"{dict(weights)} {relation} {constant}", sorted(unknown)[0], names)
        if relation not in _RELATIONS.values():
            raise ValueError(
                f"LinearConstraints: {relation!r} is no relation between {dict(weights)} and {constant}: use one of "
                f"{', '.join(_RELATIONS.values())}."
            )
        terms = " + ".join(f"{w:g} * {name}" for name, w in weights.items())
        left = {name: exact(w) for name, w in weights.items()}
        found.append(
            _row(left, relation, {"": exact(constant)}, names, f"{terms} {relation} {constant:g}")
        )
    return found


def rows_of_matrix(
    weights: np.ndarray, bounds: list[float] | np.ndarray, names: Sequence[str]
) -> list[Row]:
    """Rows of W x >= c."""
    weights, bounds = np.asarray(weights, float), np.asarray(bounds, float)
    if weights.ndim != 2 or bounds.shape != weights.shape[:1] or weights.shape[1] != len(names):
        raise ValueError(
            f"LinearConstraints: weights of shape {weights.shape} and bounds of shape {bounds.shape} for {len(names)} "
            "coordinates: give weights of shape (rows, coordinates) and one bound per row."
        )
    if not (np.isfinite(weights).all() and np.isfinite(bounds).all()):
        raise ValueError(
            "LinearConstraints: weights and bounds must be finite numbers: leave out rows without a bound."
        )
    used = [{name: float(w) for name, w in zip(names, row, strict=True) if w} for row in weights]
    return rows_of([(row, ">=", float(c)) for row, c in zip(used, bounds, strict=True)], names)


def _rows_of_text(text: str, names: Sequence[str]) -> list[Row]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(
            f"LinearConstraints: {text!r} cannot be read ({error.msg}): {_WHAT}."
        ) from None
    if not isinstance(tree, ast.Compare) or not all(type(op) in _RELATIONS for op in tree.ops):
        raise ValueError(f"LinearConstraints: {text!r} is no comparison: {_WHAT}.")
    sides = [_affine(side, text, names) for side in (tree.left, *tree.comparators)]
    return [
        _row(left, _RELATIONS[type(op)], right, names, text)
        for left, op, right in zip(sides, tree.ops, sides[1:], strict=False)
    ]


Affine = dict[str, Fraction]  # weights by name; the constant's name is ""


def _affine(node: ast.expr, text: str, names: Sequence[str]) -> Affine:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return {"": exact(node.value)}
        case ast.Name():
            if node.id not in names:
                raise _unknown(text, node.id, names)
            return {node.id: Fraction(1)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            sign = -1 if isinstance(node.op, ast.USub) else 1
            return {k: sign * w for k, w in _affine(node.operand, text, names).items()}
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            sign = -1 if isinstance(node.op, ast.Sub) else 1
            left, right = (_affine(side, text, names) for side in (node.left, node.right))
            return {
                k: left.get(k, Fraction(0)) + sign * right.get(k, Fraction(0))
                for k in {**left, **right}
            }
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            left, right = (_affine(side, text, names) for side in (node.left, node.right))
            if isinstance(node.op, ast.Mult) and not any(left.get(name) for name in names):
                left, right = right, left
            factor = right.get("", Fraction(0))
            apply = operator.mul if isinstance(node.op, ast.Mult) else operator.truediv
            if not any(right.get(name) for name in names) and (factor or apply is operator.mul):
                return {k: apply(w, factor) for k, w in left.items()}
    raise ValueError(
        f"LinearConstraints: {ast.unparse(node)!r} in {text!r} is not linear: {_WHAT}."
    )


def _row(left: Affine, relation: str, right: Affine, names: Sequence[str], text: str) -> Row:
    if relation in ("<=", "<"):
        left, right = right, left
    zero = Fraction(0)
    weights = tuple(left.get(name, zero) - right.get(name, zero) for name in names)
    constant = right.get("", zero) - left.get("", zero)
    return Row(weights, constant, relation in ("<", ">"), relation == "==", text)


def _unknown(text: str, name: str, names: Sequence[str]) -> ValueError:
    return ValueError(
        f"LinearConstraints: {name!r} in {text!r} is none of the coordinates {list(names)}: name it in `names`."
    )
