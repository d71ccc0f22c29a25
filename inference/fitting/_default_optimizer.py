"""The optimiser that fit chooses, its pace for a guide of its own; and what is warned of one that was given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...ppl._types import ParamMap
from .._abstract_objective import AbstractObjective, guide_fn
from .starts import AutoWhitenedNormal
from .stationarity import MOST_NATS
from .training import leaf_names, memory_of

if TYPE_CHECKING:
    import optax

ARRAY_RATE, MODULE_RATE = 0.02, 0.001  # of Adam
RATES = f"Adam, {ARRAY_RATE} for arrays, {MODULE_RATE} for the weights of modules"
TRIAL = 1000  # steps: nobody takes a shorter run under a guide of their own for a posterior
LEAST_MEMORY = 99  # gradients: of 100, widths are off by less than 1 %


def default_optimizer(
    params: ParamMap,
    num_steps: int | None,
    parts: Mapping[str, float] | None = None,
    fixed: Collection[str] = (),
) -> optax.GradientTransformation:
    """Adam: faster for arrays than for the weights of modules; slowed down to a halt over `num_steps` if these are known.

    `parts` of these rates are for the parameters that it names; those that are fixed have none, and no state.
    """
    import optax

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adam(), _cosine(rate)) if num_steps else optax.adam(rate)

    base = lambda n: ARRAY_RATE if hasattr(params[n], "dtype") else MODULE_RATE
    parts = {n: (parts or {}).get(n, 1.0) for n in params} | dict.fromkeys(fixed, 0.0)
    rates = [base(n) * parts[n] for n in leaf_names(params)]
    labels = jax.tree.unflatten(jax.tree.structure(params), rates)
    of = lambda rate: adam(rate) if rate else optax.set_to_zero()
    return optax.partition({rate: of(rate) for rate in set(rates)}, labels)


def _cosine(rate: float) -> optax.GradientTransformation:
    """Descent at `optax.cosine_decay_schedule` of a length that the update is told: runs of any length are one program."""
    import optax

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        num_steps = extra["num_steps"]
        at = jnp.minimum(jnp.asarray(state.count, float), num_steps)
        step = -rate * 0.5 * (1 + jnp.cos(jnp.pi * at / num_steps))
        count = optax.safe_increment(state.count)
        return jax.tree.map(lambda u: step.astype(u.dtype) * u, updates), state._replace(
            count=count
        )

    init = lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
    return optax.GradientTransformationExtraArgs(init, update)


def fixed_of(objective: AbstractObjective) -> tuple[str, ...]:
    """Parameters of a chosen guide that no gradient changes."""
    guide = guide_fn(objective)
    return guide.fixed if isinstance(guide, AutoWhitenedNormal) else ()


def rule_of(objective: AbstractObjective, *, has_minibatches: bool) -> dict[str, PyTree]:
    """Options of `settling` for an objective that was chosen: its bound is in nats of a posterior, or its guide has its units."""
    guide = guide_fn(objective)
    is_whitened = isinstance(guide, AutoWhitenedNormal)
    if has_minibatches:
        return {"watched": guide.trained[:1], "by": "gradients"} if is_whitened else {}
    return {"most": MOST_NATS} | ({"watched": guide.trained} if is_whitened else {})


def slower(objective: AbstractObjective, share: float) -> dict[str, float]:
    """Parameter -> part of the rate, for a guide that begins near its end and sees a share of the rows in each step.

    Noise of batches is sqrt(1 / share) times the gradient of a place that is one width off. That of scales it hits through the
    noise of each draw, which no epoch averages out.
    """
    guide = guide_fn(objective)
    if not isinstance(guide, AutoWhitenedNormal):
        return {}
    loc, scale = guide.trained
    return {loc: math.sqrt(share), scale: share}


def warn_of_short_memory(
    optimizer: Any, objective: AbstractObjective, params: ParamMap, num_steps: int | None
) -> None:
    """Warn of an optimiser under which the noise of a guide's gradient shifts where the parameters come to rest."""
    if getattr(objective, "guide", None) is None or (num_steps is not None and num_steps < TRIAL):
        return
    groups = optimizer.values() if isinstance(optimizer, Mapping) else [optimizer]
    trained = [group for group in groups if not isinstance(group, str)]
    memory = min((memory_of(group, params) for group in trained), default=math.inf)
    if memory < LEAST_MEMORY:
        warnings.warn(
            f"fit: argument 'optimizer' divides gradients by the root mean square of some {memory:.0f} of them. Under noise it "
            "comes to rest beside the optimum, at every learning rate: for a normal posterior at widths 7 % too large, if these "
            "are ten. Give it a longer memory, e.g. optax.adam(rate) or optax.rmsprop(rate, decay=0.999).",
            stacklevel=5,  # the line that called fit
        )
