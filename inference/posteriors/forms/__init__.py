"""Forms of a model: the same joint law written otherwise, and as a density of unconstrained coordinates.

_elimination.py   which sites go, exactly
_noncentred.py    which are shifted and scaled
_target.py        the log-density of the rest;  _maps.py  from coordinates to values
"""

from ._elimination import (
    CHEAP as CHEAP,
    DEAR as DEAR,
    without_discrete as without_discrete,
    without_normal as without_normal,
)
from ._noncentred import (
    noncentred as noncentred,
)
from ._target import (
    Target as Target,
    make_target as make_target,
)

__all__: list[str] = []
