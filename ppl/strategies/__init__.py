"""Gradient strategies: how the derivative of an expectation passes through one site.

The strategies stand on top of `ppl`. What one of your own needs:

Protocol
    Strategy                        what a strategy is
    Draw, Downstream                what it sees: the site at its draw, and the costs behind it
    element                         the law of one element, and the shape of a site's elements

Baselines of scores
    Baseline                        what a baseline is
    LeaveOneOut, MovingAverage      of other replicates, of the past
    Regression                      on what is known before the draw
    CombinedBaseline                several, with weights that are learned

The protocol is `_strategy.py`; then one file per estimator, and their names (`_registry.py`). `Engine` (`_engine.py`) is the
recorder that runs a program under strategies: it resolves names ("reparam", "enum", ...) to strategies, checks that a site's law
fits its strategy, draws, and leaves the markers that the analysis reads.
"""

from ._boundary import Boundary as Boundary, Decision as Decision, Peer as Peer
from ._disarm import ARM as ARM, DisARM as DisARM
from ._engine import Engine as Engine, StrategySite as StrategySite
from ._enum import Enum as Enum, support_of as support_of
from ._importance import Importance as Importance
from ._mvd import MVD as MVD
from ._pathwise import (
    GAMMA_FAMILY as GAMMA_FAMILY,
    Implicit as Implicit,
    Pathwise as Pathwise,
    Reparam as Reparam,
    has_rsample as has_rsample,
)
from ._registry import AUTO as AUTO, TRIED as TRIED, as_strategy as as_strategy
from ._reinforce import (
    Baseline as Baseline,
    CombinedBaseline as CombinedBaseline,
    LeaveOneOut as LeaveOneOut,
    MovingAverage as MovingAverage,
    Regression as Regression,
    Reinforce as Reinforce,
)
from ._rejection import RejectionReparam as RejectionReparam
from ._relax import Rebar as Rebar, Relax as Relax
from ._relaxed import GumbelSoftmax as GumbelSoftmax, StraightThrough as StraightThrough
from ._strategy import (
    Downstream as Downstream,
    Draw as Draw,
    Strategy as Strategy,
    StrategyError as StrategyError,
    element as element,
    stop as stop,
)

__all__ = [
    "Strategy",
    "Draw",
    "Downstream",
    "element",
    "Baseline",
    "LeaveOneOut",
    "MovingAverage",
    "Regression",
    "CombinedBaseline",
]
