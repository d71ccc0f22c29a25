"""Formulas of NumPyro's that some versions get wrong, and ours in their places.

Wrong means: a log-density, a derivative of one, a distribution function or a draw that is off by more than the rounding of its
arguments explains, in single precision, somewhere in the law's range of parameters and values. Each law of NumPyro's is compared
with double precision by `tests/ppl/distributions/test_laws.py`; `_list.py` has what was found. `lapilli.workarounds()` prints it.

`_mend.py` puts a formula in another's place, `_special.py` and `_tails.py` are what formulas are made of, and the other files
have one kind of law each.
"""

from ._list import MENDS as MENDS, records as records
from ._special import (
    CONTINUOUS as CONTINUOUS,
    log_gamma_kernel as log_gamma_kernel,
    log_gamma_ratio as log_gamma_ratio,
)
