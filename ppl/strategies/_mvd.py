"""Measure-valued (weak) derivatives.

For each parameter theta of a distribution there are a constant c and two laws p+, p- with  d p / d theta = c
(p+ - p-), hence
    d E[f(x)] / d theta = c (E_{p+}[f] - E_{p-}[f]).
The table below gives c, x+ and x-, coupled where a coupling lowers the variance. Reference: Heidergott and
Vazquez-Abad 2000; Mohamed et al. 2020, arXiv:1906.10652, table 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ._strategy import Downstream, Draw, Strategy, stop

Array = jax.Array


class Triple(NamedTuple):
    """One parameter's derivative: `c * (f(plus) - f(minus))`; None stands for the drawn value itself."""

    theta: Array
    c: Array
    plus: Array | None
    minus: Array | None


def _bernoulli(draw: Draw, _: Array) -> list[Triple]:
    p = draw.parameter("probs")
    return [Triple(p, jnp.ones_like(p), jnp.ones_like(draw.value), jnp.zeros_like(draw.value))]


def _normal(draw: Draw, key: Array) -> list[Triple]:
    loc, scale = draw.parameter("loc"), draw.parameter("scale")
    k1, k2, k3, k4 = jax.random.split(key, 4)
    # d N(x; loc, scale) / d loc = (x - loc) / scale^2 N(x): its positive part is a Rayleigh law times 1 / (scale sqrt(2 pi)).
    rayleigh = jnp.sqrt(2 * jax.random.exponential(k1, draw.shape))
    # Double-sided Maxwell: sign times the norm of a Gaussian 3-vector; x- = mean + U (x+ - mean) is Gaussian.
    maxwell = jnp.linalg.norm(jax.random.normal(k2, (*draw.shape, 3)), axis=-1)
    maxwell = maxwell * jax.random.rademacher(k3, draw.shape, maxwell.dtype)
    uniform = jax.random.uniform(k4, draw.shape)
    return [
        Triple(
            loc, 1 / (scale * jnp.sqrt(2 * jnp.pi)), loc + scale * rayleigh, loc - scale * rayleigh
        ),
        Triple(scale, 1 / scale, loc + scale * maxwell, loc + scale * maxwell * uniform),
    ]


def _poisson(draw: Draw, _: Array) -> list[Triple]:
    # d Poisson(k; rate) / d rate = Poisson(k - 1; rate) - Poisson(k; rate)
    rate = draw.parameter("rate")
    return [Triple(rate, jnp.ones_like(rate), draw.value + 1, None)]


def _binomial(draw: Draw, key: Array) -> list[Triple]:
    p, n = draw.parameter("probs"), draw.parameter("total_count")
    # d Binomial(n, p) / dp = n (1 + Binomial(n - 1, p) - Binomial(n - 1, p)), both with the same draw.
    fewer = dist.Binomial(jnp.maximum(n - 1, 0), p).sample(key).astype(draw.value.dtype)
    return [Triple(p, n.astype(p.dtype), jnp.minimum(fewer + 1, n).astype(draw.value.dtype), fewer)]


def _geometric(draw: Draw, key: Array) -> list[Triple]:
    p = draw.parameter("probs")
    # d p (1 - p)^k / dp = (1 / p) (Geometric(p) - the law of 1 + the failures before the second success)
    second = dist.GeometricProbs(p).sample(key).astype(draw.value.dtype)
    return [Triple(p, 1 / p, None, 1 + draw.value + second)]


def _exponential(draw: Draw, key: Array) -> list[Triple]:
    rate = draw.parameter("rate")
    return [
        Triple(rate, 1 / rate, None, draw.value + jax.random.exponential(key, draw.shape) / rate)
    ]


def _gamma(draw: Draw, key: Array) -> list[Triple]:
    a, rate = draw.parameter("concentration"), draw.parameter("rate")
    # Gamma(a + 1, rate) = Gamma(a, rate) + Exponential(rate): coupled to the draw.
    return [
        Triple(rate, a / rate, None, draw.value + jax.random.exponential(key, draw.shape) / rate)
    ]


