"""What `fit` trains: an estimate of a number and of its gradient; and weighted sums of such."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from numpyro.distributions.constraints import Constraint
from numpyro.infer.autoguide import AutoGuide

from .. import ppl
from ..ppl._compat import typed_key
from ..ppl._show import shown
from ..ppl._types import Key
from ..ppl.language import joined
from ._sums import SumPlan, common_of, factor_of, written

Array = jax.Array
Direction = Literal["max", "min"]
_FIRST_STATE = 2**32 - 1  # no number that a split of the step's key comes to


class AbstractObjective(abc.ABC):
    """An objective that `inference.fit` can train; `Objective` is the one made of programs.

    Objectives are added, subtracted and multiplied by numbers: `elbo(model, guide) - 0.1 * forward_kl(model, guide)`.

    A class of your own sets the attributes, defines `init` and `step`, and overrides what else it has: state that lives from
    step to step (chains, a memory, baselines), plates that minibatches thin out, a report by site for `fit` to locate a number
    that is not finite. Its methods take `params` as `init` gives them; a PRNG key of either kind; the `state` of `init_state` or
    of the step before; and the data, as `fit` has them.

    Attributes:
        name: shown in reports.
        direction: "max" or "min", of `value`.
        model: the generative program whose parameters are trained, or None; `Fit.model` binds them.
        guide: likewise.

    Validity: `fit` believes that the gradient of `step` is what is wanted; nothing is checked.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from lapilli import inference, ppl
        >>> class Bowl(inference.AbstractObjective):
        ...     name, direction, model, guide = "bowl", "min", None, None
        ...     def init(self, key, *args):
        ...         return ppl.Params({"x": jnp.float32(1.0)})
        ...     def step(self, params, state, key, *args):
        ...         value, grads = jax.value_and_grad(lambda p: p["x"] ** 2)(params)
        ...         return value, grads, state
        >>> fit = inference.fit(Bowl(), optax.sgd(0.5), (), num_steps=1, key=jax.random.key(0), progress=False)
        >>> float(fit.params["x"])
        0.0
    """

    name: str
    direction: Direction
    model: Any
    guide: Any

    @property
    def parts(self) -> Sequence[AbstractObjective]:
        """The objectives that it is made of: terms of a sum, players of a game; none of one that is its own."""
        return ()

    @abc.abstractmethod
    def init(self, key: Key, *args: PyTree) -> ppl.Params:
        """Initial parameters: name -> unconstrained arrays."""

    @abc.abstractmethod
    def step(
        self, params: PyTree, state: PyTree, key: Key, *args: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        """Value, gradient and next state: pure and traceable."""

    def init_state(self, params: PyTree, key: Key, *args: PyTree) -> PyTree:
        """The state before the first step, a pytree."""
        return {}

    def value_and_grad(
        self, params: ppl.Params, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, ppl.Params]:
        """One estimate of the value and of its gradient, with a fresh state."""
        args = joined(args, kwargs)
        value, grads, _ = self.step(params, self._first_state(params, key, args), key, *args)
        return value, grads

    def _first_state(self, params: PyTree, key: Key, args: tuple) -> PyTree:
        """A fresh state for one step with `key`, of noise that the step does not have."""
        return self.init_state(params, jax.random.fold_in(typed_key(key), _FIRST_STATE), *args)

    def value(self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree) -> Array:
        """One estimate of the value."""
        return self.value_and_grad(params, key, *joined(args, kwargs))[0]

    def grad(self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """One estimate of the gradient in `params`."""
        return self.value_and_grad(params, key, *joined(args, kwargs))[1]

    def label(self, *args: PyTree) -> str:
        """What `value` is, in words."""
        return self.name

    def plate_sizes(self, *args: PyTree) -> dict[str, int]:
        """Plates with the number of rows that they have under these arguments."""
        return {}

    def with_plate_sizes(self, sizes: Mapping[str, float]) -> AbstractObjective:
        """This objective for minibatches: plate `name` stands for `sizes[name]` rows.

        Args:
            sizes: plate name -> number of rows.

        Raises:
            TypeError: it has no plates.
        """
        raise TypeError(
            f"{self.name}: plate sizes {dict(sizes)} are given, but {type(self).__name__} has no plates to scale. Define "
            "with_plate_sizes, or train without minibatches."
        )

    def verdict(self, result: object, key: Key) -> str | None:
        """What is wrong with what was trained, which `fit` warns of after 1,000 steps or more; None if nothing is known to be.

        Args:
            result: the `Fit`, of a single run.
            key: PRNG key of either kind.
        """
        return None

    def verdicts(self, result: Any, key: Key) -> list[str | None]:
        """What is wrong with each seed of a `Fit` with several: `verdict`, one after the other, with keys of their own.

        Args:
            result: the `Fit`.
            key: PRNG key of either kind.
        """
        keys = jax.random.split(key, result.num_seeds)
        return [self.verdict(result.seed(i), key) for i, key in enumerate(keys)]

    def site_report(self, params: PyTree, key: Key, *args: PyTree) -> dict[str, dict[str, Array]]:
        """Parts of one estimate, name -> {"log_prob", "value"}, among which `fit` finds the first that is not finite."""
        return {}

    __array_ufunc__ = None  # numbers of NumPy leave the arithmetic to the methods below

    def __mul__(self, factor: PyTree) -> ObjectiveSum:
        return ObjectiveSum(tuple((factor_of(factor) * a, part) for a, part in _terms(self)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> ObjectiveSum:
        return self * (1 / factor_of(divisor))

    def __neg__(self) -> ObjectiveSum:
        return self * -1.0

    def __add__(self, other: object) -> ObjectiveSum:
        if not isinstance(other, AbstractObjective):
            raise TypeError(
                f"{self.name}: an objective is added to an objective, and {other!r} is {type(other).__name__}. A number that "
                "does not depend on parameters trains nothing: leave it out, or multiply by it."
            )
        return ObjectiveSum((*_terms(self), *_terms(other)))

    def __radd__(self, other: object) -> AbstractObjective:
        # sum(...) begins with 0
        return self if isinstance(other, int) and other == 0 else self.__add__(other)

    def __sub__(self, other: AbstractObjective) -> ObjectiveSum:
        return self + (-other if isinstance(other, AbstractObjective) else other)


class CompositeObjective(AbstractObjective):
    """An objective made of its `parts`: each has a state and noise of its own, and parameters of one name are one parameter."""

    @property
    def model(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of all parts which have one; None if there are two, or none."""
        return common_of([part.model for part in self.parts])

    @property
    def guide(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Likewise."""
        return common_of([part.guide for part in self.parts])

    def init(self, key: Key, *args: PyTree) -> ppl.Params:
        """Initial parameters of all parts; where two parts have one, those of the first."""
        return common_params(self.name, self.parts, key, args)

    def init_state(self, params: ppl.Params, key: Key, *args: PyTree) -> tuple[PyTree, ...]:
        """The states of the parts."""
        keys = jax.random.split(key, len(self.parts))
        return tuple(
            part.init_state(params, k, *args) for part, k in zip(self.parts, keys, strict=True)
        )

    def _steps(
        self, params: ppl.Params, states: tuple[PyTree, ...], key: Key, args: tuple
    ) -> list[tuple[Array, PyTree, PyTree]]:
        """A step of each part."""
        keys = jax.random.split(key, len(self.parts))
        return [
            part.step(params, s, k, *args)
            for part, s, k in zip(self.parts, states, keys, strict=True)
        ]

    def plate_sizes(self, *args: PyTree) -> dict[str, int]:
        """Plates of all parts; of one name they have one number of rows, since the arguments are the same."""
        found: dict[str, int] = {}
        for part in self.parts:
            found |= part.plate_sizes(*args)
        return found


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class ObjectiveSum(CompositeObjective):
    """sum_i a_i L_i, an objective made by arithmetic on objectives.

    It is maximised if all its terms gain by that: L_i with direction "max" and a_i > 0, or "min" and a_i < 0; minimised if all
    gain by that. Parameters of one name are one parameter. Each term runs with noise of its own.

    Attributes:
        terms: pairs of a_i and L_i.

    Raises:
        ValueError: the terms pull value in two directions; a factor is zero or not finite.
        TypeError: a factor is no number.

    Validity: value and gradient are unbiased if those of the terms are, since expectation is linear.
    """

    terms: tuple[tuple[float, AbstractObjective], ...]

    def __post_init__(self) -> None:
        wanted = [
            (part.direction == "max") == (a > 0) for a, part in self.terms
        ]  # does it gain by a rise of the sum?
        if len(set(wanted)) > 1:
            raise ValueError(
                f"Objective '{self.name}': "
                + ", ".join(f"{p.name} is to be {p.direction}imised" for _, p in self.terms)
                + ", and as they are added, some gain by a rise of the sum and others by its fall. Subtract those of the other "
                "direction, e.g. elbo - 0.1 * forward_kl."
            )

    def _facts(self) -> dict[str, PyTree]:
        return {
            "name": f"{self.name}, {self.direction}imised",
            "terms": {f"{a:g} x": repr(part.name) for a, part in self.terms},
        }

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The names of the terms, with their factors."""
        return written([(a, part.name) for a, part in self.terms])

    @property
    def direction(self) -> Direction:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the sum is maximised or minimised."""
        a, part = self.terms[0]
        return "max" if (part.direction == "max") == (a > 0) else "min"

    @property
    def parts(self) -> Sequence[AbstractObjective]:
        """The terms without their factors."""
        return tuple(part for _, part in self.terms)

    def label(self, *args: PyTree) -> str:
        """What `value` is, in words."""
        return written([(a, part.label(*args)) for a, part in self.terms])

    def step(
        self, params: ppl.Params, state: tuple[PyTree, ...], key: Key, *args: PyTree
    ) -> tuple[Array, PyTree, tuple[PyTree, ...]]:
        """Value, gradient and next states."""
        steps = self._steps(params, state, key, args)
        factors = [a for a, _ in self.terms]
        total = lambda *parts: sum(a * x for a, x in zip(factors, parts, strict=True))
        value = total(*(value for value, _, _ in steps))
        grads = jax.tree.map(total, *(grads for _, grads, _ in steps))
        return value, grads, tuple(state for _, _, state in steps)  # type: ignore[return-value]

    def plan(self, params: ppl.Params, *args: PyTree) -> SumPlan:
        """What each term will do: its `Objective.plan`, with all of its checks, and whether it is biased."""
        plans = [getattr(part, "plan", None) for _, part in self.terms]
        return SumPlan(
            tuple(
                (a, part.name, plan and plan(params, *args))
                for (a, part), plan in zip(self.terms, plans, strict=True)
            )
        )

    def with_plate_sizes(self, sizes: Mapping[str, float]) -> ObjectiveSum:
        """This sum for minibatches: each of its terms must have each of the plates."""
        return ObjectiveSum(tuple((a, part.with_plate_sizes(sizes)) for a, part in self.terms))

    def verdict(self, result: object, key: Key) -> str | None:
        """What the terms find wrong."""
        found = [part.verdict(result, key) for _, part in self.terms]
        return "\n".join(text for text in found if text is not None) or None

    def site_report(self, params: PyTree, key: Key, *args: PyTree) -> dict[str, dict[str, Array]]:
        """The reports of all terms, with the number and the name of the term in front of each site."""
        return {
            f"term {number}, {part.name}: {name}": row
            for number, (_, part) in enumerate(self.terms, 1)
            for name, row in part.site_report(params, key, *args).items()
        }


def common_params(
    name: str, parts: Sequence[AbstractObjective], key: Key, args: tuple
) -> ppl.Params:
    """Initial parameters of all parts of an objective; where two parts have one, those of the first."""
    values: dict[str, PyTree] = {}
    constraints: dict[str, Constraint] = {}
    for part in parts:
        own = part.init(key, *args)
        values = {**own, **values}
        for param in own:
            first, other = (jax.tree.map(jnp.shape, x[param]) for x in (values, own))
            if first != other:
                raise ValueError(
                    f"Objective '{name}': parameter '{param}' has shapes {first} in one part and {other} in {part.name}; "
                    "parameters of one name are one. Rename it in one of the programs."
                )
        constraints = {**getattr(own, "constraints", {}), **constraints}
    return ppl.Params(values, constraints)


def guide_fn(objective: object) -> Any:
    """The function that an objective's guide was made of, e.g. an autoguide; None where it has no guide."""
    return getattr(getattr(objective, "guide", None), "fn", None)


def is_guide_new(objective: object) -> bool:
    """Whether an objective's guide is an autoguide that has not met its model."""
    guide = guide_fn(objective)
    return isinstance(guide, AutoGuide) and guide.prototype_trace is None


def _terms(objective: AbstractObjective) -> tuple[tuple[float, AbstractObjective], ...]:
    """Factor and objective of each term of a sum; an objective that is none is its own only term."""
    return objective.terms if isinstance(objective, ObjectiveSum) else ((1.0, objective),)
