"""The law at the end of a flow: draws along a differential equation, densities along the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ...ppl._checks import check_counts, check_event
from ...ppl._types import Key
from .._ode import Tolerance, followed, solve
from ._matching import VectorField


class FlowLaw(dist.Distribution):
    """The law of x_1 where x_0 has the law `start` and dx = velocity(t, x) dt from t = 0 to 1.

        log p(x_1) = log start(x_0) - int div velocity(t, x_t) dt, along the flow back from x_1 to x_0.

    A law like any other inside of a program: a guide, the prior of a code, a component. Draws are differentiable in the
    parameters of the velocity and of `start`.

    Args:
        velocity: `(t, x) -> dx/dt` of one point: that of a `Field`, or a network (an equinox module, so that its parameters are
            seen).
        start: law of x_0, its event the shape of a point.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.

    Validity: draws and densities up to the solver's tolerance; the divergence is exact and takes one derivative for each
    coordinate.

    Example:
        >>> import numpyro.distributions as dist
        >>> from lapilli.models import paths
        >>> law = paths.FlowLaw(lambda t, x: x, dist.Normal(jnp.zeros(2), 1.0).to_event(1))  # Normal(0, e)
        >>> round(float(law.log_prob(jnp.zeros(2))), 3)  # -log(2 pi) - 2
        -3.838

    Reference: Chen et al. 2018, arXiv:1806.07366; Grathwohl et al. 2019, arXiv:1810.01367.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("velocity", "start")
    pytree_aux_fields = ("tolerance",)

    def __init__(
        self, velocity: VectorField, start: dist.Distribution, *, rtol: float = 1e-4, atol: float = 1e-4,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self.velocity, self.start = as_tree(velocity), start
        self.tolerance = Tolerance(rtol, atol)
        super().__init__(start.batch_shape, start.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=None)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All points."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable: if those of `start` are."""
        return self.start.has_rsample

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape"]:
        """Draws of `start`, carried to t = 1."""
        forth = lambda x: solve(self.velocity, x, (0.0, 1.0), self.tolerance)
        return self._each(forth)(jnp.asarray(self.start.sample(key, sample_shape)))

    def log_prob(self, value: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Log density in nats."""
        check_event("FlowLaw: a point", value, self.event_shape)
        back = lambda x: followed(self.velocity, x, (1.0, 0.0), self.tolerance)
        x, total = self._each(back)(jnp.asarray(value, float))
        return self.start.log_prob(x) + total  # the integral runs back, so that its sign is turned

    def estimate_log_prob(
        self, x: Float[Array, " points *shape"], key: Key, *, num_probes: int = 1
    ) -> Float[Array, " points"]:
        """An unbiased estimate of the log-density of each point, at the cost of `num_probes` derivatives a step.

        The divergence is the mean of e . (d velocity / dx) e over sign vectors e, which stay fixed along the flow (Hutchinson).

        Args:
            x: the points.
            key: PRNG key.
            num_probes: number of sign vectors.

        Validity: unbiased for the log-density up to the solver's tolerance, and not for the density, which is overestimated.

        Reference: Grathwohl et al. 2019, arXiv:1810.01367, section 3.1.
        """
        check_counts("estimate_log_prob", num_probes=num_probes)
        x = jnp.asarray(x, float)
        check_event("estimate_log_prob: x", x, self.event_shape, is_rows=True)
        probes = jax.random.rademacher(key, (len(x), num_probes, *x.shape[1:]), x.dtype)

        def one(x: Array, probes: Array) -> Array:
            last, total = followed(self.velocity, x, (1.0, 0.0), self.tolerance, probes)
            return jnp.asarray(self.start.log_prob(last)) + total

        return jax.vmap(one)(x, probes)

    def _each(self, fn: Callable[[Array], Any]) -> Callable[[Array], Any]:
        """`fn`, of one point, for points with any leading axes."""

        def each(x: Array) -> Any:
            for _ in range(x.ndim - len(self.event_shape)):
                mapped.append(jax.vmap(mapped[-1]))
            return mapped[-1](x)

        mapped = [fn]
        return each


def as_tree(velocity: VectorField) -> VectorField:
    """A callable that is a pytree: itself, if it is one, or the function as a leafless tree."""
    return jax.tree_util.Partial(velocity) if jax.tree_util.all_leaves([velocity]) else velocity
