"""A transformer block: what several model families share."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Block(eqx.Module):
    """A transformer block with normalisation first: attention over the steps that exist, then a feed-forward map.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (normalisation first).
    """

    attention: eqx.nn.MultiheadAttention
    feed_forward: eqx.nn.MLP
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    is_causal: bool = eqx.field(static=True)

    def __init__(self, num_hidden: int, num_heads: int, *, is_causal: bool, key: Array) -> None:
        keys = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(num_heads, num_hidden, key=keys[0])
        self.feed_forward = eqx.nn.MLP(
            num_hidden, num_hidden, num_hidden, 1, activation=jax.nn.silu, key=keys[1]
        )
        self.norms = (eqx.nn.LayerNorm(num_hidden), eqx.nn.LayerNorm(num_hidden))
        self.is_causal = is_causal

    def __call__(self, x: Float[Array, "T H"], valid: Bool[Array, " T"]) -> Float[Array, "T H"]:
        """Hidden features of every step."""
        visible = jnp.broadcast_to(valid, (len(valid), len(valid)))
        if self.is_causal:
            visible = visible & jnp.tri(len(valid), dtype=bool)
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h, mask=visible)
        return x + jax.vmap(self.feed_forward)(jax.vmap(self.norms[1])(x))
