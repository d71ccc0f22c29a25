"""GRU-D: a recurrent classifier of series with gaps, without a law of the missing cells."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from lapilli import ppl
from lapilli.models.imputation import Series


class GRUD(eqx.Module):
    """Class logits of one series by a GRU whose inputs and state decay with the time since each channel was last seen.

        x_t = m x + (1 - m) g_x x_last,   h_{t-1} <- g_h h_{t-1},   h_t = GRU([x_t, m], h_{t-1}),
        g_x = exp(-relu(w delta + b)) by channel,   g_h = exp(-relu(W delta + b)),

    in units in which a channel's mean is zero; delta is the time since the channel was last seen (since the first step where
    it never was).

    Args:
        num_channels: D.
        num_classes: C.
        num_hidden: H.
        key: PRNG key.

    Reference: Che et al. 2018, arXiv:1606.01865, equations 10 to 14.
    """

    cell: eqx.nn.GRUCell
    state_decay: eqx.nn.Linear
    input_weight: Float[Array, " D"]
    input_bias: Float[Array, " D"]
    head: eqx.nn.Linear

    def __init__(self, num_channels: int, num_classes: int, num_hidden: int, *, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.cell = eqx.nn.GRUCell(2 * num_channels, num_hidden, key=keys[0])
        self.state_decay = eqx.nn.Linear(num_channels, num_hidden, key=keys[1])
        self.input_weight, self.input_bias = jnp.full(num_channels, 0.1), jnp.zeros(num_channels)
        self.head = eqx.nn.Linear(num_hidden, num_classes, key=keys[2])

    def __call__(
        self,
        x: Float[Array, "T D"],
        seen: Bool[Array, "T D"],
        times: Float[Array, " T"],
        valid: Bool[Array, " T"],
    ) -> Float[Array, " C"]:
        """Logits; cells that are not seen are not read."""

        def step(
            carry: tuple[Array, Array, Array], inputs: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array, Array], None]:
            h, last, last_time = carry
            x, seen, time, exists = inputs
            delta = time - last_time
            share = jnp.exp(-jax.nn.relu(self.input_weight * delta + self.input_bias))
            value = jnp.where(seen, x, share * last)
            decayed = jnp.exp(-jax.nn.relu(self.state_decay(delta))) * h
            new = self.cell(jnp.concatenate([value, seen.astype(x.dtype)]), decayed)
            moved = (new, jnp.where(seen, x, last), jnp.where(seen, time, last_time))
            old = (h, last, last_time)
            return tuple(jnp.where(exists, a, b) for a, b in zip(moved, old, strict=True)), None  # pyright: ignore

        zero = jnp.zeros(x.shape[1])
        start = (jnp.zeros(self.cell.hidden_size), zero, jnp.full(x.shape[1], times[0]))
        (h, _, _), _ = jax.lax.scan(step, start, (x, seen, times, valid))
        return self.head(h)


def gru_d(num_channels: int, num_classes: int, *, num_hidden: int = 32, key: Array) -> ppl.Program:
    """A program of one `Series`: site "y" given the observed cells, deterministic "logits"; parameter "classifier".

    Args:
        num_channels: D.
        num_classes: C.
        num_hidden: H.
        key: PRNG key of the initial values.
    """
    start = GRUD(num_channels, num_classes, num_hidden, key=key)

    @ppl.model
    def model(data: Series) -> None:
        classify = ppl.module("classifier", start)
        arrays = (jnp.asarray(a) for a in (data.values, data.observed, data.times, data.valid))
        with ppl.plate("rows", len(data.values)):
            logits = ppl.deterministic("logits", jax.vmap(classify)(*arrays))
            if data.labels is not None:
                ppl.sample("y", dist.CategoricalLogits(logits), obs=data.labels)

    return model
