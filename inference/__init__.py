"""Inference: fit objectives, run particles, judge the result.

All names, by task:

Objectives: what to optimise, over a model and a guide
    Objective, objective                            what `fit` takes; make one from a function of your own
    AbstractObjective                               ... or from a class
    elbo, iwelbo                                    lower bounds of the evidence, of one draw and of several
    vimco                                           `iwelbo` with a baseline for each particle
    hvi, iwhvi, diwhvi                              bounds for guides whose density is an integral
    renyi, cubo, chi, f_divergence                  other divergences than KL(q || p)
    log_variance, tvo                               variance of the log-weight; thermodynamic objective
    forward_kl, rws                                 KL(p || q); reweighted wake-sleep
    wake_theta, wake_phi, sleep                     the phases of wake-sleep, one by one
    fivo, vsmc                                      bounds from particle filters

Fitting
    fit, Fit                                        train an objective; parameters, history, model and guide
    Posterior                                       draws from a fitted guide with their log-weights
    by_row                                          an optimiser for tables of which a batch reads some rows
    EarlyStopping, KeepBest, LogEvery, FitInfo      callbacks, and what they see
    NonFiniteError                                  a step that went wrong, by site

Local posteriors
    local_laplace                                   a guide that finds each row's posterior by itself
    Inner, Newton, Descent, SGLD                    the programs that find it

Particles: filters and samplers
    smc, SMCResult                                  particles through a program or a Feynman-Kac model
    FeynmanKac                                      a chain with potentials, where there is no program
    smc_sampler                                     a particle run as a program with an estimated density
    smooth, Smoothing, InformationFilter            paths given all data
    tempered_smc, TemperedResult                    from prior to posterior by temperature
    islands, IslandsResult                          many systems of particles, on many devices
    replicate, Replicates                           independent runs side by side
    evidence_variance, unique_ancestors             how far a run can be trusted
    plot_smc, plot_fan                              pictures of a run

Particles: parameters and states together
    pmmh, PMMHResult                                particle marginal Metropolis-Hastings
    particle_gibbs, ParticleGibbsResult             Gibbs moves on whole paths,
    conditional_smc                                 ... one of them
    smc2, SMC2Result                                particles of parameters, each with a filter
    liu_west, LiuWestResult                         one pass, approximate
    Kernel, RandomWalk, MALA, HMC, BlackJAX         moves of parameters

Particles: resampling
    ess_below, every, never, window                 when to resample
    Scheme, partial_resampling, Partial             how
    ResamplingGradient                              how derivatives pass through it:
    StopGradient, Score, Drop                       ... by weights, by scores, not at all
    Soft, Transport                                 ... by a mixture, by optimal transport

Diffusion models
    Diffusion, Noising                              a model and its noising process
    fkc, CorrectedDiffusion                         powers, products and tilts of models
    Langevin                                        moves after each of its steps
    diffuse                                         a point of such a law, within a program
    twisted_diffusion, fk_steering                  posteriors and rewards, with and without gradients

Diagnostics
    importance_diagnostics, ImportanceDiagnostics   k-hat, ESS and evidence of weighted draws
    evidence_bracket, EvidenceBracket               how far a guide is from the posterior
    calibrate, Calibration                          simulation-based calibration
    expected_calibration_error                      whether predicted classes are as sure as they are right
    gradient_report, GradientReport                 mean, spread and cost of a gradient,
    ParameterGradient, SiteGradient                 ... by parameter and by site
    gradient_tree, plot_gradients                   the report for ArviZ, and as a picture
    pilot, Pilot, Trial                             choose estimators by trial

Export
    to_arviz                                        a result as a tree for ArviZ, which writes netCDF
"""

