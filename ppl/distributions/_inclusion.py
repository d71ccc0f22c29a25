"""What is known of the support of a law before anything is drawn: enough to prove that one support does not lie inside another.

A support is a *set*, kept as static data: reals or integers between two bounds, entry by entry, or one of NumPyro's named sets
(simplex, sphere, Cholesky factors, ...). Bounds that are computed while tracing are not known, and neither are sets that a user
or a transform makes.

Invariant: `is_outside(q, p)` is a proof. Unknown sets, unknown bounds and point masses prove nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import constraints, transforms

from .._compat import is_concrete
from ._laws import of_elements

REAL, INTEGER, UNKNOWN = "real", "integer", "unknown"
_WRAPPERS = dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution
# Sets of one name are one set; a set of lower dimension has no density in one of higher dimension.
_NAMED = {
    type(constraints.simplex): "simplex",
    type(constraints.sphere): "sphere",
    type(constraints.ordered_vector): "ordered vector",
    type(constraints.positive_ordered_vector): "positive ordered vector",
    type(constraints.l1_ball): "l1 ball",
    type(constraints.corr_cholesky): "Cholesky factor of a correlation matrix",
    type(constraints.corr_matrix): "correlation matrix",
    type(constraints.lower_cholesky): "Cholesky factor",
    type(constraints.scaled_unit_lower_cholesky): "Cholesky factor",
    type(constraints.softplus_lower_cholesky): "Cholesky factor",
    type(constraints.positive_definite): "positive definite matrix",
    type(constraints.positive_semidefinite): "positive definite matrix",
}
# (inner, outer) pairs of named sets of one dimension.
_INSIDE = {("positive ordered vector", "ordered vector")}
_TOLERANCE = 1e-5


class Bound(NamedTuple):
    """The least and the greatest of a bound's entries."""

    least: float
    greatest: float


class Extent(NamedTuple):
    """What is known of a support, without arrays.

    Attributes:
        kind: "real" or "integer" (entry by entry), a named set, or "unknown".
        low: lower bound; None where it is not known.
        high: upper bound; None where it is not known.
    """

    kind: str
    low: Bound | None = None
    high: Bound | None = None

    def __str__(self) -> str:
        if self.kind not in (REAL, INTEGER):
            return self.kind
        ends = [
            "?" if b is None else f"{x:g}" for b, x in zip(self[1:], self._widest(), strict=True)
        ]
        return f"{self.kind} numbers in [{', '.join(ends)}]"

    def _widest(self) -> tuple[float, float]:
        return (
            math.nan if self.low is None else self.low.least,
            math.nan if self.high is None else self.high.greatest,
        )


NOWHERE_KNOWN = Extent(UNKNOWN)


def support_known(fn: dist.Distribution) -> Extent:
    """The support of a law, as far as it is known; a point mass has none to speak of."""
    inner = fn
    while isinstance(inner, _WRAPPERS):
        inner = inner.base_dist
    if isinstance(inner, dist.Delta) or not _is_exact(inner):
        return NOWHERE_KNOWN
    try:
        return _set_of(inner.support)
    except (NotImplementedError, AssertionError):
        return NOWHERE_KNOWN


def is_outside(inner: Extent, outer: Extent) -> bool:
    """Whether draws of `inner` certainly leave `outer`, or have no density there."""
    if UNKNOWN in (inner.kind, outer.kind):
        return False
    if inner.kind == outer.kind:
        return _passes(outer.low, inner.low) or _passes(inner.high, outer.high)
    entrywise = {REAL, INTEGER}
    if inner.kind in entrywise and outer.kind in entrywise:
        return True  # a density against a probability
    if inner.kind == REAL:  # bounded entries may be in order, or small
        return outer.kind not in ("ordered vector", "positive ordered vector", "l1 ball") or all(
            b is not None and math.isinf(b.least) for b in inner[1:]
        )
    if outer.kind == REAL and inner.kind in (
        "ordered vector",
        "positive ordered vector",
        "l1 ball",
    ):
        ends = {
            "ordered vector": (-math.inf, math.inf),
            "positive ordered vector": (0.0, math.inf),
            "l1 ball": (-1.0, 1.0),
        }[inner.kind]
        low, high = (Bound(x, x) for x in ends)
        return _passes(outer.low, low) or _passes(high, outer.high)
    return (inner.kind, outer.kind) not in _INSIDE


