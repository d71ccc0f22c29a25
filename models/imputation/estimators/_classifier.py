"""Series and rows with missing cells classified by a member of the family, as a classifier of scikit-learn."""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

import numpy as np
from jaxtyping import ArrayLike, Float, PyTree
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from .._networks import Kind
from ._base import SeriesEstimator
from ._training import Recipe


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SeriesClassifier(ClassifierMixin, SeriesEstimator):
    """Classify rows of a table, or series, that have missing cells.

    An estimator of scikit-learn over `programs` and `impute`. Imputation and classification are trained together, on

        L <= log p(y, x_o, s)      (s, the mask, where `missingness` says that holes tell something),

    and a class has the probability that the classifier gives it on average over what the missing cells may be,
    sum_k w_k p(y | x_k). Parameters are those for which the labels of held-out rows are most likely, and training stops when they
    no longer improve.

    Args:
        missingness: as of `SeriesImputer`.
        prior: as there.
        length_scale: as there.
        num_latents: as there.
        num_hidden: as there.
        encoder: as there.
        decoder: as there.
        classifier: network of p(y | x), as `encoder`.
        has_decay: the classifier sees missing cells between their last value and a generated one, see `Decay`.
        sees_mask: the classifier sees which cells are missing.
        obs_dropout: share of the observed cells that are hidden from the classifier in training, see `obs_dropout`.
        weight_decay: of the classifier.
        num_particles: K in training.
        num_draws: draws of each row over which class probabilities are averaged.
        method: as there.
        num_steps: as there.
        batch_size: as there.
        learning_rate: as there.
        validation_fraction: as there; with as many rows of each class as its share, where there are enough.
        patience: as there.
        check_every: as there.
        random_state: as there.

    Attributes:
        classes_: in ascending order.
        n_features_in_: number of features.
        feature_names_in_: their names, of frames.
        n_steps_: most steps of a series in `fit`.
        n_iter_: steps taken.
        history_: the bound at every step, nats per row.
        validation_: steps and losses of the looks at the held-out rows, nats per label.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Example:
        >>> import numpy as np
        >>> from lapilli.models.imputation import SeriesClassifier
        >>> y = np.repeat(["low", "high"], 20)
        >>> x = (y == "high")[:, None] + np.random.default_rng(0).normal(0, 0.3, (40, 2))
        >>> x[::4, 1] = np.nan
        >>> model = SeriesClassifier(num_steps=40, num_hidden=4, num_draws=10, random_state=0).fit(x, y)
        >>> model.predict(x).shape, model.predict_proba(x).shape
        ((40,), (40, 2))

    Reference: Ipsen et al. 2022 (supMIWAE); Kim et al. 2023, arXiv:2308.06738 (supnotMIWAE, ObsDropout).
    """

    classifier: Kind | Literal["auto"] = "auto"
    has_decay: bool = False
    sees_mask: bool = False
    obs_dropout: float = 0.3
    weight_decay: float = 0.1
    num_steps: int = 1000

    def _recipe(self) -> Recipe:
        return Recipe(
            self.num_particles, self.num_steps, self.learning_rate, self.obs_dropout, self.weight_decay
        )  # fmt: skip

    def fit(self, X: PyTree, y: ArrayLike) -> Self:
        """Train.

        Args:
            X: as for `SeriesImputer.fit`.
            y: class of each row, numbers or texts; at least two of them.

        Raises:
            ValueError: as there; labels are not classes, of another number than the rows, or all alike.
        """
        if y is None:
            raise ValueError(
                "SeriesClassifier: requires y to be passed, but the target y is None. Give the class of each row."
            )
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        rows = X.values if hasattr(X, "valid") else X
        if hasattr(rows, "__len__") or hasattr(rows, "shape"):
            check_consistent_length(rows, y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) == 1:  # of no rows at all the table is refused
            raise ValueError(
                f"SeriesClassifier: y has one class only, {self.classes_.tolist()}, and there is nothing to tell apart. "
                "Give rows of at least two classes."
            )
        return self._fit(X, labels.astype(np.int32))

    def predict_proba(self, X: ArrayLike) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of the classes, in the order of `classes_`.

        Args:
            X: rows like those of `fit`, these or new ones, in any number; no labels are asked for.

        Raises:
            ValueError: X has other features than in `fit`, or is a table where there were series, or the other way round.

        Validity: as `impute`; consistent as `num_draws` grows, for the law that was learned.
        """
        source = self._given(X)
        return np.concatenate([found.probs for _, found in self._imputations(source.data)])

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable class of each row.

        Args:
            X: as for `predict_proba`.

        Raises:
            ValueError: as `predict_proba`.
        """
        best = self.predict_proba(X).argmax(-1)
        return self.classes_[best]
