"""Objectives E_q[f(w)] for convex f: f-divergences from the posterior, which bound a function of the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ModelFn
from ...ppl.densities import log_mean_exp
from ...ppl.traces import Inclusion
from ._factory import objective, recreated
from ._objective import Objective
from ._row_weights import particle_weights

Array = jax.Array


def _finite(log_u: Array) -> Array:
    """Bounded below, for the sake of 0 log 0 = 0."""
    return jnp.maximum(log_u, -1e4)


def _forward_kl(log_u: Array) -> Array:
    return _finite(log_u) * jnp.exp(log_u)


def _jensen_shannon(log_u: Array) -> Array:
    # (u log u - (1 + u) log((1 + u) / 2)) / 2 without the difference of large numbers.
    log_u = _finite(log_u)
    ours = jnp.exp(log_u) * (jnp.log(2.0) - jax.nn.softplus(-log_u))
    return (ours - (jax.nn.softplus(log_u) - jnp.log(2.0))) / 2


GENERATORS: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": lambda log_u: -log_u,
    "forward_kl": _forward_kl,
    "chi2": lambda log_u: jnp.expm1(2 * log_u),
    "hellinger": lambda log_u: -2 * jnp.expm1(log_u / 2),
    "jensen_shannon": _jensen_shannon,
    "total_variation": lambda log_u: jnp.abs(jnp.expm1(log_u)) / 2,
}

# What q cannot reach counts in D_f, except where f loses nothing by it: f(u) / u tends to 0, or log u forbids the contrary.
_SUPPORTS: dict[str, tuple[Inclusion, ...]] = {"reverse_kl": ("inside",), "hellinger": ()}


@recreated
def f_divergence(
    model: ModelFn,
    guide: ModelFn,
    *,
    f: str | Callable[[Array], Array],
    log_scale: float = 0.0,
    num_particles: int = 1,
    per: str = "joint",
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """E[f(1/(K c) sum_k w_k)] (minimised), f convex, w_k = p(x, z_k) / q(z_k), z_k iid from q, c = exp(`log_scale`).

    By Jensen it is at least f(p(x) / c), reached at q = the posterior for every c, and falls with K. For K = 1 and c = p(x) it is
    the f-divergence D_f(p(z | x) || q) = E_q[f(p(z | x) / q(z))], provided f(1) = 0.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q; `ppl.marginal` and `ppl.normalize` too.
        f: "reverse_kl" -log u, "forward_kl" u log u, "chi2" u^2 - 1, "hellinger" 2 - 2 sqrt(u), "jensen_shannon",
            "total_variation" |u - 1| / 2; or a function of **log u**, elementwise. u f(1/u) exchanges the arguments of D_f.
        log_scale: log c (nats); a guess of log p(x) keeps u near 1. With `per` a plate, of every row.
        num_particles: K.
        per: "joint", "plate" or a plate's name: the sum over rows of the rows' values; see `iwelbo`.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: an unknown name; f is not convex (seen on a grid from u = e^-6 to e^6); the refusals of `iwelbo`.

    Validity: value and gradient are unbiased at every K, under every strategy. The variance is infinite where f grows faster than
    q's tails allow (as for `chi`). Where densities are estimated, p-hat and 1/q-hat are unbiased, and the value is still at least
    f(p(x) / c).

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> def model():
        ...     z = ppl.sample("z", dist.Bernoulli(0.5))
        ...     ppl.sample("x", dist.Bernoulli(0.2 + 0.6 * z), obs=1)
        >>> def posterior():
        ...     ppl.sample("z", dist.Bernoulli(0.8))
        >>> log_evidence = jax.numpy.log(0.5)
        >>> loss = inference.f_divergence(model, posterior, f="hellinger", log_scale=log_evidence, strategies="enum")
        >>> round(abs(float(loss.value({}, jax.random.key(0)))), 4)
        0.0

    Reference: Wan, Li and Hovakimyan 2020, arXiv:2009.13093 (bounds by f); Csiszar 1967.
    """
    check_counts("f_divergence", num_particles=num_particles)
    generator = _generator(f)
    supports = _SUPPORTS.get(f, ("covers",)) if isinstance(f, str) else ("covers",)

    @objective(direction="min", weighing="refused")
    def f_divergence(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        log_weights, scale = particle_weights(
            model, guide, args, num_particles, per, supports=supports
        )
        return jnp.sum(scale * generator(log_mean_exp(log_weights) - log_scale))

    return f_divergence(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )


def _generator(f: Any) -> Callable[[Array], Array]:
    if isinstance(f, str):
        if f not in GENERATORS:
            raise ValueError(
                f"f_divergence: f is {f!r}; choose from {list(GENERATORS)}, or give a function of log u."
            )
        return GENERATORS[f]
    _check_convex(f)
    return f


def _check_convex(f: Callable[[Array], Array]) -> None:
    """Secants of a convex function rise; the grid is coarse, so that rounding does not count."""
    log_u = np.linspace(-6, 6, 25)
    with jax.ensure_compile_time_eval():
        values = np.asarray(f(jnp.asarray(log_u, float)), float)
    if values.shape != log_u.shape:
        raise ValueError(
            f"f_divergence: f maps an array of log u of shape {log_u.shape} to shape {values.shape}. Write it elementwise."
        )
    slopes = np.diff(values) / np.diff(np.exp(log_u))
    falls = np.diff(slopes) < -1e-3 * (np.abs(slopes[1:]) + np.abs(slopes[:-1]))
    if falls.any() or np.isnan(values).any():
        u = np.exp(log_u[1:-1])[falls]
        is_nan = np.isnan(values).any()
        where = "it is not a number somewhere" if is_nan else f"near u = {u[0]:.3g}"
        raise ValueError(
            f"f_divergence: f is not convex in u ({where}), so its mean is no divergence and no bound. Give a convex f, as a "
            "function of log u, e.g. lambda log_u: -log_u; any other cost can be written with inference.objective."
        )
