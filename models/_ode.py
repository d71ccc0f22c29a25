"""Ordinary differential equations, solved by diffrax, and the density that is carried along one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Tolerance(NamedTuple):
    """How exactly an equation is solved.

    Attributes:
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_steps: most steps of the solver.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 4096


def solve(
    rates: Callable[[Array, PyTree], PyTree], start: PyTree, span: tuple[float, float], tolerance: Tolerance
) -> Any:  # fmt: skip
    """The state at the end of a span of time, from `start` at its beginning, by Dormand and Prince's method of order 5.

    Raises:
        ImportError: without diffrax (`pip install lapilli[ode]`).
    """
    try:
        import diffrax
    except ImportError as err:
        raise ImportError(
            "A flow is solved by diffrax. Install it: pip install lapilli[ode]."
        ) from err
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: rates(jnp.asarray(t), y)),
        diffrax.Dopri5(),
        *span,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=tolerance.rtol, atol=tolerance.atol),
        max_steps=tolerance.max_steps,
    )
    return jax.tree.map(lambda y: y[-1], solution.ys)


def followed(
    velocity: Callable[[Array, Array], Array],
    x: Float[Array, "*shape"],
    span: tuple[float, float],
    tolerance: Tolerance,
    probes: Float[Array, " probes *shape"] | None = None,
) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    """The end of the flow dx = velocity(t, x) dt from x, and the integral of the divergence along it.

    Args:
        velocity: `(t, x) -> dx/dt` of one point.
        x: the point at the beginning of `span`.
        span: times.
        tolerance: of the solver.
        probes: sign vectors e, of which the mean of e . (d velocity / dx) e stands for the divergence (Hutchinson); by default
            all coordinates, and the divergence is exact.
    """
    size = max(1, x.size)
    directions = jnp.eye(size).reshape(size, *x.shape) if probes is None else probes

    def rates(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        at = lambda x: velocity(t, x)
        along = lambda e: jnp.sum(e * jax.jvp(at, (state[0],), (e,))[1])
        traces = jax.vmap(along)(directions)
        return at(state[0]), traces.sum() if probes is None else traces.mean()

    return solve(rates, (x, jnp.zeros(())), span, tolerance)
