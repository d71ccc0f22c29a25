"""A posterior at one observation, learned in rounds: simulations where it still can be (truncated proposals, TSNPE).

Each round learns from draws of the prior cut to a region, see `../_region.py`, with the loss of one round and no correction:
-E log q over p(theta) 1[theta in A] p(x | theta). Its optimum at the data is the posterior cut to A, of which epsilon at most
lies outside.

Rounds end when the learned posterior at the data moves by less than a number of nats,

    change = (KL(q_r || q_{r-1}) + KL(q_{r-1} || q_r)) / 2    at x,

which no longer buys anything, or when its tails are not to be trusted: a region that is too small cuts off what no later round
finds again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import ArrayLike

from .... import ppl
from ....ppl._types import Key
from .._region import TruncatedPrior, density_at, draws_at, misses
from .._table import ReferenceTable

_DRAWS = 2_000  # of each posterior, behind the change between two


class Round(NamedTuple):
    """One round.

    Attributes:
        num_simulations: simulated in all so far.
        num_learned: rows in the region, of which most train.
        share: of the prior's mass that the region has.
        change: of the posterior at the data since the round before, nats; NaN in the first.
    """

    num_simulations: int
    num_learned: int
    share: float
    change: float


class Rounds(NamedTuple):
    """What was done in rounds at one observation.

    Attributes:
        data: the observation.
        epsilon: mass of a posterior that its region may lack.
        rounds: one after the other.
        ended: why there is no other.
    """

    data: Mapping[str, ArrayLike]
    epsilon: float
    rounds: tuple[Round, ...]
    ended: str

    def facts(self) -> dict[str, str]:
        """What a report shows."""
        changes = ", ".join(f"{r.change:.2g}" for r in self.rounds[1:])
        last = self.rounds[-1]
        return {
            "rounds": f"{len(self.rounds)}, moved by {changes} nats" if changes else "1",
            "region": f"{last.share:.2g} of the prior, {last.num_learned} rows of {last.num_simulations}",
            "ended": self.ended,
        }

    def __str__(self) -> str:
        return "\n".join(f"{name}: {fact}" for name, fact in self.facts().items())


class Guided(Protocol):
    """What a round learns."""

    @property
    def guide(self) -> ppl.Program: ...

    @property
    def table(self) -> ReferenceTable: ...


def in_rounds[Found: Guided](
    learned: Callable[[ReferenceTable, Key], Found],
    table: ReferenceTable,
    data: Mapping[str, ArrayLike],
    *,
    num_rounds: int,
    epsilon: float,
    tolerance: float,
    key: Key,
) -> tuple[Found, Rounds]:
    """What the last round learned, and the rounds."""
    each = table.num_simulations + table.num_failed
    rounds, region, share, before = [], TruncatedPrior(data), 1.0, None
    while True:
        key, *keys = jax.random.split(key, 7)
        learn_key, change_key, miss_key, cut_key, prior_key, data_key = keys
        found = learned(table, learn_key)
        change = np.nan if before is None else moved(before, found.guide, data, change_key)
        rounds.append(Round(each * (len(rounds) + 1), table.num_simulations, share, change))
        ended, drawn = _ended(found, rounds, num_rounds, tolerance, miss_key), None
        if ended is None:
            region = region.cut(found.guide, epsilon, cut_key)
            drawn, share = region.prior_draws(table.model, table.args, prior_key, each)
            ended = f"the region has {share:.1g} of the prior, too little to draw from"
        if drawn is None:
            return found, Rounds(data, epsilon, tuple(rounds), ended)
        table, before = table.within(region, drawn, data_key), found.guide


def _ended(
    found: Guided, rounds: list[Round], num_rounds: int, tolerance: float, key: Key
) -> str | None:
    """Why a round is the last; None if it is not."""
    if rounds[-1].change < tolerance:
        return f"the posterior at the data moved by less than {tolerance:g} nats"
    missed, pairs, most = misses(found.guide, *found.table.rows("held out"), key)
    if missed > most:
        return (
            f"tails too light, {missed} of {pairs} held-out parameters lie beyond 499 draws each (by chance at most {most}): the "
            "next region would cut off what can be"
        )
    return "no more were asked for" if len(rounds) == num_rounds else None


def moved(
    before: ppl.Program, after: ppl.Program, data: Mapping[str, ArrayLike], key: Key
) -> float:
    """Half of KL in both directions between two posteriors at the data, nats."""
    total = 0.0
    for one, other, k in zip((before, after), (after, before), jax.random.split(key), strict=True):
        rows, logs = draws_at(one, data, k, _DRAWS)
        total += float(np.mean(logs - density_at(other, data)(rows))) / 2
    return total
