"""Multiple imputation of tables: rows that are exchangeable, columns of numbers and of categories.

Terms: x, the numbers of a row in standard units; c, its categories; D(c), one and the categories as dummies, the first level of
each left out. The law, numbers given categories and each category given all the rest,

    x | c ~ Normal(B' D(c), L L'),      P(c_k = l | x, c_-k) = softmax_l of w_kl' [1, x, dummies of the other categories],

has linear means, one covariance, and logits that are linear: the general location model (Olkin and Tate 1961; Schafer 1997,
chapter 9), its categories by logistic regressions rather than through the numbers, as chained equations have them, so that these
hold where numbers are skew.

Proper imputations (Rubin 1987) need draws of the parameters from their posterior, and not one estimate. A chain alternates

    numbers      B, L | completed table;   missing x | observed x of the row, c, B, L, exactly and jointly
    categories   w_k | rows in which c_k is observed;   missing c_k | the rest of the row, w_k, in turn

(`_numbers.py`, `_categories.py`, `_sweep.py`). Several chains run until they agree (`_chains.py`). Where relations are curved,
hidden cells tell whether a deep model has them better (`_validation.py`). `pool` combines what analyses of the completed tables
found.
"""

from ._chains import TableChains as TableChains, run_chains as run_chains
from ._columns import Columns as Columns, is_frame as is_frame
from ._pool import Pooled as Pooled, pool as pool
from ._sweep import (
    Cells as Cells,
    Completion as Completion,
    Levels as Levels,
    TableParameters as TableParameters,
    completed as completed,
    residuals_of as residuals_of,
)
from ._validation import (
    CURVED as CURVED,
    LEAST_ROWS as LEAST_ROWS,
    CurvesFound as CurvesFound,
    HiddenCells as HiddenCells,
    hide as hide,
    joint_scores as joint_scores,
    kept as kept,
    look_for_curves as look_for_curves,
    with_dummies as with_dummies,
)
