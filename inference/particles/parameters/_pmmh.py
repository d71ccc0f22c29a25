"""Particle marginal Metropolis-Hastings: a chain over parameters, their likelihood estimated by particles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import is_concrete, typed_key
from ....ppl._precision import full_precision
from ....ppl._show import shown
from ....ppl._types import Key
from ..._made_for import MadeFor, drops_origin, made_for
from ...inputs import checked
from ..engine import FilterOptions, smc
from ..moves import acceptance, cholesky
from ._parameter_filter import ParameterFilter, compiled, make_task, one_path

Array = jax.Array
WIDEST = 10.0  # the scale stays within this factor of its start: noise, too, rejects


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class PMMHResult:
    """Draws of a chain; a pytree.

    Attributes:
        parameters: parameter site -> values, [samples, ...].
        states: every other latent site -> values of a path that belongs to the parameters, [samples, ...].
        log_joint: estimates of log p(parameters, data), [samples], nats.
        is_accepted: whether the proposal of each sample was taken, [samples].
        scale: of the random walk after warmup, in units of `spread`.
        spread: lower Cholesky factor of the covariance of the unconstrained parameters, [d, d].
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    parameters: dict[str, Array]
    states: dict[str, Array]
    log_joint: Array
    is_accepted: Array
    scale: Array
    spread: Array
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    @property
    def choices(self) -> dict[str, Array]:
        """All latent sites, [samples, ...]."""
        return {**self.parameters, **self.states}


class _PmmhState(NamedTuple):
    """Where a chain stands, and what its warmup has learnt of the unconstrained posterior."""

    point: Array
    log_density: Array
    log_joint: Array
    states: dict[str, Array]
    mean: Array
    covariance: Array
    log_scale: Array


@checked_call
def pmmh(
    model: ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    parameters: Sequence[str],
    num_samples: int,
    num_particles: int,
    num_warmup: int = 500,
    init: Mapping[str, float] | None = None,
    target_accept: float = 0.2,
    filter: FilterOptions = FilterOptions(),  # noqa: B008, frozen
    **kwargs: PyTree,
) -> PMMHResult:
    """A Markov chain on parameters and states whose likelihood ratios come from particle filters.

    From theta propose theta', run `smc` with theta' fixed, and accept with probability

        min(1, p(theta') p^(data | theta') q(theta | theta') / (p(theta) p^(data | theta) q(theta' | theta)));

    the estimate and one path of an accepted run are kept until the next acceptance. Proposals are Gaussian steps in
    unconstrained coordinates (the ratio has the Jacobians). During warmup their covariance follows the chain's and their scale
    the acceptance rate, and the current estimate is renewed before each move; then all three are fixed.

    Args:
        model: a program.
        key: PRNG key of either kind.
        args: the model's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        parameters: latent sites, continuous, drawn before the scans; the particles do the rest. A prior may depend on other
            parameters, not on other latent sites.
        num_samples: samples after warmup.
        num_particles: K of each filter; well chosen if log_joint at one good theta has a variance of about 1 to 2 over runs.
        num_warmup: moves before the first sample, two filters each.
        init: parameter -> first value; by default one draw by `smc` of the whole program, which weights draws from the prior.
        target_accept: acceptance rate that warmup aims at.
        filter: how particles go through the model; its scheme unbiased, its proposal for the other latent sites.

    Returns:
        A `PMMHResult`. For several chains `jax.vmap` over keys; `to_arviz` takes one or several.

    Raises:
        ValueError: a parameter that is missing, discrete, in or after a scan; a prior or support that depends on what is no
            parameter; a biased scheme; sizes below 1; an `init` of a wrong shape or without prior density.
        RuntimeError: the chain has not reached parameters under which the data are possible (outside of jit; under jit
            log_joint is -inf there).

    Validity: the chain after warmup leaves p(parameters, states | data) invariant for every K, because the evidence estimates
    are unbiased; K only governs how often it moves.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> @ppl.model
        ... def walk(ys):
        ...     a = ppl.sample("a", dist.Uniform(-1.0, 1.0))
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(a * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> chain = inference.particles.pmmh(
        ...     walk, jax.random.key(0), jnp.ones(3), parameters=["a"], num_samples=20, num_particles=10, num_warmup=10
        ... )
        >>> chain.parameters["a"].shape, chain.states["x"].shape
        ((20,), (20, 3))

    Reference: Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods, section 2.4.2; Andrieu and Thoms
    2008, algorithm 4 (adaptation); Doucet, Pitt, Deligiannidis and Kohn 2015, arXiv:1210.1871 (number of particles).
    """
    origin, args = made_for(model, args, kwargs), checked(pmmh, model, args, kwargs)
    _check(num_samples, num_particles, num_warmup, target_accept, parameters, init)
    settings = _PmmhSettings(num_warmup, num_samples, target_accept)
    task = make_task("pmmh", model, args, parameters, num_particles, filter, settings)
    space = task.space(args)
    start = None if init is None else {name: jnp.asarray(init[name], float) for name in parameters}
    if start is not None:
        space.check_start("pmmh", start)
    result = compiled(_chain, task, args)(typed_key(key), start)
    is_lost = ~(result.log_joint > -jnp.inf)
    if is_concrete(is_lost) and bool(is_lost.any()):
        raise RuntimeError(
            f"pmmh: {int(is_lost.sum())} of {num_samples} samples have parameters under which a filter lost all its particles, "
            "or a weight was NaN (log_joint -inf or NaN), so the chain has not reached the posterior. Start elsewhere by init=, "
            "or raise num_particles or num_warmup."
        )
    return dataclasses.replace(result, made_for=origin)


