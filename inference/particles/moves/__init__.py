"""Markov kernels on R^d, and on discrete values, that move particles.

A kernel leaves exp(log_density) invariant for every tuning; scale and spread are learnt from acceptance rates and from particles.

Kernels
    RandomWalk          Gaussian steps with the spread of the particles
    MALA, HMC           steps along the gradient
    BlackJAX            any sampling algorithm of BlackJAX
    Gibbs               one discrete coordinate after the other, given the others
    Kernel              what these are: a kernel of one's own,
    Standing, accept    ... where its chain stands, and Metropolis' choice
"""

from ._gibbs import Gibbs as Gibbs
from ._kernels import (
    HMC as HMC,
    MALA as MALA,
    BlackJAX as BlackJAX,
    Kernel as Kernel,
    RandomWalk as RandomWalk,
    Standing as Standing,
    accept as accept,
    acceptance as acceptance,
    along as along,
    cholesky as cholesky,
    root_of as root_of,
)

__all__ = [
    "RandomWalk",
    "MALA",
    "HMC",
    "BlackJAX",
    "Gibbs",
    "Kernel",
    "Standing",
    "accept",
]
