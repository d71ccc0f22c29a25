"""Best of N: the draw with the largest reward, whose law is a tilt of its own.

With F(r) the distribution function of the reward under p, the best of N independent draws has the density

    N F(r(x))^(N - 1) p(x):   the tilt by r'(x) = (N - 1) log F(r(x)), with Z = 1 / N,

where no two draws share a reward; it depends on the order of the rewards alone. With ties of probability m = F(r) - F(r-), broken
by the first draw, N F^(N - 1) is (F(r)^N - F(r-)^N) / m in its place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts, check_probabilities
from ...ppl._compat import is_concrete, typed_key
from ...ppl._data import as_numbers
from ...ppl._show import shown
from ...ppl._types import Key, ModelFn
from ...ppl.densities import StochasticProgram
from ...ppl.language import name_of
from ._rewards import Reward, as_log_weight, refuse_evidence, refuse_rewards, try_reward
from ._tilt import TiltedProgram, tilt


@shown
@dataclasses.dataclass(frozen=True)
class BestOf:
    """The best of N draws of a program; made by `best_of`. It samples, and states its law.

    Attributes:
        base: the program.
        reward: of what it returns.
        num_draws: N.
    """

    base: ppl.Program
    reward: Reward
    num_draws: int
    _tried: set[object] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def _facts(self) -> dict[str, PyTree]:
        return {
            "base": repr(self.base),
            "reward": name_of(self.reward),
            "evaluations": f"{self.num_draws} a draw",
            "KL to the base": f"{self.kl:.4f} nats, less with ties",
        }

    @property
    def kl(self) -> float:
        """KL(best || base) = log N - (N - 1) / N nats, for rewards without ties whatever they are; at most that with ties."""
        return math.log(self.num_draws) - (self.num_draws - 1) / self.num_draws

    def simulate(self, key: Key, *args: PyTree) -> ppl.Trace:
        """The trace of the best of N draws of the base, the first one of equals; N evaluations of the reward.

        Args:
            key: PRNG key of either kind.
            args: the program's arguments.

        Raises:
            ValueError: the program has observations or factors, which its draws would not see; a reward is NaN, or all are
                infinite, at draws that are tried first, or NaN at one of the N: it is then neither better nor worse than the
                others. Under `jax.jit` the numbers of such a draw, and its log-densities, are NaN.
        """
        keys = jax.random.split(typed_key(key), self.num_draws)
        found = jax.vmap(lambda key: self.base.simulate(key, *args))(keys)
        refuse_evidence("best_of", self.base, found, "take the best of those")
        self._try(args)
        rewards = jax.vmap(self._reward_of)(found.retval)
        if is_concrete(rewards) and np.isnan(rewards).any():
            refuse_rewards(self._named, np.asarray(rewards), "draws", may_be_infinite=True)
        best, is_lost = jnp.argmax(rewards), jnp.isnan(rewards).any()

        def kept(x: Array) -> Array:
            is_real = jnp.issubdtype(x.dtype, jnp.floating)
            return jnp.where(is_lost, jnp.nan, x[best]) if is_real else x[best]

        return jax.tree.map(kept, found)

    @property
    def _named(self) -> str:
        return f"best_of: reward '{name_of(self.reward)}'"

    def _reward_of(self, retval: PyTree) -> Array:
        return as_log_weight(self.reward, retval, what="best_of: reward")

    def _try(self, args: tuple[PyTree, ...]) -> None:
        """The reward at some draws, once for arguments of these shapes, where their values are known."""
        shapes = tuple(np.shape(x) for x in jax.tree.leaves(args))
        if shapes in self._tried or not is_concrete((args, self.base.params)):
            return
        try_reward(
            self.base, self.reward, 32, args, {}, what="best_of: reward", may_be_infinite=True
        )
        self._tried.add(shapes)

    def tilt(self, distribution: Callable[[Array], Array]) -> TiltedProgram:
        """Its law as a tilt of the base, for rewards without ties: log-weight log N + (N - 1) log F(r), so that Z = 1.

        Args:
            distribution: F, the distribution function of the reward under the base: exact, or `empirical_distribution`.
        """
        size = self.num_draws

        def order(retval: PyTree) -> Array:
            share = distribution(self._reward_of(retval))
            return math.log(size) + jax.scipy.special.xlogy(size - 1.0, share)  # 0 log 0 = 0

        return tilt(self.base, order)

    def kl_of(self, rewards: np.ndarray, probabilities: np.ndarray | None = None) -> float:
        """KL(best || base) in nats with ties, exact, of rewards that the base takes with these probabilities.

        Args:
            rewards: of the outcomes, [outcomes].
            probabilities: of the outcomes under the base, [outcomes]; None: equal ones.
        """
        share, best = self._levels(rewards, probabilities)[:2]
        some = best > 0
        return float((best[some] * np.log(best[some] / share[some])).sum())

    def law_of(self, rewards: np.ndarray, probabilities: np.ndarray | None = None) -> np.ndarray:
        """Probabilities of the outcomes under the best of N, exact, ties included, [outcomes].

        Args:
            rewards: of the outcomes, [outcomes].
            probabilities: of the outcomes under the base, [outcomes]; None: equal ones.
        """
        share, best, level = self._levels(rewards, probabilities)
        p = _equal(rewards) if probabilities is None else np.asarray(probabilities, float)
        return p * np.divide(best, share, out=np.zeros_like(best), where=share > 0)[level]

    def _levels(
        self, rewards: np.ndarray, probabilities: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities of each value of the reward under the base and under the best, and the value's number by outcome."""
        r = as_numbers("best_of: argument 'rewards'", rewards)
        if np.isnan(r).any():
            refuse_rewards(
                "best_of: argument 'rewards'", r.ravel(), "outcomes", may_be_infinite=True
            )
        p = _equal(r) if probabilities is None else np.asarray(probabilities, float)
        if r.ndim != 1 or p.shape != r.shape:
            raise ValueError(
                f"best_of: rewards of shape {r.shape} and probabilities of shape {p.shape}. Give one of each for every outcome."
            )
        check_probabilities("best_of", probabilities=p)
        level = np.unique(r, return_inverse=True)[1]
        share = np.bincount(level, p)
        upto = np.concatenate([[0.0], np.minimum(np.cumsum(share), 1.0)])
        return share, np.diff(upto**self.num_draws), level


