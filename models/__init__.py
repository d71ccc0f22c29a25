"""Model families written in the language, one module each."""

from . import (
    air as air,
    deep_latent as deep_latent,
    diffusion as diffusion,
    gflownet as gflownet,
    imputation as imputation,
    ising as ising,
    mam as mam,
    niw_meta as niw_meta,
    pv_rnn as pv_rnn,
)
