"""Draws without chains, judged by their weights.

_weighted.py   of a fitted guide, and particles that are tempered
_flow.py       of a flow that is trained from a fit
_mixture.py    of a mixture of Normals at the places of chains
_tails.py      which sites have tails too heavy for their widths to be known
"""

from ._mixture import (
    MOST_COORDINATES as MOST_COORDINATES,
    weigh_modes as weigh_modes,
)
from ._tails import (
    heavy_tails as heavy_tails,
)
from ._weighted import (
    FoundDraws as FoundDraws,
    near_guide as near_guide,
    run_fit as run_fit,
    run_flow as run_flow,
    run_tempered as run_tempered,
)

__all__: list[str] = []
