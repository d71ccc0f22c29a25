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
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

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
    noise: PyTree = None

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
    jumps: Callable[[PyTree], Array]
    num_replicates: int
    state: PyTree


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
        serves_null_values: the derivative is right where a probability is exactly 0 and a parameter moves it, since what is
            downstream is evaluated at values of probability 0, too. Else it is NaN there (`distributions/_null_values.py`).
        num_replicates: independent runs of the whole program that the estimator needs.
    """

    name = ""
    kind: Kind = "held"
    calls: tuple[Call, ...] = ()
    is_biased = False
    serves_null_values = False
    num_replicates = 1

    def __init_subclass__(cls, **kwargs: PyTree) -> None:
        """Refuse what would go without its checks: a misspelt `kind` or `calls`, a flag that `kind` has the say of."""
        super().__init_subclass__(**kwargs)
        if flags := [n for n in vars(cls) if n in _OF_KIND and isinstance(vars(cls)[n], bool)]:
            raise TypeError(
                f"{cls.__name__}: {flags} follow from kind. Set kind to one of {get_args(Kind)}."
            )
        kind = vars(cls).get("kind", "held")
        if isinstance(kind, str) and kind not in get_args(Kind):
            raise TypeError(
                f"{cls.__name__}: kind must be one of {get_args(Kind)}, got {kind!r}. Correct the attribute."
            )
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

    def draw_with_noise(self, fn: dist.Distribution, key: Array) -> tuple[Array, None]:
        """Draw the site's value, and what `local` will need of the noise behind it."""
        return self.draw(fn, key), None

    def local(self, draw: Draw) -> PyTree:
        """Numbers needed later, a pytree of arrays with leading axes `draw.shape`."""
        return ()

    def log_weight(self, draw: Draw) -> Array:
        """Log-weight of each element's value, where `kind` is "weighted"; shape `draw.shape`."""
        return draw.log_prob

    def surrogate(self, local: PyTree, downstream: Downstream) -> Array:
        """Array of value zero whose gradient is the estimator's part."""
        return jnp.zeros(())

    def fixed_parameters(self, distribution: dist.Distribution) -> tuple[str, ...]:
        """Parameters of the distribution whose derivative this strategy does not deliver."""
        return ()

    def init_state(self) -> PyTree:
        """Initial state for one site."""
        return ()

    def update(self, local: PyTree, downstream: Downstream) -> PyTree:
        """The next state."""
        return downstream.state

    def cost(self, num_values: int | None, num_elements: int) -> str:
        """Evaluations of what lies downstream, in words (shown by `plan`)."""
        return "1"


def element(fn: dist.Distribution) -> tuple[dist.Distribution, tuple[int, ...]]:
    """The distribution of one element and the shape of the elements of a site's distribution.

    Args:
        fn: the law of a site, as its statement has it.
    """
    base = fn
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    shape = tuple(fn.batch_shape) + tuple(fn.event_shape)
    return base, shape[: len(shape) - base.event_dim]
