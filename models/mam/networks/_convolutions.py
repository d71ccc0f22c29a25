"""Convolutional networks for variables on a grid: lattices and images.

The log-marginal of a field with local interactions is, to a good approximation, a sum of local terms of what is observed; the
marginal network is such a sum. Weights are shared by all sites, and on a torus both networks commute with translations.
"""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._networks import Pair, pair_of


class Conv3x3(eqx.Module):
    """A 3 x 3 convolution as one matrix product over neighbourhoods, [rows, columns, in] to [rows, columns, out].

    With few channels XLA's own convolution is several times slower on a CPU.

    Args:
        num_in: channels in.
        num_out: channels out.
        is_periodic: whether the grid is a torus; else it is bordered by zeros.
        key: PRNG key of the initial values.
    """

    linear: eqx.nn.Linear
    is_periodic: bool = eqx.field(static=True)

    def __init__(self, num_in: int, num_out: int, *, is_periodic: bool, key: Array) -> None:
        self.linear = eqx.nn.Linear(9 * num_in, num_out, key=key)
        self.is_periodic = is_periodic

    def __call__(self, x: Float[Array, "rows columns in"]) -> Float[Array, "rows columns out"]:
        """The convolution of one grid."""
        rows, columns, _ = x.shape
        mode = "wrap" if self.is_periodic else "constant"
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
        shifted = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        return _at_sites(self.linear, jnp.concatenate(shifted, -1))


class ResidualCNN(eqx.Module):
    """h <- leaky_relu(C_0 * one_hot(tokens)); h <- h + leaky_relu(C_l * h); out = W h at each site, zero at the start.

    Every C is a 3 x 3 convolution, so that after `depth` layers a site sees `depth` sites in each direction.

    Args:
        grid: rows and columns; variables are the sites, row by row.
        num_values: K; the input has K + 1 symbols for each site.
        num_outputs: numbers for each site.
        is_summed: whether the outputs are summed over all sites.
        channels: channels of each layer.
        depth: number of layers.
        is_periodic: whether the grid is a torus; else it is bordered by zeros.
        key: PRNG key of the initial values.
    """

    layers: tuple[Conv3x3, ...]
    last: eqx.nn.Linear
    grid: tuple[int, int] = eqx.field(static=True)
    num_symbols: int = eqx.field(static=True)
    is_summed: bool = eqx.field(static=True)

    def __init__(
        self,
        grid: tuple[int, int],
        num_values: int,
        num_outputs: int,
        *,
        is_summed: bool,
        channels: int,
        depth: int,
        is_periodic: bool,
        key: Array,
    ) -> None:
        self.grid, self.num_symbols, self.is_summed = grid, num_values + 1, is_summed
        keys = jax.random.split(key, depth + 1)
        sizes = [self.num_symbols] + depth * [channels]
        self.layers = tuple(
            Conv3x3(a, b, is_periodic=is_periodic, key=k)
            for a, b, k in zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
        )
        last = eqx.nn.Linear(channels, num_outputs, key=keys[0])
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(self, tokens: Int[Array, " sites"]) -> Float[Array, "*shape"]:
        """Outputs [sites, num_outputs], or their sum over sites and outputs."""
        symbols = jax.nn.one_hot(tokens.reshape(self.grid), self.num_symbols)
        hidden = jax.nn.leaky_relu(self.layers[0](symbols))
        for layer in self.layers[1:]:
            hidden = hidden + jax.nn.leaky_relu(layer(hidden))
        out = _at_sites(self.last, hidden)
        return out.sum() if self.is_summed else out.reshape(-1, out.shape[-1])


def _at_sites(linear: eqx.nn.Linear, x: Float[Array, "rows columns in"]) -> Array:
    out = x @ linear.weight.T
    return out if linear.bias is None else out + linear.bias


def residual_cnns(
    grid: tuple[int, int],
    num_values: int,
    *,
    channels: int = 32,
    depth: int = 3,
    is_periodic: bool = False,
    key: Array,
) -> Pair:
    """A `Pair` of two separate convolutional networks on a grid, uniform at the start.

    Args:
        grid: rows and columns; variable number i is the site in row i // columns.
        num_values: K.
        channels: channels of each layer.
        depth: layers of 3 x 3 convolutions, at least 1.
        is_periodic: whether the grid is a torus.
        key: PRNG key of the initial values.

    Raises:
        ValueError: a size is not positive, or there are fewer than two values.
    """
    if min(*grid, channels, depth) < 1 or num_values < 2:
        raise ValueError(
            f"residual_cnns: grid {grid}, {num_values} values, {channels} channels, depth {depth}; needs at least one site, "
            "two values, one channel and one layer."
        )
    options = {"channels": channels, "depth": depth, "is_periodic": is_periodic}
    make = functools.partial(ResidualCNN, grid, num_values, **options)
    return pair_of(make, grid[0] * grid[1], num_values, key)
