"""Predictions from draws of a posterior, whoever made them: what is kept, and what must not be."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ....ppl._types import Choices, Key
from ....ppl.densities import Eliminated, has_nan, lost_digits
from ....ppl.language import Program, predictions, told_of_not_finite
from ....ppl.traces import SiteInfo
from ..._mapped import Parts, map_keys
from ._forward import check_given, forward_program, in_scan
from ._new_rows import check_lined_up, of_any_rows, of_other_rows, sites_of
from ._other_arguments import check_axes
from ._past import check_past

_KEEP = "keep=[...] with what all rows share"


@dataclasses.dataclass(frozen=True)
class DrawsOrigin:
    """Where draws are from.

    Attributes:
        args: the arguments that they belong to: other rows need draws of their own. None where they are not known; draws of rows
            are then refused, unless `keep` names them.
        remedy: names of such sites -> what to pass instead; None leaves them to the model, unless `keep` names them.
        has_auxiliary: whether draws of sites that the program does not have are those of a guide.
        is_stated: whether a user hands over the draws by site, who says so that states are those of the steps.
    """

    args: tuple | None = None
    remedy: Callable[[list[str]], str] | None = None
    has_auxiliary: bool = False
    is_stated: bool = False


def predicted(
    method: str,
    program: Program,
    choices: Mapping[str, PyTree],
    key: PyTree,
    args: tuple,
    num_samples: int,
    *,
    num_seen: int | None = None,
    keep: str | Sequence[str] | None = None,
    origin: DrawsOrigin,
    parts: Parts,
) -> dict[str, np.ndarray]:
    """One prediction for each draw, at `args`; see `inference.predict`.

    Args:
        method: who asks.
        program: the model.
        choices: site -> draws [num_samples, ...].
        key: PRNG key.
        args: arguments of the prediction.
        num_samples: number of predictions.
        num_seen: steps of a scan whose observations are kept.
        keep: patterns of sites whose draws are kept; None for all.
        origin: where the draws are from.
        parts: how they are made.
    """
    before, remedy = origin.args, origin.remedy
    if before is not None:
        check_axes(method, program, args, before)
    sites = sites_of(program, args)
    _check_eliminated_chain(method, program, args, sites, num_seen)
    # Samplers return deterministic sites, and guides auxiliary ones, beside the latent sites.
    also = {n for n, s in sites.items() if s.kind == "deterministic"}
    if origin.has_auxiliary and any(n in sites for n in choices):
        also |= {n for n in choices if n not in sites}
    # Cells that were missing belong to data that these arguments do not have.
    also |= {f"{n}_unobserved" for n in sites if f"{n}_unobserved" not in sites}
    choices = {name: x for name, x in choices.items() if name not in also}
    if keep is not None:
        choices = _kept(method, choices, [keep] if isinstance(keep, str) else list(keep))
    own = []
    if before is None and keep is None:
        own = of_any_rows(program, list(choices), args, with_steps=not origin.is_stated)
    if own:
        raise ValueError(
            f"{method}: {own} belong to rows of the arguments, and nothing tells whether their draws were made for these. Pass "
            f"keep='*' if they were. Else leave them out, and the model draws them at these rows: "
            f"{{n: x for n, x in draws.items() if n not in {own}}}."
        )
    if before is not None:
        other = of_other_rows(program, list(choices), args, before)
        if other and (remedy is not None or keep is not None):
            raise ValueError(
                f"{method}: {other} belong to the rows that the draws were made for, and the arguments have others. Leave them "
                f"out, and the model draws them at these: {_KEEP if remedy is None else remedy(other)}."
            )
        choices = {name: x for name, x in choices.items() if name not in other}
        check_lined_up(method, program, choices, args, before)
        check_past(method, program, args, before, choices, has_said=keep is not None)
    if not isinstance(program, Eliminated):
        _check_num_seen(method, sites, choices, num_seen)
    one = jax.eval_shape(lambda choices: jax.tree.map(lambda x: x[0], choices), dict(choices))
    program = forward_program(method, program, one, args, num_seen)
    if not any(
        s.kind == "observed" and in_scan(s) for s in sites.values()
    ):  # a scan that goes on keeps its observations
        set_first = "inference.predict(ppl.intervene(model, {site: values}), draws, key, *args)"
        check_given(method, program, one, args, set_first)

    def draw(key: Key, choices: dict[str, Array], *args: PyTree) -> dict[str, PyTree]:
        trace = program.forecast_trace(key, choices, num_seen, *args)
        return predictions(trace, choices)

    found = map_keys(draw, key, num_samples, parts.batch_size, args, choices, parts.mesh)
    tell_of_nan(method, program, found, choices, args)
    return found


def tell_of_nan(
    method: str,
    program: Program,
    found: Mapping[str, np.ndarray],
    choices: Mapping[str, PyTree],
    args: tuple,
) -> None:
    """Say why predictions are NaN where an argument is, or where an elimination has lost its digits."""
    if not has_nan(found):
        return
    # Steps of a series that were not seen may stand as NaN, and stay so.
    is_series = any(map(in_scan, sites_of(program, args).values()))
    why = "" if is_series else told_of_not_finite(args)
    if not why and isinstance(program, Eliminated):
        numbers = [np.asarray(x).reshape(len(x), -1) for x in found.values()]
        row = int(np.argmax(np.isnan(np.concatenate(numbers, 1)).any(1)))
        one = {name: x[row] for name, x in choices.items()}
        why = lost_digits(program, one, args, {})
    if why:
        warnings.warn(f"{method}: predictions hold NaN.{why}", UserWarning, stacklevel=4)


def thinned(method: str, choices: Mapping[str, PyTree], num_samples: int) -> dict[str, PyTree]:
    """So many of the draws, thinned evenly or repeated."""
    lengths = {name: len(x) for name, x in choices.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{method}: the sites have different numbers of draws, {lengths}. Give each one axis of draws in front."
        )
    num_draws = max(lengths.values(), default=0)
    rows = (np.arange(num_samples) * num_draws) // num_samples  # evenly
    return {name: x[rows] for name, x in choices.items()}


def names_first(patterns: Sequence[str], names: Collection[str]) -> list[str]:
    """Patterns that match a site's own name alone where they are one: "w[0]" is no set of letters there."""
    return [glob.escape(p) if p in names else p for p in patterns]


