"""Arguments beside those of the fit: which are the same, and whether the model can be run at the others."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from ....ppl._compat import is_concrete
from ....ppl._foreign import CORRECT
from ....ppl._types import ModelFn
from ....ppl.language import Program
from ..._arguments import is_array, leaves_of, named_leaves
from ...inputs import met


def check_runs(
    method: str,
    model: Program,
    args: tuple,
    fit_args: tuple | None,
    choices: Mapping[str, PyTree] | None = None,
) -> None:
    """Refuse arguments of other columns than the fit's at which the model cannot be run, or not with the fit's draws."""
    if fit_args is None:
        return
    check_axes(method, model, args, fit_args)
    before, now = named_leaves(model, fit_args), named_leaves(model, args)
    olds = {n: before[n] if _are_arrays(x, before.get(n)) else x for n, x in now.items()}
    other = [
        (n, np.shape(x), np.shape(olds[n]))
        for n, x in now.items()
        if is_array(x) and np.shape(x) != np.shape(olds[n])
    ]
    # First the one that differs in more than its number of rows.
    other.sort(key=lambda o: len(o[1]) == len(o[2]) and o[1][1:] == o[2][1:])
    if not other:
        heads = {n: n.partition("/")[0] for n in now if n not in before}
        parts = [head for head in heads.values() if is_array(before.get(head))]
        if parts and (error := met(model, args).error) is not None:
            raise ValueError(
                f"{method}: argument '{parts[0]}' is a list or tuple, was an array at the fit, and the model cannot be run at "
                "it. Pass the arguments as the program takes them, one after the other: predict(key, x)."
            ) from error
        return
    found, structure = met(model, args), leaves_of(args)[1]
    if (
        found.error is not None
        and met(model, jax.tree.unflatten(structure, olds.values())).error is None
    ):
        reason = f"{type(found.error).__name__}: {found.error}".removesuffix(CORRECT)
        raise _other_shape(method, other[0], reason) from found.error
    (_, new, old), sites = other[0], found.shapes
    for site, x in (choices or {}).items():
        shape = sites.get(("site", site), x.shape)
        if shape != x.shape and new[1:] != old[1:]:
            reason = f"site '{site}' has the shape {shape} there, its draws {x.shape}"
            raise _other_shape(method, other[0], reason)


def check_axes(method: str, model: ModelFn, args: tuple, before: tuple) -> None:
    """Refuse one row without its axis, whose columns a program would take for rows.

    Raises:
        ValueError: with the argument's name and shapes.
    """
    olds = {name: np.shape(x) for name, x in named_leaves(model, before).items() if is_array(x)}
    for name, x in named_leaves(model, args).items():
        shape, old = np.shape(x) if is_array(x) else (), olds.get(name, ())
        if shape and shape == old[1:]:
            raise ValueError(
                f"{method}: argument '{name}' has the shape {shape}, and {old} before: it is one row without the axis of rows. "
                f"Pass {name}[None], of shape {(1, *shape)}."
            )


def _other_shape(method: str, argument: tuple, reason: str) -> ValueError:
    name, shape, old = argument
    reason = reason.splitlines()[0].rstrip(" .")
    return ValueError(
        f"{method}: argument '{name}' has the shape {shape}, and {old} at the fit, and the model cannot be run at it ({reason}). "
        "Its first axis, the rows, may have another length if the model takes their number from its arguments; give the other "
        "axes the lengths that they had."
    )


def _are_arrays(new: np.ndarray, old: np.ndarray | None) -> bool:
    return is_array(new) and is_array(old)


def is_of_fit(model: Program, args: tuple, fit_args: tuple | None) -> bool:
    """Whether these are the arguments of the fit, observations included."""
    if fit_args is None or args is fit_args:
        return args is fit_args
    sizes = {len(leaves_of(x)[0]) for x in (args, fit_args)}
    return sizes == {len(same_leaves(model, args, fit_args))}


def same_leaves(model: Program, args: tuple, fit_args: tuple | None) -> set[int]:
    """Leaves of the arguments, by number in `leaves_of`, that are those of the fit."""
    if fit_args is None:
        return set()
    before, now = named_leaves(model, fit_args), named_leaves(model, args)
    pairs = [(x, before.get(name, _NONE)) for name, x in now.items()]
    return {number for number, (new, old) in enumerate(pairs) if is_same(new, old)}


_NONE = object()


def is_same(new: np.ndarray, old: PyTree) -> bool:
    """Whether a leaf of the arguments is what it was: plain values by kind, arrays by shape and values at the old precision."""
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
