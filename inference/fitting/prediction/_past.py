"""Refuse draws of one series' steps at the arguments of another."""

from __future__ import annotations

from collections.abc import Collection

import jax
import numpy as np

from ....ppl._compat import is_concrete
from ....ppl.language import Program
from ..._arguments import is_array, named_leaves, simulated
from ._other_arguments import is_same


def check_past(
    method: str,
    model: Program,
    args: tuple,
    before: tuple,
    names: Collection[str] | None = None,
    *,
    has_said: bool = True,
    may_begin_anew: bool = True,
) -> None:
    """Refuse a longer series that is not that of the fit; where nobody has said that it is, one of as many steps, too.

    Rows of the arguments are matched by the argument's name.

    Args:
        method: who asks.
        model: the program.
        args: where to predict.
        before: arguments that the draws were made for.
        names: sites whose draws are kept; None for all.
        has_said: whether the caller has said that the draws hold at the steps of these arguments.
        may_begin_anew: whether a longer series without latent sites to go on from is meant to be drawn as a whole.
    """
    now = _steps_of(model, args)
    if not (now if names is None else set(now) & set(names)):
        return
    try:
        was = _steps_of(model, before)
    except Exception:  # a chain's arguments may be those of another program
        return
    both = {n: (was[n][0], now[n][0]) for n in now if n in was and (names is None or n in names)}
    longer = {n: old for n, (old, new) in both.items() if old < new}
    if longer and not may_begin_anew and not any(kind == "latent" for _, kind in now.values()):
        raise ValueError(
            f"{method}: {list(longer)} lie in a scan that is longer than at the fit and has no latent sites, so that the whole "
            "series would be drawn anew. Forecast by inference.predict(fit.model, fit.posterior(key, num_samples), key, *args, "
            "num_seen=...), which keeps the steps that were seen."
        )
    found = longer or ({} if has_said else {n: old for n, (old, _) in both.items()})
    olds = named_leaves(model, before)
    for name, new in named_leaves(model, args).items():
        old = olds.get(name)
        if old is None or not (is_array(old) and is_array(new) and np.ndim(old) and np.ndim(new)):
            continue
        size = len(old)
        if size not in found.values():
            continue
        num_rows = min(size, len(new))
        if longer and num_rows == len(new) or _is_same(new[:num_rows], old[:num_rows]):
            continue
        if longer:
            raise ValueError(
                f"{method}: {list(longer)} go on from {size} steps of the fit, but the first {size} rows of argument '{name}' of "
                f"shape {np.shape(new)} are not those of the fit: draws given one past would be continued after another. Append "
                "the steps to come to the arguments of the fit, or fit the other series."
            )
        raise ValueError(
            f"{method}: the draws of {list(found)} belong to the {size} steps of the fit, and the rows of argument '{name}' of "
            f"shape {np.shape(new)} are not those of the fit: states of one series would stand for those of another. Fit the "
            "other series. A series drawn anew: keep=[...] with what all steps share, num_seen=0; states that are to hold at "
            "these arguments: keep='*'."
        )


def _steps_of(model: Program, args: tuple) -> dict[str, tuple[int, str]]:
    """Site in a scan -> number of steps of the outermost one, and its kind."""
    found = {}
    for name, info in simulated(model, args).sites.items():
        sizes = [r.size for r in info.regions if r.kind == "scan"]
        if sizes and info.kind in ("latent", "observed"):
            found[name] = (sizes[0], info.kind)
    return found


def _is_same(new: np.ndarray, old: np.ndarray) -> bool:
    """Whether values are the same, as far as they are known and can be compared."""
    is_key = any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in (new, old))
    return is_key or not is_concrete((new, old)) or is_same(new, old)
