"""Particles that sample a density without time: along temperatures, or as a site of a program.

Input: a program whose latent sites are continuous, or a particle method used as a program. Output: weighted draws from its
posterior and an unbiased estimate of its evidence.
"""

from ._discrete import FiniteSupports as FiniteSupports
from ._smc_sampler import smc_sampler as smc_sampler
from ._tempered import TemperedResult as TemperedResult
from ._tempering import tempered_smc as tempered_smc
