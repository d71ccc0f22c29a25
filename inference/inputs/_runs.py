"""What a program makes of its arguments, found by one abstract run before anything is computed: indices, noise of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from numpyro.distributions import Distribution, constraints
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger

from ...ppl._compat import ClosedJaxpr, is_concrete
from ...ppl._types import Args, Key, Message, ModelFn
from ...ppl.densities import Eliminated
from ...ppl.distributions import base_of, is_masked
from ...ppl.inputs import Cast, Suspect, Wrap, heard, same_numbers, suspects
from ...ppl.language import Program, arguments, as_program, as_tuple, parted, refuse_unrepeatable
from ...ppl.traces import LOOK, StatementLook, Trace, stand_ins
from .._arguments import Arguments, array_names, leaf_names
from .._host_keys import default_key
from ._codes import levels_of, misread
from ._held import has_nan, has_whole_numbers, holds_codes
from ._improper import UNNORMALISED, check_proper, improper_sites
from ._noise import check_noise
from ._parameters import Suspects, check_parameters


class TracedRun(NamedTuple):
    """An abstract run.

    Attributes:
        program: the program.
        args: its arguments.
        closed: the traced run; its inputs are a key and the arrays among the arguments.
        trace: with shapes for arrays.
        arrays: those of the arguments.
        outside: what is wrong with arguments that are parameters of a law, by site.
        suspected: sites with parameters that may be wrong, see `_parameters.py`.
    """

    program: Program
    args: tuple
    closed: ClosedJaxpr
    trace: Trace
    arrays: list[PyTree]
    outside: Mapping[str, str] = MappingProxyType({})
    suspected: Collection[str] = frozenset()


def abstract_run(program: Program, args: tuple) -> TracedRun:
    """The program simulated, nothing computed."""
    split = Arguments(args)
    arrays = split.arrays(args)

    names, outside = array_names(program, args), {}
    suspected: set[str] = set()

    def run(key: Key, traced: list[Array]) -> Trace:
        def met(msg: Message) -> None:
            outside.update(_outside(msg, known))
            parameters.met(msg)

        known = {id(t): (n, x) for t, n, x in zip(traced, names, arrays, strict=True)}
        parameters = Suspects(known, suspected)
        token = LOOK.set(StatementLook(met))
        try:
            return program.simulate(key, *split.join(traced))
        finally:
            LOOK.reset(token)

    with stand_ins():
        closed, trace = jax.make_jaxpr(run, return_shape=True)(default_key(), arrays)
    suspected -= set(outside)
    return TracedRun(program, args, closed, trace, arrays, outside, suspected)


def _outside(msg: Message, known: Mapping[int, tuple[str, PyTree]]) -> dict[str, str]:
    """What is wrong with the arguments that a law has for parameters, by site; those under a mask may be anything."""
    law = base_of(msg["fn"])
    if is_masked(msg["fn"]) or not isinstance(law, Distribution):
        return {}
    for parameter, value in law.get_args().items():
        constraint = law.arg_constraints[parameter]
        name, x = known.get(id(value), ("", None))
        if x is None or constraints.is_dependent(constraint) or not is_concrete(x):
            continue
        x = np.asarray(x)
        with jax.ensure_compile_time_eval():
            is_right = np.asarray(constraint(x))
        is_wrong = ~is_right & np.isfinite(x)  # NaN is told elsewhere; -inf may be a logit
        if is_right.shape == x.shape and is_wrong.any():
            first, count = x[is_wrong].flat[0], int(is_wrong.sum())
            held = f"which holds {first:g} ({count} of {x.size} are like that)"
            return {
                msg["name"]: f"{parameter} of {type(law).__name__} is the argument '{name}', {held}"
            }
    return {}


def tried_run(program: object, args: tuple) -> TracedRun | None:
    """`abstract_run`, or None where a program cannot be simulated; whoever needs that says so."""
    if (program := whole(program)) is None:
        return None
    try:
        return abstract_run(program, args)
    except Exception:
        return None


def whole(program: object) -> Program | None:
    """The program whose statements are run, with all its sites; None where that cannot be seen."""
    program = program.program if isinstance(program, Eliminated) else program
    if type(program) is Program and not isinstance(program.fn, AutoGuide):
        return program
    return None


def evidence_of(program: object, args: tuple | None) -> str | None:
    """What is to be said of a program's log evidence beside its number; None where nothing is, or nothing is known."""
    run = None if args is None else tried_run(program, args)
    found = [] if run is None else improper_sites(run.trace.sites)
    return f"{UNNORMALISED} ({', '.join(found)})" if found else None


