"""What is asked of NumPyro's laws: what lies inside of their wrappers, their densities at a value, kinds of supports."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform

from .._compat import mask_of, unchecked
from ._missing import NormalCells

Array = jax.Array
CENSORED = (
    dist.LeftCensoredDistribution,
    dist.RightCensoredDistribution,
    dist.IntervalCensoredDistribution,
)


def base_of(fn: dist.Distribution) -> PyTree:
    """The law inside plates, event axes and masks."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def is_masked(fn: dist.Distribution) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return isinstance(fn, NormalCells)


def is_hidden(fn: dist.Distribution) -> bool:
    """Whether a mask that is known to be false hides a law as a whole."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if mask_of(fn) is False:
            return True
        fn = fn.base_dist
    return False


def is_one_way(fn: dist.Distribution) -> bool:
    """Whether a law's density is known at its own draws only: a transform of it has no inverse that can be computed."""
    transforms = getattr(base_of(fn), "transforms", ())
    return any(isinstance(t, BlockNeuralAutoregressiveTransform) for t in transforms)


def log_prob_at(fn: PyTree, value: PyTree, intermediates: PyTree) -> Array:
    """Log-density of a value with what its draw left for it, which not every law in NumPyro takes (FoldedDistribution)."""
    if intermediates and "intermediates" in inspect.signature(base_of(fn).log_prob).parameters:
        return fn.log_prob(value, intermediates)
    return fn.log_prob(value)


def at_own_draw(fn: PyTree, value: ArrayLike) -> PyTree:
    """`fn` for the density of its own draw: a guard of the support says nothing there, and could only look like a jump."""
    fn = unchecked(fn)
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if isinstance(base, dist.Delta) and jnp.shape(base.v) == jnp.shape(value):
        base.v = value  # it compares the value with its own
    return fn


def of_elements(constraint: Any) -> Any:
    """The constraint of single elements, of one whose last axes belong together."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def is_boolean(support: object) -> bool:
    """Whether a support is {0, 1}, element by element."""
    return getattr(support, "base_constraint", support) is constraints.boolean


def is_unbounded(support: constraints.Constraint) -> bool:
    """Whether a support holds every real number (vector, matrix)."""
    while type(support) is type(constraints.independent(constraints.real, 1)):
        support = support.base_constraint
    return any(
        support is c for c in (constraints.real, constraints.real_vector, constraints.real_matrix)
    )


def is_on_sphere(support: constraints.Constraint | None) -> bool:
    """Whether the last axis of every value has norm 1."""
    support = getattr(support, "base_constraint", support)
    return support is constraints.corr_cholesky or support is constraints.sphere
