"""Weighted particles: their arithmetic, and how they run in batches.

Terms. K particles have normalised log-weights (nats, logsumexp = 0 between steps) on axis 0. A *weighing* multiplies the weights
by potentials G_k and adds log sum_k W_k G_k to the evidence. A *batch* is the particles that run at once.

Invariants: a weight that is NaN makes the evidence NaN, never another particle's share; a derivative that would be biased is
refused where it is taken.
"""

from ._batches import Batch as Batch, in_batches as in_batches, is_key as is_key
from ._families import (
    FORMS as FORMS,
    facts_with_error as facts_with_error,
    family_error as family_error,
    family_variance as family_variance,
    law_of as law_of,
    log_apart as log_apart,
)
from ._guard import drawn as drawn, floats as floats, underived as underived, unused as unused
from ._tail import pareto_shape as pareto_shape, worst_shape as worst_shape
from ._weights import (
    StepWeights as StepWeights,
    evidence as evidence,
    reweight as reweight,
    times as times,
    uniform as uniform,
    voided as voided,
    weighted_mean as weighted_mean,
)
