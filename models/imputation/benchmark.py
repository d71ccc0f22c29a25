"""Protocol: hide cells of complete labelled series, impute and classify, score both.

A *problem* is a data set, a mechanism, a rate and a seed. Cells are hidden on the scale of the complete training set (that is
how the mechanisms are defined); everything that learns sees observed cells only, in units of *their* mean and standard
deviation. Errors of cells are given in standard deviations of the complete training set, so that they compare across methods and
mechanisms. A fifth of the training set, by class, is held out for validation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ... import inference, ppl
from . import _peers, scores
from ._datasets import load
from ._dropout import obs_dropout
from ._gru_d import gru_d
from ._imputation import Imputation
from ._impute import draws, impute
from ._masks import MECHANISMS
from ._networks import memory
from ._programs import Imputer, programs
from ._selection import Best
from ._series import Series, Standard, standardise

if TYPE_CHECKING:
    import optax


class Problem(NamedTuple):
    """See the module's text.

    Attributes:
        train: series with hidden cells, in units of the observed training cells; labels included.
        valid: held-out training series.
        test: test series.
        truth: complete test values in units of the complete training set, [N, T, D].
        hidden: hidden cells of the test series, boolean.
        units: from the units of the learners to those of `truth`.
        num_classes: number of classes.
    """

    train: Series
    valid: Series
    test: Series
    truth: np.ndarray
    hidden: np.ndarray
    units: Standard
    num_classes: int

    def point_scores(self, point: Any) -> dict[str, float]:
        """Errors "mae" and "rmse" of test values in the learners' units."""
        return scores.cells(self.truth, self.hidden, self.units.undo(point))

    def scores(self, found: Imputation) -> dict[str, float]:
        """All scores of an imputation of the test series: of classes, of cells with 90% bands, mean ESS."""
        low, high = (self.units.undo(q) for q in found.quantiles([0.05, 0.95]))
        crps = found.crps(self.test_truth) * self.units.scale
        cells = scores.cells(
            self.truth, self.hidden, self.units.undo(found.mean), crps=crps, low=low, high=high
        )
        classes = {}
        if found.logits is not None:
            classes = scores.classification(found.probs, np.asarray(self.test.labels))
        return {**classes, **cells, "ess": float(found.ess.mean())}

    @property
    def test_truth(self) -> np.ndarray:
        """Complete test values in the learners' units."""
        return (self.truth - self.units.mean) / self.units.scale


def problem(
    name: str, mechanism: str, rate: float, seed: int, *, valid_share: float = 0.2
) -> Problem:
    """The problem (data set, mechanism, rate, seed).

    Args:
        name: data set, see `imputation.load`.
        mechanism: "mcar", "mar", "mnar" or "blocks", or "none".
        rate: share of the cells that the mechanism may hide.
        seed: of masks and split; train and test masks have streams of their own.
        valid_share: share of the training series held out.

    Raises:
        ValueError: unknown data set or mechanism.
    """
    if mechanism not in (*MECHANISMS, "none"):
        raise ValueError(
            f"problem: no mechanism {mechanism!r}; choose from {[*MECHANISMS, 'none']}."
        )
    train, test = load(name)
    whole = standardise(train)
    streams = [np.random.default_rng([seed, stream]) for stream in range(3)]
    complete, parts = [], []
    for data, rng in zip((train, test), streams, strict=False):
        data = whole.apply(data)
        complete.append(data)
        seen = np.ones(data.observed.shape, bool)
        if mechanism != "none":
            seen = MECHANISMS[mechanism](np.asarray(data.values), rate, rng)
        parts.append(data.hidden(seen))
    units = standardise(parts[0])
    own = [units.apply(part) for part in parts]
    held = _held_out(np.asarray(train.labels), valid_share, streams[2])
    truth, observed = np.asarray(complete[1].values), np.asarray(own[1].observed)
    return Problem(
        train=own[0].rows(~held),
        valid=own[0].rows(held),
        test=own[1],
        truth=truth,
        hidden=np.asarray(complete[1].observed) & ~observed,
        units=units,
        num_classes=int(np.asarray(train.labels).max()) + 1,
    )


def peers(
    task: Problem,
    *,
    fillers: Sequence[str] = ("zero", "locf", "interp", "knn", "mice"),
    has_minirocket: bool = False,
) -> dict[str, dict[str, float]]:
    """Scores of the light peers by name.

    Each filler with a linear classifier, and "interp+mask" (linear on both), "forest" (on both), "mask" (linear on the mask
    alone), "minirocket" (on "interp"). They learn from training and validation series together; the temperature of their
    "calibrated" scores is that of the same classifier without the validation series, on these.
    """
    train = _joined(task.train, task.valid)
    masks = [np.asarray(d.observed, float) for d in (train, task.test)]
    found: dict[str, dict[str, float]] = {}
    filled: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        name: str, classify: Callable[..., np.ndarray], inputs: Sequence[np.ndarray], point: Any
    ) -> None:
        start = time.perf_counter()
        found[name] = classified(task, classify, inputs)
        found[name] |= {} if point is None else task.point_scores(point)
        found[name]["seconds"] = time.perf_counter() - start

    for name in fillers:
        start = time.perf_counter()
        filled[name] = _peers.FILLERS[name](train, task.test)
        seconds = time.perf_counter() - start
        add(name, _peers.linear_probs, filled[name], filled[name][1])
        found[name]["seconds"] += seconds
    inter = filled.get("interp") or _peers.by_interpolation(train, task.test)
    both = [np.concatenate(pair, -1) for pair in zip(inter, masks, strict=True)]
    add("interp+mask", _peers.linear_probs, both, None)
    add("forest", _peers.forest_probs, both, None)
    add("mask", _peers.linear_probs, masks, None)
    if has_minirocket:
        add("minirocket", _peers.minirocket_probs, inter, None)
    return found


