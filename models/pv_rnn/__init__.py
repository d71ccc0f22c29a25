"""PV-RNN: a variational recurrent network whose posterior is inferred, not encoded, and its online inference.

Weights and inference are chosen apart. Train by an encoder, infer by error regression:

    model, guide = programs(network, guide="encoder", num_steps=T, key=key)
    fit = inference.fit(inference.elbo(model, guide, kl="analytic"), optimizer, (x, index), num_steps=..., key=key)
    regression = ErrorRegression(frozen(fit.params, network), window=10, w=[layer.num_latents / size for layer in network.layers])
    stream, prediction = regression.observe(regression.init(key), x_t, seen)

An encoder needs no table of vectors, and serves where all is seen; gradients on a window need no training for cells that are
lost. What this gains, where, and where not, has a page: docs/explain/reproduced.md. `SeriesForecaster` does all this for
series of one's own, as an estimator of scikit-learn.
"""

from typing import TYPE_CHECKING

from .._on_use import estimators_of
from ._analysis import (
    Latents as Latents,
    NGramDivergence as NGramDivergence,
    diverging_step as diverging_step,
    generate as generate,
    largest_lyapunov as largest_lyapunov,
    latents as latents,
    ngram_counts as ngram_counts,
    ngram_divergence as ngram_divergence,
    regenerate as regenerate,
    rollout as rollout,
    skeleton as skeleton,
)
from ._network import (
    Categorical as Categorical,
    Gaussian as Gaussian,
    Layer as Layer,
    Network as Network,
)
from ._predictive import interval as interval, log_score as log_score, mean as mean
from ._programs import (
    PVRNN as PVRNN,
    adaptive_vectors as adaptive_vectors,
    frozen as frozen,
    programs as programs,
    site_weights as site_weights,
)
from ._regression import ErrorRegression as ErrorRegression, NewRow as NewRow
from ._stream import Forecast as Forecast, Stream as Stream

if TYPE_CHECKING:
    from .estimators import SeriesForecaster as SeriesForecaster

__all__ = [
    "SeriesForecaster",
    "diverging_step",
    "generate",
    "largest_lyapunov",
    "latents",
    "ngram_divergence",
    "regenerate",
    "rollout",
    "skeleton",
    "Categorical",
    "Gaussian",
    "Layer",
    "Network",
    "interval",
    "log_score",
    "mean",
    "adaptive_vectors",
    "frozen",
    "programs",
    "site_weights",
    "ErrorRegression",
    "NewRow",
]


__getattr__ = estimators_of(__name__, "SeriesForecaster")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