def misplaced(fn: PyTree) -> str | None:
    """Why the density of a transformed law is no density of its draws; None where that is not known.

    A transform is one-to-one on its domain only: the square of a Normal number comes from two, and NumPyro counts one.
    """
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    # Laws with a density of their own may know better (`FoldedDistribution`).
    if getattr(type(fn), "log_prob", None) is not dist.TransformedDistribution.log_prob:
        return None
    here = support_known(fn.base_dist)
    for transform in fn.transforms:
        for part in getattr(transform, "parts", [transform]):
            if isinstance(part, transforms.AbsTransform):
                return "AbsTransform is not one-to-one (dist.FoldedDistribution has the density of an absolute value)"
            domain = _set_of(part.domain)
            if is_outside(here, domain):
                return (
                    f"{type(part).__name__} is one-to-one on {domain}, and its input is of {here}"
                )
            here = _set_of(part.codomain) if here == domain else NOWHERE_KNOWN
    return None


def _passes(greater: Bound | None, less: Bound | None) -> bool:
    """Whether `greater` > `less` in some entry, whichever entries meet."""
    if greater is None or less is None:
        return False
    pairs = ((greater.least, less.least), (greater.greatest, less.greatest))
    return any(
        a > b and not math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for a, b in pairs
    )


def _is_exact(fn: PyTree) -> bool:
    """Whether NumPyro's `support` is the set itself: a transformed law's is the image of all that its transforms take."""
    if isinstance(fn, dist.MixtureSameFamily):
        return support_known(fn.component_distribution).kind != UNKNOWN
    if isinstance(fn, dist.MixtureGeneral):
        return len({support_known(law) for law in fn.component_distributions}) == 1
    if type(fn).support is not dist.TransformedDistribution.support:
        return True
    here = support_known(fn.base_dist)
    for transform in fn.transforms:
        if here == NOWHERE_KNOWN or here != _set_of(transform.domain):
            return False
        here = _set_of(transform.codomain)
    return True


def _set_of(constraint: PyTree) -> Extent:
    constraint = of_elements(constraint)
    if type(constraint) in _NAMED:
        return Extent(_NAMED[type(constraint)])
    everywhere = (-math.inf, math.inf)
    if constraint is constraints.real:
        return _between(REAL, *everywhere)
    if constraint is constraints.boolean:
        return _between(INTEGER, 0, 1)
    low = getattr(constraint, "lower_bound", -math.inf)
    high = getattr(constraint, "upper_bound", math.inf)
    if isinstance(constraint, _HALF_LINES):
        return _between(REAL, low, high)
    if isinstance(constraint, _COUNTS):
        return _between(INTEGER, low, high)
    return NOWHERE_KNOWN


_HALF_LINES = tuple(
    type(c)
    for c in (
        constraints.interval(0.0, 1.0),
        constraints.greater_than(0.0),
        constraints.greater_than_eq(0.0),
        constraints.less_than(0.0),
        constraints.less_than_eq(0.0),
        constraints.softplus_positive,
    )
)
_COUNTS = (type(constraints.integer_interval(0, 1)), type(constraints.integer_greater_than(0)))


def _between(kind: str, low: float, high: ArrayLike) -> Extent:
    return Extent(kind, _bound(low), _bound(high))


def _bound(x: ArrayLike) -> Bound | None:
    if not is_concrete(x):
        return None
    with jax.ensure_compile_time_eval():
        values = np.asarray(x, float)
    return Bound(float(values.min()), float(values.max())) if values.size else None
