"""SMC^2: particles of parameters, each with particles of states, as the data arrive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import typed_key
from ....ppl._show import shown
from ....ppl._types import Key
from ..._made_for import MadeFor, drops_origin, made_for
from ...inputs import checked
from ..engine import FilterOptions, warn_of_lost
from ..moves import RandomWalk, acceptance, along
from ..population import (
    evidence,
    facts_with_error,
    family_error,
    log_apart,
    reweight,
    uniform,
)
from ..resampling import Scheme, as_scheme, equally_weighted, ess_below, resample
from ._parameter_filter import ParameterFilter, compiled, make_task
from ._parameters import Parameters

Array = jax.Array


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class SMC2Result:
    """Weighted parameters, each with one path of the states; a pytree.

    Attributes:
        parameters: parameter site -> values, [parameter particles, ...].
        states: every other latent site -> values of one path for each, [parameter particles, ...].
        log_weights: normalised, [parameter particles], nats.
        log_evidence: estimate of log p(data), nats.
        increments: of the log evidence, one per weighing of the program (see `SMCResult`), nats; the second and later ones
            are log predictive densities of the data of one step of a scan.
        ess: effective number of parameter particles after each weighing.
        is_resampled: whether they were then resampled and moved.
        acceptance: mean acceptance probability of these moves, 0 where there were none.
        log_apart: log-share of the pairs of parameter particles that descend from different draws of the prior, at the last
            weighing, nats: see `evidence_variance`.
        offspring: the law of the offspring counts, that of the `Scheme`.
        failed_at: number of the first weighing after which no parameter had positive weight, or one was NaN; -1 if there is none.
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    parameters: dict[str, Array]
    states: dict[str, Array]
    log_weights: Array
    log_evidence: Array
    increments: Array
    ess: Array
    is_resampled: Array
    acceptance: Array
    failed_at: Array
    log_apart: Array
    offspring: str = dataclasses.field(default="unknown", metadata={"static": True})
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    def _facts(self) -> dict[str, PyTree]:
        return facts_with_error(self, "resampling='ssp', or particles.replicate")

    @property
    def log_evidence_std_error(self) -> Array | None:
        """Standard error of `log_evidence`, nats, by `evidence_variance`; None where one run does not show it."""
        return family_error(self)

    @property
    def _num_first(self) -> int:
        return self.log_weights.shape[-1]

    def _num_resamplings(self, read: Callable[[Array], PyTree]) -> Any:
        return read(self.is_resampled)[..., :-1].sum(
            -1
        )  # one after the last weighing does not count

    @property
    def particles(self) -> dict[str, Array]:
        """All latent sites, [parameter particles, ...]."""
        return {**self.parameters, **self.states}

    def sample(self, key: Key | None, num_samples: int) -> dict[str, Array]:
        """Equally weighted particles, drawn by systematic resampling; void where all were lost."""
        kept = self.particles, self.log_weights, self.failed_at
        return equally_weighted(typed_key(key), *kept, num_samples)


@checked_call
def smc2(
    model: ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    parameters: Sequence[str],
    num_parameter_particles: int,
    num_particles: int,
    num_moves: int = 3,
    target_ess: float = 0.5,
    filter: FilterOptions = FilterOptions(),  # noqa: B008, frozen
    batch_size: int | None = None,
    **kwargs: PyTree,
) -> SMC2Result:
    """Move N parameters from prior to posterior as the data of a scan arrive, their likelihoods estimated by particle filters.

    Each theta has a filter of K particles, whose evidence increments p^(y_t | y_<t, theta) weigh it. When the effective number
    of parameters falls below `target_ess` N they are resampled and moved `num_moves` times by `pmmh` on the data so far. With
    all latent sites as parameters and one particle this is IBIS (Chopin 2002).

    A filter runs over all data when its theta is proposed, and its increments are used as t comes to them: the law is that of
    filters that grow step by step, a move costs a whole filter.

    Args:
        model: a program; data arrive by the steps of its scans.
        key: PRNG key of either kind.
        args: the model's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        parameters: as for `pmmh`.
        num_parameter_particles: N.
        num_particles: K of each filter.
        num_moves: moves after each resampling of the parameters, Gaussian steps with the particles' own covariance.
        target_ess: fraction of N, in (0, 1).
        filter: as for `pmmh`; its scheme resamples the parameters, too.
        batch_size: filters that run at once; None for all.

    Returns:
        An `SMC2Result`.

    Raises:
        ValueError: see `pmmh`.

    Validity: weighted averages and log_evidence are consistent in N for every K, since the evidence estimates of the filters
    are unbiased. The moves are tuned from the particles, which biases them by order 1 / N.

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
        >>> result = inference.particles.smc2(
        ...     walk, jax.random.key(0), jnp.ones(3), parameters=["a"], num_parameter_particles=20, num_particles=10
        ... )
        >>> result.parameters["a"].shape, result.states["x"].shape, result.increments.shape
        ((20,), (20, 3), (4,))

    Reference: Chopin, Jacob and Papaspiliopoulos 2013, SMC^2, arXiv:1101.1528.
    """
    origin, args = made_for(model, args, kwargs), checked(smc2, model, args, kwargs)
    check_counts("smc2", 2, num_parameter_particles=num_parameter_particles)
    check_counts("smc2", num_particles=num_particles, num_moves=num_moves)
    check_counts("smc2", batch_size=1 if batch_size is None else batch_size)
    if not 0 < target_ess < 1:
        raise ValueError(f"smc2: target_ess must lie in (0, 1), got {target_ess}.")
    settings = _Smc2Settings(
        num_parameter_particles, num_moves, target_ess, as_scheme(filter.resampling), batch_size
    )
    task = make_task("smc2", model, args, parameters, num_particles, filter, settings)
    task.space(args)  # what is wrong with the parameters, before any device work
    result = compiled(_run, task, args)(typed_key(key))
    warn_of_lost("smc2", result.failed_at)
    return dataclasses.replace(result, made_for=origin)


