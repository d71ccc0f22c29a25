"""Attend, infer, repeat in GenJAX 1.0.14; see systems.py.

Its generative functions have no masks, so that the bounds are written out over its gradient-estimating primitives, as its
users write objectives of their own. Its discrete primitives are exact for single numbers: the program is for one image, and
mapped over a batch.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import air_nets
import genjax
import jax
import jax.numpy as jnp
from genjax import adev
from worker import Gradient, Make, serve

# Its interpreter knows no custom_jvp, which those of jax.nn are made of.
BACKEND = air_nets.Backend(
    jnp,
    jax.lax.logistic,
    lambda x: jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x))),
    lambda x: jnp.maximum(x, 0.0),
)
normal = adev.multivariate_normal_diag_reparam


def log_weight(params: Any, x: Any, flip: Any) -> Any:
    """Log-density ratio log p(x, z) - log q(z) at a draw z of the guide, for one image."""
    nets = air_nets.Nets(BACKEND, params)
    log_prob = lambda z, loc, scale: air_nets.normal_log_prob(jnp, z, loc, scale)
    present, canvas, total = jnp.ones(()), jnp.zeros_like(x), 0.0
    embedded, state = nets.embed(x), jnp.zeros(air_nets.HIDDEN)
    where, what = jnp.zeros(3), jnp.zeros(air_nets.WHAT)
    for _ in range(air_nets.STEPS):
        state = nets.next_state(state, embedded, where, what)
        probs = nets.more(state, present > 0)
        more = flip(probs)
        yes = jnp.log(air_nets.MORE_PROB) - jnp.log(probs)
        no = jnp.log1p(-air_nets.MORE_PROB) - jnp.log1p(-probs)
        total = total + present * jnp.where(more, yes, no)
        present = present * more
        for of in ("where", "what"):
            loc, scale = nets.where(state) if of == "where" else nets.what(x, where)
            z = normal(loc, scale)
            prior = log_prob(z, jnp.zeros_like(loc), jnp.ones_like(loc))
            total = total + present * (prior - log_prob(z, loc, scale))
            where, what = (z, what) if of == "where" else (where, z)
        canvas = canvas + present * nets.write(nets.patch(what), where)
    return total + log_prob(x, canvas, air_nets.NOISE * jnp.ones_like(x))


def elbo(flip: Any) -> Make:
    return gradient(lambda params, x: log_weight(params, x, flip))


def iwelbo(flip: Any) -> Make:
    def bound(params: Any, x: Any) -> Any:
        log_w = jnp.stack([log_weight(params, x, flip) for _ in range(2)])
        return jax.nn.logsumexp(log_w) - jnp.log(2.0)

    return gradient(bound)


def gradient(bound: Any) -> Make:
    objective = adev.expectation(bound)

    def one(tangents: Any, params: Any, x: Any) -> tuple[Any, Any]:
        """The estimate's tangent, linear in `tangents`, and the estimate."""
        fixed = adev.Dual(x, jnp.zeros_like(x))
        dual = objective.jvp_estimate(adev.Dual.dual_tree(params, tangents), fixed)
        return dual.tangent, dual.primal

    def build(params: Any, x: Any) -> Gradient:
        params, x = jax.tree.map(jnp.asarray, params), jnp.asarray(x)

        # Its `grad_estimate`, vmapped, would hold one gradient for each image, and tell no value.
        def value_and_grad(params: Any, key: Any) -> tuple[Any, Any]:
            def total(tangents: Any) -> tuple[Any, Any]:
                keys = jax.random.split(key, len(x))
                batch = jax.vmap(genjax.seed(one), (0, None, None, 0))
                found = batch(keys, tangents, params, x)
                return found[0].sum(), found[1].sum()

            grads, value = jax.grad(total, has_aux=True)(jax.tree.map(jnp.zeros_like, params))
            return value, grads

        run = jax.jit(value_and_grad)
        return Gradient(
            lambda seed: jax.block_until_ready(run(params, jax.random.key(seed))),
            lambda out: (float(out[0]), float(out[1]["count"]["bias"][0])),
        )

    return build


COLUMNS = {
    "ELBO, REINFORCE": elbo(adev.flip_reinforce),
    "ELBO, ENUM": elbo(adev.flip_enum),
    "ELBO, MVD": elbo(adev.flip_mvd),
    "IWELBO 2, REINFORCE": iwelbo(adev.flip_reinforce),
    "IWELBO 2, MVD": iwelbo(adev.flip_mvd),
}

if __name__ == "__main__":
    serve(COLUMNS, f"genjax {importlib.metadata.version('genjax')}, jax {jax.__version__}")
