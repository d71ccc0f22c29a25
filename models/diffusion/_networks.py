"""Networks that learn a diffusion model: they see the noise level and a condition, a label or arrays, that may be hidden.

A network maps `(x, level, context)` to an array of the shape of x. x is the noisy point, scaled to unit variance for data of unit
variance; `level` = log(std / alpha) / 4; `context` is an integer, or `num_classes` for "unknown", or of `_contexts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._unet import UNet
from ._contexts import Context, num_labels, shown_or, takes_context

NUM_FEATURES = 32


class Condition(eqx.Module):
    """Vector of noise level and context: sines and cosines of the level and a code of the context, through one hidden layer."""

    labels: eqx.nn.Embedding
    encoder: Any
    mix: eqx.nn.MLP

    def __init__(self, num_classes: int, encoder: object, num_out: int, *, key: Array) -> None:
        keys = jax.random.split(key)
        self.labels = eqx.nn.Embedding(num_classes + 1, NUM_FEATURES, key=keys[0])
        self.encoder = encoder
        self.mix = eqx.nn.MLP(2 * NUM_FEATURES, num_out, num_out, 1, jax.nn.silu, key=keys[1])

    def __call__(self, level: Float[Array, ""], context: PyTree) -> Float[Array, " out"]:
        """The vector for one point."""
        # Levels lie within about (-2, 2): wave lengths from 12 down to 0.4.
        angles = level * jnp.geomspace(0.5, 16.0, NUM_FEATURES // 2)
        code = self._code(context)
        return self.mix(jnp.concatenate([jnp.sin(angles), jnp.cos(angles), code]))

    def _code(self, context: PyTree) -> Array:
        if context is not None and not isinstance(context, Context):
            # JAX would read another label for what is none.
            is_label = (context >= 0) & (context < self.labels.num_embeddings)
            return jnp.where(is_label, self.labels(context), jnp.nan)
        unknown = self.labels.weight[-1]
        return unknown if self.encoder is None else shown_or(unknown, self.encoder, context)


class MLP(eqx.Module):
    """Residual multilayer perceptron on the flattened point, each layer shifted by the condition.

    Args:
        shape: shape of a point.
        num_classes: number of labels, 0 for none.
        encoder: in place of labels, any equinox module from one point's context, a tree of arrays, to a vector of 32 numbers,
            e.g. `eqx.nn.MLP(5, 32, 64, 1, key=key)` or `SetEncoder`. It is trained with the network.
        width: hidden units.
        depth: number of residual layers.
        key: PRNG key of the initial values.

    Raises:
        ValueError: classes and an encoder.
    """

    first: eqx.nn.Linear
    layers: list[eqx.nn.MLP]
    last: eqx.nn.Linear
    condition: Condition
    num_classes: int = eqx.field(static=True)
    takes_context: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_classes: int = 0,
        encoder: MLP | None = None,
        width: int = 128,
        depth: int = 3,
        key: Array,
    ) -> None:
        check_one_kind("MLP", num_classes, encoder is not None)
        keys = jax.random.split(key, depth + 3)
        size = math.prod(shape)
        self.num_classes, self.takes_context = num_classes, encoder is not None
        self.first = eqx.nn.Linear(size, width, key=keys[0])
        self.layers = [eqx.nn.MLP(width, width, width, 1, jax.nn.silu, key=k) for k in keys[3:]]
        self.last = eqx.nn.Linear(width, size, key=keys[1])
        self.condition = Condition(num_classes, encoder, width, key=keys[2])

    def __call__(
        self, x: Float[Array, " *shape"], level: Float[Array, ""], context: PyTree
    ) -> Float[Array, " *shape"]:
        """The prediction at one point."""
        condition = self.condition(level, context)
        hidden = self.first(x.ravel())
        for layer in self.layers:
            hidden = hidden + layer(jax.nn.silu(hidden + condition))
        return self.last(jax.nn.silu(hidden)).reshape(x.shape)


class ImageNet(eqx.Module):
    """`UNet` on images [channels, height, width] with noise level and context.

    Args:
        num_channels: channels of an image.
        num_classes: number of labels, 0 for none.
        encoder: in place of labels, as for `MLP`.
        context_channels: channels of an image of the same height and width that is the context, and is put beside x with one
            channel that says whether it is shown. With an encoder too, the context is a pair (image, what the encoder takes).
        widths: as for `UNet`.
        key: PRNG key of the initial values.

    Raises:
        ValueError: classes together with an encoder or with context channels.
    """

    net: UNet
    condition: Condition
    num_classes: int = eqx.field(static=True)
    context_channels: int = eqx.field(static=True)
    takes_context: bool = eqx.field(static=True)

    def __init__(
        self,
        num_channels: int = 1,
        *,
        num_classes: int = 0,
        encoder: object = None,
        context_channels: int = 0,
        widths: Sequence[int] = (32, 64, 64),
        key: Array,
    ) -> None:
        self.takes_context = encoder is not None or context_channels > 0
        check_one_kind("ImageNet", num_classes, self.takes_context)
        keys = jax.random.split(key)
        self.num_classes, self.context_channels = num_classes, context_channels
        num_in = num_channels + (context_channels + 1 if context_channels else 0)
        self.net = UNet(num_in, widths, 4 * NUM_FEATURES, num_outputs=num_channels, key=keys[0])
        self.condition = Condition(num_classes, encoder, 4 * NUM_FEATURES, key=keys[1])

    def __call__(
        self, x: Float[Array, "channels height width"], level: Float[Array, ""], context: PyTree
    ) -> Float[Array, "channels height width"]:
        """The prediction at one image."""
        if not self.context_channels:
            return self.net(x, self.condition(level, context))
        rest, beside = context, jnp.zeros((self.context_channels + 1, *x.shape[1:]), x.dtype)
        if context is not None:
            image = context.value
            if self.condition.encoder is not None:
                image, others = context.value
                rest = Context(others, context.is_shown)
            shown = jnp.concatenate([image, jnp.ones((1, *x.shape[1:]), x.dtype)])
            beside = jnp.where(context.is_shown, shown, beside)
        return self.net(jnp.concatenate([x, beside]), self.condition(level, rest))


def check_one_kind(name: str, num_classes: int, has_context: bool) -> None:
    """Refuse labels beside other contexts."""
    if num_classes and has_context:
        raise ValueError(
            f"{name}: num_classes={num_classes} and a context of arrays. Put the label into the context, and embed it in the "
            "encoder."
        )


class LevelNet(eqx.Module):
    """The denoiser of points that lie at levels: a network says what the other coordinates make of each, Bayes' rule the rest.

        p(x_i = v | x_t)  in proportion to  exp(net_iv) Normal(x_ti; alpha v, variance),   prediction: the velocity of its mean.

    The network sees x_t beside the probabilities of each level by its own noisy value alone. One of less width than coordinates
    cannot pass on all of them, and at little noise its prediction of a point is off by more than the noise: of 14 x 14
    pixels in 8 levels its bound was 280 nats lower.

    Args:
        net: a network (`MLP`) of shape [*shape, levels], with any labels or context; its last axis are logits of levels.
        levels: all values that a coordinate may have, in the scale of x.

    Raises:
        ValueError: levels that are not two or more different numbers.

    Validity: with `predicts="velocity"`, which is the default of `score_matching` and `from_network`, for any noising process.
    Where coordinates are independent the score is exact once net_iv = log p(x_i = v), whatever the noise. For log p of the
    levels: `bound(levels=)`.

    Reference: the posterior over levels of independent noise, as in Kingma et al. 2021, arXiv:2107.00630, section 3.3.
    """

    net: Any
    levels: tuple[float, ...] = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    takes_context: bool = eqx.field(static=True)

    def __init__(self, net: object, levels: Float[ArrayLike, " levels"]) -> None:
        self.net, self.levels = net, tuple(level_values("LevelNet", levels).tolist())
        self.num_classes = num_labels(net)
        self.takes_context = takes_context(net)

    def __call__(
        self, x: Float[Array, " *shape"], level: Float[Array, ""], context: PyTree
    ) -> Float[Array, " *shape"]:
        """The velocity at one point, x of unit variance."""
        values, ratio = jnp.asarray(self.levels), jnp.exp(4 * level)  # std / alpha
        alpha = 1 / jnp.sqrt(1 + ratio**2)  # of x as it comes, whose squares add up to 1
        std = ratio * alpha
        near = -0.5 * jnp.square((x[..., None] - alpha * values) / std)
        # Of probabilities that add up to 1 the first is left out, and its place is x's.
        seen = jnp.concatenate([x[..., None], jax.nn.softmax(near)[..., 1:]], -1)
        mean = jax.nn.softmax(self.net(seen, level, context) + near) @ values
        return (alpha * x - mean) / std


def level_values(name: str, levels: PyTree) -> np.ndarray:
    """The levels as a vector; refuses what are none."""
    found = np.asarray(levels, float)
    if found.ndim != 1 or len(found) < 2 or not np.all(np.isfinite(found)) or len(set(found.tolist())) < len(found):  # fmt: skip
        raise ValueError(
            f"{name}: levels must be two or more different numbers, got shape {found.shape}. Give all values that a coordinate "
            "may have, in the scale of x."
        )
    return found
