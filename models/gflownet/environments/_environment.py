"""Environments: how an object is built, one action at a time, and what it is worth.

An environment is a pointed directed acyclic graph given by functions of one state. Two kinds:

- of fixed length (`stops` false): every object is complete after exactly `num_steps` actions (sets of k items, strings);
- with a stop action (`stops` true): every state that `can_stop` is an object, which the extra action `num_actions` completes
  (grids, graphs); all states are, unless the environment says otherwise.
  The object then keeps taking the stop action, with probability one, until the fixed number of steps is over: padding that
  adds nothing to any density, and needs no masks.

A `Position` is a state and whether it is complete; the functions below walk over positions.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ....ppl._checks import log_number

EXCLUDED = -1e30  # logit of an impossible action; -inf would make derivatives NaN


class Environment(abc.ABC):
    """How objects are built. All methods are for one state, a pytree of arrays of fixed shapes, and are mapped over states.

    An action leads from a state to one child, and from a child back to one parent: (child, action) determines the parent, and
    `undo(step(s, a), a)` is s. Graphs whose actions do not (isomorphic parents) need other actions.

    Attributes:
        num_actions: A, the number of actions, the stop action not counted.
        num_steps: the largest number of actions of a trajectory, the stop action not counted; with `stops` false every
            trajectory has as many.
        stops: whether objects are completed by a stop action, see `can_stop`.
        rewards_prefixes: whether `log_reward` is meaningful for incomplete objects, as forward-looking flows need.
    """

    num_actions: int
    num_steps: int
    stops: bool = False
    rewards_prefixes: bool = True

    @abc.abstractmethod
    def start(self) -> PyTree:
        """The empty object s_0."""

    @abc.abstractmethod
    def observe(self, state: PyTree) -> Float[Array, " features"]:
        """What a network sees."""

    @abc.abstractmethod
    def legal(self, state: PyTree) -> Bool[Array, " actions"]:
        """Which actions are possible."""

    @abc.abstractmethod
    def removable(self, state: PyTree) -> Bool[Array, " actions"]:
        """Which actions can have been the last one; none for the start."""

    @abc.abstractmethod
    def step(self, state: PyTree, action: Int[Array, ""]) -> PyTree:
        """The child; what an illegal action gives is never used."""

    @abc.abstractmethod
    def undo(self, state: PyTree, action: Int[Array, ""]) -> Array:
        """The parent."""

    @abc.abstractmethod
    def log_reward(self, state: PyTree) -> Float[Array, ""]:
        """Log R of a complete object, nats; with `rewards_prefixes` also of an incomplete one."""

    def can_stop(self, state: Array) -> Bool[Array, ""]:
        """Whether a state is an object, with `stops`: all are, unless this is overridden. Others need a legal action."""
        return jnp.ones((), bool)

    @property
    def num_choices(self) -> int:
        """Number of actions, the stop action included."""
        return self.num_actions + self.stops

    @property
    def length(self) -> int:
        """T, the steps of a trajectory with its padding."""
        return self.num_steps + self.stops


class Position(NamedTuple):
    """Where a trajectory stands; `is_done` stays false in environments of fixed length.

    Attributes:
        state: of the environment, a tree of arrays.
        is_done: whether the trajectory has ended, boolean.
    """

    state: PyTree
    is_done: Array


def start(env: Environment) -> Position:
    """Where every trajectory begins."""
    return Position(jax.tree.map(jnp.asarray, env.start()), jnp.zeros((), bool))


def complete(env: Environment, state: PyTree) -> Position:
    """The last position of a trajectory to this object."""
    return Position(state, jnp.asarray(env.stops))


def legal(env: Environment, position: Position) -> Bool[Array, " choices"]:
    """Possible actions; only the stop action for what is complete."""
    mask = env.legal(position.state)
    if not env.stops:
        return mask
    return jnp.append(mask & ~position.is_done, position.is_done | env.can_stop(position.state))


def removable(env: Environment, position: Position) -> Bool[Array, " choices"]:
    """Possible last actions; the stop action alone for what is complete, and as padding at the start."""
    mask = env.removable(position.state)
    if not env.stops:
        return mask
    mask = mask & ~position.is_done
    return jnp.append(mask, ~mask.any())


def every_state_is_object(env: Environment) -> bool:
    """Whether all states may stop."""
    return env.stops and type(env).can_stop is Environment.can_stop


def advance(env: Environment, position: Position, action: Array) -> Position:
    """The position after an action."""
    if not env.stops:
        return Position(env.step(position.state, action), position.is_done)
    is_done = position.is_done | (action == env.num_actions)
    moved = env.step(position.state, action)
    return Position(_where(is_done, position.state, moved), is_done)


def retreat(env: Environment, position: Position, action: Array) -> Position:
    """The position before an action."""
    if not env.stops:
        return Position(env.undo(position.state, action), position.is_done)
    is_stop = action == env.num_actions
    moved = env.undo(position.state, action)
    return Position(_where(is_stop, position.state, moved), jnp.zeros((), bool))


def log_softmax(logits: Any, mask: Bool[Array, " choices"]) -> Float[Array, " choices"]:
    """Log-probs over possible actions."""
    return jax.nn.log_softmax(jnp.where(mask, logits, EXCLUDED))


def walk(env: Environment, actions: Int[Array, " steps"]) -> Position:
    """The positions s_0, ..., s_T along given actions, stacked."""

    def step(position: Position, action: Array) -> tuple[Position, Position]:
        position = advance(env, position, action)
        return position, position

    first = start(env)
    _, rest = jax.lax.scan(step, first, actions)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def check(env: Environment, key: Array, *, num_trajectories: int = 64) -> None:
    """Random trajectories on which forward and backward steps must be each other's inverse.

    Args:
        env: the environment.
        key: PRNG key.
        num_trajectories: how many are tried.

    Raises:
        ValueError: a wrong shape; an action whose `undo` does not lead back, or that is not `removable` afterwards; a start with
            a removable action; a trajectory without a legal action before its end, or with one after it; one that ends where it
            cannot stop; a log-reward that is not a finite number.
    """
    name, first = type(env).__name__, start(env)
    for called in ("legal", "removable"):
        shape = jax.eval_shape(getattr(env, called), first.state)
        if (shape.shape, shape.dtype) != ((env.num_actions,), np.dtype(bool)):
            raise ValueError(
                f"{name}.{called} returns {shape.dtype}{list(shape.shape)}, expected bool[{env.num_actions}], one entry "
                "for each of the num_actions actions (without the stop action)."
            )
    may_stop = jax.eval_shape(env.can_stop, first.state)
    if (may_stop.shape, may_stop.dtype) != ((), np.dtype(bool)):
        raise ValueError(
            f"{name}.can_stop returns {may_stop.dtype}{list(may_stop.shape)}, expected one bool for one state."
        )
    for called in ("step", "undo"):
        found = jax.eval_shape(getattr(env, called), first.state, jnp.zeros((), jnp.int32))
        if _shapes(found) != _shapes(first.state):
            raise ValueError(
                f"{name}.{called} returns {_shapes(found)}, but states are {_shapes(first.state)}; keep "
                "shapes and dtypes."
            )
    if bool(env.removable(first.state).any()):
        raise ValueError(
            f"{name}.removable is true for action(s) {np.flatnonzero(env.removable(first.state)).tolist()} at the start, which "
            "has no parent. Return all false there."
        )

    def explore(key: Array) -> PyTree:
        def step(state: PyTree, key: Array) -> PyTree:
            mask = env.legal(state)
            action = jax.random.categorical(key, jnp.where(mask, 0.0, EXCLUDED))
            child = env.step(state, action)
            state_of = lambda new: _where(mask.any(), new, state)
            back = jax.tree.map(lambda a, b: jnp.all(a == b), env.undo(child, action), state)
            is_back = jnp.stack(jax.tree.leaves(back)).all() | ~mask.any()
            is_paired = env.removable(child)[action] | ~mask.any()
            child = state_of(child)
            went_on = mask.any() | (env.can_stop(state) if env.stops else False)
            has_reward = env.can_stop(child) if env.stops else jnp.ones((), bool)
            found = (action, went_on, is_back, is_paired)
            return child, (
                *found,
                jnp.where(has_reward | env.rewards_prefixes, env.log_reward(child), 0.0),
            )

        last, found = jax.lax.scan(step, first.state, jax.random.split(key, env.num_steps))
        is_object = env.can_stop(last) if env.stops else jnp.ones((), bool)
        reward = log_number(f"{name}.log_reward", env.log_reward(last))
        return env.legal(last).any(), is_object, reward, found

    goes_on, is_object, last, (actions, went_on, is_back, is_paired, log_reward) = jax.jit(
        jax.vmap(explore)
    )(jax.random.split(key, num_trajectories))
    if jnp.shape(last) != (num_trajectories,):
        raise ValueError(
            f"{name}.log_reward returns shape {jnp.shape(last)[1:]}, expected one number for one state."
        )
    for what, ok in (
        ("undo(step(s, a), a) is not s, so forward and backward policies would not meet", is_back),
        (
            "a is not removable in step(s, a), so that P_B would be zero on a possible step",
            is_paired,
        ),
    ):
        if not bool(ok.all()):
            at = tuple(int(i) for i in np.argwhere(~np.asarray(ok))[0])
            raise ValueError(
                f"{name}: after step {at[1]} with action a = {int(actions[at])}, {what}. Make undo and removable the inverse of "
                "step and legal."
            )
    if bool(goes_on.any()):
        raise ValueError(
            f"{name}: actions are legal after num_steps={env.num_steps} steps; raise num_steps, or let legal be "
            "all false at the end."
        )
    went_on = np.concatenate([went_on, is_object[:, None]], 1)
    if not went_on.all():
        why = (
            "nor can it stop"
            if env.stops
            else "but without a stop action all objects have one length"
        )
        raise ValueError(
            f"{name}: a trajectory has no legal action after {int(np.argwhere(~went_on)[0][1])} of {env.num_steps} steps, {why}. "
            f"{'Let can_stop be true there' if env.stops else 'Set stops=True'}, or mend legal."
        )
    rewards = log_reward if env.rewards_prefixes or env.stops else last
    if not bool(jnp.isfinite(rewards).all()):
        raise ValueError(
            f"{name}.log_reward is not finite ({np.asarray(rewards)[~np.isfinite(rewards)][0]}); rewards must be positive. "
            "Bound R from below, and set rewards_prefixes=False where incomplete objects have none."
        )


def _where(condition: Array, one: object, other: object) -> Array:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _shapes(tree: PyTree) -> list[str]:
    leaves = jax.tree.leaves(jax.tree.map(lambda x: jax.eval_shape(jnp.asarray, x), tree))
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]
