"""Transformers over positions: every variable attends to all others, near or far, observed or not."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._categories import value_error
from ..._transformer import Block
from ._networks import Pair, pair_of


class _Trunk(eqx.Module):
    """Embedded symbols plus positions, transformer blocks, a linear map at each position; zero at the start.

    A position's embedding is linear in the symbols within `reach` of it, (left, right), a convolution: attention need not find
    out first which positions are neighbours.
    """

    symbols: eqx.nn.Linear
    positions: Array
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    num_symbols: int = eqx.field(static=True)
    reach: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        num_variables: int,
        num_symbols: int,
        num_outputs: int,
        *,
        is_causal: bool,
        width: int,
        depth: int,
        num_heads: int,
        reach: tuple[int, int],
        key: Array,
    ) -> None:
        _check_sizes(num_variables, num_symbols - 1, width, depth, num_heads, reach[0])
        symbol_key, last_key, *keys = jax.random.split(key, depth + 2)
        self.num_symbols, self.reach = num_symbols, reach
        num_read = sum(reach) + 1
        symbols = eqx.nn.Linear(num_read * num_symbols, width, key=symbol_key)
        # Of unit variance, about that of the positions: each reads as many columns as symbols are in reach.
        weight = jax.random.normal(symbol_key, (width, num_read * num_symbols)) / num_read**0.5
        self.symbols = eqx.tree_at(lambda linear: linear.weight, symbols, weight)
        self.positions = _waves(num_variables, width)
        self.blocks = tuple(Block(width, num_heads, is_causal=is_causal, key=k) for k in keys)
        self.norm = eqx.nn.LayerNorm(width)
        self.last = jax.tree.map(jnp.zeros_like, eqx.nn.Linear(width, num_outputs, key=last_key))

    def __call__(self, tokens: Int[Array, " positions"]) -> Float[Array, "positions outputs"]:
        symbols = jax.nn.one_hot(tokens, self.num_symbols)
        padded = jnp.pad(symbols, (self.reach, (0, 0)))
        # One matrix product: XLA's own convolution is several times slower on a CPU.
        shifted = [padded[i : i + len(tokens)] for i in range(sum(self.reach) + 1)]
        hidden = jax.vmap(self.symbols)(jnp.concatenate(shifted, 1)) + self.positions
        everywhere = jnp.ones(len(tokens), bool)
        for block in self.blocks:
            hidden = block(hidden, everywhere)
        return jax.vmap(self.last)(jax.vmap(self.norm)(hidden))


class MaskedTransformer(eqx.Module):
    """A transformer over positions in both directions, whose embeddings see the symbols near them; zero at the start.

    Symbol 0 is the mask token, the place of a variable that is not observed, which gathers what the others say about it.

    Args:
        num_variables: D, the number of positions.
        num_values: K; K + 1 symbols are embedded.
        num_outputs: numbers for each position.
        is_summed: whether the outputs are summed over all positions.
        width: features of a position.
        depth: number of blocks.
        num_heads: heads of the attention, a divisor of the width.
        reach: neighbours on each side that an embedding sees; 0 for none.
        key: PRNG key of the initial values.

    Raises:
        ValueError: as for `transformers`.
    """

    trunk: _Trunk
    is_summed: bool = eqx.field(static=True)

    def __init__(
        self,
        num_variables: int,
        num_values: int,
        num_outputs: int,
        *,
        is_summed: bool,
        width: int,
        depth: int,
        num_heads: int,
        reach: int,
        key: Array,
    ) -> None:
        sizes = {"width": width, "depth": depth, "num_heads": num_heads, "reach": (reach, reach)}
        of = (num_variables, num_values + 1, num_outputs)
        self.trunk, self.is_summed = _Trunk(*of, is_causal=False, **sizes, key=key), is_summed

    @property
    def last(self) -> eqx.nn.Linear:
        """The last layer."""
        return self.trunk.last

    def __call__(self, tokens: Int[Array, " positions"]) -> Float[Array, "*shape"]:
        """Outputs [positions, num_outputs], or their sum over positions and outputs."""
        out = self.trunk(tokens)
        return out.sum() if self.is_summed else out


class CausalTransformer(eqx.Module):
    """Log p(x) = sum_d log p(x_d | x_1, ..., x_{d-1}) by a transformer: the baseline of one order for sequences.

    Uniform at the start; trained by `autoregressive`.

    Args:
        num_variables: D, the number of positions.
        num_values: K.
        width: features of a position.
        depth: number of blocks.
        num_heads: heads of the attention, a divisor of the width.
        reach: symbols before the last one that the embedding of a position sees.
        key: PRNG key of the initial values.

    Raises:
        ValueError: as for `transformers`.
    """

    trunk: _Trunk

    def __init__(
        self,
        num_variables: int,
        num_values: int,
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        reach: int = 0,
        key: Array,
    ) -> None:
        sizes = {"width": width, "depth": depth, "num_heads": num_heads, "reach": (reach, 0)}
        of = (num_variables, num_values + 1, num_values)
        self.trunk = _Trunk(*of, is_causal=True, **sizes, key=key)

    def logits(self, values: Int[Array, " variables"]) -> Float[Array, "variables values"]:
        """Logits of every variable given those before it."""
        before = jnp.concatenate([jnp.zeros(1, int), values[:-1] + 1])
        return self.trunk(before)

    def log_prob(self, values: Int[Array, " variables"]) -> Float[Array, ""]:
        """Log p(x) of values 0 to K - 1, nats; NaN under jit where one is none of them.

        Raises:
            ValueError: known values that are none.
        """
        error = value_error("CausalTransformer", values, self.trunk.num_symbols - 1)
        values = jnp.asarray(values).astype(int)
        log_probs = jax.nn.log_softmax(self.logits(values))
        return jnp.take_along_axis(log_probs, values[:, None], 1).sum() + error

    def sample(self, key: Array) -> Int[Array, " variables"]:
        """One draw, D passes."""
        size = len(self.trunk.positions)

        def step(values: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
            d, key = inputs
            return values.at[d].set(jax.random.categorical(key, self.logits(values)[d])), None

        keys = jax.random.split(key, size)
        return jax.lax.scan(step, jnp.zeros(size, int), (jnp.arange(size), keys))[0]


def _check_sizes(
    num_variables: int, num_values: int, width: int, depth: int, num_heads: int, reach: int
) -> None:
    sizes = (num_variables, width, depth, num_heads, reach + 1)
    if min(sizes) < 1 or num_values < 2 or width % num_heads:
        raise ValueError(
            f"Transformer: {num_variables} variables, {num_values} values, width {width}, depth {depth}, {num_heads} heads, "
            f"reach {reach}; needs at least one variable, two values, one feature and one block, heads that divide the width, "
            "and no negative reach."
        )


def _waves(count: int, width: int) -> Float[Array, "positions width"]:
    """Sines and cosines of the position, wave lengths from 2 pi to 10,000 times that; where learned positions start."""
    frequency = 1e4 ** -jnp.linspace(0.0, 1.0, (width + 1) // 2)
    angles = jnp.arange(count)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)[:, :width]


def transformers(
    num_variables: int,
    num_values: int,
    *,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    reach: int = 0,
    key: Array,
) -> Pair:
    """A `Pair` of two separate transformers, uniform at the start.

    Args:
        num_variables: D.
        num_values: K.
        width: features of a position.
        depth: blocks of each network, at least 1.
        num_heads: heads of the attention, a divisor of the width.
        reach: neighbours on each side that the embedding of a position sees; some for text, 0 where positions have no order.
        key: PRNG key of the initial values.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, or there are fewer than two values.

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920, section 6 (12 blocks of width 768, 12 heads; the marginal network
    is a head on the frozen features of the conditional one).
    """
    options = {"width": width, "depth": depth, "num_heads": num_heads, "reach": reach}
    make = functools.partial(MaskedTransformer, num_variables, num_values, **options)
    return pair_of(make, num_variables, num_values, key)
