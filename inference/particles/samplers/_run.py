"""The loop of tempered SMC: weigh, resample inside islands, move until the particles have left their places.

Terms: K particles are M islands of n = K / M. Islands weigh and resample by themselves, so that given the tuning (temperatures,
scale, spread and number of moves, learnt from all K) they are independent runs of n particles each:

    Z = (1/M) sum_m Z_m,   Z_m = prod_t (1/n) sum_k w_tmk,   a particle of island m has the weight Z_m / (n sum_l Z_l).

Invariant: with the tuning fixed every Z_m is unbiased, and so is Z.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._compat import is_concrete
from ....ppl._shared_jit import shared_call, shared_jit, shared_while_loop
from ..moves import Kernel, Standing
from ..population import evidence, log_apart, reweight, uniform
from ..programs import map_particles
from ..resampling import resample
from ._mixing import Mixing, has_mixed, is_enough, lags, mixing_of
from ._static import Static
from ._tempered import TemperedResult

Array = jax.Array
NUM_BISECTIONS = 40
MAX_MOVES = 128


class MovedPoints(NamedTuple):
    """Particles after the moves of one temperature.

    Attributes:
        points: [particles, d].
        rate: mean acceptance probability.
        scale: of the last move.
        next_scale: for the next one.
        num_moves: how many there were.
        mixing: what became of the particles, in the last half of moves if their number was found here.
        z: shifts from before the first move to after the last, [2 d].
    """

    points: Array
    rate: Array
    scale: Array
    next_scale: Array
    num_moves: Array
    mixing: Mixing
    z: Array


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """One run's settings; see `tempered_smc`. `num_moves` None: until particles have mixed, `MAX_MOVES` at most.

    With `max_seconds` no temperature begins that would end after so long a time, as the last one took; the end may be below 1.
    """

    target: Static
    kernel: Kernel
    num_particles: int
    num_moves: int | None
    target_ess: float
    schedule: Array | None
    frozen: TemperedResult | None
    scheme: Callable[..., Array]
    keep: str
    max_steps: int
    batch_size: int | None
    num_islands: int
    chain_length: int  # states that are kept of each chain
    max_seconds: float | None = None

    def __call__(self, key: Array) -> TemperedResult:
        init_key, loop_key = jax.random.split(key)
        points, likelihoods = self.start(init_key)
        start = shared_call(self._begun, points, likelihoods)
        size = self.max_steps

        def go_on(state: tuple[Array, ...]) -> Array:
            return (state[1] < 1) & (state[0] < size)

        def step(state: PyTree) -> PyTree:
            return self._step(jax.random.fold_in(loop_key, state[0]), *state)

        n, beta, points, _, _, _, record = self.through(go_on, step, start)
        told = shared_call(self._told, n, beta, points, record)
        return TemperedResult(dimension=self.target.dimension, **told)

    def _begun(self, points: Array, likelihoods: Array) -> tuple[PyTree, ...]:
        """The state before the first temperature."""
        size, count, islands = self.max_steps, self.num_particles, self.num_islands
        record = self.record(points) | {
            "temperatures": jnp.ones(size), "log_z": jnp.zeros((size, islands)),
            "log_apart": jnp.zeros((size, islands)),
        }  # fmt: skip
        scale = jnp.asarray(self.kernel.init_scale(self.target.dimension), float)
        eves = jnp.arange(count, dtype=jnp.int32) % (count // islands) // self.chain_length
        return jnp.int32(0), jnp.zeros(()), points, likelihoods, eves, scale, record

    def _told(
        self, n: Array, beta: Array, points: Array, record: dict[str, Array]
    ) -> dict[str, PyTree]:
        """Fields of a `TemperedResult` from the state after all temperatures."""
        size, count, islands = self.max_steps, self.num_particles, self.num_islands
        record["temperatures"] = jnp.where(jnp.arange(size) < n, record["temperatures"], beta)
        log_z = jnp.cumsum(record.pop("log_z"), 0)
        totals = jax.nn.logsumexp(log_z, axis=1) - jnp.log(islands)
        increments = jnp.diff(totals, prepend=0.0)
        log_evidence, failed_at = evidence(increments)
        shares = jax.nn.log_softmax(log_z[-1])
        shares = jnp.where(failed_at >= 0, uniform(islands), shares)
        record["island_log_apart"] = record.pop("log_apart")[n - 1]
        record["drift"], record["lag"] = lags(record.pop("z"), record.pop("is_mixed"), n)
        return {
            "particles": jax.vmap(self.target.choices)(points),
            "log_weights": jnp.repeat(shares, count // islands) - jnp.log(count // islands),
            "log_evidence": log_evidence,
            "increments": increments,
            "num_steps": n,
            "failed_at": failed_at,
            "island_log_evidence": log_z[-1],
            "tuning": {name: record.pop(name) for name in ("scale", "spread")}
            | {"num_moves": record["num_moves"]},
            **record,
        }

    def through(
        self, go_on: Callable[[PyTree], Array], step: Callable[[PyTree], PyTree], state: PyTree
    ) -> PyTree:
        """The state after all steps; where time is limited, one step in a device call, until the time is spent.

        Raises:
            ValueError: time is limited, and the run is traced.
        """
        if self.max_seconds is None:
            return shared_while_loop(go_on, step, state)
        if not is_concrete(state):
            raise ValueError(
                "tempered_smc: max_seconds looks at the clock between temperatures, and the run is traced by jax.jit or another "
                "transformation, where there is none. Leave it out there, and bound the run by max_steps."
            )
        end, one, last = time.monotonic() + self.max_seconds, shared_jit(step), None
        while bool(go_on(state)):
            now = time.monotonic()
            if now + (0.0 if last is None else now - last) >= end:  # as long as the last one
                return state
            state, last = jax.block_until_ready(one(state)), now
        return state

    def record(self, points: Array) -> dict[str, Array]:
        """Empty records of what is known of each temperature's moves."""
        size = self.max_steps
        spread = jnp.zeros((size, *jax.eval_shape(self.kernel.spread, points).shape))
        return {
            "ess": jnp.full(size, float(self.num_particles)), "acceptance": jnp.ones(size), "scale": jnp.zeros(size),
            "spread": spread, "num_moves": jnp.zeros(size, jnp.int32), "correlation": jnp.zeros(size),
            "z": jnp.zeros((size, 2 * points.shape[1])), "is_mixed": jnp.zeros(size, bool),
        }  # fmt: skip

    def start(self, key: Array) -> tuple[Array, Array]:
        """Draws from the law at temperature 0 and the terms of their log-likelihoods."""
        draw = map_particles(self.target.draw, self.num_particles, self.batch_size)
        points = shared_call(draw, key)
        if self.target.owners and is_concrete(points):
            self._check_finite(np.asarray(points))
        return points, shared_call(self.likelihoods, points)

    def _check_finite(self, points: np.ndarray) -> None:
        if (is_out := ~np.isfinite(points)).any():
            sites = sorted({self.target.owners[i] for i in np.flatnonzero(is_out.any(0))})
            raise ValueError(
                f"tempered_smc: {is_out.any(1).sum()} of {len(points)} draws of the prior are infinite or at an edge of the "
                f"support in this precision, at the sites {sites}, so that no particle can move there. Give start=, a fit of the "
                "model or draws to begin around, or a prior without so much weight at its edge."
            )

    def likelihoods(self, points: Array) -> Array:
        """Terms of the log-likelihoods, [particles, terms]."""
        of_particle = lambda _, u: self.target.log_densities(u)[1]
        return map_particles(of_particle, self.num_particles, self.batch_size)(
            jax.random.key(0), points
        )

    def _by_island(self, x: Array) -> Array:
        return x.reshape(self.num_islands, -1, *x.shape[1:])

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
    ) -> PyTree:
        resample_key, move_key = jax.random.split(key)
        new_beta = self._next(beta, likelihoods) if self.schedule is None else self.schedule[n]
        chains = self.num_particles // self.chain_length // self.num_islands
        scheme = lambda key, log_weights: self.scheme(key, log_weights, chains)

        def in_island(
            key: Array, ratios: Array, points: Array, eves: Array
        ) -> tuple[Array, Array, Array, tuple[Array, Array]]:
            weights = reweight(uniform(len(ratios)), ratios)
            chosen = resample(key, (points, eves), weights.log_weights, scheme, True, num=chains)
            return (
                weights.increment,
                weights.ess,
                log_apart(eves, weights.log_weights),
                chosen.particles,
            )

        ratios = self.target.log_likelihood(likelihoods, new_beta, beta)
        keys = jax.random.split(resample_key, self.num_islands)
        inputs = jax.tree.map(self._by_island, (ratios, points, eves))
        log_z, ess, apart, chosen = jax.vmap(in_island)(keys, *inputs)
        points, eves = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chosen)
        moved, spread = self.moved(move_key, n, points, new_beta, scale)
        eves = jnp.repeat(eves, self.chain_length)
        new = {"temperatures": new_beta, "log_z": log_z, "ess": ess.sum(), "log_apart": apart}
        record = self.recorded(record, n, moved, spread, new)
        return (
            n + 1, new_beta, moved.points, self.likelihoods(moved.points), eves, moved.next_scale, record,
        )  # fmt: skip

    def recorded(
        self,
        record: dict[str, Array],
        n: Array,
        moved: MovedPoints,
        spread: Array,
        new: dict[str, Array],
    ) -> dict[str, Array]:
        """The records with those of temperature n."""
        new = new | {
            "acceptance": moved.rate, "scale": moved.scale, "spread": spread, "num_moves": moved.num_moves,
            "correlation": moved.mixing.correlation, "is_mixed": has_mixed(moved.mixing), "z": moved.z,
        }  # fmt: skip
        return {name: buffer.at[n].set(new[name]) for name, buffer in record.items()}

    def moved(
        self, key: Array, n: Array, points: Array, beta: Array, scale: Array
    ) -> tuple[MovedPoints, Array]:
        """Particles after the moves of a chain from each point at temperature n, of exponent `beta`, and the spread used."""
        if self.frozen is None:
            spread = self.kernel.spread(points)
        else:
            scale, spread = (self.frozen.tuning[name][n] for name in ("scale", "spread"))

        def density(u: Array) -> Array:
            log_prior, terms = self.target.log_densities(u)
            return log_prior + self.target.log_likelihood(terms, beta)

        each = lambda fn: map_particles(fn, len(points), self.batch_size)
        begin = each(lambda _, u: self.kernel.start(u, density))

        def move(key: Array, at: Standing, scale: Array) -> tuple[Standing, Array]:
            step = lambda key, at: self.kernel.step(key, at, density, scale, spread)
            at, rates = each(step)(key, at)
            return at, rates.mean()

        start = begin(key, points)
        if self.keep == "all":
            return self._kept(key, points, start, move, scale), spread
        return self._until(key, n, points, start, move, scale), spread

    def _kept(
        self, key: Array, points: Array, start: Standing, move: Any, scale: Array
    ) -> MovedPoints:
        """All states of chains of a fixed length."""

        def one(at: Standing, key: Array) -> tuple[Standing, tuple[Array, Array]]:
            at, rate = move(key, at, scale)
            return at, (at.point, rate)

        _, (passed, rates) = jax.lax.scan(one, start, jax.random.split(key, self.chain_length - 1))
        states = jnp.moveaxis(jnp.concatenate([points[None], passed]), 0, 1)
        rate, mixing = rates.mean(), mixing_of(points, passed[-1])
        return MovedPoints(
            states.reshape(self.num_particles, -1), rate, scale, self._rescaled(scale, rate),
            jnp.int32(self.chain_length - 1), mixing, mixing.z,
        )  # fmt: skip

    def _until(
        self,
        key: Array,
        n: Array,
        points: Array,
        start: Standing,
        move: Callable[..., PyTree],
        scale: Array,
    ) -> MovedPoints:
        """The ends of chains whose length is fixed, or doubles until `is_enough` says so of the last half."""

        def one(i: Array, state: tuple[PyTree, ...]) -> PyTree:
            at, _, scale, rates = state
            at, rate = move(jax.random.fold_in(key, i), at, scale)
            return at, scale, self._rescaled(scale, rate), rates + rate

        def go_on(state: tuple[PyTree, ...]) -> Array:
            i, _, mixing, last = state
            return (i < MAX_MOVES) & ~is_enough(mixing, last, i)

        def twice(
            state: tuple[PyTree, ...],
        ) -> tuple[Array, tuple[Standing, Array, Array, Array], Mixing, Mixing]:
            i, inner, last, _ = state
            until = jnp.maximum(2 * i, 1)
            new = jax.lax.fori_loop(i, until, one, inner)
            return until, new, mixing_of(inner[0].point, new[0].point), last

        zero = jnp.zeros(())
        inner = (start, scale, scale, zero)
        num = self.num_moves if self.frozen is None else self.frozen.tuning["num_moves"][n]
        if num is None:
            nothing = Mixing(jnp.ones(()), jnp.ones(()), jnp.zeros(2 * points.shape[1]))
            state = (jnp.int32(0), inner, nothing, nothing)
            i, inner, mixing, _ = jax.lax.while_loop(go_on, twice, state)
        else:
            i, inner = jnp.int32(num), jax.lax.fori_loop(0, num, one, inner)
            mixing = mixing_of(points, inner[0].point)
        at, last, scale, rates = inner
        z = mixing_of(points, at.point).z
        return MovedPoints(at.point, rates / i, last, scale, i, mixing, z)

    def _rescaled(self, scale: Array, rate: Array) -> Array:
        return scale * jnp.exp(rate - self.kernel.target_accept) if self.frozen is None else scale

    def _next(self, beta: Array, likelihoods: Array) -> Array:
        """The largest exponent up to 1 whose reweighing keeps the effective sample size."""

        def ess(new_beta: Array) -> Array:
            ratios = self.target.log_likelihood(likelihoods, new_beta, beta)
            of_island = lambda ratios: reweight(uniform(len(ratios)), ratios).ess
            return jax.vmap(of_island)(self._by_island(ratios)).sum()

        return self.largest(beta, ess)

    def largest(self, beta: Array, ess: Callable[[Array], Array]) -> Array:
        """The largest exponent above `beta`, up to 1, at which `ess` has reached its goal."""
        goal = self.target_ess * self.num_particles

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            is_enough = ess(middle) >= goal
            return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

        one = jnp.ones_like(beta)
        low, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (beta, one))
        return jnp.where(ess(one) >= goal, one, high)
