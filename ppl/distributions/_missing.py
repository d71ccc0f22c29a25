"""Partially observed values: a distribution and a mask of cells, split into the laws of the seen and of the missing cells.

Terms: a value has shape batch + event; a mask m covers the leading axes of the value, at least the batch axes. A *cell* is
one entry of the mask: a number, or a whole sub-event where the mask stops before the value's last axes.

    p(x) = p(x_seen) p(x_missing | x_seen)

`law_of_cells` gives either factor as a distribution of the whole value's batch and event shape. A cell that is not the factor's
own has no density in it, whatever it holds, NaN included; a draw leaves something finite there. Where a distribution
factorises over cells the second factor is p(x_missing), and its draws in the seen cells are draws of p as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float
from numpyro.distributions import constraints

from .._precision import full_precision
from .._types import Key


class NormalCells(dist.Distribution):
    """The marginal law of some coordinates of a multivariate Normal.

        log p(x) = log N(x_C; loc_C, covariance_CC),   C = {i: cells_i},

    in nats. Coordinates outside of C have no density and are drawn as loc_i + N(0, 1), independent of the rest.

    Args:
        loc: mean, shape [*batch, D].
        covariance_matrix: shape [*batch, D, D]; only the block of C is read.
        cells: boolean, shape [*batch, D].
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "covariance_matrix": constraints.real_matrix,  # positive definite on the cells only
    }
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["loc", "covariance_matrix"]
    pytree_data_fields = ("loc", "covariance_matrix", "cells", "scale_tril")

    def __init__(
        self,
        loc: Float[Array, "*batch D"],
        covariance_matrix: Float[Array, "*batch D D"],
        cells: Bool[Array, "*batch D"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = jnp.broadcast_shapes(loc.shape, covariance_matrix.shape[:-1], cells.shape)
        self.loc = jnp.broadcast_to(loc, shape)
        self.cells = jnp.broadcast_to(cells, shape)
        self.covariance_matrix = jnp.broadcast_to(covariance_matrix, (*shape, shape[-1]))
        # Static shapes: coordinates outside of C are replaced by independent N(0, 1) ones.
        pair = self.cells[..., :, None] & self.cells[..., None, :]
        unit = jnp.eye(shape[-1], dtype=self.covariance_matrix.dtype)
        self.scale_tril = jnp.linalg.cholesky(jnp.where(pair, self.covariance_matrix, unit))
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @full_precision
    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Loc + L noise."""
        noise = jax.random.normal(key, sample_shape + self.shape(), self.loc.dtype)
        return self.loc + jnp.einsum("...ij,...j->...i", self.scale_tril, noise)

    def log_prob(self, value: np.ndarray) -> Array:
        """Log-density of the coordinates in C; the others are not read."""
        whitened = self.whiten(value)
        diagonal = jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)
        constant = 0.5 * jnp.log(2 * jnp.pi) * self.cells.sum(-1)
        return -0.5 * (whitened**2).sum(-1) - jnp.log(diagonal).sum(-1) - constant

    def whiten(self, value: Array | np.ndarray) -> Array:
        """L^-1 (value - loc), zero outside of C."""
        residual = jnp.where(self.cells, jnp.where(self.cells, value, 0) - self.loc, 0)
        scale = jnp.broadcast_to(self.scale_tril, (*residual.shape, residual.shape[-1]))
        return jax.scipy.linalg.solve_triangular(scale, residual[..., None], lower=True)[..., 0]

    @full_precision
    def others(self, value: Array) -> NormalCells:
        """The law of the coordinates outside of C given those of C in `value`.

        With W = L^-1 covariance[C, :]: mean loc + W' L^-1 (value - loc), covariance (covariance - W' W).
        """
        rows = jnp.where(self.cells[..., None], self.covariance_matrix, 0)
        w = jax.scipy.linalg.solve_triangular(self.scale_tril, rows, lower=True)
        loc = self.loc + jnp.einsum("...ij,...i->...j", w, self.whiten(value))
        covariance = self.covariance_matrix - jnp.einsum("...ki,...kj->...ij", w, w)
        return NormalCells(loc, covariance, ~self.cells)


def law_of_cells(
    fn: dist.Distribution, cells: Bool[Array, "*shape"], given: Array | None = None
) -> dist.Distribution:
    """The law of some cells, as a distribution of the whole value's shape: p(x_cells), or p(x_cells | x_others = given).

    Args:
        fn: p(x); batch axes of length 1 are broadcast against `cells`.
        cells: boolean, at least `fn`'s batch axes and then leading axes of its event.
        given: the whole value, finite; its other cells are conditioned on. None: they are integrated out.

    Raises:
        TypeError: the cells cut through an event whose laws are not known.
    """
    if cells.ndim <= len(fn.batch_shape) or fn.event_dim == 0:
        return fn.mask(cells)
    if isinstance(fn, dist.Independent):
        return law_of_cells(fn.base_dist, cells, given).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        return law_of_cells(fn.base_dist, cells, given)
    if isinstance(fn, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        if given is None:
            return NormalCells(fn.loc, fn.covariance_matrix, cells)
        return NormalCells(fn.loc, fn.covariance_matrix, ~cells).others(given)
    raise TypeError(
        f"obs_mask has one entry per cell of an event of {type(fn).__name__}, whose law of the missing cells given the seen "
        f"ones is not known. Give one entry per event (drop the last {fn.event_dim} axes of the mask), or use a distribution "
        "with independent cells (.to_event) or MultivariateNormal."
    )
