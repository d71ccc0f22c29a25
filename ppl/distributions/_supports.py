"""The true support of a law, and what it depends on.

The score at a fixed value has mean zero, and a density may be differentiated at a fixed value, only where the set of possible
values stands still: the integral of dp over S(theta) is the derivative of 1, less a term of the boundary. NumPyro's `support`
answers another question (which values `log_prob` takes): of a transformed law it is the codomain of the last transform, the real
line for t * Uniform(0, 1), and of a mixture that of one component. Here it is the base's, carried through the transforms:

    law                  set                                              depends on
    not transformed      its own `support`, where that is a set           the bounds of that set
    transformed          the codomain, where the base's set is the whole  nothing
                         domain of a transform onto its codomain;
                         an interval, end by end;                         its ends
                         else the image, without a name                   all that transforms and base depend on
    mixture, Chosen      the union                                        what each component's depends on
    Delta                its value                                        its value
    `dependent` support, refused where it matters
    censored laws, point
    masses with densities

An end at zero or infinity stays where it is under scaling: t * Exponential(1) has the fixed support (0, inf), t + Exponential(1)
has not.

What a moving support does to a strategy:

    reparam, implicit       nothing: the values move with their support
    reinforce and its       refused: the estimate lacks the boundary's term. (Where the density is zero at the moving end, as of
      baselines, importance   t + Gamma(3, 1), that term is zero; this is not told apart, and refused as well)
    rejection_reparam, mvd, never meet one: they serve laws with fixed supports, and mvd refuses a moving `total_count`
      disarm, arm, rebar,
      relax, gumbel_softmax,
      straight_through
    enum                    never meets one: the values are known when the program is traced
    STL, DReG, GDReG        refused: they leave the score out because its mean is zero
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import constraints, discrete, transforms

from .._compat import CatTransform, HurdleProbs, inverted, is_concrete
from ._chosen import Chosen
from ._ends import Ends, moved_ends, same_ends
from ._laws import CENSORED, base_of

_INDEPENDENT = type(constraints.independent(constraints.real, 1))
_INTERVALS = (
    constraints.interval, constraints.greater_than, constraints.less_than, type(constraints.real),
)  # fmt: skip
# Transforms of NumPyro whose codomain is not the image of their domain, or names no set; affine maps go end by end.
_NOT_ONTO = (transforms.UnpackTransform, transforms.AbsTransform, transforms.AffineTransform)
_NO_COMMON_SCORE = "it mixes point masses with densities, which have no score in common"

_PACKAGE = __name__.rpartition(".ppl.")[0]


@dataclasses.dataclass(frozen=True)
class Support:
    """A set of values.

    Attributes:
        core: the constraint of which every coordinate (or the whole event) is a member, where the set has that name, else None.
        ends: (lower, upper) where every coordinate lies in the same interval, known or computed, else None.
        edges: what the set depends on, arrays.
        unknown: why it cannot be known, or "".
        is_ordered: whether `ends` are known to stand in order (not where a computed factor may be negative).
    """

    core: Any = None
    ends: Ends | None = None
    edges: tuple[Any, ...] = ()
    unknown: str = ""
    is_ordered: bool = True

    def __str__(self) -> str:
        if self.unknown:
            return f"unknown ({self.unknown})"
        if self.core is not None:
            return str(self.core)
        if self.ends is not None and is_concrete(self.ends):
            return f"({self.ends[0]}, {self.ends[1]})"
        return "one that is computed"

    @property
    def is_discrete(self) -> bool:
        """Whether it is known to be a set of separate values."""
        return bool(getattr(self.core, "is_discrete", False))

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The smallest and the largest value, where the set is one of integers and they are known."""
        if self.core is constraints.boolean:
            return 0, 1
        if not isinstance(self.core, constraints.integer_interval):
            return None
        ends = self.core.lower_bound, self.core.upper_bound
        return (int(np.min(ends[0])), int(np.max(ends[1]))) if is_concrete(ends) else None

    @property
    def is_unbounded(self) -> bool:
        """Whether every real number is possible."""
        return self.ends is not None and same_ends(self.ends, (-np.inf, np.inf))


