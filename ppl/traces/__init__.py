"""One run of a program, and what is remembered of it.

A `Recorder` is a NumPyro handler: it gives each latent statement a value (given, or drawn with a key that comes from the site's
address) and keeps its description (`SiteInfo`) and log-prob. `Runner` simulates and scores; control-flow statements open regions
in which recorders keep frames of their own (`_regions.py`, `_particles.py`); a `Trace` is what is left when the run is over.
`_match.py` compares the traces of a model and its guide.
"""

from ._in_step import first_step as first_step
from ._keys import (
    COMMON as COMMON,
    FOLD_ADDRESS as FOLD_ADDRESS,
    SALT as SALT,
    Salted as Salted,
    fold_name as fold_name,
)
from ._match import (
    Inclusion as Inclusion,
    check_is_law as check_is_law,
    check_match as check_match,
    check_reach as check_reach,
    check_supports as check_supports,
    compared_with_draws as compared_with_draws,
    with_penalties as with_penalties,
)
from ._params import (
    BoundParams as BoundParams,
    ParamCollector as ParamCollector,
    Params as Params,
    Whole as Whole,
    constrain as constrain,
    strong as strong,
    unconstrain as unconstrain,
)
from ._particles import particles as particles
from ._reach import (
    as_choices as as_choices,
    is_limit as is_limit,
    sites_of as sites_of,
    unlimited as unlimited,
)
from ._recorder import HiddenDraw as HiddenDraw, Noiseless as Noiseless, Recorder as Recorder
from ._regions import all_steps as all_steps, cond as cond, scan as scan
from ._runner import (
    LOOK as LOOK,
    EngineRecorder as EngineRecorder,
    Runner as Runner,
    StatementLook as StatementLook,
    compiled as compiled,
    guarded_log_prob as guarded_log_prob,
    init_params as init_params,
    numbers_for_trace as numbers_for_trace,
    stand_in as stand_in,
    stand_ins as stand_ins,
)
from ._running import (
    TERM as TERM,
    drawn_before as drawn_before,
    keep_terms as keep_terms,
    plates_met as plates_met,
    refuse_inside_engine as refuse_inside_engine,
    remember_draw as remember_draw,
    running_engine as running_engine,
    strategies_met as strategies_met,
)
from ._sites import (
    PROPOSED as PROPOSED,
    Region as Region,
    SiteInfo as SiteInfo,
    check_shape as check_shape,
    describe as describe,
    log_prob_of as log_prob_of,
    scales_of as scales_of,
)
from ._trace import (
    SiteInfos as SiteInfos,
    Trace as Trace,
    trace_of as trace_of,
    with_reach as with_reach,
)
