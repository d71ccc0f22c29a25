"""A conditional variational autoencoder: images of the classes that are asked for.

z_n ~ Normal(0, I),   x_n | z_n, y_n ~ Normal(decoder(z_n, y_n), scale^2),   guide q(z_n | x_n, y_n) normal.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl


def programs(size: int, classes: int, codes: int, width: int, key: jax.Array) -> Any:
    """Model and guide, of labels [rows] and images [rows, size]; without images the model draws them."""
    keys = jax.random.split(key)
    mlp = lambda a, b, key: eqx.nn.MLP(a, b, width, 2, jax.nn.silu, key=key)
    decoder, encoder = mlp(codes + classes, size, keys[0]), mlp(size + classes, 2 * codes, keys[1])
    beside = lambda net, x, labels: jax.vmap(net)(jnp.concatenate([x, jax.nn.one_hot(labels, classes)], 1))  # fmt: skip

    @ppl.model
    def model(labels, x=None):
        decode = ppl.module("decoder", decoder)
        scale = ppl.param("scale", 0.2, constraint=dist.constraints.positive)
        ppl.deterministic("noise", scale)
        with ppl.plate("rows", labels.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([codes]).to_event(1))
            image = beside(decode, z, labels)
            ppl.sample("x", dist.Normal(image, scale).to_event(1), obs=x)

    @ppl.model
    def guide(labels, x):
        encode = ppl.module("encoder", encoder)
        with ppl.plate("rows", labels.shape[0]):
            mean, log_scale = jnp.split(beside(encode, x, labels), 2, axis=-1)
            ppl.sample("z", dist.Normal(mean, jnp.exp(log_scale - 1)).to_event(1))

    return model, guide


def trained(
    x: np.ndarray, labels: np.ndarray, key: jax.Array, *, classes: int, steps: int, codes: int = 8, width: int = 64
) -> tuple[Callable[[np.ndarray, jax.Array], np.ndarray], float]:  # fmt: skip
    """A function of labels and a key that draws as many images, noise of the pixels included; and the scale of that noise."""
    init_key, fit_key = jax.random.split(key)
    model, guide = programs(x.shape[1], classes, codes, width, init_key)
    fit = inference.fit(
        inference.elbo(model, guide), optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
        (jnp.asarray(labels), jnp.asarray(x, jnp.float32)), num_steps=steps, key=fit_key,
        subsample={"rows": min(64, len(x))}, average=0.99, progress=False,
    )  # fmt: skip
    bound = model.bind(fit.params)
    draw = jax.jit(lambda labels, key: bound.simulate(key, labels).choices["x"])
    scale = float(bound.simulate(key, jnp.zeros(1, int)).deterministic["noise"])
    return lambda labels, key: np.asarray(draw(jnp.asarray(labels), key), float), scale
