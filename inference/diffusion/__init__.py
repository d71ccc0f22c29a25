"""Feynman-Kac correctors of diffusion models."""

from ._diffusion import Diffusion as Diffusion, Noising as Noising
from ._fkc import CorrectedDiffusion as CorrectedDiffusion, fkc as fkc
from ._langevin import Langevin as Langevin
from ._statement import diffuse as diffuse
from ._steering import fk_steering as fk_steering, twisted_diffusion as twisted_diffusion
