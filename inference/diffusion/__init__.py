"""Diffusion models, and particles that correct their samplers (Feynman-Kac correctors).

Models
    Diffusion, Noising                  a model and its noising process

Other laws from trained models
    fkc, CorrectedDiffusion             powers, products and tilts of models
    Langevin                            moves after each of its steps
    twisted_diffusion, fk_steering      posteriors and rewards, with and without gradients

Within a program
    diffuse                             a point of such a law
"""

from ._diffusion import Diffusion as Diffusion, Noising as Noising
from ._fkc import CorrectedDiffusion as CorrectedDiffusion, fkc as fkc
from ._langevin import Langevin as Langevin
from ._statement import diffuse as diffuse
from ._steering import fk_steering as fk_steering, twisted_diffusion as twisted_diffusion

__all__ = [
    "Diffusion",
    "Noising",
    "fkc",
    "CorrectedDiffusion",
    "Langevin",
    "twisted_diffusion",
    "fk_steering",
    "diffuse",
]
