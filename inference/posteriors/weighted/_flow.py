"""A flow on a target, begun at a fitted Normal: a guide that follows funnels, curves and skewed tails, by its weighted draws.

With t standard Normal, F and m the frame of the fitted guide,

    v_0 = t,   v_k = coupling_k(v_{k-1}),   v = sinh-arcsinh(v_L) coordinate by coordinate,   u = m + F v.

A coupling leaves half of the coordinates (another half each time) as they are and moves and scales the others by a network of
these. All layers begin as the identity, so that training goes on where the fit ended: it maximises E[log p(u) - log q(u)].

Reference: Dinh, Sohl-Dickstein and Bengio 2017, arXiv:1605.08803 (couplings); Jones and Pewsey 2009 (sinh-arcsinh).
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._precision import full_precision
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from .._clock import Clock
from ..chains import Frame
from ..forms import Target

Array = jax.Array
NUM_STEPS, _CALL = 4000, 250
_LAYERS, _WIDTH = 6, 32
_MOST_LOG_SCALE = 3.0  # of one coupling
_RATE, _DRAWS = 3e-3, 32


class FlowDraws(NamedTuple):
    """Points [n, d], the logarithms of their weights p / q [n], nats, and the steps that were made."""

    u: np.ndarray
    log_weights: np.ndarray
    num_steps: int


def flow_draws(target: Target, frame: Frame, key: Key, num: int, clock: Clock) -> FlowDraws:
    """Draws of a flow that is trained from the Normal of a frame, at most `NUM_STEPS` steps."""
    import optax

    rng = np.random.default_rng(0)  # of which coordinates move when; draws have the key
    d = target.dimension
    halves = [np.arange(d) % 2 == k % 2 for k in range(_LAYERS)]
    halves = [half[rng.permutation(d)] if k > 1 else half for k, half in enumerate(halves)]
    init_key, step_key, draw_key = jax.random.split(key, 3)
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adam(optax.cosine_decay_schedule(_RATE, NUM_STEPS)),
    )
    params = _initial(init_key, halves, d)

    def log_weight(
        params: PyTree, noise: Array, frame: Frame, arrays: list[Array]
    ) -> tuple[Array, Array]:
        v, log_volume = _flow(params, halves, noise)
        u, log_scale = _placed(frame, v)
        log_q = -0.5 * (noise**2).sum() - 0.5 * d * math.log(2 * math.pi) - log_volume - log_scale
        return u, target.log_density(u, arrays) - log_q

    def loss(params: PyTree, key: Key, frame: Frame, arrays: list[Array]) -> Array:
        half = jax.random.normal(key, (_DRAWS // 2, d))
        noise = jnp.concatenate([half, -half])
        return -jax.vmap(lambda e: log_weight(params, e, frame, arrays)[1])(noise).mean()

    def steps(state: PyTree, first: Array, frame: Frame, arrays: list[Array]) -> PyTree:
        def step(state: PyTree, number: Array) -> tuple[PyTree, Array]:
            params, opt_state = state
            slope = jax.grad(loss)(params, jax.random.fold_in(step_key, number), frame, arrays)
            is_good = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(slope)]).all()
            change, new = optimizer.update(slope, opt_state, params)
            moved = optax.apply_updates(params, change), new
            return jax.tree.map(lambda a, b: jnp.where(is_good, a, b), moved, state), is_good

        return jax.lax.scan(step, state, first + jnp.arange(_CALL))

    many, state, done = shared_jit(steps), (params, optimizer.init(params)), 0
    began = time.monotonic()
    while done < NUM_STEPS and not clock.is_over():
        state, _ = jax.block_until_ready(many(state, done, frame, target.arrays))
        done += _CALL
        clock.tell(f"step {done} of {NUM_STEPS}, {done / (time.monotonic() - began):.0f} a second")
    draw = shared_jit(
        lambda params, noise, frame, arrays: jax.lax.map(
            lambda e: log_weight(params, e, frame, arrays), noise, batch_size=500
        )
    )
    u, log_weights = draw(state[0], jax.random.normal(draw_key, (num, d)), frame, target.arrays)
    return FlowDraws(np.asarray(u, float), np.asarray(log_weights), done)


def _initial(key: Key, halves: list[np.ndarray], d: int) -> dict[str, Any]:
    """Parameters of the identity."""

    def layer(key: Key, half: np.ndarray) -> dict[str, Array]:
        num = int(half.sum())
        return {
            "in": jax.random.normal(key, (_WIDTH, num)) / math.sqrt(max(num, 1)),
            "bias": jnp.zeros(_WIDTH),
            "out": jnp.zeros((2, d - num, _WIDTH)),
            "shift": jnp.zeros((2, d - num)),
        }

    keys = jax.random.split(key, len(halves))
    layers = [layer(k, half) for k, half in zip(keys, halves, strict=True) if 0 < half.sum() < d]
    return {"layers": layers, "skew": jnp.zeros(d), "log_tail": jnp.zeros(d)}


@full_precision
def _flow(params: dict[str, Any], halves: list[np.ndarray], t: Array) -> tuple[Array, Array]:
    """The point v of t [d], and the log-volume of the map."""
    v, log_volume = t, jnp.zeros(())
    halves = [half for half in halves if 0 < half.sum() < len(t)]
    for layer, half in zip(params["layers"], halves, strict=True):
        hidden = jnp.tanh(layer["in"] @ v[half] + layer["bias"])
        log_scale, shift = layer["out"] @ hidden + layer["shift"]
        log_scale = _MOST_LOG_SCALE * jnp.tanh(log_scale / _MOST_LOG_SCALE)
        v = v.at[np.flatnonzero(~half)].set(v[~half] * jnp.exp(log_scale) + shift)
        log_volume += log_scale.sum()
    at = jnp.arcsinh(v) * jnp.exp(params["log_tail"]) + params["skew"]
    # log of d sinh(at) / dv; log cosh without overflow.
    log_cosh = jnp.logaddexp(at, -at) - math.log(2.0)
    log_volume += (params["log_tail"] + log_cosh - 0.5 * jnp.log1p(v**2)).sum()
    return jnp.sinh(at), log_volume


@full_precision
def _placed(frame: Frame, v: Array) -> tuple[Array, Array]:
    """The point u = m + F v, and log |F|."""
    if jnp.ndim(frame.factor) == 1:
        return frame.location + frame.factor * v, jnp.log(jnp.abs(frame.factor)).sum()
    log_scale = jnp.linalg.slogdet(frame.factor)[1]
    return frame.location + frame.factor @ v, log_scale
