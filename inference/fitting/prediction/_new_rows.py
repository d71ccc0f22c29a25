"""Refuse draws of the fit's rows that would pass for draws of new ones. What belongs to rows is told by `_rows`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ....ppl._compat import is_concrete
from ....ppl.language import Program
from ..._arguments import Arguments, is_array, leaf_names, outcome
from ..._depends import depends
from ..._rows import Rows, met, rows_of, unbound

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
    are_examples: bool = False,
) -> None:
    """Refuse a guide whose draws for the rows of these arguments do not depend on them.

    A guide that reads the rows (amortised) draws a site for each of them: what it draws must follow the rows as the model's site
    does, and come from no parameter of a row of the fit.
    """
    sites = sites_of(model, args)
    try:
        reads = reads_arguments(guide, args)
    except Exception as err:
        raise ValueError(
            f"{method}: the guide cannot be run at the new arguments ({type(err).__name__}: {err}). "
            + _remedy(model, guide, fit_args)
        ) from err
    same = set() if are_examples else _same_leaves(model, args, fit_args)
    run, drawn = _run(model), [name for name in reads if name in sites]
    targets = [name for name in sites if name not in reads]
    watched = [*drawn, *(n for k, n in run(args).shapes if k == "param")]
    found = rows_of(run, args, targets=targets, watched=watched)
    # A table of which no row is predicted, the fit's own, is about what it was about there.
    is_new = lambda rows: (
        any(a.leaf not in same for a in rows.axes) or rows.names("site") & set(targets)
    )
    found = [rows for rows in found if is_new(rows)]
    for rows in found:
        _check_parameters(method, rows)
        for name in (n for n in drawn if n in rows.names("site")):
            if not reads[name]:
                why = "the guide draws it without reading them: these are draws for the rows of the fit"
                raise _refused(
                    method, name, sites[name], rows, why, _remedy(model, guide, fit_args)
                )
        _check_reading(method, model, guide, args, fit_args, rows, sites, drawn)


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


def check_runs(method: str, model: Any, args: tuple, fit_args: tuple | None) -> None:
    """Refuse arguments of other columns than the fit's at which the model cannot be run."""
    try:
        sites_of(model, args)
    except Exception as err:
        if fit_args is None:
            raise
        before = dict(zip(leaf_names(model, fit_args), jax.tree.leaves(fit_args), strict=True))
        for name, x in zip(leaf_names(model, args), jax.tree.leaves(args), strict=True):
            old = before.get(name)
            if (
                not (is_array(x) and is_array(old))
                or np.shape(x)[1:] == np.shape(old)[1:]
                and np.ndim(x) == np.ndim(old)
            ):
                continue
            raise ValueError(
                f"{method}: argument '{name}' has the shape {np.shape(x)}, and {np.shape(old)} at the fit: the model cannot be "
                f"run at it ({type(err).__name__}: {str(err).splitlines()[0]}). The number of rows, its first axis, may be "
                "another; give all other axes the lengths that they had."
            ) from err
        raise


def is_of_fit(model: Any, args: tuple, fit_args: tuple | None) -> bool:
    """Whether these are the arguments of the fit, observations included."""
    if fit_args is None or args is fit_args:
        return args is fit_args
    is_whole = len(jax.tree.leaves(args)) == len(jax.tree.leaves(fit_args))
    return is_whole and len(_same_leaves(model, args, fit_args)) == len(jax.tree.leaves(args))


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
            f"belong to the rows of the fit{_why(rows)}. Compute it from the rows, or predict at those of the fit: keep='*'."
        )


def _check_reading(
    method: str,
    model: Any,
    guide: Any,
    args: tuple,
    fit_args: tuple | None,
    rows: Rows,
    sites: Any,
    drawn: list[str],
) -> None:
    """Refuse a guide that reads the rows and draws their sites for as many as the fit had, or by parameters of these."""
    of_rows = [name for name in drawn if name in rows.names("site")]
    if not of_rows or not isinstance(guide, Program):
        return
    own = rows.of(_run(guide), args).names("param") & set(guide.params or {})
    if own:
        wrong = [n for n, uses in _uses(guide, args, own).items() if uses and n in of_rows]
        why = f"the guide draws it by {sorted(own)}, which have an entry for each row of the fit"
    else:
        follows = rows.of(lambda args: met(guide, args), args)
        wrong = [n for n in of_rows if follows.why is None and n not in follows.names("site")]
        why = "the guide draws it for as many rows as the fit had"
    for name in wrong[:1]:
        raise _refused(method, name, sites[name], rows, why, _remedy(model, guide, fit_args))


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


def _refused(method: str, name: str, info: Any, rows: Rows, why: str, remedy: str) -> ValueError:
    axes = sorted(rows.follows["site", name])
    shape = (*info.batch_shape, *info.event_shape)
    if not axes:
        where = "is one of a number of statements"
    elif axes[0] < len(info.dims) and info.dims[axes[0]]:
        where = f"lies in plate '{info.dims[axes[0]]}' of length {shape[axes[0]]}"
    else:
        where = f"has an axis of length {shape[axes[0]]}"
    more = "" if rows.why else ", which grows with the rows of the new arguments"
    return ValueError(f"{method}: site '{name}' {where}{more}, and {why}{_why(rows)}. {remedy}")


def _why(rows: Rows) -> str:
    if rows.why is None:
        return ""
    return f" (told by equal lengths, {rows.size}, since the program could not be traced with more rows: {rows.why})"


def _remedy(model: Any, guide: Any, fit_args: tuple | None) -> str:
    return _REMEDY.format(kept=kept_sites(model, guide, fit_args))


def _same_leaves(model: Any, args: tuple, fit_args: tuple | None) -> set[int]:
    """Leaves of the arguments, by number, that are those of the fit."""
    if fit_args is None:
        return set()
    before = dict(zip(leaf_names(model, fit_args), jax.tree.leaves(fit_args), strict=True))
    names = leaf_names(model, args)
    pairs = [
        (x, before.get(name, _NONE)) for name, x in zip(names, jax.tree.leaves(args), strict=True)
    ]
    return {number for number, (new, old) in enumerate(pairs) if _is_same(new, old)}


_NONE = object()


def _is_same(new: Any, old: Any) -> bool:
    if not is_array(new) or not is_array(old):
        return old is not _NONE and is_array(new) == is_array(old) and bool(new == old)
    if np.shape(new) != np.shape(old) or not is_concrete((new, old)):
        return False
    if new is old:
        return True
    if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in (new, old)):
        return False
    new, old = np.asarray(new), np.asarray(old)
    return np.array_equal(new.astype(old.dtype), old, equal_nan=old.dtype.kind in "fc")
