"""A diffusion model as an estimator of scikit-learn, for tables of one's own; loaded on first use."""

# First: it says what is missing without scikit-learn.
from ..._estimator import StoredEstimator as StoredEstimator
from ._density import DiffusionDensity as DiffusionDensity

__all__ = ["DiffusionDensity"]
