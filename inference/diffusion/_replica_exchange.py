"""Replica exchange along a corrected diffusion: chains at all of its noising times, which exchange their points.

State: a point x_n for each time t_n of the grid, of the law pi = prod_n p_n(x_n), p_n the target at t_n. With the steps M_n
towards the data and B_n towards the noise, and the weight G_n of a step (see `_corrector`), neighbours n and n + 1 exchange by

    y' ~ M_n(. | x_n),   x' ~ B_n(. | x_{n+1}),   accepted with probability min(1, G_n(x_n, y') / G_n(x', x_{n+1})).

A point so crosses a level by a step of the sampler, not as it is: neighbours need not overlap. Where

    G_n(x, y) = p_{n+1}(y) B_n(x | y) / (p_n(x) M_n(y | x))      up to a constant,

the ratio is that of Metropolis and Hastings, pi(x', y') M(x_{n+1} | x') B(x_n | y') over pi(x_n, x_{n+1}) M(y' | x_n)
B(x' | x_{n+1}). The first level is drawn anew in each sweep, which is accepted by the same rule against its law.

Ratios Z_{n+1} / Z_n follow from the proposals of both directions, by the equation

    mean of s(log G_n(x_n, y') - c) = mean of s(c - log G_n(x', x_{n+1})),   s(z) = 1 / (1 + exp(-z)),

whose root c is the log of the ratio in the limit (Bennett). A constraint makes some log G -inf: they count as 0 on the left.

Reference: CREPE, arXiv:2509.23265 (replica exchange of diffusion models); Syed et al. 2025, arXiv:2502.10328 (exchange along
transports); Syed et al. 2022, arXiv:1905.02939 (even pairs, then odd ones); Bennett 1976.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...ppl._checks import check_counts
from ...ppl._compat import is_concrete, typed_key
from ...ppl._show import shown
from ..particles.moves import accept
from . import _points as points
from ._corrector import Corrector, Diffused
from ._fkc import CorrectedDiffusion
from ._langevin import Langevin, moved

NUM_BISECTIONS = 60


@shown
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplicaExchange:
    """What `replica_exchange` returns; a pytree.

    Attributes:
        x: points at the last time, where the data are, an array or a tree of arrays [sweeps, chains, ...].
        acceptance: of exchanges between neighbours, [steps]; a level that is near 0 separates noise and data.
        log_evidence: of the integral of exp(h) prod q_i^w_i, as that of `fkc`, nats; consistent in sweeps.
        standard_error: of `log_evidence`, from the spread between chains; NaN for one chain.
    """

    x: PyTree
    acceptance: Float[Array, " steps"]
    log_evidence: Float[Array, ""]
    standard_error: Float[Array, ""]


def replica_exchange(
    diffusion: CorrectedDiffusion,
    key: Array,
    *,
    num_sweeps: int,
    num_chains: int = 1,
    num_burn_in: int | None = None,
) -> ReplicaExchange:
    """Draws of a corrected diffusion by chains at all of its times that exchange their points, in place of weighted particles.

    A sweep draws the first level anew, makes the Langevin moves of the model at each level, if it has some, and exchanges even
    and then odd neighbours (see the module's text). It costs two evaluations of each model at each level. Where the weights of
    `smc` collapse, more particles help slowly; here more sweeps do, at a fixed memory.

    Args:
        diffusion: what `fkc` returns; its control is a part of the steps.
        key: PRNG key.
        num_sweeps: sweeps that are kept, one after the other.
        num_chains: independent ladders, side by side.
        num_burn_in: sweeps before, the number of steps by default. All start from one path of the sampler without weights.

    Returns:
        A `ReplicaExchange`.

    Raises:
        TypeError: not the result of `fkc`.
        ValueError: Euler's weights, which are no ratio of kernels; exponents that vary in time for models without `log_density`,
            whose weights look at a whole path; a log-weight that is NaN (under jit all results are NaN then).

    Validity: with "exact" weights each sweep leaves prod_n p_n invariant, on every grid, for every score, noise scale and
    control; with "rne" weights as steps shrink. Draws are right in the limit of sweeps, and depend on each other: trust them as
    those of other chains, by several ladders. An `acceptance` near 0 at one level is a ladder cut in two: give more steps or a
    control.

    Example:
        >>> import jax
        >>> from lapilli import inference
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP(0.1, 8.0)
        >>> q = diffusion.gaussian_mixture(noising, [1.0], [0.5], 0.2)
        >>> cold = inference.diffusion.fkc(q, noising.times(30), exponents=0.5)
        >>> inference.diffusion.replica_exchange(cold, jax.random.key(0), num_sweeps=50, num_chains=4).x.shape
        (50, 4)

    Reference: arXiv:2509.23265 (CREPE).
    """
    corrector = _checked(diffusion)
    num_steps = diffusion.num_steps
    num_burn_in = num_steps if num_burn_in is None else num_burn_in
    check_counts("replica_exchange", num_sweeps=num_sweeps, num_chains=num_chains)
    check_counts("replica_exchange", 0, num_burn_in=num_burn_in)
    run = jax.jit(lambda key: _run(corrector, key, num_sweeps, num_chains, num_burn_in))
    result = run(typed_key(key))
    if is_concrete(result.log_evidence) and bool(jnp.isnan(result.log_evidence)):
        raise ValueError(
            "replica_exchange: a log-weight is NaN, and an exchange that is always rejected would leave chains where they stand. "
            "Look for a score, a log_density or a reward that is NaN (return -inf for what is impossible)."
        )
    return result


def _run(
    corrector: Corrector, key: Array, num_sweeps: int, num_chains: int, num_burn_in: int
) -> ReplicaExchange:
    start_key, sweep_key = jax.random.split(key)

    def sweep(states: Diffused, number: Array) -> tuple[Diffused, PyTree]:
        keys = jax.random.split(jax.random.fold_in(sweep_key, number), num_chains)
        states, found = jax.vmap(lambda key, s: _sweep(corrector, key, s))(keys, states)
        return states, (jax.tree.map(lambda x: x[:, -1], states.x), found)

    states = jax.vmap(lambda key: _path(corrector, key))(jax.random.split(start_key, num_chains))
    warm = lambda number, states: sweep(states, number)[0]
    states = jax.lax.fori_loop(0, num_burn_in, warm, states)
    numbers = jnp.arange(num_burn_in, num_burn_in + num_sweeps)
    _, (x, (log_starts, forward, backward, accepted)) = jax.lax.scan(sweep, states, numbers)
    log_evidence, error = _evidence(log_starts, forward, backward)
    x, acceptance = jax.tree.map(
        lambda v: jnp.where(jnp.isnan(log_evidence), jnp.nan, v), (x, accepted.mean((0, 1)))
    )
    return ReplicaExchange(x, acceptance, log_evidence, error)


def _checked(diffusion: object) -> Corrector:
    if not isinstance(diffusion, CorrectedDiffusion):
        raise TypeError(
            f"replica_exchange: needs the result of inference.diffusion.fkc, got {type(diffusion).__name__}."
        )
    corrector = diffusion.corrector
    if corrector.ratios == "euler":
        raise ValueError(
            "replica_exchange: exchanges are accepted by ratios of a step's two kernels, and weights='euler' are a rate. Give "
            "fkc a positive zeta and weights='exact' or 'rne'."
        )
    if corrector.is_followed:
        raise ValueError(
            "replica_exchange: exponents that vary with time weigh log q, which is followed along a path where it is not known, "
            "and points that were exchanged have none. Give the log_density of every model, or exponents that are numbers."
        )
    return corrector


def _path(corrector: Corrector, key: Array) -> Diffused:
    """States at all levels along one path of the sampler, leaves [steps + 1, ...]."""
    init_key, key = jax.random.split(key)
    start = corrector.init(init_key)

    def step(state: Diffused, n: Array) -> tuple[Diffused, Diffused]:
        new = corrector.move(jax.random.fold_in(key, n), state, n)
        return new, new

    _, later = jax.lax.scan(step, start, jnp.arange(1, len(corrector.grid.times)))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, later)


def _sweep(corrector: Corrector, key: Array, states: Diffused) -> tuple[Diffused, PyTree]:
    """One sweep of one ladder: states, and log start weight, log G both ways and acceptance of all exchanges."""
    num_steps = len(corrector.grid.times) - 1
    fresh_key, accept_key, move_key, *keys = jax.random.split(key, 5)
    first, new = jax.tree.map(lambda x: x[0], states), corrector.init(fresh_key)
    log_start = corrector.log_start(new)
    first, _ = accept(accept_key, first, new, log_start - corrector.log_start(first))
    states = jax.tree.map(lambda all, one: all.at[0].set(one), states, first)
    if corrector.langevin is not None:
        states = _moved(corrector, corrector.langevin, move_key, states)
    forward, backward, accepted = jnp.zeros((3, num_steps))
    exchange = jax.vmap(lambda *pair: _exchange(corrector, *pair))
    pick = lambda states, at: jax.tree.map(lambda v: v[at], states)
    for parity, key in enumerate(keys[:num_steps]):
        lower = jnp.arange(parity, num_steps, 2)
        pairs = pick(states, lower), pick(states, lower + 1)
        (x, y), there, back, chance = exchange(jax.random.split(key, len(lower)), *pairs, lower)
        states = jax.tree.map(
            lambda all, x, y, at=lower: all.at[at].set(x).at[at + 1].set(y), states, x, y
        )
        forward, backward = forward.at[lower].set(there), backward.at[lower].set(back)
        accepted = accepted.at[lower].set(chance)
    return states, (log_start, forward, backward, accepted)


def _exchange(
    corrector: Corrector, key: Array, x: Diffused, y: Diffused, n: Array
) -> tuple[tuple[Diffused, Diffused], Array, Array, Array]:
    """Neighbours n and n + 1 after their exchange; log G of the proposals, and the probability of acceptance."""
    there_key, back_key, accept_key = jax.random.split(key, 3)

    def draw(key: Array, mean: PyTree, scale: Array) -> PyTree:
        noise = points.noise_like(key, mean)
        return jax.tree.map(lambda m, e: m + scale * e, mean, noise)

    new_y = corrector.at(draw(there_key, *corrector.moments(x, n)), n + 1, None)
    new_x = corrector.at(draw(back_key, *corrector.backward_moments(y, n)), n, None)
    there, back = corrector.log_weight(x, new_y, n), corrector.log_weight(new_x, y, n)
    pair, chance = accept(accept_key, (x, y), (new_x, new_y), there - back)
    return pair, there, back, chance


def _moved(corrector: Corrector, langevin: Langevin, key: Array, states: Diffused) -> Diffused:
    """Langevin moves at all levels but the first."""
    num_steps, grid = len(corrector.grid.times) - 1, corrector.grid
    total = jnp.maximum(jnp.maximum(grid.exponents, 0.0).sum(1), 1.0)
    unit = grid.variance / total

    def one(key: Array, state: Diffused, n: Array) -> Diffused:
        return moved(corrector, langevin, key, state, n, unit[n])

    keys, levels = jax.random.split(key, num_steps), jnp.arange(1, num_steps + 1)
    new = jax.vmap(one)(keys, jax.tree.map(lambda x: x[1:], states), levels)
    return jax.tree.map(lambda all, x: all.at[1:].set(x), states, new)


def _evidence(log_starts: Array, forward: Array, backward: Array) -> tuple[Array, Array]:
    """Log of Z_0 prod_n Z_{n+1} / Z_n, and its standard error, from weights [sweeps, chains] and [sweeps, chains, steps]."""
    s = jax.nn.sigmoid
    edges, num = jnp.concatenate([forward, backward]), forward[..., 0].size
    is_met = edges != -jnp.inf  # NaN is kept
    low = jnp.min(edges, (0, 1), where=is_met, initial=jnp.inf)
    # Where one of so many is finite the left is at least as large as the right that far below the least of them.
    low = low - jnp.where(is_met.all((0, 1)), 0.0, math.log(num))
    high = edges.max((0, 1))

    def halve(_: PyTree, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        c = 0.5 * (low + high)
        is_below = s(forward - c).mean((0, 1)) > s(c - backward).mean((0, 1))
        return jnp.where(is_below, c, low), jnp.where(is_below, high, c)

    low, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (low, high))
    c = jnp.where((forward != -jnp.inf).any((0, 1)), 0.5 * (low + high), -jnp.inf)
    log_first = jax.nn.logsumexp(log_starts) - jnp.log(log_starts.size)
    # What a chain's mean of the equation is off, over its slope, is what the chain adds to c.
    slope = (s(forward - c) * s(c - forward) + s(backward - c) * s(c - backward)).mean((0, 1))
    off = (s(forward - c) - s(c - backward)).mean(0) / slope
    parts = jnp.exp(log_starts - log_first).mean(0) - 1 + off.sum(-1)
    num_chains = len(parts)
    error = jnp.std(parts, ddof=1) / jnp.sqrt(num_chains) if num_chains > 1 else jnp.array(jnp.nan)
    return log_first + c.sum(), error
