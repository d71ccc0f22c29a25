"""Feynman-Kac models, and the one loop that runs them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..._depends import is_used
from ..population import is_key, reweight, uniform
from ..programs import Future, map_lanes
from ..resampling import Differentiation, Drawing, Look, resample_ahead
from ._descent import Filter, Segment, new_ancestor, turned
from ._exchange import ALONE, Alone, Exchange
from ._mesh import ONE_DEVICE, Placement

Array = jax.Array
FIRST_MOVE = 1  # the number of the move that step 0 of the loop makes


@dataclasses.dataclass(frozen=True)
class FeynmanKac:
    """A Markov chain x_0, ..., x_T with positive potentials.

    It defines the laws

        Q_t(x_0:t) = M_0(x_0) G_0(x_0) prod_{s=1..t} M_s(x_{s-1}, x_s) G_s(x_{s-1}, x_s) / Z_t.

    Functions act on one particle, any pytree of arrays of fixed shapes; the engine maps them over particles.

    Args:
        init: `key -> x_0`, a draw from M_0.
        kernel: `(key, x_{t-1}, t) -> x_t`, a draw from M_t; `t` counts from 1.
        log_potential: `(x_{t-1}, x_t, t) -> log G_t` in nats; at t = 0 both arguments are x_0.
        num_steps: T, number of moves.
        log_transition: `(x_{t-1}, x_t, t) -> log M_t(x_{t-1}, x_t)`, the kernel's density in nats; only methods that give a
            path other ancestors need it.

    Reference: Del Moral 2004, Feynman-Kac Formulae; Chopin and Papaspiliopoulos 2020, chapter 5.
    """

    init: Callable[[Array], Any]
    kernel: Callable[[Array, Any, Array], Any]
    log_potential: Callable[[Any, Any, Array], Array]
    num_steps: int
    log_transition: Callable[[Any, Any, Array], Array] | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"FeynmanKac: num_steps must be >= 0, got {self.num_steps}.")


def run_chain(
    model: FeynmanKac,
    key: Array,
    *,
    num_particles: int,
    scheme: Drawing,
    policy: Callable[[Array, Array], Any],
    batch_size: int | None,
    history: str,
    retained: Any = None,
    path: str = "genealogy",
    gradient: Differentiation | None = None,
    look: Look | None = None,
    place: Placement = ONE_DEVICE,
    islands: Alone | Exchange = ALONE,
) -> dict[str, Any]:
    """Run the particle approximation; returns the fields of an `SMCResult`.

    `retained` is the path of particle 0, [steps + 1, ...]; `path` as for a program (`_filter.run_program`).
    """
    init_key, loop_key = jax.random.split(key)
    if retained is not None:
        _check_retained(model, key, retained)
    in_lanes = lambda fn: map_lanes(fn, num_particles, batch_size)
    is_retained = jnp.arange(num_particles) == 0

    def keep(x: Any, is_retained: Array, t: Any) -> Any:
        if retained is None:
            return x
        return jax.tree.map(lambda new, old: jnp.where(is_retained, old[t], new), x, retained)

    def see(x: Any, t: Array) -> Array | None:
        return None if look is None else look(x, t)

    def begin(key: Array, is_retained: Array) -> tuple[Any, Array, Array | None]:
        x, t = keep(model.init(key), is_retained, 0), jnp.zeros((), jnp.int32)
        return x, _scalar(model.log_potential(x, x, t), "log_potential"), see(x, t)

    start, potentials, seen = in_lanes(begin)(init_key, is_retained)
    start, seen = place.split(start), place.copy(seen)
    if gradient is not None:
        _check_pathwise(start)
    first = place.copy(reweight(uniform(num_particles), place.copy(potentials)))
    pooled = islands.weigh(islands.start(), first.increment)
    ahead = functools.partial(_future, model, start)
    future = ahead() if path == "ancestor" and model.num_steps else None

    def step(carry: Any, t: Array) -> tuple[Any, Any]:
        (particles, log_weights, seen), score, shares = carry
        (particles, seen), log_weights, shares, met = islands.exchange(
            t, (particles, seen), log_weights, shares
        )
        before = particles, log_weights
        resample_key, move_key = jax.random.split(jax.random.fold_in(loop_key, t))
        turn = 0
        if future is not None:
            moves = jax.tree.map(lambda x: x[1:], retained)
            turn = new_ancestor(
                resample_key, future, particles, log_weights, moves, t - 1, batch_size
            )
            (particles, log_weights), seen = turned((before, seen), turn)
        chosen = resample_ahead(
            resample_key, particles, log_weights, seen, look or Look(None, None), scheme,
            lambda log_weights: policy(t, log_weights), gradient and gradient.offspring,
        )  # fmt: skip
        score = score + chosen.score
        ancestors = (chosen.ancestors + turn) % num_particles
        offspring = place.split(chosen.particles)

        def move(key: Array, previous: Any, is_retained: Array) -> tuple[Any, Array, Array | None]:
            x = keep(model.kernel(key, previous, t), is_retained, t)
            return x, _scalar(model.log_potential(previous, x, t), "log_potential"), see(x, t)

        particles, potentials, seen = in_lanes(move)(move_key, offspring, is_retained)
        particles, seen = place.split(particles), place.copy(seen)
        weights = place.copy(reweight(chosen.log_weights, place.copy(potentials)))
        # A turn by as many as there are says that no ancestor could be drawn.
        increment = jnp.where(turn < num_particles, weights.increment, jnp.nan)
        pooled = islands.weigh(shares, increment)
        record = {
            "increments": pooled.increment,
            "ess": weights.ess,
            "is_resampled": chosen.is_resampled,
            "scores": score,
            "islands": islands.record(pooled, met),
        }
        if history != "none":
            record["ancestors"] = place.split(ancestors)
            record["step_log_weights"] = place.split(weights.log_weights)
        if history == "full":
            record["paths"] = particles
        filtered = (*before, ancestors, particles) if path == "filter" else ()
        carry = ((particles, weights.log_weights, seen), score, pooled.log_weights)
        return carry, (record, filtered)

    steps = jnp.arange(1, model.num_steps + 1, dtype=jnp.int32)
    zero = jnp.zeros(())
    ((last, log_weights, _), *_), (record, filtered) = jax.lax.scan(
        step, ((start, first.log_weights, seen), zero, pooled.log_weights), steps
    )
    behind = islands.record(pooled)
    record["islands"] = jax.tree.map(
        lambda a, b: jnp.concatenate([a[None], b]), behind, record["islands"]
    )
    result = {
        "particles": last,
        "log_weights": log_weights,
        "increments": jnp.concatenate([pooled.increment[None], record["increments"]]),
        "ess": jnp.concatenate([first.ess[None], record["ess"]]),
        "is_resampled": jnp.concatenate([jnp.zeros(1, bool), record["is_resampled"]]),
        "scores": jnp.concatenate([zero[None], record["scores"]]),
        "is_scored": False,
        "limited": (),
        "islands": record["islands"],
        "ancestors": None,
        "step_log_weights": None,
        "paths": None,
    }
    if history != "none":
        identity = jnp.arange(num_particles, dtype=jnp.int32)
        for name, row in (("ancestors", identity), ("step_log_weights", first.log_weights)):
            result[name] = jnp.concatenate([row[None], record[name]])
    if history == "full":
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, record["paths"])
        result["paths"] = islands.paths(stacked, result["ancestors"], record["islands"], place)
    if filtered:
        result["segments"] = [Segment(start, Filter(ahead, *filtered))]
    return result


def _future(model: FeynmanKac, particles: Any) -> Future:
    """The density of a move as a function of where it starts: log M_t, and log G_t where it looks at the state before."""
    log_transition = model.log_transition
    if log_transition is None:
        raise ValueError(
            "FeynmanKac: log_transition is missing, the density log M_t(x_{t-1}, x_t) of the kernel by which other ancestors of "
            "a path are weighted. Give it, or use the paths of the genealogy (path='genealogy', method='genealogy')."
        )
    x = jax.tree.map(lambda x: x[0], particles)
    closed = jax.make_jaxpr(model.log_potential)(x, x, jnp.ones((), jnp.int32))
    is_felt = any(is_used(closed.jaxpr, i) for i in range(len(jax.tree.leaves(x))))

    def one(previous: Any, x: Any, t: Array) -> Array:
        return _scalar(log_transition(previous, x, t), "log_transition")

    def joint(previous: Any, x: Any, t: Array) -> Array:
        return one(previous, x, t) + model.log_potential(previous, x, t)

    def of_pairs(fn: Callable[..., Array], previous: Any, x: Any, t: Array) -> tuple[Any, Array]:
        return x, jax.vmap(fn, (0, 0, None))(previous, x, t + FIRST_MOVE)

    log_joint = functools.partial(of_pairs, joint)
    log_density = log_joint if is_felt else functools.partial(of_pairs, one)
    return Future(1, model.num_steps, log_density, log_joint, first=FIRST_MOVE)


def _check_pathwise(state: Any) -> None:
    """Refuse discrete values: their law is not known, so that a gradient would miss how parameters move them."""
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if not (is_key(x) or jnp.issubdtype(x.dtype, jnp.inexact)):
            raise ValueError(
                f"FeynmanKac: the state{jax.tree_util.keystr(path)} has dtype {x.dtype}, and draws of a kernel have a pathwise "
                "derivative only. Write the model as a program, whose discrete sites are scored, or leave out gradient=."
            )


def _check_retained(model: FeynmanKac, key: Array, retained: Any) -> None:
    """JAX clips indices: a path of another length would be another path."""
    state = jax.eval_shape(model.init, key)
    want = jax.tree.map(lambda x: (model.num_steps + 1, *x.shape), state)
    have = jax.tree.map(jnp.shape, retained)
    if want != have:
        raise ValueError(
            f"FeynmanKac: the retained path has shapes {have}, and the model's paths x_0, ..., x_T have {want}. Stack one state "
            "for each of the steps and the start."
        )


def _scalar(log_value: Any, name: str) -> Array:
    value = jnp.asarray(log_value)
    if value.shape != ():
        raise ValueError(
            f"FeynmanKac.{name} must return one number per particle, got shape {value.shape}. Sum over the "
            "coordinates of one particle."
        )
    return value
