"""A categorical law on one-hot rows, which NumPyro lacks and relaxed estimators need."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from .._types import Key


class OneHotCategorical(dist.Distribution):
    """P(x = e_k) = softmax(logits)_k for the unit vectors e_k.

    Args:
        logits: unnormalised log-probabilities, shape [*batch, classes].

    Validity: the log-density is extended linearly to the simplex, sum_k x_k log p_k, so that relaxed values have one; only
    at the unit vectors is it a log-probability.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.simplex  # pyright: ignore[reportAssignmentType]
    has_enumerate_support = True

    def __init__(
        self, logits: Float[Array, "*batch classes"], *, validate_args: bool | None = None
    ) -> None:
        self.logits = logits
        super().__init__(
            jnp.shape(logits)[:-1], jnp.shape(logits)[-1:], validate_args=validate_args
        )

    @property
    def probs(self) -> Array:
        """softmax(logits)."""
        return jax.nn.softmax(self.logits)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Unit vectors, shape [*sample_shape, *batch, classes]."""
        shape = (*sample_shape, *self.batch_shape)
        k = jax.random.categorical(key, self.logits, shape=shape)
        return jax.nn.one_hot(k, self.event_shape[0], dtype=jnp.result_type(float))

    def log_prob(self, value: Array) -> Array:
        """sum_k value_k log p_k, nats."""
        return (value * jax.nn.log_softmax(self.logits)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Array:
        """The unit vectors, shape [classes, *batch, classes], or [classes, 1, ..., classes] unexpanded."""
        n = self.event_shape[0]
        values = jnp.eye(n).reshape((n,) + (1,) * len(self.batch_shape) + (n,))
        return jnp.broadcast_to(values, (n, *self.batch_shape, n)) if expand else values
