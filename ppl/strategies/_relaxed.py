"""Relaxed draws of discrete laws: **biased**, used only where they are named."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ._strategy import Strategy, element, stop

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class _Relaxed(Strategy):
    """Abstract: a value that moves with a relaxed draw, **biased**."""

    temperature: float = 0.5
    kind = "pathwise"
    serves_null_values = True
    is_biased = True

    def refuse(self, distribution: dist.Distribution) -> str | None:
        return _refuse_relaxed(distribution)


@dataclasses.dataclass(frozen=True)
class GumbelSoftmax(_Relaxed):
    """Relaxed sample softmax((logits + Gumbel noise) / temperature). **Biased**: the gradient is that of the relaxed program.

    For OneHotCategorical and Bernoulli sites.

    Args:
        temperature: of the softmax, positive; the lower, the nearer to a category, and the larger the variance.

    Validity: value and gradient are those of the relaxed program, and the bias does not go away with more draws.
    Reference: Jang et al. 2017, arXiv:1611.01144; Maddison et al.
    2017, arXiv:1611.00712.
    """

    name = "gumbel_softmax"

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        return _relaxed(fn, key, self.temperature)


@dataclasses.dataclass(frozen=True)
class StraightThrough(_Relaxed):
    """Hard sample forward, gradient of the relaxed sample backward. **Biased**.

    For OneHotCategorical and Bernoulli sites.

    Args:
        temperature: of the softmax whose derivative is taken, positive.

    Validity: the value is unbiased, the gradient is not, however many draws are taken.
    Reference: Bengio et al. 2013, arXiv:1308.3432; Jang et al.
    2017, arXiv:1611.01144.
    """

    name = "straight_through"

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        soft = _relaxed(fn, key, self.temperature)
        if element(fn)[0].event_dim:
            hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1], dtype=soft.dtype)
        else:
            hard = (soft > 0.5).astype(soft.dtype)
        return stop(hard - soft) + soft


def _refuse_relaxed(distribution: dist.Distribution) -> str | None:
    name = type(distribution).__name__
    if "OneHotCategorical" in name or name.startswith("Bernoulli"):
        return None
    hint = (
        " (write the site as ppl.distributions.OneHotCategorical)"
        if name.startswith("Categorical")
        else ""
    )
    return f"relaxes OneHotCategorical and Bernoulli sites, not {name}{hint}"


def _relaxed(fn: dist.Distribution, key: Array, temperature: float) -> Array:
    base, shape = element(fn)
    logits = getattr(base, "logits")  # noqa: B009, not every distribution has them
    if base.event_dim:
        logits = jnp.broadcast_to(logits, shape + base.event_shape)
        return jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)
    logits = jnp.broadcast_to(logits, shape)
    return jax.nn.sigmoid((logits + jax.random.logistic(key, shape)) / temperature)
