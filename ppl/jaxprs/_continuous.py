"""Functions of JAX that compare, round or branch, and are continuous all the same: no search for jumps is needed there."""

from __future__ import annotations

import os
from typing import Any

import jax

from ._jaxprs import inner_jaxprs

# By the name under which JAX defines them. Continuous on the whole of their domain, beyond which they are infinite or NaN.
CONTINUOUS = frozenset(
    "celu elu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid logaddexp logaddexp2 log_ndtr _ndtri relu relu6 selu silu "
    "softplus sparse_plus squareplus xlog1py xlogy _erfcx _xlogx".split()
)
SOURCES = os.path.dirname(jax.__file__) + os.sep


def is_continuous_call(eqn: Any) -> bool:
    """Whether an equation calls one of JAX's own functions in `CONTINUOUS`; a user's function of that name does not count.

    JAX tells where a function stands in its debugging information; without it the answer is no, which costs time only.
    """
    jaxpr = next(inner_jaxprs(eqn), None)
    info = getattr(jaxpr, "debug_info", None)
    return getattr(info, "func_name", None) in CONTINUOUS and (
        getattr(info, "func_filename", None) or ""
    ).startswith(SOURCES)
