"""Sets of k of n items with additive energies: everything about them is known exactly."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ....ppl._compat import ArrayLike
from ._environment import Environment

# Ten distinct energies, as in the published code; each belongs to n / 10 items.
_PUBLISHED = {
    "small": (
        30, 20,
        (-0.438140, -0.400464, -0.274506, 0.013150, 0.411054, 0.626175, 0.696147, 0.744228, 0.820635, 0.883495),
    ),
    "medium": (
        80, 60,
        (-0.786683, -0.783787, -0.523050, -0.418608, -0.385521, 0.296122, 0.573180, 0.600929, 0.688181, 0.739635),
    ),
    "large": (
        100, 80,
        (-0.859685, -0.593879, -0.559618, -0.459000, -0.153830, 0.138322, 0.392503, 0.723198, 0.732699, 0.924454),
    ),
}  # fmt: skip


class Sets(Environment):
    """Subsets of `size` items, built item by item; R(x) = exp(-sum of the energies of the items in x).

    The state is a boolean vector [n], the action an item. With r_i = exp(-e_i) and e_m(W) the elementary symmetric polynomial of
    degree m of the r_i, i in W, and for P_B uniform, the solution is F(s) = R(s) e_{k-m}(s^c) / C(k, m) at |s| = m.

    Args:
        energies: [n], nats.
        size: k, from 1 to n.

    Raises:
        ValueError: an impossible size.

    Reference: Pan et al. 2023, arXiv:2302.01687, section 5.1.
    """

    def __init__(self, energies: ArrayLike, size: int) -> None:
        self.energies = np.asarray(energies, float)
        if self.energies.ndim != 1 or not 1 <= size <= len(self.energies):
            raise ValueError(
                f"Sets: energies of shape {self.energies.shape} and size {size} do not fit; give one energy for each item, and a "
                "size from 1 to their number."
            )
        self.num_actions, self.num_steps = len(self.energies), size

    @classmethod
    def published(cls, name: Literal["small", "medium", "large"]) -> Sets:
        """The sets of the forward-looking paper: 20 of 30, 60 of 80 or 80 of 100 items.

        Raises:
            ValueError: another name.
        """
        if name not in _PUBLISHED:
            raise ValueError(f"Sets.published: choose from {list(_PUBLISHED)}, got {name!r}.")
        num_items, size, energies = _PUBLISHED[name]
        return cls(np.repeat(energies, num_items // 10), size)

    def start(self) -> Array:
        """No item."""
        return jnp.zeros(self.num_actions, bool)

    def observe(self, state: Array) -> Array:
        """Zeros and ones."""
        return state.astype(float)

    def legal(self, state: Array) -> Array:
        """Absent items, until the set is full."""
        return ~state & (state.sum() < self.num_steps)

    def removable(self, state: Array) -> Array:
        """Present items."""
        return state

    def step(self, state: Array, action: Array) -> Array:
        """Add an item."""
        return state.at[action].set(True)

    def undo(self, state: Array, action: Array) -> Array:
        """Take it away."""
        return state.at[action].set(False)

    def log_reward(self, state: Array) -> Array:
        """Minus the energy of the items present."""
        return -jnp.sum(jnp.where(state, jnp.asarray(self.energies, float), 0.0))

    def log_z(self) -> float:
        """Log of e_k(all items)."""
        return float(_log_symmetric(-self.energies, self.num_steps)[-1])

    def inclusion(self) -> np.ndarray:
        """P(i in x) under R / Z, [n]."""
        log_r, k = -self.energies, self.num_steps
        rest = [_log_symmetric(np.delete(log_r, i), k - 1)[-1] for i in range(len(log_r))]
        return np.exp(log_r + np.array(rest) - self.log_z())

    def exact_draws(self, num_draws: int, *, seed: int = 0) -> Bool[np.ndarray, "num_draws items"]:
        """Independent sets from R / Z, item by item: i joins with probability r_i e_{m-1}(later) / e_m(i and later), m to go."""
        rng, log_r, k = np.random.default_rng(seed), -self.energies, self.num_steps
        states, left = np.zeros((num_draws, len(log_r)), bool), np.full(num_draws, k)
        for i in range(len(log_r)):
            whole, later = (_log_symmetric(log_r[start:], k) for start in (i, i + 1))
            # By the number to go, 0 to k; more than there are items left never happens.
            joins, can = np.zeros(k + 1), np.isfinite(whole[1:])
            joins[1:][can] = np.exp(log_r[i] + later[:-1][can] - whole[1:][can])
            states[:, i] = rng.random(num_draws) < joins[left]
            left = left - states[:, i]
        return states

    def solution(self, state: ArrayLike) -> tuple[float, np.ndarray]:
        """(log F(s) - log R(s), log P_F(i | s) [n]) of the exact solution for P_B uniform; -inf for items that are present."""
        present = np.asarray(state, bool)
        left, log_r = self.num_steps - present.sum(), np.where(present, -np.inf, -self.energies)
        log_count = np.log(np.arange(1, self.num_steps + 1))
        choose = log_count.sum() - log_count[:left].sum() - log_count[: present.sum()].sum()
        outside = _log_symmetric(log_r, left)[-1]
        if left == 0:
            return float(outside - choose), np.full(len(log_r), -np.inf)
        without = [_log_symmetric(np.delete(log_r, i), left - 1)[-1] for i in range(len(log_r))]
        return float(outside - choose), log_r + np.array(without) - np.log(left) - outside


def _log_symmetric(log_r: np.ndarray, degree: int) -> np.ndarray:
    """Logs of the elementary symmetric polynomials of degree 0 to `degree`."""
    log_e = np.full(degree + 1, -np.inf)
    log_e[0] = 0.0
    for x in log_r:
        log_e[1:] = np.logaddexp(log_e[1:], x + log_e[:-1])
    return log_e
