"""What a marginalization model is made of: log-marginals and log-conditionals of rows of which some variables are seen.

`_networks.py` says what such a pair is, and has the smallest one; exact tables are one, too (`_tables.py`).
"""

from ._convolutions import ResidualCNN as ResidualCNN, residual_cnns as residual_cnns
from ._images import MaskedUNet as MaskedUNet, unets as unets
from ._networks import (
    Gathered as Gathered,
    Networks as Networks,
    Pair as Pair,
    ResidualMLP as ResidualMLP,
    residual_mlps as residual_mlps,
)
from ._sequences import (
    CausalTransformer as CausalTransformer,
    MaskedTransformer as MaskedTransformer,
    transformers as transformers,
)
from ._tables import Tables as Tables, sampler_law as sampler_law
