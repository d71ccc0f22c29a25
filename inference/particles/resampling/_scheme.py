"""A way to resample, with what methods ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Int

Resampler = Callable[..., Int[Array, " num"]]  # (key, log_weights [K], num=None) -> ancestors [num]


@dataclass(frozen=True)
class Scheme:
    """A way to resample, with what methods ask of it.

    Args:
        name: how errors and tables call it.
        ancestors: `(key, log_weights, num=None) -> ancestors`, see `systematic` for shapes and units.
        conditional: the same given that slot 0 descends from particle 0; returns ancestors with ancestors[0] = 0. None where
            there is none, as for every biased scheme.
        is_unbiased: whether E[N_k] = num W_k for all k.
        offspring: what is known of the joint law of the counts, which `evidence_variance` asks: "multinomial"; "negative" if
            E[N_j N_k] <= num^2 W_j W_k for all j != k; "unknown".
        log_law: `(log_weights, ancestors) -> log P(ancestors)` of K ancestors by K normalised weights, nats, with the derivative
            that `Score` takes; None where it is not known.
    """

    name: str
    ancestors: Resampler
    conditional: Resampler | None
    is_unbiased: bool
    offspring: Literal["multinomial", "negative", "unknown"] = "unknown"
    log_law: Callable[[Array, Array], Array] | None = None

    def retaining(self) -> Resampler:
        """`conditional`, for methods that keep a particle.

        Raises:
            ValueError: there is none.
        """
        if self.conditional is None:
            why = (
                "has no conditional version, which conditional SMC needs. Give it one"
                if self.is_unbiased
                else "is biased, so conditional SMC with it would not keep its target. Use an unbiased scheme"
            )
            raise ValueError(
                f"Resampling scheme '{self.name}' {why}, or use one that has it, e.g. 'systematic' or 'killing'."
            )
        return self.conditional
