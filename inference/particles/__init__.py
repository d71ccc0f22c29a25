"""Sequential Monte Carlo: one engine, and the methods that stand on it.

Sub-folders, each of which imports only from those above it, through their faces:

    population   weights of particles, batches
    resampling   schemes, policies, look-ahead, gradients through resampling
    programs     programs run for all particles at once
    engine       the particle filter
    smoothing    paths given all data
    moves        Markov kernels
    samplers     tempering; particle methods as programs
    parameters   parameters of programs whose states are left to particles
    scaling      replicates and islands
    diagnostics  variance of the evidence, plots

Names of daily use are here; the rest under its sub-folder, e.g. `resampling.Drop`.
"""

from . import (
    diagnostics as diagnostics,
    engine as engine,
    moves as moves,
    parameters as parameters,
    population as population,
    programs as programs,
    resampling as resampling,
    samplers as samplers,
    scaling as scaling,
    smoothing as smoothing,
)
from .diagnostics import (
    evidence_variance as evidence_variance,
    plot_fan as plot_fan,
    plot_smc as plot_smc,
    unique_ancestors as unique_ancestors,
)
from .engine import FeynmanKac as FeynmanKac, SMCResult as SMCResult, smc as smc
from .moves import (
    HMC as HMC,
    MALA as MALA,
    BlackJAX as BlackJAX,
    Kernel as Kernel,
    RandomWalk as RandomWalk,
)
from .parameters import (
    LiuWestResult as LiuWestResult,
    PMMHResult as PMMHResult,
    SMC2Result as SMC2Result,
    liu_west as liu_west,
    particle_gibbs as particle_gibbs,
    pmmh as pmmh,
    smc2 as smc2,
)
from .resampling import (
    Drop as Drop,
    Partial as Partial,
    ResamplingGradient as ResamplingGradient,
    Scheme as Scheme,
    Score as Score,
    Soft as Soft,
    StopGradient as StopGradient,
    Transport as Transport,
    ess_below as ess_below,
    every as every,
    never as never,
    partial_resampling as partial_resampling,
    window as window,
)
from .samplers import (
    TemperedResult as TemperedResult,
    smc_sampler as smc_sampler,
    tempered_smc as tempered_smc,
)
from .scaling import (
    IslandsResult as IslandsResult,
    Replicates as Replicates,
    islands as islands,
    replicate as replicate,
)
from .smoothing import (
    InformationFilter as InformationFilter,
    Smoothing as Smoothing,
    conditional_smc as conditional_smc,
    smooth as smooth,
)
