"""Sequential Monte Carlo: one engine, and the methods that stand on it.

`smc`, `FeynmanKac`, `smooth`, `tempered_smc` and `smc_sampler` stand on top of `inference`. What else there is, by task:

Parameters and states together
    pmmh, PMMHResult                                particle marginal Metropolis-Hastings
    particle_gibbs, ParticleGibbsResult             Gibbs moves on whole paths,
    conditional_smc                                 ... one of them
    smc2, SMC2Result                                particles of parameters, each with a filter
    liu_west, LiuWestResult                         one pass, approximate

Many runs
    islands, IslandsResult                          many systems of particles, on many devices
    replicate, Replicates                           independent runs side by side

Smoothing
    InformationFilter                               a filter from the end, for `smooth(method="two_filter")`

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
from .parameters import (
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
from .smoothing import InformationFilter as InformationFilter, conditional_smc as conditional_smc

__all__ = [
    "pmmh",
    "PMMHResult",
    "particle_gibbs",
    "ParticleGibbsResult",
    "conditional_smc",
    "smc2",
    "SMC2Result",
    "liu_west",
    "LiuWestResult",
    "islands",
    "IslandsResult",
    "replicate",
    "Replicates",
    "InformationFilter",
    "evidence_variance",
    "unique_ancestors",
    "plot_smc",
    "plot_fan",
    "resampling",
    "moves",
]
