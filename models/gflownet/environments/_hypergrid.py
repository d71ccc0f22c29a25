"""The hypergrid: a corner to start from, and 2^D modes far away."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._environment import Environment

_SLACK = 1e-6  # |x - 1/2| is 0.3 or 0.4 exactly on some grids, in floating point or beside it


class Hypergrid(Environment):
    """Points of {0, ..., side - 1}^ndim; an action raises one coordinate, and every point can be the last.

        R(x) = R0 + R1 prod_d 1[0.25 < a_d] + R2 prod_d 1[0.3 < a_d < 0.4],   a_d = |x_d / (side - 1) - 1/2|.

    The state is an integer vector [ndim]; a network sees it one-hot.

    Args:
        ndim: D.
        side: points along each axis, at least 2.
        rewards: (R0, R1, R2), R0 positive.

    Raises:
        ValueError: impossible sizes, or R0 that is not positive.

    Reference: Bengio et al. 2021, arXiv:2106.04399.
    """

    stops = True

    def __init__(
        self, ndim: int, side: int, rewards: tuple[float, float, float] = (1e-3, 0.5, 2.0)
    ) -> None:
        if ndim < 1 or side < 2 or not rewards[0] > 0:
            raise ValueError(
                f"Hypergrid: ndim={ndim}, side={side}, rewards={rewards}; needs ndim >= 1, side >= 2 and R0 > 0, so that log R "
                "is finite everywhere."
            )
        self.ndim, self.side, self.rewards = ndim, side, rewards
        self.num_actions, self.num_steps = ndim, ndim * (side - 1)

    def start(self) -> Array:
        """The corner at 0."""
        return jnp.zeros(self.ndim, jnp.int32)

    def observe(self, state: Array) -> Array:
        """One-hot, [ndim * side]."""
        return jax.nn.one_hot(state, self.side).reshape(-1)

    def legal(self, state: Array) -> Array:
        """Axes that do not end here."""
        return state < self.side - 1

    def removable(self, state: Array) -> Array:
        """Axes that do not begin here."""
        return state > 0

    def step(self, state: Array, action: Array) -> Array:
        """One up."""
        return state.at[action].add(1)

    def undo(self, state: Array, action: Array) -> Array:
        """One down."""
        return state.at[action].add(-1)

    def log_reward(self, state: Array) -> Array:
        """Log R."""
        base, plateau, peak = self.rewards
        off = jnp.abs(state / (self.side - 1) - 0.5)
        is_high = jnp.all(off > 0.25 + _SLACK)
        is_peak = jnp.all((off > 0.3 + _SLACK) & (off < 0.4 - _SLACK))
        return jnp.log(base + plateau * is_high + peak * is_peak)
