"""Chains of NUTS until their verdict is good.

_chains.py     warm-up, rounds, restarts
_sampler.py    NumPyro's kernel, compiled once, and the frames in which it runs
_double.py     double precision, where single is too coarse
_modes.py      places to begin at
"""

from ._chains import (
    Chains as Chains,
    ChainSettings as ChainSettings,
    run_chains as run_chains,
)
from ._double import (
    doubled as doubled,
    is_coarse as is_coarse,
    precision as precision,
    singled as singled,
)
from ._modes import (
    starts_in_modes as starts_in_modes,
)
from ._sampler import (
    CHUNK as CHUNK,
    DENSE_UP_TO as DENSE_UP_TO,
    Frame as Frame,
    Run as Run,
    mean_and_root as mean_and_root,
)

__all__: list[str] = []
