"""Few-shot classification as an estimator of scikit-learn, for classes of one's own; loaded on first use."""

# First: it says what is missing without scikit-learn.
from ..._estimator import StoredEstimator as StoredEstimator
from ._classifier import FewShotClassifier as FewShotClassifier

__all__ = ["FewShotClassifier"]
