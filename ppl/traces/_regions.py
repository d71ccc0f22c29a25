"""Control flow inside programs: scan, cond (`particles` is in `_particles.py`).

Each statement runs its body under one JAX transformation (lax.scan, lax.cond, vmap) with the whole handler
stack still active, so that plates, conditions, masks and scales around the statement act inside the body.
Recorders on the stack (`_recorder.py`) are told when the body begins and ends: their keys and forced values
go in sliced, what they recorded comes out stacked.

Without a recorder on the stack (NumPyro's own inference) `scan` and `cond` become NumPyro's control-flow
primitives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree

from .._checks import is_integer
from .._compat import control_flow, control_flow_value
from .._types import Message
from ._branches import check_infos, joined, shared_regions
from ._in_step import (
    are_exploring,
    axis_name,
    explored,
    first_step,
    merge_all,
    pop_all,
    push_all,
    recorders_around,
    repeated,
)
from ._numpyro_regions import cond_of_numpyro, scan_of_numpyro
from ._reach import completed
from ._recorder import SEEN, Begun, Recorder, RegionState
from ._sites import Region
from ._steps_given import (
    AtStep,
    GivenValues,
    begun,
    check_begins_anew,
    check_one_length,
    given_around,
    leading,
)


def scan(
    step: Callable[..., PyTree],
    init: PyTree,
    xs: PyTree,
    length: int | None = None,
    *,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Run `step` over the leading axis of `xs`, as `jax.lax.scan`, with sample statements allowed in the step.

    A site in the step keeps its name; its values are stacked along a leading time axis. Plates around the
    scan act inside the step; scans nest.

    Args:
        step: `(carry, x) -> (carry, y)`.
        init: initial carry, a pytree.
        xs: pytree of arrays with a common leading axis, or None with `length`.
        length: number of steps, needed when `xs` holds no arrays.
        reverse: begin at the end of `xs`. The stacked `y` stand beside their `x`; values of sites, in the order of the steps,
            as NumPyro substitutes them.

    Returns:
        The final carry and the stacked `y`.

    Raises:
        TypeError: the step is no function; `length` is no integer that is known.
        ValueError: the number of steps is unknown or contradictory; a reversed scan is longer than the one it is to go on from.
    """
    _check_functions("ppl.scan(step, init, xs)", step=step)
    length = _scan_length(xs, length)

    def of_two(carry: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        found = step(carry, x)
        if not (isinstance(found, tuple | list) and len(found) == 2):
            got = "an array" if hasattr(found, "shape") else f"a {type(found).__name__}"
            raise TypeError(
                f"ppl.scan: the step returned {got}, and is to return two things, what it hands on and what is stacked. Write "
                "return carry, y; or return carry, None."
            )
        return found[0], found[1]

    try:
        if reverse:
            carry, ys = _scan(of_two, init, _reversed(xs), length, is_reversed=True)
            return carry, _reversed(ys)
        return _scan(of_two, init, xs, length, is_reversed=False)
    except TypeError as err:
        if not str(err).startswith("scan body function carry"):
            raise
        raise TypeError(
            f"ppl.scan: the step hands on something else than it is given. {str(err).split('\n\n')[1]} Let init, and the first "
            "thing that the step returns, have the same structure, shapes and types, e.g. by jnp.zeros(2) in place of 0.0."
        ) from err


def all_steps(step: Callable[[PyTree], PyTree], xs: PyTree, length: int) -> Any:
    """Run `step` over the leading axis of `xs`, all steps at once: a scan whose steps hand nothing on, and so a `vmap`.

    Args:
        step: `x -> y`.
        xs: pytree of arrays with a leading axis of `length`.
        length: number of steps.

    Returns:
        The stacked `y`.
    """
    if not recorders_around():
        return jax.vmap(step, axis_size=length)(xs)
    handing_on = lambda carry, x: (carry, step(x))
    return _scan(handing_on, None, xs, length, is_reversed=False, is_parallel=True)[1]


def _reversed(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x)[::-1], tree)


