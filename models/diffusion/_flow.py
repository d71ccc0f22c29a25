"""The probability flow: the differential equation whose marginals are those of the diffusion, and the likelihood it gives."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...inference.diffusion import Diffusion
from ...ppl._compat import typed_key


def flow_sample(
    diffusion: Diffusion,
    key: Array,
    *,
    num_samples: int,
    until: float = 1e-3,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 4096,
) -> Float[Array, " samples *shape"]:
    """Points at the time `until`, by the flow dx/dt = a x - g2 score / 2 from draws of `diffusion.prior()` at the process's end.

    Args:
        diffusion: the model.
        key: PRNG key.
        num_samples: number of points; each has its own step sizes.
        until: time at which the flow ends.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        max_steps: most steps of the solver.

    Raises:
        ImportError: without diffrax (`pip install lapilli[ode]`).

    Reference: Song et al. 2021, arXiv:2011.13456, equation 13.
    """
    start = diffusion.prior().sample(typed_key(key), (num_samples,))
    solve = lambda x: _solve(
        lambda t, x: _velocity(diffusion, x, t), x, (diffusion.noising.end, until), rtol, atol, max_steps
    )  # fmt: skip
    return jax.vmap(solve)(start)


def flow_log_likelihood(
    diffusion: Diffusion,
    x: Float[Array, " samples *shape"],
    *,
    at: float = 1e-3,
    divergence: Literal["exact", "hutchinson"] = "exact",
    num_probes: int = 1,
    key: Array | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 4096,
) -> Float[Array, " samples"]:
    """Log density, in nats, of points under the flow that ends at the time `at`.

        log p(x) = log Normal(x_end; 0, variance(end)) + int div(dx/dt) dt, along the flow from x to x_end.

    Args:
        diffusion: the model.
        x: points at the time `at`.
        at: time of the points.
        divergence: "exact" takes one derivative for each coordinate; "hutchinson" the mean of e . (d velocity / dx) e over
            `num_probes` sign vectors e, which stay fixed along the flow.
        num_probes: number of sign vectors.
        key: PRNG key, for "hutchinson".
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        max_steps: most steps of the solver.

    Raises:
        ImportError: without diffrax (`pip install lapilli[ode]`).
        ValueError: an unknown divergence; "hutchinson" without a key.

    Validity: "exact": up to the solver's tolerance the density of what `flow_sample` draws, which is that of the model at
    `at` if the score is true and the marginal at the end is Normal. "hutchinson": unbiased for this log-density, not for
    the density.

    Reference: Song et al. 2021, arXiv:2011.13456, equation 39; Grathwohl et al. 2019, arXiv:1810.01367 (Hutchinson).
    """
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(
            f"flow_log_likelihood: divergence must be 'exact' or 'hutchinson', got {divergence!r}."
        )
    if divergence == "hutchinson" and key is None:
        raise ValueError("flow_log_likelihood: divergence='hutchinson' is random. Give a key.")
    x = jnp.asarray(x, float)
    size = max(1, x[0].size)
    eye = jnp.eye(size).reshape(size, *x.shape[1:])

    def one(x: Array, probes: Array) -> Array:
        def rates(t: Array, state: PyTree) -> PyTree:
            velocity = lambda x: _velocity(diffusion, x, t)
            along = lambda e: jnp.sum(e * jax.jvp(velocity, (state[0],), (e,))[1])
            traces = jax.vmap(along)(probes)
            return velocity(state[0]), traces.sum() if divergence == "exact" else traces.mean()

        span = (at, diffusion.noising.end)
        last, total = _solve(rates, (x, jnp.zeros(())), span, rtol, atol, max_steps)
        return diffusion.prior().log_prob(last) + total

    if divergence == "exact":
        return jax.vmap(one, (0, None))(x, eye)
    shape = (len(x), num_probes, *x.shape[1:])
    return jax.vmap(one)(x, jax.random.rademacher(typed_key(key), shape, x.dtype))


def _velocity(diffusion: Diffusion, x: Array, t: Array) -> Array:
    noising = diffusion.noising
    return noising.drift(t) * x - 0.5 * noising.g2(t) * diffusion.score(x, t)


def _solve(
    rates: Any, state: PyTree, span: tuple[float, float], rtol: float, atol: float, max_steps: int
) -> Any:
    try:
        import diffrax
    except ImportError as err:
        raise ImportError(
            "The probability flow is solved by diffrax. Install it: pip install lapilli[ode]."
        ) from err
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: rates(t, y)),
        diffrax.Dopri5(),
        *span,
        dt0=None,
        y0=state,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
    )
    return jax.tree.map(lambda y: y[-1], solution.ys)
