"""A law chosen from several by an index."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, PyTree
from numpyro.distributions import constraints

from .._types import Key


class Chosen(dist.Distribution):
    """p(x | k) = p_k(x): the k-th of several laws, row by row.

    For observations whose law hangs on few discrete sites. The densities under all laws are computed once, and what depends on
    the sites is a number looked up in each row: exact sums over the sites and replays repeat the look-up and nothing else.

    Args:
        laws: the laws along the first batch axis, batch shape [laws, *batch].
        index: k, integers, shape [*batch].

    Raises:
        ValueError: `laws` has no batch axis, or other batch axes than `index`.

    Validity: exact; an index below 0 or beyond the laws gives nan.

    Example:
        >>> import numpyro.distributions as dist, numpy as np
        >>> from lapilli import ppl
        >>> law = ppl.distributions.Chosen(dist.Normal(np.array([[0.0], [5.0]]), 1.0), np.array([0, 1, 1]))
        >>> law.mean.tolist()
        [0.0, 5.0, 5.0]
    """

    arg_constraints = {"index": constraints.nonnegative_integer}
    pytree_data_fields = ("laws", "index")

    def __init__(
        self,
        laws: dist.Distribution,
        index: Int[Array, "*batch"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = jnp.shape(index)
        if len(laws.batch_shape) != 1 + len(shape) or any(
            n not in (1, m) for n, m in zip(laws.batch_shape[1:], shape, strict=True)
        ):
            raise ValueError(
                f"Chosen: the laws have batch shape {laws.batch_shape} and the index shape {shape}; give laws of batch "
                "shape (number of laws, *shape of the index), e.g. dist.Normal(locs, 1.0) with locs[k] for law k."
            )
        self.laws, self.index = laws, index
        super().__init__(shape, laws.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint | None:
        """That of the laws."""
        return self.laws.support

    @property
    def mean(self) -> Float[Array, "*batch *event"]:
        """Mean of the chosen law."""
        return self._of_index(self.laws.mean, self.event_dim)

    @property
    def variance(self) -> Float[Array, "*batch *event"]:
        """Variance of the chosen law."""
        return self._of_index(self.laws.variance, self.event_dim)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of the chosen law, shape [*sample_shape, *batch, *event]."""
        return self._of_index(self.laws.sample(key, sample_shape), self.event_dim)

    def log_prob(self, value: Array) -> Array:
        """The density under the chosen law, log p_k(value), in nats."""
        axis = jnp.ndim(value) - self.event_dim - len(self.batch_shape)
        return self._of_index(self.laws.log_prob(jnp.expand_dims(value, axis)), 0)

    def _of_index(self, x: PyTree, event_dim: int) -> Array:
        """The entry of the chosen law in arrays [..., laws, *batch, *event]."""
        batch = len(self.batch_shape)
        axis = x.ndim - event_dim - batch - 1
        index = jnp.where(self.index < 0, x.shape[axis], self.index)  # not counted from the end
        index = index.reshape((1,) * (axis + 1) + index.shape + (1,) * event_dim)
        shape = (*x.shape[: axis + 1], *self.batch_shape, *x.shape[x.ndim - event_dim :])
        found = jnp.take_along_axis(jnp.broadcast_to(x, shape), index, axis)
        return jnp.squeeze(found, axis)
