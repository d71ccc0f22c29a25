"""Networks with the values that a fit has found."""

from __future__ import annotations

import equinox as eqx

from ..ppl._types import ParamMap


def trained[T](network: T, params: ParamMap, name: str = "network") -> T:
    """The network with its weights taken from `params[name]`, where `ppl.module(name, network)` has declared them."""
    return eqx.combine(params[name], eqx.filter(network, eqx.is_inexact_array, inverse=True))
