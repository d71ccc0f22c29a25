"""A small U-Net for images, conditional on a vector: what several model families share."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class ResidualBlock(eqx.Module):
    """x + conv(act(norm(conv(act(norm(x)))) (1 + scale) + shift)), scale and shift linear in the condition."""

    norms: tuple[eqx.nn.GroupNorm, eqx.nn.GroupNorm]
    convs: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]
    modulation: eqx.nn.Linear
    skip: eqx.nn.Conv2d | None

    def __init__(self, num_in: int, num_out: int, num_condition: int, *, key: Array) -> None:
        keys = jax.random.split(key, 4)
        self.norms = tuple(eqx.nn.GroupNorm(min(8, n), n) for n in (num_in, num_out))  # pyright: ignore
        self.convs = (
            eqx.nn.Conv2d(num_in, num_out, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(num_out, num_out, 3, padding=1, key=keys[1]),
        )
        self.modulation = eqx.nn.Linear(num_condition, 2 * num_out, key=keys[2])
        self.skip = None if num_in == num_out else eqx.nn.Conv2d(num_in, num_out, 1, key=keys[3])

    def __call__(
        self, x: Float[Array, "in height width"], condition: Float[Array, " condition"]
    ) -> Float[Array, "out height width"]:
        """One image."""
        scale, shift = jnp.split(self.modulation(jax.nn.silu(condition))[:, None, None], 2)
        hidden = self.convs[0](jax.nn.silu(self.norms[0](x)))
        hidden = self.norms[1](hidden) * (1 + scale) + shift
        hidden = self.convs[1](jax.nn.silu(hidden))
        return hidden + (x if self.skip is None else self.skip(x))


class UNet(eqx.Module):
    """Image to image, given a condition vector: residual blocks at falling and rising resolution with skips between them.

    Args:
        num_channels: channels of the image that goes in.
        widths: channels at each resolution; every further one halves height and width, which must be divisible.
        num_condition: length of the condition vector.
        num_outputs: channels of the image that comes out, as many as go in by default.
        key: PRNG key of the initial values.

    The last layer starts at zero, so that the output does.

    Reference: Ronneberger, Fischer and Brox 2015, arXiv:1505.04597; blocks as in Ho, Jain and Abbeel 2020, arXiv:2006.11239.
    """

    first: eqx.nn.Conv2d
    down: list[ResidualBlock]
    middle: ResidualBlock
    up: list[ResidualBlock]
    last: eqx.nn.Conv2d

    def __init__(
        self,
        num_channels: int,
        widths: Sequence[int],
        num_condition: int,
        *,
        num_outputs: int | None = None,
        key: Array,
    ) -> None:
        num_outputs = num_channels if num_outputs is None else num_outputs
        keys = iter(jax.random.split(key, 2 * len(widths) + 3))
        self.first = eqx.nn.Conv2d(num_channels, widths[0], 3, padding=1, key=next(keys))
        inputs = [widths[0], *widths[:-1]]
        self.down = [
            ResidualBlock(a, b, num_condition, key=next(keys))
            for a, b in zip(inputs, widths, strict=True)
        ]
        self.middle = ResidualBlock(widths[-1], widths[-1], num_condition, key=next(keys))
        self.up = [
            ResidualBlock(2 * b, a, num_condition, key=next(keys))
            for a, b in zip(reversed(inputs), reversed(widths), strict=True)
        ]
        last = eqx.nn.Conv2d(widths[0], num_outputs, 3, padding=1, key=next(keys))
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(
        self, x: Float[Array, "channels height width"], condition: Float[Array, " condition"]
    ) -> Float[Array, "outputs height width"]:
        """One image."""
        hidden, skips = self.first(x), []
        for level, block in enumerate(self.down):
            if level:
                hidden = _halved(hidden)
            hidden = block(hidden, condition)
            skips.append(hidden)
        hidden = self.middle(hidden, condition)
        for level, block in enumerate(self.up):
            hidden = block(jnp.concatenate([hidden, skips.pop()]), condition)
            if level < len(self.up) - 1:
                hidden = _doubled(hidden)
        return self.last(jax.nn.silu(hidden))


def _halved(x: Array) -> Array:
    """Means over 2 x 2 pixels."""
    channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"UNet: {height} x {width} pixels cannot be halved. Pad the image, or use fewer widths."
        )
    return x.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
