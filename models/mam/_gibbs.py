"""Block Gibbs moves of a marginalization model, with or without Metropolis' correction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...inference.particles.moves import accept
from ...ppl._checks import log_number
from ...ppl._compat import typed_key
from . import _chain
from ._distribution import MaM
from ._orders import random_orders
from .networks import Networks


class Move(NamedTuple):
    """What a move of `BlockGibbs` leaves.

    Attributes:
        value: states, [*shape, D].
        acceptance: probability with which each was accepted, [*shape].
    """

    value: Int[Array, "*shape variables"]
    acceptance: Float[Array, "*shape"]


@dataclasses.dataclass(frozen=True, eq=False)
class BlockGibbs:
    """A Markov kernel: blank M variables chosen at random, draw them anew, one after the other, from the conditional network.

    A call `(key, value [*shape, D]) -> Move` moves every row; evidence of the model stays, and fewer than M variables are
    redrawn where fewer are free.

    Args:
        mam: the model.
        block_size: M.
        log_target: log f of one row `[D] -> scalar`, nats, up to a constant; None for no correction.

    Raises:
        ValueError: `block_size` is no integer from 1 to D.

    Validity: with `log_target` the move is Metropolis-Hastings with the redrawn block as proposal, and leaves f (given the
    evidence) invariant exactly, however bad the networks are. Without it the invariant law is that of the conditional network
    if its conditionals fit together, and depends on how they disagree if they do not.

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920, section 4.2 (without correction, M = 4).
    """

    mam: MaM
    block_size: int
    log_target: Callable[[Int[Array, " variables"]], Float[Array, ""]] | None = None

    def __post_init__(self) -> None:
        size = self.mam.num_variables
        if not isinstance(self.block_size, int) or not 1 <= self.block_size <= size:
            raise ValueError(
                f"BlockGibbs: block_size must be an integer from 1 to the {size} variables, got {self.block_size!r}."
            )

    def __call__(self, key: Array, value: Int[Array, "*shape variables"]) -> Move:
        """Move every row once.

        Raises:
            ValueError: a value lies outside of the support or contradicts the evidence (a RuntimeError under jit).
        """
        tokens, evidence = self.mam._whole("BlockGibbs", value)
        keys = jax.random.split(typed_key(key), tokens.shape[:-1])
        moved, acceptance = _chain.by_row(
            self._one, self.mam.networks, tokens, evidence, scalars=(keys,)
        )
        return Move(moved - 1, acceptance)

    def _one(self, networks: Networks, key: Array, tokens: Array, evidence: Array) -> Any:
        return move(networks, key, tokens, evidence, self.block_size, self.log_target)


def move(
    networks: Networks,
    key: Array,
    tokens: Int[Array, " variables"],
    evidence: Int[Array, " variables"],
    block_size: int,
    log_target: Callable[[Array], Array] | None = None,
) -> tuple[Int[Array, " variables"], Float[Array, ""]]:
    """One move of one row of tokens, and its acceptance probability."""
    order_key, draw_key, accept_key = jax.random.split(key, 3)
    block = random_orders(order_key, evidence > 0)[-block_size:]
    blanked = tokens.at[block].set(evidence[block])
    proposed, forward = _chain.generate(networks, draw_key, blanked, block)
    if log_target is None:
        return proposed, jnp.ones(())
    backward = _chain.score(networks, tokens, blanked, block)
    new, old = (log_number("log_target", log_target(x - 1)) for x in (proposed, tokens))
    log_ratio = new - old + backward - forward
    return accept(accept_key, tokens, proposed, log_ratio)