def support_of_law(fn: dist.Distribution) -> Support:
    """The true support of a distribution, whatever its `support` says."""
    fn = base_of(fn)
    if isinstance(fn, dist.Delta):
        return Support(edges=(fn.v,))
    if isinstance(fn, CENSORED):
        return Support(
            unknown=f"{type(fn).__name__} draws values that its density counts otherwise"
        )
    if isinstance(fn, dist.MixtureSameFamily):
        return support_of_law(fn.component_distribution)
    if isinstance(fn, dist.MixtureGeneral):
        return _union(fn.component_distributions)
    if isinstance(fn, Chosen):
        return support_of_law(fn.laws)
    if isinstance(fn, dist.GaussianCopula):
        return support_of_law(fn.marginal_dist)
    if isinstance(fn, dist.EulerMaruyama):  # later states are Normal
        first = support_of_law(fn.init_dist)
        return first if first.is_unbounded else Support(edges=first.edges, unknown=first.unknown)
    if isinstance(fn, discrete.ZeroInflatedProbs):
        return _zero_inflated(fn)
    if isinstance(fn, HurdleProbs):
        law: Any = fn
        own, positive = _declared(law), support_of_law(law.base_dist)
        unknown = own.unknown or positive.unknown
        return dataclasses.replace(own, edges=own.edges + positive.edges, unknown=unknown)
    if isinstance(fn, dist.TransformedDistribution):
        return _of_transformed(fn)
    return _declared(fn)


def same_support(a: Support, b: Support) -> bool:
    """Whether two supports are known to be the same set."""
    if a.unknown or b.unknown:
        return False
    if a.ends is not None and b.ends is not None and a.is_discrete == b.is_discrete:
        return a.is_ordered and b.is_ordered and same_ends(a.ends, b.ends)
    if a.core is None or type(a.core) is not type(b.core) or not is_concrete((a.core, b.core)):
        return False
    return bool(a.core == b.core)


def _declared(fn: dist.Distribution) -> Support:
    """The set that a law names itself."""
    name = type(fn).__name__
    try:
        core = _core(fn.support)
    except (NotImplementedError, AttributeError) as err:
        return Support(unknown=f"{name} does not say what its support is ({err})")
    if core is None or core is constraints.dependent or type(core) is type(constraints.dependent):
        return Support(
            unknown=f"the support of {name} is declared as `dependent`, which names no set"
        )
    return Support(core, _ends_of(core), _leaves(core))


def _of_transformed(fn: PyTree) -> Support:
    inherits = type(fn).support is dist.TransformedDistribution.support
    is_folded = isinstance(fn, dist.FoldedDistribution)
    if _is_numpyros(fn) and not inherits and not is_folded:
        return _declared(fn)  # LogNormal, Pareto, LogUniform, LKJ, ...: named by hand
    support = support_of_law(fn.base_dist)
    for transform in fn.transforms:
        support = _image(support, transform)
    if inherits or is_folded:
        return support
    own = _declared(fn)
    edges = support.edges + own.edges
    return dataclasses.replace(support, edges=edges, unknown=support.unknown or own.unknown)


def _zero_inflated(fn: Callable[..., PyTree]) -> Support:
    support = support_of_law(fn.base_dist)
    if support.is_discrete:
        return support
    return dataclasses.replace(support, unknown=support.unknown or _NO_COMMON_SCORE)


def _union(laws: list[dist.Distribution]) -> Support:
    parts = [support_of_law(law) for law in laws]
    edges = tuple(e for p in parts for e in p.edges)
    unknown = next((p.unknown for p in parts if p.unknown), "")
    is_atom = [
        isinstance(base_of(law), dist.Delta) or p.is_discrete
        for law, p in zip(laws, parts, strict=True)
    ]
    if any(is_atom) and not all(is_atom):
        unknown = unknown or _NO_COMMON_SCORE
    if all(same_support(parts[0], p) for p in parts):
        return dataclasses.replace(parts[0], edges=edges, unknown=unknown)
    return Support(edges=edges, unknown=unknown)


