"""Double precision for a while, where single precision is too coarse for a posterior."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..._arguments import is_array
from ..forms import Target
from ._sampler import Frame, Sampler

_COARSE = 0.05  # error of a gradient, per standard deviation, that chains feel


def precision(*, is_double: bool) -> Any:
    """A context in which numbers have 64 bits, or one that changes nothing."""
    return jax.enable_x64(True) if is_double else contextlib.nullcontext()


def doubled(args: tuple) -> tuple:
    """The arguments with their real numbers in double precision."""
    is_single = lambda x: is_array(x) and jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if is_single(x) else x, args)


def singled(tree: dict[str, np.ndarray] | np.ndarray) -> PyTree:
    """Arrays as they are in the precision that is set."""
    return jax.tree.map(lambda x: np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)), tree)


def is_coarse(target: Target, fine: Target, u: np.ndarray) -> bool:
    """Whether gradients at points [n, d] are off by more than a chain stands, beside the same target in double precision.

    `fine` is the same in double precision; the gradient is by the points' own standard deviations.
    """
    frame = Frame(np.zeros(u.shape[1]), np.maximum(u.std(0), 1e-30))
    found = []
    for one, is_double in ((target, False), (fine, True)):
        with precision(is_double=is_double):
            sampler = Sampler(
                one.log_density,
                one.arrays,
                one.dimension,
                num_chains=len(u),
                num_warmup=20,
                is_dense=False,
            )
            dtype = jnp.result_type(float)
            there = Frame(*(np.asarray(x, dtype) for x in frame))
            found.append(np.asarray(sampler.begin(jax.random.key(0), u, there, 0.8).z_grad, float))
    error = np.abs(found[0] - found[1]) / (1 + np.abs(found[1]))
    return bool(np.isfinite(found[1]).all() and not (error < _COARSE).all())
