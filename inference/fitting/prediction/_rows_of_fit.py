"""What a fit has for each of its rows: parameters, by shape or by position, and sites of a fixed size.

Where the size is not taken from the arguments, no trace with more rows shows it. An array with as many entries as the fit had
rows, read by position, then has one for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ....ppl._types import ModelFn
from ....ppl.language import Program
from ....ppl.traces import SiteInfo
from ..._arguments import Arguments, named_leaves, simulated
from ..._depends import depends
from ...inputs import Met, Rows, by_position, met, rows_of, unbound


def run_of(program: ModelFn) -> Callable[[tuple], Met]:
    """What the program meets at arguments, its parameters as these ask for."""
    program = unbound(program)
    return lambda args: met(program, args)


def num_rows(model: ModelFn, args: tuple, fit_args: tuple | None, rows: Rows) -> set[int]:
    """How many of these rows the fit had."""
    if fit_args is None:
        return {rows.size}
    before, names = named_leaves(model, fit_args), list(named_leaves(model, args))
    olds = [(before.get(names[a.leaf]), a.axis) for a in rows.axes]
    sizes = [(x, np.shape(x), k) for x, k in olds if x is not None]
    found = {
        int(x) if k is None else shape[k] for x, shape, k in sizes if k is None or k < len(shape)
    }
    return found or {rows.size}


def own_parameters(program: ModelFn, args: tuple, rows: Rows, sizes: set[int]) -> set[str]:
    """Parameters with an entry for each row of the fit, which had so many; `rows` are those of a run of this program."""
    if not isinstance(program, Program) or not program.params:
        return set()
    known = {n for kind, n in run_of(program)(args).shapes if kind in ("param", "network")}
    params = {name: x for name, x in program.params.items() if name in known}
    leaves, treedef = jax.tree.flatten(params)
    owners = [name for name in params for _ in jax.tree.leaves(params[name])]
    own = rows.names("param") & set(params)
    asked = [i for i, x in enumerate(leaves) if sizes & set(np.shape(x)) and owners[i] not in own]
    if not asked or not rows.longer:
        return own

    def run(arrays: list[PyTree], known: list[PyTree], args: tuple) -> PyTree:
        own, rest = iter(arrays), iter(known)
        values = [next(own) if i in asked else next(rest) for i in range(len(leaves))]
        bound = program.bind(jax.tree.unflatten(treedef, values))
        return bound.simulate(jax.random.key(0), *args).choices

    known = [x for i, x in enumerate(leaves) if i not in asked]
    pair = (args, rows.longer[0][0])
    found = by_position(run, [leaves[i] for i in asked], known, *pair)
    return own | {owners[i] for i, is_found in zip(asked, found, strict=True) if is_found}


def not_of_new_rows(
    guide: Program, args: tuple, rows: Rows, sizes: set[int], names: list[str]
) -> dict[str, str]:
    """Sites that a guide which reads the rows draws for as many as the fit had, or by parameters of these, and why."""
    found = rows.of(run_of(guide), args)
    if rows.longer and not found.longer:  # the guide may have these rows in more of its arguments
        other = rows_of(run_of(guide), args, size=rows.size)
        found = next((r for r in other if r.longer and set(r.axes) & set(rows.axes)), found)
    if own := own_parameters(guide, args, found, sizes):
        why = f"the guide draws it by {sorted(own)}, which have an entry for each row of the fit"
        uses = _uses(guide, args, own)
        return {name: why for name in names if uses[name]}
    if not rows.longer:
        return {}
    if not found.longer:
        why = f"the guide cannot be traced with more rows than it was fitted on ({found.why})"
        return dict.fromkeys(names, why)
    follows = found.of(lambda args: met(guide, args), args)
    why = "the guide draws it for as many rows as the fit had"
    return {name: why for name in names if name not in follows.names("site")}


def lined_up(
    model: ModelFn,
    args: tuple,
    rows: Rows,
    sites: Mapping[str, SiteInfo],
    names: list[str],
    sizes: set[int],
) -> list[str]:
    """Those sites of fixed sizes that have an entry for each row of the fit, which had so many, matched by position."""
    shapes = {n: (*sites[n].batch_shape, *sites[n].event_shape) for n in names}
    asked = [n for n in names if sizes & set(shapes[n])]
    if not asked or not rows.longer:
        return []
    program: Any = unbound(model)
    drawn = simulated(program, args).choices
    asked = [n for n in asked if n in drawn]
    known = {n: drawn[n] for n in names if n not in asked and n in drawn}

    def run(arrays: list[PyTree], known: PyTree, args: tuple) -> PyTree:
        choices = {**known, **dict(zip(asked, arrays, strict=True))}
        return program.generate(jax.random.key(0), choices, *args)[0].log_probs

    pair = (args, rows.longer[0][0])
    found = by_position(run, [drawn[n] for n in asked], known, *pair)
    return [name for name, is_found in zip(asked, found, strict=True) if is_found]


def _uses(guide: Program, args: tuple, names: set[str]) -> dict[str, bool]:
    """Site of the guide -> whether its draws depend on some of the parameters."""
    split = Arguments(args)
    arrays, params = split.arrays(args), dict(guide.params or {})
    simulate = lambda params, arrays: guide.bind(params).simulate(
        jax.random.key(0), *split.join(arrays)
    )
    run = lambda params, arrays: simulate(params, arrays).shared_choices
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(params, arrays)
    marks = [n in names for n in params for _ in jax.tree.leaves(params[n])]
    marks += [False] * (len(closed.jaxpr.invars) - len(marks))
    return jax.tree.unflatten(jax.tree.structure(shapes), depends(closed.jaxpr, marks))
