"""A discrete diffusion model as the particle methods see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from ....ppl._checks import check_counts, log_number
from ....ppl._show import shown
from ._kernels import Kind, Network, asked


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class TokenDiffusion:
    """A discrete diffusion model: what each variable of a row may have been, given the row's tokens at a noising time.

    Tokens are 0 for masked and v + 1 for the value v. At time t in [0, 1] each variable on its own has kept its value with
    probability 1 - t, and is masked or drawn evenly otherwise.

    Args:
        network: `(tokens [D], t) -> log p(x_i = k | tokens)`, [D, K], normalised over k. An any-order network of `models.mam` is
            `lambda tokens, t: networks.log_conditionals(tokens)`.
        num_variables: D.
        num_values: K.
        kind: "masked" (absorbing) or "uniform".
        log_marginal: `(tokens, t) -> log q_t(tokens)` in nats, where it is known: in masked diffusion the log-probability of the
            values that are shown, the others summed out (`lambda tokens, t: networks.log_marginal(tokens)`); in uniform
            diffusion the law of the noised row.

    Raises:
        ValueError: counts below 1, or another kind.
    """

    network: Network
    num_variables: int
    num_values: int
    kind: Kind = "masked"
    log_marginal: Callable[[Array, Array], Array] | None = None

    def __post_init__(self) -> None:
        check_counts("TokenDiffusion", num_variables=self.num_variables, num_values=self.num_values)
        if self.kind not in ("masked", "uniform"):
            raise ValueError(
                f"TokenDiffusion: kind must be 'masked' or 'uniform', got {self.kind!r}."
            )

    def log_probs(self, tokens: Array, t: Array) -> Array:
        """What the network says, [D, K]."""
        return asked("TokenDiffusion", self.network, tokens, t, self.kind, self.num_values)

    def log_density(self, tokens: Array, t: Array) -> Array:
        """The log-probability of tokens relative to rows that know nothing: `log_marginal`, plus D log K where noise is even."""
        assert self.log_marginal is not None
        found = log_number("TokenDiffusion: log_marginal", self.log_marginal(tokens, t))
        if found.shape != ():
            raise ValueError(
                f"TokenDiffusion: log_marginal returned shape {found.shape} for one row. Return one number in nats."
            )
        size = self.num_variables if self.kind == "uniform" else 0
        return found + size * jnp.log(self.num_values)
