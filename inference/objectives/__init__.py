"""Objectives of variational inference, all on top of `inference`."""

from ._adversarial import adversarial as adversarial
from ._bounds import elbo as elbo, iwelbo as iwelbo
from ._f_divergence import f_divergence as f_divergence
from ._factory import objective as objective
from ._fivo import fivo as fivo, vsmc as vsmc
from ._hierarchical import diwhvi as diwhvi, hvi as hvi, iwhvi as iwhvi
from ._log_variance import log_variance as log_variance
from ._objective import Objective as Objective
from ._renyi import chi as chi, cubo as cubo, renyi as renyi
from ._vimco import vimco as vimco
from ._wake_sleep import (
    forward_kl as forward_kl,
    rws as rws,
    sleep as sleep,
    wake_phi as wake_phi,
    wake_theta as wake_theta,
)
