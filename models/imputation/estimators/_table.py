"""Tables with holes by multiple imputation, as a transformer of scikit-learn."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Hashable, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ....ppl._checks import check_counts
from ....ppl._types import Key
from ..tables import (
    CURVED,
    Cells,
    Columns,
    Completion,
    TableParameters,
    is_frame,
    residuals_of,
    run_chains,
)
from ._completions import check_seed, completions, in_parts, row_keys
from ._model_choice import check_kind, choose

SKEWNESS = 1.5
MODELS = ("auto", "joint", "deep")


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class TableImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill in the holes of a table, once or many times: multiple imputation that a regression survives.

    Numbers are normal given the categories, with linear means and one covariance; categories follow a multinomial logistic
    regression on all other columns. The parameters are drawn from their posterior by chains that run until they agree, so that
    the completed tables of `sample` differ by what the holes leave open, of the parameters as well: `pool` makes estimates and
    honest intervals of them.

    That is the joint model. Where forests find relations that are curved, observed cells are hidden from it and from a deep
    latent model of the numbers (as in `SeriesImputer`), and the deep one is taken where these cells are likelier under it. It has
    one law and no draws of its parameters, and may weaken relations: a warning says by how much.

    Columns of texts, truth values and pandas' categories are categories, and so are numbers with two values. Orders of levels are
    kept and not used. Whole numbers are numbers, imputed as such and not rounded, which would bias what is computed from them
    (Horton, Lipsitz and Parzen 2003).

    Args:
        categories: names (of arrays, places) of columns of numbers that are categories, in place of those with two values.
        num_draws: of the parameters: so many completed tables can be asked for.
        num_chains: chains, each from a table completed at random.
        max_sweeps: of each chain, at most; a warning says where this was not enough.
        model: "joint", "deep", or "auto": by hidden cells, where a table of 100 rows or more has curved relations.
        random_state: integer, NumPy's RandomState or None, of the chains.

    Attributes:
        n_features_in_: number of columns.
        feature_names_in_: their names, of frames.
        levels_: of each column of categories, by name.
        n_iter_: sweeps of each chain; the first half is thrown away.
        r_hat_: the largest split R-hat of means, spreads and correlations that rest on missing cells; NaN without holes.
        ess_: the smallest effective number of draws of these.
        skewness_: of the residuals of each column of numbers, given all others; by name.
        model_: "joint" or "deep".
        curved_: share of these residuals, or of their size, that forests explain; by name of the columns with holes.
        gain_: mean log-density of hidden cells under the deep model less that under the joint one, nats for each cell, and its
            standard error; None where they were not compared.
        kept_: share of the relations between columns that draws of these cells under the deep model have; None likewise.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Validity: cells missing at random: whether one is missing may depend on what is observed in its row. Means, slopes and their
    intervals hold where relations are linear, also for residuals that are skew; quantiles and single cells need normal residuals,
    and a warning names columns whose residuals have a skewness beyond 1.5 (take logarithms). Interactions, squares and other
    curved relations are weakened, by the joint model to what is straight in them, by the deep one to `kept_`; a warning says so.
    For a regression add them to the table as columns of their own. Each column needs more observed rows than the
    table has columns, and two columns of which no rows have both are refused.

    Example:
        >>> import numpy as np
        >>> from lapilli.models.imputation import TableImputer, pool
        >>> x = np.random.default_rng(0).normal(size=(60, 1)) + np.zeros(2)
        >>> x[:, 1] += np.random.default_rng(1).normal(size=60)
        >>> x[::4, 1] = np.nan
        >>> tables = TableImputer(random_state=0).fit(x).sample(x, 10)
        >>> fits = [np.polyfit(*t.T, 1, cov=True) for t in tables]
        >>> pooled = pool([b for b, _ in fits], [np.diag(v) for _, v in fits], df=58)
        >>> low, high = pooled.interval(0.95)
        >>> bool(low[0] < 1 < high[0])
        True

    Reference: Rubin 1987; Schafer 1997, Analysis of incomplete multivariate data; van Buuren 2018, Flexible imputation of missing
    data, section 4.5.
    """

    categories: Sequence[Hashable] | None = None
    num_draws: int = 100
    num_chains: int = 4
    max_sweeps: int = 20000
    model: Literal["auto", "joint", "deep"] = "auto"
    random_state: int | np.random.RandomState | None = None

    def fit(self, X: PyTree, y: PyTree = None) -> Self:
        """Draw the parameters.

        Args:
            X: a frame, or an array of numbers, NaN (in frames, what pandas calls missing) in the holes.
            y: not used; put what is to be explained later into the table, or its relations are weakened.

        Raises:
            ValueError: a parameter is impossible; X has infinite cells, a column without observed cells or with one value and
                holes, texts among numbers, more levels than can be learned, too few rows, or columns never seen together.
        """
        counts = {name: getattr(self, name) for name in ("num_draws", "max_sweeps")}
        check_counts("TableImputer", **counts)
        check_counts("TableImputer", 2, num_chains=self.num_chains)
        if self.model not in MODELS:
            raise ValueError(
                f"TableImputer: model={self.model!r} is none of {', '.join(map(repr, MODELS))}. Take one of these."
            )
        table = self._read(X, reset=True)
        if len(table) < 2:
            raise ValueError(
                f"TableImputer: a table of n_samples = {len(table)} tells nothing of its columns. Give more rows."
            )
        self._columns = columns = Columns.of(table, self.categories)
        x, c = columns.arrays(table)
        columns.check(x, c)
        check_kind(self.model, x)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._seed = seed
        chains = {name: getattr(self, name) for name in ("num_draws", "num_chains", "max_sweeps")}
        found = run_chains(seed, Cells.of(x, c), columns.counts, columns.features, **chains)
        self._params: TableParameters = found.params
        self.n_iter_, self.r_hat_, self.ess_ = found.num_sweeps, found.r_hat, found.ess
        self.levels_ = {columns.names[j]: columns.levels[j] for j in columns.categories}
        # Rows that are completed later begin anew: ten times what a draw takes to be forgotten.
        self._num_sweeps = int(np.clip(10 * found.time, 16, 512))
        self._look_at_residuals(found.last.x[0], found.last.c[0], np.isnan(x))
        choice = choose(self.model, columns, x, c, found, chains, seed, self._num_sweeps)
        self._deep, self.model_, self.curved_ = choice.deep, choice.name, choice.curved
        self.gain_, self.kept_ = choice.gain, choice.kept
        if choice.deep is not None or max(choice.curved.values(), default=0.0) >= CURVED:
            warnings.warn(choice.told(), stacklevel=2)
        return self

    def transform(self, X: ArrayLike) -> PyTree:
        """X with expectations in the holes of numbers, and the most probable level in those of categories; in its own form.

        For one table to look at or to predict from. What is estimated from it as if it had been observed has intervals that are
        too narrow, and correlations that are too strong: take `sample` for that.

        Args:
            X: rows like those of `fit`, these or new ones, in any number.

        Raises:
            ValueError: other columns, levels that `fit` has not seen, infinite cells.
        """
        table, (x, c) = self._given(X)
        rows = np.flatnonzero(np.isnan(x).any(1) | (c < 0).any(1))
        for part in in_parts(rows):
            own = [zlib.crc32(x[r].tobytes() + c[r].tobytes()) for r in part]
            keys = row_keys(self._seed, own)  # so that a row's result depends on the row alone
            if self._deep is not None:
                x[part] = self._deep.means(x[part], c[part])
                if not self._columns.counts:
                    continue
            found = self._completed(np.arange(len(self._params.tril)), x[part], c[part], keys)
            x[part] = np.where(np.isnan(x[part]), found.mean.mean(0), x[part])
            c[part] = np.where(c[part] < 0, found.probs.mean(0).argmax(-1), c[part])
        return self._columns.filled(table, x, c)

    def sample(self, X: ArrayLike, num_samples: int = 20, *, random_state: int = 0) -> PyTree:
        """Completed tables: a list of frames, or an array [samples, rows, columns].

        Each is from a draw of the parameters of its own. Analyse each as if it had been observed, and hand the estimates and
        variances to `pool`.

        Args:
            X: as for `transform`.
            num_samples: how many, at most `num_draws`; 20 are enough for intervals, some more where more than half is missing.
            random_state: seed.

        Raises:
            ValueError: as `transform`; `num_samples` is not positive, or larger than `num_draws`; `random_state` is no integer
                from 0.
        """
        check_counts("TableImputer.sample", num_samples=num_samples)
        check_seed("TableImputer.sample", random_state)
        table, (x, c) = self._given(X)
        if num_samples > len(self._params.tril):
            raise ValueError(
                f"TableImputer.sample: num_samples={num_samples}, but {len(self._params.tril)} draws of the parameters were "
                f"kept, and more tables would repeat them. Fit with num_draws={num_samples}."
            )
        rng = np.random.default_rng(random_state)
        which = rng.permutation(len(self._params.tril))[:num_samples]
        seed = int(rng.integers(2**31))
        rows = np.flatnonzero(np.isnan(x).any(1) | (c < 0).any(1))
        xs, cs = (np.repeat(a[None], num_samples, 0) for a in (x, c))
        if self._deep is not None and len(rows):
            xs[:, rows] = self._deep.draws(x[rows], c[rows], num_samples, seed)
        # The deep model leaves levels alone.
        is_open = self._deep is None or bool(self._columns.counts)
        for part in in_parts(rows) if is_open else ():
            given = x[part] if self._deep is None else xs[:, part]
            found = self._completed(which, given, c[part], row_keys(seed, part))
            xs[:, part] = np.where(np.isnan(given), found.x, given)
            cs[:, part] = np.where(c[part] < 0, found.c, c[part])
        tables = [self._columns.filled(table, *each) for each in zip(xs, cs, strict=True)]
        return tables if is_frame(X) else np.stack(tables)

    def _read(self, X: PyTree, *, reset: bool) -> Any:
        """X as a frame, or an array of numbers; its columns compared with those of `fit`."""
        if is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not X.shape[1] or not len(X):
                raise ValueError(
                    f"TableImputer: 0 sample(s) or 0 feature(s) in a frame of shape {X.shape}. Give rows and columns."
                )
            return X
        kind = getattr(getattr(X, "dtype", None), "kind", "")
        texts = [v for v in X.flat if isinstance(v, str)][:1] if kind in ("O", "U") else []
        if texts:
            raise ValueError(
                f"TableImputer: X is an array with texts, e.g. {str(texts[0])!r}. Give a pandas DataFrame, whose columns have "
                "kinds of their own."
            )
        found = validate_data(
            self, X, reset=reset, ensure_all_finite="allow-nan", dtype=[np.float64, np.float32]
        )
        return np.asarray(found)

    def _given(self, X: ArrayLike) -> tuple[PyTree, tuple[np.ndarray, np.ndarray]]:
        check_is_fitted(self, "_params")
        table = self._read(X, reset=False)
        return table, self._columns.arrays(table)

    def _look_at_residuals(self, full: np.ndarray, c: np.ndarray, holes: np.ndarray) -> None:
        """Skewness of each column of numbers given all the others, and a warning where holes are filled from a skew law."""
        names = [self._columns.names[j] for j in self._columns.numbers]
        self.skewness_: dict[Hashable, float] = {}
        if not names:
            return
        last = jax.tree.map(lambda a: a[-1], self._params)
        residuals = np.asarray(
            residuals_of(last, jnp.asarray(full), jnp.asarray(c), self._columns.counts), float
        )
        for i, name in enumerate(names):
            own = residuals[~holes[:, i], i]
            own = own - own.mean()
            self.skewness_[name] = float((own**3).mean() / max((own**2).mean(), 1e-30) ** 1.5)
        noise = 4.5 * np.sqrt(6 / (~holes).sum(0))
        skew = {
            name: round(self.skewness_[name], 1)
            for i, name in enumerate(names)
            if holes[:, i].any() and abs(self.skewness_[name]) > SKEWNESS + noise[i]
        }
        if skew:
            warnings.warn(
                f"TableImputer: residuals are far from normal, with skewness {skew}. Means and slopes of completed tables hold, "
                "quantiles and single cells of these columns do not: transform them first, e.g. take logarithms.",
                stacklevel=3,
            )

    def _completed(self, which: np.ndarray, x: np.ndarray, c: np.ndarray, keys: Key) -> Completion:
        """Completions of rows under the draws `which` of the parameters, [draws, rows, ...]."""
        params = jax.tree.map(lambda a: a[which], self._params)
        return completions(params, x, c, keys, self._columns.counts, self._num_sweeps)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags
