"""Molecule-like trees of fragments with energies of fragments and of bonds: a toy whose partition function is known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ....ppl._compat import ArrayLike
from . import _places as places
from ._environment import Environment
from ._places import EMPTY


class Fragments(Environment):
    """Trees of fragments, built from the root outwards; log R(x) = -(energies of the fragments and of the bonds in x).

    Each fragment has `num_stems` places for others, down to a given depth; an action puts one of B fragments at an open place
    (an action is place * B + fragment). Every state is an object, the empty one included. The state holds the fragment at each
    place, -1 where there is none, [places]: the stems of place p are p num_stems + 1, ..., p num_stems + num_stems.

    Args:
        energies: of the fragments, [B], nats.
        bonds: of a bond from fragment (first axis), at a stem (second), to fragment (third), [B, num_stems, B], nats.
        depth: levels of the tree, 1 for single fragments.

    Raises:
        ValueError: shapes that do not fit, or a depth below 1.

    Reference: the construction of molecules from blocks and stems in Bengio et al. 2021, arXiv:2106.04399, section 4.2, without
    its learned energy.
    """

    stops = True

    def __init__(
        self,
        energies: Float[ArrayLike, " fragments"],
        bonds: Float[ArrayLike, "fragments stems fragments"],
        *,
        depth: int,
    ) -> None:
        self.energies, self.bonds = np.asarray(energies, float), np.asarray(bonds, float)
        size = len(self.energies)
        if (
            self.energies.ndim != 1
            or self.bonds.ndim != 3
            or self.bonds.shape[::2] != (size, size)
            or not self.bonds.shape[1]
            or depth < 1
        ):
            raise ValueError(
                f"Fragments: energies [B], bonds [B, num_stems, B] and depth >= 1 are needed, got shapes "
                f"{self.energies.shape} and {self.bonds.shape} and depth {depth}."
            )
        self.num_fragments, self.num_stems, self.depth = size, self.bonds.shape[1], depth
        self.num_places = sum(self.num_stems**level for level in range(depth))
        self.num_steps, self.num_actions = self.num_places, self.num_places * size
        # The root is its own parent.
        self.parents, self.stems = np.divmod(
            np.maximum(np.arange(self.num_places) - 1, 0), self.num_stems
        )

    def start(self) -> Array:
        """Nothing."""
        return places.nothing(self.num_places)

    def observe(self, state: Array) -> Array:
        """One-hot fragments with a value for empty places, [places * (B + 1)]."""
        return places.one_hot(state, self.num_fragments)

    def legal(self, state: Array) -> Array:
        """All fragments at every open place."""
        has_parent = (state[self.parents] != EMPTY).at[0].set(True)
        return jnp.repeat(
            (state == EMPTY) & has_parent, self.num_fragments, total_repeat_length=self.num_actions
        )

    def removable(self, state: Array) -> Array:
        """Fragments from which nothing hangs."""
        is_used = jnp.zeros(self.num_places, bool).at[self.parents[1:]].max(state[1:] != EMPTY)
        is_own = state[:, None] == jnp.arange(self.num_fragments)
        return (is_own & ~is_used[:, None]).reshape(-1)

    def step(self, state: Array, action: Array) -> Array:
        """Put a fragment at a place."""
        return places.put(state, action, self.num_fragments)

    def undo(self, state: Array, action: Array) -> Array:
        """Take it away."""
        return places.take(state, action, self.num_fragments)

    def log_reward(self, state: Array) -> Array:
        """Minus the energy."""
        energy = jnp.asarray(self.energies, float)[state]
        bonds = jnp.asarray(self.bonds, float)[state[self.parents], self.stems, state].at[0].set(0)
        return -jnp.where(state == EMPTY, 0.0, energy + bonds).sum()

    def log_z(self) -> float:
        """Log of the sum of R over all trees, the empty one included: stems are independent given their fragment."""
        log_below = (
            -self.energies
        )  # [B], sum over what hangs from a fragment at the lowest level, then further up
        for _ in range(self.depth - 1):
            filled = np.logaddexp.reduce(log_below - self.bonds, axis=2)
            log_below = -self.energies + np.logaddexp(0.0, filled).sum(1)
        return float(np.logaddexp(0.0, np.logaddexp.reduce(log_below)))
