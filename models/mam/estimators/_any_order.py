"""Any question about a table of categories, by an any-order model, as an estimator of scikit-learn."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PyTree
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..._estimator import StoredEstimator
from .._objectives import any_order
from .._orders import random_orders
from ..networks import Pair, residual_mlps
from ._levels import cells, levels, tokens
from ._queries import Possible, arguments, by_parts, conditionals, filled, held_out_loss, log_prob


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AnyOrderModel(DensityMixin, StoredEstimator):
    """The joint law of the columns of a table, asked in any direction.

    Columns hold categories of any kind: numbers, texts, truth values. A network gives p(x_i | x_S) for every set S of known
    columns and is trained on the bound of `any_order`. With one order of columns, known ones first, the law

        p(x_S | order) = prod_{i in S} p(x_i | those of S before i)

    is normalised; what is called p here is its mean over `num_orders` orders, which are fixed when the model is made.

    Cells that are missing (None, NaN) are summed out; in training, as if they had gone missing at random given the others.
    Numbers with many different values should be cut into bins first (`sklearn.preprocessing.KBinsDiscretizer`): two values are
    alike or not, and their order is not seen.

    Args:
        width: hidden units of each layer of the network.
        depth: hidden layers.
        num_orders: over which `score_samples` averages.
        num_steps: of the optimiser, at most.
        batch_size: rows a step.
        learning_rate: of Adam, with a cosine decay to zero.
        weight_decay: of Adam; rows are few where it is large.
        validation_fraction: rows held out, for which the parameters kept are best; 0: those of the last step are.
        patience: steps without a smaller loss of these rows after which training ends; None: never.
        check_every: steps between looks at these rows.
        random_state: as everywhere in scikit-learn.

    Attributes:
        levels_: the values of each column, in order.
        n_features_in_: number of columns.
        feature_names_in_: their names, of frames.
        n_iter_: steps taken.
        history_: the bound at every step, nats per row.
        validation_: steps and losses of the looks at the held-out rows, nats per row.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Example:
        >>> import numpy as np
        >>> from lapilli.models.mam import AnyOrderModel
        >>> rng = np.random.default_rng(0)
        >>> wet = rng.random(400) < 0.5
        >>> sky = np.where(wet, "grey", np.where(rng.random(400) < 0.5, "grey", "blue"))
        >>> rows = list(zip(wet, sky))
        >>> model = AnyOrderModel(width=8, depth=1, num_steps=300, learning_rate=3e-2, weight_decay=0.0, random_state=0)
        >>> model.fit(rows).conditional([[None, "blue"]], 0).round(1)  # wet: False, True
        array([[1., 0.]])

    Reference: Uria et al. 2014, arXiv:1310.1757; Hoogeboom et al. 2022, arXiv:2110.02037; Liu et al. 2024, arXiv:2310.12920.
    """

    FORMAT = "any-order model 1"
    COUNTS = ("width", "depth", "num_orders", "num_steps", "batch_size", "check_every")

    width: int = 128
    depth: int = 2
    num_orders: int = 8
    num_steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 0.001
    weight_decay: float = 1.0
    validation_fraction: float = 0.1
    patience: int | None = 600
    check_every: int = 100
    random_state: int | np.random.RandomState | None = None

    def fit(self, X: PyTree, y: PyTree = None) -> Self:
        """Learn the joint law of the columns.

        Args:
            X: a table [rows, columns], a frame, or a list of rows; None or NaN where a cell is missing.
            y: not used.

        Raises:
            ValueError: a column of which nothing was observed; no column with two values; a parameter that is impossible.
        """
        import optax  # on use: a tenth of a second

        self._refuse(self._check_counts())
        table = self._read(X, reset=True)
        self.levels_ = levels(table)
        names = self._names()
        if empty := [n for n, values in zip(names, self.levels_, strict=True) if not len(values)]:
            raise ValueError(
                f"AnyOrderModel.fit: nothing was observed of the columns {empty}. Leave them out."
            )
        if len(table) < 2 or all(len(values) < 2 for values in self.levels_):
            raise ValueError(
                f"AnyOrderModel.fit: n_samples={len(table)}, and no column has two different values, so that there is nothing to "
                "learn. Give more rows."
            )
        rng = check_random_state(self.random_state)
        self._seed, split_seed = (int(n) for n in rng.randint(2**31 - 1, size=2))
        seen = tokens("AnyOrderModel", table, self.levels_, names)
        rows, held = self._split(len(seen), None, split_seed)
        networks = self._networks()
        objective = any_order(networks)
        loss = None if held is None else functools.partial(held_out_loss, objective, seen[held])
        rate = optax.cosine_decay_schedule(self.learning_rate, self.num_steps)
        adam, size = optax.adamw(rate, weight_decay=self.weight_decay), len(rows)
        params = self._train(
            objective, adam, arguments(seen[rows]), loss, plate="rows", size=size, per=size
        )
        self._made = networks.with_params(params)
        return self

    def score_samples(self, X: ArrayLike) -> Float[np.ndarray, " rows"]:
        """Log p of the known cells of each row, nats.

        Args:
            X: rows as in `fit`; missing cells are summed out.
        """
        wanted = self._tokens(X)
        key = jax.random.fold_in(jax.random.key(self._seed), 2)
        orders = random_orders(key, jnp.zeros((self.num_orders, wanted.shape[1]), bool))
        return by_parts(functools.partial(log_prob, self._ready(), orders), wanted)

    def score(self, X: PyTree, y: PyTree = None) -> float:
        """Mean of `score_samples`.

        Args:
            X: rows as there.
            y: not used.
        """
        return float(self.score_samples(X).mean())

    def conditional(self, X: ArrayLike, column: object) -> Float[np.ndarray, "rows levels"]:
        """Probabilities of the values of one column, given the known cells of the others; in the order of `levels_`.

        Args:
            X: rows as in `score_samples`; what they have in this column is not read.
            column: its name, of frames, or its number.
        """
        number = self._number(column)
        table = self._read(X, reset=False)
        table[:, number] = None
        seen = tokens(type(self).__name__, table, self.levels_, self._names())
        found = by_parts(functools.partial(conditionals, self._ready()), seen)[:, number]
        return np.exp(found[:, : len(self.levels_[number])]).astype(float)

    def sample(
        self,
        n_samples: int = 1,
        given: object = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> PyTree:
        """Whole rows, with the columns in random order.

        Args:
            n_samples: how many, for each row of `given`.
            given: rows with missing cells, which are filled in; None: nothing is known.
            random_state: seed; None: that of the estimator.

        Returns:
            [n_samples, columns], or [rows, n_samples, columns] with `given`; a frame for a frame without leading axis.
        """
        check_is_fitted(self, "_leaves")
        seen = (
            np.zeros((1, self.n_features_in_), np.int32) if given is None else self._tokens(given)
        )
        seed = (
            self._seed
            if random_state is None
            else check_random_state(random_state).randint(2**31 - 1)
        )
        key = jax.random.fold_in(jax.random.key(seed), 3)
        rows = np.repeat(seen, n_samples, 0)
        drawn = np.asarray(
            filled(self._ready(), jax.random.split(key, len(rows)), jnp.asarray(rows))
        )
        values = np.empty(drawn.shape, object)
        for j, own in enumerate(self.levels_):
            values[:, j] = own[drawn[:, j] - 1]
        if given is not None:
            return values.reshape(len(seen), n_samples, -1)
        if not hasattr(self, "feature_names_in_"):
            return values
        import pandas as pd

        return pd.DataFrame(values, columns=list(self.feature_names_in_)).infer_objects()

    def _networks(self) -> Pair:
        sizes = [len(values) for values in self.levels_]
        is_possible = np.arange(max(max(sizes), 2)) < np.array(sizes)[:, None]
        key = jax.random.fold_in(jax.random.key(self._seed), 0)
        pair = residual_mlps(*is_possible.shape, width=self.width, depth=self.depth, key=key)
        return eqx.tree_at(lambda p: p.conditional, pair, Possible(pair.conditional, is_possible))

    def _ready(self) -> Pair:
        check_is_fitted(self, "_leaves")
        if self._made is None:
            networks, blank = self._networks(), np.ones((1, self.n_features_in_), np.int32)
            treedef = jax.tree.structure(
                any_order(networks).init(jax.random.key(0), *arguments(blank))
            )
            self._made = networks.with_params(jax.tree.unflatten(treedef, self._leaves))
        return self._made

    def _read(self, X: PyTree, *, reset: bool) -> np.ndarray:
        table: Any = cells(X)
        validate_data(
            self, X if hasattr(X, "columns") else table, reset=reset, skip_check_array=True
        )
        return table

    def _tokens(self, X: PyTree) -> Int[np.ndarray, "rows columns"]:
        check_is_fitted(self, "_leaves")
        return tokens(type(self).__name__, self._read(X, reset=False), self.levels_, self._names())

    def _names(self) -> list[str]:
        named = getattr(self, "feature_names_in_", None)
        return [repr(n) for n in (range(self.n_features_in_) if named is None else named)]

    def _number(self, column: object) -> int:
        check_is_fitted(self, "_leaves")
        names = list(getattr(self, "feature_names_in_", ()))
        numbers = range(-self.n_features_in_, self.n_features_in_)
        if column in names:
            return names.index(column)
        if isinstance(column, int | np.integer) and column in numbers:
            return int(column) % self.n_features_in_
        raise ValueError(
            f"AnyOrderModel: there is no column {column!r}. Give one of {names or list(range(self.n_features_in_))}."
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = True
        return tags

    def _state(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        state, arrays = super()._state()
        for name, values in zip(self._names(), self.levels_, strict=True):
            if strange := {
                type(x).__name__ for x in values if type(x) not in (int, float, str, bool)
            }:
                raise ValueError(
                    f"AnyOrderModel.save: column {name} has values of type {', '.join(sorted(strange))}, which have no place in "
                    "the file. Fit on numbers, texts or truth values."
                )
        return {**state, "levels": [list(values) for values in self.levels_]}, arrays

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(state, arrays)
        self.levels_ = [np.array(values, object) for values in state["levels"]]
