"""Members of the family as estimators of scikit-learn, for data of one's own; loaded on first use."""

try:
    import sklearn as sklearn
except ImportError as err:
    raise ImportError(
        "SeriesImputer and SeriesClassifier are estimators of scikit-learn. Install it with: pip install 'lapilli[data]'."
    ) from err

from ._classifier import SeriesClassifier as SeriesClassifier
from ._imputer import SeriesImputer as SeriesImputer

__all__ = ["SeriesImputer", "SeriesClassifier"]
