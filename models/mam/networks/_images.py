"""U-Nets for variables on a grid: what is observed anywhere in an image bears on every pixel."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._unet import UNet
from ._networks import Pair, pair_of

_NUM_WAVES = 16


class MaskedUNet(eqx.Module):
    """A U-Net on the symbols of a grid, told how much of it is observed; zero at the start.

    One channel of the input is the mask: symbol 0 stands for "unknown". The number of observed sites enters every block as the
    noise level does in a diffusion model, through sines and cosines of |S| / D.

    Args:
        grid: rows and columns; variables are the sites, row by row.
        num_values: K; the input has K + 1 symbols for each site.
        num_outputs: numbers for each site.
        is_summed: whether the outputs are summed over all sites.
        widths: channels at each resolution; every further one halves rows and columns.
        key: PRNG key of the initial values.
    """

    net: UNet
    count: eqx.nn.MLP
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
        widths: Sequence[int],
        key: Array,
    ) -> None:
        net_key, count_key = jax.random.split(key)
        self.grid, self.num_symbols, self.is_summed = grid, num_values + 1, is_summed
        size = 2 * _NUM_WAVES
        self.net = UNet(self.num_symbols, widths, size, num_outputs=num_outputs, key=net_key)
        self.count = eqx.nn.MLP(size, size, size, 1, jax.nn.silu, key=count_key)

    @property
    def last(self) -> eqx.nn.Conv2d:
        """The last layer."""
        return self.net.last

    def __call__(self, tokens: Int[Array, " sites"]) -> Float[Array, "*shape"]:
        """Outputs [sites, num_outputs], or their sum over sites and outputs."""
        # From half a wave over all counts down to two counts a wave.
        angles = jnp.pi * (tokens > 0).mean() * jnp.geomspace(1.0, tokens.size, _NUM_WAVES)
        condition = self.count(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        symbols = jax.nn.one_hot(tokens.reshape(self.grid), self.num_symbols, axis=0)
        out = self.net(symbols, condition)
        return out.sum() if self.is_summed else out.reshape(len(out), -1).T


def unets(
    grid: tuple[int, int], num_values: int, *, widths: Sequence[int] = (16, 32), key: Array
) -> Pair:
    """A `Pair` of two separate U-Nets on a grid, uniform at the start.

    Args:
        grid: rows and columns; variable number i is the site in row i // columns.
        num_values: K.
        widths: channels at each resolution, the full one first; every further one halves rows and columns.
        key: PRNG key of the initial values.

    Raises:
        ValueError: a size is not positive, the grid cannot be halved that often, or there are fewer than two values.

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920, section 6 (256 channels, attention, one resolution); there the
    marginal network shares the layers of the conditional one.
    """
    widths = tuple(widths)
    if not widths or min(*grid, *widths) < 1 or num_values < 2:
        raise ValueError(
            f"unets: grid {grid}, {num_values} values, widths {widths}; needs at least one site, two values, one width and one "
            "channel in each."
        )
    halvings = len(widths) - 1
    if any(n % 2**halvings for n in grid):
        raise ValueError(
            f"unets: a grid of {grid[0]} x {grid[1]} cannot be halved {halvings} times, as {len(widths)} widths ask. Use fewer "
            "widths, or pad the grid with sites that are never observed."
        )
    make = functools.partial(MaskedUNet, grid, num_values, widths=widths)
    return pair_of(make, grid[0] * grid[1], num_values, key)
