"""Adapters: few parameters that alter a trained network, which stays as it is.

All names, by task:

    LowRank         a linear layer W x + b with a learned W + B A of low rank, W and b fixed; for equinox and Flax NNX
    adapt           a network with such layers in the place of its linear ones
    without         the network at its adapters' zero: the reference, without a second copy
    num_trained     how many parameters are learned

    net = adapters.adapt(trained, rank=4, key=key)              # equal to `trained` until it is fitted
    guide = lambda: ... ppl.module("net", net) ...              # learns A and B alone
    model = lambda: ... adapters.without(net) ...               # the frozen reference
"""

from ._low_rank import (
    LowRank as LowRank,
    adapt as adapt,
    num_trained as num_trained,
    without as without,
)

__all__ = ["LowRank", "adapt", "without", "num_trained"]
