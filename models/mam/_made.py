"""MADE: a masked autoencoder, the autoregressive baseline of one fixed order."""

from __future__ import annotations

from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ... import inference, ppl
from .._categories import value_error


class MADE(eqx.Module):
    """Log p(x) = sum_d log p(x_d | x_1, ..., x_{d-1}), all conditionals in one pass of a masked network.

    A hidden unit of degree m sees variables 1 to m and units of degree m at most; the logits of variable d see units of a
    degree below d. Uniform at the start.

    Args:
        num_variables: D >= 2.
        num_values: K.
        width: hidden units of each layer, whose degrees are spread evenly over 1, ..., D - 1.
        depth: hidden layers.
        key: PRNG key of the initial values.

    Reference: Germain et al. 2015, arXiv:1502.03509.
    """

    layers: tuple[eqx.nn.Linear, ...]
    num_variables: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def __init__(
        self, num_variables: int, num_values: int, *, width: int = 256, depth: int = 2, key: Array
    ) -> None:
        self.num_variables, self.num_values = num_variables, num_values
        sizes = [num_variables * num_values, *[width] * depth, num_variables * num_values]
        keys = jax.random.split(key, depth + 1)
        layers = [
            eqx.nn.Linear(*pair, key=k)
            for pair, k in zip(zip(sizes, sizes[1:], strict=False), keys, strict=True)
        ]
        layers[-1] = jax.tree.map(jnp.zeros_like, layers[-1])
        self.layers = tuple(layers)

    def logits(self, values: Int[Array, " variables"]) -> Float[Array, "variables values"]:
        """Logits of every variable given those before it."""
        hidden = jax.nn.one_hot(values, self.num_values).ravel()
        for i, (layer, mask) in enumerate(zip(self.layers, self._masks(), strict=True)):
            assert layer.bias is not None
            hidden = (layer.weight * mask) @ hidden + layer.bias
            if i + 1 < len(self.layers):
                hidden = jax.nn.leaky_relu(hidden)
        return hidden.reshape(self.num_variables, self.num_values)

    def log_prob(self, values: Int[Array, " variables"]) -> Float[Array, ""]:
        """Log p(x) of values 0 to K - 1, nats; NaN under jit where one is none of them.

        Raises:
            ValueError: known values that are none.
        """
        error = value_error("MADE", values, self.num_values)
        values = jnp.asarray(values).astype(int)
        log_probs = jax.nn.log_softmax(self.logits(values))
        return jnp.take_along_axis(log_probs, values[:, None], 1).sum() + error

    def _masks(self) -> list[np.ndarray]:
        """0 or 1 for every weight, [out, in]."""
        width = self.layers[0].out_features
        assert isinstance(width, int)
        variables = np.repeat(np.arange(1, self.num_variables + 1), self.num_values)
        hidden = 1 + np.arange(width) * (self.num_variables - 1) // width
        degrees = [variables, *[hidden] * (len(self.layers) - 1)]
        masks = [
            after[:, None] >= before for before, after in zip(degrees, degrees[1:], strict=False)
        ]
        return [*masks, variables[:, None] > degrees[-1]]


class Autoregressive(Protocol):
    """What has a log-density of one row."""

    def log_prob(self, values: Int[Array, " variables"], /) -> Float[Array, ""]:
        """Log p(x) of values 0 to K - 1, nats."""
        ...


def autoregressive(network: Autoregressive) -> inference.Objective:
    """Maximum likelihood of a `MADE` or `CausalTransformer`: sum_n log p(x_n), nats.

    Argument: x, [rows, D]; plate "rows"; parameter "network".

    Args:
        network: what is trained.
    """

    @ppl.model
    def model(x: Array) -> None:
        declared = ppl.module("network", network)
        with ppl.plate("rows", len(x)):
            ppl.factor("x", jax.vmap(declared.log_prob)(jnp.asarray(x)))

    return inference.elbo(model, ppl.model(lambda x: None))
