"""The log-weight process of trajectories, from which every balance loss is a difference."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Numbers = tuple[Array, Array, Array]


class TrajectoryBatch(NamedTuple):
    """Trajectories, as `rollout` draws them.

    Attributes:
        actions: integers, [batch, T].
        positions: trees of arrays, [batch, T + 1].
        numbers: log_pf, log_pb and log_flow of the `Process`, [batch, T + 1].
    """

    actions: Int[Array, "batch steps"]
    positions: Any
    numbers: Numbers


class Process(NamedTuple):
    """Numbers along a batch of trajectories s_0 -> ... -> s_n = x, padded to T + 1 positions. Nats.

        u_t = log F(s_t) + sum_{i < t} [log P_B(s_i | s_{i+1}) - log P_F(s_{i+1} | s_i)],   F(x) = R(x),

    is the log-weight of a particle of sequential Monte Carlo whose targets are F(s_t) prod P_B and whose proposal is P_F; each
    sub-trajectory i..j balances if u_i = u_j. F is split into a part that is known and one that is learned, log F = log_reward +
    log_flow: nothing is known before the end (log_reward 0), or forward-looking flows know log R(s_t) of the incomplete object.
    From n on nothing changes any more, and there is nothing to learn of F.

    Attributes:
        log_pf: log P_F of the action taken at position t, 0 from n on. [batch, T + 1]
        log_pb: log P_B of the action that led to position t, 0 at the start and beyond n. [batch, T + 1]
        log_flow: learned part of log F, 0 from n on. [batch, T + 1]
        log_reward: known part of log F; log R(x) from n on. [batch, T + 1]
        length: n. [batch]
        first: first position that a loss may use. [batch]
        last: last one, n for whole trajectories. [batch]
    """

    log_pf: Float[Array, "batch positions"]
    log_pb: Float[Array, "batch positions"]
    log_flow: Float[Array, "batch positions"]
    log_reward: Float[Array, "batch positions"]
    length: Int[Array, " batch"]
    first: Int[Array, " batch"]
    last: Int[Array, " batch"]

    @property
    def log_f(self) -> Float[Array, "batch positions"]:
        """Log F(s_t), both parts; log R(x) at the end."""
        return self.log_reward + self.log_flow

    @property
    def increments(self) -> Float[Array, "batch steps"]:
        """u_{t+1} - u_t, the log-weight of step t; see `is_step`."""
        return jnp.diff(self.log_f, axis=1) + self.log_pb[:, 1:] - self.log_pf[:, :-1]

    @property
    def u(self) -> Float[Array, "batch positions"]:
        """u_t; u_0 is log F(s_0), the model's log Z."""
        return self.log_f[:, :1] + jnp.pad(jnp.cumsum(self.increments, 1), ((0, 0), (1, 0)))

    @property
    def log_weight(self) -> Float[Array, " batch"]:
        """Log of R(x) P_B(path | x) / P_F(path), whose mean under P_F is Z."""
        return self.log_reward[:, -1] + (self.log_pb - self.log_pf).sum(1)

    @property
    def is_step(self) -> Bool[Array, "batch steps"]:
        """Whether step t lies between `first` and `last`."""
        t = jnp.arange(self.log_pf.shape[1] - 1)
        return (self.first[:, None] <= t) & (t < self.last[:, None])
