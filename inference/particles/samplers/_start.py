"""A law around given draws, from which particles go to the posterior in place of the prior.

Terms: draws of all latent sites in coordinates u, with mean m and covariance LL' (`moves.root_of`), and q the law of

    u = m + 1.5 L t,   t multivariate Student with 5 degrees of freedom.

The path is q^(1 - beta) p^beta, p the density of program and data. Invariant: q is positive everywhere, so that the path ends at
the posterior whatever the draws are; they decide how long it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.scipy.linalg
from jax.scipy.special import gammaln

from ....ppl._checks import check_event
from ....ppl._compat import is_concrete
from ....ppl._precision import full_precision
from ....ppl._types import Key
from ..moves import along, root_of

Array = jax.Array
WIDER, DF = 1.5, 5.0
NUM_DRAWS = 500  # of a fit
LEAST = 10


@runtime_checkable
class Fitted(Protocol):
    """A fit: what it draws from its guide has the sites' values as `choices`, [draws, ...]."""

    def posterior(self, key: Key, num_samples: int) -> Any: ...


class Base(NamedTuple):
    """q: `draw` (key -> u) and `log_prob` (u -> nats)."""

    draw: Any
    log_prob: Any


def base_of(
    start: Fitted | Mapping[str, Any],
    key: Array,
    inverses: Mapping[str, Callable[[Array], Array]],
    template: Mapping[str, Array],
) -> Base:
    """The law q of a fit or of draws.

    Args:
        start: a fit, or site -> draws [n, ...].
        key: of the fit's draws.
        inverses: latent site -> the map from its value to its part of u.
        template: latent site -> one value of it.

    Raises:
        ValueError: a site without draws, draws of another shape, fewer than ten, all alike, or one outside of its
            support.
    """
    given: Mapping[str, Any]
    given = start if isinstance(start, Mapping) else start.posterior(key, NUM_DRAWS).choices
    names = list(inverses)
    # Whole numbers are draws of real ones, too.
    draws = {n: jnp.asarray(given[n]).astype(template[n].dtype) for n in names if n in given}
    if missing := [name for name in names if name not in draws]:
        raise ValueError(
            f"tempered_smc: start has no draws of the sites {missing}. Give draws of all latent sites: {list(names)}."
        )
    for name, x in draws.items():
        check_event(f"tempered_smc: start of site '{name}'", x, template[name].shape, is_rows=True)
    sizes = {len(x) for x in draws.values()}
    if len(sizes) > 1 or min(sizes) < LEAST:
        raise ValueError(
            f"tempered_smc: start has {sorted(sizes)} draws of its sites. Give the same number for each, {LEAST} or more, along "
            "the first axis."
        )
    parts = {name: jax.vmap(inverses[name])(x) for name, x in draws.items()}
    is_odd = {name: ~jnp.isfinite(x).all() for name, x in parts.items()}
    if is_concrete(is_odd) and (odd := [name for name, x in is_odd.items() if bool(x)]):
        raise ValueError(
            f"tempered_smc: start holds draws of the sites {odd} that are not finite, or at the edge of their supports. Leave "
            "such draws out."
        )
    is_flat = {name: (x == x[0]).all(0).any() for name, x in parts.items()}
    if is_concrete(is_flat) and (flat := [name for name, x in is_flat.items() if bool(x)]):
        raise ValueError(
            f"tempered_smc: start's draws of the sites {flat} are all alike in a coordinate, and no law lies around them. Give "
            "draws that spread about as the posterior does, e.g. of a fit."
        )
    points = jax.vmap(lambda parts: jax.flatten_util.ravel_pytree(parts)[0])(parts)
    return around(points)


def around(points: Array) -> Base:
    """The law q of points [n, d]."""
    mean, root = points.mean(0), WIDER * root_of(points)
    dimension = len(mean)
    sizes = jnp.diagonal(root) if root.ndim == 2 else root
    constant = (
        gammaln((DF + dimension) / 2) - gammaln(DF / 2) - dimension / 2 * math.log(DF * math.pi)
    )
    constant = constant - jnp.log(jnp.abs(sizes)).sum()

    def draw(key: Array) -> Array:
        noise_key, size_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, mean.shape)
        return mean + along(root, noise) / jnp.sqrt(jax.random.gamma(size_key, DF / 2) / (DF / 2))

    @full_precision
    def log_prob(u: Array) -> Array:
        away = u - mean
        solved = (
            jax.scipy.linalg.solve_triangular(root, away, lower=True)
            if root.ndim == 2
            else away / root
        )
        return constant - (DF + dimension) / 2 * jnp.log1p((solved**2).sum() / DF)

    return Base(draw, log_prob)
