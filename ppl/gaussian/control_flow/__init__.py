"""Scans (`_run_scan.py`, `_scan.py`) and branches (`_cond.py`) of a lifted program.

Steps of a scan may be put together as affine maps (`_maps.py`) or run at once (`_parallel.py`); where they leave the basis as it
is, they hand on coefficients (`_constant_basis.py`).
"""

from ._cond import run_cond as run_cond
from ._run_scan import run_scan as run_scan