def classified(
    task: Problem, classify: Callable[..., np.ndarray], inputs: Sequence[np.ndarray]
) -> dict[str, float]:
    """Scores of classes, as they are and calibrated, by a classifier of complete inputs.

    Args:
        task: the problem.
        classify: `(train, labels, test) -> probabilities`.
        inputs: features of training and then validation series, and of test series.
    """
    known, size = inputs[0], len(task.train.values)
    labels = np.concatenate([np.asarray(d.labels) for d in (task.train, task.valid)])
    probs = classify(known, labels, inputs[1])
    held = classify(known[:size], labels[:size], known[size:])
    return _class_scores(task, probs, held)


def outside_peers(task: Problem, answer: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Scores of methods that ran elsewhere.

    Args:
        task: the problem, of which they knew what a member of the family does.
        answer: of each method "<name>.seconds" and "<name>.filled", the filled training, validation and test series one after
            the other, for a linear classifier, or "<name>.probs", class probabilities of validation and test series, or both.
    """
    found: dict[str, dict[str, float]] = {}
    size = len(task.train.values) + len(task.valid.values)
    for name in dict.fromkeys(key.rsplit(".", 1)[0] for key in answer):
        filled, probs = answer.get(f"{name}.filled"), answer.get(f"{name}.probs")
        row = {} if filled is None else task.point_scores(filled[size:])
        if probs is not None:
            held, probs = np.split(probs.astype(float), [len(task.valid.values)])
            row |= _class_scores(task, probs, held)
        elif filled is not None:
            row |= classified(task, _peers.linear_probs, np.split(filled, [size]))
        found[name] = row | {"seconds": float(answer[f"{name}.seconds"])}
    return found


def _class_scores(task: Problem, probs: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Scores of test probabilities, and of those at the temperature that suits the validation probabilities `held` best."""
    heat = scores.temperature(held, np.asarray(task.valid.labels))
    labels, tempered = np.asarray(task.test.labels), scores.tempered(probs, heat)
    calibrated = {
        f"calibrated_{score.__name__}": score(tempered, labels)
        for score in (scores.nll, scores.brier, scores.ece)
    }
    return {**scores.classification(probs, labels), "temperature": heat, **calibrated}


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
    import optax  # on use, and not part of the time

    start = time.perf_counter()
    keys = jax.random.split(key, 3)
    imputer = programs(
        task.truth.shape[-1], num_classes=task.num_classes, key=keys[0], **recipe.switches
    )
    bound = inference.iwelbo(
        obs_dropout(imputer.model, recipe.dropout), imputer.guide, num_particles=recipe.num_particles,
        num_imputations=recipe.num_imputations, per="rows", gradient=recipe.gradient, check_jumps=False,
    )  # fmt: skip
    best = Best(_validation_nll(imputer, task.valid, recipe.num_particles), keys[1])
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
        best.seen,
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
        trained.model, trained.guide, _joined(task.test, task.valid), key,
        num_particles=num_particles, method="smc", memory=trained.memory, num_refinements=num_refinements,
    )  # fmt: skip
    seconds = trained.seconds + time.perf_counter() - start
    size = len(task.truth)
    found, held = found.rows(slice(0, size)), found.rows(slice(size, None))
    classes = _class_scores(task, found.probs, held.probs)
    return {**task.scores(found), **classes, "seconds": seconds}, found


def recurrent_peer(task: Problem, recipe: Recipe, key: Any) -> dict[str, float]:
    """Scores of classes by GRU-D (`_gru_d.GRUD`), trained with the recipe's optimiser, steps and choice by validation NLL.

    Args:
        task: the problem.
        recipe: of which the switch "num_hidden" and everything but dropout and draws count.
        key: PRNG key.
    """
    import optax

    start = time.perf_counter()
    keys = jax.random.split(key, 3)
    model = gru_d(
        task.truth.shape[-1], task.num_classes, num_hidden=recipe.switches.get("num_hidden", 32), key=keys[0]
    )  # fmt: skip
    bound = inference.elbo(model, ppl.model(lambda data: None))
    size = len(task.valid.values)
    best = Best(
        jax.jit(lambda params, _: -model.bind(params).log_density({}, task.valid) / size), keys[1]
    )
    optimizer = optax.adamw(_schedule(recipe), weight_decay=recipe.weight_decay)
    _fit(bound, optimizer, task, recipe, best, keys[2], False)
    probs, held = (
        np.asarray(jax.nn.softmax(model.bind(best.params).simulate(keys[2], d).deterministic["logits"]))
        for d in (task.test, task.valid)
    )  # fmt: skip
    return {**_class_scores(task, probs, held), "seconds": time.perf_counter() - start}


def _schedule(recipe: Recipe) -> optax.Schedule:
    import optax

    steps = recipe.num_steps
    return optax.warmup_cosine_decay_schedule(0, recipe.learning_rate, max(1, steps // 20), steps)


def _fit(
    objective: inference.Objective, optimizer: Any, task: Problem, recipe: Recipe, best: Best, key: Any, progress: bool
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


def _held_out(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A mask that chooses round(share n) of each class, and at least one."""
    held = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        held[rng.permutation(members)[: max(1, round(share * len(members)))]] = True
    return held


def _joined(a: Series, b: Series) -> Series:
    parts: list[Any] = [np.concatenate(pair) for pair in zip(a, b, strict=True)]  # pyright: ignore
    return Series(*parts)
