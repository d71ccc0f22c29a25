"""New classes from a few examples each, after many classes like them, as an estimator of scikit-learn."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ....inference import elbo, local
from ..._estimator import StoredEstimator
from .._episodes import Episodes, Points
from .._evaluate import adapt, fitted_temperature, predict
from .._heads import NearestCentroid
from .._optimizer import optimizer
from .._programs import NIWMeta, programs
from ._sampling import made_episodes

PART = 64  # queries at once


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class FewShotClassifier(ClassifierMixin, StoredEstimator):
    """Learn from many classes how classes differ; then tell new ones apart from a few examples each.

    An estimator of scikit-learn over `programs`: a network that all classes share, and a last layer whose weights each small
    data set has for itself, drawn from a population. `fit` learns network and population from episodes, small data sets made of
    the classes given; `adapt` finds the last layer's weights for new classes, with their uncertainty; `predict` and
    `predict_proba` average over it. Classes are told apart by the angle to the mean of their examples (`NearestCentroid`).

        FewShotClassifier().fit(X_many, y_many).adapt(X_few, y_few).predict(X_new)

    Args:
        shots: examples of each class in the episodes of training.
        ways: classes in an episode of training; new data may have more or fewer.
        queries: further examples of each class in an episode, which are predicted.
        num_hidden: units of each layer of the shared network.
        num_outputs: size of what the last layer gives.
        rank: of the Laplace posterior's curvature.
        num_draws: of the weights, over which predictions are averaged.
        num_episodes: that are made of the classes.
        num_steps: of the optimiser, at most.
        batch_size: episodes a step.
        learning_rate: of the network's weights, with a cosine decay to zero.
        validation_fraction: share of the classes held out, for whose episodes the parameters kept are best, and on which a
            temperature is fitted; less than two classes: the last parameters, and none.
        patience: steps without a smaller loss of these episodes after which training ends; None: never.
        check_every: steps between looks at these episodes.
        random_state: as everywhere in scikit-learn.

    Attributes:
        classes_: those of `adapt`, in ascending order.
        temperature_: by which scores are divided.
        n_features_in_: number of features.
        feature_names_in_: their names, of frames.
        n_iter_: steps taken.
        history_: the bound at every step, nats per episode.
        validation_: steps and losses of the looks at the held-out classes, nats per query.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Validity: as `programs`; probabilities of new classes are those of classes drawn like the ones that were learned from.

    Example:
        >>> import numpy as np
        >>> from lapilli.models.niw_meta import FewShotClassifier
        >>> rng = np.random.default_rng(0)
        >>> y = np.repeat(np.arange(12), 6)
        >>> x = rng.normal(size=(12, 3))[y] + 0.1 * rng.normal(size=(72, 3))
        >>> model = FewShotClassifier(ways=2, shots=2, queries=2, num_hidden=4, num_outputs=2, num_steps=20, random_state=0)
        >>> model.fit(x[y < 9], y[y < 9]).adapt(x[y > 8][::3], y[y > 8][::3]).predict_proba(x[:5]).shape
        (5, 3)

    Reference: Kim and Hospedales 2024, arXiv:2306.09702; Snell et al. 2017, arXiv:1703.05175.
    """

    FORMAT = "few-shot classifier 1"
    COUNTS = (
        "shots", "ways", "queries", "num_hidden", "num_outputs", "rank", "num_draws", "num_episodes", "num_steps", "batch_size",
        "check_every",
    )  # fmt: skip

    shots: int = 5
    ways: int = 5
    queries: int = 5
    num_hidden: int = 64
    num_outputs: int = 16
    rank: int = 25
    num_draws: int = 20
    num_episodes: int = 2000
    num_steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 0.003
    validation_fraction: float = 0.2
    patience: int | None = 400
    check_every: int = 50
    random_state: int | np.random.RandomState | None = None

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from many classes.

        Args:
            X: real, [rows, features], an array or a frame.
            y: classes, [rows]; those with fewer rows than `shots` + `queries` are left out.

        Raises:
            ValueError: too few classes have enough rows; a parameter is impossible; X is not as above.
        """
        problems = self._check_counts()
        if self.ways == 1:
            problems.append("ways must be at least 2, got 1")
        self._refuse(problems)
        X, y = self._data(X, y, reset=True)
        number, counts = np.unique(y, return_inverse=True, return_counts=True)[1:]
        size = self.shots + self.queries
        usable = np.flatnonzero(counts >= size)
        rng = check_random_state(self.random_state)
        self._seed = int(rng.randint(2**31 - 1))
        draw = np.random.default_rng(self._seed)
        num_held = int(self.validation_fraction * len(usable))
        num_held = num_held if num_held >= 2 else 0
        if len(usable) - num_held < self.ways:
            raise ValueError(
                f"FewShotClassifier.fit: {len(usable)} of {len(counts)} classes have {size} rows (shots + queries), {num_held} "
                f"of them are held out, and an episode has ways={self.ways} classes. Give more classes, or lower ways, shots, "
                "queries or validation_fraction."
            )
        mixed = draw.permutation(usable)
        learned, held = mixed[num_held:], mixed[:num_held]
        self._set_units(X[np.isin(number, learned)])
        rows = [np.flatnonzero(number == k) for k in range(len(counts))]
        make = functools.partial(
            made_episodes, draw, self._in_units(X), rows, self.shots, self.queries
        )
        bound = self._bound(self.ways)
        loss, checks = None, None
        if num_held:
            ways = min(self.ways, num_held)
            checks = make(held, ways, 50)
            loss = functools.partial(_loss, jax.jit(functools.partial(self._scores, ways)), checks)
        rates = optimizer(self.num_steps, weights=self.learning_rate)
        args = (make(learned, self.ways, self.num_episodes),)
        # The value is that of one episode: there are infinitely many.
        self._made = self._train(
            bound, rates, args, loss, plate="episodes", size=self.num_episodes, per=1
        )
        self._compiled = {}
        self.temperature_ = 1.0
        if checks is not None:
            scores = self._scores(min(self.ways, num_held), self._made, self._keys()[1], checks)[0]
            self.temperature_ = fitted_temperature(scores, checks.query)
        self._support = None
        return self

    def adapt(self, X: ArrayLike, y: ArrayLike) -> Self:
        """The classifier of new classes; this one stays as it is.

        Args:
            X: examples, [rows, features].
            y: their classes, [rows], at least two.

        Raises:
            ValueError: fewer than two classes; X has other features than in `fit`.
        """
        check_is_fitted(self, "_leaves")
        X, y = self._data(X, y, reset=False)
        classes, number = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"FewShotClassifier.adapt: y has the class {classes.tolist()} alone. Give examples of two classes or more."
            )
        other = copy.copy(self)
        other.classes_, other._support = classes, (self._in_units(X), number.astype(np.int32))
        return other

    def predict_proba(self, X: PyTree) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of the classes of `adapt`, in the order of `classes_`.

        Args:
            X: rows to classify.

        Raises:
            ValueError: nothing was adapted to; X has other features than in `fit`, or cells so far out that nothing is known.
        """
        check_is_fitted(self, "_leaves")
        if self._support is None:
            raise ValueError(
                "FewShotClassifier: there are no classes yet to choose from. Call adapt(X, y) with a few examples of each."
            )
        X = self._in_units(np.asarray(validate_data(self, X, reset=False)))
        x, y = self._support
        support = Points(x[None], y[None], np.ones((1, len(y)), bool))
        run = self._compiled.setdefault(
            (len(self.classes_), self.num_draws),
            jax.jit(functools.partial(self._scores, len(self.classes_))),
        )
        key, parts = jax.random.fold_in(jax.random.key(self._seed), 2), []
        for start in range(0, len(X), PART):
            part = X[start : start + PART]
            query = Points(np.resize(part, (1, PART, X.shape[1])), None, np.ones((1, PART), bool))
            scores = np.asarray(run(self._ready(), key, Episodes(support, query))[0])
            parts.append(jax.nn.softmax(scores[:, 0, : len(part)] / self.temperature_, -1).mean(0))
        probs = np.concatenate(parts).astype(float)
        lost = np.flatnonzero(np.isnan(probs).any(1))
        if len(lost):
            raise ValueError(
                f"FewShotClassifier: {len(lost)} of {len(X)} rows have no probabilities, the first is row {lost[0]}: 32 bits do "
                "not hold what the network makes of it. Look there, and among the examples, for cells that are far out, e.g. a "
                "number that stands for nothing measured."
            )
        return probs

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable class of each row.

        Args:
            X: rows to classify.
        """
        found = self.predict_proba(X).argmax(1)
        return self.classes_[found]

    def _data(self, X: PyTree, y: PyTree, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, reset=reset)
        check_classification_targets(y)
        return X, y

    def _programs(self, ways: int) -> NIWMeta:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(self._seed), 0))
        width, size = self.num_hidden, int(self.n_features_in_)
        features = eqx.nn.MLP(size, width, width, 1, final_activation=jax.nn.relu, key=keys[0])
        return programs(
            eqx.nn.Linear(width, self.num_outputs, key=keys[1]), NearestCentroid(ways, is_learned=True),
            features=features, prior_scale=0.05, inner=local.Newton(2, damping=0.5),
            curvature=local.Curvature("low_rank_gauss_newton", self.rank),
        )  # fmt: skip

    def _bound(self, ways: int) -> Any:
        bound = elbo(*self._programs(ways), kl="analytic", check_jumps=False)
        return bound.with_plate_sizes({"episodes": math.inf})

    def _scores(
        self, ways: int, params: PyTree, key: Array, episodes: Episodes
    ) -> tuple[Array, Array | None]:
        """Draws of the queries' scores, and their log-densities where the labels are known."""
        model, guide = (program.bind(params) for program in self._programs(ways))
        found = predict(model, adapt(guide, key, episodes, self.num_draws), episodes)
        return found.scores, None if found.log_prob is None else found.log_density()

    def _ready(self) -> Any:
        """The fitted parameters as a tree."""
        if self._made is None:
            cells = np.zeros((1, 2, self.n_features_in_), np.float32)
            points = Points(cells, np.arange(2, dtype=np.int32)[None], np.ones((1, 2), bool))
            init = lambda: dict(self._bound(2).init(jax.random.key(0), Episodes(points, points)))
            self._made = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(init)), self._leaves)
            self._compiled = {}
        return self._made

    def _state(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        state, arrays = super()._state()
        state["temperature"] = self.temperature_
        arrays |= {"mean": self._mean, "scale": self._scale}
        if self._support is not None:
            classes = self.classes_.astype(str) if self.classes_.dtype == object else self.classes_
            arrays |= {"classes": classes, "support": self._support[0], "labels": self._support[1]}
        return state, arrays

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(state, arrays)
        self.temperature_, self._compiled = state["temperature"], {}
        self._mean, self._scale, self._support = arrays["mean"], arrays["scale"], None
        if "classes" in arrays:
            self.classes_, self._support = arrays["classes"], (arrays["support"], arrays["labels"])

    def __getstate__(self) -> dict[str, PyTree]:
        return super().__getstate__() | ({"_compiled": {}} if hasattr(self, "_compiled") else {})


def _loss(run: Callable[..., PyTree], checks: Episodes, params: PyTree, key: Array) -> Array:
    return -jnp.mean(run(params, key, checks)[1])
