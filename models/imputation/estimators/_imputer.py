"""Missing cells filled in by a member of the family, as a transformer of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import ArrayLike, Float, PyTree
from scipy.special import logsumexp
from sklearn.base import OneToOneFeatureMixin, TransformerMixin

from ....ppl._checks import check_counts
from ._base import SeriesEstimator
from ._completions import check_seed
from ._training import Recipe


class SeriesImputer(OneToOneFeatureMixin, TransformerMixin, SeriesEstimator):
    """Fill in missing cells of a table or of series, with bands.

    An estimator of scikit-learn over `programs` and `impute`: it standardises, trains by `inference.iwelbo` with K particles on

        L <= log p(x_o, s)      (s, the mask, where `missingness` says that holes tell something),

    keeps the parameters for which held-out rows are most likely and stops when they no longer improve. A missing cell becomes
    its posterior mean E[x | x_o, s].

    A table has one step a row and features as channels: each row is drawn by itself (MIWAE). Series have a Gaussian process as
    prior of their paths. Held-out rows choose the parameters, so that `validation_` is somewhat too good; to choose sizes, score
    cells or rows of your own, e.g. by `GridSearchCV`, whose score is that of `score`.

    Args:
        missingness: "self_masking", "linear" or "network" if whether a cell is missing depends on its value; None if not.
        prior: of series, "gp" or "normal"; tables have "normal".
        length_scale: of the Gaussian process, in steps (in the unit of the times, where there are any).
        num_latents: latent numbers of each step; None: features + 4 for series, 8 for tables.
        num_hidden: width of the networks.
        encoder: "gru", "transformer", "conv" or "linear"; "auto": "gru" for series, "conv" for tables.
        decoder: the same, without "auto".
        num_particles: K in training.
        num_draws: draws of each row from which means and bands are made.
        method: "smc" by particles over time, "importance" by weights of whole rows; "auto": "smc" for series.
        num_steps: most steps of training.
        batch_size: rows a step, and rows on the device at once.
        learning_rate: of Adam, with a warm-up and a cosine decay.
        validation_fraction: share of the rows that are held out; none if that is less than one row, and then training takes
            `num_steps` steps and keeps the last parameters.
        patience: steps without improvement after which training ends; None: never.
        check_every: steps between looks at the held-out rows.
        random_state: integer, NumPy's RandomState or None, of everything random in `fit`. What is asked of a fitted estimator
            is the same each time, except for `sample`: the draws of a row depend on the row and on the fit alone.

    Attributes:
        n_features_in_: number of features.
        feature_names_in_: their names, of frames.
        n_steps_: most steps of a series in `fit`; shorter ones are filled up, and longer ones are compiled anew.
        n_iter_: steps taken.
        history_: the bound at every step, nats per row.
        validation_: steps and losses of the looks at the held-out rows, nats per row in standard units.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Example:
        >>> import numpy as np
        >>> from lapilli.models.imputation import SeriesImputer
        >>> x = np.random.default_rng(0).normal(size=(40, 1)) + np.zeros(3)
        >>> x[::4, 1] = np.nan
        >>> imputer = SeriesImputer(num_steps=20, num_hidden=4, num_draws=10, random_state=0).fit(x)
        >>> imputer.transform(x).shape, imputer.quantiles(x, [0.05, 0.95]).shape
        ((40, 3), (2, 40, 3))

    Reference: Mattei and Frellsen 2019, arXiv:1812.02633 (MIWAE); Ipsen et al. 2021, arXiv:2006.12871 (not-MIWAE); Fortuin et
    al. 2020, arXiv:1907.04155 (GP-VAE).
    """

    def _recipe(self) -> Recipe:
        return Recipe(self.num_particles, self.num_steps, self.learning_rate)

    def fit(self, X: PyTree, y: PyTree = None) -> Self:
        """Train.

        Args:
            X: real, NaN for a missing cell. A table [rows, features], an array or a frame; series of one length [series, time,
                features]; a list of tables [time, features] of any lengths, arrays or frames; or a `Series`, which can have times
                of its own.
            y: not used.

        Raises:
            ValueError: a parameter is impossible; X is not as above, holds infinite cells, or has a feature of which no cell is
                observed.
        """
        return self._fit(X, None)

    def transform(self, X: ArrayLike) -> Any:
        """X with posterior means in its missing cells, in its form: an array of a table or of series, a list of arrays.

        Args:
            X: rows like those of `fit`, these or new ones, in any number.

        Raises:
            ValueError: X has other features than in `fit`, or is a table where there were series, or the other way round.

        Validity: as `impute`; consistent as `num_draws` grows, for the law that was learned.
        """
        source = self._given(X)
        rows, values = self._of_holes(source, lambda found: found.mean)
        return source.like(self._filled(source, values, rows))

    def quantiles(self, X: ArrayLike, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> Any:
        """Quantiles of the missing cells, [levels, *shape of X]; of a list, such an array for each series.

        Args:
            X: as for `transform`.
            levels: in (0, 1).

        Raises:
            ValueError: as `transform`; a level is not in (0, 1).
        """
        levels = [float(level) for level in levels]
        if not levels or not all(0 < level < 1 for level in levels):
            raise ValueError(
                f"SeriesImputer.quantiles: levels must lie in (0, 1), got {levels}. Give some, e.g. [0.05, 0.95]."
            )
        source = self._given(X)
        rows, values = self._of_holes(source, lambda found: found.quantiles(levels), (len(levels),))
        return source.like(self._filled(source, values, rows))

    def sample(self, X: ArrayLike, num_samples: int = 1, *, random_state: int = 0) -> PyTree:
        """Draws of the missing cells, [samples, *shape of X]; of a list, such an array for each series.

        Rows are drawn independently, all from the one law that was learned. A draw is one of the `num_draws` weighted ones of its
        row, with replacement; with weights on few of them, some are alike.

        Of a table this is no multiple imputation in Rubin's sense, and a warning says so: what the networks have missed of a
        relation is missing from all completed tables, and no draw of the parameters tells how much that may be. Slopes are pulled
        towards zero, with intervals that do not know of it, and categories come out as numbers between. `TableImputer` is for
        that.

        Args:
            X: as for `transform`.
            num_samples: how many.
            random_state: seed.

        Raises:
            ValueError: as `transform`; `num_samples` is not positive; `random_state` is no integer from 0.
        """
        check_counts("SeriesImputer.sample", num_samples=num_samples)
        check_seed("SeriesImputer.sample", random_state)
        source = self._given(X)
        if self._layout == "table":
            warnings.warn(
                "SeriesImputer.sample: all draws are from one fitted law, which weakens relations between columns, so that what "
                "is estimated from completed tables is biased and its intervals too narrow. Use TableImputer and pool for "
                "multiple imputation of a table.",
                stacklevel=2,
            )
        rng = np.random.default_rng(random_state)

        def drawn(found: PyTree) -> np.ndarray:
            size, num_series = found.weights[..., 0].size, found.weights.shape[-1]
            weights = found.weights.reshape(size, num_series)
            flat = found.x.reshape(size, *found.x.shape[2:])
            index = np.stack([rng.choice(size, num_samples, p=w / w.sum()) for w in weights.T], 1)
            return flat[index, np.arange(num_series)]

        seed = int(np.random.default_rng([1, random_state]).integers(2**32))
        rows, values = self._of_holes(source, drawn, (num_samples,), seed)
        return source.like(self._filled(source, values, rows))

    def score_samples(self, X: ArrayLike) -> Float[np.ndarray, " rows"]:
        """Log-density of the observed cells of each row (with `missingness`, and of the mask), in nats and the unit of X.

        Args:
            X: as for `transform`.

        Raises:
            ValueError: as `transform`.

        Validity: the logarithm of an unbiased estimate of p(x_o) from `num_draws` draws: on average too small, by less the more
        there are.
        """
        source = self._given(X)
        found = [
            logsumexp(part.log_weights, (0, 1)) - np.log(part.log_weights[..., 0].size)
            for _, part in self._imputations(source.data)
        ]
        log_scale = np.log(self._standard.scale)
        return np.concatenate(found) - (np.asarray(source.data.observed) * log_scale).sum((1, 2))

    def score(self, X: PyTree, y: PyTree = None) -> float:
        """The mean of `score_samples`, nats per row; larger is better.

        Args:
            X: as for `transform`.
            y: not used.

        Raises:
            ValueError: as `transform`.
        """
        return float(self.score_samples(X).mean())

    def _of_holes(
        self, source: Any, made: Any, axes: tuple[int, ...] = (), seed: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows with missing cells, and `made` of their imputation [*axes, rows, time, channels], in the unit of X."""
        rows = self._rows_with_holes(source.data)
        values = np.empty((*axes, len(rows), *source.cells.shape[1:]), source.cells.dtype)
        if len(rows):
            for part, found in self._imputations(source.data.rows(rows), seed):
                values[..., part, :, :] = self._standard.undo(made(found))
        return rows, values
