"""How large the noise in fitted parameters is beside the posterior that they describe."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from ....ppl.language import Program
from ..._arguments import Arguments

_POINTS, _DRAWS = 16, 100


def noise_shares(
    guide: Program, params: PyTree, deviations: PyTree, key: Key, args: tuple
) -> dict[str, float]:
    """Site -> noise in parameters beside the posterior: the largest coordinate of each continuous site.

    It is the standard deviation of a draw with fixed randomness when the parameters scatter, over that of the draws. They scatter
    as independent Normals around `params`; what correlation they have is left out.
    """
    split = Arguments(args)
    point_key, draw_key = jax.random.split(key)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    sd, _ = jax.flatten_util.ravel_pytree(deviations)
    points = flat + sd * jax.random.normal(point_key, (_POINTS, flat.size), flat.dtype)

    def draws(point: Array, arrays: list[Array]) -> dict[str, Array]:
        bound = guide.bind(unravel(point))
        one = lambda k: bound.simulate(k, *split.join(arrays)).shared_choices
        return jax.vmap(one)(jax.random.split(draw_key, _DRAWS))

    over_points = lambda points, arrays: jax.lax.map(lambda p: draws(p, arrays), points)
    found = shared_jit(over_points)(points, split.arrays(args))
    shares = {}
    for name, x in found.items():
        if jnp.issubdtype(x.dtype, jnp.floating):
            noise, posterior = x.var(0, ddof=1).mean(0), x.mean(0).var(0, ddof=1)
            share = jnp.sqrt(noise / jnp.where(posterior > 0, posterior, jnp.nan))
            shares[name] = float(jnp.nanmax(share, initial=0.0))
    return shares
