"""Networks that learn a diffusion model: they see the noise level and, where there are classes, a label that may be missing.

A network maps `(x, level, label)` to an array of the shape of x. x is the noisy point, scaled to unit variance for data of unit
variance; `level` = log(std / alpha) / 4; `label` is an integer, or `num_classes` for "unknown".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._unet import UNet

NUM_FEATURES = 32


class Condition(eqx.Module):
    """Vector of noise level and label: sines and cosines of the level and an embedding, through one hidden layer."""

    labels: eqx.nn.Embedding
    mix: eqx.nn.MLP

    def __init__(self, num_classes: int, num_out: int, *, key: Array) -> None:
        keys = jax.random.split(key)
        self.labels = eqx.nn.Embedding(num_classes + 1, NUM_FEATURES, key=keys[0])
        self.mix = eqx.nn.MLP(2 * NUM_FEATURES, num_out, num_out, 1, jax.nn.silu, key=keys[1])

    def __call__(self, level: Float[Array, ""], label: Int[Array, ""]) -> Float[Array, " out"]:
        """The vector for one point."""
        # Levels lie within about (-2, 2): wave lengths from 12 down to 0.4.
        angles = level * jnp.geomspace(0.5, 16.0, NUM_FEATURES // 2)
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles), self.labels(label)])
        return self.mix(features)


class MLP(eqx.Module):
    """Residual multilayer perceptron on the flattened point, each layer shifted by the condition.

    Args:
        shape: shape of a point.
        num_classes: number of labels, 0 for none.
        width: hidden units.
        depth: number of residual layers.
        key: PRNG key of the initial values.
    """

    first: eqx.nn.Linear
    layers: list[eqx.nn.MLP]
    last: eqx.nn.Linear
    condition: Condition
    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 3,
        key: Array,
    ) -> None:
        keys = jax.random.split(key, depth + 3)
        size = math.prod(shape)
        self.num_classes = num_classes
        self.first = eqx.nn.Linear(size, width, key=keys[0])
        self.layers = [eqx.nn.MLP(width, width, width, 1, jax.nn.silu, key=k) for k in keys[3:]]
        self.last = eqx.nn.Linear(width, size, key=keys[1])
        self.condition = Condition(num_classes, width, key=keys[2])

    def __call__(
        self, x: Float[Array, " *shape"], level: Float[Array, ""], label: Int[Array, ""]
    ) -> Float[Array, " *shape"]:
        """The prediction at one point."""
        condition = self.condition(level, label)
        hidden = self.first(x.ravel())
        for layer in self.layers:
            hidden = hidden + layer(jax.nn.silu(hidden + condition))
        return self.last(jax.nn.silu(hidden)).reshape(x.shape)


class ImageNet(eqx.Module):
    """`UNet` on images [channels, height, width] with noise level and label.

    Args:
        num_channels: channels of an image.
        num_classes: number of labels, 0 for none.
        widths: as for `UNet`.
        key: PRNG key of the initial values.
    """

    net: UNet
    condition: Condition
    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        num_channels: int = 1,
        *,
        num_classes: int = 0,
        widths: Sequence[int] = (32, 64, 64),
        key: Array,
    ) -> None:
        keys = jax.random.split(key)
        self.num_classes = num_classes
        self.net = UNet(num_channels, widths, 4 * NUM_FEATURES, key=keys[0])
        self.condition = Condition(num_classes, 4 * NUM_FEATURES, key=keys[1])

    def __call__(
        self,
        x: Float[Array, "channels height width"],
        level: Float[Array, ""],
        label: Int[Array, ""],
    ) -> Float[Array, "channels height width"]:
        """The prediction at one image."""
        return self.net(x, self.condition(level, label))
