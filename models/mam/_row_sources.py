"""Where the rows come from of which marginalization models learn an energy."""

from __future__ import annotations

import dataclasses

from ...ppl._checks import check_counts


@dataclasses.dataclass(frozen=True)
class RowSources:
    """Shares of the rows of a step of `energy`; what they leave comes from chains of the present conditional network.

    Args:
        tempered: share of chains that draw from the conditionals c^power, normalised anew, the powers spread evenly over
            `powers`: for questions about states that the law itself seldom meets, and against lost modes. The spread and the
            residuals are then those under the mixture of all rows.
        powers: from the lowest to the highest. Near 0 chains wander freely, above 1 they seek what is most likely, below 0
            what is least likely: order of the opposite kind.
        explore: share of rows replaced, in both terms, by independent values whose frequencies are themselves drawn uniformly
            (Dirichlet), a different draw for each row, with the same purpose.
        replay: share of rows that are replayed, by default half of what `tempered` and `explore` leave. 0 is the published
            training, from the model's own draws alone. At 1 nothing corrects what the model believes of states that no particle
            holds: of 12 bits with random energies it lost nearly all, where 0.25 to 0.75 did alike.
        num_particles: particles of the tempering run, two Gibbs sweeps at each temperature: 2 D (K - 1) evaluations of f for each
            particle and temperature, once, when training starts.

    Raises:
        ValueError: a negative share, shares that add up to more than 1, or no particle.
    """

    tempered: float = 0.0
    powers: tuple[float, float] = (-1.0, 1.0)
    explore: float = 0.0
    replay: float | None = None
    num_particles: int = 1_024

    def __post_init__(self) -> None:
        check_counts("RowSources", num_particles=self.num_particles)
        shares = {"tempered": self.tempered, "explore": self.explore, "replay": self.replayed}
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            raise ValueError(
                f"RowSources: {', '.join(f'{name}={x}' for name, x in shares.items())} are shares of the rows; none may be "
                "negative, nor their sum exceed 1. Lower them, or leave them out."
            )

    @property
    def replayed(self) -> float:
        """The share that is replayed."""
        rest = max(1 - self.tempered - self.explore, 0)
        return rest / 2 if self.replay is None else self.replay
