"""Traced programs run again with the values of chosen sites replaced.

`evaluate` walks a jaxpr, and at each marker takes the value that it is given in place of the draw: that is all, and the
reference (`_evaluate.py`). `optimised` returns the same numbers from less work (`_optimised.py`), which counts where many
replacements are asked for at once: by numbers that no replacement reaches (`_invariants.py`), arrays of equal elements
(`_same.py`), loops without a loop (`_unrolled.py`, `_steps.py`, `_split.py`). `hoist_noise` draws noise in front of a loop
(`_hoist.py`). `stacked` runs a function of arrays with alike equations of straight code as one (`_stacked.py`).
"""

from ._evaluate import Evaluator as Evaluator, Forced as Forced, evaluate as evaluate
from ._hoist import draws as draws, hoist_noise as hoist_noise
from ._invariants import Invariants as Invariants
from ._optimised import Apply as Apply, Given as Given, optimised as optimised
from ._passes import NAMES as NAMES, PASSES as PASSES, is_on as is_on, passes as passes
from ._same import States as States, Uniform as Uniform
from ._split import (
    Chain as Chain,
    Layout as Layout,
    Split as Split,
    agreed as agreed,
    at_dims as at_dims,
    begun as begun,
    by_parts as by_parts,
    chains_of as chains_of,
    close_windows as close_windows,
    open_windows as open_windows,
    relative as relative,
    spread as spread,
    total_of as total_of,
    whole_at as whole_at,
)
from ._stacked import stacked as stacked
from ._steps import row_by_row as row_by_row
from ._unrolled import NeedsLoop as NeedsLoop, Windows as Windows
