"""What a traced program is tried at: its inputs as arrays, a key for them, and how such trials are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import ClosedJaxpr
from ..analysis import axis_order
from ..strategies import StrategySite
from ._quick_keys import GOLDEN, QUICK

IMPLS = (QUICK, "threefry2x32")  # the second one serves every sampler
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}  # a trial runs once


class Inputs(NamedTuple):
    """Leaves of the inputs of a program to be searched: parameters, data (arrays among the arguments), random key."""

    params: list[PyTree]
    data: list[PyTree]
    key: Any

    @property
    def leaves(self) -> list[PyTree]:
        """In the order of the program's inputs."""
        return [*self.params, *self.data, self.key]


def inputs_of(params: list[PyTree], data: list[np.ndarray], closed: ClosedJaxpr) -> Inputs:
    """The inputs of a traced program as arrays of the types that it was traced with; its last one is the key."""
    types: list[Any] = [v.aval.dtype for v in closed.jaxpr.invars]  # pyright: ignore[reportAttributeAccessIssue]
    # Copies: JAX may keep what an array of the caller was converted to in another precision.
    leaves = [np.array(x, dtype) for x, dtype in zip([*params, *data], types, strict=False)]
    key = next(k for k in map(_key, IMPLS) if k.dtype == types[-1])
    return Inputs(leaves[: len(params)], leaves[len(params) :], key)


def with_quick_key[Traced](trace: Callable[[jax.Array], Traced]) -> Traced:
    """What `trace` makes with a key of quick random numbers, or with one that serves every sampler."""
    try:
        return trace(_key(IMPLS[0]))
    except NotImplementedError:  # a sampler for one kind of random numbers only
        return trace(_key(IMPLS[1]))


def _key(impl: object) -> jax.Array:
    """The key of the seed 0, of its words: each operation by which they are made of the seed would be compiled."""
    words: Any = np.array([0, GOLDEN if impl is QUICK else 0], np.uint32)
    return jax.random.wrap_key_data(words, impl=impl)


def marker_layout(value: jax.Array, site: StrategySite) -> jax.Array:
    """A site's value with its axes in the order of its marker."""
    order = np.argsort(axis_order(site))
    return jnp.transpose(value, [*map(int, order), *range(len(order), value.ndim)])