def check_run(method: str, run: TracedRun) -> None:
    """Refuse indices out of range, improper posteriors, keys of a program's own, and constants that differ from run to run.

    Raises:
        ValueError: with argument, value and range.
    """
    _check_values(method, run)
    check_proper(method, run.program, run.args, run.trace)
    check_noise(method, run.program, run.args, run.closed, [True, *[False] * len(run.arrays)])
    arrays = [x for x in run.closed.consts if np.ndim(x) and not _is_key(x)]
    if arrays and not same_numbers(run.closed, abstract_run(run.program, run.args).closed):
        positional, keywords = parted(run.args)
        refuse_unrepeatable(run.program, positional, keywords)


def _check_values(method: str, run: TracedRun) -> None:
    """Refuse indices out of range, and parameters at which a law is none."""
    check_indices(method, run)
    for site, what in run.outside.items():
        raise ValueError(
            f"{method}: site '{site}' of {run.program!r}: {what}, where the law has no density. Correct them (probabilities go "
            "from 0 to 1, scales and rates are positive), or leave such rows out."
        )
    check_parameters(method, run.program, run.args, run.suspected)


def _is_key(x: PyTree) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.dtype(float)), jax.dtypes.extended)


def check_indices(method: str, run: TracedRun) -> None:
    """Refuse what is known and changes silently, where something depends on it.

    Indices outside of what they index, NaN as a whole number, whole numbers that wrap round. Where plates draw their rows, all
    rows are looked at, if the program can be run with all of them.

    Raises:
        ValueError: with argument, value and range.
    """
    if not is_concrete(run.arrays):
        return
    if any(site.subsampled for site in run.trace.sites.values()):
        run = tried_run(_with_all_rows(run.program), run.args) or run
    values = [None, *run.arrays]
    if not suspects(run.closed, values):
        return
    split = Arguments(run.args)

    def counted(key: Key, arrays: list[Array]) -> PyTree:
        with stand_ins():
            trace = run.program.simulate(key, *split.join(arrays))
        return trace.log_probs, {n: _where_it_counts(trace, n) for n in trace.choices}

    closed = jax.make_jaxpr(counted)(jax.random.key(0), run.arrays)
    if found := heard(closed, [jax.random.key(0), *run.arrays], values):
        names = ["", *array_names(run.program, run.args)]
        _refuse(method, run.program, found[0], [names[i] for i in sorted(found[0].inputs)])


class _AllRows(Messenger):
    """Plates that draw their rows have all of them, in order."""

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "plate" and msg["value"] is None:
            size = msg["args"][0]
            msg["args"], msg["value"] = (size, size), jnp.arange(size)


def _with_all_rows(program: Program) -> Program:
    return Program(_AllRows(program.fn), program.params, program.site_weights)


def _where_it_counts(trace: Trace, name: str) -> Array:
    """A site's draws, without those under a mask."""
    x = trace.choices[name]
    for mask in (trace.masks.get(name), trace.cells.get(name)):
        if mask is not None:
            x = jnp.where(
                jnp.reshape(mask, (*jnp.shape(mask), *[1] * (x.ndim - np.ndim(mask)))), x, 0
            )
    return x


def check_codes(method: str, run: TracedRun, raw: PyTree) -> None:
    """Refuse codes of categories that are read as measurements, counts or entries of another list.

    Args:
        method: who asks.
        run: of the program.
        raw: its arguments as they were given.

    Raises:
        ValueError: with the argument's name and levels.
    """
    if levels := levels_of(raw, leaf_names(run.program, raw)):
        names = array_names(run.program, run.args)
        for what in misread(run.closed, run.trace, names, levels):
            raise ValueError(f"{method}: {run.program!r}: {what}")


