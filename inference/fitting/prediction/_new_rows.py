"""Refuse draws of the fit's rows that would pass for draws of new ones. What belongs to rows is told by `_rows`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import jax

from ....ppl.language import Program
from ....ppl.traces import SiteInfo
from ..._arguments import Arguments, simulated
from ..._depends import depends
from ...inputs import Rows, rows_of
from ._other_arguments import same_leaves
from ._rows_of_fit import lined_up, not_of_new_rows, num_rows, own_parameters, run_of

_REMEDY = (
    "Say which sites of the fit are kept, as in keep={kept}: the guide then runs at the fit's own arguments, and the model draws "
    "the others at the new ones; keep='*' keeps all, where the rows are those of the fit."
)


def check_rows(
    method: str,
    model: Program,
    guide: Program,
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
    run, drawn = run_of(model), [name for name in reads if name in sites]
    targets = _predicted(sites, reads)
    watched = [*drawn, *(n for k, n in run(args).shapes if k == "param")]
    for rows in rows_of(run, args, targets=targets, watched=watched):
        is_predicted = bool(rows.names("site") & targets)
        # A table of which no row is predicted, the fit's own, is about what it was about there. Integers that are the fit's, and
        # cannot be larger, are no numbers of rows.
        is_count = rows.why is not None and all(axis.axis is None for axis in rows.axes)
        if (is_count or not is_predicted) and all(axis.leaf in same for axis in rows.axes):
            continue
        sizes = num_rows(model, args, fit_args, rows)
        if fit_args is not None:
            _check_parameters(method, model, args, rows, sizes)
        of_rows = [name for name in drawn if name in rows.names("site")]
        for name in of_rows:
            if not reads[name]:
                why = "the guide draws it without reading them: these are draws for the rows of the fit"
                raise _refused(method, sites[name], rows, why, told())
        if of_rows and isinstance(guide, Program) and fit_args is not None:
            for name, why in not_of_new_rows(guide, args, rows, sizes, of_rows).items():
                raise _refused(method, sites[name], rows, why, told())
        fixed = [name for name in drawn if not reads[name] and name not in of_rows]
        for name in lined_up(model, args, rows, sites, fixed, sizes) if is_predicted else ():
            raise ValueError(
                f"{method}: {_positions(name)} Take its size from the arguments. {told(name)}"
            )


def of_other_rows(
    model: Program, names: Collection[str], args: tuple, before: tuple, *, with_steps: bool = False
) -> list[str]:
    """Those sites that belong to rows of the arguments which have other values, or are more or fewer, than before.

    Steps of a scan are none where predictions are made, since a series goes on; `with_steps` counts them.
    """
    same, sites = same_leaves(model, args, before), sites_of(model, args)
    targets = _predicted(sites, names)
    found = rows_of(run_of(model), args, targets=targets, watched=names)
    other = {n for r in found if any(a.leaf not in same for a in r.axes) for n in r.names("site")}
    return [n for n in names if n in other and (with_steps or not sites[n].regions)]


def check_lined_up(
    method: str, model: Program, names: Collection[str], args: tuple, before: tuple
) -> None:
    """Refuse draws of fixed sizes that the model matches by position to rows which are others than before."""
    same, sites = same_leaves(model, args, before), sites_of(model, args)
    names = [n for n in names if n in sites]
    targets = _predicted(sites, names)
    for rows in rows_of(run_of(model), args, targets=targets, watched=names):
        if not rows.names("site") & targets or all(axis.leaf in same for axis in rows.axes):
            continue
        fixed = [n for n in names if n not in rows.names("site") and not sites[n].regions]
        sizes = num_rows(model, args, before, rows)
        for name in lined_up(model, args, rows, sites, fixed, sizes):
            raise ValueError(
                f"{method}: {_positions(name)} Take its size from the arguments, or leave it out, keep=[...] with what all rows "
                "share: the model then draws it at these rows."
            )


def _positions(name: str) -> str:
    return (
        f"site '{name}' has as many entries as the fit had rows, whatever the number of rows, and the model reads them by "
        "position: these are draws for the rows of the fit."
    )


def of_any_rows(
    model: Program, names: Collection[str], args: tuple, *, with_steps: bool = False
) -> list[str]:
    """Of some sites those that belong to rows of the arguments; steps of a scan are none but `with_steps`.

    What follows an integer alone, as a number of groups, belongs to rows only where predictions do.
    """
    sites = sites_of(model, args)
    targets = _predicted(sites, names)
    found = rows_of(run_of(model), args, targets=targets, watched=names)
    are_rows = lambda r: r.names("site") & targets or any(a.axis is not None for a in r.axes)
    own = {n for r in found if are_rows(r) for n in r.names("site")}
    return [n for n in names if n in own and (with_steps or not sites[n].regions)]


def predicted_rows(
    model: Program, guide: Program, args: tuple, guide_args: tuple | None = None
) -> list[Rows]:
    """The rows of these arguments that predictions have: what the guide does not draw."""
    drawn = reads_arguments(guide, args if guide_args is None else guide_args)
    targets = _predicted(sites_of(model, args), drawn)
    found = rows_of(run_of(model), args, targets=targets)
    return [rows for rows in found if rows.names("site") & targets]


def check_kept_rows(method: str, model: Program, args: tuple, fit_args: tuple | None) -> None:
    """Refuse a model with a parameter for each row of the fit; those that batches were fitted by are of any batch."""
    if fit_args is not None and isinstance(model, Program) and model.params:
        for rows in rows_of(run_of(model), args, watched=()):
            _check_parameters(method, model, args, rows, num_rows(model, args, fit_args, rows))


def _check_parameters(
    method: str, model: Program, args: tuple, rows: Rows, sizes: set[int]
) -> None:
    for name in sorted(own_parameters(model, args, rows, sizes)):
        raise ValueError(
            f"{method}: the model's parameter '{name}' has an entry for each of {max(sizes)} rows, and those that were fitted "
            f"belong to the rows of the fit{_why(rows)}. Compute it from the rows, or stay at those of the fit (a prediction by "
            "keep='*')."
        )


def kept_sites(model: Program, guide: Program, fit_args: tuple | None) -> list[str]:
    """What a message proposes to keep: the guide's sites that do not belong to rows."""
    if fit_args is None:
        return ["..."]
    sites, drawn = sites_of(model, fit_args), list(reads_arguments(guide, fit_args))
    targets = _predicted(sites, drawn)
    found = rows_of(run_of(model), fit_args, targets=targets, watched=drawn)
    of_rows = {name for rows in found for name in rows.names("site")}
    return [name for name in drawn if name in sites and name not in of_rows]


