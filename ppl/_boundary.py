"""Comparisons that a scalar site's value decides: the boundary's part of the gradient.

Let z be an element of a site with law p(z; theta) and distribution function F, and let a comparison of the program be true on one
side of z* = z*(theta, rest), where `rest` is all other noise, none of it downstream of z. The cost R(z, theta, rest) jumps at z*.
Integrated over z alone, by parts,

    d/dtheta E[R] = E[the part that holds away from z*] + E[(R(z*-) - R(z*+)) d/dtheta F(z*(theta); theta)]

where z*- and z*+ are two replays at z = z* with the comparison's outcome forced, and the derivative of F is

- total, if z is reparameterised: it is the density times the speed of z* relative to the value that keeps its noise;
- taken in z* alone, if z is kept (scores): the score moves the law.

A comparison so treated becomes a decision: a marker of its own in the traced program (`_decisions.py`), with an index as
sites have. Behind a marker nothing depends on how the value came about, so that the search for jumps (`_jumps.py`) keeps the
outcomes: what else jumps is found and refused as ever. That holds for each comparison that could not be treated.

Several comparisons of one element: at the place of one, each other has the outcome that the order of their places
says, equal places in the order of the program. The jumps of comparisons that flip in the same place then add up to the whole,
whatever rounding does to that order.

Reference: Lee, Yu and Yang 2018, arXiv:1806.00176; Bangaru et al. 2021 (Systematically differentiating parametric
discontinuities), ACM Transactions on Graphics 40(4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ._reinforce import Reinforce
from ._strategy import Downstream, Draw, Implicit, Reparam, Strategy, stop

Array = jax.Array
BASES: Mapping[str, type[Strategy]] = {"reparam": Reparam, "implicit": Implicit, "reinforce": Reinforce}
# Their distribution function is differentiable in the value and in every parameter.
LAWS = frozenset({"Normal", "Logistic", "Uniform", "Gamma", "Exponential", "Laplace", "Gumbel", "Cauchy"})


@dataclasses.dataclass(frozen=True)
class Boundary(Strategy):
    """A base strategy, and the boundary's part of the gradient for comparisons that the site's value decides.

        (R(z*-) - R(z*+)) d/dtheta F(z*(theta); theta),  two replays for each comparison of each element

    Change points, censoring, rankings and thresholds, `jnp.where(z < t, ...)`, then need no rewriting.

    Args:
        base: strategy of the part away from the boundary, by name or as a value: "reparam", "implicit" or "reinforce". With
            "reinforce" only comparisons whose place parameters move are treated: the others are no matter to a score.

    Distributions: Normal, Logistic, Uniform, Gamma, Exponential, Laplace, Gumbel, Cauchy.

    Validity: unbiased if every jump of the result is a comparison (<, <=, >, >=) that is treated. A comparison is treated where its sides
    are elementwise alike with the site and a - b is affine in the value, given what is not downstream of it (also exp or log of an affine
    function against what does not depend on the value). Any other jump is refused as under the base. The
    gradient is NaN where the affine function's slope is zero.

    Reference: module text.
    """

    base: str | Strategy = "reparam"
    name = "boundary"
    has_boundary = True

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
    def is_pathwise(self) -> bool:  # type: ignore[override]
        return self._of().is_pathwise

    @property
    def allow_jumps(self) -> bool:
        """As the base has it."""
        return bool(getattr(self._of(), "allow_jumps", False))

    @property
    def num_replicates(self) -> int:  # type: ignore[override]
        return self._of().num_replicates

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        if name not in LAWS:
            return f"needs a distribution function with derivatives, and serves {sorted(LAWS)}, not {name}"
        return self._of().refuse(distribution)

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        return self._of().draw(fn, key)

    def draw_with_noise(self, fn: dist.Distribution, key: Array) -> tuple[Array, Any]:
        return self._of().draw_with_noise(fn, key)

    def local(self, draw: Draw) -> Any:
        return self._of().local(draw)

    def surrogate(self, local: Any, downstream: Downstream) -> Array:
        return self._of().surrogate(local, downstream)

    def fixed_parameters(self, distribution: dist.Distribution) -> tuple[str, ...]:
        return self._of().fixed_parameters(distribution)

    def init_state(self) -> Any:
        return self._of().init_state()

    def update(self, local: Any, downstream: Downstream) -> Any:
        return self._of().update(local, downstream)

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return self._of().cost(num_values, num_elements)


@dataclasses.dataclass(frozen=True)
class Decision(Strategy):
    """The estimator of one comparison. Its `local` numbers are made by `_decisions.py`.

    Args:
        site: the site whose value decides.
        peers: other comparisons that it decides.
    """

    site: int
    peers: tuple[int, ...] = ()
    name = "boundary"
    is_replayed = True

    def refuse(self, distribution: dist.Distribution) -> str | None:
        return None

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return "two replays" + (f" of {num_elements} element(s)" if num_elements > 1 else "")

    def surrogate(self, local: Any, downstream: Downstream) -> Array:
        below = local["below"]
        others = {self.site: stop(local["place"]), **local["peers"]}
        lower, upper = jax.vmap(lambda x: downstream.replay(x, others))(jnp.stack([below, ~below]))
        jump = jnp.where(local["is_met"], lower - upper, 0.0)
        jump = jnp.where(local["is_flat"], jnp.nan, jump)
        cdf = local["cdf"]
        return (cdf - stop(cdf)) * stop(jump)
