"""The probability flow: the differential equation whose marginals are those of the diffusion, and the likelihood it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...inference.diffusion import Diffusion
from ...inference.diffusion._diffusion import check_array
from ...ppl._checks import check_counts
from ...ppl._compat import is_concrete, typed_key
from .._ode import Tolerance, followed, solve


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
        ValueError: a time outside of the process, a model of trees, or a score of another shape than its point.

    Reference: Song et al. 2021, arXiv:2011.13456, equation 13.
    """
    check_array("flow_sample", diffusion)
    check_counts("flow_sample", num_samples=num_samples)
    _check_time("flow_sample", diffusion, until=until)
    start = diffusion.prior().sample(typed_key(key), (num_samples,))
    span, tolerance = (diffusion.noising.end, until), Tolerance(rtol, atol, max_steps)
    return jax.vmap(lambda x: solve(_velocity(diffusion), x, span, tolerance))(start)


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
        ValueError: an unknown divergence; "hutchinson" without a key; a time outside of the process; x that is no rows of points.

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
    check_counts("flow_log_likelihood", num_probes=num_probes)
    x = _rows(diffusion, x)
    _check_time("flow_log_likelihood", diffusion, at=at)
    span, tolerance = (at, diffusion.noising.end), Tolerance(rtol, atol, max_steps)

    def one(x: Array, probes: Array | None) -> Array:
        last, total = followed(_velocity(diffusion), x, span, tolerance, probes)
        return diffusion.prior().log_prob(last) + total

    if divergence == "exact":
        return jax.vmap(lambda x: one(x, None))(x)
    shape = (len(x), num_probes, *x.shape[1:])
    return jax.vmap(one)(x, jax.random.rademacher(typed_key(key), shape, x.dtype))


def _check_time(name: str, diffusion: Diffusion, **times: float) -> None:
    """Refuse a known time outside of the process, where no score was learned."""
    for option, t in times.items():
        end = diffusion.noising.end
        if is_concrete((t, end)) and not 0 <= t <= end:
            raise ValueError(
                f"{name}: {option}={t:g} must lie in [0, {end:g}], the times of the process. Use a small time, e.g. 1e-3."
            )


def _rows(diffusion: Diffusion, x: Array) -> Array:
    """The points, [samples, *shape]."""
    shape, found = check_array("flow_log_likelihood", diffusion), jnp.shape(x)
    if found[1:] != shape or not found:
        raise ValueError(
            f"flow_log_likelihood: x has shape {found}, and rows of points of shape {shape} are wanted. Reshape x to "
            f"[samples, *{shape}], one point to x[None]."
        )
    return jnp.asarray(x, float)


def _velocity(diffusion: Diffusion) -> Callable[[Array, Array], Array]:
    """`(t, x) -> dx/dt` of the flow."""
    noising = diffusion.noising
    return lambda t, x: noising.drift(t) * x - 0.5 * noising.g2(t) * diffusion.score_at(x, t)