def _equal(x: np.ndarray) -> np.ndarray:
    return np.full(np.shape(x), 1 / max(np.size(x), 1))


@checked_call
def best_of(model: ModelFn, reward: Reward, num_draws: int) -> BestOf:
    """The sampler that draws N times and keeps the draw of the largest reward, with the law that it has.

    Not the tilt by the reward, but a law that can be stated: a tilt by its order, (N - 1) log F(r(x)), at the divergence
    log N - (N - 1) / N nats from the model whatever the reward: 0.636 / 1.835 / 3.175 at N = 4 / 16 / 64.

    Args:
        model: the program, without observations and factors.
        reward: of what it returns, to a number; as for `tilt`.
        num_draws: N.

    Returns:
        A `BestOf`: `simulate(key, *args)`, `kl`, `tilt(distribution)`; `law_of` and `kl_of` with ties.

    Raises:
        ValueError: N < 1; (when it draws) the model observes, or the reward has another shape than (), or is NaN, or infinite at
            all draws that are tried.
        TypeError: the density of the model is estimated.

    Validity: its draws have the stated law, and cannot be weighted to the tilt: weights hold F(r)^(1 - N), Pareto of shape
    (N - 1) / N where the reward is bounded, and from N = 2 on have no variance. For the tilt resample (`ppl.normalize`).

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, numpyro.distributions as dist
        >>> best = inference.best_of(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)), lambda x: x, 4)
        >>> round(best.kl, 3), best.simulate(jax.random.key(0)).choices["x"].shape
        (0.636, ())

    Reference: Beirami et al. 2024, arXiv:2401.01879 (the divergence, an upper bound with ties).
    """
    check_counts("best_of", num_draws=num_draws)
    base = ppl.as_program(model)
    if isinstance(base, StochasticProgram):
        raise TypeError(
            f"best_of: the density of {base!r} is estimated. Give the program that it was made of."
        )
    return BestOf(base, reward, num_draws)
