"""Few-shot meta-learning by a hierarchical Bayesian model (Kim and Hospedales 2024, arXiv:2306.09702).

`programs` gives model and guide, for `inference.elbo` and `inference.fit`, `optimizer` rates for what they learn; `adapt` and
`predict` take fitted programs to new episodes. A program of one's own is read by `predict` if it states its queries by `observe`:
MAML, Reptile, prototypical networks and neural processes are written so in `examples/papers/few_shot/_baselines.py`.
`FewShotClassifier` does all this for rows and classes of one's own, as an estimator of scikit-learn.
"""

from typing import TYPE_CHECKING

from .._on_use import estimators_of
from ._episodes import Episodes as Episodes, Points as Points, pad_points as pad_points
from ._evaluate import (
    Prediction as Prediction,
    adapt as adapt,
    fitted_temperature as fitted_temperature,
    predict as predict,
    regression_ece as regression_ece,
    with_fitted_noise as with_fitted_noise,
)
from ._heads import (
    GaussianNoise as GaussianNoise,
    GaussianWithScale as GaussianWithScale,
    Head as Head,
    NearestCentroid as NearestCentroid,
    Softmax as Softmax,
    Student as Student,
    Tempered as Tempered,
)
from ._optimizer import optimizer as optimizer
from ._programs import NIWMeta as NIWMeta, observe as observe, programs as programs
from ._variational import adapt_by_vi as adapt_by_vi
from ._weights import Weights as Weights

if TYPE_CHECKING:
    from .estimators import FewShotClassifier as FewShotClassifier

__all__ = [
    "FewShotClassifier",
    "Episodes",
    "Points",
    "pad_points",
    "Prediction",
    "adapt",
    "fitted_temperature",
    "predict",
    "regression_ece",
    "with_fitted_noise",
    "GaussianNoise",
    "GaussianWithScale",
    "Head",
    "NearestCentroid",
    "Softmax",
    "Student",
    "Tempered",
    "observe",
    "optimizer",
    "programs",
    "adapt_by_vi",
    "Weights",
]


__getattr__ = estimators_of(__name__, "FewShotClassifier")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
