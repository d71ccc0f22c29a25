"""Series continued by a PV-RNN, as an estimator of scikit-learn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ....inference import elbo
from ....ppl._compat import ArrayLike
from ..._estimator import StoredEstimator
from ..._series import Series, Standardisation, standardise
from ..._series_inputs import given
from .._network import Gaussian, Network
from .._predictive import log_score
from .._programs import PVRNN, frozen, programs, site_weights
from .._regression import ErrorRegression
from ._inference import PART, Inferred, inferred


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SeriesForecaster(StoredEstimator):
    """Continue series: means, bands and draws of what comes next.

    An estimator of scikit-learn over `programs` and `ErrorRegression`. The network is trained with an encoder on the weighted
    bound of `site_weights`; new series are inferred without it, by gradients on a window of their last steps, in which missing
    cells have no term. So cells, steps or whole channels may be missing, in training and afterwards.

    Args:
        layers: (units, latents) or (units, latents, time constant) of each layer, fast to slow.
        beta: weight of the divergences in training and in inference; 1 is the evidence bound, less fits more closely.
        window: steps whose latents are inferred.
        num_iterations: gradient steps for each observation.
        num_draws: joint draws of the future.
        num_steps: of the optimiser, at most.
        batch_size: series a step.
        learning_rate: of Adam, with a cosine decay to zero.
        validation_fraction: series held out, for which the parameters kept are best; 0: those of the last step are.
        patience: steps without a smaller loss of these series after which training ends; None: never.
        check_every: steps between looks at these series.
        random_state: as everywhere in scikit-learn.

    Attributes:
        n_features_in_: number of features.
        feature_names_in_: their names, of frames.
        n_steps_: most steps of a series in `fit`.
        n_iter_: steps taken.
        history_: the weighted bound at every step, nats per series and feature.
        validation_: steps and losses of the looks at the held-out series, nats per series.

    Raises:
        ImportError: scikit-learn is not installed (pip extra "data").

    Validity: as `ErrorRegression`, an approximation of the filter under the law that was learned. A look at the held-out series
    is at their evidence bound by the encoder, whatever `beta`.

    Example:
        >>> import numpy as np
        >>> from lapilli.models.pv_rnn import SeriesForecaster
        >>> waves = np.sin(np.arange(20)[:, None] / 2 + np.arange(6)[:, None, None])  # [series, time, features]
        >>> model = SeriesForecaster(layers=((8, 1),), num_steps=20, num_iterations=2, num_draws=10, random_state=0)
        >>> model.fit(waves).predict(waves, horizon=3).shape
        (6, 3, 1)

    Reference: Ahmadi and Tani 2019, arXiv:1811.01339.
    """

    FORMAT = "series forecaster 1"
    COUNTS = ("window", "num_iterations", "num_draws", "num_steps", "batch_size", "check_every")

    layers: tuple[tuple[float, ...], ...] = ((40, 4, 2.0), (10, 2, 8.0))
    beta: float = 1.0
    window: int = 10
    num_iterations: int = 20
    num_draws: int = 100
    num_steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 0.003
    validation_fraction: float = 0.1
    patience: int | None = 400
    check_every: int = 50
    random_state: int | np.random.RandomState | None = None

    def fit(self, X: PyTree, y: PyTree = None) -> Self:
        """Train.

        Args:
            X: real, NaN for a missing cell: series of one length [series, time, features], a list of tables [time, features] of
                any lengths, arrays or frames, or a `Series`. Steps are alike in time.
            y: not used.

        Raises:
            ValueError: a parameter is impossible; X is not as above, holds infinite cells, or has a feature of which no cell is
                observed.
        """
        import optax  # on use: a tenth of a second

        problems = self._check_counts()
        if not self.beta > 0:
            problems.append(f"beta must be positive, got {self.beta!r}")
        self._refuse(problems)
        data = self._read(X, reset=True)
        self.n_steps_ = data.values.shape[1]
        rng = check_random_state(self.random_state)
        self._seed, split_seed = (int(n) for n in rng.randint(2**31 - 1, size=2))
        rows, held = self._split(len(data.valid), None, split_seed)
        unseen = np.flatnonzero(~np.asarray(data.observed)[rows].any((0, 1)))
        if len(unseen):
            raise ValueError(
                f"SeriesForecaster.fit: nothing was observed of features {unseen.tolist()} of X in the series to train on. Leave "
                "these features out."
            )
        self._standard = standardise(data.rows(rows))
        own, (network, pair) = self._standard.apply(data), self._programs(self.n_steps_)
        weights = None if self.beta == 1 else self._weights(network, self.n_steps_)
        bound = elbo(*pair, kl="analytic", check_jumps=False)
        trained = elbo(*pair, kl="analytic", check_jumps=False, site_weights=weights)
        loss = None
        if held is not None:
            loss = functools.partial(_loss, bound, _arguments(own.rows(held)))
        adam = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.num_steps))
        clipped, size = optax.chain(optax.clip_by_global_norm(1e3), adam), len(rows)
        args = _arguments(own.rows(rows))
        # Site weights have divided by the number of features already.
        per = size * (int(self.n_features_in_) if weights is None else 1)
        params = self._train(trained, clipped, args, loss, plate="sequences", size=size, per=per)
        self._made = frozen(params, network)
        return self

    def predict(
        self, X: ArrayLike, horizon: int = 1
    ) -> Float[np.ndarray, "series horizon features"]:
        """Means of the steps that follow each series.

        Args:
            X: series as in `fit`, these or new ones, of any lengths; at least one step each.
            horizon: how many steps.
        """
        return self.sample(X, horizon).mean(0)

    def quantiles(
        self, X: ArrayLike, q: ArrayLike, horizon: int = 1
    ) -> Float[np.ndarray, "quantiles series horizon features"]:
        """Quantiles of the steps that follow each series.

        Args:
            X: as in `predict`.
            q: probabilities, [quantiles].
            horizon: how many steps.
        """
        return np.quantile(self.sample(X, horizon), np.atleast_1d(q), axis=0)

    def sample(
        self, X: ArrayLike, horizon: int = 1
    ) -> Float[np.ndarray, "draws series horizon features"]:
        """Joint draws of the steps that follow each series.

        Args:
            X: as in `predict`.
            horizon: how many steps.
        """
        data = self._given(X)
        parts = []
        for found in self._inferred(data, horizon):
            draw = lambda key, emitted, network=found.network: network.law(emitted).sample(key)
            drawn = np.asarray(jax.vmap(draw)(found.keys, found.emitted_at_end))
            parts.append(np.moveaxis(drawn, -2, 0)[:, : found.size])
        return self._standard.undo(np.concatenate(parts, 1))

    def score(self, X: PyTree, y: PyTree = None) -> float:
        """Log-density of each step given those before it, nats, on average over steps all of whose cells are seen.

        Args:
            X: as in `predict`; at least two steps in one series.
            y: not used.

        Raises:
            ValueError: no step is seen in whole after the first.
        """
        data = self._given(X)
        seen = np.asarray(data.observed, bool)[:, 1:].all(-1)
        if not seen.any():
            raise ValueError(
                "SeriesForecaster.score: no step after the first is seen in whole, so that there is nothing to score. Give "
                "series of two steps or more with such steps."
            )
        standard, parts = self._standard.apply(data), []
        for found in self._inferred(data, 1):
            x = jnp.asarray(np.resize(standard.values[found.rows], (PART, *data.values.shape[1:])))
            scores = log_score(found.network, found.emitted[:, :-1, 0], x[:, 1:])
            parts.append(np.asarray(scores)[: found.size])
        scores = np.concatenate(parts) - np.log(self._standard.scale).sum()
        return float(scores[seen].mean())

    def _read(self, X: ArrayLike, *, reset: bool) -> Series:
        source = given(self, X, reset=reset)
        if source.layout == "table":
            raise ValueError(
                f"SeriesForecaster: X is a table of shape {np.shape(X)}, and series are needed. Reshape your data: give [series, "
                "time, features], or a list of tables [time, features]; one series is X[None]."
            )
        return source.data

    def _given(self, X: ArrayLike) -> Series:
        check_is_fitted(self, "_leaves")
        return self._read(X, reset=False)

    def _programs(self, num_steps: int) -> tuple[Network, PVRNN]:
        network_key, encoder_key = jax.random.split(
            jax.random.fold_in(jax.random.key(self._seed), 0)
        )
        layers: Any = [(int(units), int(latents), *rest) for units, latents, *rest in self.layers]
        network = Network(layers, Gaussian(int(self.n_features_in_)), key=network_key)
        return network, programs(network, guide="encoder", num_steps=num_steps, key=encoder_key)

    def _weights(self, network: Network, num_steps: int) -> dict[str, Array]:
        return site_weights(network, self._meta_prior(network), num_steps=num_steps)

    def _meta_prior(self, network: Network) -> list[float]:
        return [self.beta * layer.num_latents / network.output.size for layer in network.layers]

    def _ready(self) -> Network:
        """The trained network."""
        if self._made is None:
            network, pair = self._programs(2)
            cells = np.zeros((1, 2, self.n_features_in_), np.float32)
            bound, key = elbo(*pair, kl="analytic", check_jumps=False), jax.random.key(0)
            args = (cells, np.zeros(1, int), cells == 0)
            treedef = jax.tree.structure(jax.eval_shape(lambda: dict(bound.init(key, *args))))
            self._made = frozen(jax.tree.unflatten(treedef, self._leaves), network)
        return self._made

    def _inferred(self, data: Series, horizon: int) -> Iterator[Inferred]:
        """Error regression along the series, part by part."""
        network = self._ready()
        regression = ErrorRegression(
            network, window=self.window, num_iterations=self.num_iterations,
            w=self._meta_prior(network), horizon=horizon, num_particles=self.num_draws,
        )  # fmt: skip
        return inferred(regression, self._standard.apply(data), self._seed)

    def _state(self) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
        state, arrays = super()._state()
        state["n_steps"] = int(self.n_steps_)
        return state, {**arrays, "mean": self._standard.mean, "scale": self._standard.scale}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super()._restore(state, arrays)
        self.n_steps_ = state["n_steps"]
        self._standard = Standardisation(arrays["mean"], arrays["scale"])
        self.layers = tuple(tuple(layer) for layer in self.layers)  # lists, in JSON

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False
        return tags


def _arguments(data: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(data.values), np.arange(len(data.values)), np.asarray(data.observed)


def _loss(bound: Any, held: tuple[np.ndarray, ...], params: PyTree, key: Array) -> Array:
    return -bound.value(params, key, *held) / len(held[0])
