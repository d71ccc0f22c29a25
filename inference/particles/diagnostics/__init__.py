"""What a run tells of itself: the variance of its evidence, surviving ancestors, plots."""

from ._evidence import evidence_variance as evidence_variance, unique_ancestors as unique_ancestors
from ._plot_smc import plot_fan as plot_fan, plot_smc as plot_smc
