"""Flow matching: regressions whose optimum is the velocity of a path, and its score; the field that a trained network is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from ... import ppl
from ...inference import Objective, objective
from ..diffusion._contexts import one_context, row_contexts
from ._couplings import Coupling, independent
from ._path import Interpolant, Path

# (t, x) -> a vector of the shape of x, for one point.
type VectorField = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Field:
    """What carries the law of x_0 along a path: the velocity b(t, x) = E[u | x_t = x], and what else is known of x_t.

    Args:
        velocity: `(t, x) -> b` of one point.
        score: `(t, x) -> grad log p_t`, of one point.
        log_density: `(t, x) -> log p_t`, in nats, of one point.
    """

    velocity: VectorField
    score: VectorField | None = None
    log_density: Callable[[Array, Array], Array] | None = None


def flow_matching(
    network: object,
    path: Path,
    *,
    start: dist.Distribution | None = None,
    coupling: Coupling = independent,
    is_paired: bool = False,
    drop_context: float = 0.1,
) -> Objective:
    """Flow matching as maximum likelihood of a regression, in nats.

        L = E_{t, ends, z} sum_n log Normal(u_n; network(x_n, t_n, context_n), 1)

    with x_n and u_n of `path` between rows x_0 and x_1. Times are drawn evenly, stratified over the rows of a batch. Along an
    interpolant with noise the network returns a pair, for u and for z, and each row is seen at z and -z, which cancels the part
    of u that grows without bound at the ends.

    Args:
        network: an equinox module, called as network(x, t, context) with one point, t in [0, 1] and a context as in
            `diffusion.MLP`.
        path: the path.
        start: law of x_0 for one point; by default x_0 is data, too.
        coupling: `independent`, `transport` or `entropic(noise)`, applied to each batch.
        is_paired: whether row n of x_0 belongs to row n of x_1 by data. Otherwise each step draws the rows of x_0 anew.
        drop_context: probability that a row's context is hidden.

    Returns:
        An objective of the arguments `(x_1, x_0, context)`, x_1 [rows, *shape] with the plate "rows", as for
        `fit(..., subsample={"rows": 128})`. x_0 [any number, *shape] is None where `start` is a law; the context is as for
        `diffusion.score_matching`. The parameter is "network".

    Raises:
        ValueError: no ends or two laws of one end; pairs with a coupling, or in unequal numbers; a context that the network does
            not take.

    Validity: unbiased for L. The optimum is b(t, x) = E[u | x_t = x] of the coupling of batches of this size.

    Reference: Lipman et al. 2023, arXiv:2210.02747, theorem 2; Tong et al. 2024, arXiv:2302.00482 (couplings of batches);
    Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, section 6 (z and -z).
    """
    if is_paired and (start is not None or coupling is not independent):
        raise ValueError(
            "flow_matching: pairs are given by data. Leave out start= and coupling=, or is_paired."
        )

    @ppl.model
    def regression(end: Array, begin: Array | None = None, context: PyTree = None) -> None:
        net, rows = ppl.module("network", network), end.shape[0]
        keys = jax.random.split(ppl.rng_key("path"), 5)
        begin = _starts(start, begin, end, is_paired, keys[0])
        begin = begin[coupling(keys[1], begin, end)]
        strata = (jnp.arange(rows) + jax.random.uniform(keys[2], (rows,))) / rows
        t = path.first + (path.last - path.first) * strata
        z = jax.random.normal(keys[3], end.shape)
        is_hidden = jax.random.uniform(keys[4], (rows,)) < drop_context
        seen = row_contexts("flow_matching", network, context, rows, is_hidden)
        for name, sign in (
            (("u", 1.0), ("u, other side", -1.0)) if path.has_noise else (("u", 1.0),)
        ):
            x, u = jax.vmap(path.at)(t, begin, end, sign * z)
            found = jax.vmap(net)(x, t, seen)
            targets = {name: (found, u)}
            if path.has_noise:
                targets = {name: (found[0], u), f"z of {name}": (found[1], sign * z)}
            with ppl.plate("rows", rows):
                for site, (mean, target) in targets.items():
                    ppl.sample(site, dist.Normal(mean, 1.0).to_event(end.ndim - 1), obs=target)

    @objective
    def flow_matching(model: ppl.Program, guide: None, *args: PyTree) -> Array:
        return ppl.draw(model, *args).log_density

    return flow_matching(regression)


def _starts(
    start: dist.Distribution | None, begin: Array | None, end: Array, is_paired: bool, key: Array
) -> Array:
    """A row of x_0 for each row of x_1."""
    if (start is None) == (begin is None):
        has = "neither start= nor rows of x_0" if begin is None else "both start= and rows of x_0"
        raise ValueError(f"flow_matching: {has} are given. Give one of them.")
    rows = len(end)
    if start is not None:
        found = jnp.asarray(start.sample(key, (rows,)))
    elif is_paired:
        found = jnp.asarray(begin)
    else:
        found = jnp.asarray(begin)[jax.random.randint(key, (rows,), 0, len(begin))]
    if found.shape != end.shape:
        raise ValueError(
            f"flow_matching: x_0 has shape {found.shape}, and x_1 {end.shape}. Both ends need points of one shape, and pairs "
            "one number of rows; a law of one vector is dist.Normal(zeros, 1).to_event(1)."
        )
    return found


def from_network(
    network: object, path: Path, *, params: PyTree = None, context: PyTree = None
) -> Field:
    """The field of a network that `flow_matching` trained.

    Its score is that of an interpolant with noise, -E[z | x_t] / gamma; for the one-sided path of a diffusion model see
    `normal_score`.

    Args:
        network: the network.
        path: the path of its training.
        params: `fit.params` of its training; the network's own values by default.
        context: of one point, None for the law over all contexts.

    Raises:
        ValueError: a context that the network does not take.
    """
    if params is not None:
        static = eqx.filter(network, eqx.is_inexact_array, inverse=True)
        network = eqx.combine(params["network"], static)
    seen = one_context("from_network", network, context)
    if not path.has_noise:
        return Field(lambda t, x: network(x, t, seen))
    gamma = path.gamma if isinstance(path, Interpolant) else None
    at = lambda t: jnp.clip(t, path.first, path.last)
    score = None if gamma is None else lambda t, x: -network(x, t, seen)[1] / gamma(at(t))
    return Field(lambda t, x: network(x, t, seen)[0], score)


def normal_score(velocity: VectorField, path: Interpolant) -> VectorField:
    """The score of x_t along an interpolant without noise whose x_0 is standard normal and independent of x_1.

        E[x_0 | x_t] = (beta' x - beta b) / (alpha beta' - alpha' beta),   score = -E[x_0 | x_t] / alpha.

    Args:
        velocity: `(t, x) -> b` of one point.
        path: the interpolant. At t = 1, where alpha is 0, the score has no value.

    Raises:
        ValueError: a path with noise, whose score `from_network` has.
    """
    if path.has_noise:
        raise ValueError(
            "normal_score: this path has noise of its own. Take the score of from_network."
        )

    def score(t: Array, x: Array) -> Array:
        t = jnp.asarray(t, float)
        (alpha, d_alpha), (beta, d_beta) = (
            jax.jvp(part, (t,), (jnp.ones_like(t),)) for part in (path.alpha, path.beta)
        )
        start = (d_beta * x - beta * velocity(t, x)) / (alpha * d_beta - d_alpha * beta)
        return -start / alpha

    return score
