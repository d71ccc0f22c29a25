"""Networks of Koopman autoencoders."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Decoder(eqx.Module):
    """A network of each state with one hidden layer; without it an affine map.

    Args:
        num_states: size of a state.
        num_channels: of a series.
        num_hidden: width of the hidden layer; 0: none.
        key: PRNG key.
    """

    mlp: eqx.nn.MLP

    def __init__(self, num_states: int, num_channels: int, num_hidden: int, *, key: Array) -> None:
        depth = int(num_hidden > 0)
        self.mlp = eqx.nn.MLP(num_states, num_channels, num_hidden, depth, jax.nn.silu, key=key)

    def __call__(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch c"]:
        """Means of the channels given states."""
        flat = z.reshape(-1, z.shape[-1])
        if len(self.mlp.layers) == 1:  # written out, so that it is seen to be affine
            layer = self.mlp.layers[0]
            assert layer.bias is not None
            made = flat @ layer.weight.T + layer.bias
        else:
            made = jax.vmap(self.mlp)(flat)
        return made.reshape(*z.shape[:-1], made.shape[-1])


class Encoder(eqx.Module):
    """Observations of states made up from a series: two recurrent networks, one from each end, and a layer on both.

    Args:
        num_channels: of a series.
        num_states: size of a state.
        num_hidden: width of each recurrent network.
        key: PRNG key.
    """

    forth: eqx.nn.GRUCell
    back: eqx.nn.GRUCell
    last: eqx.nn.Linear

    def __init__(self, num_channels: int, num_states: int, num_hidden: int, *, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.forth = eqx.nn.GRUCell(2 * num_channels, num_hidden, key=keys[0])
        self.back = eqx.nn.GRUCell(2 * num_channels, num_hidden, key=keys[1])
        self.last = eqx.nn.Linear(2 * num_hidden, 2 * num_states, key=keys[2])

    def __call__(
        self, x: Float[Array, "n t c"], seen: Bool[Array, "n t c"]
    ) -> tuple[Float[Array, "n t d"], Float[Array, "n t d"]]:
        """Made-up observations and their precisions, 0 at steps of which nothing is seen; missing cells are not read."""
        given = jnp.concatenate([jnp.where(seen, x, 0.0), seen.astype(x.dtype)], -1)

        def states(cell: eqx.nn.GRUCell, series: Array) -> Array:
            def step(h: Array, row: Array) -> tuple[Array, Array]:
                new = cell(row, h)
                return new, new

            return jax.lax.scan(step, jnp.zeros(cell.hidden_size), series)[1]

        def of_one(series: Array) -> Array:
            both = [states(self.forth, series), states(self.back, series[::-1])[::-1]]
            return jax.vmap(self.last)(jnp.concatenate(both, -1))

        at, log_precision = jnp.split(jax.vmap(of_one)(given), 2, axis=-1)
        return at, jnp.where(seen.any(-1, keepdims=True), jnp.exp(log_precision), 0.0)
