"""Gaussian sites integrated out of a program: `ppl.eliminate` for linear-Gaussian structure.

Input: a program and the names of sites with normal laws whose means are affine in each other. Output: the statements that are
left, made one after the other, each with its law given those before. `_lift.py` traces the program with its statements as
equations, `_integrator.py` runs it with values that are affine in what is believed of the sites (`_forms.py`, `beliefs`),
scans and branches included (`control_flow`). A step of a scan may be collected as affine maps (`_collector.py`), to be put
together for what reads all steps, or filtered in parallel (`_chains.py`). On request, what is not affine is approximated
(`_approximate.py`).
"""

from ._approximate import APPROXIMATIONS as APPROXIMATIONS
from ._integrate import integrate as integrate, propose as propose
from ._integrator import BESIDE as BESIDE, BESIDE_SCALE as BESIDE_SCALE, Emit as Emit
from ._laws import JointNormal as JointNormal
from .beliefs import SmoothingRequest as SmoothingRequest
