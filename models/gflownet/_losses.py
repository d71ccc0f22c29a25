"""Balance losses: functions of the differences of one log-weight process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._process import Process

Shape = str | Callable[[Array], Array]


def _huber(x: Array) -> Array:
    return jnp.where(jnp.abs(x) <= 1, x**2, 2 * jnp.abs(x) - 1)


SHAPES: dict[str, Callable[[Array], Array]] = {
    "square": jnp.square,
    "huber": _huber,
    "linex": lambda x: jnp.expm1(x) - x,
}


def as_shape(shape: Shape) -> Callable[[Array], Array]:
    """The shape of that name, or the function itself."""
    if callable(shape):
        return shape
    if shape not in SHAPES:
        raise ValueError(
            f"shape must be one of {list(SHAPES)} or a function of log-weights, got {shape!r}."
        )
    return SHAPES[shape]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A function of a `Process`, and what it needs.

    Attributes:
        fn: process -> number, nats squared for the square shape.
        name: shown in reports.
        needs_flow: whether it reads log F between start and end.
        needs_whole: whether it reads both ends of a trajectory at once, so that a part of one is of no use.
        least_batch: fewest trajectories.
    """

    fn: Callable[[Process], Float[Array, ""]]
    name: str
    needs_flow: bool = False
    needs_whole: bool = False
    least_batch: int = 1

    def __call__(self, process: Process) -> Float[Array, ""]:
        """The loss of a batch."""
        return self.fn(process)


def trajectory_balance(shape: Shape = "square") -> Loss:
    """Mean over trajectories of g(u_n - u_0) (TB; Malkin et al. 2022, arXiv:2201.13259).

    Args:
        shape: g, by name or as a function; see `subtrajectory_balance`.
    """
    g = as_shape(shape)
    return Loss(lambda p: g(p.increments.sum(1)).mean(), "trajectory_balance", needs_whole=True)


def log_variance() -> Loss:
    """Sample variance of log R P_B / P_F (VarGrad): trajectory balance with the batch mean for log Z.

    Reference: Richter et al. 2020, arXiv:2010.10436; Zhang et al. 2023, arXiv:2302.05446.
    """
    return Loss(
        lambda p: jnp.var(p.log_weight, ddof=1), "log_variance", needs_whole=True, least_batch=2
    )


def detailed_balance(shape: Shape = "square") -> Loss:
    """Mean over all steps of the batch of g(u_{t+1} - u_t) (DB; Bengio et al. 2023, arXiv:2111.09266).

    Forward-looking DB, modified DB and flow matching are this loss of other flows, see `programs`. The last two have no
    residual at stop steps, which count in the mean all the same.

    Args:
        shape: g, by name or as a function; see `subtrajectory_balance`.
    """
    g = as_shape(shape)

    def fn(process: Process) -> Array:
        is_step = process.is_step
        return jnp.where(is_step, g(process.increments), 0.0).sum() / is_step.sum()

    return Loss(fn, "detailed_balance", needs_flow=True)


def subtrajectory_balance(decay: float = 0.9, shape: Shape = "square") -> Loss:
    """Mean over trajectories of sum_{i<j} decay^(j-i) g(u_j - u_i) / sum_{i<j} decay^(j-i) (Madan et al. 2023, arXiv:2209.12782).

    Args:
        decay: positive; towards 0 it is detailed balance of each trajectory, towards infinity trajectory balance.
        shape: g.

    Raises:
        ValueError: `decay` is not positive, or the shape unknown.
    """
    if not decay > 0:
        raise ValueError(
            f"subtrajectory_balance: decay must be positive, got {decay}. Use detailed_balance for the limit 0."
        )
    g = as_shape(shape)

    def fn(process: Process) -> Array:
        u, t = process.u, jnp.arange(process.log_pf.shape[1])
        gap = t - t[:, None]  # [from, to]
        inside = (process.first[:, None] <= t) & (t <= process.last[:, None])
        is_pair = (gap > 0) & inside[:, :, None] & inside[:, None, :]
        # In logarithms, since powers of a large decay overflow.
        longest = (process.last - process.first)[:, None, None]
        power = jnp.exp(jnp.log(decay) * (gap - jnp.where(decay > 1, longest, 1)))
        weight = jnp.where(is_pair, power, 0.0)
        terms = jnp.where(is_pair, g(jnp.where(is_pair, u[:, None, :] - u[:, :, None], 0.0)), 0.0)
        return ((weight * terms).sum((1, 2)) / weight.sum((1, 2))).mean()

    return Loss(fn, f"subtrajectory_balance({decay})", needs_flow=True)
