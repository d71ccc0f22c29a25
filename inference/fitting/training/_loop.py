"""The compiled part of fit: many optimisation steps in one device call.

Input: a carry (parameters, optimiser state, running average, objective state, counters), the run's keys, the number of the
first step and how many steps to take. Output: the new carry, the value of every step, how many were taken, whether the last
one was bad.

Invariants: the number of steps is an input, so one compilation serves calls of every length; step t uses `fold_in(key, t)`,
so where one call ends and the next begins changes nothing, to the bit; a step whose value, gradient or new parameters are
not finite is not applied, parameters and state stay as they were before it; an optimiser that is done (`_settling.py`) ends the
loop after the step in which it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ....ppl._shared_jit import shared_jit
from ....ppl.estimation import known_data
from ..._abstract_objective import AbstractObjective
from ..._arguments import shapes
from ..._host_keys import split
from ..data import Source
from ..stationarity import is_done, no_iterates, settled_at, with_iterate
from ._optimizer import Optimizer, apply, average_step, trained_leaves

MAX_CONSECUTIVE_SKIPS = 100
_FEW = 4096  # numbers that are tested one by one
_MOST_FOLDED = 1024  # entries: a step may be a third faster where its program's constants are known


class Carry(NamedTuple):
    """What one step hands to the next; with several seeds every leaf has a leading seed axis."""

    params: PyTree
    opt_state: PyTree
    average: PyTree
    state: PyTree
    num_skipped: jax.Array
    num_skipped_in_row: jax.Array


class Config(NamedTuple):
    """The static choices of a run."""

    objective: AbstractObjective
    optimizer: Optimizer
    source: Source
    average: float | str | None
    on_nonfinite: Literal["raise", "skip"]
    num_seeds: int | None
    place: Callable[[PyTree], PyTree] | None  # of a tree, where its leaves lie on a mesh
    seeds_axis: str | None  # of the mesh, over which seeds are split
    max_steps: int  # in one device call
    num_steps: int | None

    @property
    def sign(self) -> float:
        return -1.0 if self.objective.direction == "max" else 1.0

    def over_seeds(
        self, fn: Callable[..., PyTree], in_axes: int | tuple[int | None, ...] = 0
    ) -> Callable[..., PyTree]:
        """`fn` for each seed."""
        if self.num_seeds is None:
            return fn
        return jax.vmap(fn, in_axes, spmd_axis_name=self.seeds_axis)


def strong(tree: PyTree) -> PyTree:
    """A copy of every leaf as an array with a type of its own; weak types would compile the first step twice."""

    def convert(leaf):
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if leaf.weak_type:
            leaf = jax.lax.convert_element_type(leaf, leaf.dtype)
        there = None if leaf.is_fully_addressable else leaf.sharding
        return jax.device_put(leaf, there, may_alias=False)  # without a compiled copy

    return jax.tree.map(convert, tree)


def run_keys(key: jax.Array) -> tuple[jax.Array, ...]:
    """Keys of one run for: initial parameters, initial state, the steps, the order of the data."""
    return split(key, 4)


def initial_carry(
    config: Config, key: jax.Array, params: PyTree, args: tuple, *, is_own: bool = False
) -> Carry:
    """The carry of one run before its first step; the state of an optimiser of our own is made by one program."""
    state = config.objective.init_state(params, run_keys(key)[1], *args)
    begin = config.optimizer.transform.init
    if config.place is not None and config.num_seeds is None and _is_spread(params):
        # One program that makes each device's part of it, and never the whole.
        there = config.place(jax.eval_shape(begin, params))
        opt_state = jax.jit(begin, out_shardings=there)(params)
    else:
        opt_state = (shared_jit(begin, is_brief=True) if is_own else begin)(params)
    average = () if config.average is None else params
    if config.average == "stationary":
        average = no_iterates(params)
    zero: PyTree = np.int32(0)
    return Carry(params, opt_state, average, state, zero, zero)


def _is_spread(params: PyTree) -> bool:
    """Whether parameters were made in parts."""
    return any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))


def step_key(key: jax.Array, step: ArrayLike) -> jax.Array:
    """The key of step number `step` of the run with `key`."""
    return jax.random.fold_in(run_keys(key)[2], step)


def step_args(config: Config, key: jax.Array, data: PyTree, index: int, step: int) -> tuple:
    """The arguments of one step, outside of the loop (to look into a step that went wrong)."""
    order, _ = config.source.segment(run_keys(key)[3], step)
    return config.source.batch(data, order, index, step)


def compile_steps(
    config: Config, donate: bool
) -> Callable[..., tuple[Carry, Array, Array, Array, Array]]:
    """The function of a device call's steps, compiled on first use.

    It is `(carry, keys, first_step, num_steps, run_steps, data) -> (carry, values, num_taken, is_bad, is_done)`. `keys` are those
    of the steps and of the order of the data. `values` has shape [max_steps] or [max_steps, seeds]; entries from num_taken on are
    zero. `is_bad` (scalar or per seed) belongs to the last step taken; `is_done` says whether the run is over by itself.
    `run_steps` is the length of the run. With `donate` the memory of the carry is reused: the caller must not keep it.
    """

    def run(carry, keys, first_step, num_steps, run_steps, data):
        step_keys, order_keys = keys
        seed_shape = () if config.num_seeds is None else (config.num_seeds,)
        values = jnp.zeros((config.max_steps, *seed_shape), jnp.result_type(float))
        start = (jnp.int32(0), _placed(config, carry), values, jnp.zeros(seed_shape, bool))

        def segment(loop):
            # The order of the data is fixed inside a segment, so the inner loop does not carry it.
            index = loop[0]
            segment_of_seeds = config.over_seeds(config.source.segment, (0, None))
            order, length = segment_of_seeds(order_keys, first_step + index)
            end = index + jnp.minimum(num_steps - index, jnp.min(jnp.asarray(length)))

            def step(loop):
                index, carry, values, _ = loop
                step_of_seeds = config.over_seeds(one_step, (0, 0, 0, None))
                new, value, is_bad = step_of_seeds(carry, step_keys, order, index)
                if config.on_nonfinite == "raise":
                    hold = jnp.broadcast_to(jnp.any(is_bad), is_bad.shape)
                else:
                    hold = is_bad
                carry = _placed(config, config.over_seeds(_select)(hold, carry, new))
                return index + 1, carry, values.at[index].set(value.astype(values.dtype)), is_bad

            def one_step(carry, key, order, index):
                args = config.source.batch(data, order, index, first_step + index)
                step = first_step + index
                weight = config.source.weight(data)
                key = jax.random.fold_in(key, step)
                return _step(config, carry, key, step, args, weight, run_steps)

            return jax.lax.while_loop(lambda s: (s[0] < end) & ~is_over(s), step, loop)

        def is_settled(carry):
            done = is_done((carry.opt_state, carry.average))
            return jnp.array(False) if done is None else jnp.all(done)

        def is_over(loop):
            return is_stuck(loop) | is_settled(loop[1])

        def is_stuck(loop):
            if config.on_nonfinite == "raise":
                return jnp.any(loop[3])
            return jnp.all(loop[1].num_skipped_in_row >= MAX_CONSECUTIVE_SKIPS)

        loop = jax.lax.while_loop(lambda s: (s[0] < num_steps) & ~is_over(s), segment, start)
        num_taken, carry, values, is_bad = loop
        return carry, values, num_taken, is_bad, is_settled(carry)

    return shared_jit(run, donate_argnums=(0,) if donate else (), most_folded=_MOST_FOLDED)


def _step(
    config: Config, carry: Carry, key: jax.Array, step: Array, args: tuple, weight: float, run_steps: Array
):  # fmt: skip
    params = carry.params
    with known_data():
        value, grads, state = config.objective.step(params, carry.state, key, *args)
    if weight != 1:
        grads = jax.tree.map(lambda g: weight * g, grads)
    moved, opt_state = apply(
        config.optimizer, params, carry.opt_state, grads, value, config.sign, run_steps
    )
    average = carry.average
    if config.average == "stationary":
        average = with_iterate(average, moved, step, settled_at(opt_state), config.num_steps)
    elif config.average is not None:
        count = step + 1 - carry.num_skipped
        average = average_step(config.optimizer, average, moved, count, config.average)
    zero = jnp.zeros_like(carry.num_skipped_in_row)
    new = Carry(moved, opt_state, average, state, carry.num_skipped, zero)
    checked = [
        value,
        *(leaf for t in (grads, moved) for leaf in trained_leaves(config.optimizer, t)),
    ]
    return _like(carry, new), value, ~_all_finite(checked)


def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    """Whether every element is finite.

    A sum that is finite proves it, and costs a third of a test of every element (measured on a CPU, where the latter took a
    fifth of the step of a small network); the elements are looked at only when a sum is not, since it may have overflowed. Few
    elements are tested one by one, in one operation, which is compiled sooner.
    """
    if sum(leaf.size for leaf in leaves) <= _FEW:
        return jnp.all(jnp.isfinite(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])))
    sums = jnp.stack([jnp.isfinite(jnp.sum(leaf)) for leaf in leaves])
    exact = lambda: jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return jax.lax.cond(jnp.all(sums), lambda: jnp.array(True), exact)


def _select(hold: jax.Array, old: Carry, new: Carry) -> Carry:
    kept = jax.tree.map(lambda o, n: jnp.where(hold, o, n), old, new)
    return kept._replace(
        num_skipped=old.num_skipped + hold,
        num_skipped_in_row=jnp.where(hold, old.num_skipped_in_row + 1, 0),
    )


def _like(old: Carry, new: Carry) -> Carry:
    """`new` with the types of `old`; only weak types may differ."""
    for field, before, after in zip(Carry._fields, old, new, strict=True):
        if jax.tree.structure(before) != jax.tree.structure(after):
            raise TypeError(
                f"One step changed the structure of '{field}' from {jax.tree.structure(before)} to "
                f"{jax.tree.structure(after)}; the objective and the optimiser must keep it."
            )
        was, now = ([jnp.asarray(x) for x in jax.tree.leaves(t)] for t in (before, after))
        if shapes(was) != shapes(now):
            raise TypeError(
                f"One step changed the shapes or dtypes of '{field}' from {shapes(was)} to {shapes(now)}; the objective and the "
                "optimiser must keep them (initialise with the final dtype)."
            )
    return jax.tree.map(_cast, new, old)


def _cast(new: Array, old: Array) -> Array:
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return new
    return jax.lax.convert_element_type(new, old.dtype)


def _placed(config: Config, carry: Carry) -> Carry:
    # Without this the partitioner may return the parameters in other pieces, and the next call compiles anew.
    if config.place is None:
        return carry
    return jax.lax.with_sharding_constraint(carry, config.place(carry))
