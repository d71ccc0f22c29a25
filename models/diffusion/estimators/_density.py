"""The law of numbers in a table by a diffusion model, as an estimator of scikit-learn."""

from __future__ import annotations

import functools
import zlib
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..._estimator import StoredEstimator
from .._bound import bound
from .._networks import MLP
from .._samplers import heun
from .._schedules import VP
from .._training import from_network, score_matching

NOISING = VP()
PART = 256  # rows at once


class DiffusionDensity(DensityMixin, StoredEstimator):
    """The joint law of numeric columns: new rows like those of a table, and how likely a row is, from below.

    A network learns to take noise away (`score_matching`), of all rows, or of each class by itself where `fit` is given classes.
    Draws follow its probability flow; `score_samples` estimates the variational bound on the log density. Columns are
    standardised; those that are skewed over orders of magnitude should be transformed first
    (`sklearn.preprocessing.PowerTransformer`), and integers be given some width.

    Args:
        width: hidden units of each layer.
        depth: residual layers.
        num_sampling_steps: of a draw, two evaluations of the network each.
        num_times: levels of noise for each row's bound, stratified.
        num_steps: of the optimiser, at most.
        batch_size: rows a step.
        learning_rate: of Adam, with a cosine decay to zero.
        validation_fraction: rows held out, for which the parameters kept are best; 0: those of the last step are.
        patience: steps without a smaller loss of these rows after which training ends; None: never.
        check_every: steps between looks at these rows.
        random_state: as everywhere in scikit-learn.

    Attributes:
        classes_: those of y, in ascending order, where `fit` was given any.
        n_features_in_: number of columns.
        feature_names_in_: their names, of frames.
        n_iter_: steps taken.
        history_: the objective at every step, nats per row.
        validation_: steps and losses of the looks at the held-out rows, nats per row; denoising errors, no densities.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Validity: `bound` says of what. It lies below the log density of the reverse diffusion on average, and `score_samples` is one
    estimate of it for each row, with noise; the mean over many rows, `score`, has little.

    Example:
        >>> import numpy as np
        >>> from lapilli.models.diffusion import DiffusionDensity
        >>> x = np.random.default_rng(0).normal(size=(60, 2)) + [5.0, 0.0]
        >>> model = DiffusionDensity(width=8, depth=1, num_steps=20, num_sampling_steps=4, random_state=0).fit(x)
        >>> model.sample(3).shape, model.score_samples(x[:4]).shape
        ((3, 2), (4,))

    Reference: Ho, Jain and Abbeel 2020, arXiv:2006.11239; Kingma et al. 2021, arXiv:2107.00630 (the bound); Karras et al. 2022,
    arXiv:2206.00364 (the sampler).
    """

    FORMAT = "diffusion density 1"
    COUNTS = (
        "width", "depth", "num_sampling_steps", "num_times", "num_steps", "batch_size", "check_every",
    )  # fmt: skip

    def __init__(
        self,
        *,
        width: int = 128,
        depth: int = 3,
        num_sampling_steps: int = 50,
        num_times: int = 200,
        num_steps: int = 3000,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        validation_fraction: float = 0.1,
        patience: int | None = 600,
        check_every: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.width = width
        self.depth = depth
        self.num_sampling_steps = num_sampling_steps
        self.num_times = num_times
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.check_every = check_every
        self.random_state = random_state

    def fit(self, X: PyTree, y: PyTree = None) -> Self:
        """Train.

        Args:
            X: real, [rows, columns], an array or a frame.
            y: classes, [rows], whose laws are learned each and together; None: none.

        Raises:
            ValueError: a parameter is impossible; X is not as above.
        """
        import optax  # on use: a tenth of a second

        self._refuse(self._check_counts())
        if y is None:
            X = validate_data(self, X, ensure_min_samples=2)
            labels = None
            self.__dict__.pop("classes_", None)
        else:
            X, y = validate_data(self, X, y, ensure_min_samples=2)
            self.classes_, labels = np.unique(y, return_inverse=True)
        rng = check_random_state(self.random_state)
        self._seed, split_seed = (int(n) for n in rng.randint(2**31 - 1, size=2))
        X = np.asarray(X, float)
        rows, held = self._split(len(X), labels, split_seed)
        self._set_units(X[rows])
        data = self._in_units(X)
        args = lambda index: (data[index],) if labels is None else (data[index], labels[index])
        network = self._network()
        objective = score_matching(network, NOISING)
        loss = None
        if held is not None:
            # Each row several times: the error of one depends on the noise that it was given.
            many = np.resize(held, max(len(held), 1000))
            loss = functools.partial(_loss, jax.jit(objective.value), args(many), len(many))
        adam, size = (
            optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.num_steps)),
            len(rows),
        )
        self._made = self._train(
            objective, adam, args(rows), loss, plate="rows", size=size, per=size
        )
        return self

    def sample(
        self,
        n_samples: int = 1,
        label: object = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Float[np.ndarray, "samples columns"]:
        """New rows.

        Args:
            n_samples: how many.
            label: their class; None: of all classes.
            random_state: seed; None: that of the estimator.

        Raises:
            ValueError: a class that `fit` did not see.
        """
        check_is_fitted(self, "_leaves")
        seed = self._seed
        if random_state is not None:
            seed = check_random_state(random_state).randint(2**31 - 1)
        key = jax.random.fold_in(jax.random.key(seed), 3)
        number = None if label is None else self._number(label)
        drawn = _drawn(
            self._network(), self._ready(), number, key, self.num_sampling_steps, n_samples
        )
        return np.asarray(drawn, float) * self._scale + self._mean

    def score_samples(self, X: PyTree, label: object = None) -> Float[np.ndarray, " rows"]:
        """An estimate for each row of the bound on its log density, nats.

        Args:
            X: rows as in `fit`.
            label: the class whose law is meant; None: the law of all.

        Raises:
            ValueError: X has other columns than in `fit`; a class that `fit` did not see.
        """
        check_is_fitted(self, "_leaves")
        data = self._in_units(np.asarray(validate_data(self, X, reset=False), float))
        number = None if label is None else self._number(label)
        network, params, parts = self._network(), self._ready(), []
        for start in range(0, len(data), PART):
            part = data[start : start + PART]
            x = np.resize(part, (PART, data.shape[1]))
            words = np.array([zlib.crc32(row.tobytes()) for row in x], np.uint32)
            found = _bounds(
                network, params, number, self._seed, words, jnp.asarray(x), self.num_times
            )
            parts.append(np.asarray(found)[: len(part)])
        return np.concatenate(parts) - np.log(self._scale).sum()

    def score(self, X: PyTree, y: PyTree = None) -> float:
        """Mean of `score_samples`.

        Args:
            X: rows as there.
            y: not used.
        """
        return float(self.score_samples(X).mean())

    def _network(self) -> MLP:
        count, key = (
            len(getattr(self, "classes_", ())),
            jax.random.fold_in(jax.random.key(self._seed), 0),
        )
        return MLP(
            (int(self.n_features_in_),),
            num_classes=count,
            width=self.width,
            depth=self.depth,
            key=key,
        )

    def _ready(self) -> Any:
        """The fitted parameters as a tree."""
        if self._made is None:
            arrays = eqx.filter(self._network(), eqx.is_inexact_array)
            treedef = jax.tree.structure({"network": arrays})
            self._made = jax.tree.unflatten(treedef, self._leaves)
        return self._made

    def _number(self, label: object) -> int:
        classes = getattr(self, "classes_", np.zeros(0))
        found = np.flatnonzero(classes == label)
        if not len(found):
            known = f"there are {classes.tolist()}" if len(classes) else "fit was given no classes"
            raise ValueError(
                f"DiffusionDensity: there is no class {label!r}; {known}. Give one of these, or None."
            )
        return int(found[0])

    def _state(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        state, arrays = super()._state()
        arrays |= {"mean": self._mean, "scale": self._scale}
        if hasattr(self, "classes_"):
            arrays["classes"] = (
                self.classes_.astype(str) if self.classes_.dtype == object else self.classes_
            )
        return state, arrays

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(state, arrays)
        self._mean, self._scale = arrays["mean"], arrays["scale"]
        if "classes" in arrays:
            self.classes_ = arrays["classes"]


def _loss(
    value: PyTree, args: tuple[np.ndarray, ...], size: int, params: PyTree, key: Array
) -> Array:
    return -value(params, key, *args) / size


@eqx.filter_jit
def _drawn(
    network: Any, params: PyTree, label: int | None, key: Array, num_steps: int, count: int
) -> Array:
    model = from_network(
        network, NOISING, (network.first.in_features,), params=params, context=label
    )
    return heun(model, key, NOISING.times(num_steps), num_samples=count)


@eqx.filter_jit
def _bounds(
    network: object,
    params: PyTree,
    label: int | None,
    seed: int,
    words: object,
    x: Array,
    num_times: int,
) -> Array:
    """The noise of a row is made of the seed and of the row, and depends on no other one."""
    model = from_network(network, NOISING, (x.shape[1],), params=params, context=label)
    key = jax.random.fold_in(jax.random.key(seed), 2)
    one = lambda x, word: bound(model, x, jax.random.fold_in(key, word), num_times=num_times)
    return jax.vmap(one)(x, words)
