"""Two-filter smoothing: the states that a filter from the end finds, weighted by the one from the start.

Input: a loop of steps 0, ..., T - 1 whose densities f_t(x_t, y_t | x_{t-1}) depend on the last step's choices only, its
forward run with weights W before each step, and artificial priors gamma_t. The backward run targets, at step t,

    gamma_t(x_t) p(y_{t+1}, ..., y_{T-1} | x_t),

by kernels B_t with weights gamma_t(x_t) f_{t+1}(x_{t+1}, y_{t+1} | x_t) / (gamma_{t+1}(x_{t+1}) B_t(x_{t+1}, x_t)). Output: for
each step its particles x~^j with weights W~^j, as draws from p(x_t | all y) by the weights

    W~^j sum_i W^i f_t(x~^j, y_t | x_{t-1}^i) / gamma_t(x~^j);

what stands before step 0 is taken from the forward run, with the sum over j.

Invariant: gamma cancels; it decides where the backward particles are, not what they stand for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._compat import is_concrete
from ..engine import NO_PATH_GRADIENT, FeynmanKac, Filter, RunOptions, Segment, run
from ..population import times, underived, uniform, voided
from ..programs import Future
from ..resampling import systematic

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class InformationFilter:
    """What a filter needs to run from the end to the start of a model: artificial priors and a kernel.

    States are those of a `FeynmanKac`, x_1, ..., x_T; for a program the choices of one step of its scan, site -> value,
    t = 0, ..., T - 1. Functions act on one particle.

    Args:
        init: `key -> x_T` (the last step's), a draw from the artificial prior gamma of the last time.
        kernel: `(key, x_{t+1}, t) -> x_t`, a draw from B_t.
        log_prior: `(x_t, t) -> log gamma_t(x_t)` in nats, up to a constant.
        log_kernel: `(x_{t+1}, x_t, t) -> log B_t(x_{t+1}, x_t)` in nats.

    Validity: weights are right for every gamma and B that are positive where the smoothing density is; tails heavier
    than its keep their variance finite. A good choice is gamma_t = the prior's marginal law and B_t its reversed kernel.

    Example: for x_t = 0.9 x_{t-1} + noise of variance 1 in its stationary law, which is reversible
        >>> from lapilli import inference
        >>> import jax, numpyro.distributions as dist
        >>> law, step = dist.Normal(0.0, 0.19**-0.5), lambda x: dist.Normal(0.9 * x["x"], 1.0)
        >>> backward = inference.particles.InformationFilter(
        ...     init=lambda key: {"x": law.sample(key)},
        ...     kernel=lambda key, later, t: {"x": step(later).sample(key)},
        ...     log_prior=lambda x, t: law.log_prob(x["x"]),
        ...     log_kernel=lambda later, x, t: step(later).log_prob(x["x"]),
        ... )

    Reference: Briers, Doucet and Maskell 2010, Smoothing algorithms for state-space models, section 3.
    """

    init: Callable[[Array], PyTree]
    kernel: Callable[[Array, PyTree, Array], PyTree]
    log_prior: Callable[[PyTree, Array], Array]
    log_kernel: Callable[[PyTree, PyTree, Array], Array]


def marginals(
    key: Array, segments: list[Segment], info: InformationFilter, num_samples: int, is_chain: bool,
    options: RunOptions,
) -> tuple[Any, Array]:  # fmt: skip
    """Draws of each time, as `taken` shapes paths, and the numbers of different particles among them, [steps + 1]."""
    (segment, record), future = _only_loop(segments)
    shift = int(is_chain)  # the loop's step 0 is move 1 of a chain
    run_key, draw_key = jax.random.split(key)
    states, log_weights = record.states, record.log_weights
    step = jnp.arange(future.length, dtype=jnp.int32)

    def log_joint(state: PyTree, x: Array, t: Array) -> Array:
        """Log-joint of one step, for one particle in the state before it."""
        return future.log_joint(_alone(state), _alone(x), t)[1][0]

    def after(x: Array, t: Array) -> Any:
        """The state after step t: of the one before it nothing counts."""
        before = jax.tree.map(lambda s: s[t, :1], states)
        return jax.tree.map(lambda s: s[0], future.log_joint(before, _alone(x), t)[0])

    def log_potential(later: PyTree, x: Array, s: Array) -> Array:
        t = future.length - 1 - s
        ahead = log_joint(after(x, t), later, jnp.minimum(t + 1, future.length - 1))
        ahead = ahead + info.log_prior(x, t + shift) - info.log_prior(later, t + 1 + shift)
        return jnp.where(s > 0, ahead - info.log_kernel(later, x, t + shift), 0.0)

    kernel = lambda key, later, s: info.kernel(key, later, future.length - 1 - s + shift)
    model = FeynmanKac(info.init, kernel, log_potential, future.length - 1)
    _check_choices(info, record)
    result, ((start, back), *_) = run(model, run_key, (), options)
    assert back is not None
    join = lambda a, b: jnp.concatenate([a[None], b])[::-1]
    found = jax.tree.map(join, start, back.made)
    weights = jnp.concatenate([back.log_weights, result.log_weights[None]])[::-1]
    # Of backward particle j at step t without the forward run.
    prior = jax.vmap(jax.vmap(info.log_prior, (0, None)))(found, step + shift)
    weights = times(weights, -prior)

    def mass(t: Array) -> Array:
        """Log-mass of the backward particles of step t, [particles]."""
        before = jax.tree.map(lambda s: s[t], states)
        ahead = lambda x: jax.vmap(log_joint, (0, None, None))(before, x, t)
        total = lambda x: jax.nn.logsumexp(times(log_weights[t], ahead(x)))
        return times(weights[t], _blocked(total, jax.tree.map(lambda x: x[t], found)))

    def first_mass() -> Array:
        """Log-mass of the forward particles before step 0, [particles]."""
        ahead = jax.tree.map(lambda x: x[0], found)
        before = lambda s: jax.vmap(log_joint, (None, 0, None))(s, ahead, step[0])
        total = lambda s: jax.nn.logsumexp(times(weights[0], before(s)))
        return times(log_weights[0], _blocked(total, jax.tree.map(lambda s: s[0], states)))

    masses = jnp.concatenate([first_mass()[None], jax.lax.map(mass, step)])
    is_lost = ~(masses.max(1) > -jnp.inf)
    # Weights that come after a weighing without any are even, and look like others.
    lost_at = jnp.where(result.failed_at < 0, -1, future.length - 1 - result.failed_at + shift)
    is_odd = ~(masses < jnp.inf).all(1)
    _check_found(is_lost, is_odd, lost_at)
    is_lost = is_lost | (lost_at >= 0)
    masses = underived(
        NO_PATH_GRADIENT, jnp.where(is_lost[:, None], uniform(masses.shape[1]), masses)
    )
    keys = jax.random.split(draw_key, len(masses))
    index = jax.vmap(lambda key, mass: systematic(key, mass, num_samples))(keys, masses)
    count = lambda row: jnp.zeros(masses.shape[1], int).at[row].set(1).sum()
    pick = lambda x: jnp.moveaxis(jax.vmap(lambda x, i: x[i])(x, index[1:]), 0, 1)
    early, late = jax.tree.map(lambda x: x[index[0]], segment), jax.tree.map(pick, found)
    early, late = voided((early, late), (is_lost | is_odd).any())
    if is_chain:
        paths = jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b], 1), early, late)
    else:
        paths = {**early, **late}
    return paths, jax.vmap(count)(index)


def _alone(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], tree)


def _blocked(fn: Callable[[PyTree], Array], particles: PyTree) -> Array:
    """`fn` of every particle; each costs as much as all together, so that about 2^20 values stand at once (memory)."""
    num = len(jax.tree.leaves(particles)[0])
    return jax.lax.map(fn, particles, batch_size=max(1, min(num, 2**20 // num)))


def _only_loop(segments: list[Segment]) -> tuple[tuple[Any, Filter], Future]:
    """Values from before the loop, its record and densities."""
    loops = [s for s in segments if s.filter is not None]
    if len(loops) != 1:
        raise ValueError(
            f"smooth: an InformationFilter runs backwards through one scan, and the program has {len(loops)} with sites. Use "
            "method='ffbs'."
        )
    record = loops[0].filter
    assert record is not None
    future = record.future()
    if future.memory > 1 or not future.is_last:
        what = (
            "data after the scan"
            if not future.is_last
            else "steps that see more of the past than the choices of the last one"
        )
        raise ValueError(
            f"smooth: an InformationFilter needs a Markov chain seen through a scan, and the program has {what}. Let the last "
            "choices be the whole state (condition on what all steps share, ppl.condition), or use method='ffbs'."
        )
    return (loops[0].values, record), future


def _check_choices(info: InformationFilter, record: Filter) -> None:
    """The backward run draws what a step draws."""
    shape = lambda tree: jax.tree.map(jnp.shape, tree)
    want = jax.tree.map(lambda x: x.shape[2:], record.made)
    have = shape(jax.eval_shape(info.init, jax.random.key(0)))
    if have != want:
        raise ValueError(
            f"smooth: InformationFilter.init draws values of shapes {have}, a step of the model has {want}. Draw every "
            "latent site of the step (the state of a FeynmanKac)."
        )


def _check_found(is_lost: Array, is_odd: Array, lost_at: Array) -> None:
    """Refuse draws of a wrong law; `lost_at` is the step at which the run backwards lost its particles, -1 for none."""
    if is_concrete(is_odd) and bool(is_odd.any()):
        raise ValueError(
            f"smooth: before step {int(jnp.argmax(is_odd))} a density of a pair of forward and backward particles, or of "
            "the InformationFilter's prior, is NaN or +inf, and without it the draws would have the wrong law. Return -inf for "
            "what is impossible."
        )
    if is_concrete(lost_at) and int(lost_at) >= 0:
        raise ValueError(
            f"smooth: at step {int(lost_at)} the run backwards lost all its particles: none has a positive density of the next "
            "step given it. Give the InformationFilter priors and kernels that reach where the data are, or use more particles."
        )
    if is_concrete(is_lost) and bool(is_lost.any()):
        raise ValueError(
            f"smooth: before step {int(jnp.argmax(is_lost))} no pair of forward and backward particles has a positive density. "
            "Give the InformationFilter priors and kernels that reach where the data are, or use more particles."
        )
