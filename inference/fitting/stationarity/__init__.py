"""Whether a run has arrived: the value has settled; the iterates around the end, their average, and what is left of their noise.

`settling` slows a run down to a halt; `watching` lets it go on at its pace, so that the iterates can be averaged
(`_averaging.py`). `noise_shares` says how large their noise is beside the posterior.
"""

from ._averaging import (
    Averaging as Averaging,
    Iterates as Iterates,
    averaged as averaged,
    no_iterates as no_iterates,
    summary as summary,
    with_iterate as with_iterate,
)
from ._noise import noise_shares as noise_shares
from ._settling import (
    MAX_STEPS as MAX_STEPS,
    MOST_NATS as MOST_NATS,
    is_done as is_done,
    settling as settling,
)
from ._watching import settled_at as settled_at, watching as watching

__all__: list[str] = []
