"""Inference: objectives, fitting, diagnostics, export to ArviZ."""

from ._arviz import to_arviz as to_arviz
from ._bounds import elbo as elbo, iwelbo as iwelbo
from ._by_row import by_row as by_row
from ._calibration import Calibration as Calibration, calibrate as calibrate
from ._callbacks import EarlyStopping as EarlyStopping, FitInfo as FitInfo, LogEvery as LogEvery
from ._differentiable import (
    Drop as Drop,
    ResamplingGradient as ResamplingGradient,
    Score as Score,
    Soft as Soft,
    StopGradient as StopGradient,
    Transport as Transport,
)
from ._diffusion import Diffusion as Diffusion, Noising as Noising
from ._evidence import (
    evidence_variance as evidence_variance,
    unique_ancestors as unique_ancestors,
)
from ._evidence_bracket import (
    EvidenceBracket as EvidenceBracket,
    evidence_bracket as evidence_bracket,
)
from ._f_divergence import f_divergence as f_divergence
from ._feynman_kac import FeynmanKac as FeynmanKac
from ._fit import fit as fit
from ._fit_result import Fit as Fit, Posterior as Posterior
from ._fivo import fivo as fivo, vsmc as vsmc
from ._fkc import CorrectedDiffusion as CorrectedDiffusion, fkc as fkc
from ._gradient_report import (
    GradientReport as GradientReport,
    ParameterGradient as ParameterGradient,
    SiteGradient as SiteGradient,
    gradient_report as gradient_report,
)
from ._gradient_views import gradient_tree as gradient_tree, plot_gradients as plot_gradients
from ._hierarchical import diwhvi as diwhvi, hvi as hvi, iwhvi as iwhvi
from ._inner import SGLD as SGLD, Descent as Descent, Inner as Inner, Newton as Newton
from ._islands import IslandsResult as IslandsResult, islands as islands
from ._local_laplace import local_laplace as local_laplace
from ._log_variance import log_variance as log_variance
from ._moves import HMC as HMC, MALA as MALA, Kernel as Kernel, RandomWalk as RandomWalk
from ._nonfinite import NonFiniteError as NonFiniteError
from ._objective import Objective as Objective, objective as objective
from ._particle_gibbs import conditional_smc as conditional_smc, particle_gibbs as particle_gibbs
from ._pilot import Pilot as Pilot, Trial as Trial, pilot as pilot
from ._plot_smc import plot_fan as plot_fan, plot_smc as plot_smc
from ._pmmh import PMMHResult as PMMHResult, pmmh as pmmh
from ._policies import ess_below as ess_below, every as every, never as never, window as window
from ._renyi import chi as chi, cubo as cubo, renyi as renyi
from ._replicate import Replicates as Replicates, replicate as replicate
from ._resampling import Scheme as Scheme
from ._smc import SMCResult as SMCResult, smc as smc
from ._smc2 import SMC2Result as SMC2Result, smc2 as smc2
from ._smc_sampler import smc_sampler as smc_sampler
from ._smoothing import Smoothing as Smoothing, smooth as smooth
from ._steering import fk_steering as fk_steering, twisted_diffusion as twisted_diffusion
from ._tempering import TemperedResult as TemperedResult, tempered_smc as tempered_smc
from ._thermodynamic import tvo as tvo
from ._two_filter import InformationFilter as InformationFilter
from ._vimco import vimco as vimco
from ._wake_sleep import (
    forward_kl as forward_kl,
    rws as rws,
    sleep as sleep,
    wake_phi as wake_phi,
    wake_theta as wake_theta,
)
from ._weights import (
    ImportanceDiagnostics as ImportanceDiagnostics,
    importance_diagnostics as importance_diagnostics,
)