TABLE: dict[str, Callable[[Draw, Array], list[Triple]]] = {
    "BernoulliProbs": _bernoulli,
    "BernoulliLogits": _bernoulli,
    "Normal": _normal,
    "Poisson": _poisson,
    "BinomialProbs": _binomial,
    "BinomialLogits": _binomial,
    "GeometricProbs": _geometric,
    "GeometricLogits": _geometric,
    "Exponential": _exponential,
    "Gamma": _gamma,
}
CATEGORICAL = frozenset({"CategoricalProbs", "CategoricalLogits"})
ONE_HOT = "OneHotCategorical"
FIXED = {
    "Gamma": ("concentration",),
    "BinomialProbs": ("total_count",),
    "BinomialLogits": ("total_count",),
}


@dataclasses.dataclass(frozen=True)
class MVD(Strategy):
    """Measure-valued derivative: c (cost at x+ - cost at x-), the site's value replaced and all other noise kept.

    Distributions: Bernoulli, Categorical and OneHotCategorical (every category is replayed: sum_k dp_k cost(k), the local
    expectation of Titsias and Lazaro-Gredilla 2015), Normal (mean and
    scale), Poisson, Binomial, Geometric, Exponential, Gamma (rate). Rows of a plate whose costs separate
    share one pair of replays; otherwise each element has its own.
    Validity: unbiased, also where the cost jumps. Reference: module text.
    """

    name = "mvd"
    calls = ("replay",)
    serves_null_values = True

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        served = {*TABLE, *CATEGORICAL, ONE_HOT}
        if name in served:
            return None
        return f"has no weak-derivative triple for {name}; it covers {sorted(served)}"

    def fixed_parameters(self, distribution: dist.Distribution) -> tuple[str, ...]:
        return FIXED.get(type(distribution).__name__, ())

    def local(self, draw: Draw) -> PyTree:
        name = type(draw.distribution).__name__
        if name in CATEGORICAL or name == ONE_HOT:
            probs = jnp.asarray(getattr(draw.distribution, "probs"))  # noqa: B009
            probs = jnp.broadcast_to(probs, draw.shape + probs.shape[-1:])
            return {"of rows" if name == ONE_HOT else "of numbers": probs}
        triples = TABLE[name](draw, jax.random.fold_in(draw.key, 1))
        return [Triple(t.theta, *jax.tree.map(stop, t[1:])) for t in triples]

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return (
            f"1 + replays of {num_elements} element(s)"
            if num_elements > 1
            else "1 + one replay per alternative"
        )

    def surrogate(self, local: dict[str, PyTree], downstream: Downstream) -> Array:
        if isinstance(local, dict):
            [(kind, probs)] = local.items()
            size = probs.shape[-1]
            if kind == "of rows":
                values = jnp.broadcast_to(jnp.eye(size), (*probs.shape, size))
            else:
                values = jnp.broadcast_to(jnp.arange(size), probs.shape)
            costs = jax.vmap(downstream.replay, in_axes=probs.ndim - 1, out_axes=-1)(values)
            # A category of probability 0 may have no cost (log 0), and no part in the derivative.
            is_void = (probs == 0) & ~jnp.isfinite(costs)
            differences = jnp.where(is_void, 0.0, costs - downstream.cost[..., None])
            return ((probs - stop(probs)) * differences).sum(-1)
        # d E[f] / d theta = c (f(x+) - f(x-)), one pair for each parameter; None: the cost at the draw is known already.
        total = jnp.zeros(())
        for theta, c, plus, minus in local:
            if minus is None:
                difference = downstream.replay(plus) - downstream.cost
            elif plus is None:
                difference = downstream.cost - downstream.replay(minus)
            else:
                costs = jax.vmap(downstream.replay)(jnp.stack([plus, minus]))
                difference = costs[0] - costs[1]
            total = total + (theta - stop(theta)) * stop(c * difference)
        return total
