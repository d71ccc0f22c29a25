"""Where the posterior at one observation can still be: the prior, cut to the densest regions of what was learned.

    A = {theta: log q_s(theta | x) >= t_s for each s},    P_{q_s}(log q_s(theta | x) < t_s) <= epsilon

q_s being the posteriors learned in rounds and x the data. Draws of p(theta) 1[theta in A] are those of the prior that lie in A:
exact, whatever q, at the price of those that do not. Regions of later rounds lie in those before, and within A the prior cut to
one of these is the prior up to a number, so that rows of all rounds that lie in A are draws of one law.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ... import ppl
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Choices, Key
from ._simulators import Values

# Of draws whose density ranks them, so many are to lie outside, and the threshold is at half of that: with 97% probability the
# mass outside is below epsilon, since it has the Gamma law of 5 over the number of draws.
_OUTSIDE, _RANK = 10, 5
_BATCH = 2_000
_PILOT = 20_000  # draws of the prior that are tried at once
_MOST_PILOTS = 500
_PAIRS, _DRAWS, _FALSE_ALARM = 200, 499, 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class TruncatedPrior:
    """A part of the prior's support.

    Attributes:
        data: the observation, site -> value.
        cuts: learned posteriors, each with the least log-density that its draws have in the region, nats. None of a region that
            was read from a file, of which the rows alone are known.
    """

    data: Mapping[str, ArrayLike]
    cuts: tuple[tuple[ppl.Program, float], ...] | None = ()

    def cut(self, guide: ppl.Program, epsilon: float, key: Key) -> TruncatedPrior:
        """The part of it that the posterior `guide` reaches, but for epsilon of its mass."""
        _, logs = draws_at(guide, self.data, key, int(np.ceil(_OUTSIDE / epsilon)))
        threshold = float(np.sort(logs)[_RANK - 1])
        return TruncatedPrior(self.data, (*self._known, (guide, threshold)))

    @property
    def _known(self) -> tuple[tuple[ppl.Program, float], ...]:
        if self.cuts is None:
            raise ValueError(
                "TruncatedPrior: the region was read from a file, which holds rows of it and not the posteriors that bound it. "
                "Call amortise with at= anew to have them."
            )
        return self.cuts

    @functools.cached_property
    def _densities(self) -> list[Callable[[Values], np.ndarray]]:
        """Of each cut, traced once for all rows that are tried."""
        return [density_at(guide, self.data) for guide, _ in self._known]

    def holds(self, parameters: Values) -> np.ndarray:
        """Which rows of parameters lie in it, [N]."""
        inside = np.ones(len(next(iter(parameters.values()))), bool)
        for density, (_, threshold) in zip(self._densities, self._known, strict=True):
            inside &= density(parameters) >= threshold
        return inside

    def prior_draws(
        self, model: ppl.Program, args: tuple[PyTree, ...], key: Key, num: int
    ) -> tuple[dict[str, np.ndarray] | None, float]:
        """Draws of the prior that lie in it, and the share of all that do; None where too few are found."""
        draw = shared_jit(jax.vmap(lambda key: dict(model.simulate(key, *args).choices)))
        parts, found, tried = [], 0, 0
        while found < num and tried < _MOST_PILOTS * _PILOT:
            key, own = jax.random.split(key)
            rows = {n: np.asarray(x) for n, x in draw(jax.random.split(own, _PILOT)).items()}
            inside = self.holds(rows)
            parts.append({n: x[inside] for n, x in rows.items()})
            found, tried = found + int(inside.sum()), tried + _PILOT
        share = found / tried
        if found < num:
            return None, share
        return {n: np.concatenate([p[n] for p in parts])[:num] for n in parts[0]}, share


def scored(program: ppl.Program, choices: Choices, *args: PyTree, **kwargs: PyTree) -> Array:
    """`log_density`, with a key: networks may be made from one before their parameters are bound."""
    return program.generate(jax.random.key(0), choices, *args, **kwargs)[0].log_density


def draws_at(
    guide: ppl.Program, data: Mapping[str, ArrayLike], key: Key, num: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draws of a learned posterior at the data, and their log-densities, nats."""

    def draw(key: Key) -> tuple[dict[str, Array], Array]:
        trace = guide.simulate(key, **data)
        return dict(trace.choices), trace.log_density

    run = shared_jit(lambda keys: jax.lax.map(draw, keys, batch_size=min(_BATCH, num)))
    choices, logs = jax.device_get(run(jax.random.split(key, num)))
    return dict(choices), np.asarray(logs, float)


def density_at(guide: ppl.Program, data: Mapping[str, ArrayLike]) -> Callable[[Values], np.ndarray]:
    """Rows of parameters -> their log-densities under a learned posterior at the data, nats; one compiled size."""
    run = shared_jit(jax.vmap(lambda choices: scored(guide, choices, **data)))

    def densities(parameters: Values) -> np.ndarray:
        size = len(next(iter(parameters.values())))
        found = []
        for i in range(0, size, _BATCH):
            # The last batch is filled up by its own rows, again and again.
            rows = {
                n: np.resize(x[i : i + _BATCH], (_BATCH, *x.shape[1:]))
                for n, x in parameters.items()
            }
            found.append(np.asarray(run(rows), float)[: size - i])
        logs = np.concatenate(found) if found else np.zeros(0)
        return np.where(np.isnan(logs), -np.inf, logs)

    return densities


def misses(guide: ppl.Program, parameters: Values, data: Values, key: Key) -> tuple[int, int, int]:
    """Pairs whose parameter is less likely than all of 499 draws given its data: their number, that of pairs, the most allowed.

    One pair of 500 is, if the posterior's tails are right. More than so many are in one of a thousand sets of pairs.
    """
    from scipy.stats import binom

    pairs = min(_PAIRS, len(next(iter(parameters.values()))))
    rows = ({n: jnp.asarray(x[:pairs]) for n, x in v.items()} for v in (parameters, data))

    def is_missed(inputs: tuple[Key, dict[str, Array], dict[str, Array]]) -> Array:
        key, choices, data = inputs
        density = lambda key: guide.simulate(key, **data).log_density
        drawn = jax.vmap(density)(jax.random.split(key, _DRAWS))
        return ~(scored(guide, choices, **data) >= drawn.min())

    run = shared_jit(lambda *inputs: jax.lax.map(is_missed, inputs, batch_size=10))
    found = int(np.asarray(run(jax.random.split(key, pairs), *rows)).sum())
    return found, pairs, int(binom.ppf(1 - _FALSE_ALARM, pairs, 1 / (_DRAWS + 1)))
