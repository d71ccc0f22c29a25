"""A step of a scan collected as affine maps: nothing is conditioned, and no statement is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from .._compat import Equation
from .._precision import full_precision
from .._types import Key
from ._arranged import flat, matrix_of
from ._chains import Affine, NotCollected, Step
from ._forms import Beyond, Form
from ._integrator import BESIDE, Integrator
from ._lift import Statement, holds_statement
from ._readings import noise_of
from .beliefs import Read


class Collector(Integrator):
    """One run of a step whose basis starts with the numbers that are handed to it.

    Args:
        outer: whose scan it is.
        handed: how many numbers are.
        made: what the step has made, by name, where it has run before; None: it has not, so that all statements have to be
            observed.
    """

    def __init__(self, outer: Integrator, handed: int, made: Mapping[str, PyTree] | None) -> None:
        emit = outer.emit._replace(is_dry=True)
        super().__init__(outer.label, outer.names, outer.joint, emit)
        self.rows, self.numbers = outer.rows, outer.numbers
        self.handed, self.before = handed, made
        self.seen: list[Affine] = []

    def equation(self, eqn: Equation, args: list[PyTree]) -> list[Array | Beyond | Form | Key]:
        if eqn.primitive.name in ("scan", "cond") and holds_statement(eqn):
            met = NotCollected(f"a ppl.{eqn.primitive.name} inside of the step")
            raise met
        return super().equation(eqn, args)

    def step(self, new: Sequence[Form], read: Sequence[Form]) -> Step:
        """The maps of what is handed on, and of what is read after all steps."""
        rows = () if self.belief is None else self.belief.mean.shape[:-1]
        columns = max(self.size, self.handed + 1)  # no noise is one column of zeros

        def stacked(consts: Sequence[Array], matrices: Sequence[Array]) -> Affine:
            wide = [
                jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns - x.shape[-1])]) for x in matrices
            ]
            empty = jnp.zeros((*rows, 0, columns))
            return Affine(
                jnp.concatenate([empty[..., 0], *consts], -1), jnp.concatenate([empty, *wide], -2)
            )

        def maps(forms: Sequence[Form]) -> Affine:
            consts = [flat(f.const, f.rows) for f in forms]
            return stacked(consts, [matrix_of(f, columns) for f in forms])

        seen = stacked([x.const for x in self.seen], [x.matrix for x in self.seen])
        asked = maps([form for form, _ in self.asked])
        parts = [jax.tree.map(lambda x, f=f: flat(x, f.rows), x) for f, x in self.asked]
        empty = jnp.zeros((*rows, 0))
        beside = jax.tree.map(lambda *x: jnp.concatenate(x, -1), Read(empty, empty), *parts)
        return Step(maps(new), seen, maps(read), asked, beside)

    # What an integrator does with statements.

    def _made(self, statement: Statement, fn: PyTree, obs: object) -> PyTree:
        if self.before is not None:
            return self.before[statement.name]
        if obs is None:
            left = NotCollected(f"site '{statement.name}', which is left")
            raise left
        return jnp.asarray(obs, statement.aval.dtype)

    @full_precision
    def _conditioned(
        self, statement: Statement, fn: Callable[..., PyTree], mean: Form, obs: object
    ) -> PyTree:
        self.has_changed = True
        rows, reading = mean.rows, self._reading(fn)
        noise, matrix = noise_of(reading, rows), matrix_of(mean, self.size)
        value = self._made(statement, fn, obs)
        away = flat(value - mean.const, rows)
        if reading.cells is not None:
            seen = flat(reading.cells, rows)
            noise, matrix = noise.apart(seen), jnp.where(seen[..., None], matrix, 0)
            away = jnp.where(seen, away, 0)
        self.seen.append(Affine(noise.whitened(away[..., None])[..., 0], noise.whitened(matrix)))
        return value

    def _beside(self, statement: Statement, like: Array) -> Read | None:
        return None if self.before is None else self.before.get(f"{statement.name}{BESIDE}")

    def _at_mean(self, name: str, form: Form) -> Array:
        assert self.before is not None  # no approximation is run in parallel
        return self.before[name]

    def rebased(self, value: Form) -> Form:
        return value
