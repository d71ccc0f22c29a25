"""Training of a member of the family on series in standard units, with parameters chosen by series that are held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .... import ppl
from ....inference import iwelbo
from ..._series import Series
from .._dropout import obs_dropout
from .._impute import draws
from .._programs import Imputer


class Recipe(NamedTuple):
    """How an estimator trains; see `SeriesImputer`.

    Attributes:
        num_particles: K.
        num_steps: of the optimiser, at most.
        learning_rate: of Adam, after a linear warm-up over 5% of the steps, with a cosine decay to zero.
        dropout: rate of `obs_dropout`.
        weight_decay: of the classifier.
    """

    num_particles: int
    num_steps: int
    learning_rate: float
    dropout: float = 0.0
    weight_decay: float = 0.0


def bound(imputer: Imputer, recipe: Recipe) -> Any:
    """The objective."""
    model = obs_dropout(imputer.model, recipe.dropout)
    return iwelbo(
        model, imputer.guide, num_particles=recipe.num_particles, per="rows", check_jumps=False
    )


def optimizer(recipe: Recipe, has_classifier: bool) -> PyTree:
    import optax  # on use: a tenth of a second

    warm = max(1, recipe.num_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(
        0, recipe.learning_rate, warm, max(recipe.num_steps, warm + 1)
    )
    adam = optax.chain(optax.clip_by_global_norm(1e3), optax.adam(rate))
    if not has_classifier:
        return adam
    return {"classifier": optax.adamw(rate, weight_decay=recipe.weight_decay), "[!c]*": adam}


def held_out_loss(imputer: Imputer, held: Series, num_particles: int) -> Callable[..., PyTree]:
    """Minus the log-evidence estimate of the held-out series, or of their labels given the series; nats per series."""

    @jax.jit
    def loss(params: ppl.Params, key: Array, held: Series) -> Array:
        model, guide = imputer.model.bind(params), imputer.guide.bind(params)
        found = draws(model, guide, held._replace(labels=None), key, num_particles, 1)
        log_weights = found.log_weights[:, 0]
        if held.labels is None:
            return (jnp.log(num_particles) - jax.nn.logsumexp(log_weights, 0)).mean()
        log_y = jax.nn.log_softmax(found.logits[:, 0])
        labels = jnp.asarray(held.labels)
        log_y = log_y[:, jnp.arange(len(labels)), labels]
        return -jax.nn.logsumexp(jax.nn.log_softmax(log_weights, 0) + log_y, 0).mean()

    return lambda params, key: loss(params, key, held)


def shapes(imputer: Imputer, recipe: Recipe, data: Series) -> Any:
    """The parameters' tree, with shapes for arrays."""
    return jax.eval_shape(lambda: dict(bound(imputer, recipe).init(jax.random.key(0), data)))


def bind(imputer: Imputer, params: PyTree) -> tuple[ppl.Program, ppl.Program]:
    """Model and guide with their parameters."""
    return imputer.model.bind(params), imputer.guide.bind(params)
