"""The language: programs, and expectations over what they draw.

Programs
    model, Program, as_program            a decorated function, and anything that NumPyro takes for a model
    formula, Formula                      a regression such as y ~ x + (1 | g), to its program
    sample, factor, deterministic         statements
    plate, subsample                      independent rows
    param, module, rng_key                parameters, networks, noise that is no site
    scan, cond, particles                 control flow
    condition, intervene, block, mask, perturb     programs made of programs
    reweight, rescale_plates              ... that count sites or rows more or less
    draw, score, detached, guide_of       programs within an objective
    Trace, SiteInfo                       what a run leaves
    Params, constrain, unconstrain        parameters live outside of programs
    ChoiceMismatch                        choices that are not those of the program

Expectations and their gradients
    expectation, Expectation              of a function that draws
    controlled, Controlled                a value with a control variate, for such a function to return
    Plan, JumpSearch                      what each site gets; how hard jumps are looked for
    StrategyError                         a site that its strategy cannot serve

Gradient strategies, one per site
    Reparam, Implicit, RejectionReparam   the draw moves with the parameters
    Reinforce, Importance                 scores
    Enum, MVD, DisARM, ARM                other values are tried: all, pairs, antithetic ones
    Rebar, Relax                          scores with a control variate
    Boundary                              comparisons of a draw
    GumbelSoftmax, StraightThrough        biased, by choice

Programs with densities that are sums or estimates
    marginal, normalize                   estimated by importance sampling
    eliminate                             exact sums over discrete sites, exact integrals over normal ones
    kalman_proposal                       normal states given what a step observes, for particles

Wings with more names
    strategies                            the protocol of a strategy, baselines
    distributions                         laws that NumPyro lacks
    densities                             the classes behind eliminate, marginal and normalize

The other wings are the engine, and each says at its head what it is. From the bottom up: distributions, jaxprs, inputs,
evaluation, traces, language, strategies, enumeration, analysis, checks, estimation, gaussian, densities, formulas; a wing
imports those before it.

A gradient takes this way: `language` runs the function under the engine of `strategies`, which leaves markers in the jaxpr;
`analysis` finds, with `jaxprs`, what depends on what, and with `enumeration` which states are evaluated together; `checks` tries
what cannot be proved; `estimation` builds the surrogate from values that `evaluation` computes.

Words: *program*, a function that draws; *model*, the program of latent and observed values together; *guide*, the program that
stands for a model's posterior in an objective; *proposal*, one whose draws are weighted; *site*, a statement that draws, at an
*address* (its name, with the control flow around it); *element*, one of a site's independent parts (a row, a step); *event*,
one draw of a law; *plate*, rows that are independent; *row*, an element along a plate; *state*, a value of an enumerated
element; *enumeration dimension*, a batch axis along which such states are evaluated side by side; *replicate*, an
independent run that is averaged; *particle*, one of the draws within an estimate; *term*, a part of a sum that makes the
objective; *cost*, what is downstream of a site; *strategy*, how a derivative passes through a site; *surrogate*, a number whose
gradient is the estimate; *choices*, values of latent sites by name.
"""

from .._compiler import warn_of_faults
from . import (
    _compat,  # noqa: F401, first: it mends a lazily loaded numpyro
    _precision,  # noqa: F401, mends products in its laws
    _validation,  # noqa: F401, mends another of its functions
    densities as densities,
    distributions as distributions,
    strategies as strategies,
)
from .analysis import Controlled as Controlled, Plan as Plan
from .checks import JumpSearch as JumpSearch
from .densities import (
    eliminate as eliminate,
    kalman_proposal as kalman_proposal,
    marginal as marginal,
    normalize as normalize,
    perturb as perturb,
)
from .estimation import (
    Expectation as Expectation,
    controlled as controlled,
    expectation as expectation,
)
from .formulas import Formula as Formula, formula as formula
from .language import (
    ChoiceMismatch as ChoiceMismatch,
    Program as Program,
    as_program as as_program,
    block as block,
    condition as condition,
    detached as detached,
    deterministic as deterministic,
    draw as draw,
    factor as factor,
    guide_of as guide_of,
    intervene as intervene,
    mask as mask,
    model as model,
    module as module,
    param as param,
    plate as plate,
    rescale_plates as rescale_plates,
    reweight as reweight,
    rng_key as rng_key,
    sample as sample,
    score as score,
    subsample as subsample,
)
from .strategies import (
    ARM as ARM,
    MVD as MVD,
    Boundary as Boundary,
    DisARM as DisARM,
    Enum as Enum,
    GumbelSoftmax as GumbelSoftmax,
    Implicit as Implicit,
    Importance as Importance,
    Rebar as Rebar,
    Reinforce as Reinforce,
    RejectionReparam as RejectionReparam,
    Relax as Relax,
    Reparam as Reparam,
    StraightThrough as StraightThrough,
    StrategyError as StrategyError,
)
from .traces import (
    Params as Params,
    SiteInfo as SiteInfo,
    Trace as Trace,
    cond as cond,
    constrain as constrain,
    particles as particles,
    scan as scan,
    unconstrain as unconstrain,
)

warn_of_faults()

__all__ = [
    "model",
    "Program",
    "as_program",
    "formula",
    "Formula",
    "sample",
    "factor",
    "deterministic",
    "plate",
    "subsample",
    "param",
    "module",
    "rng_key",
    "scan",
    "cond",
    "particles",
    "condition",
    "intervene",
    "block",
    "mask",
    "perturb",
    "reweight",
    "rescale_plates",
    "draw",
    "score",
    "detached",
    "guide_of",
    "Trace",
    "SiteInfo",
    "Params",
    "constrain",
    "unconstrain",
    "ChoiceMismatch",
    "expectation",
    "Expectation",
    "controlled",
    "Controlled",
    "Plan",
    "JumpSearch",
    "StrategyError",
    "Reparam",
    "Implicit",
    "RejectionReparam",
    "Reinforce",
    "Importance",
    "Enum",
    "MVD",
    "DisARM",
    "ARM",
    "Rebar",
    "Relax",
    "Boundary",
    "GumbelSoftmax",
    "StraightThrough",
    "marginal",
    "normalize",
    "eliminate",
    "kalman_proposal",
    "strategies",
    "distributions",
    "densities",
]
