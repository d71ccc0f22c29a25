"""Trajectories from the forward policy or an exploring one, with the model's own numbers at every position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._gflownet import GFlowNet, Modules
from ._process import TrajectoryBatch
from .environments import _environment as walks
from .environments._environment import EXCLUDED


def rollout(
    net: GFlowNet,
    modules: Modules,
    key: Array,
    batch_size: int,
    epsilon: float | Float[Array, ""] = 0.0,
    temperature: float | Float[Array, ""] = 1.0,
) -> TrajectoryBatch:
    """Draw trajectories; ends when the last one is complete.

    Each action is uniform among legal ones with probability epsilon, else from P_F^(1 / temperature). The numbers are those of
    P_F itself, not of what explored.

    Args:
        net: policy, flow and environment.
        modules: its networks with their weights, `net.modules(params)`.
        key: PRNG key.
        batch_size: number of trajectories.
        epsilon: share of uniform actions, in [0, 1].
        temperature: above 1 flatter than P_F, below 1 sharper.

    Returns:
        The trajectories, T steps each; those that end before are padded.
    """
    env, size = net.env, batch_size
    repeat = lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x)))
    first = jax.tree.map(repeat, walks.start(env))
    heads = jax.vmap(lambda position, t: net.heads(modules, position, t), (0, None))
    pick, lead = jax.vmap(lambda row, i: row[i]), jax.vmap(net.log_led)
    stack = lambda x, length: jnp.zeros((length, *x.shape), x.dtype)
    dtype = jax.eval_shape(heads, first, jnp.int32(0)).log_pf.dtype
    zeros = jnp.zeros((env.length + 1, size), dtype)
    # Complete where nothing is written.
    visited = jax.tree.map(lambda x: stack(x, env.length + 1), first)
    visited = visited._replace(is_done=jnp.full((env.length + 1, size), env.stops))
    taken = jnp.full((env.length, size), env.num_choices - 1, jnp.int32)

    def goes_on(loop: PyTree) -> Array:
        t, position = loop[:2]
        return (t < env.length) & ~position.is_done.all()

    def step(loop: PyTree) -> PyTree:
        t, position, led, visited, taken, numbers = loop
        found = heads(position, t)
        action = choose(jax.random.fold_in(key, t), found.log_pf)
        now = (
            pick(found.log_pf, action),
            jnp.where(t > 0, lead(found, position, led), 0.0),
            found.log_flow,
        )
        put = lambda row, x: row.at[t].set(x)
        visited, numbers = jax.tree.map(put, (visited, numbers), (position, now))
        position = jax.vmap(lambda p, a: walks.advance(env, p, a))(position, action)
        return t + 1, position, action, visited, put(taken, action), numbers

    def choose(key: Array, log_pf: Array) -> Array:
        coin_key, action_key = jax.random.split(key)
        logits = log_pf / temperature
        if not (isinstance(epsilon, float) and epsilon == 0):
            is_random = jax.random.bernoulli(coin_key, epsilon, (size, 1))
            uniform = jnp.where(log_pf > EXCLUDED / 2, 0.0, EXCLUDED)
            logits = jnp.where(is_random, uniform, logits)
        return jax.random.categorical(action_key, logits).astype(jnp.int32)

    loop = (jnp.int32(0), first, taken[0], visited, taken, (zeros, zeros, zeros))
    _, last, led, visited, taken, numbers = jax.lax.while_loop(goes_on, step, loop)
    if env.stops:
        states = jax.tree.map(
            lambda x, end: jnp.where(_expand(visited.is_done, x), end, x), visited.state, last.state
        )
        visited = visited._replace(state=states)
    else:
        end = lead(heads(last, jnp.int32(env.length)), last, led)
        numbers = (numbers[0], numbers[1].at[-1].set(end), numbers[2])
        visited = jax.tree.map(lambda x, end: x.at[-1].set(end), visited, last)
    swap = lambda x: jnp.swapaxes(x, 0, 1)
    return jax.tree.map(swap, TrajectoryBatch(taken, visited, numbers))


def _expand(mask: Array, x: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
