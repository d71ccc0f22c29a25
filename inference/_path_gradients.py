"""Gradients of bounds without the score of the guide: sticking the landing, and doubly reparameterised.

Terms: z = g(noise, phi) a draw of the guide q_phi, w = p_theta(x, z) / q_phi(z), sg(.) = stop_gradient.
Both use that E[d/dphi log q_phi(z)] = 0 at a fixed draw z, for a support that does not move. Values are those of the bounds.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from numpyro.primitives import Messenger

from .. import ppl
from ._detached import detached, refuse_estimated, refuse_new_draws, sites_met
from ._row_weights import log_mean_exp, weight_of

Array = jax.Array
stop = jax.lax.stop_gradient


def sticking_the_landing(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
    """Log p(x, z) - log q_sg(phi)(z): what is left out has mean zero under every strategy."""
    refuse_estimated("elbo(gradient='stl')", guide, "so no density at a fixed draw can be detached")
    with _FixedSupport("elbo(gradient='stl')"):
        q = ppl.draw(guide, *args)
    log_q = ppl.score(detached(guide), q.choices, *args).log_density
    return ppl.score(model, q, *args).log_density - log_q


def doubly_reparameterized(
    model: ppl.Program, guide: ppl.Program, args: Any, num_particles: int, per: str
) -> Array:
    """The importance-weighted bound whose gradient is DReG.

    In phi: sum_k wn_k^2 (d log w_k / d z_k)(d z_k / d phi); in theta: sum_k wn_k d/dtheta log p_theta(x, z_k); wn the
    normalised weights.
    """
    name = "iwelbo(gradient='dreg')"
    refuse_estimated(name, guide, "so no density at a fixed draw can be detached")

    def lane() -> tuple[Array, Array, Array]:
        with _FixedSupport(name):
            q = ppl.draw(guide, *args)
        _refuse_sampled(name)
        before = sites_met()
        log_q = ppl.score(detached(guide), q.choices, *args)
        path, scale = weight_of(ppl.score(detached(model), q, *args), log_q, per)
        fixed = ppl.score(model, jax.tree.map(stop, q), *args)
        theta, _ = weight_of(fixed, jax.tree.map(stop, log_q), per)
        refuse_new_draws(name, before)
        return path, theta, scale

    path, theta, scale = ppl.particles(num_particles)(lane)()
    weights = stop(jax.nn.softmax(path, axis=0))
    moved = weights**2 * (path - stop(path)) + weights * (theta - stop(theta))
    return jnp.sum(scale[0] * (stop(log_mean_exp(path)) + moved.sum(0)))


def _refuse_sampled(name: str) -> None:
    sampled = {s: t.name for s, t in ppl.strategies_met().items() if not t.is_pathwise}
    if sampled:
        raise ValueError(
            f"{name}: the site(s) {sorted(sampled)} have the strategies {sampled}, but the doubly "
            "reparameterised gradient passes through the values of all sites. Use 'reparam' where the "
            "distribution has it, else gradient='full' or inference.vimco."
        )


class _FixedSupport(Messenger):
    """Refuse sites whose support may move with the parameters: the score at a fixed draw then has a mean."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(msg["fn"].support)):
            raise ValueError(
                f"Site '{msg['name']}': {self.name} leaves out the score of the guide, whose mean is zero "
                f"for a fixed support only, and the support of {type(msg['fn']).__name__} is computed. "
                "Give it constant bounds (Python numbers), or use gradient='full'."
            )