def _refuse(method: str, program: Program, found: Suspect, names: list[str]) -> None:
    told = " and ".join(f"'{name}'" for name in names)
    where = f" at {list(found.place)}" if found.place else ""
    if isinstance(found, Cast):
        what = f"what is made of {told}" if names else "a constant"
        raise ValueError(
            f"{method}: {what} in {program!r} holds NaN{where} ({found.count} such), and becomes whole numbers there, of which "
            "NaN is none: 0 would be read in its place. Leave such rows out, or make what is missing a code of its own before: "
            "jnp.where(jnp.isnan(g), code, g).astype(int)."
        )
    if isinstance(found, Wrap):
        what = f"what is made of {told}" if names else "a constant"
        raise ValueError(
            f"{method}: {what} in {program!r} comes to {found.value:.6g}{where} ({found.count} such), which does not fit into "
            f"{found.dtype}: it wraps round, and becomes another number. Compute in real numbers, e.g. x.astype(float) ** 2, or "
            "in 64 bits: jax.config.update('jax_enable_x64', True)."
        )
    given = f"argument {told}" if found.is_given else f"an index made of {told}"
    what = given if names else "an index of constants"
    is_own = not names and found.value < 0
    own = f"To count from the end, write {found.value % found.size}. " if is_own else ""
    raise ValueError(
        f"{method}: {what} of {program!r} holds {found.value}{where} ({found.count} such), and what it indexes has "
        f"{found.size} entries, 0 to {found.size - 1}: another one would be read in its place. {own}Code groups from 0; make a "
        "missing category a group of its own, or leave its rows out. A group that the fit did not have is drawn by the model: "
        "name in keep= what is known, and give the plate of groups its size by an argument."
    )


def later_indices(
    method: str, programs: Iterable[ModelFn], first: tuple
) -> Callable[[int, tuple], None]:
    """A check of the arguments of a later batch, `check(number, args)`: `check_indices` of these programs.

    Args:
        method: that reads batches.
        programs: that take them; those that cannot be run alone are left out.
        first: arguments of the first batch, by which they are traced when they are first needed.
    """
    runs: list[TracedRun] | None = None

    def check(number: int, args: tuple) -> None:
        nonlocal runs
        if runs is None:
            runs = [run for p in programs if (run := tried_run(p, first)) is not None]
        for run in runs:
            arrays = Arguments(args).arrays(args)
            if list(map(np.shape, arrays)) == list(map(np.shape, run.arrays)):
                check_indices(f"{method}: batch {number}", run._replace(args=args, arrays=arrays))
            elif (other := tried_run(run.program, args)) is not None:
                check_indices(f"{method}: batch {number}", other)

    return check


def checked(
    caller: Callable[..., PyTree], model: object, args: Args, kwargs: Mapping[str, PyTree]
) -> tuple[Array | Key | float | np.ndarray, ...]:
    """`arguments` of a call, its indices and the parameters of its laws checked."""
    raw = as_tuple(args, kwargs)
    args = arguments(caller, model, args, kwargs)
    if (isinstance(model, Program) or callable(model)) and is_concrete(args):
        if (run := tried_run(as_program(model), args)) is not None:
            _check_values(caller.__name__, run)
            check_codes(caller.__name__, run, raw)
    return args


def check_new(method: str, program: object, args: tuple) -> None:
    """`check_indices` for a program that is run later: what is wrong with it otherwise is told then."""
    if not may_index(program, args):
        return
    if (run := tried_run(program, args)) is not None:
        check_indices(method, run)


def may_index(program: object, args: tuple) -> bool:
    """Whether anything at hand may be an index: whole numbers, or what a NaN becomes one of."""
    is_suspect = lambda x: has_whole_numbers(x) or has_nan(x)
    given = jax.tree.leaves(args)
    return is_concrete(args) and (any(map(is_suspect, given)) or holds_codes(program))
