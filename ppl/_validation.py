"""NumPyro's check of a law's arguments, without compiling it.

NumPyro checks arguments while JAX computes constants at once. What it finds of a traced one is traced, and says nothing; but on
the way each constant (the mask of a triangular matrix has a dozen) is compiled by itself: half a second at each trace of a
multivariate Normal law. Here the constants that go with a traced argument are traced like it. What is known is compared in NumPy,
where three comparisons a shape need no compilation.
"""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from .._workarounds import Workaround
from ._compat import Tracer

_theirs = dist.Distribution.validate_args


@functools.wraps(_theirs)
def _validate_args(self: dist.Distribution, strict: bool = True) -> None:
    args = self.get_args()
    if strict and any(isinstance(x, Tracer) for x in args.values()):
        return _theirs(self, strict)
    for name, value in args.items():
        constraint = self.arg_constraints[name]
        if dist.constraints.is_dependent(constraint):
            continue
        is_traced = isinstance(value, Tracer)
        if isinstance(value, jax.Array) and not (
            is_traced or jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        ):
            if not (value.is_fully_addressable or value.is_fully_replicated):
                continue  # parts of it are on devices of other processes
            value = np.asarray(value)
        with contextlib.nullcontext() if is_traced else jax.ensure_compile_time_eval():
            is_valid = constraint(value)
        if not isinstance(is_valid, Tracer) and not np.asarray(is_valid).all():
            return _theirs(self, strict)  # which says so
    return None


dist.Distribution.validate_args = _validate_args


def record() -> Workaround:
    """The entry of this mend in `lapilli.workarounds()`."""
    return Workaround(
        "numpyro-traced-arguments",
        f"numpyro {numpyro.__version__}",
        "The check of a law's arguments compiles each constant that it meets by itself, where arguments are traced.",
        dist.Distribution.validate_args is _validate_args,
        "It costs half a second at each trace of a law with a triangular matrix, and finds nothing.",
    )
