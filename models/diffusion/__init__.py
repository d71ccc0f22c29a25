"""Diffusion models: noise schedules, parametrisations, exact mixtures.

Correctors for powers, products and tilts of these models are `inference.diffusion.fkc`, and for networks of `token_law`
`fkc_tokens`. `DiffusionDensity` takes a table of one's own, as an estimator of scikit-learn.
"""

from typing import TYPE_CHECKING

from .._on_use import estimators_of
from ._bound import bound as bound, denoising_errors as denoising_errors
from ._chain import noising_chain as noising_chain, reverse_chain as reverse_chain
from ._classifier import Classification as Classification, classify as classify
from ._contexts import Context as Context, SetEncoder as SetEncoder
from ._flow import flow_log_likelihood as flow_log_likelihood, flow_sample as flow_sample
from ._grid import memory as memory
from ._law import DiffusionLaw as DiffusionLaw, law as law
from ._mixtures import gaussian_mixture as gaussian_mixture
from ._networks import MLP as MLP, ImageNet as ImageNet, LevelNet as LevelNet
from ._poisson import PoissonNoise as PoissonNoise
from ._samplers import (
    ancestral as ancestral,
    ddim as ddim,
    euler_maruyama as euler_maruyama,
    heun as heun,
)
from ._schedules import EDM as EDM, VE as VE, VP as VP, Cosine as Cosine
from ._tokens import TokenLaw as TokenLaw, masked_bound as masked_bound, token_law as token_law
from ._training import (
    Parametrisation as Parametrisation,
    classifier_guided as classifier_guided,
    convert as convert,
    from_network as from_network,
    guided as guided,
    score_matching as score_matching,
)
from ._views import Through as Through

if TYPE_CHECKING:
    from .estimators import DiffusionDensity as DiffusionDensity

__all__ = [
    "DiffusionDensity",
    "bound",
    "denoising_errors",
    "law",
    "reverse_chain",
    "noising_chain",
    "memory",
    "token_law",
    "masked_bound",
    "classify",
    "Classification",
    "flow_log_likelihood",
    "flow_sample",
    "gaussian_mixture",
    "MLP",
    "ImageNet",
    "LevelNet",
    "SetEncoder",
    "Context",
    "convert",
    "PoissonNoise",
    "ancestral",
    "ddim",
    "euler_maruyama",
    "heun",
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "classifier_guided",
    "from_network",
    "guided",
    "score_matching",
    "Through",
]


__getattr__ = estimators_of(__name__, "DiffusionDensity")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
