"""How `smooth` makes paths, where the way has numbers of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, PyTree

from ....ppl._checks import check_counts


@dataclasses.dataclass(frozen=True)
class BackwardMetropolis:
    """Paths from their end, by independent Metropolis moves that start at the path's own parent; what `method="mcmc"` means.

    Args:
        num_moves: of each step; the cost of a step is as many densities a path.

    Raises:
        ValueError: no move.
    """

    num_moves: int = 4

    def __post_init__(self) -> None:
        check_counts("BackwardMetropolis", num_moves=self.num_moves)


@dataclasses.dataclass(frozen=True)
class BackwardRejection:
    """Paths from their end, exact draws by rejection under a bound of the densities.

    Args:
        log_bound: a number, or `t -> number`, in nats, that no density of the next step exceeds as a function of the particle:
            of log M_t(., x_t), with log G_t added if that looks at x_{t-1}; for a program the log-probs of the next L
            steps that depend on the particle. t counts as in `log_transition`; for a program steps of a scan, from 0.
        num_proposals: proposals before a path is drawn exactly, by all densities; None for as many as there are particles.

    Raises:
        ValueError: a negative number of proposals.
    """

    log_bound: float | Callable[[Array], PyTree]
    num_proposals: int | None = None

    def __post_init__(self) -> None:
        if self.num_proposals is not None:
            check_counts("BackwardRejection", 0, num_proposals=self.num_proposals)


@dataclasses.dataclass(frozen=True)
class FixedLag:
    """At each time the ancestors of the particles `lag` steps later; data after those are not used.

    Args:
        lag: steps of later data, 0 for the filter's own draws.

    Raises:
        ValueError: a negative lag.
    """

    lag: int

    def __post_init__(self) -> None:
        check_counts("FixedLag", 0, lag=self.lag)
