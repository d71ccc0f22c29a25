"""Normalising flows as equinox modules with a `law(context)`. `models.flows` is their public face.

They stand below the families of models because what is learned from simulations has them as its default laws
(`inference.simulators`): a flow is made of NumPyro's transforms and knows of no program.
"""

from ._autoregressive import (
    AutoregressiveLaw as AutoregressiveLaw,
    AutoregressiveNet as AutoregressiveNet,
    least_squares as least_squares,
)
from ._columns import columns_of as columns_of, is_whole as is_whole
from ._couplings import (
    AffineCoupling as AffineCoupling,
    Coupling as Coupling,
    SplineCoupling as SplineCoupling,
)
from ._flows import (
    NeuralSplineFlow as NeuralSplineFlow,
    RealNVP as RealNVP,
    affine as affine,
    check_context as check_context,
    with_zeros_last as with_zeros_last,
)

__all__: list[str] = []
