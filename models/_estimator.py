"""What estimators of scikit-learn over fitted programs share: held-out rows, files, pickles."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ..ppl._types import Args

try:
    from sklearn.base import BaseEstimator
    from sklearn.model_selection import train_test_split
    from sklearn.utils.validation import check_is_fitted
except ImportError as err:
    raise ImportError(
        "Estimators for data of one's own are estimators of scikit-learn. Install it with: pip install 'lapilli[data]'."
    ) from err

from ..inference import fit, fitting
from ..inference.fitting.storage._archive import read, write
from ..ppl._calls import checked_call
from ..ppl._checks import is_integer


class StoredEstimator(BaseEstimator):
    """An estimator whose fitted state is a tree of parameters and what `_state` says.

    Programs are code and go into no file: they are made anew where they are asked for.
    """

    FORMAT: ClassVar[str]
    COUNTS: ClassVar[tuple[str, ...]]  # parameters that are integers of at least 1
    # Made from what is fitted, whenever it is not there.
    _made: Any = None
    # Where they are known.
    _leaves: list[np.ndarray]
    _seed: int
    _mean: np.ndarray  # of tables
    _scale: np.ndarray
    n_features_in_: int
    feature_names_in_: np.ndarray
    classes_: np.ndarray  # of a classifier
    history_: np.ndarray
    validation_: list[tuple[int, float]]

    def _state(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        """What was fitted besides the parameters' leaves: JSON, and arrays by name."""
        names = getattr(self, "feature_names_in_", None)
        state = {
            "seed": self._seed,
            "n_features": int(self.n_features_in_),
            "names": None if names is None else list(names),
            "validation": [[int(step), float(loss)] for step, loss in self.validation_],
        }
        return state, {"history": self.history_}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `_state`."""
        self._seed, self.n_features_in_ = state["seed"], state["n_features"]
        if state["names"] is not None:
            self.feature_names_in_ = np.array(state["names"], object)
        self.validation_ = [(int(step), float(loss)) for step, loss in state["validation"]]
        self.history_ = arrays["history"]
        self.n_iter_ = len(self.history_)

    def _check_counts(self) -> list[str]:
        """Problems of the parameters that all estimators have."""
        own = self.get_params()
        problems = [
            f"{name} must be an integer >= 1, got {own[name]!r}"
            for name in self.COUNTS
            if not is_integer(own[name]) or own[name] < 1
        ]
        if not 0 <= own["validation_fraction"] < 1:
            problems.append(
                f"validation_fraction must lie in [0, 1), got {own['validation_fraction']!r}"
            )
        if own["patience"] is not None and (not is_integer(own["patience"]) or own["patience"] < 1):
            problems.append(f"patience must be an integer >= 1 or None, got {own['patience']!r}")
        if not own["learning_rate"] > 0:
            problems.append(f"learning_rate must be positive, got {own['learning_rate']!r}")
        return problems

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise ValueError(f"{type(self).__name__}: {'; '.join(problems)}.")

    def _split(
        self, size: int, labels: np.ndarray | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows to train on, and rows that are held out; None where the share is less than one row."""
        num_held = int(self.get_params()["validation_fraction"] * size)
        rows = np.arange(size)
        if num_held < 1:
            return rows, None
        strata = labels
        if labels is not None:
            counts = np.bincount(labels)
            if counts.min() < 2 or num_held < len(counts) or size - num_held < len(counts):
                strata = None
        parts = train_test_split(rows, test_size=num_held, random_state=seed, stratify=strata)
        return np.asarray(parts[0]), np.asarray(parts[1])

    def _keys(self) -> tuple[Array, Array]:
        """PRNG keys of training and of what is held out."""
        fit_key, held_key = jax.random.split(jax.random.fold_in(jax.random.key(self._seed), 1))
        return fit_key, held_key

    def _train(
        self,
        objective: object,
        optimizer: PyTree,
        args: Args,
        loss: Callable[..., PyTree] | None,
        *,
        plate: str,
        size: int,
        per: int,
    ) -> dict[str, PyTree]:
        """Fit, and keep the parameters that are best for what is held out, or the last ones.

        Args:
            objective: what is trained.
            optimizer: of its parameters.
            args: data, with the rows of `plate` as leading axis.
            loss: of what is held out, `(params, key) -> scalar`; None if nothing is.
            plate: whose rows go by batches.
            size: how many rows it has.
            per: rows that the objective's value is divided by in `history_`.
        """
        own, (fit_key, held_key) = self.get_params(), self._keys()
        callbacks = []
        if loss is not None:
            callbacks = [
                fitting.KeepBest(loss, held_key, patience=own["patience"], name="held out")
            ]
        found = fit(
            objective, optimizer, args,
            num_steps=own["num_steps"], key=fit_key, progress=False, callbacks=callbacks,
            subsample={plate: own["batch_size"]} if own["batch_size"] < size else None,
            callback_every=own["check_every"],
        )  # fmt: skip
        self.history_ = np.asarray(found.history["value"]) / per
        self.n_iter_ = len(self.history_)
        self.validation_ = callbacks[0].losses if callbacks else []
        return self._keep(dict(callbacks[0].params if callbacks else found.params))

    def _set_units(self, X: np.ndarray) -> None:
        """Mean and spread of the columns of a table, for `_in_units`; a column without spread keeps its scale."""
        X = np.asarray(X, float)
        spread = X.std(0)
        # Of equal cells a rounded mean may leave a spread of rounding errors.
        has_spread = (spread > 0) & (np.ptp(X, 0) > 0)
        self._mean, self._scale = X.mean(0), np.where(has_spread, spread, 1.0)

    def _in_units(self, X: np.ndarray) -> np.ndarray:
        return ((X - self._mean) / self._scale).astype(np.float32)

    def _keep(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
        """Remember a tree of parameters; the same tree of NumPy arrays."""
        leaves, treedef = jax.tree.flatten(params)
        self._leaves = [np.asarray(leaf) for leaf in leaves]
        return jax.tree.unflatten(treedef, self._leaves)

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted estimator to one file, whole or not at all: a NumPy archive without pickled objects.

        Args:
            path: where.

        Raises:
            ValueError: `random_state` is neither an integer nor None.
        """
        check_is_fitted(self, "_leaves")
        own = self.get_params()
        if own["random_state"] is not None and not is_integer(own["random_state"]):
            raise ValueError(
                f"{type(self).__name__}.save: random_state is a {type(own['random_state']).__name__}, which has no place in the "
                "file. Set an integer or None with set_params(random_state=...)."
            )
        state, arrays = self._state()
        header = {
            "format": self.FORMAT,
            "class": type(self).__name__,
            "params": {k: v.item() if isinstance(v, np.generic) else v for k, v in own.items()},
            "state": state,
        }
        write(path, header, {**arrays, **{f"leaf{i}": x for i, x in enumerate(self._leaves)}})

    @classmethod
    @checked_call
    def load(cls, path: str | os.PathLike) -> Self:
        """Read what `save` wrote.

        Args:
            path: the file.

        Raises:
            ValueError: the file is none of `save`, or of another class.
        """
        header, arrays = read(path, f"file of {cls.__name__}.save", cls.FORMAT)
        if header["class"] != cls.__name__:
            raise ValueError(
                f"{cls.__name__}.load: '{os.fspath(path)}' holds a {header['class']}. Load it with {header['class']}.load."
            )
        found = cls(**header["params"])
        found._restore(header["state"], arrays)
        count = sum(name.startswith("leaf") for name in arrays)
        found._leaves = [arrays[f"leaf{i}"] for i in range(count)]
        return found

    def __getstate__(self) -> dict[str, PyTree]:
        state: PyTree = super().__getstate__()
        return {k: v for k, v in state.items() if k != "_made"}