def _scan(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    init: PyTree,
    xs: PyTree,
    length: int,
    is_reversed: bool,
    is_parallel: bool = False,
) -> tuple[PyTree, PyTree]:
    recorders = recorders_around()
    if not recorders:
        return scan_of_numpyro(step, init, xs, length)
    if given := given_around():
        step, xs = _at_steps(step, given, length), (jnp.arange(length), xs)
    for recorder in recorders:
        recorder.begin_steps(init)
    # Several recorders may stand on the stack (one that draws around one that scores): each has a key and forced values of its
    # own, and each keeps its numbers of a step, which leave the loop stacked.
    threads = [r.open_region("scan") for r in recorders]
    keys = [key for key, _ in threads]
    slices = [
        {**leading(forced, length), **begun(r, forced, length)}
        for r, (_, forced) in zip(recorders, threads, strict=True)
    ]
    # A shorter scan's values are those of the first steps of this one.
    if any(isinstance(value, Begun) for forced in slices for value in forced.values()):
        slices = _of_sites(recorders, keys, slices, length, lambda: step(init, first_step(xs)))
        if is_reversed:
            check_begins_anew(slices)
    is_explored = are_exploring(recorders)
    first = explored(
        recorders, lambda: (keys, first_step(slices)), lambda: step(init, first_step(xs))
    )
    if is_explored:
        return first[0], repeated(first[1], length)
    # `frames` leaves the body by side effect: it holds static descriptions only, the same in every step.
    frames: list[RegionState] = []

    def body(carry: Array, inputs: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        t, keys_now, forced, x = inputs
        push_all(recorders, "scan", keys_now, forced)
        carry, y = step(carry, x)
        for recorder in recorders:
            recorder.end_step(carry, t)
        frames[:], numbers = pop_all(recorders)
        return carry, (y, numbers)

    # Keys of all steps at once: the hash of one inside of a step costs as much as some sites.
    steps = jnp.arange(length)
    of_steps = [
        None if k is None else jax.vmap(lambda t, k=k: jax.random.fold_in(k, t))(steps)
        for k in keys
    ]
    inputs = steps, of_steps, slices, xs
    if is_parallel:
        carry, (ys, numbers) = jax.vmap(lambda x: body(init, x))(inputs)
    else:
        carry, (ys, numbers) = lax.scan(body, init, inputs, length)
    merge_all(recorders, frames, numbers, Region("scan", axis_name(recorders, "scan"), length))
    return carry, ys


def _at_steps(
    step: Callable[..., PyTree], given: Sequence[GivenValues], length: int
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """The step over (number of the step, x), under what the handlers around give to its sites."""

    def stepped(
        carry: Array | tuple[Array, Array],
        numbered: tuple[Array, Array | tuple[Array, Array] | None],
    ) -> tuple[Array | float | tuple[Array, Array], Array | None]:
        t, x = numbered
        with AtStep(given, t, length):
            return step(carry, x)

    return stepped


def cond(
    pred: PyTree, true_fn: Callable[..., PyTree], false_fn: Callable[..., PyTree], *operands: float
) -> PyTree:
    """Choose a branch by a scalar predicate, as `jax.lax.cond`, with sample statements allowed in both branches.

    The branches may have different sites; a site of the branch not taken counts for nothing and holds zeros
    in the trace.

    Args:
        pred: boolean scalar.
        true_fn: branch for a true predicate, called with `*operands`.
        false_fn: branch for a false predicate; must return the same structure.
        operands: arguments of both branches.

    Returns:
        What the branch taken returns.

    Raises:
        TypeError: a branch is no function.
        ValueError: the predicate is not a scalar; one name stands in both branches for sites of other kinds, shapes, distribution
            classes, strategies or enumerated values.
    """
    _check_functions(
        "ppl.cond(pred, true_fn, false_fn, *operands)", true_fn=true_fn, false_fn=false_fn
    )
    if jnp.shape(pred) != ():
        raise ValueError(
            f"ppl.cond: the predicate has shape {jnp.shape(pred)}, but one branch is chosen for the "
            "whole program. Use a scalar predicate, or sample both alternatives in the plate and "
            "combine them with jnp.where."
        )
    recorders = recorders_around()
    if not recorders:
        return cond_of_numpyro(pred, true_fn, false_fn, operands)
    threads = [r.open_region("cond") for r in recorders]
    keys, forced = [key for key, _ in threads], [values for _, values in threads]
    is_explored = are_exploring(recorders)
    first = explored(recorders, lambda: (keys, forced), lambda: true_fn(*operands))
    explored(recorders, lambda: (keys, forced), lambda: false_fn(*operands))
    if is_explored:
        return first
    frames: dict[int, list[RegionState]] = {}

    def run(index: int, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        def branch(*args: PyTree) -> tuple[PyTree, list[dict[str, PyTree]]]:
            push_all(recorders, "cond", keys, forced)
            out = fn(*args)
            frames[index], numbers = pop_all(recorders)
            return out, numbers

        return branch

    # Each branch alone, as shapes: what the other one lacks is filled up with zeros, so that both return one structure.
    branches = [run(0, false_fn), run(1, true_fn)]
    shapes = [jax.eval_shape(branch, *operands)[1] for branch in branches]
    for i in range(len(recorders)):
        check_infos((frames[0][i].infos, frames[1][i].infos), (shapes[0][i], shapes[1][i]))

    def padded(index: int) -> Callable[..., PyTree]:
        def branch(*args: PyTree) -> tuple[PyTree, list[dict[str, PyTree]]]:
            out, numbers = branches[index](*args)
            for r, own, other in zip(recorders, numbers, shapes[1 - index], strict=True):
                # A site of the other branch only: zeros, which count for nothing; what limits its law is completed alike.
                for name, tree in other.items():
                    reach = own[name].get("reach", {}) if name in own else {}
                    own.setdefault(name, r.absent(tree))
                    if "reach" in tree:
                        own[name]["reach"] = completed(reach, tree["reach"])
            return out, numbers

        return branch

    out, numbers = lax.cond(pred, padded(1), padded(0), *operands)
    for i, recorder in enumerate(recorders):
        frame = frames[0][i]
        in_both = shared_regions(frame.infos, frames[1][i].infos)
        frame.infos = {**frame.infos, **frames[1][i].infos}
        both = frame.sites.keys() & frames[1][i].sites.keys()
        shared = {name: joined(frame.sites[name], frames[1][i].sites[name]) for name in both}
        frame.sites = {**frame.sites, **frames[1][i].sites, **shared}
        frame.used |= frames[1][i].used
        recorder.merge(frame, numbers[i], Region("cond", None, 1))
        for name, regions in in_both.items():
            info = dataclasses.replace(recorder.frame.infos[name], regions=regions)
            recorder.frame.infos[name] = info
    return out


def adopt(msg: Message) -> tuple[tuple[None, None, Array], tuple[PyTree, None]]:
    """Run a control-flow statement of numpyro.contrib under our recorders; returns the value that NumPyro expects.

    A scan's `history` says how many steps an enumerated site is remembered; here that is read off the program.
    """
    found = control_flow(msg)
    if found.is_scan:
        result = scan(found.step, found.operand, found.xs, found.length, reverse=found.is_reversed)
    else:
        result = cond(found.pred, *found.branches, found.operand)
    return control_flow_value(found, result)


Recorder.adopt = staticmethod(adopt)


def _of_sites(
    recorders: list[Recorder],
    keys: list[PyTree],
    slices: list[dict[str, Begun]],
    length: int,
    run: Callable[..., PyTree],
) -> list[dict[str, Begun]]:
    """Without values of a shorter scan that belong to no site of this one: they say nothing of the steps seen."""
    used: list[set[str]] = []

    def body() -> None:
        push_all(recorders, "scan", keys, first_step(slices))
        run()
        used.extend(frame.used for frame in pop_all(recorders)[0])

    jax.eval_shape(body)
    for recorder, own in zip(recorders, used, strict=True):
        check_one_length(recorder, own, length)
    holds = lambda name, value, own: not isinstance(value, Begun) or name in (SEEN, *own)
    return [
        {name: value for name, value in forced.items() if holds(name, value, own)}
        for forced, own in zip(slices, used, strict=True)
    ]


def _check_functions(call: str, **functions: PyTree) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"{call}: argument '{name}' is {function!r:.40}, which is no function. Keep to this order of arguments; what is "
                "named are sites, and neither loops nor branches."
            )


def _scan_length(xs: ArrayLike | None, length: int | None) -> int:
    if length is not None and not is_integer(length):
        raise TypeError(
            f"ppl.scan: argument 'length' is of type {type(length).__name__}. Pass an integer that is known when the program is "
            "traced, or leave it out where xs holds arrays."
        )
    sizes = {jnp.shape(x)[0] if jnp.ndim(x) else -1 for x in jax.tree.leaves(xs)}
    if length is not None:
        sizes.add(length)
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            "ppl.scan: the leading axes of xs and `length` must give one number of steps, got "
            f"{sorted('a scalar' if n < 0 else str(n) for n in sizes)}. Pass xs with a common leading "
            "axis, or xs=None with length=T."
        )
    return next(iter(sizes))
