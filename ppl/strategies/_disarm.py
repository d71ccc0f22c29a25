"""Antithetic score-function estimators of discrete sites: ARM and DisARM.

A Bernoulli draw is b = 1[u < p] with u uniform, its antithetic partner b' = 1[1 - u < p]. Exchanging u and 1 - u for all
elements of a site at once leaves the law of the program unchanged, so that two evaluations of the downstream cost f,
at the vectors b and b', serve every element i:

    ARM     d E[f] / d logit_i = E[(f(b) - f(b')) (1/2 - u_i)],
    DisARM  d E[f] / d logit_i = E[(f(b) - f(b')) (b_i - b'_i) max(p_i, 1 - p_i) / 2],

the second being the mean of the first given (b, b'). A categorical draw is the first success of a row of Bernoulli
draws, one per class but the last ("stick breaking"), with probabilities v_c = p_c / sum_{j >= c} p_j.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ._strategy import Downstream, Draw, Strategy, element, stop

Array = jax.Array
BERNOULLI = frozenset({"BernoulliProbs", "BernoulliLogits"})
CATEGORICAL = frozenset({"CategoricalProbs", "CategoricalLogits"})
SERVED = BERNOULLI | CATEGORICAL | {"OneHotCategorical"}


class Antithetic(Strategy):
    """Abstract: the cost at the draw minus the cost at its antithetic partner, times a weight per stick."""

    calls = ("replay_together",)

    @abc.abstractmethod
    def weight(self, uniforms: Array, sticks: Array) -> Array:
        """The factor of f(b) - f(b') in the derivative in each stick's probability; zero where that is 0 or 1."""

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        if name in SERVED:
            return None
        return f"is for {sorted(SERVED)} sites, not for {name}"

    def uniforms(
        self, distribution: dist.Distribution, key: Array, shape: tuple[int, ...]
    ) -> Array:
        """The uniform numbers behind the draw, shape `shape` (elements, then sticks); a subclass may bring its own."""
        return jax.random.uniform(key, shape)

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        base, shape = element(fn)
        uniforms, sticks = self._noise(base, key, shape)
        return _value(base, uniforms < stop(sticks))

    def local(self, draw: Draw) -> Any:
        uniforms, sticks = self._noise(draw.distribution, draw.key, draw.shape)
        taken, other = uniforms < stop(sticks), 1 - uniforms < stop(sticks)
        # Sticks behind both successes do not decide: given the values, their weights have mean zero.
        decides = (
            jnp.arange(sticks.shape[-1]) <= jnp.maximum(_first(taken), _first(other))[..., None]
        )
        weight = jnp.where(decides, self.weight(uniforms, stop(sticks)), 0.0)
        return {"sticks": sticks, "weight": weight, "other": _value(draw.distribution, other)}

    def surrogate(self, local: PyTree, downstream: Downstream) -> Array:
        difference = downstream.cost - downstream.replay_together(local["other"])
        sticks = local["sticks"]
        return (sticks - stop(sticks)) * stop(local["weight"] * difference[..., None])

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return f"1 + replays of {num_elements} step(s)" if num_elements > 1 else "2"

    def _noise(
        self, base: dist.Distribution, key: Array, shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Uniform numbers and stick probabilities, both [*elements, sticks]."""
        sticks = _sticks(base)
        sticks = jnp.broadcast_to(sticks, shape + sticks.shape[-1:])
        return jnp.reshape(self.uniforms(base, key, sticks.shape), sticks.shape), sticks


@dataclasses.dataclass(frozen=True)
class DisARM(Antithetic):
    """Antithetic estimator with the uniform number integrated out; two evaluations for a site of any size.

    Per element, with p = P(b = 1), b the draw, b' its partner, f the cost downstream of the element at all
    elements' draws and at all elements' partners:

        dp * (f(b) - f(b')) (b - b') / (2 min(p, 1 - p)).

    For Bernoulli sites, and Categorical and OneHotCategorical ones by stick breaking. Elements are replaced at once;
    the steps of a scan whose carry hands the value on one after another. Where MVD needs one pair of replays only (a
    single element, rows that separate) it is exact in the site and the better choice; where n elements meet in a cost, MVD
    takes n replays and DisARM one.

    Validity: unbiased for probabilities strictly between 0 and 1, also where the cost jumps.
    Reference: Dong et al. 2020, arXiv:2006.10680; Yin et al. 2020 (U2G); stick breaking: Dong et al. 2021,
    arXiv:2106.08056.
    """

    name = "disarm"

    def weight(self, uniforms: Array, sticks: Array) -> Array:
        # b - b' is not 0 only where u or 1 - u alone is below p, which has probability 2 min(p, 1 - p).
        step = (uniforms < sticks) * 1.0 - (1 - uniforms < sticks)
        return step * 0.5 / _positive(jnp.minimum(sticks, 1 - sticks))


@dataclasses.dataclass(frozen=True)
class ARM(Antithetic):
    """Augment-REINFORCE-merge: dp * (f(b) - f(b')) (1/2 - u) / (p (1 - p)) per element; see `DisARM`.

    Its variance is at least DisARM's, at the same cost.

    Validity: as `DisARM`.
    Reference: Yin and Zhou 2019, arXiv:1807.11143.
    """

    name = "arm"

    def weight(self, uniforms: Array, sticks: Array) -> Array:
        spread = sticks * (1 - sticks)
        # 1/2 - u belongs to the derivative in the logit, and d logit / dp = 1 / (p (1 - p)).
        return jnp.where(spread > 0, 0.5 - uniforms, 0.0) / _positive(spread)


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1.0)


def _sticks(base: dist.Distribution) -> Array:
    """Probabilities of the Bernoulli draws behind one element, last axis sticks."""
    probs = jnp.asarray(getattr(base, "probs"))  # noqa: B009, not every distribution has them
    if type(base).__name__ in BERNOULLI:
        return probs[..., None]
    # v_c = p_c / sum_{j >= c} p_j, the sums from the end on.
    tail = jnp.flip(jnp.cumsum(jnp.flip(probs, -1), -1), -1)[..., :-1]
    return jnp.where(tail > 0, probs[..., :-1] / _positive(tail), 0.0)


def _first(successes: Array) -> Array:
    """Position of the first success along the last axis; its length if there is none."""
    last = jnp.ones((*successes.shape[:-1], 1), bool)
    return jnp.argmax(jnp.concatenate([successes, last], -1), -1)


def _value(base: dist.Distribution, successes: Array) -> Array:
    """The site's value, from the successes of its sticks."""
    if type(base).__name__ in BERNOULLI:
        return successes[..., 0].astype(jnp.result_type(int))
    first = _first(successes)
    if type(base).__name__ in CATEGORICAL:
        return first.astype(jnp.result_type(int))
    return jax.nn.one_hot(first, successes.shape[-1] + 1, dtype=jnp.result_type(float))
