"""What both estimators share: parameters, training, draws that depend on a row alone, files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, Self

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..._estimator import StoredEstimator
from ..._series import Series, Standardisation, standardise
from ..._series_inputs import Given, digest, given
from .._imputation import Imputation
from .._impute import impute
from .._networks import Kind, Mechanism, memory
from .._over_time import OverTime
from .._programs import Imputer, programs
from ._training import Recipe, bind, bound, held_out_loss, optimizer, shapes

MOST_CELLS = 2**26  # drawn at once


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SeriesEstimator(StoredEstimator):
    """See `SeriesImputer` and `SeriesClassifier`, whose parameters these are."""

    FORMAT = "series estimator 1"
    COUNTS = ("num_hidden", "num_particles", "num_draws", "num_steps", "batch_size", "check_every")

    missingness: Mechanism | None = None
    prior: Literal["gp", "normal"] = "gp"
    length_scale: float = 7.0
    num_latents: int | None = None
    num_hidden: int = 32
    encoder: Kind | Literal["auto"] = "auto"
    decoder: Kind = "conv"
    num_particles: int = 10
    num_draws: int = 100
    method: Literal["auto", "importance", "smc"] = "auto"
    num_steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 0.01
    validation_fraction: float = 0.1
    patience: int | None = 400
    check_every: int = 50
    random_state: int | np.random.RandomState | None = None

    def _recipe(self) -> Recipe:
        raise NotImplementedError

    def _checks(self) -> list[str]:
        """Problems of the parameters."""
        problems = self._check_counts()
        if self.method not in ("auto", "importance", "smc"):
            problems.append(f"method must be 'auto', 'importance' or 'smc', got {self.method!r}")
        return problems

    def _fit(self, X: ArrayLike, labels: np.ndarray | None) -> Self:
        """Train on series, with labels 0, 1, ... or None."""
        name = type(self).__name__
        self._refuse(self._checks())
        source = given(self, X, reset=True)
        data = source.data._replace(labels=labels)
        self._made, self._layout, self.n_steps_ = None, source.layout, data.values.shape[1]
        rng = check_random_state(self.random_state)
        self._seed, split_seed = (int(n) for n in rng.randint(2**31 - 1, size=2))
        rows, held = self._split(len(data.valid), labels, split_seed)
        unseen = np.flatnonzero(~np.asarray(data.observed)[rows].any((0, 1)))
        if len(unseen):
            raise ValueError(
                f"{name}: nothing was observed of features {unseen.tolist()} of X in the rows to train on, so that "
                "their values are not known. Leave these features out."
            )
        self._standard = standardise(data.rows(rows))
        own = self._standard.apply(data)
        imputer = self._programs()
        recipe, loss = self._recipe(), None
        if held is not None:
            loss = held_out_loss(imputer, own.rows(held), recipe.num_particles)
        rates, size = optimizer(recipe, labels is not None), len(rows)
        params = self._train(
            bound(imputer, recipe),
            rates,
            (own.rows(rows),),
            loss,
            plate="rows",
            size=size,
            per=size,
        )
        self._made = imputer, params
        return self

    def _programs(self) -> Imputer:
        is_table = self._layout == "table"
        network = lambda kind: ("conv" if is_table else "gru") if kind == "auto" else kind
        switches = {
            "num_latents": self.num_latents,
            "missingness": self.missingness,
            "prior": "normal" if is_table else self.prior,
            "length_scale": self.length_scale,
            "num_hidden": self.num_hidden,
            "encoder": network(self.encoder),
            "decoder": self.decoder,
            "has_skip": not is_table,
        }
        if hasattr(self, "classes_"):
            own = self.get_params()
            switches |= {
                "num_classes": len(self.classes_), "classifier": network(own["classifier"]),
                "has_decay": own["has_decay"], "sees_mask": own["sees_mask"],
            }  # fmt: skip
        key = jax.random.fold_in(jax.random.key(self._seed), 2)
        return programs(int(self.n_features_in_), **switches, key=key)

    def _ready(self) -> tuple[Imputer, PyTree]:
        """Programs and parameters."""
        if self._made is None:
            imputer, blank = self._programs(), self._blank()
            treedef = jax.tree.structure(shapes(imputer, self._recipe(), blank))
            self._made = imputer, jax.tree.unflatten(treedef, self._leaves)
        return self._made

    def _blank(self) -> Series:
        cells = np.zeros((1, self.n_steps_, self.n_features_in_), np.float32)
        times = np.arange(self.n_steps_, dtype=np.float32)[None]
        labels = np.zeros(1, np.int32) if hasattr(self, "classes_") else None
        return Series(cells, cells == 0, times, np.ones((1, self.n_steps_), bool), labels)

    def _given(self, X: ArrayLike) -> Given:
        check_is_fitted(self, "_leaves")
        found = given(self, X, reset=False, least=self.n_steps_)
        if found.layout != self._layout:
            raise ValueError(
                f"{type(self).__name__}: X is a {found.layout}, but the estimator was fitted on a {self._layout}. Give [rows, "
                "features] to one of tables, and [series, time, features] or a list of [time, features] to one of series."
            )
        return found

    def _imputations(
        self, data: Series, seed: int | None = None
    ) -> Iterator[tuple[slice, Imputation]]:
        """Imputations of the series in standard units, part by part.

        The key of a series is made of what is known of it, so that its draws depend on nothing else; with a seed, of the seed
        and the series' place.
        """
        size = len(data.valid)
        model, guide = bind(*self._ready())
        kind = self._layout if self.method == "auto" else self.method
        method = "smc" if kind in ("smc", "series") else "importance"
        own = self._standard.apply(data)
        keys = np.array([[self._seed, digest(own, row)] for row in range(size)], np.uint32)
        if seed is not None:
            keys = np.stack([np.full(size, seed, np.uint32), np.arange(size, dtype=np.uint32)], 1)
        words = jax.random.key_data(jax.random.key(0)).shape[-1]
        keys = np.tile(keys, (1, words // 2))
        width, cells = self.batch_size, self.num_draws * np.prod(data.values.shape[1:])
        length = max(1, int(MOST_CELLS // (5 * cells * width))) * width
        for start in range(0, size, length):
            part = slice(start, min(start + length, size))
            # Few rows are filled up to a batch, so that any number of them is of one shape.
            rows = np.resize(np.arange(part.start, part.stop), max(part.stop - part.start, width))
            found = impute(
                model, guide, own.rows(rows), keys[rows], num_particles=self.num_draws,
                method=OverTime(memory(self.decoder)) if method == "smc" else method, batch_size=width,
            )  # fmt: skip
            yield part, found.rows(slice(0, part.stop - part.start))

    def _rows_with_holes(self, data: Series) -> np.ndarray:
        holes = np.asarray(data.valid)[..., None] & ~np.asarray(data.observed)
        return np.flatnonzero(holes.any((1, 2)))

    def _filled(self, source: Given, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The given cells, those that are missing from values [..., rows, time, channels]; NaN at steps that do not exist."""
        found = np.broadcast_to(source.cells, (*values.shape[:-3], *source.cells.shape)).copy()
        holes = np.isnan(source.cells[rows]) & np.asarray(source.data.valid)[rows][..., None]
        found[..., rows, :, :] = np.where(holes, values, source.cells[rows])
        return found

    def _state(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        classes = getattr(self, "classes_", np.zeros(0))
        if classes.dtype == object:  # texts: other objects are no labels for scikit-learn
            classes = classes.astype(str)
        state, arrays = super()._state()
        state |= {"layout": self._layout, "n_steps": int(self.n_steps_)}
        arrays |= {"mean": self._standard.mean, "scale": self._standard.scale, "classes": classes}
        return state, arrays

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(state, arrays)
        self._layout, self.n_steps_ = state["layout"], state["n_steps"]
        if len(arrays["classes"]):
            self.classes_ = arrays["classes"]
        self._standard = Standardisation(arrays["mean"], arrays["scale"])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
