"""Diffusion models, and particles that correct their samplers (Feynman-Kac correctors).

Models
    Diffusion, Noising                  a model and its noising process

Other laws from trained models
    fkc                                 powers, products and tilts of models
    DriftControl                        a drift fitted so that its weights vary little
    Langevin                            moves after each of its steps
    replica_exchange, ReplicaExchange   the same laws by chains in place of particles
    twisted_diffusion, fk_steering      posteriors and rewards, with and without gradients

Rows of tokens (discrete diffusion, any-order models)
    TokenDiffusion                      a model
    fkc_tokens                          powers, products and tilts of such models

Within a program
    diffuse                             a point of such a law
"""

from ._diffusion import Diffusion as Diffusion, Noising as Noising
from ._drift_control import DriftControl as DriftControl
from ._fkc import CorrectedDiffusion as CorrectedDiffusion, fkc as fkc
from ._langevin import Langevin as Langevin
from ._replica_exchange import (
    ReplicaExchange as ReplicaExchange,
    replica_exchange as replica_exchange,
)
from ._statement import diffuse as diffuse
from ._steering import fk_steering as fk_steering, twisted_diffusion as twisted_diffusion
from .tokens import (
    TokenDiffusion as TokenDiffusion,
    TokenParticle as TokenParticle,
    fkc_tokens as fkc_tokens,
)

__all__ = [
    "Diffusion",
    "Noising",
    "fkc",
    "DriftControl",
    "Langevin",
    "replica_exchange",
    "ReplicaExchange",
    "twisted_diffusion",
    "fk_steering",
    "TokenDiffusion",
    "fkc_tokens",
    "diffuse",
]
