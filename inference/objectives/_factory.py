"""What makes objectives: `@objective` of a function, and the call that each remembers, by which it goes into a pickle."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._types import ModelFn
from .._abstract_objective import Direction
from ._objective import Objective, RecordedCall, Weighing


def recreated[F: Callable[..., Any]](factory: F) -> F:
    """Decorator of a function that makes an objective: the objective remembers the call."""
    make = checked_call(factory)

    @functools.wraps(factory)
    def remembered(*args: PyTree, **kwargs: PyTree) -> Any:
        made = make(*args, **kwargs)
        call = inspect.signature(factory, follow_wrapped=False).bind(*args, **kwargs)
        call.apply_defaults()
        recipe = RecordedCall(factory.__module__, factory.__qualname__, call.args, call.kwargs)
        return dataclasses.replace(made, recipe=recipe)

    return remembered  # pyright: ignore[reportReturnType]


def objective(
    fn: Callable[..., PyTree] | None = None,
    *,
    direction: Direction = "max",
    weighing: Weighing = "functional",
    bias: str = "",
) -> Callable[..., Any]:
    """Turn `fn(model, guide, *args) -> scalar` into a factory of objectives.

    Args:
        fn: draws with `ppl.draw(guide, *args)` and scores with `ppl.score(model, trace, *args)` or
            `model.log_density`; what it returns is estimated without bias, and so is its gradient. It may return
            `ppl.controlled(value, control, mean)`, a value with a control variate over its replicates.
        direction: whether L is maximised or minimised.
        weighing: what site weights do, see `Objective`. Say "refused" where `fn` holds a score of its own making or relies on
            normalised densities: the log-probs that it sees are then no log-densities.
        bias: what the plan says of it where value or gradient are biased for what the name promises, e.g. "of order 1/K".

    Returns:
        `make(model, guide, *, strategies=None, num_replicates=1, site_weights=None) -> Objective`.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, numpyro.distributions as dist
        >>> @inference.objective
        ... def bound(model, guide):
        ...     q = ppl.draw(guide)
        ...     return ppl.score(model, q).log_density - q.log_density
        >>> def model():
        ...     ppl.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0))
        >>> L = bound(model, guide)
        >>> float(L.value(L.init(jax.random.key(0)), jax.random.key(1)))
        0.0
    """
    if fn is None:
        return functools.partial(objective, direction=direction, weighing=weighing, bias=bias)

    @recreated
    @functools.wraps(fn)
    def make(
        model: ModelFn,
        guide: ModelFn | None = None,
        *,
        strategies: Mapping[str, object] | str | None = None,
        num_replicates: int = 1,
        check_jumps: ppl.checks.CheckJumps = True,
        site_weights: Any = None,
    ) -> Objective:
        model = ppl.as_program(model)
        guide = None if guide is None else ppl.as_program(guide)
        return Objective(
            fn, model, guide, strategies, num_replicates, direction, fn.__name__, check_jumps,
            site_weights=site_weights, weighing=weighing, bias=bias,
        )  # fmt: skip

    return make
