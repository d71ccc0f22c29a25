"""The default laws of what is learned: a conditional density, and a critic.

Both begin at the answer for normal laws, which least squares has in closed form: the density as the Normal whose mean is linear
in its context, the critic as the quadratic form that is the log-ratio of Normals with the rows' covariance. Networks, zero at
first, add what is not of that kind. Without such a start they fit noise before the linear part has come anywhere: in ten
dimensions, with 10,000 rows, the difference is a quarter of a nat.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from ...ppl._precision import full_precision
from ...ppl._types import Key
from ..flows import NeuralSplineFlow, least_squares, with_zeros_last

_FULL_UP_TO = 6  # coordinates whose correlations move with the context; of more they are constant
_RIDGE = 1e-3  # of the rows' number, in units of the coordinates
_LEAST_SD = 1e-3  # of what least squares leaves
_CLIP = 5.0  # standard deviations: the linear part follows the context so far
_LARGEST_LOG_SCALE = 8.0


class TriangularMap(Transform):
    """y = loc + M^-1 x with M = diag(exp(log_diagonal)) (1 + lower), `lower` strictly lower triangular.

    The density of a given y, which training asks for, costs one product; a draw solves a triangular system.

    Args:
        loc: [*batch, d].
        log_diagonal: [*batch, d].
        lower: [*batch, d, d], whose strictly lower triangle is read.
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, loc: Array, log_diagonal: Array, lower: Array) -> None:
        self.loc, self.log_diagonal, self.lower = loc, log_diagonal, lower

    @full_precision
    def __call__(self, x: Array) -> Array:
        right = x * jnp.exp(-self.log_diagonal)
        unit = jnp.tril(self.lower, -1) + jnp.eye(x.shape[-1])
        shape = jnp.broadcast_shapes(right.shape, unit.shape[:-1])
        unit = jnp.broadcast_to(unit, (*shape, shape[-1]))
        solve = lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True, unit_diagonal=True)
        return self.loc + jnp.vectorize(solve, signature="(i,j),(j)->(i)")(
            unit, jnp.broadcast_to(right, shape)
        )

    @full_precision
    def _inverse(self, y: Array) -> Array:
        centred = y - self.loc
        mixed = centred + (jnp.tril(self.lower, -1) * centred[..., None, :]).sum(-1)
        return mixed * jnp.exp(self.log_diagonal)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """-sum log diagonal, [*batch]."""
        shape = jnp.broadcast_shapes(jnp.shape(x)[:-1], self.log_diagonal.shape[:-1])
        return jnp.broadcast_to(-self.log_diagonal.sum(-1), shape)

    def tree_flatten(self) -> PyTree:
        """Arrays and structure, as of NumPyro's transforms."""
        names = ("loc", "log_diagonal", "lower")
        return (self.loc, self.log_diagonal, self.lower), (names, {})


