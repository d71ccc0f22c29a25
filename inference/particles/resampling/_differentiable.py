"""Gradients through resampling: the ancestor indices are discrete choices, and each estimator treats them in its own way.

Terms: K particles with normalised weights W_k; ancestors A_j ~ r(. | W); log Z-hat the sum of the log-increments; sg stops
the gradient. Sites that are not drawn pathwise (`programs/_site_draws.py`) are discrete choices too, with log-probs l.

- *evidence* mode: an increment at time t becomes inc_t + sg(inc_t) (S_t - sg(S_t)), S_t the log-prob of all discrete choices
  made before it. E of the derivative is d E[log Z-hat] if S_t is complete.
- *weights* mode: a resampled particle has weight W_A / sg(W_A) / K, a scored draw multiplies its particle's weight by
  exp(l - sg(l)). The weighted particles at parameters theta near theta_0 are then an importance-weighted run made at
  theta_0, hence E[Z-hat(theta)] = Z(theta) identically, and its derivative is that of Z.

Invariant: values are those of the plain run, except under `Soft` (other weights and ancestors) and `Transport` (other
particles).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._depends import is_used
from ..population import is_key, uniform
from ._policies import Policy, ess_below, every
from ._registry import RESAMPLERS
from ._resample import Resampled, take
from ._scheme import Scheme
from ._transport import transported

Array = jax.Array
stop = jax.lax.stop_gradient


class ResamplingGradient(abc.ABC):
    """Abstract: how a derivative passes through resampling. Final: `Drop`, `Score`, `StopGradient`, `Soft`, `Transport`.

    Attributes:
        name: the string that selects it.
        is_biased: whether it is biased for every functional; then it is used only where it is named.
        in_weights: scored draws act on their particle's weight (else on the increments).
    """

    name: ClassVar[str]
    is_biased: ClassVar[bool] = False
    in_weights: ClassVar[bool] = False

    @abc.abstractmethod
    def offspring(
        self, scheme: Scheme, key: Array, particles: PyTree, log_weights: Array
    ) -> Resampled:
        """Particles after resampling; `score` is the part of S_t that the ancestors add."""

    def check(self, scheme: Scheme, policy: Policy, num_particles: int, history: str) -> None:
        """Refuse what is not sound."""
        if not scheme.is_unbiased:
            raise ValueError(
                f"smc: gradient='{self.name}' with resampling='{scheme.name}': the scheme is biased, and so are the evidence "
                "and its gradient. Use an unbiased scheme, e.g. resampling='systematic'."
            )

    def default_policy(self) -> Policy:
        """The policy where none is given."""
        return ess_below(0.5)


@dataclasses.dataclass(frozen=True)
class Drop(ResamplingGradient):
    """Ancestors count as constants. **Biased** for every functional: the derivative of their law is dropped.

    Sites that are not pathwise keep their score factor. Low variance; what the papers on variational SMC train with.
    Reference: Maddison et al. 2017, arXiv:1705.09279; Le et al. 2018, arXiv:1705.10306; Naesseth et al. 2018,
    arXiv:1705.11140.
    """

    name = "drop"
    is_biased = True

    def offspring(
        self, scheme: Scheme, key: Array, particles: PyTree, log_weights: Array
    ) -> Resampled:
        ancestors = scheme.ancestors(key, stop(log_weights)).astype(jnp.int32)
        return _resampled(particles, uniform(len(log_weights)), ancestors)


@dataclasses.dataclass(frozen=True)
class Score(ResamplingGradient):
    """The score function of the ancestors: S gains sum_j log r(A_j | W). Unbiased for d E[log Z-hat].

    For schemes that know the law of their ancestors (`Scheme.log_law`), and policies that do not look at the
    weights. Without a baseline its variance is out of all proportion for more than a few steps: `fivo` gives it one.
    Reference: Maddison et al. 2017, arXiv:1705.09279, equation 8; Le et al. 2018, arXiv:1705.10306, section 4.1.
    """

    name = "score"

    def offspring(
        self, scheme: Scheme, key: Array, particles: PyTree, log_weights: Array
    ) -> Resampled:
        ancestors = scheme.ancestors(key, stop(log_weights)).astype(jnp.int32)
        assert scheme.log_law is not None  # see `check`
        score = scheme.log_law(log_weights, ancestors)
        return _resampled(particles, uniform(len(log_weights)), ancestors, score)

    def check(self, scheme: Scheme, policy: Policy, num_particles: int, history: str) -> None:
        super().check(scheme, policy, num_particles, history)
        if scheme.log_law is None:
            known = sorted(name for name, scheme in RESAMPLERS.items() if scheme.log_law)
            raise ValueError(
                f"smc: gradient='score' needs the log-prob of the ancestors, which is not known for resampling='{scheme.name}'. "
                f"Use one of {known}, e.g. resampling='multinomial', a Scheme with log_law, or gradient='stop_gradient'."
            )
        if _reads_weights(policy, num_particles):
            raise ValueError(
                "smc: gradient='score' with a policy that looks at the weights: the decision to resample then jumps as "
                "parameters move, and the gradient of E[log Z-hat] misses jumps. Use policy=every(), every(m), window(a, b) or "
                "never(), all in inference.particles.resampling, or gradient='stop_gradient'."
            )

    def default_policy(self) -> Policy:
        return every()


@dataclasses.dataclass(frozen=True)
class StopGradient(ResamplingGradient):
    """A resampled particle has weight W_A / sg(W_A). E[Z-hat d log Z-hat] = dZ exactly: unbiased for d E[Z-hat].

    Hence d log Z-hat is consistent in K for the exact score d log Z, with the bias of a self-normalised average, O(1/K); it is
    Fisher's identity over the particles' genealogies. It is not the gradient of E[log Z-hat]. Any unbiased scheme, any policy,
    no extra cost.
    Reference: Scibior and Wood 2021, arXiv:2106.10314.
    """

    name = "stop_gradient"
    in_weights = True

    def offspring(
        self,
        scheme: Scheme,
        key: Array,
        particles: dict[str, dict[str, PyTree]],
        log_weights: Array,
    ) -> Resampled:
        ancestors = scheme.ancestors(key, stop(log_weights)).astype(jnp.int32)
        own = log_weights[ancestors]
        return _resampled(particles, uniform(len(log_weights)) + (own - stop(own)), ancestors)


@dataclasses.dataclass(frozen=True)
class Soft(ResamplingGradient):
    """Ancestors from q_k = alpha W_k + (1 - alpha) / K, weights W_A / q_A, which carry a derivative. **Biased** gradient.

    The value Z-hat stays unbiased. With alpha = 1 it is `Drop`.

    Args:
        alpha: share of the weights in the ancestors' law, in (0, 1].

    Raises:
        ValueError: `alpha` is outside of (0, 1].

    Reference: Karkus, Hsu and Lee 2018, arXiv:1805.08975, equation 5.
    """

    alpha: float = 0.5
    name = "soft"
    is_biased = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"Soft: alpha must lie in (0, 1], got {self.alpha}.")

    def offspring(
        self, scheme: Scheme, key: Array, particles: PyTree, log_weights: Array
    ) -> Resampled:
        log_q = jnp.log(self.alpha * jnp.exp(log_weights) + (1 - self.alpha) / len(log_weights))
        ancestors = scheme.ancestors(key, stop(log_q)).astype(jnp.int32)
        weights = uniform(len(log_weights)) + log_weights[ancestors] - log_q[ancestors]
        return _resampled(particles, weights, ancestors)


@dataclasses.dataclass(frozen=True)
class Transport(ResamplingGradient):
    """Resampling by entropy-regularised optimal transport: x_j <- K sum_i P_ij x_i, smooth in everything. **Biased**.

    P couples the weighted particles with equally weighted ones at the least mean of |x_i - x_j|^2 + epsilon * entropy term,
    coordinates in units of their spread. Particles are replaced by averages, so that values change too: Z-hat is biased
    (consistent as K grows and epsilon falls). The gradient is exactly that of the value at fixed noise. Real-valued particles
    only; `history="none"`. Cost: O(K^2 num_iterations) per resampling; no scheme.

    Args:
        epsilon: strength of the regularisation, > 0.
        num_iterations: Sinkhorn iterations.

    Raises:
        ValueError: `epsilon` is not positive, or `num_iterations` below 1.
        TypeError: particles hold values that cannot be averaged.

    Reference: Corenflos, Thornton, Deligiannidis and Doucet 2021, arXiv:2102.07850, sections 3 and 4.
    """

    epsilon: float = 0.5
    num_iterations: int = 100
    name = "ot"
    is_biased = True

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.num_iterations < 1:
            raise ValueError(
                f"Transport: needs epsilon > 0 and num_iterations >= 1, got {self.epsilon} and {self.num_iterations}."
            )

    def offspring(
        self, scheme: Scheme, key: Array, particles: PyTree, log_weights: Array
    ) -> Resampled:
        for path, x in jax.tree_util.tree_leaves_with_path(particles):
            if not is_key(x) and not jnp.issubdtype(x.dtype, jnp.floating):
                raise TypeError(
                    f"smc: gradient='ot' averages particles, but a value of dtype {x.dtype} moves with them "
                    f"({jax.tree_util.keystr(path)}). Use gradient='stop_gradient' for programs with discrete values."
                )
        moved = transported(particles, log_weights, self.epsilon, self.num_iterations)
        identity = jnp.arange(len(log_weights), dtype=jnp.int32)
        return Resampled(moved, uniform(len(log_weights)), identity, jnp.asarray(True))

    def check(self, scheme: Scheme, policy: Policy, num_particles: int, history: str) -> None:
        if history != "none":
            raise ValueError(
                f"smc: gradient='ot' leaves no ancestors, so history='{history}' cannot be kept. Use history='none'."
            )


GRADIENTS: dict[str, Callable[[], ResamplingGradient]] = {
    make.name: make for make in (Drop, Score, StopGradient, Soft, Transport)
}


def as_gradient(gradient: str | ResamplingGradient) -> ResamplingGradient:
    """The strategy of a name; a `ResamplingGradient` is returned as it is.

    Raises:
        ValueError: no strategy has this name.
        TypeError: neither.
    """
    if isinstance(gradient, ResamplingGradient):
        return gradient
    if gradient not in GRADIENTS:
        raise ValueError(
            f"smc: no gradient is called '{gradient}'; choose from {sorted(GRADIENTS)}."
        )
    return GRADIENTS[gradient]()


def _resampled(
    particles: dict[str, dict[str, PyTree]],
    log_weights: Array,
    ancestors: Array,
    score: Array | None = None,
) -> Resampled:
    moved = take(particles, ancestors)
    if score is None:
        return Resampled(moved, log_weights, ancestors, jnp.asarray(True))
    return Resampled(moved, log_weights, ancestors, jnp.asarray(True), score)


def _reads_weights(policy: Policy, num_particles: int) -> bool:
    """Whether the decision depends on the weights."""
    jaxpr = jax.make_jaxpr(policy)(jnp.zeros((), jnp.int32), uniform(num_particles)).jaxpr
    return is_used(jaxpr, 1)
