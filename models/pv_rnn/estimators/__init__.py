"""PV-RNN as an estimator of scikit-learn, for series of one's own; loaded on first use."""

# First: it says what is missing without scikit-learn.
from ..._estimator import StoredEstimator as StoredEstimator
from ._forecaster import SeriesForecaster as SeriesForecaster

__all__ = ["SeriesForecaster"]
