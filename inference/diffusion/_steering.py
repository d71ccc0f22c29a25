"""Conditioning and steering of one diffusion model by a function of its data: other kernels and potentials on the same engine.

Both methods move by the ancestral step p_n(y | x) of the model (`reverse_step`), and both have

    prod_n G_n M_n = exp(reward(x_N)) prod_n p_n(x_{n+1} | x_n),

so that their target is the law of the model's own chain, tilted by the reward of where it ends: exact in the number of
particles for the chain as it is, however coarse its steps and however wrong its score. What lies between is look-ahead, by the
reward at the denoised point x_0(x_n). Where that is -inf (a constraint that the denoised point breaks, and the point at the end
need not) the look-ahead says nothing, and the value before is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from ...ppl._show import shown
from ...ppl.language import name_of
from ..particles.engine import FeynmanKac
from ._diffusion import Diffusion, check_array, check_noise, check_times, reverse_step
from ._rewards import NUM_TRIED, as_number, try_at_start

Potential = Literal["difference", "max", "sum"]


@shown
class Twisted(NamedTuple):
    """State of a particle of `twisted_diffusion`: its place, the score, and the log-likelihood that it can expect."""

    x: Float[Array, " *shape"]
    score: Float[Array, " *shape"]
    log_twist: Float[Array, ""]
    gradient: Float[Array, " *shape"]


@shown
class Steered(NamedTuple):
    """State of a particle of `fk_steering`: its place, the score, and the reward that it can expect.

    Attributes:
        running: the largest reward so far, or their sum; 0 where potentials are differences.
        spent: sum of the log-potentials up to here, of which the last step gives back what is too much.
    """

    x: Float[Array, " *shape"]
    score: Float[Array, " *shape"]
    reward: Float[Array, ""]
    running: Float[Array, ""]
    spent: Float[Array, ""]


def twisted_diffusion(
    diffusion: Diffusion,
    times: Float[Array, " steps+1"],
    log_likelihood: Callable[[Array], Array],
) -> FeynmanKac:
    """Posterior draws under a diffusion prior: p(x | y) proportional to q(x) p(y | x), by the twisted diffusion sampler.

    The step is the ancestral one with score s + grad log p(y | x_0(x)), and its weight

        log G = log p(x' | x) + log p(y | x_0(x')) - log p(y | x_0(x)) - log M(x' | x),

    with p(y | x') itself at the last step. Inpainting, blur and projections are likelihoods of this kind.

    Args:
        diffusion: the prior.
        times: descending noising times, ending above 0.
        log_likelihood: `x_0 -> log p(y | x_0)` in nats, differentiable.

    Returns:
        A `FeynmanKac` with states `Twisted`: `smc(...)` gives weighted particles `.x`, and `log_evidence` estimates log p(y).

    Raises:
        ValueError: times that do not descend, or end without noise; a likelihood of another shape than (), or one that is NaN or
            infinite at the first denoised points.

    Validity: exact in K, E[exp(log_evidence)] = p(y), for the law of the ancestral chain of `diffusion` on this grid. The step
    follows the gradient where it starts: where steps are long beside the likelihood's width it overshoots, and the weights
    have a large variance; then take more steps.

    Reference: Wu et al. 2023, arXiv:2306.17775, algorithm 1.
    """
    times = _checked("twisted_diffusion", diffusion, times)
    last = len(times) - 1
    log_likelihood = _tried("twisted_diffusion", log_likelihood, diffusion, times)

    def at(x: Array, n: PyTree, previous: Twisted | None) -> Twisted:
        def ahead(x: Array) -> tuple[Array, Array]:
            score = diffusion.score_at(x, times[n])
            noising, t = diffusion.noising, times[n]
            return log_likelihood((x + noising.variance(t) * score) / noising.alpha(t)), score

        (log_twist, score), gradient = jax.value_and_grad(ahead, has_aux=True)(x)
        before = jnp.zeros(()) if previous is None else previous.log_twist
        now = jnp.where(n == last, log_likelihood(x), _known(log_twist, before))
        return Twisted(x, score, now, gradient)

    def move(state: Twisted, n: Array, twist: float) -> dist.Normal:
        score = state.score + twist * state.gradient
        mean, variance = reverse_step(diffusion.noising, state.x, score, times[n - 1], times[n])
        return dist.Normal(mean, jnp.sqrt(variance))

    def log_potential(previous: Twisted, state: Twisted, n: Array) -> Array:
        def step() -> Array:
            model, proposal = (
                move(previous, n, twist).log_prob(state.x).sum() for twist in (0.0, 1.0)
            )
            return model - proposal + state.log_twist - previous.log_twist

        return jax.lax.cond(n == 0, lambda: state.log_twist, step)

    return FeynmanKac(
        lambda key: at(jnp.asarray(diffusion.prior().sample(key)), 0, None),
        lambda key, state, n: at(move(state, n, 1.0).sample(key), n, state),
        log_potential,
        last,
        lambda previous, state, n: move(previous, n, 1.0).log_prob(state.x).sum(),
        has_memory=True,
    )


def fk_steering(
    diffusion: Diffusion,
    times: Float[Array, " steps+1"],
    reward: Callable[[Array], Array],
    *,
    potential: Potential = "difference",
) -> FeynmanKac:
    """Draws from q(x) exp(reward(x)) without gradients of the reward: the model's own steps, weighted on the way.

    With r_n the reward at the denoised point,

        difference  log G_n = r_n - r_{n-1}
        max         log G_n = max_{m <= n} r_m
        sum         log G_n = r_0 + ... + r_n

    and the last one is what is left: sum_n log G_n = reward(x_N). Resample seldom, e.g. `policy=every(20)`: in
    between the weights accumulate.

    Args:
        diffusion: the model.
        times: descending noising times, ending above 0.
        reward: `x_0 -> reward` in nats (times its inverse temperature); need not be differentiable.
        potential: see above.

    Returns:
        A `FeynmanKac` with states `Steered`; `log_evidence` estimates log E_q[exp(reward)].

    Raises:
        ValueError: times that do not descend, or end without noise; an unknown potential; a reward of another shape than (), or
            one that is NaN or infinite at the first denoised points.

    Validity: exact in K for the law of the ancestral chain of `diffusion` on this grid. Under "max" and "sum" what the last
    weight has to take back grows with the number of steps, and its variance with it; and since they look at the whole past, a
    path cannot be given other ancestors (`conditional_smc` with path="ancestor" or "backward" refuses them).

    Reference: Singhal et al. 2025, arXiv:2501.06848, section 3.
    """
    if potential not in ("difference", "max", "sum"):
        raise ValueError(
            f"fk_steering: potential must be 'difference', 'max' or 'sum', got {potential!r}."
        )
    times = _checked("fk_steering", diffusion, times)
    noising, last = diffusion.noising, len(times) - 1
    reward = _tried("fk_steering", reward, diffusion, times)

    def at(x: Array, n: PyTree, previous: Steered | None) -> Steered:
        score, t = diffusion.score_at(x, times[n]), times[n]
        ahead = reward((x + noising.variance(t) * score) / noising.alpha(t))
        nothing = jnp.zeros_like(ahead)
        before = nothing if previous is None or potential == "sum" else previous.reward
        now = jnp.where(n == last, reward(x), _known(ahead, before))
        if potential == "difference":
            return Steered(x, score, now, nothing, nothing)
        combine = jnp.maximum if potential == "max" else jnp.add
        running = now if previous is None else combine(previous.running, now)
        spent = nothing if previous is None else previous.spent
        return Steered(x, score, now, running, spent + running)

    def log_potential(previous: Steered, state: Steered, n: Array) -> Array:
        if potential == "difference":
            return state.reward - jnp.where(n == 0, 0.0, previous.reward)
        return jnp.where(n == last, state.reward - previous.spent, state.running)

    def move(state: Steered, n: Array) -> dist.Normal:
        mean, variance = reverse_step(noising, state.x, state.score, times[n - 1], times[n])
        return dist.Normal(mean, jnp.sqrt(variance))

    def log_transition(previous: Steered, state: Steered, n: Array) -> Array:
        return move(previous, n).log_prob(state.x).sum()

    return FeynmanKac(
        lambda key: at(jnp.asarray(diffusion.prior().sample(key)), 0, None),
        lambda key, state, n: at(move(state, n).sample(key), n, state),
        log_potential,
        last,
        log_transition if potential == "difference" else None,
        has_memory=True,
    )


def _known(ahead: Array, before: Array) -> Array:
    """The look-ahead, or the value before where it is -inf."""
    return jnp.where(ahead == -jnp.inf, before, ahead)


def _tried(
    name: str, reward: Callable[[Array], Array], diffusion: Diffusion, times: Array
) -> Callable[[Array], Array]:
    """The reward of a point, refused where it is no number at the points that the first look-ahead sees."""
    number = as_number(reward, name)

    def ahead() -> Array:
        keys = jax.random.split(jax.random.key(0), NUM_TRIED)
        first = jax.vmap(diffusion.prior().sample)(keys)
        return jax.vmap(lambda x: diffusion.denoise(x, times[0]))(first)

    try_at_start(name, number, name_of(reward), ahead)
    return number


def _checked(name: str, diffusion: Diffusion, times: Array) -> Array:
    check_noise(name, diffusion)
    check_array(name, diffusion)
    times = check_times(name, diffusion.noising, times)
    with jax.ensure_compile_time_eval():  # known times stay known within jit
        last = float(times[-1])
        variance = float(diffusion.noising.variance(last))
    if variance == 0:
        raise ValueError(
            f"{name}: times end at {last:g}, where no noise is left and the last step has no density. End at a small "
            "positive time, e.g. noising.times(num_steps)."
        )
    return times