class ConditionalFlow(eqx.Module):
    """A law on R^d given a context in R^c: a spline flow, then an affine map that moves with the context.

    Where the context has length 0 the law is one. It begins as the standard Normal; `fitted` as the Normal of least squares.

    Args:
        size: d.
        context_size: c.
        key: PRNG key of the networks.
        width: of hidden layers.
        num_layers: spline couplings; a single coordinate has one.
        num_bins: of a spline.

    Attributes:
        flow: the spline couplings.
        net: what the context adds to location and scale, beside the linear part.
        weight, bias: the linear part of the location, [d, c] and [d].
        log_diagonal, lower: of the affine map, see `TriangularMap`.
    """

    flow: NeuralSplineFlow
    net: eqx.nn.MLP
    weight: Array
    bias: Array
    log_diagonal: Array
    lower: Array
    size: int = eqx.field(static=True)

    def __init__(
        self, size: int, context_size: int, *, key: Key, width: int = 64, num_layers: int = 4,
        num_bins: int = 8,
    ) -> None:  # fmt: skip
        flow_key, net_key = jax.random.split(key)
        self.size = size
        self.flow = NeuralSplineFlow(
            size, key=flow_key, context_size=context_size, num_bins=num_bins, width=width,
            num_layers=num_layers if size > 1 else 1,
        )  # fmt: skip
        moving = size * size if size <= _FULL_UP_TO else 0
        self.net = with_zeros_last(
            eqx.nn.MLP(max(context_size, 1), 2 * size + moving, width, 2, jax.nn.silu, key=net_key)
        )
        self.weight, self.bias = jnp.zeros((size, context_size)), jnp.zeros(size)
        self.log_diagonal, self.lower = jnp.zeros(size), jnp.zeros((size, size))

    def fitted(self, context: np.ndarray, values: np.ndarray) -> ConditionalFlow:
        """The flow that is the Normal of least squares, given rows of contexts [N, c] and of values [N, d]."""
        seen = np.clip(np.asarray(context, float), -_CLIP, _CLIP)
        slopes, left = least_squares(seen, np.asarray(values, float))
        covariance = left.T @ left / len(left) + _LEAST_SD**2 * np.eye(left.shape[1])
        whitening = np.linalg.inv(
            np.linalg.cholesky(covariance)
        )  # diag(exp(log_diagonal)) (1 + lower)
        diagonal = np.diag(whitening)
        new = (
            slopes[:-1].T,
            slopes[-1],
            np.log(diagonal),
            np.tril(whitening / diagonal[:, None], -1),
        )
        old = lambda flow: (flow.weight, flow.bias, flow.log_diagonal, flow.lower)
        return eqx.tree_at(old, self, tuple(jnp.asarray(x, self.bias.dtype) for x in new))

    @full_precision
    def law(
        self, context: Float[Array, "*batch c"], seen: Float[Array, "*batch c"] | None = None
    ) -> dist.Distribution:
        """The distribution, of batch shape that of the context, event shape (d,).

        Args:
            context: what the linear part sees.
            seen: what networks see of it; default on a logarithmic scale far out, where normal data hardly bend.
        """
        batch = jnp.shape(context)[:-1]
        seen = jnp.arcsinh(context) if seen is None else seen
        out = jnp.vectorize(self.net, signature="(i)->(o)")(
            seen if seen.shape[-1] else jnp.ones((*batch, 1))
        )
        shift, scale, rest = jnp.split(out, [self.size, 2 * self.size], -1)
        linear = (self.weight * jnp.clip(context, -_CLIP, _CLIP)[..., None, :]).sum(-1)
        lower = jnp.broadcast_to(self.lower, (*batch, self.size, self.size))
        if rest.shape[-1]:
            lower = lower + rest.reshape(lower.shape)
        log_diagonal = self.log_diagonal + _LARGEST_LOG_SCALE * jnp.tanh(scale / _LARGEST_LOG_SCALE)
        last = TriangularMap(self.bias + linear + shift, log_diagonal, lower)
        base = dist.Normal(jnp.zeros((*batch, self.size)), 1.0).to_event(1)
        couplings = self.flow.couplings(seen if seen.shape[-1] else None)
        return dist.TransformedDistribution(base, [*couplings, last])


class Critic(eqx.Module):
    """A quadratic form in parameters and data side by side, and a network, zero at first.

    Args:
        num_parameters: p.
        num_data: d.
        key: PRNG key.
        width: of hidden layers, of which there are three.
    """

    net: eqx.nn.MLP
    quadratic: Array
    linear: Array
    constant: Array

    def __init__(self, num_parameters: int, num_data: int, *, key: Key, width: int = 64) -> None:
        size = num_parameters + num_data
        self.net = with_zeros_last(eqx.nn.MLP(size, 1, width, 3, jax.nn.silu, key=key))
        self.quadratic, self.linear = jnp.zeros((size, size)), jnp.zeros(size)
        self.constant = jnp.zeros(())

    def fitted(self, parameters: np.ndarray, data: np.ndarray) -> Critic:
        """The critic that is the log-ratio of Normals with the covariance of these rows, [N, p] and [N, d]."""
        both = np.clip(np.concatenate([parameters, data], 1).astype(float), -_CLIP, _CLIP)
        mean, size = both.mean(0), np.shape(parameters)[1]
        joint = np.cov(both.T).reshape(len(mean), -1) + _RIDGE * np.eye(len(mean))
        apart = joint.copy()
        apart[:size, size:] = apart[size:, :size] = 0.0
        form = (np.linalg.inv(apart) - np.linalg.inv(joint)) / 2
        constant = (np.linalg.slogdet(apart)[1] - np.linalg.slogdet(joint)[1]) / 2
        new = (form, -2 * form @ mean, constant + mean @ form @ mean)
        old = lambda critic: (critic.quadratic, critic.linear, critic.constant)
        return eqx.tree_at(old, self, tuple(jnp.asarray(x, self.linear.dtype) for x in new))

    @full_precision
    def __call__(self, parameters: Array, data: Array, /) -> Array:
        both = jnp.concatenate([parameters, data])
        clipped = jnp.clip(both, -_CLIP, _CLIP)
        form = (self.quadratic * clipped[:, None] * clipped).sum() + (self.linear * clipped).sum()
        return form + self.constant + self.net(jnp.arcsinh(both))[0]
