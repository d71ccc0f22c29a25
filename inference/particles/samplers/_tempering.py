"""Sequential Monte Carlo from prior to posterior through tempered likelihoods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import is_concrete, typed_key
from ....ppl.language import told_of_nan
from ..._runs import checked
from ..moves import HMC, Gibbs, Kernel, Standing
from ..population import evidence, log_apart, reweight, uniform, voided
from ..programs import map_particles
from ..resampling import Scheme, as_scheme, resample
from ._discrete import as_discrete
from ._persistent import run_persistent
from ._static import Static, as_static
from ._tempered import TemperedResult, trimmed

Array = jax.Array
NUM_BISECTIONS = 40


@checked_call
def tempered_smc(
    model: ppl.Program | Callable[..., Any],
    key: Any,
    *args: Any,
    num_particles: int = 1000,
    kernel: Kernel | None = None,
    num_moves: int = 5,
    target_ess: float = 0.5,
    temperatures: Sequence[float] | None = None,
    frozen: TemperedResult | None = None,
    data_axis: str | None = None,
    resampling: str | Scheme = "systematic",
    keep: Literal["last", "all", "persistent"] = "last",
    max_steps: int = 100,
    batch_size: int | None = None,
    **kwargs: Any,
) -> TemperedResult:
    """Move particles from prior to posterior through p(z) p(data | z)^beta, beta rising from 0 to 1.

    At each temperature: reweigh by exp((beta' - beta) log p(data | z)), resample, move every particle `num_moves` times by a
    kernel that leaves the tempered posterior invariant. Unless given, beta' is the largest step whose effective sample size
    is `target_ess` K (bisection), and the kernel's scale and spread are tuned from the particles.

    Args:
        model: a program of continuous latent sites, or, with `kernel=Gibbs()`, of discrete ones of finite supports;
            observations and factors are its likelihood.
        key: PRNG key of either kind.
        args: the model's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_particles: K. At 1,000 errors of averages are about 3 % of the posterior's widths.
        kernel: `HMC()` by default; `RandomWalk()`, `MALA()`, or one of BlackJAX's, NUTS among them (`BlackJAX`); `Gibbs()`
            where all latent sites are discrete.
        num_moves: moves at each temperature.
        target_ess: fraction of K, in (0, 1). With "persistent" all particles count, which makes steps longer.
        temperatures: increasing exponents that end with 1, instead of adapting them.
        frozen: an earlier result whose temperatures and tuning are used as they are.
        data_axis: a plate, or "time" for a scan, whose N rows of observations then enter one after another instead of
            all being tempered alike: at temperature beta row i has the exponent min(max(N beta - i, 0), 1), and what is observed
            outside of it beta. With `temperatures=[n / N, ...]` whole rows enter, and increments are log predictive
            densities of the new rows given the old (if nothing is observed outside).
        resampling: scheme by name, or a `Scheme`.
        keep: "last" moves K particles and keeps the end of each chain. "all" (waste-free) draws K / (`num_moves` + 1) ancestors
            only and keeps every state of their chains, which pays off with many moves. "persistent" keeps the particles of all
            temperatures, weighted as draws from the mixture of their targets: K (steps + 1) weighted particles, more for the
            same moves; memory in proportion, of `max_steps` under jit.
        max_steps: temperatures at most.
        batch_size: particles moved at once; None for all.

    Returns:
        A `TemperedResult`.

    Raises:
        ValueError: a discrete latent site, or with `Gibbs()` one whose values are not finitely many, known and the same at
            every draw; temperatures that do not increase to 1; wrong sizes; with `keep="all"` a K that `num_moves` + 1 does
            not divide, or a scheme that cannot draw fewer ancestors ("killing").
        RuntimeError: `max_steps` were not enough (under jit particles, weights and evidence are NaN then).

    Validity: E[exp(log_evidence)] = p(data) with `frozen`, whose numbers must come from an independent key. Adapted runs
    are consistent in K, with a bias of order 1 / K; so is "persistent" even with `frozen`, since the evidence estimates of
    earlier temperatures enter its weights. `result.evidence` says which holds ("consistent" also for a biased scheme).

    Reference: Del Moral, Doucet and Jasra 2006; Jasra et al. 2011 and Zhou, Johansen and Aston 2016 (adaptation); Dau and Chopin
    2022, arXiv:2011.02328 (waste-free); Chopin 2002, A sequential particle filter method for static models (data);
    Karamanis and Seljak 2024, arXiv:2407.20722 (persistent).
    """
    args = checked(tempered_smc, model, args, kwargs)
    key, kernel = typed_key(key), kernel or HMC()
    _check(num_particles, target_ess, temperatures, max_steps, num_moves, keep, batch_size)
    if frozen is not None and temperatures is not None:
        raise ValueError("tempered_smc: give temperatures or a frozen result, not both.")
    if isinstance(kernel, Gibbs):
        target, num_values = as_discrete(ppl.as_program(model), args, data_axis)
        kernel = dataclasses.replace(kernel, num_values=num_values)
    else:
        target = as_static(ppl.as_program(model), args, data_axis)
    if temperatures is not None:
        max_steps = len(temperatures)
    schedule = None if temperatures is None else jnp.asarray(temperatures, float)
    if frozen is not None:
        max_steps, schedule = len(frozen.temperatures), frozen.temperatures
    run = _Run(
        target, kernel, num_particles, num_moves, target_ess, schedule, frozen,
        as_scheme(resampling).ancestors, keep, max_steps, batch_size,
    )  # fmt: skip
    if keep == "persistent":
        result = trimmed(TemperedResult(**run_persistent(run, key)), num_particles)
    else:
        result = run(key)
        scheme = as_scheme(resampling)
        is_unbiased = frozen is not None and scheme.is_unbiased
        result = dataclasses.replace(
            result,
            evidence="unbiased" if is_unbiased else "consistent",
            offspring=scheme.offspring,
            chain_length=num_moves + 1 if keep == "all" else 1,
        )
    is_short = result.temperatures[-1] < 1
    if is_concrete(is_short) and bool(is_short):
        raise RuntimeError(
            f"tempered_smc: {max_steps} temperatures ended at {float(result.temperatures[-1]):.3g} of 1. Raise max_steps, lower "
            f"target_ess, or use more particles.{told_of_nan(args)}"
        )
    if not is_concrete(is_short):
        told = (result.particles, result.log_weights, result.log_evidence)
        particles, log_weights, log_evidence = voided(told, is_short)
        result = dataclasses.replace(
            result, particles=particles, log_weights=log_weights, log_evidence=log_evidence
        )
    return result


@dataclasses.dataclass(frozen=True)
class _Run:
    target: Static
    kernel: Kernel
    num_particles: int
    num_moves: int
    target_ess: float
    schedule: Array | None
    frozen: TemperedResult | None
    scheme: Callable[..., Array]
    keep: str
    max_steps: int
    batch_size: int | None

    @property
    def chain_length(self) -> int:
        """States that are kept of each chain."""
        return self.num_moves + 1 if self.keep == "all" else 1

    def __call__(self, key: Array) -> TemperedResult:
        init_key, loop_key = jax.random.split(key)
        size, count = self.max_steps, self.num_particles
        points, likelihoods = self.start(init_key)
        spread = jnp.zeros((size, *jax.eval_shape(self.kernel.spread, points).shape))
        buffers = {
            "temperatures": jnp.ones(size), "increments": jnp.zeros(size), "ess": jnp.full(size, float(count)),
            "acceptance": jnp.ones(size), "scale": jnp.zeros(size), "spread": spread, "log_apart": jnp.zeros(size),
        }  # fmt: skip
        scale = jnp.asarray(self.kernel.init_scale(self.target.dimension), float)
        eves = jnp.arange(count, dtype=jnp.int32) // self.chain_length
        start = (jnp.int32(0), jnp.zeros(()), points, likelihoods, eves, scale, buffers)

        def go_on(state: Any) -> Array:
            return (state[1] < 1) & (state[0] < size)

        def step(state: Any) -> Any:
            return self._step(jax.random.fold_in(loop_key, state[0]), *state)

        n, beta, points, _, _, _, record = jax.lax.while_loop(go_on, step, start)
        record["temperatures"] = jnp.where(jnp.arange(size) < n, record["temperatures"], beta)
        log_evidence, failed_at = evidence(record["increments"])
        return TemperedResult(
            particles=jax.vmap(self.target.choices)(points),
            log_weights=uniform(count),
            log_evidence=log_evidence,
            temperatures=record["temperatures"],
            increments=record["increments"],
            ess=record["ess"],
            acceptance=record["acceptance"],
            num_steps=n,
            tuning={"scale": record["scale"], "spread": record["spread"]},
            failed_at=failed_at,
            log_apart=record["log_apart"][n - 1],
        )

    def start(self, key: Array) -> tuple[Array, Array]:
        """Draws from the prior and the terms of their log-likelihoods."""
        points = map_particles(self.target.draw, self.num_particles, self.batch_size)(key)
        return points, self.likelihoods(points)

    def likelihoods(self, points: Array) -> Array:
        """Terms of the log-likelihoods, [particles, terms]."""
        of_particle = lambda _, u: self.target.log_densities(u)[1]
        return map_particles(of_particle, self.num_particles, self.batch_size)(
            jax.random.key(0), points
        )

    def _step(
        self,
        key: Array,
        n: Array,
        beta: Array,
        points: Array,
        likelihoods: Array,
        eves: Array,
        scale: Array,
        record: dict[str, Array],
    ) -> Any:
        resample_key, move_key = jax.random.split(key)
        new_beta = self._next(beta, likelihoods) if self.schedule is None else self.schedule[n]
        ratios = self.target.log_likelihood(likelihoods, new_beta, beta)
        weights = reweight(uniform(self.num_particles), ratios)
        chains = self.num_particles // self.chain_length
        scheme = lambda key, log_weights: self.scheme(key, log_weights, chains)
        chosen = resample(resample_key, (points, eves), weights.log_weights, scheme, True)
        apart = log_apart(eves, weights.log_weights)
        points, eves = chosen.particles
        scale, spread = self.tuned(n, points, scale)
        points, rate = self.moved(move_key, points, new_beta, scale, spread)
        eves = jnp.repeat(eves, self.chain_length)
        new = {
            "temperatures": new_beta, "increments": weights.increment, "ess": weights.ess,
            "acceptance": rate, "scale": scale, "spread": spread, "log_apart": apart,
        }  # fmt: skip
        record = {name: buffer.at[n].set(new[name]) for name, buffer in record.items()}
        scale = scale * jnp.exp(rate - self.kernel.target_accept)
        return n + 1, new_beta, points, self.likelihoods(points), eves, scale, record

    def tuned(self, n: Array, points: Array, scale: Array) -> tuple[Array, Array]:
        """Scale and spread of the kernel at temperature n, for points that have been resampled."""
        if self.frozen is None:
            return scale, self.kernel.spread(points)
        return self.frozen.tuning["scale"][n], self.frozen.tuning["spread"][n]

    def moved(
        self, key: Array, points: Array, beta: Array, scale: Array, spread: Array
    ) -> tuple[Array, Array]:
        """Particles after the moves of a chain from each point, and the mean acceptance probability."""

        def density(u: Array) -> Array:
            log_prior, terms = self.target.log_densities(u)
            return log_prior + self.target.log_likelihood(terms, beta)

        def move(key: Array, point: Array) -> tuple[Array, Array]:
            def one(at: Standing, key: Array) -> tuple[Standing, tuple[Array, Array | None]]:
                new, rate = self.kernel.step(key, at, density, scale, spread)
                return new, (rate, new.point if self.keep == "all" else None)

            keys = jax.random.split(key, self.num_moves)
            start = self.kernel.start(point, density)
            last, (rates, passed) = jax.lax.scan(one, start, keys)
            kept = last.point if passed is None else jnp.concatenate([point[None], passed])
            return kept, rates.mean()

        points, rates = map_particles(move, len(points), self.batch_size)(key, points)
        return points.reshape(self.num_particles, -1), rates.mean()

    def _next(self, beta: Array, likelihoods: Array) -> Array:
        """The largest exponent up to 1 whose reweighing keeps the effective sample size."""

        def ess(new_beta: Array) -> Array:
            ratios = self.target.log_likelihood(likelihoods, new_beta, beta)
            return reweight(uniform(self.num_particles), ratios).ess

        return self.largest(beta, ess)

    def largest(self, beta: Array, ess: Callable[[Array], Array]) -> Array:
        """The largest exponent above `beta`, up to 1, at which `ess` has reached its goal."""
        goal = self.target_ess * self.num_particles

        def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            is_enough = ess(middle) >= goal
            return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

        one = jnp.ones_like(beta)
        low, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (beta, one))
        return jnp.where(ess(one) >= goal, one, high)


def _check(
    num_particles: Any,
    target_ess: float,
    temperatures: Any,
    max_steps: int,
    num_moves: int,
    keep: str,
    batch_size: int | None,
) -> None:
    check_counts(
        "tempered_smc", num_particles=num_particles, max_steps=max_steps, num_moves=num_moves
    )
    if keep == "all" and num_particles % (num_moves + 1):
        raise ValueError(
            f"tempered_smc: keep='all' keeps num_moves + 1 = {num_moves + 1} states of each chain, which does not divide "
            f"num_particles {num_particles}. Change one of them."
        )
    num_chains = num_particles // (num_moves + 1) if keep == "all" else num_particles
    if batch_size is not None and (batch_size < 1 or num_chains % batch_size):
        raise ValueError(
            f"tempered_smc: batch_size {batch_size} does not divide the {num_chains} chains; all batches have one size. "
            "Give a divisor of their number."
        )
    if not 0 < target_ess < 1:
        raise ValueError(f"tempered_smc: target_ess must lie in (0, 1), got {target_ess}.")
    if temperatures is not None:
        if not is_concrete(temperatures):
            raise ValueError(
                "tempered_smc: temperatures must be concrete numbers, and are traced by jax.jit, jax.grad or jax.vmap here: "
                "whether they increase to 1 could not be checked. Make them outside, or with NumPy; those of a run go by frozen=."
            )
        rising = np.asarray(temperatures, float).tolist()
        if (
            not rising
            or rising[-1] != 1
            or any(b <= a for a, b in zip([0.0, *rising], rising, strict=False))
        ):
            raise ValueError(
                f"tempered_smc: temperatures must increase from above 0 to 1, got {rising}."
            )