class _PmmhSettings(NamedTuple):
    num_warmup: int
    num_samples: int
    target_accept: float


def _chain(
    settings: _PmmhSettings, run: ParameterFilter, key: Array, init: dict[str, Array] | None
) -> PMMHResult:
    init_key, start_key, prior_key, warm_key, sample_key = jax.random.split(key, 5)
    space = run.space
    point = space.coordinates(_first(run, init_key) if init is None else init)
    state = _PmmhState(
        point, *_densities(run, start_key, point), point, space.prior_covariance(prior_key),
        jnp.log(2.38 / space.dimension**0.5),
    )  # fmt: skip

    def warm(state: _PmmhState, inputs: PyTree) -> tuple[_PmmhState, None]:
        n, (renew_key, key) = inputs[0], jax.random.split(inputs[1])
        # A chain that one high estimate holds for long would take its covariance to zero.
        log_density, log_joint, states = _densities(run, renew_key, state.point)
        state = state._replace(log_density=log_density, log_joint=log_joint, states=states)
        new, rate, _ = _move(run, key, state, cholesky(state.covariance))
        return _adapt(new, n, rate, settings.target_accept, space.dimension), None

    keys = jax.random.split(warm_key, settings.num_warmup)
    state, _ = jax.lax.scan(warm, state, (jnp.arange(settings.num_warmup), keys))
    spread = cholesky(state.covariance)

    def sample(state: _PmmhState, key: Array) -> tuple[_PmmhState, PyTree]:
        new, _, is_accepted = _move(run, key, state, spread)
        return new, (space.values(new.point), new.states, new.log_joint, is_accepted)

    _, draws = jax.lax.scan(sample, state, jax.random.split(sample_key, settings.num_samples))
    values, states, log_joint, is_accepted = draws
    return PMMHResult(values, states, log_joint, is_accepted, jnp.exp(state.log_scale), spread)


def _densities(
    run: ParameterFilter, key: Array, point: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """The estimated density in unconstrained coordinates and in the parameters', and a path."""
    estimate = run(key, point)
    return estimate.log_joint + estimate.log_jacobian, estimate.log_joint, estimate.states


def _first(run: ParameterFilter, key: Array) -> dict[str, Array]:
    """Values to start with: one of the prior's draws, by the weights of a run of the whole program."""
    run_key, choice_key = jax.random.split(key)
    return one_path(choice_key, smc(run.program, run_key, *run.args, **run.options))


def _move(
    run: ParameterFilter, key: Array, state: _PmmhState, spread: Array
) -> tuple[_PmmhState, Array, Array]:
    """Metropolis-Hastings; a NaN ratio rejects."""
    noise_key, run_key, accept_key = jax.random.split(key, 3)
    noise = jax.random.normal(noise_key, state.point.shape)
    with full_precision():
        point = state.point + jnp.exp(state.log_scale) * spread @ noise
    log_density, log_joint, states = _densities(run, run_key, point)
    log_ratio = log_density - state.log_density
    rate = acceptance(log_ratio)
    is_accepted = jax.random.uniform(accept_key) < rate
    new = state._replace(point=point, log_density=log_density, log_joint=log_joint, states=states)
    state = jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), new, state)
    return state, rate, is_accepted


def _adapt(
    state: _PmmhState, n: Array, rate: Array, target_accept: float, dimension: int
) -> _PmmhState:
    """Robbins-Monro steps of mean, covariance and scale."""
    gain = (n + 10.0) ** -0.6
    centred = state.point - state.mean
    middle, room = jnp.log(2.38 / dimension**0.5), jnp.log(WIDEST)
    log_scale = state.log_scale + 4 * gain * (rate - target_accept)
    return state._replace(
        mean=state.mean + gain * centred,
        covariance=state.covariance + gain * (jnp.outer(centred, centred) - state.covariance),
        log_scale=jnp.clip(log_scale, middle - room, middle + room),
    )


def _check(
    num_samples: object,
    num_particles: object,
    num_warmup: object,
    target_accept: float,
    parameters: Sequence[str],
    init: Mapping[str, float] | None,
) -> None:
    check_counts("pmmh", num_samples=num_samples, num_particles=num_particles)
    check_counts("pmmh", 0, num_warmup=num_warmup)
    if not 0 < target_accept < 1:
        raise ValueError(f"pmmh: target_accept must lie in (0, 1), got {target_accept}.")
    if init is not None and set(init) != set(parameters):
        raise ValueError(
            f"pmmh: init names {sorted(init)}, the parameters are {sorted(parameters)}. Give each one value."
        )
