"""Feynman-Kac models, and particles that run through them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ....ppl._checks import check_counts, log_number
from ....ppl._shared_jit import shared_scan
from ..._depends import is_used
from ..population import is_key
from ..programs import Future, map_particles
from ..resampling import Resampled
from ._descent import Filter, Segment
from ._step import Cloud, Moved, Retained, Settings

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
        has_memory: whether a particle at the end is what its whole path has made of it, as where one law is reached step by step
            (diffusion models, rows drawn value by value), and not a state that forgets where it came from, as of a filter. `smc`
            then warns where hardly any of the first particles has descendants.

    Raises:
        ValueError: `num_steps` is no integer of at least 0; when it is run, the kernel returns states of another structure, shape
            or type than `init`.

    Reference: Del Moral 2004, Feynman-Kac Formulae; Chopin and Papaspiliopoulos 2020, chapter 5.
    """

    init: Callable[[Array], PyTree]
    kernel: Callable[[Array, PyTree, Array], PyTree]
    log_potential: Callable[[PyTree, PyTree, Array], Array]
    num_steps: int
    log_transition: Callable[[PyTree, PyTree, Array], Array] | None = None
    has_memory: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_counts("FeynmanKac", 0, num_steps=self.num_steps)


def run_chain(
    model: FeynmanKac, key: Array, settings: Settings, retained: ArrayLike | None = None
) -> dict[str, PyTree]:
    """Run the particle approximation; returns the fields of an `SMCResult`.

    `retained` is the path of particle 0, [steps + 1, ...].
    """
    init_key, loop_key = jax.random.split(key)
    _check_kernel(model, key)
    if retained is not None:
        _check_retained(model, key, retained)
    num_particles, look = settings.num_particles, settings.look
    of_all = lambda fn: map_particles(fn, num_particles, settings.batch_size)
    is_retained = jnp.arange(num_particles) == 0

    def weighed(
        new: Array, old: Array | None, is_retained: Array, t: Array
    ) -> tuple[PyTree, Array, PyTree]:
        """A state, or that of the retained path; its potential (given the state before, None at the start); what is seen."""
        x = new
        if retained is not None:
            x = jax.tree.map(lambda new, path: jnp.where(is_retained, path[t], new), new, retained)
        log_potential = _scalar(
            model.log_potential(x if old is None else old, x, t), "log_potential"
        )
        return x, log_potential, None if look is None else look(x, t)

    def begin(key: Array, is_retained: Array) -> tuple[Array, Array, None]:
        return weighed(model.init(key), None, is_retained, jnp.zeros((), jnp.int32))

    start, log_potentials, seen = of_all(begin)(init_key, is_retained)
    start, seen = settings.place.split(start), settings.place.copy(seen)
    if settings.gradient is not None:
        _check_pathwise(start)
    cloud, first = settings.weigh(settings.start(start, seen), log_potentials)
    ahead = functools.partial(_future, model, start)
    future = ahead() if settings.path == "ancestor" and model.num_steps else None
    moves = jax.tree.map(lambda x: x[1:], retained)

    def step(cloud: Cloud, t: Array) -> tuple[Cloud, PyTree]:
        resample_key, move_key = jax.random.split(jax.random.fold_in(loop_key, t))

        def one(key: Array, old: Array, is_retained: Array) -> tuple[PyTree, Array, PyTree]:
            return weighed(model.kernel(key, old, t), old, is_retained, t)

        def move(chosen: Resampled) -> Moved:
            x, log_potentials, seen = of_all(one)(move_key, chosen.particles, is_retained)
            kept = x if settings.history == "full" else None
            return Moved(x, log_potentials, seen, kept=kept, made=x)

        path = None if future is None else Retained(future, moves, t - FIRST_MOVE)
        return settings.step(t, resample_key, cloud, move, retained=path)

    steps = jnp.arange(FIRST_MOVE, FIRST_MOVE + model.num_steps, dtype=jnp.int32)
    cloud, (record, kept, filtered) = shared_scan(step, cloud, steps)
    result = settings.fields(cloud, cloud.particles, [first, record])
    if settings.history == "full":
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, kept)
        result["paths"] = settings.islands.paths(
            stacked, result["ancestors"], result["islands"], settings.place
        )
    if filtered:
        result["segments"] = [Segment(start, Filter(ahead, *filtered))]
    return result


def _future(model: FeynmanKac, particles: PyTree) -> Future:
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

    def one(previous: PyTree, x: Array, t: Array) -> Array:
        return _scalar(log_transition(previous, x, t), "log_transition")

    def joint(previous: PyTree, x: Array, t: Array) -> Array:
        return one(previous, x, t) + model.log_potential(previous, x, t)

    def of_pairs(
        fn: Callable[..., Array], previous: PyTree, x: Array, t: Array
    ) -> tuple[PyTree, Array]:
        return x, jax.vmap(fn, (0, 0, None))(previous, x, t + FIRST_MOVE)

    log_joint = functools.partial(of_pairs, joint)
    log_density = log_joint if is_felt else functools.partial(of_pairs, one)
    return Future(1, model.num_steps, log_density, log_joint, first=FIRST_MOVE)


def _check_pathwise(state: PyTree) -> None:
    """Refuse discrete values: their law is not known, so that a gradient would miss how parameters move them."""
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if not (is_key(x) or jnp.issubdtype(x.dtype, jnp.inexact)):
            raise ValueError(
                f"FeynmanKac: the state{jax.tree_util.keystr(path)} has dtype {x.dtype}, and draws of a kernel have a pathwise "
                "derivative only. Write the model as a program, whose discrete sites are scored, or leave out gradient=."
            )


def _check_kernel(model: FeynmanKac, key: Array) -> None:
    """Refuse a kernel that hands on something else than it is given: its states go through one loop."""
    if not model.num_steps:
        return
    state = jax.eval_shape(model.init, key)
    moved = jax.eval_shape(model.kernel, key, state, jax.ShapeDtypeStruct((), jnp.int32))
    # Numbers of Python's take the type of what they meet.
    kind = lambda x, given: (x.shape, given.dtype if given.weak_type else x.dtype)
    is_same = jax.tree.structure(state) == jax.tree.structure(moved)
    if is_same and jax.tree.map(kind, state, state) == jax.tree.map(kind, moved, state):
        return
    in_words = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
    raise ValueError(
        f"FeynmanKac: the states of init are {in_words(state)}, and the kernel makes of them {in_words(moved)}. Let both return "
        "one structure of the same shapes and types, e.g. init=lambda key: jnp.zeros(2) in place of integers."
    )


def _check_retained(model: FeynmanKac, key: Array, retained: ArrayLike) -> None:
    """JAX clips indices: a path of another length would be another path."""
    state = jax.eval_shape(model.init, key)
    want = jax.tree.map(lambda x: (model.num_steps + 1, *x.shape), state)
    have = jax.tree.map(jnp.shape, retained)
    if want != have:
        raise ValueError(
            f"FeynmanKac: the retained path has shapes {have}, and the model's paths x_0, ..., x_T have {want}. Stack one state "
            "for each of the steps and the start."
        )


def _scalar(log_value: Array, name: str) -> Array:
    value = log_number(f"FeynmanKac.{name}", log_value)
    if value.shape != ():
        raise ValueError(
            f"FeynmanKac.{name} must return one number per particle, got shape {value.shape}. Sum over the "
            "coordinates of one particle."
        )
    return value
