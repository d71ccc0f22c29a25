"""The chains of a diffusion model as statements of programs: from noise to a point, and back from a point to noise.

Along t_0 > ... > t_N = s > 0, with a path x_0, ..., x_N and a point x,

    p(path, x) = Normal(x_0; 0, var_0) prod_n Normal(x_{n+1}; m(x_n), u_n) Normal(x; x_N / alpha_s, var_s / alpha_s^2),
    q(path | x) = Normal(x_N; alpha_s x, var_s) prod_n Normal(x_n; a_n x_{n+1}, tau_n),

m the mean of `ancestral`, u_n the variance of `_bound.py`, the rest the noising process. The first is a statement of a model, the
second one of its guide: both have exact densities, so that a program with them is one as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints

from ... import ppl
from ...inference.diffusion import Diffusion, Noising
from ...inference.diffusion._diffusion import reverse_step
from ...ppl._checks import check_event
from ...ppl._types import Key
from ._grid import check_chain, check_data_variance, known_memory, point_shape, reverse_variance

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
Models = Diffusion | Callable[[Any], Diffusion]


class ReverseChain(dist.Distribution):
    """Paths x_0, ..., x_N from noise towards a point, [steps + 1, *shape]; made by `reverse_chain`.

    Args:
        diffusion: the model, or a function of one row's context that returns it.
        times: the grid, checked.
        context: arrays with one leading axis, the batch shape; None: one model and no batch shape.
        data_variance: of the steps' variances.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("times", "context", "data_variance")
    pytree_aux_fields = ("diffusion", "noising")

    def __init__(
        self, diffusion: Models, times: Array, context: PyTree = None, data_variance: object = 1.0
    ) -> None:
        self.diffusion, self.times, self.context = diffusion, times, context
        self.data_variance = data_variance
        model = self.model_of(jax.tree.map(lambda c: c[0], context))
        self.noising = model.noising
        batch_shape = () if context is None else (len(jax.tree.leaves(context)[0]),)
        super().__init__(batch_shape, (len(times), *model.shape))

    @property
    def start_memory(self) -> float | None:
        """How much of a path's start is left at its end, see `memory`; None where the grid is not known."""
        return known_memory(self.noising, self.times, self.data_variance)

    def model_of(self, context: PyTree) -> Diffusion:
        """The model of one row."""
        return self.diffusion if isinstance(self.diffusion, Diffusion) else self.diffusion(context)

    @constraints.dependent_property(is_discrete=False, event_dim=None)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All paths."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Step by step."""
        keys = jax.random.split(key, (math.prod(sample_shape), *self.batch_shape))
        found = self._over(
            lambda model, key: draw_path(model, self.times, key, self.data_variance), keys
        )
        return found.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """The sum over the steps; a derivative computes each again, so that its memory does not grow with their number."""
        check_event("reverse_chain: a path", value, self.event_shape)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        batch = jnp.broadcast_shapes(batch, self.batch_shape)
        value = jnp.broadcast_to(value, (*batch, *self.event_shape))
        lead = math.prod(batch[: len(batch) - len(self.batch_shape)])
        paths = value.reshape(lead, *self.batch_shape, *self.event_shape)
        return self._over(
            lambda m, path: log_path(m, self.times, path, self.data_variance), paths
        ).reshape(batch)

    def _over(self, one: Callable[[Diffusion, Array], Array], values: Array) -> Array:
        """Over draws, and over rows with a context."""
        if self.context is None:
            return jax.vmap(lambda value: one(self.model_of(None), value))(values)
        rows = jax.vmap(lambda context, value: one(self.model_of(context), value))
        return jax.vmap(rows, (None, 0))(self.context, values)


