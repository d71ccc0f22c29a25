"""Householder flows: normals whose covariance is turned by reflections."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from ...inference.flows import affine, check_context, with_zeros_last
from ...ppl._types import Key


class Reflections(Transform):
    """Reflections one after another, x -> H_K ... H_1 x with H_k = 1 - 2 v_k v_k' / v_k'v_k. A NumPyro transform on R^d.

    Orthogonal, so that its log-determinant is 0; the inverse takes the same reflections in reverse.

    Args:
        vectors: v_1, ..., v_K, of shape (*batch, K, d). Their lengths have no say; one of length 0 reflects nothing.

    Raises:
        ValueError: `vectors` has fewer than two axes.

    Reference: Householder 1958, J. ACM 5, 339; Tomczak and Welling 2016, arXiv:1611.09630.

    Example:
        >>> from lapilli.models import flows
        >>> import jax.numpy as jnp
        >>> turn = flows.Reflections(jnp.array([[1.0, 0.0], [1.0, -1.0]]))
        >>> turn(jnp.array([2.0, 3.0])).round().tolist()
        [3.0, -2.0]
    """

    domain = codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, vectors: Float[Array, "*batch reflections d"]) -> None:
        if jnp.ndim(vectors) < 2:
            raise ValueError(
                f"Reflections: vectors have shape {jnp.shape(vectors)}, and two axes are needed, (reflections, d), with batch "
                "axes before them. Give one vector as vectors[None]."
            )
        self.vectors = jnp.asarray(vectors)

    def __call__(self, x: Array) -> Array:
        return self._reflected(x, reverse=False)

    def _inverse(self, y: Array) -> Array:
        return self._reflected(y, reverse=True)

    def _reflected(self, x: Array, *, reverse: bool) -> Array:
        def reflect(x: Array, v: Array) -> tuple[Array, None]:
            square = (v**2).sum(-1, keepdims=True)
            # The divisor of a zero vector is made 1, so that its gradient is finite, too.
            along = (v * x).sum(-1, keepdims=True) / jnp.where(square > 0, square, 1.0)
            return x - 2 * along * v, None

        x = jnp.broadcast_to(x, self.forward_shape(jnp.shape(x)))
        x = x.astype(jnp.result_type(x, self.vectors))
        return jax.lax.scan(reflect, x, jnp.moveaxis(self.vectors, -2, 0), reverse=reverse)[0]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """0."""
        batch = jnp.broadcast_shapes(jnp.shape(x)[:-1], self.vectors.shape[:-2])
        return jnp.zeros(batch, jnp.result_type(x))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*jnp.broadcast_shapes(shape[:-1], self.vectors.shape[:-2]), shape[-1])

    inverse_shape = forward_shape

    def tree_flatten(self) -> tuple[tuple[Array], tuple[PyTree, PyTree]]:
        return (self.vectors,), (("vectors",), {})

    def eq(self, other: object, static: bool = False) -> Any:
        if not isinstance(other, Reflections):
            return False
        return True if static else jnp.array_equal(self.vectors, other.vectors)

    __eq__ = eq  # pyright: ignore[reportAssignmentType]

    def __hash__(self) -> int:
        return hash(Reflections)


class HouseholderFlow(eqx.Module):
    """A Normal on R^d whose axes are turned by K reflections: N(loc, Q diag(scale^2) Q'), Q = H_K ... H_1.

    A draw costs K d operations, and so does a density. With K = d - 1 the covariance may be any; with K = 0 coordinates are
    independent. It begins as the standard Normal, along axes that are turned at random.

    Args:
        size: d, at least 1.
        key: PRNG key of the vectors and the network.
        context_size: c, the length of the context, of which a network makes location, scale and vectors; 0 for none: the three
            are parameters themselves.
        num_reflections: K; default d - 1.
        width: of the network's hidden layers, of which there are `depth`.
        depth: see `width`.

    Attributes:
        numbers: location, logarithm of the scale, and vectors, those at the context where the network gives 0; [(2 + K) d].
        net: what the context adds to them, None without a context.

    Raises:
        ValueError: there is no coordinate, or K is negative.

    Example:
        >>> from lapilli.models import flows
        >>> import jax
        >>> flow = flows.HouseholderFlow(3, key=jax.random.key(0), context_size=5)
        >>> flow.law(jax.numpy.ones((10, 5))).batch_shape
        (10,)

    Reference: Tomczak and Welling 2016, arXiv:1611.09630, who turn the location as well, by vectors of which each is made of the
    one before.
    """

    numbers: Array
    net: eqx.nn.MLP | None
    size: int = eqx.field(static=True)
    context_size: int = eqx.field(static=True)
    num_reflections: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        key: Key,
        context_size: int = 0,
        num_reflections: int | None = None,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        num_reflections = size - 1 if num_reflections is None else num_reflections
        if size < 1 or num_reflections < 0:
            raise ValueError(
                f"HouseholderFlow: size {size} and num_reflections {num_reflections} are impossible. Ask for one coordinate or "
                "more, and for no reflections or more."
            )
        self.size, self.context_size, self.num_reflections = size, context_size, num_reflections
        vector_key, net_key = jax.random.split(key)
        vectors = jax.random.normal(vector_key, (num_reflections * size,))
        self.numbers = jnp.concatenate([jnp.zeros(2 * size), vectors])
        self.net = None
        if context_size:
            net = eqx.nn.MLP(
                context_size, len(self.numbers), width, depth, jax.nn.tanh, key=net_key
            )
            self.net = with_zeros_last(net)

    def law(self, context: Float[Array, "*batch context"] | None = None) -> dist.Distribution:
        """The distribution, of batch shape that of the context, event shape (d,).

        Raises:
            ValueError: the context has another length than `context_size`.
        """
        check_context(self, context)
        numbers = self.numbers
        if self.net is not None:
            numbers = numbers + jnp.vectorize(self.net, signature="(i)->(o)")(context)
        loc, log_scale, vectors = jnp.split(numbers, [self.size, 2 * self.size], -1)
        zeros = jnp.zeros_like(loc)
        steps = [affine(zeros, jnp.exp(log_scale)), affine(loc, jnp.ones_like(loc))]
        if self.num_reflections:
            shape = (*vectors.shape[:-1], self.num_reflections, self.size)
            steps.insert(1, Reflections(vectors.reshape(shape)))
        return dist.TransformedDistribution(dist.Normal(zeros, 1.0).to_event(1), steps)
