"""The basis of a run: what is believed of the sites, and the values that are affine in it."""

from __future__ import annotations

from collections.abc import Container, Sequence

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ._approximate import joint_of
from ._arranged import Shaped, flat, matrix_of, unit_forms
from ._forms import Beyond, Form, PointValues
from ._lift import Statement
from .beliefs import Belief, Read


class PlateMeets(Exception):
    """Rows of a plate that were taken to be separate meet in the basis."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Basis:
    """The belief of a run, and the values of its open programs.

    Attributes:
        belief: of the basis; None: there is none yet.
        rows: names of the plates whose rows have a belief each; None: not known yet.
        open: the open programs: their values, and which of these are still read.
        asked: values, and what stands beside them, that are told what is known of them later.

    Args:
        joint: plates whose rows meet, so that they have one belief.
    """

    def __init__(self, joint: set[str]) -> None:
        self.joint = joint
        self.belief: Belief | None = None
        self.rows: tuple[str, ...] | None = None
        self.open: list[tuple[dict[PyTree, PyTree], set[PyTree]]] = []
        self.asked: list[tuple[Form, Read]] = []

    def settled(self, values: Sequence[PyTree]) -> list[PyTree]:
        """Values with forms in place of points, which a statement or another basis follows."""
        live = [env[v] for env, names in self.open for v in names]
        every = {id(x): x for x in [*live, *values]}
        if not any(isinstance(x, PointValues) for x in every.values()):
            return list(values)
        assert self.belief is not None
        new: dict[int, PyTree] = {
            i: Beyond("a comparison")
            for i, x in every.items()
            if isinstance(x, PointValues) and not jnp.issubdtype(x.values.dtype, jnp.floating)
        }
        kept = {
            i: x for i, x in every.items() if isinstance(x, Form | PointValues) and i not in new
        }
        self.tell()
        self.belief = joint_of(list(kept.values()), self.belief)
        new |= dict(zip(kept, unit_forms(list(map(Shaped.of, kept.values()))), strict=True))
        self.replace(new)
        return [new.get(id(x), x) for x in values]

    @property
    def size(self) -> int:
        """Number of columns of the basis."""
        return 0 if self.belief is None else self.belief.size

    def meets(self, number: int) -> PlateMeets:
        """What is raised where rows along an axis of rows meet."""
        assert self.rows is not None
        return PlateMeets(self.rows[number])

    def rows_of(self, statement: Statement, fn: dist.Distribution) -> tuple[int, ...]:
        """Axes of a site along which rows are separate.

        Raises:
            PlateMeets: sites integrated before have rows that this one has not.
        """
        axis_of = {f.name: len(fn.batch_shape) + f.dim for f in statement.frames}
        if self.rows is None:
            apart = [name for name in axis_of if name not in self.joint]
            self.rows = tuple(sorted(apart, key=axis_of.__getitem__))
        for name in self.rows:
            if name not in axis_of:
                raise self.meets(self.rows.index(name))
        return tuple(axis_of[name] for name in self.rows)

    def live(self) -> dict[int, Form]:
        """The forms that are still read, by id."""
        values = (env[v] for env, live in self.open for v in live)
        return {id(x): x for x in values if isinstance(x, Form)}

    def replace(self, new: dict[int, Form]) -> None:
        """Put other forms in the place of those with these ids."""
        for env, _ in self.open:
            env.update({v: new[id(x)] for v, x in env.items() if id(x) in new})
        self.asked = [(new.get(id(form), form), beside) for form, beside in self.asked]

    def tell(self, kept: Container[int] = ()) -> None:
        """Let the values that are asked for be told what is known of them later, but for those that are kept, by id.

        As late as can be: the mean of a value is known as it is by then, and not as the sum of what each statement has
        told of the numbers that it was made of, which rounds in units of the widest of them.
        """
        for form, beside in self.asked:
            if self.belief is not None and id(form) not in kept:
                beside = jax.tree.map(lambda x, rows=form.rows: flat(x, rows), beside)
                matrix = matrix_of(form, self.belief.size)
                self.belief = self.belief.read(beside, flat(form.const, form.rows), matrix)
        self.asked = [(form, beside) for form, beside in self.asked if id(form) in kept]

    def rebased(self, value: Form) -> Form:
        """Make the values that are still read the basis, where that halves it."""
        assert self.belief is not None
        live = self.live()
        forms = [*live.values(), value]
        values = list(map(Shaped.of, forms))
        # At most half as many numbers are still read as the basis has columns: their law takes its place, each its own column.
        if 2 * sum(x.size for x in values) > self.belief.size:
            return value
        self.tell({*live, id(value)})
        self.belief = self.law_of(forms)
        new = unit_forms(values)
        self.replace(dict(zip([*live, id(value)], new, strict=True)))
        return new[-1]

    def law_of(self, forms: Sequence[Form], *, is_square: bool = False) -> Belief:
        """The joint law of values."""
        assert self.belief is not None
        rows, size = self.belief.mean.shape[:-1], self.belief.size
        none = jnp.zeros((*rows, 0, size))  # nothing may be asked for
        # The values in one vector: const [*rows, m], matrix [*rows, m, n].
        const = jnp.concatenate(
            [jnp.zeros((*rows, 0)), *(flat(f.const, f.rows) for f in forms)], -1
        )
        matrix = jnp.concatenate([none, *(matrix_of(f, size) for f in forms)], -2)
        return self.belief.of(const, matrix, is_square=is_square)