def in_plate_of(rows: Sequence[Rows], info: SiteInfo) -> bool:
    """Whether each of some rows has a draw of the site to itself: not one event, nor the steps of a chain."""
    steps = {region.axis for region in info.regions}
    own = [i for i, dim in enumerate(info.dims) if dim is None or dim not in steps]
    return any(set(own) & r.follows.get(("site", info.name), frozenset()) for r in rows)


def _predicted(sites: Mapping[str, SiteInfo], drawn: Collection[str]) -> set[str]:
    """Sites that are drawn at new rows whatever is kept; where there are none, what is computed of those that are kept."""
    rest = {name: info.kind for name, info in sites.items() if name not in drawn}
    random = {name for name, kind in rest.items() if kind in ("latent", "observed")}
    return random or set(rest)


def sites_of(program: Program, args: tuple) -> Mapping[str, SiteInfo]:
    """Descriptions of the program's sites at these arguments; nothing is computed."""
    return simulated(program, args).sites


def reads_arguments(guide: Program, args: tuple) -> dict[str, bool]:
    """Site of the guide -> whether its draws may depend on the values of the arguments, not only on their shapes."""
    split = Arguments(args)
    arrays = split.arrays(args)
    run = lambda arrays: guide.simulate(jax.random.key(0), *split.join(arrays)).shared_choices
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(arrays)
    reads = depends(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    return jax.tree.unflatten(jax.tree.structure(shapes), reads)


def _refused(method: str, info: SiteInfo, rows: Rows, why: str, remedy: str) -> ValueError:
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
