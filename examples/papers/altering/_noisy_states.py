"""The tilt of a learned diffusion on its way: what a reward of the end is worth at noisy states, and networks that learn it.

At noisy states x_t the tilt by r has the score of the model plus that of E[exp(r(x_0)) | x_t] (Doob's transform). For a reward of
at most 0 that is the probability that the end is kept, which a classifier of noised draws of the model learns, without data.
"""

from collections.abc import Callable
from typing import Any

import _altered_digits as altered
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _altered_digits import GRID, SIZE, VP

from lapilli import inference, ppl


def noised(x: Any, key: jax.Array, number: int) -> tuple[Any, Any, Any]:
    """Numbers of rows drawn anew, what noise makes of them, and the noising times."""
    keys = jax.random.split(key, 3)
    rows = jax.random.randint(keys[0], (number,), 0, len(x))
    at = jax.random.uniform(keys[1], (number,))
    t = jnp.interp(at, jnp.linspace(0, 1, len(GRID)), GRID)
    noise = VP.std(t)[:, None] * jax.random.normal(keys[2], (number, SIZE))
    return rows, VP.alpha(t)[:, None] * x[rows] + noise, t


def trained(loss: Callable[[Any, jax.Array], Any], network: Any, key: jax.Array, num_steps: int, rate: float) -> Any:  # fmt: skip
    """The network where a loss of it, and of a key that is new in each step, is least; averaged weights."""

    @inference.objective(direction="min", weighing="refused")
    def objective(model: ppl.Program, guide: ppl.Program) -> Any:
        return loss(guide(), ppl.rng_key("noise"))

    fit = inference.fit(
        objective(lambda: None, lambda: ppl.module("network", network)),
        optax.adamw(optax.cosine_decay_schedule(rate, num_steps), weight_decay=1e-3), (),
        num_steps=num_steps, key=key, average=0.995, progress=False,
    )  # fmt: skip
    return altered.with_values(network, fit.params["network"])


def log_kept(
    reward: Callable[[Any], Any], drawn: np.ndarray, key: jax.Array, num_steps: int
) -> Callable[[Any, Any], Any]:
    """(x, t) -> log E[exp(reward(x_0)) | x_t = x], learned from draws of the model."""
    x = jnp.asarray(drawn)
    kept = jnp.exp(jax.vmap(reward)(x))

    def logit(net: Any, x: Any, t: Any) -> Any:
        angles = 0.25 * jnp.log(VP.std(t) / VP.alpha(t)) * jnp.geomspace(0.5, 8.0, 5)
        size = jnp.sqrt(VP.alpha(t) ** 2 + VP.variance(t))
        return net(jnp.concatenate([x / size, jnp.sin(angles), jnp.cos(angles)]))

    def loss(net: Any, key: jax.Array) -> Any:
        rows, noisy, t = noised(x, key, 256)
        logits = jax.vmap(lambda x, t: logit(net, x, t))(noisy, t)
        return (jax.nn.softplus(logits) - kept[rows] * logits).mean()

    net = eqx.nn.MLP(SIZE + 10, "scalar", 128, 2, jax.nn.silu, key=key)
    net = trained(loss, net, key, num_steps, 2e-3)
    return lambda x, t: jax.nn.log_sigmoid(logit(net, x, t))


def distilled(network: Any, teacher: Any, kept: np.ndarray, key: jax.Array, num_steps: int, rate: float) -> Any:  # fmt: skip
    """The network, or its adapters, taught another model's score at noised points."""
    x = jnp.asarray(kept)

    def loss(net: Any, key: jax.Array) -> Any:
        ours, (_, noisy, t) = altered.model_of(net), noised(x, key, 128)
        gap = lambda x, t: VP.std(t) * (ours.score(x, t) - teacher.score(x, t))
        return jnp.square(jax.vmap(gap)(noisy, t)).mean()

    return trained(loss, network, key, num_steps, rate)
