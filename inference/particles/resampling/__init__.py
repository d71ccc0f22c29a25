"""Resampling: which particles have offspring, when, and what a derivative makes of it.

Input: particles with log-weights W and a random key. Output: offspring with log-weights V, and each one's ancestor, such that for
unbiased schemes E[sum_j V_j f(x_{A_j})] = sum_k W_k f(x_k) for all f.

When: a policy
    ess_below, every, never, window     by effective sample size, every so many steps, not at all, at some steps

How: the name of a scheme ("systematic", "ssp", ...; `RESAMPLERS` has all), or
    Scheme                              a scheme of one's own
    partial_resampling, Partial         some particles only

How derivatives pass through it
    ResamplingGradient                  the interface:
    StopGradient, Score, Drop           ... by weights, by scores, not at all
    Soft, Transport                     ... by a mixture, by optimal transport

A `Look` says by what besides weights particles are chosen (`twist=`, `order=` of `smc`).
"""

from ._differentiable import (
    Drop as Drop,
    ResamplingGradient as ResamplingGradient,
    Score as Score,
    Soft as Soft,
    StopGradient as StopGradient,
    Transport as Transport,
    as_gradient as as_gradient,
)
from ._differentiation import (
    Differentiation as Differentiation,
    box as box,
    evidence_only as evidence_only,
    once_only as once_only,
    scored as scored,
)
from ._look_ahead import (
    Look as Look,
    Order as Order,
    Twist as Twist,
    resample_ahead as resample_ahead,
)
from ._partial import (
    Partial as Partial,
    Resampling as Resampling,
    as_resampling as as_resampling,
    partial_resampling as partial_resampling,
)
from ._policies import (
    Policy as Policy,
    ess_below as ess_below,
    every as every,
    never as never,
    window as window,
)
from ._registry import (
    RESAMPLERS as RESAMPLERS,
    as_scheme as as_scheme,
    equally_weighted as equally_weighted,
)
from ._resample import (
    Drawing as Drawing,
    Resampled as Resampled,
    lineages as lineages,
    resample as resample,
    take as take,
)
from ._scheme import Scheme as Scheme
from ._schemes import multinomial as multinomial, systematic as systematic

__all__ = [
    "ess_below",
    "every",
    "never",
    "window",
    "Scheme",
    "partial_resampling",
    "Partial",
    "ResamplingGradient",
    "StopGradient",
    "Score",
    "Drop",
    "Soft",
    "Transport",
]
