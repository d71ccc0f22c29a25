"""Wake-sleep objectives: cross-entropies under weighted or simulated draws that count as constants.

Notation: z_1..z_K ~ r, w_k = p_theta(x, z_k) / r(z_k), v_k = w_k / sum_j w_j. r, w and v are held fixed, at the present
parameters: `grad` is the derivative of the objective in the parameters that are not held fixed, which is not the derivative of
`value` along all its dependences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from .. import ppl
from ._detached import CONSTANT, detached, refuse_new_draws, sites_met
from ._objective import Objective, objective
from ._row_weights import check_particles, joint_weight, log_mean_exp

Array = jax.Array
stop = jax.lax.stop_gradient


def wake_phi(model: Any, guide: Any, *, num_particles: int, proposal: Any = None) -> Objective:
    """Wake-phase update of the guide: -sum_k v_k log q_phi(z_k) (nats, minimised); cross-entropy from posterior to guide.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q_phi, with an exact density.
        num_particles: K.
        proposal: r, a fixed program over the same sites (bind its parameters); None: the guide at its present parameters.

    Raises:
        ValueError: a latent site of the model is not proposed; a log-prob is scaled by subsampling.

    Validity: with r and v held fixed, value and gradient are unbiased for E[-sum_k v_k log q_phi(z_k)]. For the
    cross-entropy -E_{p(z | x)}[log q_phi(z)] and its gradient they are biased by O(1/K): self-normalised weights. The model
    gets no gradient. Discrete and continuous sites need no strategies.
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751; Le et al. 2019, arXiv:1805.10469.
    """
    check_particles("wake_phi", num_particles)

    @objective(direction="min")
    def wake_phi(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
        weights, log_q = _lanes(model, guide, proposal, args, num_particles)[:2]
        return -jnp.sum(stop(jax.nn.softmax(weights)) * log_q)

    return wake_phi(model, guide, strategies=CONSTANT)


def forward_kl(model: Any, guide: Any, *, num_particles: int, proposal: Any = None) -> Objective:
    """KL(p(z | x) || q_phi(z)) by self-normalised importance sampling (nats, minimised).

    value = sum_k v_k log(p(x, z_k) / q_phi(z_k)) - log 1/K sum_k w_k; never negative with r = q. The gradient is `wake_phi`'s.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q_phi.
        num_particles: K.
        proposal: r; None: the guide at its present parameters.

    Validity: as `wake_phi`: consistent in K, biased by O(1/K) at finite K. With the posterior itself as `proposal` both are
    unbiased.
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751; Naesseth et al. 2020, arXiv:2003.10374.
    """
    check_particles("forward_kl", num_particles)

    @objective(direction="min")
    def forward_kl(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
        weights, log_q, log_p = _lanes(model, guide, proposal, args, num_particles)
        return jnp.sum(stop(jax.nn.softmax(weights)) * (log_p - log_q)) - log_mean_exp(weights)

    return forward_kl(model, guide, strategies=CONSTANT)


def wake_theta(model: Any, guide: Any, *, num_particles: int) -> Objective:
    """Wake-phase update of the model: log 1/K sum_k w_k (nats, maximised) with the guide held fixed.

    Args:
        model: program with observations, p_theta.
        guide: program over the model's latent sites; it gets no gradient. `ppl.marginal` and `ppl.normalize` too.
        num_particles: K.

    Validity: value unbiased for the importance-weighted bound, a lower bound of log p(x); gradient, sum_k v_k d/dtheta log
    p_theta(x, z_k), unbiased for the bound's derivative in theta, and biased by O(1/K) for that of log p(x).
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751.
    """
    check_particles("wake_theta", num_particles)

    @objective
    def wake_theta(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
        def lane() -> Array:
            r = ppl.draw(detached(guide), *args)
            before = sites_met()
            p = ppl.score(model, r, *args)
            refuse_new_draws("wake_theta", before)
            return joint_weight(p, jax.tree.map(stop, r))[0]

        return log_mean_exp(ppl.particles(num_particles)(lane)())

    return wake_theta(model, guide, strategies=CONSTANT)


def rws(model: Any, guide: Any, *, num_particles: int) -> Objective:
    """Reweighted wake-sleep, both wake phases from the same K draws, every draw weighted (nats, maximised).

    value = log 1/K sum_k w_k. In theta the gradient is `wake_theta`'s; in phi it is the ascent direction sum_k v_k d/dphi log
    q_phi(z_k), `wake_phi`'s with its sign turned.

    Args:
        model: program with observations, p_theta.
        guide: program over the model's latent sites, q_phi.
        num_particles: K.

    Validity: value unbiased for the importance-weighted bound. The two gradients are those of two objectives, as their
    docstrings say; parameters that model and guide share get the sum.
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751; Le et al. 2019, arXiv:1805.10469.
    """
    check_particles("rws", num_particles)

    @objective
    def rws(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
        def lane() -> tuple[Array, Array]:
            r = ppl.draw(detached(guide), *args)
            before = sites_met()
            weight, _ = joint_weight(ppl.score(model, r, *args), jax.tree.map(stop, r))
            log_q = ppl.score(guide, r.choices, *args).log_density
            refuse_new_draws("rws", before)
            return weight, log_q

        weights, log_q = ppl.particles(num_particles)(lane)()
        shares = stop(jax.nn.softmax(weights))
        return log_mean_exp(weights) + jnp.sum(shares * (log_q - stop(log_q)))

    return rws(model, guide, strategies=CONSTANT)


def sleep(
    model: Any,
    guide: Any,
    *,
    data_args: Callable[..., tuple[Any, ...]],
    num_particles: int = 1,
) -> Objective:
    """Sleep-phase update of the guide: -E_{(z, x) ~ p}[log q_phi(z | x)] (nats, minimised).

    Args:
        model: program with observations; they are drawn, with the latent sites, at its present parameters.
        guide: program over the model's latent sites whose arguments hold the data.
        data_args: `(observed, *args) -> arguments of the guide`, where `observed` holds the drawn observations by site.
        num_particles: independent pairs averaged.

    Raises:
        ValueError: the model has no observed site; the guide does not match.

    Validity: value and gradient (in phi; the model gets none) are unbiased: it is the forward KL averaged over the model's own
    data, up to a constant, without self-normalisation.
    Reference: Hinton et al. 1995 (wake-sleep); Le et al. 2019, arXiv:1805.10469.
    """

    @objective(direction="min")
    def sleep(model: ppl.Program, guide: ppl.Program, *args: Any) -> Array:
        redraw = _RedrawObserved()
        with redraw:
            drawn = ppl.draw(detached(model), *args)
        if not redraw.names:
            raise ValueError(
                f"sleep: {model!r} has no observed site, so there is no data to dream up. Observe a site."
            )
        observed = {name: drawn.choices[name] for name in redraw.names}
        latent = {name: x for name, x in drawn.choices.items() if name not in observed}
        return -ppl.score(guide, latent, *data_args(observed, *args)).log_density

    return sleep(model, guide, strategies=CONSTANT, num_particles=num_particles)


class _RedrawObserved(Messenger):
    """Turn observations into draws."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and not _is_factor(msg["fn"]):
            self.names.append(msg["name"])
            msg["value"], msg["is_observed"] = None, False


def _is_factor(fn: Any) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


def _lanes(
    model: ppl.Program, guide: ppl.Program, proposal: Any, args: Any, num_particles: int
) -> tuple[Array, Array, Array]:
    """Log-weights (fixed), log q_phi (differentiable) and log p (fixed) of K draws from r."""
    source = detached(guide) if proposal is None else ppl.as_program(proposal)

    def lane() -> tuple[Array, Array, Array]:
        r = ppl.draw(source, *args)
        p = ppl.score(detached(model), r, *args)
        before = sites_met()
        log_q = ppl.score(guide, r.choices if proposal is None else r, *args).log_density
        refuse_new_draws("wake phase", before)
        return stop(joint_weight(p, r)[0]), log_q, stop(p.log_density)

    return ppl.particles(num_particles)(lane)()
