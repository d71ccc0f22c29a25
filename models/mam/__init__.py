"""Marginalization models: any marginal of a discrete law in one pass of a network, and draws in any order (arXiv:2310.12920).

`AnyOrderModel` takes a table of one's own, as an estimator of scikit-learn: from a file to conditionals, draws and a file again.
"""

from typing import TYPE_CHECKING

from .._on_use import estimators_of
from ._bracket import bracket as bracket
from ._distribution import (
    MaM as MaM,
    ObservedMarginal as ObservedMarginal,
    OrderedDraw as OrderedDraw,
)
from ._gibbs import BlockGibbs as BlockGibbs
from ._made import MADE as MADE, autoregressive as autoregressive
from ._objectives import (
    any_order as any_order,
    distil as distil,
    energy as energy,
    regress as regress,
)
from ._orders import UniformOrder as UniformOrder
from ._particles import Particle as Particle, feynman_kac as feynman_kac
from ._persistent import ChainState as ChainState, PersistentObjective as PersistentObjective
from ._row_sources import RowSources as RowSources
from ._tempering import unnormalised as unnormalised
from .annealing import (
    Annealed as Annealed,
    Distilled as Distilled,
    Remembered as Remembered,
    anneal as anneal,
    distilled as distilled,
    scored as scored,
)
from .networks import (
    CausalTransformer as CausalTransformer,
    MaskedTransformer as MaskedTransformer,
    MaskedUNet as MaskedUNet,
    Networks as Networks,
    Pair as Pair,
    ResidualCNN as ResidualCNN,
    ResidualMLP as ResidualMLP,
    Tables as Tables,
    residual_cnns as residual_cnns,
    residual_mlps as residual_mlps,
    sampler_law as sampler_law,
    transformers as transformers,
    unets as unets,
)

if TYPE_CHECKING:
    from .estimators import AnyOrderModel as AnyOrderModel

__all__ = [
    "AnyOrderModel",
    "Annealed",
    "anneal",
    "bracket",
    "unnormalised",
    "distilled",
    "scored",
    "residual_cnns",
    "MaM",
    "BlockGibbs",
    "unets",
    "MADE",
    "autoregressive",
    "Networks",
    "Pair",
    "residual_mlps",
    "any_order",
    "distil",
    "energy",
    "RowSources",
    "regress",
    "UniformOrder",
    "Particle",
    "feynman_kac",
    "Remembered",
    "CausalTransformer",
    "transformers",
    "Tables",
    "sampler_law",
]


__getattr__ = estimators_of(__name__, "AnyOrderModel")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
