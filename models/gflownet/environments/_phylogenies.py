"""Rooted trees over sequences, joined two by two, with the parsimony of Fitch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ....ppl._compat import ArrayLike
from ....ppl._precision import full_precision
from ._environment import Environment

MAX_CHARACTERS = 31


class Forest(NamedTuple):
    """Rooted binary trees over N leaves; a tree lives in the slot of its first leaf.

    Attributes:
        into: slot into which the tree of slot j was joined, -1 where slot j still holds a tree. [N]
        rank: how many trees had been joined into that slot before, 0 where none was joined. [N]
    """

    into: Int[Array, " leaves"]
    rank: Int[Array, " leaves"]


class Phylogenies(Environment):
    """Rooted binary trees over N aligned sequences; log R(x) = (offset - changes(x)) / temperature.

    changes(x) is the parsimony score, the least number of changes of characters along the tree's edges that explains the
    sequences, summed over sites (Fitch 1971). An action joins two trees under a new root; a forest is worth the changes inside
    its trees, which only grow. There are (2N - 3)!! trees, each built in several orders; the score does not see the root.

    Args:
        sequences: characters 0 to 30, one row for each sequence, [N, sites].
        temperature: changes per nat.
        offset: changes at which R is 1; it does not move the law.

    Raises:
        ValueError: fewer than two sequences, other characters, a temperature that is not positive.

    Reference: Zhou et al. 2024, PhyloGFN, arXiv:2310.08774.
    """

    def __init__(
        self,
        sequences: Int[ArrayLike, "leaves sites"],
        *,
        temperature: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        sequences = np.asarray(sequences)
        if (
            sequences.ndim != 2
            or len(sequences) < 2
            or not np.issubdtype(sequences.dtype, np.integer)
            or not ((sequences >= 0) & (sequences < MAX_CHARACTERS)).all()
        ):
            raise ValueError(
                f"Phylogenies: sequences must be integers from 0 to {MAX_CHARACTERS - 1}, [at least 2, sites]; got "
                f"{sequences.dtype}{list(sequences.shape)}."
            )
        if not temperature > 0:
            raise ValueError(f"Phylogenies: temperature must be positive, got {temperature}.")
        self.temperature, self.offset = temperature, offset
        self.num_leaves, self.num_characters = len(sequences), int(sequences.max()) + 1
        # Sites that are alike count together.
        self.patterns, self.counts = np.unique(sequences, axis=1, return_counts=True)
        self.left, self.right = np.triu_indices(self.num_leaves, 1)
        self.num_actions, self.num_steps = len(self.left), self.num_leaves - 1

    @classmethod
    def simulated(
        cls, num_leaves: int, num_sites: int, *, rate: float = 0.2, seed: int = 0, **options
    ) -> Phylogenies:
        """Sequences of four characters evolved along a random tree (Jukes-Cantor, `rate` expected changes per site and edge)."""
        rng = np.random.default_rng(seed)
        evolve = lambda x: np.where(
            rng.random(num_sites) < 0.75 * -np.expm1(-4 / 3 * rate), (x + rng.integers(1, 4, num_sites)) % 4, x
        )  # fmt: skip
        tips = [rng.integers(0, 4, num_sites)]
        while len(tips) < num_leaves:
            parent = tips.pop(rng.integers(len(tips)))
            tips += [evolve(parent), evolve(parent)]
        return cls(np.array(tips), **options)

    def start(self) -> Forest:
        """Every leaf a tree of its own."""
        return Forest(
            jnp.full(self.num_leaves, -1, jnp.int32), jnp.zeros(self.num_leaves, jnp.int32)
        )

    def observe(self, state: Forest) -> Array:
        """One-hot slots and ranks, and the characters possible at the root of each tree, [N (N + 1) + N N + N patterns K]."""
        slots = jnp.arange(-1, self.num_leaves)
        sets, _ = self._sweep(state)
        possible = sets[..., None] >> jnp.arange(self.num_characters, dtype=jnp.uint32) & 1
        possible = jnp.where((state.into < 0)[:, None, None], possible, 0)
        parts = (
            state.into[:, None] == slots,
            state.rank[:, None] == slots[1:],
            possible,
        )
        return jnp.concatenate([x.reshape(-1).astype(float) for x in parts])

    def legal(self, state: Forest) -> Array:
        """Pairs of trees."""
        is_root = state.into < 0
        return is_root[self.left] & is_root[self.right]

    def removable(self, state: Forest) -> Array:
        """The root of each tree."""
        num_joined = jnp.zeros(self.num_leaves, jnp.int32).at[state.into].add(state.into >= 0)
        is_last = state.rank[self.right] == num_joined[self.left] - 1
        return (state.into[self.left] < 0) & (state.into[self.right] == self.left) & is_last

    def step(self, state: Forest, action: Array) -> Forest:
        """Join two trees."""
        left, right = jnp.asarray(self.left)[action], jnp.asarray(self.right)[action]
        rank = (state.into == left).sum().astype(state.rank.dtype)
        return Forest(
            state.into.at[right].set(left.astype(state.into.dtype)),
            state.rank.at[right].set(rank),
        )

    def undo(self, state: Forest, action: Array) -> Forest:
        """Take the root away."""
        right = jnp.asarray(self.right)[action]
        return Forest(state.into.at[right].set(-1), state.rank.at[right].set(0))

    def changes(self, state: Forest) -> Float[Array, ""]:
        """The parsimony score of all trees together."""
        return self._sweep(state)[1]

    def log_reward(self, state: Forest) -> Array:
        """Changes to spare, in nats."""
        return (self.offset - self.changes(state)) / self.temperature

    @full_precision
    def _sweep(self, state: Forest) -> tuple[Array, Array]:
        """Fitch's sets of characters at the root of each slot's tree, as bits, [N, patterns], and the changes."""
        counts = jnp.asarray(self.counts)

        def join(carry: tuple[Array, Array], leaf: Array) -> tuple[tuple[Array, Array], None]:
            sets, changes = carry
            slot, own = state.into[leaf], sets[leaf]
            both = sets[slot] & own
            joined = jnp.where(both == 0, sets[slot] | own, both)
            is_joined = slot >= 0
            sets = sets.at[slot].set(jnp.where(is_joined, joined, sets[slot]))
            return (sets, changes + jnp.where(is_joined, counts @ (both == 0), 0)), None

        # A tree is complete before it is joined: what is joined into it has a larger slot.
        order = jnp.lexsort((state.rank, -state.into))
        leaves = jnp.asarray(np.uint32(1) << self.patterns.astype(np.uint32))
        (sets, changes), _ = jax.lax.scan(join, (leaves, jnp.zeros((), counts.dtype)), order)
        return sets, changes.astype(float)
