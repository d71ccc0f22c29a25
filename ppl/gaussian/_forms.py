"""Values that are affine in Gaussian sites, and what an equation of a traced program makes of them.

A value is an array that does not depend on the sites, a `Form`, or `Beyond`: it depends on them in a way that is not affine, or
is not known to be. Affinity is proved, equation by equation: what has no rule here is beyond.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._compat import Equation, bind
from .._precision import at_full_precision
from ..jaxprs import Relations, aligned, relations_of_axes

Array = jax.Array


class Form(NamedTuple):
    """const + sum_d coefs[d] basis[d].

    Attributes:
        const: the value where the basis is 0.
        coefs: shape (columns, *const.shape); the basis may have more columns, with coefficients 0.
        rows: axes of the value along which the rows of the basis stand: element i is affine in row i.
        is_unit: whether it is a vector and the whole basis itself.
    """

    const: Array
    coefs: Array
    rows: tuple[int, ...]
    is_unit: bool = False

    def wide(self, columns: int) -> Array:
        """Its coefficients for a basis with that many columns."""
        missing = columns - self.coefs.shape[0]
        return jnp.pad(self.coefs, [(0, missing)] + [(0, 0)] * self.const.ndim)


@dataclasses.dataclass(frozen=True)
class Beyond:
    """A value that is not affine in the sites.

    Attributes:
        why: the operation.
        remedy: what to do in place of it, if there is something better than keeping the sites.
    """

    why: str
    remedy: str = ""


class PointValues(NamedTuple):
    """A value at the points of a belief (`_approximate.py`).

    Attributes:
        values: shape (2 k, *shape).
        rows: axes of the value along which the rows of the basis stand.
    """

    values: Array
    rows: tuple[int, ...]


class RowsMeet(Exception):
    """Rows that were taken to be separate are not; `axis` is their number among the axes of rows."""

    axis: int = 0

    @classmethod
    def along(cls, axis: int) -> RowsMeet:
        """Those along an axis of rows."""
        met = cls()
        met.axis = axis
        return met


# Linear in all operands together.
LINEAR = frozenset(
    """
    add add_any broadcast_in_dim concatenate copy copy_p cumsum device_put expand_dims neg pad reduce_sum reshape rev
    sharding_constraint slice split squeeze stack sub transpose
    """.split()
)
# Linear in some operands together, given the others.
LINEAR_IN = {
    "select_n": None,  # all cases: all operands but the first
    "div": (0,),
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "gather": (0,),
    "scatter": (0, 2),
    "scatter-add": (0, 2),
    "scatter-mul": (0,),
    "triangular_solve": (1,),
}
# Linear in each operand, given the other.
BILINEAR = frozenset("mul dot_general conv_general_dilated".split())


def is_certain(value: object) -> bool:
    """Whether a value does not depend on the sites."""
    return not isinstance(value, Form | PointValues | Beyond)


def propagate(eqn: Equation, args: Sequence[PyTree]) -> list[Beyond | Form]:
    """What an equation makes of values, one of which is uncertain.

    Raises:
        RowsMeet: rows of the basis do not stay apart.
    """
    beyond = next((x for x in args if isinstance(x, Beyond)), None)
    if beyond is not None:
        return [beyond] * len(eqn.outvars)
    uncertain = [i for i, x in enumerate(args) if isinstance(x, Form)]
    together = _linear_in(eqn, uncertain)
    if together is None:
        return [Beyond(eqn.primitive.name)] * len(eqn.outvars)
    if args[uncertain[0]].is_unit and _is_product(eqn):
        return [_product(eqn, args, uncertain[0])]
    eqn = at_full_precision(eqn)
    columns = max(args[i].coefs.shape[0] for i in uncertain)
    consts = [x.const if isinstance(x, Form) else x for x in args]
    # f(const + sum_d coefs_d b_d) = f(const) + sum_d f_0(coefs_d) b_d, where f_0 is f with everything else at 0: one call for
    # the constant, one vmap over columns for the coefficients.
    base = bind(eqn, consts)
    # What stands beside an uncertain operand in a sum has no part in the coefficients.
    silent = [
        jnp.zeros_like(x) if i in together and i not in uncertain else x
        for i, x in enumerate(consts)
    ]

    # So has what a gather fills in for indices outside.
    slope = (
        eqn.replace(params=eqn.params | {"fill_value": 0}) if "fill_value" in eqn.params else eqn
    )

    def column(*coefs: Array) -> list[PyTree]:
        operands = list(silent)
        for i, c in zip(uncertain, coefs, strict=True):
            operands[i] = c
        return bind(slope, operands)

    slopes = jax.vmap(column)(*(args[i].wide(columns) for i in uncertain))
    rows = rows_of(eqn, args)
    return [Form(c, s, r) for c, s, r in zip(base, slopes, rows, strict=True)]


def _is_product(eqn: Equation) -> bool:
    """Whether an equation sums over an axis of both operands, without axes that stay side by side."""
    if eqn.primitive.name != "dot_general":
        return False
    contract, batch = eqn.params["dimension_numbers"]
    return bool(contract[0]) and not batch[0]


def _product(eqn: PyTree, args: Sequence[PyTree], which: int) -> Form:
    """The product of an array and the basis: its coefficients stand in the array."""
    out, matrix = eqn.outvars[0].aval, args[1 - which]
    axis = eqn.params["dimension_numbers"][0][1 - which][0]
    coefs = jnp.moveaxis(matrix, axis, 0).astype(out.dtype)
    return Form(jnp.zeros(out.shape, out.dtype), coefs, ())


def _linear_in(eqn: Equation, uncertain: Sequence[int]) -> Sequence[int] | None:
    """The operands in which an equation is linear together, the uncertain ones among them; None: it is not known to be."""
    name, everything = eqn.primitive.name, range(len(eqn.invars))
    if name in LINEAR:
        return everything
    if name in BILINEAR:
        return uncertain if len(uncertain) == 1 else None
    if name in LINEAR_IN:
        together = LINEAR_IN[name] or everything[1:]
        return together if set(uncertain) <= set(together) else None
    if name == "custom_linear_solve":
        right = everything[sum(eqn.params["const_lengths"]) :]
        return right if set(uncertain) <= set(right) else None
    if name == "convert_element_type":
        is_real = jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        return everything if is_real else None
    return everything if name == "integer_pow" and eqn.params["y"] == 1 else None


def rows_of(eqn: Equation, args: Sequence[PyTree]) -> list[tuple[int, ...]]:
    """The axes of the outputs along which the rows of the basis stand.

    Raises:
        RowsMeet: they do not stay apart.
    """
    rows = [getattr(x, "rows", ()) for x in args]
    if not any(rows):
        return [()] * len(eqn.outvars)
    # The rows of the basis as one source with an axis each: the rule of the primitive says where its axes go.
    operands: list[Relations] = [{0: tuple(map(aligned, r))} if r else {} for r in rows]
    found = []
    for relations in relations_of_axes(eqn, operands):
        axes = []
        for number, link in enumerate(relations[0]):
            if link.kind != "aligned" or not isinstance(link.axis, int):
                raise RowsMeet.along(number)
            axes.append(link.axis)
        found.append(tuple(axes))
    return found
