"""A map from the real line onto an interval that is straight in its middle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform


class SoftBoxTransform(Transform):
    """From R onto (low, high), straight but for the ends, where it bends as a logistic map does.

    With y = 2 (value - low) / (high - low) - 1 and sharpness k

        u = y + (log(1 - exp(-k (1 + y))) - log(1 - exp(-k (1 - y)))) / k.

    For k to 0 this is the logit, up to a scale; for large k the identity of (-1, 1). A simulator that adds noise to a parameter
    has in u a posterior that moves along a line and keeps its width, wherever in the box it is; in the logit neither.

    Args:
        low, high: the ends.
        sharpness: k.
    """

    domain = constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(
        self, low: Array | np.ndarray | float, high: Array | np.ndarray | float, sharpness: float
    ) -> None:
        self.low, self.high, self.sharpness = low, high, sharpness

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The interval."""
        return constraints.interval(self.low, self.high)

    @property
    def _width(self) -> Array:
        return jnp.asarray(self.high) - jnp.asarray(self.low)

    def __call__(self, x: Array) -> Array:
        k = self.sharpness
        inner = (jax.nn.softplus(k * (x + 1)) - jax.nn.softplus(k * (x - 1))) / k - 1
        # Beyond the middle of a box both terms are large; what is left is the distance to the end.
        above = 1 - (jax.nn.softplus(-k * (x - 1)) - jax.nn.softplus(-k * (x + 1))) / k
        y = jnp.where(x > 0, above, inner)
        edge = 1 - jnp.finfo(y.dtype).eps
        return jnp.asarray(self.low) + (jnp.clip(y, -edge, edge) + 1) / 2 * self._width

    def _inverse(self, y: Array) -> Array:
        share = (y - self.low) / self._width
        eps = jnp.finfo(share.dtype).eps
        share = jnp.clip(share, eps, 1 - eps)
        end = lambda share: jnp.log(-jnp.expm1(-2 * self.sharpness * share))
        return 2 * share - 1 + (end(share) - end(1 - share)) / self.sharpness

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """Log dy/dx, of the batch shape of x."""
        k = self.sharpness
        ends = jax.nn.softplus(-k * (x + 1)) + jax.nn.softplus(k * (x - 1))
        return jnp.log(self._width / 2) + jnp.log(-jnp.expm1(-2.0 * k)) - ends

    def tree_flatten(self) -> PyTree:
        """Arrays and structure, as of NumPyro's transforms."""
        return (self.low, self.high), (("low", "high"), {"sharpness": self.sharpness})
