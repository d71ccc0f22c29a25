"""Refuse draws of the fit's rows that would pass for draws of new ones. What belongs to rows is told by `_rows`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ....ppl.language import Program
from ..._arguments import Arguments, leaf_names, outcome
from ..._depends import depends
from ..._positions import by_position
from ..._rows import Rows, met, rows_of, unbound
from ._other_arguments import same_leaves

_REMEDY = (
    "Say which sites of the fit are kept, as in keep={kept}: the guide then runs at the fit's own arguments, and the model draws "
    "the others at the new ones; keep='*' keeps all, where the rows are those of the fit."
)


def check_rows(
    method: str,
    model: Any,
    guide: Any,
    args: tuple,
    fit_args: tuple | None,
    *,
    remedy: str | None = None,
    are_examples: bool = False,
) -> None:
    """Refuse a guide whose draws for the rows of these arguments do not depend on them.

    A guide that reads the rows (amortised) draws a site for each of them: what it draws must follow the rows as the model's site
    does, and come from no parameter of a row of the fit.

    Args:
        method: who asks.
        model: with its parameters bound.
        guide: likewise.
        args: where to draw.
        fit_args: arguments of the fit; None if they were not kept.
        remedy: what to do; default, to keep sites.
        are_examples: whether arguments of other values will come, even where these are the fit's.
    """

    def told(*without: str) -> str:
        kept = [name for name in kept_sites(model, guide, fit_args) if name not in without]
        return remedy or _REMEDY.format(kept=kept)

    sites = sites_of(model, args)
    try:
        reads = reads_arguments(guide, args)
    except Exception as err:
        raise ValueError(
            f"{method}: the guide cannot be run at the new arguments ({type(err).__name__}: {err}). {told()}"
        ) from err
    same = set() if are_examples else same_leaves(model, args, fit_args)
    run, drawn = _run(model), [name for name in reads if name in sites]
    targets = {name for name in sites if name not in reads}
    watched = [*drawn, *(n for k, n in run(args).shapes if k == "param")]
    for rows in rows_of(run, args, targets=targets, watched=watched):
        is_predicted = bool(rows.names("site") & targets)
        if not is_predicted and all(axis.leaf in same for axis in rows.axes):
            continue  # a table of which no row is predicted, the fit's own: it is about what it was about there
        _check_parameters(method, rows)
        of_rows = [name for name in drawn if name in rows.names("site")]
        for name in of_rows:
            if not reads[name]:
                why = "the guide draws it without reading them: these are draws for the rows of the fit"
                raise _refused(method, sites[name], rows, why, told())
        if of_rows and isinstance(guide, Program):
            for name, why in _not_of_these(guide, args, rows, of_rows).items():
                raise _refused(method, sites[name], rows, why, told())
        fixed = [name for name in drawn if not reads[name] and name not in of_rows]
        for name in _lined_up(model, args, fit_args, rows, sites, fixed) if is_predicted else ():
            raise ValueError(
                f"{method}: site '{name}' has as many entries as the fit had rows, whatever the number of rows, and the model "
                f"reads them by position: these are draws for the rows of the fit. {told(name)}"
            )


def of_other_rows(model: Any, names: Collection[str], args: tuple, before: tuple) -> list[str]:
    """Of some sites those that belong to rows of the arguments which have other values, or are more or fewer, than before.

    Steps of a scan are none: a series goes on.
    """
    same, sites = same_leaves(model, args, before), sites_of(model, args)
    targets = [name for name in sites if name not in names]
    found = rows_of(_run(model), args, targets=targets, watched=names)
    other = {n for r in found if any(a.leaf not in same for a in r.axes) for n in r.names("site")}
    return [n for n in names if n in other and not sites[n].regions]


def predicted_rows(
    model: Any, guide: Any, args: tuple, guide_args: tuple | None = None
) -> list[Rows]:
    """The rows of these arguments that predictions have: what the guide does not draw."""
    drawn = reads_arguments(guide, args if guide_args is None else guide_args)
    targets = {name for name in sites_of(model, args) if name not in drawn}
    found = rows_of(_run(model), args, targets=targets)
    return [rows for rows in found if rows.names("site") & targets]


def check_kept_rows(method: str, model: Any, args: tuple) -> None:
    """Refuse a model with a parameter for each row of the fit."""
    if any(kind == "param" for kind, _ in _run(model)(args).shapes):
        for rows in rows_of(_run(model), args, watched=()):
            _check_parameters(method, rows)


def kept_sites(model: Any, guide: Any, fit_args: tuple | None) -> list[str]:
    """What a message proposes to keep: the guide's sites that do not belong to rows."""
    if fit_args is None:
        return ["..."]
    sites, drawn = sites_of(model, fit_args), list(reads_arguments(guide, fit_args))
    targets = [name for name in sites if name not in drawn]
    found = rows_of(_run(model), fit_args, targets=targets, watched=drawn)
    of_rows = {name for rows in found for name in rows.names("site")}
    return [name for name in drawn if name in sites and name not in of_rows]


