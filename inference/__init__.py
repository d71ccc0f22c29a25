"""Inference: draw posteriors, fit objectives, run particles, judge the result.

Posteriors
    infer                               draws of a model's posterior, by a way that is judged to suffice
    nuts                                the same by NumPyro's NUTS alone
    Draws                               what they return, and what stands behind it

Objectives: what to optimise, over a model and a guide
    Objective, objective                what `fit` takes; make one from a function of your own
    AbstractObjective                   ... or from a class
    game                                several at once, each in parameters of its own
    adversarial                         a program whose draws are those of another, by a ratio that is learned
    elbo, iwelbo                        lower bounds of the evidence, of one draw and of several
    vimco                               `iwelbo` with a baseline for each particle
    hvi, iwhvi, diwhvi                  bounds for guides whose density is an integral
    renyi, cubo, chi, f_divergence      other divergences than KL(q || p)
    log_variance                        variance of the log-weight
    forward_kl, rws                     KL(p || q); reweighted wake-sleep
    wake_theta, wake_phi, sleep         the phases of wake-sleep, one by one
    fivo, vsmc                          bounds from particle filters

Fitting
    fit, Fit                            train an objective; parameters, history, model and guide
    Posterior                           draws from a fitted guide with their log-weights
    local_laplace                       a guide that finds each row's posterior by itself

Particles
    smc                                 particles through a program or a Feynman-Kac model
    FeynmanKac                          a chain with potentials, where there is no program
    smooth                              paths given all data
    tempered_smc, TemperedResult        from prior to posterior by temperature
    smc_sampler                         a particle run as a program with an estimated density

Simulators: from stored simulations, `simulators.reference_table`
    amortise                            a posterior for any data (NPE), with its calibration report
    surrogate                           learned laws of observed sites (NLE): a program
    ratio                               likelihood over evidence (NRE)

Altering a trained model
    tilt                                the program of p(x) exp(reward(x) / temperature)
    best_of                             the best of N draws, a law that can be stated

From results
    predict                             new rows and forecasts, from the draws of any sampler
    to_arviz                            a result as a tree for ArviZ, which writes netCDF
    moment_matching                     what ArviZ's loo_moment_match needs of a model

Sub-namespaces, each with a list like this one
    fitting                             callbacks of `fit`, an optimiser for tables, its error
    local                               how `local_laplace` looks for posteriors
    particles                           parameters of filters, many runs, what a run tells; with `resampling` and `moves`
    diffusion                           diffusion models: their products and tilts, guidance by particles
    diagnostics                         what a posterior, a guide or a gradient is worth
    evaluation                          what samples of a generative model are worth
    posterior_checks                    whether a posterior is right, and how it is wrong
    simulators                          simulations, and what is learned from them
    tilts                               how far a law is from a tilt, moments
    search                              for what a verifier likes: samples of no law
"""

from typing import TYPE_CHECKING

from . import (
    diagnostics as diagnostics,
    fitting as fitting,
    local as local,
    particles as particles,
    posterior_checks as posterior_checks,
    simulators as simulators,
    tilts as tilts,
)
from ._abstract_objective import AbstractObjective as AbstractObjective
from ._game import game as game
from .export import (
    moment_matching as moment_matching,
    predict as predict,
    to_arviz as to_arviz,
)
from .fitting import Fit as Fit, Posterior as Posterior, fit as fit
from .local import local_laplace as local_laplace
from .objectives import (
    Objective as Objective,
    adversarial as adversarial,
    chi as chi,
    cubo as cubo,
    diwhvi as diwhvi,
    elbo as elbo,
    f_divergence as f_divergence,
    fivo as fivo,
    forward_kl as forward_kl,
    hvi as hvi,
    iwelbo as iwelbo,
    iwhvi as iwhvi,
    log_variance as log_variance,
    objective as objective,
    renyi as renyi,
    rws as rws,
    sleep as sleep,
    vimco as vimco,
    vsmc as vsmc,
    wake_phi as wake_phi,
    wake_theta as wake_theta,
)
from .particles.engine import FeynmanKac as FeynmanKac, smc as smc
from .particles.samplers import (
    TemperedResult as TemperedResult,
    smc_sampler as smc_sampler,
    tempered_smc as tempered_smc,
)
from .particles.smoothing import smooth as smooth
from .posteriors import (
    Draws as Draws,
    infer as infer,
    nuts as nuts,
)
from .simulators import amortise as amortise, ratio as ratio, surrogate as surrogate
from .tilts import best_of as best_of, tilt as tilt

__all__ = [
    "infer",
    "nuts",
    "Draws",
    "Objective",
    "objective",
    "AbstractObjective",
    "game",
    "adversarial",
    "elbo",
    "iwelbo",
    "vimco",
    "hvi",
    "iwhvi",
    "diwhvi",
    "renyi",
    "cubo",
    "chi",
    "f_divergence",
    "log_variance",
    "forward_kl",
    "rws",
    "wake_theta",
    "wake_phi",
    "sleep",
    "fivo",
    "vsmc",
    "fit",
    "Fit",
    "Posterior",
    "local_laplace",
    "smc",
    "FeynmanKac",
    "smooth",
    "tempered_smc",
    "TemperedResult",
    "smc_sampler",
    "amortise",
    "surrogate",
    "ratio",
    "tilt",
    "best_of",
    "predict",
    "to_arviz",
    "moment_matching",
    "fitting",
    "local",
    "particles",
    "diffusion",
    "diagnostics",
    "evaluation",
    "posterior_checks",
    "simulators",
    "tilts",
    "search",
]

if TYPE_CHECKING:
    from . import diffusion as diffusion, evaluation as evaluation, search as search
else:
    from .._on_use import on_use

    __getattr__, __dir__ = on_use(__name__, ("diffusion", "evaluation", "search"), globals())
