"""Gradient strategies: how the derivative of an expectation passes through one site.

A strategy is three small functions. `draw` makes the site's value. `local` computes, at the site, the numbers
that the estimator needs from the distribution; they leave plates, scans, branches and particles as
arrays. `surrogate` turns these numbers and what lies downstream into an array that is zero in value and whose
gradient is this site's part of the estimator.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

Array = jax.Array
stop = jax.lax.stop_gradient

Kind = Literal["held", "pathwise", "partly_pathwise", "enumerated", "weighted"]
Call = Literal["replay", "replay_together", "slope", "jumps"]
_OF_KIND = ("is_pathwise", "is_partly_pathwise", "moves_value", "is_enumerated", "is_weighted")


class StrategyError(ValueError):
    """A strategy cannot serve a site soundly."""

    def __init__(self, site: str, message: str) -> None:
        super().__init__(message)
        self.site = site


@dataclasses.dataclass(frozen=True)
class Draw:
    """A site at the moment of its draw.

    Attributes:
        distribution: the distribution of one element, without `to_event`, `expand` and `mask` wrappers.
        shape: shape of the elements: batch axes (particles, time and plates are added outside), then axes
            declared by `to_event`.
        value: the drawn value, shape `shape + distribution.event_shape`.
        log_prob: log-density of each element, shape `shape`, differentiable in the distribution's parameters.
        key: the key that made the draw.
        noise: what `draw_with_noise` keeps of the noise behind the value.
    """

    distribution: dist.Distribution
    shape: tuple[int, ...]
    value: Array
    log_prob: Array
    key: Array
    noise: Any = None

    def parameter(self, name: str) -> Array:
        """A scalar-per-element parameter of the distribution, broadcast to `shape`."""
        return jnp.broadcast_to(getattr(self.distribution, name), self.shape)


@dataclasses.dataclass(frozen=True)
class Downstream:
    """What lies downstream of a site, seen element by element. Arrays broadcast against enumerated states + the site's elements.

    Attributes:
        cost: sum of the objective's terms that the element can influence, at the drawn values (no gradient).
        weight: probability of the enumerated states that the element sits in (1 without enumeration upstream).
        replay: `value -> cost` with the site's value replaced and all other noise kept (no gradient). Each element
            is replaced alone.
        replay_together: the same with all elements replaced at once. Elements of which one depends on another
            (steps of a scan whose carry hands the site's value on) are still replaced one step at a time.
        slope: `value -> (cost, derivative of each element's cost in the element's value)`, all elements replaced
            at once by floating-point values.
        jumps: of a comparison that a site decides (`_boundary.py`): its numbers -> the jump of each element's cost.
        num_replicates: size of the leading axis of independent replicates, or 1 when there is no such axis.
        state: the state that the strategy keeps for this site.
    """

    cost: Array
    weight: Array
    replay: Callable[[Array], Array]
    replay_together: Callable[[Array], Array]
    slope: Callable[[Array], tuple[Array, Array]]
    jumps: Callable[[Any], Array]
    num_replicates: int
    state: Any


class Strategy(abc.ABC):
    """Abstract: a gradient estimator for one site. A subclass defines `refuse`, and `draw`, `local`, `surrogate` as needed.

    Attributes:
        name: the string that selects it.
        kind: what becomes of the value, and who carries the gradient.

            - "held": the value is held fixed, the surrogate carries the gradient;
            - "pathwise": the value moves with the parameters and carries the gradient; there is no surrogate;
            - "partly_pathwise": the value carries a part of it, the surrogate the rest;
            - "enumerated": the site is summed over its support; there is no surrogate;
            - "weighted": the same with one state, the site's own draw, whose `log_weight` need not be its log-prob.

        calls: functions of `Downstream` that `surrogate` calls; others raise. For "replay" and "replay_together" the size is
            checked ahead. For "slope" no other sampled site may lie downstream, whose draw would jump, and jumps of the
            result in the site's value are searched for as for a pathwise site.
        is_biased: the estimator is biased; it is used only where it is named explicitly.
        evaluates_null_values: what is downstream is evaluated at values of probability 0, too. Else their part of the derivative
            is missing: it is NaN where there is one (`distributions/_null_values.py`), unless the value moves.
        num_replicates: independent runs of the whole program that the estimator needs.
    """

    name = ""
    kind: Kind = "held"
    calls: tuple[Call, ...] = ()
    is_biased = False
    evaluates_null_values = False
    num_replicates = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what would go without its checks: a misspelt `kind` or `calls`, a flag that `kind` has the say of."""
        super().__init_subclass__(**kwargs)
        if flags := [n for n in vars(cls) if n in _OF_KIND and isinstance(vars(cls)[n], bool)]:
            raise TypeError(
                f"{cls.__name__}: {flags} follow from kind. Set kind to one of {get_args(Kind)}."
            )
        kind = vars(cls).get("kind", "held")
        if isinstance(kind, str) and kind not in get_args(Kind):
            raise TypeError(f"{cls.__name__}: kind must be one of {get_args(Kind)}, got {kind!r}.")
        calls = vars(cls).get("calls", ())
        if not (isinstance(calls, tuple) and set(calls) <= set(get_args(Call))):
            raise TypeError(
                f"{cls.__name__}: calls must be a tuple of functions of Downstream, {get_args(Call)}, got {calls!r}."
            )

    @property
    def is_pathwise(self) -> bool:
        """Whether the value carries the whole gradient."""
        return self.kind == "pathwise"

    @property
    def is_partly_pathwise(self) -> bool:
        """Whether the estimate adds derivatives of the value and values of the cost, which must be of one function."""
        return self.kind == "partly_pathwise"

    @property
    def moves_value(self) -> bool:
        """Whether the value moves with the parameters at fixed noise."""
        return self.is_pathwise or self.is_partly_pathwise

    @property
    def is_enumerated(self) -> bool:
        """Whether the site is a sum over states, each with a weight; also where its own draw is the only one."""
        return self.kind in ("enumerated", "weighted")

    @property
    def is_weighted(self) -> bool:
        """Whether the site's own draw is its only state."""
        return self.kind == "weighted"

    @property
    def has_surrogate(self) -> bool:
        """Whether the class defines one."""
        return type(self).surrogate is not Strategy.surrogate

    @property
    def draws_from_law(self) -> bool:
        """Whether values are draws of the law's own sampler."""
        made = type(self)
        return made.draw is Strategy.draw and made.draw_with_noise is Strategy.draw_with_noise

    @abc.abstractmethod
    def refuse(self, distribution: dist.Distribution) -> str | None:
        """Why this strategy cannot serve an element of this distribution, or None."""

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        """Draw the site's value. The engine holds it unless `moves_value`."""
        return jnp.asarray(fn.sample(key))

    def draw_with_noise(self, fn: dist.Distribution, key: Array) -> tuple[Array, Any]:
        """Draw the site's value, and what `local` will need of the noise behind it."""
        return self.draw(fn, key), None

    def local(self, draw: Draw) -> Any:
        """Numbers needed later, a pytree of arrays with leading axes `draw.shape`."""
        return ()

    def log_weight(self, draw: Draw) -> Array:
        """Log-weight of each element's value, where `kind` is "weighted"; shape `draw.shape`."""
        return draw.log_prob

    def surrogate(self, local: Any, downstream: Downstream) -> Array:
        """Array of value zero whose gradient is the estimator's part."""
        return jnp.zeros(())

    def fixed_parameters(self, distribution: dist.Distribution) -> tuple[str, ...]:
        """Parameters of the distribution whose derivative this strategy does not deliver."""
        return ()

    def init_state(self) -> Any:
        """Initial state for one site."""
        return ()

    def update(self, local: Any, downstream: Downstream) -> Any:
        """The next state."""
        return downstream.state

    def cost(self, num_values: int | None, num_elements: int) -> str:
        """Evaluations of what lies downstream, in words (shown by `plan`)."""
        return "1"


def element(fn: dist.Distribution) -> tuple[dist.Distribution, tuple[int, ...]]:
    """The distribution of one element and the shape of the elements of a site's distribution."""
    base = fn
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    shape = tuple(fn.batch_shape) + tuple(fn.event_shape)
    return base, shape[: len(shape) - base.event_dim]


GAMMA_FAMILY = frozenset(
    "Gamma Beta Dirichlet Chi2 InverseGamma StudentT BetaProportion LogGamma "
    "NormalInverseGamma NormalInverseWishart".split()
)


@dataclasses.dataclass(frozen=True)
class Pathwise(Strategy):
    """Abstract: the distribution's own differentiable sampler."""

    allow_jumps: bool = False
    kind = "pathwise"


@dataclasses.dataclass(frozen=True)
class Reparam(Pathwise):
    """Pathwise gradient: x = g(noise, parameters), differentiate through g.

    Validity: unbiased if g and everything downstream are continuous and piecewise smooth in x. Jumps are
    searched for at trace time and refused; `allow_jumps=True` waives this check for the site.
    Reference: Kingma and Welling 2014, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082.
    """

    name = "reparam"

    def refuse(self, distribution: dist.Distribution) -> str | None:
        if has_rsample(distribution):
            return None
        fixed = sorted(set(distribution.arg_constraints) - set(distribution.reparametrized_params))
        return f"needs a sampler differentiable in every parameter, but {type(distribution).__name__} has none for {fixed}"


@dataclasses.dataclass(frozen=True)
class Implicit(Pathwise):
    """Implicit reparameterisation: dx/dtheta = -(dF/dtheta) / p(x) with F the distribution function.

    For the Gamma family (Gamma, Beta, Dirichlet, Chi2, InverseGamma, StudentT, NormalInverseGamma, NormalInverseWishart): the
    derivative that JAX's gamma sampler carries. Validity: as `Reparam`.
    Reference: Figurnov et al. 2018, arXiv:1805.08498.
    """

    name = "implicit"

    def refuse(self, distribution: dist.Distribution) -> str | None:
        base = type(distribution).__name__
        if base in GAMMA_FAMILY and has_rsample(distribution):
            return None
        return f"is implemented for {sorted(GAMMA_FAMILY)}, not for {base}"


@dataclasses.dataclass(frozen=True)
class Enum(Strategy):
    """Exact sum over a finite support: sum_v p(v) E[cost | v], all values in one vectorised run.

    Rows of a plate whose costs separate share the states (k evaluations for N rows). A chain, a site in `ppl.scan` that nothing
    depends on for longer than L <= 3 steps, is summed by a forward recursion, linear in the number of steps
    (k^(L + 1) states), where the cost is a sum over the steps. Other elements that meet in one cost are enumerated jointly
    (k^n states), up to a limit. Sites that a cost sees only through other enumerated sites are summed out one
    after the other. Validity: always exact in this site, also where a probability is exactly 0 or 1 and a parameter moves it (the
    derivative is then the one-sided one): laws given by their probabilities weigh by these, not by logarithms, which have none.

    Exact zeros under the other strategies. The derivative in a probability that is 0 holds the cost at a value that is never
    drawn, so that no function of draws alone estimates it:

        enum, mvd, importance (Bernoulli,     exact: the cost is evaluated at that value
          Categorical, Binomial; mvd: Poisson)
        reinforce and its baselines, disarm,  not served: where a probability is exactly 0 and a parameter moves it (by more than
          arm, rebar, relax                   1e-4 per unit, else it is taken for rounding), `grad` is NaN, and what `jax.grad`
                                              makes of `value` is beyond 1e20. Inside, their variance grows beyond bounds as the
                                              probability falls. Keep probabilities strictly inside, e.g. by logits
        logits                                never 0 or 1 but by rounding, where the derivative is 0 as well

    Reference: Baum and Petrie 1966 (the recursion); Obermeyer et al. 2019, arXiv:1902.03210 (plates).
    """

    name = "enum"
    kind = "enumerated"
    evaluates_null_values = True

    def local(self, draw: Draw) -> Any:
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


@dataclasses.dataclass(frozen=True)
class _Relaxed(Strategy):
    """Abstract: a value that moves with a relaxed draw, **biased**."""

    temperature: float = 0.5
    kind = "pathwise"
    is_biased = True

    def refuse(self, distribution: dist.Distribution) -> str | None:
        return _refuse_relaxed(distribution)


@dataclasses.dataclass(frozen=True)
class GumbelSoftmax(_Relaxed):
    """Relaxed sample softmax((logits + Gumbel noise) / temperature). **Biased**: the gradient is that of the relaxed program.

    For OneHotCategorical and Bernoulli sites. Reference: Jang et al. 2017, arXiv:1611.01144; Maddison et al.
    2017, arXiv:1611.00712.
    """

    name = "gumbel_softmax"

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        return _relaxed(fn, key, self.temperature)


@dataclasses.dataclass(frozen=True)
class StraightThrough(_Relaxed):
    """Hard sample forward, gradient of the relaxed sample backward. **Biased**.

    For OneHotCategorical and Bernoulli sites. Reference: Bengio et al. 2013, arXiv:1308.3432; Jang et al.
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


def has_rsample(distribution: dist.Distribution) -> bool:
    if isinstance(distribution, dist.TransformedDistribution):
        return has_rsample(element(distribution.base_dist)[0])
    return bool(distribution.has_rsample)