def _image(support: Support, transform: PyTree) -> Support:
    """The image of a set under one transform."""
    if isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            support = _image(support, part)
        return support
    if isinstance(transform, transforms.IndependentTransform):
        return _image(support, transform.base_transform)
    if isinstance(transform, CatTransform):
        parts = [_image(support, t) for t in transform.transforms]
        edges = tuple(e for p in parts for e in p.edges)
        if all(same_support(parts[0], p) for p in parts):
            return dataclasses.replace(parts[0], edges=edges)
        return Support(edges=edges, unknown=next((p.unknown for p in parts if p.unknown), ""))
    if isinstance(transform, transforms.IdentityTransform | transforms.ReshapeTransform):
        return support
    onto = _onto(support, transform)
    if onto is not None:
        return onto
    if not _is_known(transform):
        return _of_unknown(support, transform)
    if support.ends is not None:
        moved = moved_ends(support.ends, transform)
        if moved is not None:
            ends, is_ordered = moved
            edges = tuple(e for e in ends if not is_concrete(e))
            # The ends alone say where the image is: what else the transform reads moves values inside.
            return Support(None, ends, edges, support.unknown, support.is_ordered and is_ordered)
    return Support(edges=support.edges + _leaves(transform), unknown=support.unknown)


def _onto(support: Support, transform: transforms.Transform) -> Support | None:
    """The codomain, where the set is the transform's whole domain and every value of the codomain is reached."""
    inner = inverted(transform) or transform
    if isinstance(transform, transforms.AbsTransform) and support.is_unbounded:
        return Support(constraints.positive, (0.0, np.inf))
    if isinstance(inner, _NOT_ONTO) or not (_is_known(inner) or _declares_sets(inner)):
        return None
    try:
        domain, codomain = _core(transform.domain), _core(transform.codomain)
    except NotImplementedError:
        return None
    wanted = Support(domain, _ends_of(domain))
    if _leaves(codomain) and not is_concrete(_leaves(codomain)):
        return None
    return Support(codomain, _ends_of(codomain)) if same_support(support, wanted) else None


def _is_known(transform: object) -> bool:
    inner = inverted(transform)
    return _is_numpyros(transform) if inner is None else _is_known(inner)


def _is_numpyros(x: object) -> bool:
    return type(x).__module__.startswith("numpyro.")


def is_known_sampler(fn: dist.Distribution | dist.transforms.Transform) -> bool:
    """Whether a law and all that it is made of are NumPyro's or this package's, whose samplers are known not to jump."""
    parts = [getattr(fn, name, None) for name in ("base_dist", "component_distribution")]
    parts += [*getattr(fn, "component_distributions", ()), *getattr(fn, "transforms", ())]
    parts += [*getattr(fn, "parts", ()), inverted(fn)]
    is_ours = type(fn).__module__.startswith((f"{_PACKAGE}.", "numpyro."))
    return is_ours and all(is_known_sampler(p) for p in parts if p is not None)


def _declares_sets(transform: dist.transforms.Transform) -> bool:
    """Whether a user's transform says itself between which sets it maps; the answer is believed, as a law's `support` is."""

    def own(name: str) -> bool:
        return any(
            name in cls.__dict__
            for cls in type(transform).__mro__
            if not cls.__module__.startswith("numpyro.") and cls is not object
        )

    return own("domain") and own("codomain")


def _of_unknown(support: Support, transform: transforms.Transform) -> Support:
    """The image of one point tells on what a user's transform depends, closures included."""
    name = type(transform).__name__
    try:
        ndim = transform.domain.event_dim
        point = transform(transform.domain.feasible_like(np.zeros((2,) * ndim)))
    except Exception as err:
        return Support(
            unknown=f"the transform {name} does not say between which sets it maps ({err})"
        )
    edges = (*support.edges, *jax.tree.leaves(point), *_leaves(vars(transform)))
    return Support(edges=edges, unknown=support.unknown)


def _core(constraint: constraints.Constraint | None) -> PyTree:
    while isinstance(constraint, _INDEPENDENT):
        constraint = constraint.base_constraint
    return constraint


def _ends_of(core: constraints.Constraint) -> Ends | None:
    if not isinstance(core, _INTERVALS) or getattr(core, "is_discrete", False):
        return None
    return getattr(core, "lower_bound", -np.inf), getattr(core, "upper_bound", np.inf)


def _leaves(tree: PyTree) -> tuple[ArrayLike, ...]:
    """The arrays in a tree, also those that objects unknown to JAX hold."""
    found: list[PyTree] = []
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type) and not callable(leaf):
            found.extend(_leaves(dict(vars(leaf))))
    return tuple(found)
