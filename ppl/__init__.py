"""The language: programs, statements, traces, strategies, expectations."""

from . import (
    _compat as _compat,  # first: it mends a lazily loaded numpyro
    _mends as _mends,  # and derivatives of its
)
from ._boundary import Boundary as Boundary
from ._chosen import Chosen as Chosen
from ._disarm import ARM as ARM, DisARM as DisARM
from ._eliminate import Eliminated as Eliminated, eliminate as eliminate
from ._engine import Engine as Engine, Unsuitable as Unsuitable
from ._expectation import Expectation as Expectation, expectation as expectation
from ._handlers import (
    block as block,
    condition as condition,
    intervene as intervene,
    mask as mask,
    rescale_plates as rescale_plates,
)
from ._importance import Importance as Importance
from ._init_params import init_params as init_params
from ._inline_guide import InlineGuide as InlineGuide, JointRun as JointRun, guide_of as guide_of
from ._inputs import concrete_tree as concrete_tree
from ._jump_search import CheckJumps as CheckJumps, JumpSearch as JumpSearch
from ._marginal import Marginal as Marginal, marginal as marginal
from ._mvd import MVD as MVD
from ._normal_inverse_gamma import (
    ExpectedNormal as ExpectedNormal,
    NormalInverseGamma as NormalInverseGamma,
)
from ._normal_inverse_wishart import NormalInverseWishart as NormalInverseWishart
from ._normalize import Normalized as Normalized, normalize as normalize
from ._one_hot import OneHotCategorical as OneHotCategorical
from ._params import Params as Params, constrain as constrain, unconstrain as unconstrain
from ._plan import Plan as Plan
from ._program import (
    ChoiceMismatch as ChoiceMismatch,
    Program as Program,
    as_program as as_program,
    draw as draw,
    model as model,
)
from ._regions import cond as cond, particles as particles, scan as scan
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
from ._reweight import SiteWeights as SiteWeights, reweight as reweight
from ._running import plates_met as plates_met, strategies_met as strategies_met
from ._score import check_proposed_cells as check_proposed_cells, score as score
from ._single_run import plate_sizes as plate_sizes, run_once as run_once
from ._sites import SiteInfo as SiteInfo
from ._statements import (
    deterministic as deterministic,
    factor as factor,
    module as module,
    param as param,
    plate as plate,
    rng_key as rng_key,
    sample as sample,
    subsample as subsample,
)
from ._stochastic import StochasticProgram as StochasticProgram
from ._strategy import (
    Downstream as Downstream,
    Draw as Draw,
    Enum as Enum,
    GumbelSoftmax as GumbelSoftmax,
    Implicit as Implicit,
    Reparam as Reparam,
    StraightThrough as StraightThrough,
    Strategy as Strategy,
    element as element,
)
from ._trace import Trace as Trace