class NoisingChain(dist.Distribution):
    """Paths from a point to noise, in the order of `ReverseChain`, [steps + 1, *shape]; made by `noising_chain`.

    In y = x / alpha they are a Brownian motion that starts at the point, of the variance variance(t) / alpha(t)^2.

    Args:
        point: where they begin, [*batch, *shape].
        noising: the process.
        times: the grid, checked.
        event_dim: number of axes of a point.
    """

    arg_constraints = {"point": constraints.real}
    reparametrized_params = ["point"]
    pytree_data_fields = ("point", "times")
    pytree_aux_fields = ("noising",)

    def __init__(self, point: Array, noising: Noising, times: Array, event_dim: int) -> None:
        self.point, self.noising, self.times = point, noising, times
        num_batch = point.ndim - event_dim
        shape = point.shape[num_batch:]
        super().__init__(point.shape[:num_batch], (len(times), *shape))

    @constraints.dependent_property(is_discrete=False, event_dim=None)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All paths."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Sums of independent increments."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        alpha, steps = self._scales()
        eps = jax.random.normal(key, shape, self.point.dtype)
        axis = len(shape) - len(self.event_shape)
        moved = jnp.cumsum(jnp.flip(eps * steps, axis), axis)  # from the point on
        return alpha * (jnp.expand_dims(self.point, len(self.batch_shape)) + jnp.flip(moved, axis))

    def log_prob(self, value: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """The sum over the steps."""
        check_event("noising_chain: a path", value, self.event_shape)
        alpha, steps = self._scales()
        y = value / alpha
        before = jnp.expand_dims(self.point, len(self.batch_shape))
        axis = value.ndim - len(self.event_shape)
        before = jnp.broadcast_to(before, (*value.shape[:axis], 1, *self.event_shape[1:]))
        nearer = jnp.concatenate([jax.lax.slice_in_dim(y, 1, None, axis=axis), before], axis)
        each = -0.5 * jnp.square((y - nearer) / steps) - jnp.log(steps * alpha) - HALF_LOG_2_PI
        return each.sum(tuple(range(axis, value.ndim)))

    def _scales(self) -> tuple[Array, Array]:
        """Alpha, and the standard deviations of the increments of y, at each time, with axes for the point."""
        wide = lambda a: a.reshape(-1, *(1 for _ in self.event_shape[1:]))
        alpha = jax.vmap(self.noising.alpha)(self.times)
        variance = jax.vmap(self.noising.variance)(self.times) / alpha**2
        return wide(alpha), wide(jnp.sqrt(variance - jnp.append(variance[1:], 0.0)))


def reverse_chain(
    name: str, diffusion: Models, times: Float[Array, " steps+1"], *, context: PyTree = None,
    data_variance: Float[Array, "*shape"] | float = 1.0,
) -> Array:  # fmt: skip
    """Draw a point of a diffusion model within a program: sites for its path from noise, `<name>_path`, and for itself, `name`.

    Args:
        name: of the site of the point.
        diffusion: the model; its network may be a `ppl.module` of the program. With `context`, a function of one row's context
            that returns it.
        times: descending, from about the process's end to s > 0, e.g. `noising.log_snr_times(20)`.
        context: any tree of arrays whose leading axis is that of the plate around the statement.
        data_variance: of the variances of the steps, a number >= 0 or one for each coordinate: for data Normal(0, data_variance)
            the chain is exact on any grid. It may be a parameter: `ppl.param("l", 1.0, constraint=constraints.positive)`.

    Returns:
        The point, of the shape of the model's points, with the axes of plates before.

    Raises:
        ValueError: as `bound`.

    Validity: the law of the point is that of the chain on this grid, which tends to the reverse diffusion; for any score.

    A guide draws the point first, then `noising_chain` with the same name and times. Their log-ratio is that of the chain, whose
    mean `bound(times=)` estimates: `elbo`, `iwelbo`, `smc`, `ppl.marginal` and `ppl.normalize` take the program as any other.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP()
        >>> times, prior = noising.log_snr_times(20), diffusion.gaussian_mixture(noising, [1.0], [[0.0]], 1.0)
        >>> def model(y):
        ...     z = diffusion.reverse_chain("z", prior, times)
        ...     ppl.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)
        >>> def guide(y):
        ...     z = ppl.sample("z", dist.Normal(y / 2, 0.5**0.5).to_event(1))
        ...     diffusion.noising_chain("z", z, noising, times)
        >>> bound = inference.elbo(model, guide, num_replicates=500).value({}, jax.random.key(0), jax.numpy.array([1.0]))
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(1.0)
        >>> print(f"{bound:.2f} of {exact:.2f}")  # the guide is the posterior, and the chain exact for this prior
        -1.52 of -1.52

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239; Kingma et al. 2021, arXiv:2107.00630.
    """
    model = diffusion
    if not isinstance(model, Diffusion):
        model = model(jax.tree.map(lambda c: jnp.asarray(c)[0], context))
    point_shape(f"reverse_chain('{name}')", model)
    times = check_chain(f"reverse_chain('{name}')", model.noising, times)
    check_data_variance(f"reverse_chain('{name}')", data_variance, model.shape)
    path = ppl.sample(f"{name}_path", ReverseChain(diffusion, times, context, data_variance))
    mean, scale = last_step(model.noising, times[-1])
    ndim = len(model.shape)
    last = jax.lax.index_in_dim(path, -1, path.ndim - ndim - 1, keepdims=False)
    return ppl.sample(name, dist.Normal(mean * last, scale).to_event(ndim))


def noising_chain(
    name: str, point: Float[Array, "*shape"], noising: Noising, times: Array, *, event_dim: int = 1
) -> Array:  # fmt: skip
    """In a guide: the path of `reverse_chain` given its point, drawn by the noising process; the site `<name>_path`.

    Args:
        name: that of the statement of the model.
        point: the point, drawn before by the guide.
        noising: the model's process.
        times: the model's grid.
        event_dim: number of axes of a point.

    Returns:
        The path, [*batch, steps + 1, *shape].

    Raises:
        ValueError: times that do not descend, or end without noise.

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239, equation 2.
    """
    times = check_chain(f"noising_chain('{name}')", noising, times)
    return ppl.sample(
        f"{name}_path", NoisingChain(jnp.asarray(point, float), noising, times, event_dim)
    )


def last_step(noising: Noising, s: Any) -> tuple[Array, Array]:
    """1 / alpha_s, and the standard deviation std_s / alpha_s."""
    alpha = noising.alpha(s)
    return 1 / alpha, noising.std(s) / alpha


def log_normal(x: Array, mean: Any, variance: Any) -> Array:
    """Log Normal(x; mean, variance I)."""
    each = jnp.square(x - mean) / variance + jnp.log(variance) + 2 * HALF_LOG_2_PI
    return -0.5 * jnp.sum(each)


def kernel(
    diffusion: Diffusion, x: Array, t: Array, s: Array, data_variance: object
) -> tuple[Array, Array]:
    """Mean and variance of the chain's step from x at t to s."""
    mean, _ = reverse_step(diffusion.noising, x, diffusion.score_at(x, t), t, s)
    return mean, reverse_variance(diffusion.noising, t, s, data_variance)[2]


def draw_path(diffusion: Diffusion, times: Array, key: Array, data_variance: object) -> Array:
    """A path of the reverse chain."""
    noising = diffusion.noising
    start_key, step_key = jax.random.split(key)
    first = noising.std(times[0]) * jax.random.normal(start_key, diffusion.shape)

    @jax.checkpoint
    def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        n, t, s = inputs
        mean, variance = kernel(diffusion, x, t, s, data_variance)
        noise = jax.random.normal(jax.random.fold_in(step_key, n), x.shape)
        x = mean + jnp.sqrt(variance) * noise
        return x, x

    numbers = jnp.arange(len(times) - 1)
    _, rest = jax.lax.scan(step, first, (numbers, times[:-1], times[1:]))
    return jnp.concatenate([first[None], rest])


def log_path(diffusion: Diffusion, times: Array, path: Array, data_variance: object) -> Array:
    """Log p(path)."""
    noising = diffusion.noising

    @jax.checkpoint
    def step(total: Array, inputs: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        x, then, t, s = inputs
        mean, variance = kernel(diffusion, x, t, s, data_variance)
        return total + log_normal(then, mean, variance), None

    first = log_normal(path[0], 0.0, noising.variance(times[0]))
    return jax.lax.scan(step, first, (path[:-1], path[1:], times[:-1], times[1:]))[0]
