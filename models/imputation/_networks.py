"""Networks over one series, each a map of [time, features] that steps which do not exist cannot influence.

A *backbone* is `(features [T, F], valid [T]) -> [T, H]`, zero at steps that do not exist. With `is_causal` step t sees steps
up to t only. Encoder, decoder and classifier are a backbone between linear maps; rows of a batch are added by `jax.vmap`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._transformer import Block

Kind = Literal["gru", "transformer", "conv", "linear"]

NUM_TIME_FEATURES = 8


class Backbone(Protocol):
    """See the module's text."""

    def __call__(
        self, features: Float[Array, "T F"], valid: Bool[Array, " T"]
    ) -> Float[Array, "T H"]:
        """Hidden features of every step."""
        ...


class Recurrent(eqx.Module):
    """A gated recurrent unit forwards in time and, unless causal, another one backwards, H / 2 features each.

    Reference: Cho et al. 2014, arXiv:1406.1078.
    """

    cells: tuple[eqx.nn.GRUCell, ...]

    def __init__(self, num_features: int, num_hidden: int, *, is_causal: bool, key: Array) -> None:
        count = 1 if is_causal else 2
        if num_hidden % count:
            raise ValueError(
                f"A recurrent backbone in both directions needs an even num_hidden, got {num_hidden}."
            )
        keys = jax.random.split(key, count)
        self.cells = tuple(eqx.nn.GRUCell(num_features, num_hidden // count, key=k) for k in keys)

    def __call__(
        self, features: Float[Array, "T F"], valid: Bool[Array, " T"]
    ) -> Float[Array, "T H"]:
        """Hidden states; a step that does not exist keeps the state of its neighbour."""

        def run(cell: eqx.nn.GRUCell, is_reversed: bool) -> Array:
            def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
                x, exists = inputs
                state = jnp.where(exists, cell(x, state), state)
                return state, state

            start = jnp.zeros(cell.hidden_size)
            return jax.lax.scan(step, start, (features, valid), reverse=is_reversed)[1]

        states = [run(cell, bool(i)) for i, cell in enumerate(self.cells)]
        return jnp.where(valid[:, None], jnp.concatenate(states, -1), 0)


class Transformer(eqx.Module):
    """A linear map followed by transformer blocks."""

    inputs: eqx.nn.Linear
    blocks: tuple[Block, ...]

    def __init__(
        self,
        num_features: int,
        num_hidden: int,
        *,
        is_causal: bool,
        key: Array,
        num_blocks: int = 1,
        num_heads: int = 2,
    ) -> None:
        first, *keys = jax.random.split(key, num_blocks + 1)
        self.inputs = eqx.nn.Linear(num_features, num_hidden, key=first)
        self.blocks = tuple(Block(num_hidden, num_heads, is_causal=is_causal, key=k) for k in keys)

    def __call__(
        self, features: Float[Array, "T F"], valid: Bool[Array, " T"]
    ) -> Float[Array, "T H"]:
        """Hidden features of every step."""
        x = jax.vmap(self.inputs)(features)
        for block in self.blocks:
            x = block(x, valid)
        return jnp.where(valid[:, None], x, 0)


class Convolution(eqx.Module):
    """A convolution over `width` neighbouring steps (over the last `width` ones if causal), then a map of each step."""

    convolution: eqx.nn.Conv1d
    output: eqx.nn.Linear

    def __init__(
        self, num_features: int, num_hidden: int, *, is_causal: bool, key: Array, width: int = 3
    ) -> None:
        keys = jax.random.split(key)
        padding = (width - 1, 0) if is_causal else ((width - 1) // 2, width // 2)
        self.convolution = eqx.nn.Conv1d(
            num_features, num_hidden, width, padding=(padding,), key=keys[0]
        )
        self.output = eqx.nn.Linear(num_hidden, num_hidden, key=keys[1])

    def __call__(
        self, features: Float[Array, "T F"], valid: Bool[Array, " T"]
    ) -> Float[Array, "T H"]:
        """Hidden features of every step; beyond the end of a series stand zeros, as beyond the end of the array."""
        x = self.convolution(jnp.where(valid[:, None], features, 0).T).T
        x = jax.nn.silu(jax.vmap(self.output)(jax.nn.silu(x)))
        return jnp.where(valid[:, None], x, 0)


class Pointwise(eqx.Module):
    """A linear map of each step by itself; a decoder of this kind under a GP prior makes Gaussian process factor analysis.

    Reference: Yu et al. 2009 (GPFA).
    """

    map: eqx.nn.Linear

    def __init__(self, num_features: int, num_hidden: int, *, is_causal: bool, key: Array) -> None:
        self.map = eqx.nn.Linear(num_features, num_hidden, key=key)

    def __call__(
        self, features: Float[Array, "T F"], valid: Bool[Array, " T"]
    ) -> Float[Array, "T H"]:
        """Features of every step."""
        return jnp.where(valid[:, None], jax.vmap(self.map)(features), 0)


def backbone(
    kind: Kind, num_features: int, num_hidden: int, *, is_causal: bool = False, key: Array
) -> Backbone:
    """A freshly initialised backbone.

    Args:
        kind: "gru", "transformer" (one block, two heads), "conv" (width 3) or "linear" (each step by itself).
        num_features: F, numbers read at each step.
        num_hidden: H, numbers made of each step.
        is_causal: whether a step sees only those before it and itself.
        key: PRNG key of the initial weights.

    Returns:
        A module from features [T, F] and the steps that exist, [T], to [T, H].

    Raises:
        ValueError: unknown kind.
    """
    kinds = {"gru": Recurrent, "transformer": Transformer, "conv": Convolution, "linear": Pointwise}
    if kind not in kinds:
        raise ValueError(f"No backbone of kind {kind!r}; choose from {sorted(kinds)}.")
    return kinds[kind](num_features, num_hidden, is_causal=is_causal, key=key)


def memory(kind: Kind) -> int | None:
    """Number of earlier steps that a causal backbone reads at each step; None if all.

    Args:
        kind: of the backbone, see `backbone`.
    """
    return {"conv": 2, "linear": 0}.get(kind)


def time_features(times: Float[Array, " T"]) -> Float[Array, "T n"]:
    """Sine (even i) or cosine (odd i) of t / 100^(i / (n - 1)), i = 0, ..., n - 1."""
    index = jnp.arange(NUM_TIME_FEATURES)
    angle = times[:, None] / 100.0 ** (index / (NUM_TIME_FEATURES - 1))
    return jnp.where(index % 2 == 0, jnp.sin(angle), jnp.cos(angle))


class GaussianHead(eqx.Module):
    """Location and scale of every step from a backbone; scale = softplus(.) + min_scale.

    Args:
        kind: of the backbone, see `backbone`.
        num_features: F, numbers read at each step.
        num_outputs: numbers that each step's law is of.
        num_hidden: width of the backbone.
        min_scale: least scale.
        is_causal: whether a step sees only those before it and itself.
        key: PRNG key of the initial weights.
    """

    backbone: Backbone
    head: eqx.nn.Linear
    min_scale: float = eqx.field(static=True)

    def __init__(
        self,
        kind: Kind,
        num_features: int,
        num_outputs: int,
        num_hidden: int,
        *,
        min_scale: float,
        is_causal: bool = False,
        key: Array,
    ) -> None:
        keys = jax.random.split(key)
        num_features += NUM_TIME_FEATURES
        self.backbone = backbone(kind, num_features, num_hidden, is_causal=is_causal, key=keys[0])
        head = eqx.nn.Linear(num_hidden, 2 * num_outputs, key=keys[1])
        # Near zero at first, so that what is added to it sets the start.
        self.head = eqx.tree_at(
            lambda h: (h.weight, h.bias), head, (0.1 * head.weight, jnp.zeros(2 * num_outputs))
        )
        self.min_scale = min_scale

    def __call__(
        self, features: Float[Array, "T F"], times: Float[Array, " T"], valid: Bool[Array, " T"]
    ) -> tuple[Float[Array, "T n"], Float[Array, "T n"]]:
        """(location, scale)."""
        features = jnp.concatenate([features, time_features(times)], -1)
        hidden = self.backbone(features, valid)
        loc, raw = jnp.split(jax.vmap(self.head)(hidden), 2, -1)
        return loc, jax.nn.softplus(raw) + self.min_scale


class Decay(eqx.Module):
    """A value between the last kept one and a generated one, the less of the former the longer ago it was.

        x_imp = g x_last + (1 - g) x,   g = exp(-relu(W delta + b)),

    delta the time since the last kept value of the channel; before the first, x_last = 0 at the first step's time. Kept cells
    pass unchanged.

    Args:
        num_channels: D.

    Reference: Che et al. 2018, arXiv:1606.01865 (GRU-D), with a generated value in place of the channel's mean.
    """

    weight: Float[Array, "D D"]
    bias: Float[Array, " D"]

    def __init__(self, num_channels: int) -> None:
        self.weight = jnp.zeros((num_channels, num_channels))
        self.bias = jnp.full(num_channels, 0.05)

    def __call__(
        self, x: Float[Array, "T D"], kept: Bool[Array, "T D"], times: Float[Array, " T"]
    ) -> Float[Array, "T D"]:
        """Values for a classifier."""
        steps = jnp.arange(len(times))[:, None]
        last = jax.lax.cummax(jnp.where(kept, steps, -1), axis=0)
        x_last = jnp.where(last < 0, 0, jnp.take_along_axis(x, jnp.maximum(last, 0), 0))
        delta = times[:, None] - times[jnp.maximum(last, 0)]
        share = jnp.exp(-jax.nn.relu(delta @ self.weight.T + self.bias))
        return jnp.where(kept, x, share * x_last + (1 - share) * x)


class Classifier(eqx.Module):
    """Class logits of a series: a backbone, mean and largest hidden feature over the steps that exist, a linear map.

    Args:
        kind: of the backbone.
        num_channels: D.
        num_classes: C.
        num_hidden: H.
        has_decay: pass missing cells through `Decay`.
        sees_mask: the backbone sees which cells are kept; then p(y | x, s) takes the place of p(y | x).
        key: PRNG key.
    """

    backbone: Backbone
    decay: Decay | None
    head: eqx.nn.Linear
    sees_mask: bool = eqx.field(static=True)

    def __init__(
        self,
        kind: Kind,
        num_channels: int,
        num_classes: int,
        num_hidden: int,
        *,
        has_decay: bool = False,
        sees_mask: bool = False,
        key: Array,
    ) -> None:
        keys = jax.random.split(key)
        num_features = num_channels * (1 + sees_mask) + NUM_TIME_FEATURES
        self.backbone = backbone(kind, num_features, num_hidden, key=keys[0])
        self.decay = Decay(num_channels) if has_decay else None
        self.head = eqx.nn.Linear(2 * num_hidden, num_classes, key=keys[1])
        self.sees_mask = sees_mask

    def __call__(
        self,
        x: Float[Array, "T D"],
        kept: Bool[Array, "T D"],
        times: Float[Array, " T"],
        valid: Bool[Array, " T"],
    ) -> Float[Array, " C"]:
        """Logits of one series; `kept` are the cells whose observed value `x` holds."""
        if self.decay is not None:
            x = self.decay(x, kept, times)
        parts = [x, kept.astype(x.dtype)] if self.sees_mask else [x]
        features = jnp.concatenate([*parts, time_features(times)], -1)
        hidden = self.backbone(features, valid)
        mean = hidden.sum(0) / valid.sum()
        largest = jnp.where(valid[:, None], hidden, -jnp.inf).max(0)
        return self.head(jnp.concatenate([mean, largest]))


Mechanism = Literal["self_masking", "linear", "network"]


class SelfMasking(eqx.Module):
    """Logits a_d x_d + b_d."""

    slope: Float[Array, " D"]
    bias: Float[Array, " D"]

    def __call__(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        """Logits of one step."""
        return self.slope * x + self.bias


def missingness(
    mechanism: Mechanism, num_channels: int, num_hidden: int, *, key: Array
) -> SelfMasking | eqx.nn.Linear | eqx.nn.MLP:
    """A map from the cells x_t of a step to the logits of p(s_t = 1 | x_t), s = 1 for an observed cell.

    "self_masking": a_d x_d + b_d, zero at first. "linear": A x + b. "network": two layers of H tanh units and a *linear* output,
    so that any rate can be expressed.

    Args:
        mechanism: one of these three.
        num_channels: D.
        num_hidden: H, of "network" alone.
        key: PRNG key of the initial weights.

    Raises:
        ValueError: unknown mechanism.

    Reference: Ipsen, Mattei and Frellsen 2021, arXiv:2006.12871 (not-MIWAE).
    """
    if mechanism == "self_masking":
        return SelfMasking(jnp.zeros(num_channels), jnp.zeros(num_channels))
    if mechanism == "linear":
        return eqx.nn.Linear(num_channels, num_channels, key=key)
    if mechanism == "network":
        return eqx.nn.MLP(num_channels, num_channels, num_hidden, 2, activation=jnp.tanh, key=key)
    raise ValueError(
        f"No missingness mechanism {mechanism!r}; choose 'self_masking', 'linear', 'network' or None."
    )
