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

from ...ppl._strategy import element
from ..objectives._analytic_kl import Laws
from ..particles._depends import depends
from ._fisher import ROOTS, TINY, Outputs
from ._truncated import truncated_factor

Array = jax.Array
OTHER_CURVATURE = "Use curvature='hessian' or 'sgld_variance'."


class Statements(Laws):
    """Laws, scales and values of the sites; `widened` sites take values of more rows than they have."""

    def __init__(self, widened: dict[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.widened = widened or {}
        self.values: dict[str, Any] = {}

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] in self.widened:
            msg["fn"] = msg["fn"].expand(self.widened[msg["name"]])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
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

    def outputs(self, x: Array, z: Array) -> Outputs:
        """Those at x, whitened at z, where the slopes are taken, [*batch, m] each."""

        def both(x: Array, z: Array) -> tuple[list[Outputs], list[Array]]:
            found, constants = [], []
            statements, at = self.run(x), self.run(z)
            for name in self.names:
                roots, fixed = _roots(name, statements, at)
                found += [Outputs(*(rows(part, x.shape[:-1], 1) for part in r)) for r in roots]
                constants += fixed
            return found, constants

        def values(x: Array, z: Array) -> Any:
            found, constants = both(x, z)
            return [outputs.values for outputs in found], constants

        moved = depends(jax.make_jaxpr(values)(z, z).jaxpr, [True, False])
        found, _ = both(x, z)
        if any(moved[len(found) :]):
            raise ValueError(
                f"Site '{self.site}' moves a parameter of {self.names} that a Gauss-Newton curvature takes as fixed: the "
                f"covariance of a MultivariateNormal, or df or scale of a StudentT. {OTHER_CURVATURE}"
            )
        kept = [outputs for outputs, m in zip(found, moved, strict=False) if m]
        return Outputs(*(jnp.concatenate(parts, -1) for parts in zip(*kept, strict=True)))

    def expanded(self, x: Array, scale: Array | None, rank: int | None) -> tuple[Array, Array]:
        """Gradient [*batch, d] and factor U [*batch, m, d] of each row's loss at x; of at most `rank` rows where there are more.

        By observation these are the outputs in one direction of each, the one in which its loss falls, and in others if `rank`
        allows; else those of `truncated_factor`.

        Args:
            x: [*batch, d].
            scale: of the prior, [*batch, d]; it decides which directions a given rank keeps (`truncated_factor`).
            rank: None: no limit.
        """
        batch, d = x.shape[:-1], x.shape[-1]
        limit = None
        if rank is not None and rank < min(self._count(x), d):
            limit = 0 if self.points is None else rank * math.prod(batch) // math.prod(self.points)
            if limit == 0:
                assert scale is not None
                return self._truncated(x, scale, rank)
        at = x if self.points is None else jnp.broadcast_to(x, (*self.points, d))

        def outputs(x: Array) -> tuple[Array, Array]:
            found = self.outputs(x, at)
            values, slopes = found if limit is None else _toward_slope(found, limit)
            return values, slopes

        values, pull, slopes = jax.vjp(outputs, at, has_aux=True)
        m = values.shape[-1]
        if m <= d:
            row = lambda e: pull(jnp.broadcast_to(e, values.shape))[0]
            factor = jax.vmap(row, out_axes=-2)(jnp.eye(m, dtype=values.dtype))
        else:
            push = lambda e: jax.jvp(
                lambda x: outputs(x)[0], (at,), (jnp.broadcast_to(e, at.shape),)
            )[1]
            factor = jax.vmap(push, out_axes=-1)(jnp.eye(d, dtype=values.dtype))
        if self.points is not None:
            slopes = rows(slopes, batch, 1)
            factor = rows(factor, batch, 2, kept=1)
        return jnp.einsum("...md,...m->...d", factor, slopes), factor

    def _truncated(self, x: Array, scale: Array, rank: int) -> tuple[Array, Array]:
        slopes = self.outputs(x, x).slopes
        _, push = jax.linearize(lambda at: self.outputs(at, x).values, x)
        transposed = jax.linear_transpose(push, x)
        pull = lambda v: transposed(v)[0]
        return pull(slopes), truncated_factor(pull, push, slopes.shape[-1], scale, rank)

    def _count(self, x: Array) -> int:
        return jax.eval_shape(lambda x: self.outputs(x, x).values, x).shape[-1]


def _toward_slope(found: Outputs, count: int) -> Outputs:
    """`count` orthonormal combinations of the outputs, the first of them along the slopes, which the others are orthogonal to."""
    v = found.slopes / jnp.maximum(jnp.linalg.norm(found.slopes, axis=-1, keepdims=True), TINY)
    v = v.at[..., 0].add(jnp.where(v[..., 0] < 0, -1.0, 1.0))
    twice = 2 * v / (v**2).sum(-1, keepdims=True)
    reflected = lambda part: part - twice * (v * part).sum(-1, keepdims=True)
    return Outputs(*(reflected(part)[..., :count] for part in found))


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


def _roots(name: str, statements: Statements, at: Statements) -> tuple[list[Outputs], list[Array]]:
    """Values and slopes of one site, weighed, each [*batch of the site, k], and the parameters that must not move."""
    if name not in statements.found:
        raise ValueError(
            f"Site '{name}': a Gauss-Newton curvature needs its law, which is not at hand inside scan, cond or particles. "
            f"{OTHER_CURVATURE}"
        )
    fn, scale = statements.found[name]
    base, _ = element(fn)
    if type(base).__name__ not in ROOTS:
        raise ValueError(
            f"Site '{name}': a Gauss-Newton curvature knows the Fisher information of {sorted(ROOTS)}, not of "
            f"{type(base).__name__}. {OTHER_CURVATURE}"
        )
    roots, fixed = ROOTS[type(base).__name__]
    weight = _element_weight(fn, scale)

    parts = []
    for root in roots(base, element(at.found[name][0])[0], at.values[name]):
        value, slope = jnp.broadcast_arrays(*root)
        own = root.values.shape[len(base.batch_shape) :]  # an event axis (logits, vectors)
        each = weight.reshape(*weight.shape, *(1,) * len(own))
        weighed = lambda part, each=each: jnp.where(each == 0, 0.0, each * part).reshape(
            *fn.batch_shape, -1
        )
        parts.append(Outputs(weighed(value), weighed(slope)))
    return parts, [jnp.asarray(getattr(base, parameter)) for parameter in fixed]


def _element_weight(fn: Any, scale: Any) -> Array:
    """Square root of the factor with which the log-prob of each element counts: batch axes, then axes of to_event."""
    weight = jnp.broadcast_to(
        jnp.sqrt(1.0 if scale is None else jnp.asarray(scale)), fn.batch_shape
    )
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            weight = weight * jnp.broadcast_to(jnp.asarray(fn._mask, bool), fn.batch_shape)
        if isinstance(fn, dist.Independent):
            shape = (*weight.shape, *fn.base_dist.batch_shape[len(fn.batch_shape) :])
            weight = jnp.broadcast_to(
                weight.reshape(*weight.shape, *(1,) * fn.reinterpreted_batch_ndims), shape
            )
        fn = fn.base_dist
    return weight
