"""Normalising flows as the laws of guides, conditional on data or not.

All names, by task:

    NeuralSplineFlow    an equinox module whose `law(context)` is a distribution on R^d: splines, for several modes
    RealNVP             ... with affine couplings, which cost less
    HouseholderFlow     ... a Normal, its covariance turned by reflections: from independent coordinates to any covariance
    AutoSpline          a spline flow as the guide of all sites of a model
    SplineCoupling, AffineCoupling, Reflections     their layers, NumPyro transforms

A flow stands where a guide's Normal would be, inside a program:

    flow = ppl.module("flow", flows.NeuralSplineFlow(2, key=ppl.rng_key("init")))
    ppl.sample("z", flow.law())

Draws have a pathwise gradient, densities are exact, and both cost one pass through the networks. NumPyro's `AutoIAFNormal` and
`AutoBNAFNormal` serve as guides, too; the densities of given values cost `AutoIAFNormal` d passes.
"""

from ...inference.flows import (
    AffineCoupling as AffineCoupling,
    NeuralSplineFlow as NeuralSplineFlow,
    RealNVP as RealNVP,
    SplineCoupling as SplineCoupling,
)
from ._auto_spline import AutoSpline as AutoSpline
from ._householder import HouseholderFlow as HouseholderFlow, Reflections as Reflections

__all__ = [
    "NeuralSplineFlow",
    "RealNVP",
    "HouseholderFlow",
    "AutoSpline",
    "SplineCoupling",
    "AffineCoupling",
    "Reflections",
]
