"""The Gauss-Newton matrix of each row of a local site, and the slope of its loss, from one Jacobian.

Terms: h_i(x_i) in R^m, the whitened parameters of the observations of row i, and r_i, the slope of its loss in them
(`_fisher.py`). Output: U_i = dh_i/dx_i, with U_i'U_i the Gauss-Newton matrix, and U_i'r_i, the gradient of the loss.

Invariant: h_i depends on x_i alone (`_local_model.py` refuses rows that are tied together). Where every observation depends on
x_i by itself, each is given a copy of x_i: one pullback for each parameter of an observation then holds the rows of U_i of all
observations, where otherwise each takes one of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ...ppl._compat import mask_of
from ...ppl._precision import full_precision
from ...ppl._types import Message
from ...ppl.strategies import element
from .._depends import depends
from ..objectives._analytic_kl import Laws
from ._fisher import ROOTS, TINY, FisherOutputs
from ._truncated import truncated_factor

Array = jax.Array
OTHER_CURVATURE = "Use curvature='hessian' or 'sgld_variance'."


class Statements(Laws):
    """Laws, scales and values of the sites; `widened` sites take values of more rows than they have."""

    def __init__(self, widened: dict[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.widened = widened or {}
        self.values: dict[str, PyTree] = {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["name"] in self.widened:
            msg["fn"] = msg["fn"].expand(self.widened[msg["name"]])

    def postprocess_message(self, msg: Message) -> None:
        super().postprocess_message(msg)
        if msg["type"] == "sample":
            self.values[msg["name"]] = msg["value"]


@dataclasses.dataclass(frozen=True)
class Observations:
    """The observations of a local site.

    Attributes:
        run: the model at a value of the site, `x -> statements`.
        names: their sites.
        site: the local site.
        points: their batch shape, if each may be given a copy of x, [*points, d]; else None.
    """

    run: Callable[[Array], Statements]
    names: list[str]
    site: str
    points: tuple[int, ...] | None

    def expanded(
        self, x: Array, scale: Array | None, rank: int | None
    ) -> tuple[Array, Array, Array | None]:
        """Gradient [*batch, d] and factor U [*batch, m, d] of each row's loss at x; of at most `rank` rows where there are more.

        Last the slopes r [*batch, m] with U'r the gradient; None where `truncated_factor` leaves some of it out.

        By observation these are the outputs in one direction of each, the one in which its loss falls, and in others if `rank`
        allows; else those of `truncated_factor`.

        Args:
            x: [*batch, d].
            scale: of the prior, [*batch, d]; it decides which directions a given rank keeps (`truncated_factor`).
            rank: None: no limit.
        """
        batch, d = x.shape[:-1], x.shape[-1]
        is_moved, count = self._outlined(x)
        limit = None
        if rank is not None and rank < min(count, d):
            limit = 0 if self.points is None else rank * math.prod(batch) // math.prod(self.points)
            if limit == 0:
                assert scale is not None
                slopes, pull, push = self._linear(x, is_moved, None)
                return pull(slopes), truncated_factor(pull, push, count, scale, rank), None
        at = x if self.points is None else jnp.broadcast_to(x, (*self.points, d))
        slopes, pull, push = self._linear(at, is_moved, limit)
        m = slopes.shape[-1]
        if m <= d:
            row = lambda e: pull(jnp.broadcast_to(e, slopes.shape))
            factor = jax.vmap(row, out_axes=-2)(jnp.eye(m, dtype=slopes.dtype))
        else:
            column = lambda e: push(jnp.broadcast_to(e, at.shape))
            factor = jax.vmap(column, out_axes=-1)(jnp.eye(d, dtype=slopes.dtype))
        if self.points is not None:
            slopes = rows(slopes, batch, 1)
            # Else XLA lays it out anew for every use.
            factor = jax.lax.optimization_barrier(rows(factor, batch, 2, kept=1))
        with full_precision():
            return jnp.einsum("...md,...m->...d", factor, slopes), factor, slopes

    def _linear(
        self, x: Array, is_moved: list[bool], limit: int | None
    ) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array]]:
        """The outputs' slopes at x, [*batch, m], and their Jacobian: U' times a vector of every row, U times one.

        Args:
            x: [*batch, d].
            is_moved: which outputs are kept.
            limit: how many directions of them are kept; None: all.
        """
        import equinox as eqx

        trees: list[Any] = []
        laws = lambda x: eqx.partition(self._leaves(x, trees), eqx.is_inexact_array)
        # The model runs once: the laws that move with x are those that they are whitened with.
        numbers, pull_laws, fixed = jax.vjp(laws, x, has_aux=True)
        law_of = lambda numbers: trees[0].unflatten(eqx.combine(numbers, fixed))

        def outputs(moving: list[PyTree]) -> tuple[Array, Array]:
            found, _ = self._outputs(law_of(moving), law_of(numbers), x)
            kept = [one for one, m in zip(found, is_moved, strict=True) if m]
            whole = FisherOutputs(
                *(jnp.concatenate(parts, -1) for parts in zip(*kept, strict=True))
            )
            values, slopes = whole if limit is None else _toward_slope(whole, limit)
            return values, slopes

        _, pull_outputs, slopes = jax.vjp(outputs, numbers, has_aux=True)
        pull = lambda e: pull_laws(pull_outputs(e)[0])[0]
        push = lambda v: jax.jvp(lambda x: outputs(laws(x)[0])[0], (x,), (v,))[1]
        return slopes, pull, push

    def _outlined(self, x: Array) -> tuple[list[bool], int]:
        """For every list of outputs whether x moves it, and the number of those moved in a row."""
        trees: list[Any] = []
        jaxpr, flat = jax.make_jaxpr(lambda x: self._leaves(x, trees), return_shape=True)(x)

        def both(at_x: list[Array], at_z: list[Array]) -> PyTree:
            found, constants = self._outputs(trees[0].unflatten(at_x), trees[0].unflatten(at_z), x)
            return [one.values for one in found], constants

        moves = [*depends(jaxpr.jaxpr, [True]), *[False] * len(flat)]
        jaxpr, (values, _) = jax.make_jaxpr(both, return_shape=True)(flat, flat)
        moved = depends(jaxpr.jaxpr, moves)
        if any(moved[len(values) :]):
            raise ValueError(
                f"Site '{self.site}' moves a parameter of {self.names} that a Gauss-Newton curvature takes as fixed: the "
                f"covariance of a MultivariateNormal, or df or scale of a StudentT. {OTHER_CURVATURE}"
            )
        is_moved = moved[: len(values)]
        return is_moved, sum(v.shape[-1] for v, m in zip(values, is_moved, strict=True) if m)

    def _leaves(self, x: Array, trees: list[Any]) -> list[PyTree]:
        """Law, scale and value of every observation in a run at x, as leaves; what puts them together goes to `trees`."""
        run = self.run(x)
        for name in self.names:
            _check_known(name, run)
        found = {name: (*run.found[name], run.values[name]) for name in self.names}
        leaves, tree = jax.tree.flatten(found)
        trees.append(tree)
        return leaves

    def _outputs(self, laws: Any, at: Array, x: Array) -> tuple[list[FisherOutputs], list[Array]]:
        """Those of `laws`, whitened with the laws `at`, [*batch, k] each, and the parameters that must not move."""
        batch = x.shape[:-1]
        found, constants = [], []
        for name in self.names:
            fn, scale, value = laws[name]
            roots, fixed = _roots(fn, scale, value, at[name][0])
            found += [FisherOutputs(*(rows(part, batch, 1) for part in r)) for r in roots]
            constants += fixed
        return found, constants


def _toward_slope(found: FisherOutputs, count: int) -> FisherOutputs:
    """`count` orthonormal combinations of the outputs, the first of them along the slopes, which the others are orthogonal to."""
    v = found.slopes / jnp.maximum(jnp.linalg.norm(found.slopes, axis=-1, keepdims=True), TINY)
    v = v.at[..., 0].add(jnp.where(v[..., 0] < 0, -1.0, 1.0))
    twice = 2 * v / (v**2).sum(-1, keepdims=True)
    reflected = lambda part: part - twice * (v * part).sum(-1, keepdims=True)
    return FisherOutputs(*(reflected(part)[..., :count] for part in found))


def rows(x: Array, batch: tuple[int, ...], trailing: int = 0, *, kept: int = 0) -> Array:
    """One row per element of `batch` and all else in one axis; the `trailing` last axes of x are event axes.

    The last `kept` of those stay what they are, behind that axis.
    """
    depth = x.ndim - trailing
    x = x.reshape((1,) * max(0, len(batch) - depth) + x.shape)
    depth = max(depth, len(batch))
    first = depth - len(batch)
    own = [first + i for i, size in enumerate(batch) if size > 1]
    rest = [axis for axis in range(x.ndim) if axis not in own]
    return x.transpose(*own, *rest).reshape(*batch, -1, *x.shape[x.ndim - kept :])


def _check_known(name: str, statements: Statements) -> None:
    if name not in statements.found:
        raise ValueError(
            f"Site '{name}': a Gauss-Newton curvature needs its law, which is not at hand inside scan, cond or particles. "
            f"{OTHER_CURVATURE}"
        )
    base, _ = element(statements.found[name][0])
    if type(base).__name__ not in ROOTS:
        raise ValueError(
            f"Site '{name}': a Gauss-Newton curvature knows the Fisher information of {sorted(ROOTS)}, not of "
            f"{type(base).__name__}. {OTHER_CURVATURE}"
        )


def _roots(
    fn: Any, scale: object, value: PyTree, at: PyTree
) -> tuple[list[FisherOutputs], list[Array]]:
    """Values and slopes of one site, weighed, each [*batch of the site, k], and the parameters that must not move.

    Args:
        fn: its law.
        scale: the factor of its log-prob.
        value: observed.
        at: the law that the outputs are whitened with, and their slopes taken at.
    """
    base, _ = element(fn)
    root = ROOTS[type(base).__name__]
    weight = _element_weight(fn, scale)
    each = weight.reshape(*weight.shape, *(1,) * root.num_axes)

    parts = []
    for found in root.outputs(base, element(at)[0], value):
        value, slope = jnp.broadcast_arrays(*found)
        weighed = lambda part: jnp.where(each == 0, 0.0, each * part).reshape(*fn.batch_shape, -1)
        parts.append(FisherOutputs(weighed(value), weighed(slope)))
    return parts, [jnp.asarray(getattr(base, parameter)) for parameter in root.fixed]


def _element_weight(fn: Callable[..., PyTree], scale: Any) -> Array:
    """Square root of the factor with which the log-prob of each element counts: batch axes, then axes of to_event."""
    weight = jnp.broadcast_to(
        jnp.sqrt(1.0 if scale is None else jnp.asarray(scale)), fn.batch_shape
    )
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            weight = weight * jnp.broadcast_to(jnp.asarray(mask_of(fn), bool), fn.batch_shape)
        if isinstance(fn, dist.Independent):
            shape = (*weight.shape, *fn.base_dist.batch_shape[len(fn.batch_shape) :])
            weight = jnp.broadcast_to(
                weight.reshape(*weight.shape, *(1,) * fn.reinterpreted_batch_ndims), shape
            )
        fn = fn.base_dist
    return weight
