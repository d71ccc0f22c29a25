"""Gradient estimates: `ppl.expectation` and what it is made of.

`_pipeline.py` names the steps of an estimate and takes them. A function is traced, analysed and checked once per shape of its
inputs (`_checked.py`), then the surrogate is built (`_estimate.py`): a number whose value is the estimate and whose gradient is
the unbiased gradient estimate. It reads the program's terms (`_terms.py`, `_reading.py`) with each site's costs
(`_downstream.py`), and each site's strategy adds its part.
"""

from ._again import watched_again as watched_again
from ._checked import known_data as known_data
from ._controlled import controlled as controlled
from ._expectation import Expectation as Expectation, expectation as expectation
from ._single_run import plate_sizes as plate_sizes, run_once as run_once
from ._sweep import Sweep as Sweep
