"""Flow matching: regressions whose optimum is the velocity of a path, and its score; the field that a trained network is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ... import ppl
from ...inference import Objective, objective
from ...inference.diffusion.tokens import Network
from ...ppl._checks import check_counts
from ...ppl._types import Key
from .._trained import trained
from ..diffusion._contexts import one_context, row_contexts
from ..diffusion._training import row_strata
from ._couplings import Coupling, independent
from ._path import Interpolant, Path, VectorField
from ._tokens import TokenPath


@dataclasses.dataclass(frozen=True)
class Field:
    """What carries the law of x_0 along a path: the velocity b(t, x) = E[u | x_t = x], and what else is known of x_t.

    Args:
        velocity: `(t, x) -> b` of one point.
        score: `(t, x) -> grad log p_t`, of one point.
        log_density: `(t, x) -> log p_t`, in nats, of one point.
        log_probs: of tokens, `(tokens, t) -> log p(x_1 = v | tokens)`, [variables, values], as `diffusion.token_law` and
            `TokenDiffusion` take it: t is 1 where all is noise.
    """

    velocity: VectorField
    score: VectorField | None = None
    log_density: Callable[[Array, Array], Array] | None = None
    log_probs: Network | None = None

    @property
    def reversed(self) -> Field:
        """The field of the way back, from the law of x_1 at t = 0 to that of x_0."""
        if self.log_probs is not None:
            raise ValueError(
                "Field: rates of tokens are not turned round by their sign. Use flow_matching with the ends exchanged, "
                "and give its field."
            )
        back = lambda part: None if part is None else lambda t, x: part(1 - t, x)
        return Field(
            lambda t, x: -self.velocity(1 - t, x), back(self.score), back(self.log_density)
        )


def flow_matching(
    network: Callable[..., PyTree],
    path: Path,
    start: dist.Distribution | Float[ArrayLike, " rows *shape"] | None = None,
    *,
    coupling: Coupling = independent,
    batch_size: int | None = None,
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
        start: the law of x_0 for one point, or rows of data of which each step draws as many as it needs; by default x_0 is an
            argument, whose rows belong to those of x_1.
        coupling: `independent`, `transport` or `entropic(noise)`, of each batch.
        batch_size: rows that each step draws from x_1; all by default. A coupling of batches needs it in place of `subsample`,
            since rows that see each other do not add up to all rows.
        drop_context: probability that a row's context is hidden.

    Returns:
        An objective of the arguments `(x_1, context)`, or `(x_1, context, x_0)` for pairs, x_1 [rows, *shape] with the plate
        "rows", as for `fit(..., subsample={"rows": 128})`; the context is as for `diffusion.score_matching`. The parameter is
        "network".

    Raises:
        ValueError: neither or both of `start` and an argument x_0; pairs with a coupling; ends of different shapes; a context
            that the network does not take; `drop_context` outside of [0, 1].

    Validity: unbiased for L. The optimum is b(t, x) = E[u | x_t = x] of the coupling of batches of this size.

    Reference: Lipman et al. 2023, arXiv:2210.02747, theorem 2; Tong et al. 2024, arXiv:2302.00482 (couplings of batches);
    Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, section 6 (z and -z).
    """
    if start is None and coupling is not independent:
        raise ValueError(
            "flow_matching: without start= the ends are pairs by data, which a coupling would break. Give start= the law or the "
            "rows of x_0, or leave out coupling=."
        )
    if batch_size is not None:
        check_counts("flow_matching", batch_size=batch_size)

    @ppl.model
    def regression(end: Array, context: PyTree = None, begin: Array | None = None) -> None:
        net, keys = ppl.module("network", network), jax.random.split(ppl.rng_key("path"), 6)
        if batch_size is not None:
            chosen = jax.random.randint(keys[0], (batch_size,), 0, len(end))
            end, context, begin = jax.tree.map(
                lambda x: jnp.asarray(x)[chosen], (end, context, begin)
            )
        rows = len(end)
        begin = _starts(path, start, begin, end, keys[1])
        if coupling is not independent:
            begin = begin[coupling(keys[2], begin, end)]
        t = path.first + (path.last - path.first) * row_strata(keys[3], rows)
        z = jax.random.normal(keys[4], end.shape)
        seen = row_contexts("flow_matching", network, context, rows, keys[5], drop_context)
        sites = path.sites(net, t, begin, end, z, seen)
        with ppl.plate("rows", rows):
            for site, (law, value) in sites.items():
                ppl.sample(site, law, obs=value)

    @objective
    def flow_matching(model: ppl.Program, guide: None, *args: PyTree) -> Array:
        return ppl.draw(model, *args).log_density

    return flow_matching(regression)


def _starts(
    path: Path, start: dist.Distribution | ArrayLike | None, begin: Array | None, end: Array, key: Array
) -> Array:  # fmt: skip
    """A row of x_0 for each row of x_1."""
    if isinstance(path, TokenPath) and start is None and begin is None:
        return path.begin(key, end.shape)
    if (start is None) == (begin is None):
        has = "neither start= nor an argument" if begin is None else "both start= and an argument"
        raise ValueError(f"flow_matching: {has} for x_0. Give one of them.")
    found = jnp.asarray(begin) if start is None else row_starts(start, end.shape, key)
    if found.shape != end.shape:
        raise ValueError(
            f"flow_matching: x_0 has shape {found.shape}, and x_1 {end.shape}. Give both ends points of one shape, and pairs "
            "one number of rows; the law of a vector is dist.Normal(zeros, 1).to_event(1)."
        )
    return found


def row_starts(
    start: dist.Distribution | ArrayLike, shape: tuple[int, ...], key: Key
) -> Float[Array, " rows *shape"]:
    """Draws of x_0, from its law or its rows, one for each row of x_1."""
    if isinstance(start, dist.Distribution):
        return jnp.asarray(start.sample(key, shape[:1]))
    points = jnp.asarray(start)
    return points[jax.random.randint(key, shape[:1], 0, len(points))]


def from_network(
    network: Callable[..., PyTree], path: Path, *, params: PyTree = None, context: PyTree = None
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
        network = trained(network, params)
    seen = one_context("from_network", network, context)
    if isinstance(path, TokenPath):
        log_probs = lambda tokens, t: jax.nn.log_softmax(network(tokens, 1 - t, seen))
        rates = lambda t, x: path.rates(t, x, jnp.exp(log_probs(x + 1, 1 - t)))
        return Field(rates, log_probs=log_probs)
    if not path.has_noise:
        return Field(lambda t, x: network(x, t, seen))
    score = None
    if isinstance(path, Interpolant):
        inner = lambda t: jnp.clip(t, path.first, path.last)  # both vanish at the ends
        score = lambda t, x: -network(x, inner(t), seen)[1] / path.gamma(inner(t))
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