from ._abstract_objective import AbstractObjective as AbstractObjective
from .diagnostics import (
    Calibration as Calibration,
    EvidenceBracket as EvidenceBracket,
    GradientReport as GradientReport,
    ParameterGradient as ParameterGradient,
    Pilot as Pilot,
    SiteGradient as SiteGradient,
    Trial as Trial,
    calibrate as calibrate,
    evidence_bracket as evidence_bracket,
    expected_calibration_error as expected_calibration_error,
    gradient_report as gradient_report,
    gradient_tree as gradient_tree,
    pilot as pilot,
    plot_gradients as plot_gradients,
)
from .diffusion import (
    CorrectedDiffusion as CorrectedDiffusion,
    Diffusion as Diffusion,
    Langevin as Langevin,
    Noising as Noising,
    diffuse as diffuse,
    fk_steering as fk_steering,
    fkc as fkc,
    twisted_diffusion as twisted_diffusion,
)
from .export import (
    ImportanceDiagnostics as ImportanceDiagnostics,
    importance_diagnostics as importance_diagnostics,
    to_arviz as to_arviz,
)
from .fitting import (
    EarlyStopping as EarlyStopping,
    Fit as Fit,
    FitInfo as FitInfo,
    KeepBest as KeepBest,
    LogEvery as LogEvery,
    NonFiniteError as NonFiniteError,
    Posterior as Posterior,
    by_row as by_row,
    fit as fit,
)
from .local import (
    SGLD as SGLD,
    Descent as Descent,
    Inner as Inner,
    Newton as Newton,
    local_laplace as local_laplace,
)
from .objectives import (
    Objective as Objective,
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
    tvo as tvo,
    vimco as vimco,
    vsmc as vsmc,
    wake_phi as wake_phi,
    wake_theta as wake_theta,
)
from .particles import (
    HMC as HMC,
    MALA as MALA,
    BlackJAX as BlackJAX,
    Drop as Drop,
    FeynmanKac as FeynmanKac,
    InformationFilter as InformationFilter,
    IslandsResult as IslandsResult,
    Kernel as Kernel,
    LiuWestResult as LiuWestResult,
    Partial as Partial,
    ParticleGibbsResult as ParticleGibbsResult,
    PMMHResult as PMMHResult,
    RandomWalk as RandomWalk,
    Replicates as Replicates,
    ResamplingGradient as ResamplingGradient,
    Scheme as Scheme,
    Score as Score,
    SMC2Result as SMC2Result,
    SMCResult as SMCResult,
    Smoothing as Smoothing,
    Soft as Soft,
    StopGradient as StopGradient,
    TemperedResult as TemperedResult,
    Transport as Transport,
    conditional_smc as conditional_smc,
    ess_below as ess_below,
    every as every,
    evidence_variance as evidence_variance,
    islands as islands,
    liu_west as liu_west,
    never as never,
    partial_resampling as partial_resampling,
    particle_gibbs as particle_gibbs,
    plot_fan as plot_fan,
    plot_smc as plot_smc,
    pmmh as pmmh,
    replicate as replicate,
    smc as smc,
    smc2 as smc2,
    smc_sampler as smc_sampler,
    smooth as smooth,
    tempered_smc as tempered_smc,
    unique_ancestors as unique_ancestors,
    window as window,
)

__all__ = [
    "Objective",
    "objective",
    "AbstractObjective",
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
    "tvo",
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
    "by_row",
    "EarlyStopping",
    "KeepBest",
    "LogEvery",
    "FitInfo",
    "NonFiniteError",
    "local_laplace",
    "Inner",
    "Newton",
    "Descent",
    "SGLD",
    "smc",
    "SMCResult",
    "FeynmanKac",
    "smc_sampler",
    "smooth",
    "Smoothing",
    "InformationFilter",
    "tempered_smc",
    "TemperedResult",
    "islands",
    "IslandsResult",
    "replicate",
    "Replicates",
    "evidence_variance",
    "unique_ancestors",
    "plot_smc",
    "plot_fan",
    "pmmh",
    "PMMHResult",
    "particle_gibbs",
    "ParticleGibbsResult",
    "conditional_smc",
    "smc2",
    "SMC2Result",
    "liu_west",
    "LiuWestResult",
    "Kernel",
    "RandomWalk",
    "MALA",
    "HMC",
    "BlackJAX",
    "ess_below",
    "every",
    "never",
    "window",
    "Scheme",
    "partial_resampling",
    "Partial",
    "ResamplingGradient",
    "StopGradient",
    "Score",
    "Drop",
    "Soft",
    "Transport",
    "Diffusion",
    "Noising",
    "fkc",
    "CorrectedDiffusion",
    "Langevin",
    "diffuse",
    "twisted_diffusion",
    "fk_steering",
    "importance_diagnostics",
    "ImportanceDiagnostics",
    "evidence_bracket",
    "EvidenceBracket",
    "calibrate",
    "Calibration",
    "expected_calibration_error",
    "gradient_report",
    "GradientReport",
    "ParameterGradient",
    "SiteGradient",
    "gradient_tree",
    "plot_gradients",
    "pilot",
    "Pilot",
    "Trial",
    "to_arviz",
]
