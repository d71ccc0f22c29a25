"""Draws from a fitted guide, and what the model predicts from them: of rows at hand, and of more rows than memory holds."""

from ._batches import predict_batches as predict_batches
from ._from_draws import (
    DrawsOrigin as DrawsOrigin,
    predicted as predicted,
    tell_of_nan as tell_of_nan,
    thinned as thinned,
)
from ._new_rows import (
    check_rows as check_rows,
    of_other_rows as of_other_rows,
    sites_of as sites_of,
)
from ._other_arguments import check_axes as check_axes, is_of_fit as is_of_fit
from ._posterior import Posterior as Posterior, weighted_draws as weighted_draws
from ._predictive import predictive as predictive

__all__: list[str] = []
