"""Members of the family as estimators of scikit-learn, for data of one's own; loaded on first use."""

# First: it says what is missing without scikit-learn.
from ..._estimator import StoredEstimator as StoredEstimator
from ._classifier import SeriesClassifier as SeriesClassifier
from ._imputer import SeriesImputer as SeriesImputer
from ._table import TableImputer as TableImputer

__all__ = ["SeriesImputer", "SeriesClassifier", "TableImputer"]
