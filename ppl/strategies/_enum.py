"""Exact sums over finite supports, and the probabilities by which they weigh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree

from ._strategy import Draw, Strategy

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Enum(Strategy):
    """Exact sum over a finite support: sum_v p(v) E[cost | v], all values in one vectorised run.

    Rows of a plate whose costs separate share the states (k evaluations for N rows). A chain, a site in `ppl.scan` that nothing
    depends on for longer than L <= 3 steps, is summed by a forward recursion, linear in the number of steps
    (k^(L + 1) states), where the cost is a sum over the steps. Other elements that meet in one cost are enumerated jointly
    (k^n states), up to a limit. Sites that a cost sees only through other enumerated sites are summed out one
    after the other.

    Exact zeros under the other strategies. The derivative in a probability that is 0 holds the cost at a value that is never
    drawn, so that no function of draws alone estimates it:

        enum, mvd, importance (Bernoulli,     exact: the cost is evaluated at that value
          Categorical, Binomial; mvd: Poisson)
        reinforce and its baselines, disarm,  not served: where a probability is exactly 0 and a parameter moves it (by more than
          arm, rebar, relax                   1e-4 per unit, else it is taken for rounding), `grad` is NaN, and what `jax.grad`
                                              makes of `value` is beyond 1e20. Inside, their variance grows beyond bounds as the
                                              probability falls. Keep probabilities strictly inside, e.g. by logits
        logits                                never 0 or 1 but by rounding, where the derivative is 0 as well

    Validity: always exact in this site, also where a probability is exactly 0 or 1 and a parameter moves it (the derivative is
    then the one-sided one): laws given by their probabilities weigh by these, not by logarithms, which have none.
    Reference: Baum and Petrie 1966 (the recursion); Obermeyer et al. 2019, arXiv:1902.03210 (plates).
    """

    name = "enum"
    kind = "enumerated"
    serves_null_values = True

    def local(self, draw: Draw) -> PyTree:
        probability = probability_of(draw.distribution, draw.value)
        return () if probability is None else jnp.broadcast_to(probability, draw.shape)

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        if not distribution.has_enumerate_support:
            return f"needs a finite support, but {name} cannot be enumerated"
        try:
            support_of(distribution)
        except (NotImplementedError, TypeError):  # a traced or uneven total_count
            return (
                f"needs values that are known when the program is traced and the same in all rows, but those of {name} "
                "hang on its parameters"
            )
        return None


def probability_of(law: dist.Distribution, value: Array) -> Array | None:
    """The probability of `value` under a law that is given by probabilities, differentiable also at 0 and 1; else None.

    Of a user's subclass, which may have another density, nothing is known.
    """
    if type(law) is dist.BernoulliProbs:
        return jnp.where(value == 1, law.probs, 1 - law.probs)
    if type(law) is dist.CategoricalProbs:
        probs, value = jnp.asarray(law.probs), jnp.asarray(value)
        shape = jnp.broadcast_shapes(value.shape, probs.shape[:-1])
        probs = jnp.broadcast_to(probs, shape + probs.shape[-1:])
        index = jnp.broadcast_to(value, shape)[..., None]
        return jnp.take_along_axis(probs, index, -1)[..., 0]
    if type(law) is dist.BinomialProbs:
        p, n = jnp.asarray(law.probs), jnp.asarray(law.total_count)
        is_sure = (p == 0) | (p == 1)
        inside = dist.BinomialProbs(jnp.where(is_sure, 0.5, p), n, validate_args=False)
        rate = jnp.where(p == 0, p, 1 - p)  # of what never happens
        count = jnp.where(p == 0, value, n - value)
        near = jnp.where(count == 0, 1 - n * rate, jnp.where(count == 1, n * rate, 0.0))
        return jnp.where(is_sure, near, jnp.exp(inside.log_prob(value)))
    return None


def support_of(distribution: dist.Distribution) -> np.ndarray:
    """The values of a finite support, as constants of the program being traced."""
    if isinstance(distribution, dist.BernoulliLogits | dist.BernoulliProbs):
        return np.arange(2, dtype=jnp.result_type(int))
    if isinstance(distribution, dist.CategoricalLogits):  # nothing to compile
        return np.arange(np.shape(distribution.logits)[-1], dtype=jnp.result_type(int))
    if isinstance(distribution, dist.CategoricalProbs):
        return np.arange(np.shape(distribution.probs)[-1], dtype=jnp.result_type(int))
    with jax.ensure_compile_time_eval():
        return np.array(distribution.enumerate_support(expand=False))
