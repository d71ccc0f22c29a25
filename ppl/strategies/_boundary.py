"""Comparisons that a scalar site's value decides: the boundary's part of the gradient.

Let z be an element of a site with law p(z; theta) and distribution function F, and let a comparison of the program be true on one
side of z* = z*(theta, rest), where `rest` is all other noise, none of it downstream of z. The cost R(z, theta, rest) jumps at z*.
Integrated over z first, by parts,

    d/dtheta E[R] = E[the part that holds away from z*] + E[(R(z*-) - R(z*+)) d/dtheta F(z*(theta); theta)]

where z*- and z*+ are two replays at z = z* with the comparison's outcome forced, all that is downstream drawn anew from the same
keys, and the derivative of F is

- total, if z is reparameterised: it is the density times the speed of z* relative to the value that keeps its noise;
- taken in z* alone, if z is kept (scores): the score moves the law.

A comparison so treated becomes a decision: a marker of its own in the traced program (`analysis/_decisions.py`), with an index as
sites have. Behind a marker nothing depends on how the value came about, so that the search for jumps (`checks/_jumps.py`) keeps
the outcomes: what else jumps is found and refused as ever. That holds for each comparison that could not be treated, and for the
places themselves, which must move continuously.

Several comparisons of one element: at the place of one, each other has the outcome that the order of their places
says, equal places in the order of the program. The jumps of comparisons that flip in the same place then add up to the whole,
whatever rounding does to that order, since they move together: a place that stands still only because a derivative is
cut off (`stop_gradient`) is not treated.

Reference: Lee, Yu and Yang 2018, arXiv:1806.00176; Bangaru et al. 2021 (Systematically differentiating parametric
discontinuities), ACM Transactions on Graphics 40(4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ..distributions import LAWS, has_boundary_law
from ._pathwise import Implicit, Reparam
from ._reinforce import Reinforce
from ._strategy import Downstream, Draw, Kind, Strategy, stop

Array = jax.Array
BASES: Mapping[str, type[Strategy]] = {
    "reparam": Reparam,
    "implicit": Implicit,
    "reinforce": Reinforce,
}


@dataclasses.dataclass(frozen=True)
class Boundary(Strategy):
    """A base strategy, and the boundary's part of the gradient for comparisons that the site's value decides.

        (R(z*-) - R(z*+)) d/dtheta F(z*(theta); theta),  two replays for each comparison of each element

    Change points, censoring, rankings and thresholds, `jnp.where(z < t, ...)`, then need no rewriting.

    Args:
        base: strategy of the part away from the boundary, by name or as a value: "reparam", "implicit" or "reinforce". With
            "reinforce" only comparisons whose place parameters move are treated: the others are no matter to a score.

    Distributions: Normal, Logistic, Laplace, Gumbel, Cauchy, Uniform, Gamma, Exponential; not inside `ppl.scan` or `ppl.cond`.

    Validity: unbiased. A comparison (<, <=, >, >=) is treated where the difference of its sides is affine in one element of the
    value (or exp or logistic of an affine function, or log of a positive value, stands against what does not depend on it), given
    what is not downstream of the site, by elementwise arithmetic, reshaping, broadcasting and static slices, outside of loops and
    branches. The slope may not change its sign as what moves moves. Any other jump is refused as under the base. Where the slope
    is zero the estimate is NaN. A pathwise base is refused where `stop_gradient` or a custom derivative stands between site and
    result. A kink that is written as `where(z > 0, z, 0.1 * z)` costs its two replays too; `jax.nn` functions do not. Rows of a
    plate whose costs separate share one pair of replays; otherwise each element of a comparison has its own.

    Raises:
        ValueError: another base.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def late(t):
        ...     z = ppl.sample("z", dist.Exponential(1.0), strategy="boundary")
        ...     return jax.numpy.where(z < t, 1.0, 0.0)
        >>> round(float(ppl.expectation(late).grad(0.5, jax.random.key(0))), 5)  # exp(-t)
        0.60653

    Reference: Lee, Yu and Yang 2018, arXiv:1806.00176; Bangaru et al. 2021, ACM Transactions on Graphics 40(4).
    """

    base: str | Strategy = "reparam"
    name = "boundary"

    def __post_init__(self) -> None:
        if not isinstance(self.of, tuple(BASES.values())):
            raise ValueError(
                f"Boundary: base must be one of {sorted(BASES)}, or such a strategy, got {self.base!r}."
            )

    @property
    def of(self) -> Strategy | None:
        """The base."""
        if isinstance(self.base, str):
            return BASES[self.base]() if self.base in BASES else None
        return self.base

    def _of(self) -> Strategy:
        assert self.of is not None
        return self.of

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self._of().kind

    @property
    def is_partly_pathwise(self) -> bool:
        """Derivatives of the value are added to jumps of the cost."""
        return self.is_pathwise

    @property
    def allow_jumps(self) -> bool:
        """Whether the base strategy allows jumps."""
        return bool(getattr(self._of(), "allow_jumps", False))

    @property
    def num_replicates(self) -> int:  # type: ignore[override]
        return self._of().num_replicates

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        if not has_boundary_law(distribution):
            return f"needs a distribution function with derivatives, and serves {sorted(LAWS)}, not {name}"
        return self._of().refuse(distribution)

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        return self._of().draw(fn, key)

    def draw_with_noise(self, fn: dist.Distribution, key: Array) -> tuple[Array, None]:
        return self._of().draw_with_noise(fn, key)

    def local(self, draw: Draw) -> PyTree:
        return self._of().local(draw)

    def surrogate(self, local: PyTree, downstream: Downstream) -> Array:
        return self._of().surrogate(local, downstream)

    def fixed_parameters(self, distribution: dist.Distribution) -> tuple[str, ...]:
        return self._of().fixed_parameters(distribution)

    def init_state(self) -> PyTree:
        return self._of().init_state()

    def update(self, local: PyTree, downstream: Downstream) -> PyTree:
        return self._of().update(local, downstream)

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return self._of().cost(num_values, num_elements)


class Peer(NamedTuple):
    """Another comparison of a decision's site: its index, and for each of its elements the element of the site that owns it."""

    index: int
    owner: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Decision(Strategy):
    """The estimator of one comparison. Its `local` numbers are made by `analysis/_decisions.py`.

    Args:
        site: the site whose value decides.
        owner: for each of its elements, flat, the element of the site that decides it.
        peers: other comparisons that the site decides.
        is_by_row: its elements, and those of all peers, are those of the site.
    """

    site: int
    owner: tuple[int, ...]
    peers: tuple[Peer, ...] = ()
    is_by_row: bool = True
    name = "boundary"
    calls = ("jumps",)

    def refuse(self, distribution: dist.Distribution) -> str | None:
        return None

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return "two replays" + (f" of {num_elements} elements" if num_elements > 1 else "")

    def surrogate(self, local: PyTree, downstream: Downstream) -> Array:
        jump = jnp.where(local["is_met"], downstream.jumps(local), 0.0)
        jump = jnp.where(local["is_flat"], jnp.nan, jump)
        return (local["flow"] - stop(local["flow"])) * stop(jump)
