"""Derivatives of distribution functions, for the boundary's part of a gradient (`strategies/_boundary.py`).

Of each law a number whose derivative, in the value and in the parameters, is that of its distribution function F. For F(u), u a
function of value and parameters, it is f(sg(u)) u with the density f: no cancellation far out, and no kink in the middle, where
formulas for F are put together from halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy import stats
from jax.scipy.special import gammainc

Array = jax.Array


class Law(NamedTuple):
    """A class of distributions, the names of its parameters, and `(value, *parameters) -> number` with the derivative of F."""

    cls: type[dist.Distribution]
    names: tuple[str, ...]
    flow: Callable[..., Array]


def _along(density: Callable[[Array], Array], u: Array) -> Array:
    return jax.lax.stop_gradient(density(jax.lax.stop_gradient(u))) * u


def _location_scale(cls: type[dist.Distribution], density: Callable[[Array], Array]) -> Law:
    return Law(cls, ("loc", "scale"), lambda x, loc, scale: _along(density, (x - loc) / scale))


LAWS: Mapping[str, Law] = {
    law.cls.__name__: law
    for law in (
        _location_scale(dist.Normal, stats.norm.pdf),
        _location_scale(dist.Logistic, stats.logistic.pdf),
        _location_scale(dist.Laplace, stats.laplace.pdf),
        _location_scale(dist.Gumbel, lambda u: jnp.exp(-u - jnp.exp(-u))),
        _location_scale(dist.Cauchy, stats.cauchy.pdf),
        Law(dist.Uniform, ("low", "high"), lambda x, low, high: (x - low) / (high - low)),
        Law(dist.Exponential, ("rate",), lambda x, rate: _along(lambda u: jnp.exp(-u), rate * x)),
        Law(dist.Gamma, ("concentration", "rate"), lambda x, a, rate: gammainc(a, rate * x)),
    )
}


def has_boundary_law(distribution: dist.Distribution) -> bool:
    """Whether a law is one of `LAWS`; a user's subclass, which may have another density, is not."""
    law = LAWS.get(type(distribution).__name__)
    return law is not None and type(distribution) is law.cls


def law_parameters(distribution: dist.Distribution, shape: tuple[int, ...]) -> list[Array]:
    """The parameters of a law of `LAWS` in the order of its class, each of the elements' shape."""
    names = LAWS[type(distribution).__name__].names
    return [jnp.broadcast_to(jnp.asarray(getattr(distribution, n), float), shape) for n in names]
