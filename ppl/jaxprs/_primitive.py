"""The markers that a latent draw, and a random key handed to the program, leave in a jaxpr.

`mark(draw, parameters, support, index)` is the identity on `draw`. The equation it leaves behind shows where
the value of site `index` enters the program and on what the site's distribution depends, so that one traced
program can be analysed and then evaluated with any site's value replaced. `mark_key` is the identity on a key: it shows where
noise enters that belongs to no site. Markers live only between tracing
and evaluation (`evaluation/_evaluate.py` removes them), hence no differentiation or lowering rule.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import Primitive, set_batching
from .._types import Key

site_p = Primitive("lapilli_site")
site_p.def_impl(lambda draw, *_, **__: draw)
site_p.def_abstract_eval(lambda draw, *_, **__: draw)


def mark(
    draw: jax.Array,
    parameters: dist.Distribution | list[Array] | tuple[Array | dist.Distribution, ...],
    support: list[Key | tuple[Array]] | tuple[ArrayLike, ...],
    *,
    index: int,
    is_aligned: bool = False,
) -> jax.Array:
    """Return `draw`, leaving a marker equation for site `index` with the leaves of its parameters and of its support.

    `is_aligned`: each parameter has the shape of `draw`, and keeps it under `jax.vmap`.
    """
    parameters = [jnp.asarray(x) for x in jax.tree.leaves(parameters)]
    support = [jnp.asarray(x) for x in jax.tree.leaves(support)]
    more = {"is_aligned": True} if is_aligned else {}
    return site_p.bind(
        draw, *parameters, *support, index=index, num_parameters=len(parameters), **more
    )


key_p = Primitive("lapilli_key")
key_p.def_impl(lambda key, **_: key)
key_p.def_abstract_eval(lambda key, **_: key)
MARKERS = (site_p, key_p)
SAMPLER = (
    "sampler of "  # in front of a site's address: the noise in a sampler that a user has written
)


def mark_key(key: jax.Array, address: str) -> jax.Array:
    """Return `key`, leaving a marker equation with its address."""
    return key_p.bind(key, address=address)


def _batch(
    args: tuple[Key, ...], dims: tuple[int | None, ...], **params: PyTree
) -> tuple[jax.Array, int]:
    # The batch axis always comes first: forced values rely on this layout.
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    count = 1 + params["num_parameters"] if params.get("is_aligned") else 1
    first = [
        jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(args[:count], dims[:count], strict=True)
    ]
    return site_p.bind(*first, *args[count:], **params), 0


set_batching(site_p, _batch)
set_batching(key_p, lambda args, dims, **params: (key_p.bind(*args, **params), dims[0]))
