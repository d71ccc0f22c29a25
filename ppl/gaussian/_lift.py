"""Lifting a program: tracing it so that its statements stay equations of the jaxpr, in order.

Input: a program and its arguments. Output: a jaxpr in which each sample and deterministic statement is an equation whose operands
are the leaves of its law and its observation, and whose result is its value. `_integrator.py` runs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree
from numpyro.primitives import Messenger

from .._compat import Equation, Jaxpr, Literal, Primitive, ShapedArray, Tracer, Var
from .._types import Message
from ..jaxprs import inner_jaxprs
from ..traces import Noiseless, scales_of

Array = jax.Array

statement_p = Primitive("lapilli_statement")


@dataclasses.dataclass(eq=False)
class Statement:
    """A sample or deterministic statement without its arrays.

    Attributes:
        name: of the site.
        treedef: of its law; None: a deterministic one.
        is_observed: whether its value is given.
        infer: NumPyro's options of the site, without its missing cells where these are an operand.
        frames: the plates around it, as NumPyro describes them.
        scale: factor on its log-probs; None: none, or an operand.
        has_scale: whether an operand is the factor, behind those of the law and the value.
        has_cells: whether the last operand says which cells are missing, numbers of the trace outside.
        rows: how many rows each row of a subsample stands for, which is part of the factor; None: it is not the whole factor.
        rows_scale: the part of it that `ppl.rescale_plates` has set.
        aval: shape and type of the value.
    """

    name: str
    treedef: Any
    is_observed: bool
    infer: dict[str, PyTree]
    frames: tuple[Any, ...]
    scale: float | None
    has_scale: bool
    rows: float | None
    rows_scale: float
    aval: Any
    has_cells: bool = False

    def law(self, leaves: list[PyTree]) -> PyTree:
        """The law with these leaves."""
        return self.treedef.unflatten(leaves[: self.treedef.num_leaves])

    def read(self, operands: list[PyTree]) -> tuple[Statement, list[PyTree]]:
        """The statement with its missing cells among its options again, and the other operands."""
        if not self.has_cells:
            return self, operands
        infer = self.infer | {"cells": operands[-1]}
        return dataclasses.replace(self, infer=infer, has_cells=False), operands[:-1]

    @contextlib.contextmanager
    def around(self, scale: object, dropped: int | None = 0) -> Iterator[None]:
        """Inside its plates and scale; `dropped` of its last batch axes have become axes of the event (None: all)."""
        frames = [] if dropped is None else [f for f in self.frames if -f.dim > dropped]
        moved = tuple(f._replace(dim=f.dim + (dropped or 0)) for f in frames)
        with _Frames(moved, scale, self.rows_scale):
            yield


class _Frames(Messenger):
    """Plates around a statement whose law has their axes already."""

    def __init__(self, frames: tuple[PyTree, ...], scale: object, rows_scale: float) -> None:
        super().__init__()
        self.frames, self.scale, self.rows_scale = frames, scale, rows_scale

    def process_message(self, msg: Message) -> None:
        if msg["type"] in ("sample", "deterministic"):
            msg["cond_indep_stack"] = [*msg["cond_indep_stack"], *self.frames]
        if msg["type"] == "sample" and self.scale is not None:
            old = msg["scale"]
            msg["scale"] = self.scale if old is None else self.scale * old
            msg["rows_scale"] = self.rows_scale * msg.get("rows_scale", 1.0)


statement_p.def_abstract_eval(lambda *_, statement: statement.aval)


def holds_statement(eqn: Equation) -> bool:
    """Whether an equation is a statement or has one inside."""
    return eqn.primitive is statement_p or any(
        holds_statement(inner) for jaxpr in inner_jaxprs(eqn) for inner in jaxpr.eqns
    )


class Lifter(Noiseless):
    """Turn statements into equations.

    Args:
        label: for refusals.
    """

    is_called = "an integral"

    def __init__(self, label: str) -> None:
        super().__init__(jax.random.key(0))
        self.label = label
        # An input of the trace that every statement reads: without one, JAX may run it where it stands.
        self.start: PyTree = None
        self.subsampled: dict[str, tuple[int, float]] = {}

    def _equation(self, statement: Statement, operands: list[ArrayLike]) -> Array:
        return statement_p.bind(*map(jnp.asarray, operands), self.start, statement=statement)

    def open_region(self, kind: str) -> PyTree:
        if kind == "particles":
            raise ValueError(
                f"{self.label}: ppl.particles stands inside the program, whose runs are independent copies. Eliminate sites of "
                "the program that is run as particles."
            )
        return super().open_region(kind)

    def visit(self, msg: Message) -> None:
        leaves, treedef = jax.tree.flatten(msg["fn"])
        operands = list(leaves)
        value = msg["value"]
        if msg["is_observed"]:
            operands.append(value)
        scale = msg["scale"]
        has_scale = scale is not None and not isinstance(scale, int | float)
        if has_scale:
            operands.append(scale)
        infer = dict(msg["infer"])
        if has_cells := isinstance(infer.get("cells"), Tracer):  # the statement outlives the trace
            operands.append(infer.pop("cells"))
        if value is None:
            shaped = jax.eval_shape(lambda: msg["fn"].sample(jax.random.key(0)))
        else:
            shaped = jax.eval_shape(lambda: jnp.asarray(value))
        rows, more = scales_of(msg, self.plates)
        statement = Statement(
            msg["name"], treedef, bool(msg["is_observed"]), infer,
            tuple(msg["cond_indep_stack"]), None if has_scale else scale, has_scale,
            rows if more is None else None, msg.get("rows_scale", 1.0),
            ShapedArray(shaped.shape, shaped.dtype), has_cells,
        )  # fmt: skip
        msg["value"] = self._equation(statement, operands)
        msg["stop"] = True

    def numbers_of(self, msg: Message) -> dict[str, PyTree]:
        return {}

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "deterministic":
            value = jnp.asarray(msg["value"])
            statement = Statement(
                msg["name"], None, False, {}, tuple(msg["cond_indep_stack"]), None, False, 1.0, 1.0,
                ShapedArray(value.shape, value.dtype),
            )  # fmt: skip
            self._equation(statement, [value])
        super().postprocess_message(msg)
        if msg["type"] == "plate":
            rows, full = msg["value"].shape[0], msg.get("full_size", msg["args"][0])
            if rows != full:
                self.subsampled[msg["name"]] = (rows, full)
        for numbers in self.frame.numbers.values():
            numbers.clear()


def last_reads(jaxpr: Jaxpr) -> dict[Var, int]:
    """The number of the equation that reads a variable last; deterministic statements do not count."""
    last: dict[Var, int] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        statement = eqn.params.get("statement")
        if statement is None or statement.treedef is not None:
            last.update({v: number for v in eqn.invars if not isinstance(v, Literal)})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)})
    return last


def counting(jaxpr: Jaxpr, is_read: Sequence[bool]) -> set[Var]:
    """The variables that a statement depends on; deterministic ones do not count."""
    found = {
        v
        for v, flag in zip(jaxpr.outvars, is_read, strict=True)
        if flag and not isinstance(v, Literal)
    }
    for eqn in reversed(jaxpr.eqns):
        statement = eqn.params.get("statement")
        is_made = holds_statement(eqn) and (statement is None or statement.treedef is not None)
        if is_made or any(v in found for v in eqn.outvars):
            found.update(v for v in eqn.invars if not isinstance(v, Literal))
    return found
