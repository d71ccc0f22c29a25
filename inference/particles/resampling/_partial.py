"""Partial resampling: the lightest and the heaviest particles are replaced, the others stay.

Specification. Of K particles M take part, the set S of the floor(M / 2) lightest and the M - floor(M / 2) heaviest. A scheme
draws M offspring from S by the weights inside S. Each of them has the weight W_S / M, with W_S = sum_{k in S} W_k; all other
particles keep their slots and their weights.

Invariants. Given the weights, E[sum_j W'_j f(x'_j)] = sum_k W_k f(x_k), so that the evidence of a filter stays unbiased. A slot
of S descends from particle k of S with probability W_k / W_S, and the product with its weight is W_k / M in every slot: what
conditional SMC needs. There labels must mean nothing: particles and slots are permuted at random, since a cyclic shift of S
alone would change its order among the others.

Reference: Bolic, Djuric and Hong 2004, Resampling algorithms for particle filters, section 3.3; here S has a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._registry import as_scheme
from ._resample import Offspring
from ._scheme import Scheme


@dataclass(frozen=True)
class Partial:
    """What `partial_resampling` returns; `smc` and the methods that run it take it as `resampling=`.

    Attributes:
        fraction: M / K.
        scheme: how the offspring of S are drawn.
        offspring: the law of the counts, see `Scheme`.
    """

    fraction: float
    scheme: Scheme
    offspring: Literal["unknown"] = "unknown"

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"partial {self.scheme.name}"

    @property
    def is_unbiased(self) -> bool:
        """Whether sums over particles keep their expectation."""
        return self.scheme.is_unbiased

    def ancestors(self, key: Array, log_weights: Float[Array, " particles"]) -> Offspring:
        """Ancestors, and the log-weights of the offspring."""
        chosen = self._extremes(log_weights)
        own = self.scheme.ancestors(key, log_weights[chosen])
        return _offspring(log_weights, chosen, own)

    def conditional(self, key: Array, log_weights: Float[Array, " particles"]) -> Offspring:
        """Offspring given that slot 0 descends from particle 0."""
        order_key, slot_key, key = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, len(log_weights)).astype(jnp.int32)
        chosen = order[self._extremes(log_weights[order])]
        is_zero = chosen == 0
        chosen = jnp.roll(chosen, -is_zero.argmax())  # particle 0 first, where it takes part
        inside = log_weights[chosen]
        given, free = self.scheme.retaining()(key, inside), self.scheme.ancestors(key, inside)
        others = jax.random.permutation(slot_key, given[1:])
        given = jnp.concatenate([given[:1], others])
        free = jax.random.permutation(slot_key, free)
        return _offspring(log_weights, chosen, jnp.where(is_zero.any(), given, free))

    def retaining(self) -> Callable[..., Offspring]:
        """The conditional version, or a refusal, as `Scheme.retaining`."""
        self.scheme.retaining()
        return self.conditional

    def _extremes(self, log_weights: Array) -> Int[Array, " chosen"]:
        """S in ascending order."""
        size = len(log_weights)
        num = min(size, max(2, round(self.fraction * size)))
        order = jnp.argsort(log_weights).astype(jnp.int32)
        return jnp.sort(jnp.concatenate([order[: num // 2], order[size - (num - num // 2) :]]))


def _offspring(log_weights: Array, chosen: Array, own: Array) -> Offspring:
    """Offspring `own` of the chosen particles, counted among these; the others as they are."""
    ancestors = jnp.arange(len(log_weights), dtype=jnp.int32).at[chosen].set(chosen[own])
    share = jax.nn.logsumexp(log_weights[chosen]) - jnp.log(len(chosen))
    return Offspring(ancestors, log_weights.at[chosen].set(share))


Resampling = str | Scheme | Partial  # what `smc` takes


def partial_resampling(fraction: float, scheme: str | Scheme = "systematic") -> Partial:
    """Resampling in which only a fraction of the particles takes part: the lightest and the heaviest, half of each.

    Fewer particles move and fewer die, so that paths keep more ancestors, at the price of weights that stay uneven. Offspring
    have the mean weight of those that took part, all others keep theirs.

    Args:
        fraction: share of the particles that takes part, in (0, 1); at least two do.
        scheme: how their offspring are drawn, see `smc`.

    Returns:
        What `smc`, `islands` (inside islands), `conditional_smc`, `particle_gibbs`, `smooth` and `pmmh` take as `resampling=`.
        Methods that need offspring of equal weight refuse it, as does `gradient=`.

    Raises:
        ValueError: `fraction` outside of (0, 1), or no scheme has this name.

    Validity: the evidence of a filter is unbiased if the scheme is. Its variance is not known from one run:
    `evidence_variance` refuses it.

    Cost: a sort of the weights, and the scheme on the particles that take part.

    Example:
        >>> from lapilli import inference
        >>> from lapilli.inference.particles import unique_ancestors
        >>> from lapilli.inference.particles.resampling import every, partial_resampling
        >>> import jax
        >>> walk = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x + jax.random.normal(key), lambda _, x, t: -x**2, 9)
        >>> run = lambda resampling: inference.smc(
        ...     walk, jax.random.key(0), num_particles=100, resampling=resampling, policy=every(), history="ancestors")
        >>> some, all_ = run(partial_resampling(0.2)), run("systematic")
        >>> bool(unique_ancestors(some)[0] > unique_ancestors(all_)[0])
        True

    Reference: Bolic, Djuric and Hong 2004, Resampling algorithms for particle filters: a computational complexity perspective.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"partial_resampling: fraction must lie in (0, 1), got {fraction}.")
    return Partial(float(fraction), as_scheme(scheme))


def as_resampling(resampling: Resampling) -> Scheme | Partial:
    """A `Partial` as it is, else the scheme by its name."""
    return resampling if isinstance(resampling, Partial) else as_scheme(resampling)
