"""An optimiser at full pace that notes when the value has settled, so that iterates can be averaged from there on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._settling import MAX_STEPS, Rule, SettlingState, noticed, start

if TYPE_CHECKING:
    import optax

Array = jax.Array


class WatchingState(NamedTuple):
    """State of the optimiser, and what was seen of the run."""

    inner: PyTree
    seen: SettlingState


def watching(
    optimizer: optax.GradientTransformation, num_steps: int | None
) -> optax.GradientTransformationExtraArgs:
    """The optimiser's own updates; its state knows when the value has settled, by the rule of `settling`."""
    import optax

    optimizer = optax.with_extra_args_support(optimizer)
    # A fixed number of steps is no reason to take the last ones for stationary.
    most = MAX_STEPS if num_steps is None else num_steps + 1

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree) -> PyTree:
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        loss = jnp.asarray(extra["value"], float)
        return updates, WatchingState(inner, noticed(state.seen, loss, Rule(max_steps=most)))

    init = lambda params: WatchingState(optimizer.init(params), start(()))
    return optax.GradientTransformationExtraArgs(init, update)


def settled_at(opt_state: object) -> Array:
    """The step at which the value had settled; 0 before."""
    is_one = lambda x: isinstance(x, WatchingState)
    (state,) = (x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x))
    return state.seen.settled_at
