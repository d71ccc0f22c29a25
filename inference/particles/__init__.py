"""Sequential Monte Carlo: one engine, and the methods that stand on it.

`smc`, `FeynmanKac`, `smooth`, `tempered_smc` and `smc_sampler` stand on top of `inference`. What else there is, by task:

Parameters and states together
    pmmh                                            particle marginal Metropolis-Hastings
    particle_gibbs                                  Gibbs moves on whole paths,
    conditional_smc                                 ... one of them
    smc2                                            particles of parameters, each with a filter
    liu_west                                        one pass, approximate
    FilterOptions, GibbsBlock                       how the filters inside run, how parameters move

Many runs
    islands                                         many systems of particles, on many devices
    replicate                                       independent runs side by side

Smoothing
    BackwardMetropolis, BackwardRejection           values of `smooth(method=)`: moves, or draws under a bound,
    FixedLag, InformationFilter                     ... ancestors of later particles, a filter from the end

What a run tells
    evidence_variance, unique_ancestors             how far a run can be trusted
    plot_smc, plot_fan                              pictures of a run

Sub-namespaces
    resampling                                      when and how to resample, gradients through it
    moves                                           Markov kernels for parameters

The folders, from the bottom up: population, resampling, programs, engine, smoothing, moves, samplers, parameters, scaling,
diagnostics. Each imports only from those before it, through their faces, which say what they are.
"""

from . import moves as moves, resampling as resampling
from .diagnostics import (
    evidence_variance as evidence_variance,
    plot_fan as plot_fan,
    plot_smc as plot_smc,
    unique_ancestors as unique_ancestors,
)
from .engine import FilterOptions as FilterOptions
from .parameters import (
    GibbsBlock as GibbsBlock,
    LiuWestResult as LiuWestResult,
    ParticleGibbsResult as ParticleGibbsResult,
    PMMHResult as PMMHResult,
    SMC2Result as SMC2Result,
    liu_west as liu_west,
    particle_gibbs as particle_gibbs,
    pmmh as pmmh,
    smc2 as smc2,
)
from .scaling import (
    IslandsResult as IslandsResult,
    Replicates as Replicates,
    islands as islands,
    replicate as replicate,
)
from .smoothing import (
    BackwardMetropolis as BackwardMetropolis,
    BackwardRejection as BackwardRejection,
    FixedLag as FixedLag,
    InformationFilter as InformationFilter,
    conditional_smc as conditional_smc,
)

__all__ = [
    "pmmh",
    "particle_gibbs",
    "conditional_smc",
    "smc2",
    "liu_west",
    "FilterOptions",
    "GibbsBlock",
    "islands",
    "replicate",
    "BackwardMetropolis",
    "BackwardRejection",
    "FixedLag",
    "InformationFilter",
    "evidence_variance",
    "unique_ancestors",
    "plot_smc",
    "plot_fan",
    "resampling",
    "moves",
]
