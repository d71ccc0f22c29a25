"""Environments small enough to write down: all states, all edges, the exact law of what a policy builds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ...ppl._types import ParamMap
from ._gflownet import GFlowNet
from .environments import _environment as walks
from .environments._environment import Environment, Position


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """All states of an environment, parents before children; made by `tabulate`. State 0 is the start.

    Attributes:
        env: the environment.
        states: the states, stacked, [states, ...].
        parents: where each edge begins, [edges]; stop edges are left out.
        actions: its action, [edges].
        children: where it ends, [edges].
        levels: length of the longest path to a state, [states].
        objects: numbers of the states that are complete objects, [objects].
        log_reward: log R of the objects, [objects], nats.
    """

    env: Environment
    states: PyTree
    parents: Int[np.ndarray, " edges"]
    actions: Int[np.ndarray, " edges"]
    children: Int[np.ndarray, " edges"]
    levels: Int[np.ndarray, " states"]
    objects: Int[np.ndarray, " objects"]
    log_reward: Float[np.ndarray, " objects"]

    @property
    def log_z(self) -> float:
        """Log of the sum of all rewards."""
        return float(np.logaddexp.reduce(self.log_reward))

    @property
    def target(self) -> Float[np.ndarray, " objects"]:
        """R / Z."""
        return np.exp(self.log_reward - self.log_z)

    def log_pf(self, net: GFlowNet, params: ParamMap) -> Float[np.ndarray, "states choices"]:
        """Log P_F in every state."""
        return np.asarray(_log_pf(net, dict(params), self.states), float)

    def visits(self, log_pf: Float[np.ndarray, "states choices"]) -> Float[np.ndarray, " states"]:
        """Probability that a trajectory passes through a state, by dynamic programming from the start."""
        flow = np.exp(log_pf[self.parents, self.actions])
        mass = np.zeros(len(self.levels))
        mass[0] = 1.0
        level = self.levels[self.parents]
        order = np.argsort(level, kind="stable")
        for edges in np.split(order, np.flatnonzero(np.diff(level[order])) + 1):
            np.add.at(mass, self.children[edges], mass[self.parents[edges]] * flow[edges])
        return mass

    def law(self, net: GFlowNet, params: ParamMap) -> Float[np.ndarray, " objects"]:
        """p_T, the exact law of the objects that P_F builds."""
        return self.law_of(self.log_pf(net, params))

    def law_of(self, log_pf: Float[np.ndarray, "states choices"]) -> Float[np.ndarray, " objects"]:
        """The law of the objects for any P_F, rows normalised over legal actions."""
        mass = self.visits(log_pf)[self.objects]
        return mass * np.exp(log_pf[self.objects, -1]) if self.env.stops else mass

    def trajectories(self) -> Int[np.ndarray, "trajectories steps"]:
        """Every trajectory, as padded actions. Their number grows factorially."""
        out: list[list[int]] = []
        below: dict[int, list[tuple[int, int]]] = {}
        objects = set(self.objects.tolist())
        for parent, action, child in zip(self.parents, self.actions, self.children, strict=True):
            below.setdefault(int(parent), []).append((int(action), int(child)))

        def extend(state: int, path: list[int]) -> None:
            if self.env.stops:
                pads = self.env.length - len(path)
                if state in objects:
                    out.append(path + [self.env.num_actions] * pads)
            elif len(path) == self.env.length:
                out.append(path)
            for action, child in below.get(state, []):
                extend(child, [*path, action])

        extend(0, [])
        return np.array(out)


@functools.partial(jax.jit, static_argnums=0)  # compiled once for a net, whatever its parameters
def _log_pf(net: GFlowNet, params: dict[str, Any], states: PyTree) -> Array:
    modules, t = net.modules(params), jnp.int32(0)
    rows = lambda s: net.heads(modules, Position(s, jnp.zeros((), bool)), t).log_pf
    return jax.vmap(rows)(states)


def tabulate(env: Environment, *, max_states: int = 200_000) -> Table:
    """All states of an environment, by breadth-first search.

    Args:
        env: the environment.
        max_states: most states that are listed.

    Raises:
        ValueError: more than `max_states` states.
    """
    first = jax.tree.map(lambda x: np.asarray(x)[None], walks.start(env).state)
    number_of = {_key(first, 0): 0}
    found, edges, frontier = [first], [], first
    expand = jax.jit(
        jax.vmap(
            lambda s: (env.legal(s), jax.vmap(env.step, (None, 0))(s, jnp.arange(env.num_actions)))
        )
    )
    base = 0
    while len(jax.tree.leaves(frontier)[0]):
        is_legal, children = jax.tree.map(np.asarray, _padded(expand, frontier))
        rows, actions = np.nonzero(is_legal)
        reached = jax.tree.map(lambda x, r=rows, a=actions: x[r, a], children)
        fresh = []
        for i, (row, action) in enumerate(zip(rows, actions, strict=True)):
            key = _key(reached, i)
            if key not in number_of:
                number_of[key] = len(number_of)
                fresh.append(i)
            edges.append((base + row, action, number_of[key]))
        if len(number_of) > max_states:
            raise ValueError(
                f"tabulate: {type(env).__name__} has more than max_states={max_states} states. Use a smaller one, or sample."
            )
        base += len(jax.tree.leaves(frontier)[0])
        frontier = jax.tree.map(lambda x, f=fresh: x[f], reached)
        found.append(frontier)
    states = jax.tree.map(lambda *x: np.concatenate(x), *found)
    parents, actions, ends = np.array(edges, int).reshape(-1, 3).T
    levels = _levels(len(number_of), parents, ends)
    is_object = levels == env.num_steps
    if env.stops:
        is_object = np.asarray(jax.vmap(env.can_stop)(jax.tree.map(jnp.asarray, states)))
    objects = np.flatnonzero(is_object)
    log_reward = jax.vmap(env.log_reward)(jax.tree.map(lambda x: jnp.asarray(x[objects]), states))
    return Table(
        env, states, parents, actions, ends, levels, objects, np.asarray(log_reward, float)
    )


def _key(states: np.ndarray, i: int) -> bytes:
    return b"".join(leaf[i].tobytes() for leaf in jax.tree.leaves(states))


def _padded(fn: PyTree, states: np.ndarray) -> tuple[Array, Array]:
    """`fn` of the states, on a number of rows that is a power of two, so that few sizes are compiled."""
    size = len(jax.tree.leaves(states)[0])
    room = 1 << (size - 1).bit_length()
    grow = lambda x: np.concatenate([x, np.repeat(x[:1], room - size, 0)])
    return jax.tree.map(lambda x: x[:size], fn(jax.tree.map(grow, states)))


def _levels(num_states: int, parents: np.ndarray, children: np.ndarray) -> np.ndarray:
    """Length of the longest path from the start."""
    levels = np.zeros(num_states, int)
    while True:
        new = levels.copy()
        np.maximum.at(new, children, levels[parents] + 1)
        if (new == levels).all():
            return levels
        levels = new
