"""Parameters of programs whose states are left to particles.

Input: a program and the names of latent sites before its scans. Output: draws of these sites from their posterior: by
Metropolis on estimated evidence (`pmmh`), by particles of parameters that carry filters (`smc2`), by Gibbs moves
(`particle_gibbs`); or, biased and labelled so, by one filter for both (`liu_west`).
"""

from ._liu_west import LiuWestResult as LiuWestResult, liu_west as liu_west
from ._particle_gibbs import (
    GibbsBlock as GibbsBlock,
    ParticleGibbsResult as ParticleGibbsResult,
    particle_gibbs as particle_gibbs,
)
from ._pmmh import PMMHResult as PMMHResult, pmmh as pmmh
from ._smc2 import SMC2Result as SMC2Result, smc2 as smc2
