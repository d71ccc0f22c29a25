"""Which products of arrays the library makes: as written, and as traced."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[2]
# Functions of arrays that are a dot_general within.
MULTIPLY = frozenset(
    "matmul dot einsum tensordot vdot vecdot inner cov corrcoef convolve dot_general multi_dot matrix_power".split()
)
ARRAYS = frozenset({"jnp", "jnp.linalg", "jax.numpy", "lax", "jax.lax"})


def is_product(node: ast.AST) -> bool:
    """Whether an expression multiplies matrices: by the operator, or by a function of JAX's."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        return isinstance(node.op, ast.MatMult)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return node.func.attr in MULTIPLY and ast.unparse(node.func.value) in ARRAYS


def is_full(expression: ast.expr) -> bool:
    """Whether it is `full_precision` or a call of it."""
    return ast.unparse(expression).removesuffix("()") == "full_precision"


def outside(node: ast.AST) -> Iterator[int]:
    """The lines of products that are in no block or function in full precision."""
    if isinstance(node, ast.With) and any(is_full(item.context_expr) for item in node.items):
        return
    if isinstance(node, ast.FunctionDef) and any(map(is_full, node.decorator_list)):
        return
    if is_product(node):
        yield node.lineno  # type: ignore[attr-defined]
    for child in ast.iter_child_nodes(node):
        yield from outside(child)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else (param,):
                if isinstance(inner, jax.extend.core.ClosedJaxpr):
                    yield from equations(inner.jaxpr)
                elif isinstance(inner, jax.extend.core.Jaxpr):
                    yield from equations(inner)


def made_at(eqn: Any) -> str:
    """The file below the root in which an equation was made, "" if none; packages apart."""
    frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else ()
    for frame in frames:
        path = Path(frame.file_name)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.line_num}"
    return ""


def products(jaxpr: Any) -> dict[str, list[str]]:
    """Where the products of real numbers of the library were made, by "full" and "default" precision; a user's left out."""
    found: dict[str, list[str]] = {"full": [], "default": []}
    for eqn in equations(jaxpr):
        if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
            continue
        if not jax.numpy.issubdtype(eqn.outvars[0].aval.dtype, jax.numpy.floating):
            continue
        where = made_at(eqn)
        if where.startswith(("tests", "ppl/_compat.py")):  # a user's, traced or replayed
            continue
        found["full" if "HIGHEST" in str(eqn.params["precision"]) else "default"].append(where)
    return found
