"""Derivatives of NumPyro's log-probabilities of discrete laws that some versions get wrong.

At logits of exactly 0 (every network whose last layer starts at zero begins there): NumPyro 0.22 writes log(1 + e^x) as
jnp.clip(x, 0) + log1p(exp(-|x|)), whose derivative comes out as 0 at 0 instead of 1/2, and so the gradient of the log-probability
as y, not y - 1/2. At probabilities of exactly 0 and 1 of an event: they are cut off just inside, and the derivative of the cut is
0 instead of 1, so that what is impossible and did not happen has no gradient. At weights of exactly 0 in a mixture: the
derivative in such a weight is 0, not the ratio of its component's density to the mixture's, so that nothing can revive it.

A formula with all its derivatives takes their places in NumPyro itself, since every objective scores through it. Values are the
same, those of probabilities to rounding.

Importing this module changes no formula yet. It puts a test in front of each function: the first call, whoever makes it, compiles
two derivatives (0.1 to 0.2 s) and leaves NumPyro's function in its place if they are right, and ours if not. In versions that
the tests have found faulty, the first call need not look again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions import discrete

from ..._workarounds import Workaround
from .._compat import Mixture, remixed, validate_sample

SOFTPLUS = (0.5, 0.25)  # the first two derivatives of log(1 + e^x) at 0
IDENTITY = (1.0, 0.0)
_RATIO = float(np.exp(0.5))  # of the densities of N(0, 1) and N(1, 1) at 0
REVIVAL = (_RATIO - 1, -((_RATIO - 1) ** 2))  # of log(w N(0; 0, 1) + (1 - w) N(0; 1, 1)) at w = 0
_LOG_PROB_BY_LOGITS = Mixture.log_prob
FAULTY = frozenset({"0.22.0"})  # in all of these functions; tests/test_workarounds.py looks


def _softplus(x: Any) -> Any:
    """log(1 + e^x), all of it through |x|, whatever JAX takes its derivative at 0 to be: both parts are seen from the same side.

    No comparison, which the search for jumps would have to look into.
    """
    size = jnp.abs(x)
    return 0.5 * (x + size) + jnp.log1p(jnp.exp(-size))


def _bernoulli_loss(x: Any, y: Any) -> Any:
    """Minus the log-probability of y (0 or 1) at logits x, infinite ones too."""
    is_finite = jnp.isfinite(x)
    finite = jnp.where(is_finite, x, 0)
    return jnp.where(is_finite, _softplus(finite) - finite * y, jnp.inf * jnp.logical_xor(y, x > 0))


@validate_sample
def _binomial_log_prob(self: Any, value: Any) -> Any:
    n = jnp.asarray(self.total_count, jnp.result_type(float))
    log_ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
    return log_ways + value * self.logits - n * _softplus(self.logits)


def _clamped(probs: Any) -> Any:
    """Probabilities brought inside of (0, 1), those of [0, 1] by a line of slope 1 - eps."""
    finfo = jnp.finfo(jnp.result_type(probs, float))
    inside = 2 * finfo.tiny + (1 - finfo.eps) * jnp.asarray(probs)
    return jnp.clip(
        inside, finfo.tiny, 1 - finfo.epsneg
    )  # for those outside of [0, 1], by rounding


@jax.custom_jvp
def _mixed(log_probs: Any, weights: Any) -> Any:
    """log(sum(weights * exp(log_probs))) over the last axis, differentiable in weights of exactly 0."""
    log_weights = dist.CategoricalProbs(weights, validate_args=False).logits
    return jax.nn.logsumexp(log_probs + log_weights, axis=-1)


@_mixed.defjvp
def _mixed_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    log_probs, weights = primals
    total = _mixed(log_probs, weights)
    # A component of weight 0 may be denser than the mixture by any factor, another by 1 / weight at most.
    limit = np.log(jnp.finfo(log_probs.dtype).max) - 1
    log_ratios = jnp.minimum(log_probs - total[..., None], limit)
    return total, (jnp.exp(log_ratios) * (tangents[1] + weights * tangents[0])).sum(-1)


@validate_sample
def _mixture_log_prob(self: Any, value: Any, intermediates: Any = None) -> Any:
    mixing = self.mixing_distribution
    if not isinstance(mixing, dist.CategoricalProbs):
        return _LOG_PROB_BY_LOGITS(self, value, intermediates)
    even = remixed(self, dist.CategoricalLogits(jnp.zeros_like(mixing.probs)))
    log_probs = even.component_log_probs(value) + np.log(self.mixture_size)
    # NumPyro's way to keep derivatives of what is impossible out.
    log_probs = jnp.where(jnp.isneginf(log_probs), -jnp.inf, log_probs)
    weights = jnp.asarray(mixing.probs)
    return _mixed(log_probs, weights / weights.sum(-1, keepdims=True))


def _two_normals(x: Any, zero: Any, one: Any) -> Any:
    weights = dist.CategoricalProbs(jnp.stack([x, one - x]), validate_args=False)
    components = dist.Normal(jnp.stack([zero, one]), one, validate_args=False)
    return dist.MixtureSameFamily(weights, components, validate_args=False)


class Mend:
    """A function of NumPyro's under test: at its first call it stays, or `ours` takes its place.

    Args:
        name: of the record.
        owner: where the function is found.
        attribute: under which name.
        ours: what takes its place.
        probe: (function, x, 0, 1) -> what the function computes at x.
        exact: its first two derivatives at x = 0.
        fault: in words.
        faulty: versions in which the tests have found it.
    """

    def __init__(
        self,
        name: str,
        owner: Any,
        attribute: str,
        ours: Callable[..., Any],
        probe: Callable[..., Any],
        exact: tuple[float, float] = SOFTPLUS,
        fault: str = "log(1 + e^x) in this log-probability has wrong derivatives at logits of exactly 0.",
        faulty: frozenset[str] = FAULTY,
    ) -> None:
        self.name, self.owner, self.attribute, self.ours = name, owner, attribute, ours
        self.theirs = getattr(owner, attribute)
        self.probe, self.exact, self.fault = functools.partial(probe, self.theirs), exact, fault
        self.faulty = faulty
        self.found: tuple[float, float] | None = None
        self.right: Callable[..., Any] | None = None

        @functools.wraps(self.theirs)
        def first(*args: Any, **kwargs: Any) -> Any:
            return self.decide()(*args, **kwargs)

        setattr(owner, attribute, first)

    def decide(self) -> Callable[..., Any]:
        """Put the right function in its place, once; returns it."""
        if self.right is None:
            is_faulty = self.found is None and numpyro.__version__ in self.faulty
            self.right = self.ours if is_faulty or not self.is_right() else self.theirs
            setattr(self.owner, self.attribute, self.right)
        assert self.right is not None
        return self.right

    def is_right(self) -> bool:
        """Whether NumPyro's function has the right derivatives, by what it computes."""
        if self.found is None:
            with jax.ensure_compile_time_eval():
                # 0 and 1 are arguments: what depends on no argument would be compiled by itself here.
                both = jax.jit(jax.value_and_grad(jax.grad(self.probe)))(0.0, 0.0, 1.0)
            self.found = (float(both[0]), float(both[1]))
        return np.allclose(self.found, self.exact, rtol=1e-6)

    def record(self) -> Workaround:
        """What the test found."""
        self.is_right()
        is_applied = self.decide() is self.ours
        return Workaround(
            self.name,
            f"numpyro {numpyro.__version__}",
            self.fault,
            is_applied,
            f"They come out as {self.found}{', not' if is_applied else ', which is'} {self.exact}.",
        )


MENDS = (
    Mend(
        "bernoulli-logits",
        discrete, "binary_cross_entropy_with_logits", _bernoulli_loss,
        lambda loss, x, zero, one: loss(x, zero),
    ),
    Mend(
        "binomial-logits",
        discrete.BinomialLogits, "log_prob", _binomial_log_prob,
        lambda log_prob, x, zero, one: -log_prob(dist.BinomialLogits(x, one, validate_args=False), zero),
    ),
    Mend(
        "clamped-probabilities",
        discrete, "clamp_probs", _clamped,
        lambda clamp, x, zero, one: clamp(x),
        IDENTITY, "Probabilities of exactly 0 and 1 have no derivative in log-probabilities of events.",
    ),
    Mend(
        "mixture-weights",
        Mixture, "log_prob", _mixture_log_prob,
        lambda log_prob, x, zero, one: log_prob(_two_normals(x, zero, one), zero),
        REVIVAL, "Weights of exactly 0 have no derivative in log-probabilities of mixtures.",
    ),
)  # fmt: skip


def records() -> tuple[Workaround, ...]:
    """A record of each mend, after its test."""
    return tuple(mend.record() for mend in MENDS)
