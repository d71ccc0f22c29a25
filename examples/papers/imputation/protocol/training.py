"""Training of a member of the family, and of GRU-D, on a problem; parameters are chosen by the validation series."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lapilli import inference, ppl
from lapilli.models.imputation import (
    Imputation,
    Imputer,
    OverTime,
    Series,
    draws,
    impute,
    memory,
    obs_dropout,
    programs,
)

from .comparison import class_scores
from .gru_d import gru_d
from .problem import Problem, joined


class Recipe(NamedTuple):
    """How a member of the family is trained.

    Attributes:
        switches: options of `programs` beside the number of channels and classes.
        dropout: rate of `obs_dropout`.
        num_particles: K.
        num_imputations: J.
        gradient: of `inference.iwelbo`.
        num_steps: of the optimiser.
        batch_size: series a step.
        learning_rate: of Adam, after a linear warm-up over 5% of the steps, with a cosine decay to zero.
        weight_decay: of the classifier (AdamW).
        check_every: steps between looks at the validation series; the parameters with the best validation NLL are kept.
    """

    switches: dict[str, Any] = {}
    dropout: float = 0.3
    num_particles: int = 10
    num_imputations: int = 1
    gradient: Literal["full", "dreg"] = "full"
    num_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    check_every: int = 50


class Trained(NamedTuple):
    """A trained member.

    Attributes:
        model: the model with its parameters, without dropout.
        guide: the guide with its parameters.
        history: the bound at every step, nats per series.
        validation: steps and validation NLL (nats per series) at which the parameters were looked at.
        seconds: wall time of training, compilation included.
        memory: of the decoder, see `imputation.memory`.
    """

    model: ppl.Program
    guide: ppl.Program
    history: np.ndarray
    validation: list[tuple[int, float]]
    seconds: float
    memory: int | None = None


def train(task: Problem, recipe: Recipe, key: Any, *, progress: bool = False) -> Trained:
    """Train a member of the family on a problem, with a classifier.

    The parameters kept are those with the best NLL of the validation labels, each predicted by the mixture of K draws.

    Args:
        task: the problem.
        recipe: how to train.
        key: PRNG key of initial values, noise and minibatches.
        progress: show a bar.
    """
    start = time.perf_counter()
    keys = jax.random.split(key, 3)
    imputer = programs(
        task.truth.shape[-1], num_classes=task.num_classes, key=keys[0], **recipe.switches
    )
    bound = inference.iwelbo(
        obs_dropout(imputer.model, recipe.dropout), imputer.guide, num_particles=recipe.num_particles,
        num_imputations=recipe.num_imputations, per="rows", gradient=recipe.gradient, check_jumps=False,
    )  # fmt: skip
    best = inference.fitting.KeepBest(
        _validation_nll(imputer, task.valid, recipe.num_particles), keys[1]
    )
    schedule = _schedule(recipe)
    optimizer = {
        "classifier": optax.adamw(schedule, weight_decay=recipe.weight_decay),
        "[!c]*": optax.chain(optax.clip_by_global_norm(1e3), optax.adam(schedule)),
    }
    fit = _fit(bound, optimizer, task, recipe, best, keys[2], progress)
    return Trained(
        imputer.model.bind(best.params),
        imputer.guide.bind(best.params),
        np.asarray(fit.history["value"]) / len(task.train.values),
        best.losses,
        time.perf_counter() - start,
        memory(recipe.switches.get("decoder", "conv")),
    )


def evaluate(
    task: Problem, trained: Trained, key: Any, *, num_particles: int = 100, num_refinements: int = 0
) -> tuple[dict[str, float], Imputation]:
    """Scores on the test series by particles over time, and the imputation that they come from (see `impute`).

    "calibrated_nll", "calibrated_brier" and "calibrated_ece" are scores of the class probabilities at the "temperature" that
    suits the validation series best (`scores.temperature`).
    """
    start = time.perf_counter()
    found = impute(
        trained.model, trained.guide, joined(task.test, task.valid), key,
        num_particles=num_particles, method=OverTime(trained.memory), num_refinements=num_refinements,
    )  # fmt: skip
    seconds = trained.seconds + time.perf_counter() - start
    size = len(task.truth)
    found, held = found.rows(slice(0, size)), found.rows(slice(size, None))
    classes = class_scores(task, found.probs, held.probs)
    return {**task.scores(found), **classes, "seconds": seconds}, found


def recurrent_peer(task: Problem, recipe: Recipe, key: Any) -> dict[str, float]:
    """Scores of classes by GRU-D (`gru_d.GRUD`), trained with the recipe's optimiser, steps and choice by validation NLL.

    Args:
        task: the problem.
        recipe: of which the switch "num_hidden" and everything but dropout and draws count.
        key: PRNG key.
    """
    start = time.perf_counter()
    keys = jax.random.split(key, 3)
    model = gru_d(
        task.truth.shape[-1], task.num_classes, num_hidden=recipe.switches.get("num_hidden", 32), key=keys[0]
    )  # fmt: skip
    bound = inference.elbo(model, ppl.model(lambda data: None))
    size = len(task.valid.values)
    best = inference.fitting.KeepBest(
        jax.jit(lambda params, _: -model.bind(params).log_density({}, task.valid) / size), keys[1]
    )
    optimizer = optax.adamw(_schedule(recipe), weight_decay=recipe.weight_decay)
    _fit(bound, optimizer, task, recipe, best, keys[2], False)
    probs, held = (
        np.asarray(jax.nn.softmax(model.bind(best.params).simulate(keys[2], d).deterministic["logits"]))
        for d in (task.test, task.valid)
    )  # fmt: skip
    return {**class_scores(task, probs, held), "seconds": time.perf_counter() - start}


def _schedule(recipe: Recipe) -> optax.Schedule:
    steps = recipe.num_steps
    return optax.warmup_cosine_decay_schedule(0, recipe.learning_rate, max(1, steps // 20), steps)


def _fit(
    objective: inference.Objective, optimizer: Any, task: Problem, recipe: Recipe, best: inference.fitting.KeepBest, key: Any,
    progress: bool,
) -> inference.Fit:  # fmt: skip
    return inference.fit(
        objective, optimizer, (task.train,), num_steps=recipe.num_steps, key=key, progress=progress,
        subsample={"rows": min(recipe.batch_size, len(task.train.values))}, callbacks=[best],
        callback_every=recipe.check_every,
    )  # fmt: skip


def _validation_nll(
    imputer: Imputer, data: Series, num_particles: int
) -> Callable[[Any, Any], Array]:
    @jax.jit
    def loss(params: Any, key: Any, data: Series) -> Array:
        model, guide = imputer.model.bind(params), imputer.guide.bind(params)
        found = draws(model, guide, data._replace(labels=None), key, num_particles, 1)
        weights = jax.nn.log_softmax(found.log_weights[:, 0], 0)
        log_y = jax.nn.log_softmax(found.logits[:, 0])
        labels = jnp.asarray(data.labels)
        return -jax.nn.logsumexp(weights + log_y[:, jnp.arange(len(labels)), labels], 0).mean()

    return lambda params, key: loss(params, key, data)
