"""Gradient strategies: how the derivative of an expectation passes through one site.

The protocol is `_strategy.py`; then one file per estimator. `Engine` (`_engine.py`) is the recorder that runs a program under
strategies: it resolves names ("reparam", "enum", ...) to strategies, checks that a site's law fits its strategy, draws, and
leaves the markers that the analysis reads.
"""

from ._boundary import Boundary as Boundary, Decision as Decision, Peer as Peer
from ._disarm import ARM as ARM, DisARM as DisARM
from ._engine import (
    Engine as Engine,
    StrategyError as StrategyError,
    StrategySite as StrategySite,
    as_strategy as as_strategy,
)
from ._importance import Importance as Importance
from ._mvd import MVD as MVD
from ._reinforce import (
    Baseline as Baseline,
    Combined as Combined,
    LeaveOneOut as LeaveOneOut,
    MovingAverage as MovingAverage,
    Regression as Regression,
    Reinforce as Reinforce,
)
from ._rejection import RejectionReparam as RejectionReparam
from ._relax import Rebar as Rebar, Relax as Relax
from ._strategy import (
    GAMMA_FAMILY as GAMMA_FAMILY,
    Downstream as Downstream,
    Draw as Draw,
    Enum as Enum,
    GumbelSoftmax as GumbelSoftmax,
    Implicit as Implicit,
    Pathwise as Pathwise,
    Reparam as Reparam,
    StraightThrough as StraightThrough,
    Strategy as Strategy,
    element as element,
    has_rsample as has_rsample,
    stop as stop,
)
