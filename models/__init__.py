"""Model families written in the language, one module each.

All names, by kind:

Latent variables
    air             images as a random number of objects
    deep_latent     a discrete class and a continuous code, amortised

Guides
    flows           normalising flows as the laws of guides
    adapters        low-rank layers beside those of a trained network

Series
    imputation      series with missing cells: filled in and classified
    koopman         a linear law of hidden states with a known spectrum, and any decoder
    pv_rnn          a recurrent network whose posterior is inferred online

Discrete laws
    ising           a target with exact answers
    mam             marginalization models: any marginal in one pass
    gflownet        objects in proportion to a reward, action by action

Diffusion models
    diffusion       schedules, networks, training, samplers

From one law to another
    paths           flow matching, interpolants, geodesics, bridges

Few-shot learning
    niw_meta        a hierarchical Bayesian model of episodes
"""

from . import (
    adapters as adapters,
    air as air,
    deep_latent as deep_latent,
    diffusion as diffusion,
    flows as flows,
    gflownet as gflownet,
    imputation as imputation,
    ising as ising,
    koopman as koopman,
    mam as mam,
    niw_meta as niw_meta,
    paths as paths,
    pv_rnn as pv_rnn,
)

__all__ = [
    "air",
    "deep_latent",
    "flows",
    "adapters",
    "imputation",
    "koopman",
    "pv_rnn",
    "ising",
    "mam",
    "gflownet",
    "diffusion",
    "paths",
    "niw_meta",
]
