"""Strings of letters, written from the left or in any order; their rewards looked up in a table of all of them."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ....ppl._compat import ArrayLike
from . import _places as places
from ._environment import Environment
from ._places import EMPTY

Order = Literal["append", "any"]


class Writing(Environment):
    """Abstract: strings of fixed length over K letters. What is left to say is `log_reward`.

    The state holds the letter at each place, -1 where it is missing, [places]. order="append" writes from the left (a tree, P_B
    = 1; an action is a letter); "any" fills any empty place (an action is place * K + letter).

    Args:
        num_places: length of a complete string.
        num_letters: K.
        order: "append" or "any".

    Raises:
        ValueError: another order.
    """

    def __init__(self, num_places: int, num_letters: int, order: Order) -> None:
        if order not in get_args(Order):
            raise ValueError(
                f"{type(self).__name__}: order must be 'append' or 'any', got {order!r}."
            )
        self.num_places, self.num_letters = num_places, num_letters
        self.is_append = order == "append"
        self.num_steps = num_places
        self.num_actions = num_letters * (1 if self.is_append else num_places)

    def start(self) -> Array:
        """Nothing written."""
        return places.nothing(self.num_places)

    def observe(self, state: Array) -> Array:
        """One-hot letters with a value for missing ones, [places * (K + 1)]."""
        return places.one_hot(state, self.num_letters)

    def legal(self, state: Array) -> Array:
        """All letters at the next place, or at every empty one."""
        if self.is_append:
            return jnp.broadcast_to(state[-1] == EMPTY, (self.num_actions,))
        return jnp.repeat(state == EMPTY, self.num_letters, total_repeat_length=self.num_actions)

    def removable(self, state: Array) -> Array:
        """The last letter, or every letter that is there."""
        letters = jnp.arange(self.num_letters)
        if self.is_append:
            return letters == state[self._num_written(state) - 1]
        return (state[:, None] == letters).reshape(-1)

    def step(self, state: Array, action: Array) -> Array:
        """Write a letter."""
        if self.is_append:
            return state.at[self._num_written(state)].set(action.astype(state.dtype))
        return places.put(state, action, self.num_letters)

    def undo(self, state: Array, action: Array) -> Array:
        """Wipe it out."""
        if self.is_append:
            return state.at[self._num_written(state) - 1].set(EMPTY)
        return places.take(state, action, self.num_letters)

    def _num_written(self, state: Array) -> Array:
        return (state != EMPTY).sum()


class Strings(Writing):
    """Strings whose log-rewards are all known, [K] * length; incomplete ones are worth nothing of their own.

    Args:
        log_rewards: one axis of length K for each place, nats.
        order: "append" or "any".

    Raises:
        ValueError: a table that has not one axis of K entries for each place; another order.
    """

    rewards_prefixes = False

    def __init__(self, log_rewards: Float[ArrayLike, "*shape"], *, order: Order = "append") -> None:
        self.log_rewards = np.asarray(log_rewards, float)
        if self.log_rewards.ndim < 1 or len(set(self.log_rewards.shape)) != 1:
            raise ValueError(
                f"Strings: log_rewards must have one axis of K letters for each place, got shape {self.log_rewards.shape}."
            )
        super().__init__(self.log_rewards.ndim, len(self.log_rewards), order)

    @classmethod
    def binding(
        cls, length: int = 8, *, strength: float = 1.0, seed: int = 0, order: Order = "append"
    ) -> Strings:
        """A simulated landscape of a protein that binds DNA: all 4^length sites (TFBind8 has 8 places), on either strand.

        R(x) = exp(h(x)) + exp(h(x reversed, complemented)), h(x) = strength (sum_i a_i(x_i) + sum_i b_i(x_i, x_{i+1}) / 2) with
        standard normal a and b: a position weight matrix with couplings of neighbours. Letters are A, C, G, T.
        """
        rng = np.random.default_rng(seed)
        sites = rng.normal(size=(length, 4))
        pairs = rng.normal(size=(length - 1, 4, 4)) / 2
        h = np.zeros((4,) * length)
        for i, own in enumerate(sites):
            h += own.reshape([4 if j == i else 1 for j in range(length)])
        for i, own in enumerate(pairs):
            h += own.reshape([4 if j in (i, i + 1) else 1 for j in range(length)])
        # Reversed by transposing; the complement of letter k is 3 - k.
        other = np.flip(h.T, tuple(range(length)))
        return cls(np.logaddexp(strength * h, strength * other), order=order)

    def log_reward(self, state: Array) -> Array:
        """The table's entry."""
        return jnp.asarray(self.log_rewards, float)[tuple(jnp.maximum(state, 0))]
