"""What `fit` trains: an estimate of a number and of its gradient."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Literal

import jax

from .. import ppl
from ..ppl.language import joined

Array = jax.Array
Direction = Literal["max", "min"]


class AbstractObjective(abc.ABC):
    """An objective that `inference.fit` can train; `Objective` is the one made of programs.

    A class of your own sets the attributes, defines `init` and `step`, and overrides what else it has: state that lives from
    step to step (chains, a memory, baselines), plates that minibatches thin out, a report by site for `fit` to locate a number
    that is not finite.

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

    @abc.abstractmethod
    def init(self, key: Any, *args: Any) -> ppl.Params:
        """Initial parameters: name -> unconstrained arrays.

        Args:
            key: PRNG key of either kind.
            args: the data, as `fit` has them.
        """

    @abc.abstractmethod
    def step(self, params: Any, state: Any, key: Any, *args: Any) -> tuple[Array, Any, Any]:
        """Value, gradient and next state: pure and traceable.

        Args:
            params: as `init` gives them.
            state: of `init_state`, or of the step before.
            key: PRNG key of either kind.
            args: the data.
        """

    def init_state(self, params: Any, key: Any, *args: Any) -> Any:
        """The state before the first step, a pytree.

        Args:
            params: as `init` gives them.
            key: PRNG key of either kind.
            args: the data.
        """
        return {}

    def value_and_grad(self, params: Any, key: Any, *args: Any, **kwargs: Any) -> tuple[Array, Any]:
        """One estimate of the value and of its gradient, with a fresh state.

        Args:
            params: as `init` gives them.
            key: PRNG key of either kind.
            args: the data.
            kwargs: those by keyword.
        """
        args = joined(args, kwargs)
        value, grads, _ = self.step(params, self.init_state(params, key, *args), key, *args)
        return value, grads

    def value(self, params: Any, key: Any, *args: Any, **kwargs: Any) -> Array:
        """One estimate of the value.

        Args:
            params: as `init` gives them.
            key: PRNG key of either kind.
            args: the data.
            kwargs: those by keyword.
        """
        return self.value_and_grad(params, key, *joined(args, kwargs))[0]

    def grad(self, params: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        """One estimate of the gradient in `params`.

        Args:
            params: as `init` gives them.
            key: PRNG key of either kind.
            args: the data.
            kwargs: those by keyword.
        """
        return self.value_and_grad(params, key, *joined(args, kwargs))[1]

    def label(self, *args: Any) -> str:
        """What `value` is, in words.

        Args:
            args: the data.
        """
        return self.name

    def plate_sizes(self, *args: Any) -> dict[str, int]:
        """Plates with the number of rows that they have under these arguments.

        Args:
            args: the data.
        """
        return {}

    def with_plate_sizes(self, sizes: Mapping[str, float]) -> AbstractObjective:
        """The same objective for minibatches: plate `name` stands for `sizes[name]` rows.

        Args:
            sizes: plate name -> number of rows.

        Raises:
            TypeError: it has no plates.
        """
        raise TypeError(
            f"{self.name}: plate sizes {dict(sizes)} are given, but {type(self).__name__} has no plates to scale. Define "
            "with_plate_sizes, or train without minibatches."
        )

    def verdict(self, result: Any, key: Any) -> str | None:
        """What is wrong with what was trained, which `fit` warns of after 1,000 steps or more; None if nothing is known to be.

        Args:
            result: the `Fit`, of a single run.
            key: PRNG key of either kind.
        """
        return None

    def verdicts(self, result: Any, key: Any) -> list[str | None]:
        """What is wrong with each seed of a `Fit` with several: `verdict`, one after the other, with keys of their own.

        Args:
            result: the `Fit`.
            key: PRNG key of either kind.
        """
        keys = jax.random.split(key, result.num_seeds)
        return [self.verdict(result.seed(i), key) for i, key in enumerate(keys)]

    def site_report(self, params: Any, key: Any, *args: Any) -> dict[str, dict[str, Array]]:
        """Parts of one estimate, name -> {"log_prob", "value"}, among which `fit` finds the first that is not finite.

        Args:
            params: as `init` gives them.
            key: PRNG key of either kind.
            args: the data.
        """
        return {}
