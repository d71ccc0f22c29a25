"""Any-order sequential Monte Carlo: variables are drawn one by one by the conditional network, towards any target.

With one random order per particle, S_t the first t variables of it and c_t the conditional network's log-probability of the
t-th value, the intermediate targets are the model's own marginals, and the last one is f:

    gamma_t = exp(l(x_{S_t})),  t < T,        gamma_T = f(x)
    log G_t = l(x_{S_t}) - l(x_{S_{t-1}}) - c_t,  t < T,        log G_T = log f(x) - l(x_{S_{T-1}}) - c_T.

The increments before the last are the consistency residuals: a model whose networks agree moves particles without weighing
them. The marginal network is the look-ahead that a filter's `twist` is meant to be: it says how much of the target lies ahead
of a partial assignment.

Invariant: prod G = f(x) / prod exp(c_t) whatever l is, so that the evidence estimates sum_x f(x) (given the evidence of the
model, the sum over x that agree with it) without bias for every pair of networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...inference import FeynmanKac
from ...ppl._checks import log_number
from ...ppl._compat import is_concrete
from . import _chain
from ._distribution import MaM


class Particle(NamedTuple):
    """A partial assignment on its way.

    Attributes:
        value: values 0 to K - 1, -1 where not drawn yet, [D].
        order: the order of this particle, evidence first, [D].
        log_marginal: l of the present assignment, nats.
        log_conditional: the conditional network's log-probability of the last draw, nats.
    """

    value: Int[Array, " variables"]
    order: Int[Array, " variables"]
    log_marginal: Float[Array, ""]
    log_conditional: Float[Array, ""]


def feynman_kac(
    mam: MaM, log_target: Callable[[Int[Array, " variables"]], Float[Array, ""]]
) -> FeynmanKac:
    """The Feynman-Kac model of the module's text, to run with `inference.smc`; its particles are `Particle`s.

    Args:
        mam: the model; its batch shape must be (). Its orders, if it has some, are used, else each particle has its own.
        log_target: log f of one whole row `[D] -> scalar`, nats.

    Returns:
        A `FeynmanKac` of T steps, T the number of variables without evidence (D where the evidence is traced by jax.jit: the
        steps of what is observed then move nothing).

    Raises:
        ValueError: the model has a batch shape.

    Validity: E[exp(log_evidence)] = sum of f over the x that agree with the evidence, whatever the networks are, as long as no
    conditional is 0 where f is not; the weighted particles are consistent for f. How many particles it takes is a matter of the
    training.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli import inference
        >>> from lapilli.models import ising, mam
        >>> lattice = ising.Ising(3, 3, coupling=0.2, field=0.2)
        >>> model = mam.MaM(mam.residual_mlps(9, 2, width=8, key=jax.random.key(0)))
        >>> chain = mam.feynman_kac(model, lattice.log_density)
        >>> result = inference.smc(chain, jax.random.key(1), num_particles=2000)
        >>> bool(abs(result.log_evidence - lattice.log_partition()) < 0.5)  # untrained
        True

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920 (the model); Del Moral, Doucet and Jasra 2006 (samplers).
    """
    if mam.batch_shape:
        raise ValueError(
            f"feynman_kac: the model has batch shape {mam.batch_shape}, and the particles belong to one row. Use jax.vmap over "
            "models, or condition on one row."
        )
    networks, size = mam.networks, mam.num_variables
    # Evidence that is known stays so while a program is traced.
    is_known = is_concrete(mam.evidence)
    with jax.ensure_compile_time_eval() if is_known else contextlib.nullcontext():
        evidence = mam._evidence((size,))
        num_given = int((evidence > 0).sum()) if is_known else 0
    num_steps = size - num_given

    def init(key: Array) -> Particle:
        order = mam._draw_orders(key, evidence)
        # Evidence first, in whatever order was given.
        order = order[jnp.argsort(evidence[order] == 0, stable=True)]
        return Particle(evidence - 1, order, networks.log_marginal(evidence), jnp.zeros(()))

    def kernel(key: Array, particle: Particle, t: Array) -> Particle:
        position = particle.order[num_given + t - 1]
        tokens, log_conditional = _chain.draw_one(networks, key, particle.value + 1, position)
        level = networks.log_marginal(tokens)
        return Particle(tokens - 1, particle.order, level, log_conditional)

    def log_potential(before: Particle, after: Particle, t: Array) -> Array:
        # The step number is one for all particles: the target is evaluated once, at whole rows.
        level = jax.lax.cond(
            t == num_steps,
            lambda: log_number("log_target", log_target(after.value)).astype(float),
            lambda: after.log_marginal,
        )
        return level - jnp.where(t == 0, 0.0, before.log_marginal + after.log_conditional)

    return FeynmanKac(init, kernel, log_potential, num_steps, has_memory=True)
