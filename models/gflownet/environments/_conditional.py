"""Objects whose reward depends on an argument, which the networks see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ....ppl._compat import ArrayLike
from ._environment import Environment

State = tuple[Array, Any]  # number of the argument, K before one is chosen; the object


class Conditional(Environment):
    """The objects of an environment under R(x | c), for one of K arguments c, which the first action chooses.

    What a policy learns here is amortised over arguments: with the flow F of the whole,

        P_F(x | c) = R(x | c) / Z(c),   F(c, s_0) = exp(log_weights[c]) Z(c),   P_F(c) = F(c, s_0) / sum_c' F(c', s_0).

    `GFlowNet.given(argument)` is the GFlowNet of one argument, one of these or a new one, with the same parameters: its policy
    and its flow read the argument.

    The state is (number of the argument, state of `env`); the actions are those of `env`, then one for each argument. The state
    without an argument is no object.

    Args:
        env: how objects are built; its own reward is not read.
        arguments: [K, ...], what the reward depends on.
        log_reward: `(state, argument) -> log R`, nats, for one state of `env`.
        log_weights: [K], nats, how much more often an argument is trained on; minus estimates of log Z(c) make all alike.
            Zero by default.

    Raises:
        ValueError: no argument, or weights of another shape.

    Reference: Bengio et al. 2023, arXiv:2111.09266, section 4 (conditional GFlowNets).
    """

    def __init__(
        self,
        env: Environment,
        arguments: ArrayLike,
        log_reward: Callable[[PyTree, Array], Array],
        *,
        log_weights: Float[ArrayLike, " arguments"] | None = None,
    ) -> None:
        self.env, self.arguments = env, np.asarray(arguments, float)
        if self.arguments.ndim < 1 or len(self.arguments) < 1:
            raise ValueError(
                f"Conditional: arguments have shape {self.arguments.shape}. Give at least one, [arguments, ...]."
            )
        size = len(self.arguments)
        weights = np.zeros(size) if log_weights is None else np.asarray(log_weights, float)
        if weights.shape != (size,):
            raise ValueError(
                f"Conditional: log_weights have shape {weights.shape} for {size} arguments. Give one number for each."
            )
        self.reward_of, self.log_weights = log_reward, weights
        self.stops, self.rewards_prefixes = env.stops, env.rewards_prefixes
        self.num_actions, self.num_steps = env.num_actions + size, env.num_steps + 1
        self.is_chosen = False

    def at(self, argument: ArrayLike) -> Conditional:
        """The objects of one argument, which stands in the start; states, actions and features are those of the whole.

        Args:
            argument: like those of `arguments`, not necessarily one of them.

        Raises:
            ValueError: it has another shape.
        """
        argument = np.asarray(argument, float)
        if argument.shape != self.arguments.shape[1:]:
            raise ValueError(
                f"Conditional.at: the argument has shape {argument.shape}, and the others {self.arguments.shape[1:]}. Give one "
                "like them."
            )
        other = copy.copy(self)
        other.arguments = np.broadcast_to(argument, self.arguments.shape)
        other.log_weights = np.zeros_like(self.log_weights)
        other.is_chosen, other.num_steps = True, self.env.num_steps
        return other

    def start(self) -> State:
        """No argument, and the empty object."""
        number = 0 if self.is_chosen else len(self.arguments)
        return jnp.asarray(number, jnp.int32), self.env.start()

    def observe(self, state: State) -> Array:
        """What `env` shows, then whether there is an argument, and its numbers."""
        number, inner = state
        is_there = number < len(self.arguments)
        argument = jnp.asarray(self.arguments, float)[jnp.minimum(number, len(self.arguments) - 1)]
        seen = jnp.where(is_there, argument.reshape(-1), 0.0)
        return jnp.concatenate([self.env.observe(inner), is_there[None].astype(float), seen])

    def legal(self, state: State) -> Array:
        """First an argument, then the actions of `env`."""
        number, inner = state
        is_there = number < len(self.arguments)
        choices = jnp.broadcast_to(~is_there, len(self.arguments))
        return jnp.concatenate([self.env.legal(inner) & is_there, choices])

    def can_stop(self, state: State) -> Array:
        """Whether `env` can stop, once there is an argument."""
        number, inner = state
        return self.env.can_stop(inner) & (number < len(self.arguments))

    def removable(self, state: State) -> Array:
        """Which actions can be taken back: of the empty object, the choice of its argument."""
        number, inner = state
        mask = self.env.removable(inner)
        choices = (jnp.arange(len(self.arguments)) == number) & ~mask.any()
        return jnp.concatenate([mask, choices & (not self.is_chosen)])

    def step(self, state: State, action: Array) -> State:
        """Choose the argument, or what `env` does."""
        return self._moved(state, action, self.env.step, action - self.env.num_actions)

    def undo(self, state: State, action: Array) -> State:
        """Take it back."""
        return self._moved(state, action, self.env.undo, jnp.int32(len(self.arguments)))

    def log_reward(self, state: State) -> Array:
        """Log R(x | c), with the weight of the argument; 0 without one."""
        number, inner = state
        own = jnp.minimum(number, len(self.arguments) - 1)
        argument = jnp.asarray(self.arguments, float)[own]
        log_reward = self.reward_of(inner, argument) + jnp.asarray(self.log_weights, float)[own]
        return jnp.where(number < len(self.arguments), log_reward, 0.0)

    def _moved(
        self, state: State, action: Array, move: Callable[..., PyTree], number: Array
    ) -> State:
        own, inner = state
        is_choice = action >= self.env.num_actions
        moved = move(inner, jnp.minimum(action, self.env.num_actions - 1))
        keep = lambda a, b: jnp.where(is_choice, a, b)
        return jnp.where(is_choice, number.astype(jnp.int32), own), jax.tree.map(keep, inner, moved)