class _ParameterCloud(NamedTuple):
    """Parameter particles with their filters; every array has a leading axis of particles.

    `increments` are those of the data alone, of all weighings, those to come too.
    """

    points: Array
    log_priors: Array
    increments: Array
    states: dict[str, Array]


class _Smc2Settings(NamedTuple):
    size: int
    num_moves: int
    target_ess: float
    scheme: Scheme
    batch_size: int | None


def _run(settings: _Smc2Settings, filters: ParameterFilter, key: Array) -> SMC2Result:
    return _Smc2Run(*settings, filters)(key)


@dataclasses.dataclass(frozen=True)
class _Smc2Run:
    size: int
    num_moves: int
    target_ess: float
    scheme: Scheme
    batch_size: int | None
    filters: ParameterFilter

    @property
    def space(self) -> Parameters:
        return self.filters.space

    def __call__(self, key: Array) -> SMC2Result:
        draw_key, filter_key, loop_key = jax.random.split(key, 3)
        points = jax.vmap(self.space.draw)(jax.random.split(draw_key, self.size))
        cloud = self.cloud(filter_key, points)
        scale = jnp.asarray(RandomWalk().init_scale(self.space.dimension))

        def step(carry: PyTree, t: Array) -> tuple[PyTree, dict[str, Array]]:
            cloud, log_weights, scale, eves = carry
            weights = reweight(log_weights, cloud.increments[:, t])
            apart = log_apart(eves, weights.log_weights)
            is_low = ess_below(self.target_ess)(t, weights.log_weights)
            cloud, log_weights, scale, eves, rate = jax.lax.cond(
                is_low, self.rejuvenate, lambda *same: (*same[1:5], jnp.zeros(())),
                jax.random.fold_in(loop_key, t), cloud, weights.log_weights, scale, eves, t,
            )  # fmt: skip
            record = {"increments": weights.increment, "ess": weights.ess, "is_resampled": is_low}
            return (cloud, log_weights, scale, eves), record | {"acceptance": rate, "apart": apart}

        steps = jnp.arange(cloud.increments.shape[1])
        eves = jnp.arange(self.size, dtype=jnp.int32)
        (cloud, log_weights, *_), record = jax.lax.scan(
            step, (cloud, uniform(self.size), scale, eves), steps
        )
        apart = record.pop("apart")[-1]
        log_evidence, failed_at = evidence(record["increments"])
        values = jax.vmap(self.space.values)(cloud.points)
        return SMC2Result(
            values, cloud.states, log_weights, log_evidence, failed_at=failed_at, log_apart=apart,
            offspring=self.scheme.offspring, made_for=None, **record,
        )  # fmt: skip

    def cloud(self, key: Array, points: Array) -> _ParameterCloud:
        """A filter for every point."""

        def one(inputs: tuple[Array, Array]) -> _ParameterCloud:
            estimate = self.filters(*inputs)
            log_prior = estimate.log_prior + estimate.log_jacobian
            return _ParameterCloud(inputs[1], log_prior, estimate.increments, estimate.states)

        inputs = (jax.random.split(key, self.size), points)
        if self.batch_size is None:
            return jax.vmap(one)(inputs)
        return jax.lax.map(one, inputs, batch_size=self.batch_size)

    def rejuvenate(
        self,
        key: Array,
        cloud: _ParameterCloud,
        log_weights: Array,
        scale: Array,
        eves: Array,
        t: Array,
    ) -> tuple[_ParameterCloud, Array, Array, Array, Array]:
        """Resample the parameters and move them by particle marginal Metropolis-Hastings on the data up to t."""
        resample_key, move_key = jax.random.split(key)
        chosen = resample(resample_key, (cloud, eves), log_weights, self.scheme.ancestors, True)
        cloud, eves = chosen.particles
        kernel = RandomWalk()
        spread = kernel.spread(cloud.points)

        def move(cloud: _ParameterCloud, key: Array) -> tuple[_ParameterCloud, Array]:
            noise_key, filter_key, accept_key = jax.random.split(key, 3)
            noise = jax.random.normal(noise_key, cloud.points.shape)
            points = cloud.points + scale * jax.vmap(along, (None, 0))(spread, noise)
            new = self.cloud(filter_key, points)
            rates = acceptance(_log_target(new, t) - _log_target(cloud, t))
            is_accepted = jax.random.uniform(accept_key, rates.shape) < rates
            choose = lambda a, b: jnp.where(is_accepted.reshape(-1, *[1] * (a.ndim - 1)), a, b)
            return jax.tree.map(choose, new, cloud), rates.mean()

        cloud, rates = jax.lax.scan(move, cloud, jax.random.split(move_key, self.num_moves))
        # Noisy likelihoods reject at every scale: it must not vanish.
        widest = kernel.init_scale(self.space.dimension)
        scale = scale * jnp.exp(rates.mean() - kernel.target_accept)
        scale = jnp.clip(scale, widest / 10, widest)
        return cloud, chosen.log_weights, scale, eves, rates.mean()


def _log_target(cloud: _ParameterCloud, t: Array) -> Array:
    """Log p(theta) p^(y_0:t | theta) of every particle, in unconstrained coordinates."""
    is_seen = jnp.arange(cloud.increments.shape[1]) <= t
    return cloud.log_priors + jnp.where(is_seen, cloud.increments, 0.0).sum(1)