def in_plate_of(rows: Sequence[Rows], info: Any) -> bool:
    """Whether each of some rows has a draw of the site to itself: not one event, nor the steps of a chain."""
    steps = {region.axis for region in info.regions}
    own = [i for i, dim in enumerate(info.dims) if dim is None or dim not in steps]
    return any(set(own) & r.follows.get(("site", info.name), frozenset()) for r in rows)


def sites_of(program: Any, args: tuple) -> Mapping[str, Any]:
    return outcome(lambda *args: program.simulate(jax.random.key(0), *args), args).sites


def reads_arguments(guide: Any, args: tuple) -> dict[str, bool]:
    """Site of the guide -> whether its draws may depend on the values of the arguments, not only on their shapes."""
    split = Arguments(args)
    arrays = split.arrays(args)
    run = lambda arrays: guide.simulate(jax.random.key(0), *split.join(arrays)).shared_choices
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(arrays)
    reads = depends(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    return jax.tree.unflatten(jax.tree.structure(shapes), reads)


def _run(program: Any) -> Callable[[tuple], Any]:
    program = unbound(program)
    return lambda args: met(program, args)


def _check_parameters(method: str, rows: Rows) -> None:
    for name in sorted(rows.names("param")):
        raise ValueError(
            f"{method}: the model's parameter '{name}' has an entry for each of {rows.size} rows, and those that were fitted "
            f"belong to the rows of the fit{_why(rows)}. Compute it from the rows, or stay at those of the fit (a prediction by "
            "keep='*')."
        )


def _not_of_these(guide: Program, args: tuple, rows: Rows, of_rows: list[str]) -> dict[str, str]:
    """Sites that a guide which reads the rows draws for as many as the fit had, or by parameters of these, and why."""
    own = rows.of(_run(guide), args).names("param") & set(guide.params or {})
    if own:
        why = f"the guide draws it by {sorted(own)}, which have an entry for each row of the fit"
        uses = _uses(guide, args, own)
        return {name: why for name in of_rows if uses[name]}
    follows = rows.of(lambda args: met(guide, args), args)
    why = "the guide draws it for as many rows as the fit had"
    fixed = [n for n in of_rows if follows.why is None and n not in follows.names("site")]
    return dict.fromkeys(fixed, why)


def _lined_up(
    model: Any, args: tuple, fit_args: tuple | None, rows: Rows, sites: Any, names: list[str]
) -> list[str]:
    """Of some sites whose size is fixed those with an entry for each row of the fit, matched to the rows by position."""
    num_rows = {rows.size}
    if fit_args is not None:
        before = dict(zip(leaf_names(model, fit_args), jax.tree.leaves(fit_args), strict=True))
        olds = [(before.get(leaf_names(model, args)[a.leaf]), a.axis) for a in rows.axes]
        num_rows = {
            int(x) if k is None else np.shape(x)[k]
            for x, k in olds
            if x is not None and (k is None or k < np.ndim(x))
        } or num_rows
    shapes = {n: (*sites[n].batch_shape, *sites[n].event_shape) for n in names}
    asked = [n for n in names if num_rows & set(shapes[n])]
    if not asked or not rows.longer:
        return []
    longer = rows.longer[0][0]
    split, program = Arguments(args), unbound(model)
    simulated = outcome(lambda *args: program.simulate(jax.random.key(0), *args), args).choices
    known = {n: simulated[n] for n in names if n not in asked and n in simulated}

    def run(arrays: list[Any], known: Any, args: list[Any]) -> Any:
        choices = {**known, **dict(zip(asked, arrays, strict=True))}
        return program.generate(jax.random.key(0), choices, *split.join(args))[0].log_probs

    pair = (split.arrays(args), split.arrays(longer))
    found = by_position(run, [simulated[n] for n in asked], known, *pair)
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


def _refused(method: str, info: Any, rows: Rows, why: str, remedy: str) -> ValueError:
    axes = sorted(rows.follows["site", info.name])
    shape = (*info.batch_shape, *info.event_shape)
    if not axes:
        where = "is one of a number of statements"
    elif axes[0] < len(info.dims) and info.dims[axes[0]]:
        where = f"lies in plate '{info.dims[axes[0]]}' of length {shape[axes[0]]}"
    else:
        where = f"has an axis of length {shape[axes[0]]}"
    more = "" if rows.why else ", which grows with the rows of the new arguments"
    return ValueError(
        f"{method}: site '{info.name}' {where}{more}, and {why}{_why(rows)}. {remedy}"
    )


def _why(rows: Rows) -> str:
    if rows.why is None:
        return ""
    return f" (told by equal lengths, {rows.size}, since the program could not be traced with more rows: {rows.why})"
