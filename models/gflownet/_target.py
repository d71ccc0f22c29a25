"""The target of a GFlowNet as a program whose evidence is Z."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ... import ppl
from .environments import _environment as walks
from .environments._environment import Position, log_softmax

if TYPE_CHECKING:
    from ._gflownet import GFlowNet


def target_of(net: GFlowNet) -> ppl.Program:
    """R(x) P_B(path | x), with actions drawn uniformly among legal ones and factors; or R(x) p(path), drawn from the prior p."""
    env = net.env

    @ppl.model
    def target() -> Any:
        modules, first = net.declare(), walks.start(env)

        def step(carry: tuple[Position, Array], t: Array) -> tuple[Any, None]:
            position, known = carry
            mask = walks.legal(env, position)
            law = log_softmax(0.0, mask) if net.prior is None else net.log_prior(position)
            action = ppl.sample("action", dist.CategoricalLogits(law))
            position = walks.advance(env, position, action)
            if net.prior is None:
                log_pb = net.heads(modules, position, t + 1).log_pb[action]
                ppl.factor("backward", log_pb + jnp.log(mask.sum()))
            if net.forward_looking:
                before, known = known, env.log_reward(position.state)
                ppl.factor("reward", known - before)
            return (position, known), None

        known = env.log_reward(first.state) if net.forward_looking else jnp.zeros(())
        if net.forward_looking:
            ppl.factor("start", known)
        (last, _), _ = ppl.scan(step, (first, known), jnp.arange(env.length))
        if not net.forward_looking:
            ppl.factor("reward", env.log_reward(last.state))
        return last.state

    return target