def _kept(method: str, choices: Choices, patterns: Sequence[str]) -> dict[str, PyTree]:
    patterns = names_first(patterns, choices)
    unmatched = [p for p in patterns if not any(fnmatch.fnmatchcase(n, p) for n in choices)]
    if unmatched:
        raise ValueError(
            f"{method}: argument 'keep' has {unmatched}, which match no site that the draws hold. Name some of {list(choices)}."
        )
    is_kept = lambda name: any(fnmatch.fnmatchcase(name, p) for p in patterns)
    return {name: x for name, x in choices.items() if is_kept(name)}


def _check_eliminated_chain(
    method: str,
    program: Program,
    args: tuple[PyTree, ...],
    sites: Mapping[str, SiteInfo],
    num_seen: int | None,
) -> None:
    """Refuse to draw the states of a chain from observations that may be of steps to come."""
    if not isinstance(program, Eliminated):
        return
    if num_seen is not None and not program.is_summed(*args):
        return  # each observation is drawn given those before it
    if any(map(in_scan, sites.values())):
        if not program.is_summed(*args):
            raise ValueError(
                f"{method}: {program!r} would draw {list(program.sites)} from all observations in the arguments, those of steps "
                "to come included. Say for how many steps they hold: num_seen=..."
            )
        raise ValueError(
            f"{method}: {program!r} would draw {list(program.sites)} from all observations in the arguments, those of steps to "
            "come included. Draw the states of the steps that were seen, states = program.posterior(key, choices, *args), and "
            "forecast the program with its sites: predict(program.program, {**choices, **states}, key, *longer_args)."
        )


def _check_num_seen(
    method: str, sites: Mapping[str, SiteInfo], choices: Collection[str], num_seen: int | None
) -> None:
    """Refuse a number of steps that nothing has, and one that is left to a guess."""
    stepped = {n: s for n, s in sites.items() if in_scan(s)}
    if num_seen is not None and not stepped:
        raise ValueError(
            f"{method}: num_seen={num_seen} is a number of steps, and no site of the program lies in a ppl.scan: {list(sites)}. "
            "Leave it out; rows to predict have no observation (obs=None)."
        )
    observed = [n for n, s in stepped.items() if s.kind == "observed"]
    latent = [n for n, s in stepped.items() if s.kind == "latent"]
    if num_seen is None and observed and not any(n in choices for n in latent):
        states = f"with the latent sites {latent}, of which no draws are given,"
        also = (
            f" To forecast give draws of {latent} for the steps that were seen." if latent else ""
        )
        raise ValueError(
            f"{method}: {observed} lie in a scan {states if latent else 'without latent sites,'} so that no draw tells how many "
            "of their steps were seen. Say num_seen=: as many are kept and the rest is a forecast; num_seen=0 draws the whole "
            f"series anew.{also}"
        )
