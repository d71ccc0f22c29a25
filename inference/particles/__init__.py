"""Sequential Monte Carlo: one engine, and the methods that stand on it."""

from ._differentiable import (
    Drop as Drop,
    ResamplingGradient as ResamplingGradient,
    Score as Score,
    Soft as Soft,
    StopGradient as StopGradient,
    Transport as Transport,
)
from ._evidence import evidence_variance as evidence_variance, unique_ancestors as unique_ancestors
from ._feynman_kac import FeynmanKac as FeynmanKac
from ._islands import IslandsResult as IslandsResult, islands as islands
from ._liu_west import LiuWestResult as LiuWestResult, liu_west as liu_west
from ._moves import (
    HMC as HMC,
    MALA as MALA,
    BlackJAX as BlackJAX,
    Kernel as Kernel,
    RandomWalk as RandomWalk,
)
from ._partial_resampling import Partial as Partial, partial_resampling as partial_resampling
from ._particle_gibbs import conditional_smc as conditional_smc, particle_gibbs as particle_gibbs
from ._plot_smc import plot_fan as plot_fan, plot_smc as plot_smc
from ._pmmh import PMMHResult as PMMHResult, pmmh as pmmh
from ._policies import ess_below as ess_below, every as every, never as never, window as window
from ._replicate import Replicates as Replicates, replicate as replicate
from ._resampling import Scheme as Scheme
from ._smc import SMCResult as SMCResult, smc as smc
from ._smc2 import SMC2Result as SMC2Result, smc2 as smc2
from ._smc_sampler import smc_sampler as smc_sampler
from ._smoothing import Smoothing as Smoothing, smooth as smooth
from ._tempering import TemperedResult as TemperedResult, tempered_smc as tempered_smc
from ._two_filter import InformationFilter as InformationFilter
