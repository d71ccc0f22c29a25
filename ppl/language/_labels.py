"""Names that data bring along: the levels of a category, the columns of a frame.

What a program computes with has lost them: a code, a column's place. New data with other levels, or with their columns in another
order, would then be read as what they are not. So a result keeps the names by argument, and new data are put in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import PyTree

from .._types import Args
from ._keywords import Keywords, as_tuple, joined, parted, told

Labels = Mapping[str, tuple[Any, ...]]


class LabelText(str):
    """What is left in a file of a label that is no text and no number (an interval, a date, a tuple): compared by it."""


def labels_of(args: Args, program: object) -> dict[str, tuple[str, ...]]:
    """The levels or columns of what has any, by argument (with its path, if it lies inside of one)."""
    found = {}
    for name, leaf in _leaves(args, program):
        if (labels := _labels(leaf)) is not None:
            found[name] = labels
    return found


def labelled_as(labels: Labels, args: PyTree, program: object) -> tuple[Keywords | np.ndarray, ...]:
    """The arguments (a tuple, or a dict by name) as `joined`, their categories and frames in the order of `labels`.

    Raises:
        ValueError: there are levels that were not there, or other columns; whatever `joined` refuses.
    """
    raw = as_tuple(args)
    return joined(_relabelled(raw, program, labels) if labels else raw, {}, program)


def _relabelled(args: Args, program: object, labels: Labels) -> tuple[Any, ...]:
    found = [_ordered(name, leaf, labels.get(name)) for name, leaf in _leaves(args, program)]
    return jax.tree.unflatten(jax.tree.structure(args), found)


def _leaves(args: Args, program: object) -> Iterator[tuple[str, Any]]:
    positional, keywords = parted(args)
    named = [*zip(told(positional, program), positional, strict=True)]
    named += [(f"Argument '{name}'", x) for name, x in keywords.items()]
    for name, value in named:
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            yield name + jax.tree_util.keystr(path), leaf


def _labels(leaf: PyTree) -> tuple[str, ...] | None:
    if isinstance(leaf, jax.Array | Keywords):
        return None
    if hasattr(getattr(leaf, "dtype", None), "categories"):
        return _plain(leaf.dtype.categories)
    return _plain(leaf.columns) if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy") else None


def _plain(labels: Any) -> tuple[str, ...]:
    return tuple(x.item() if hasattr(x, "item") else x for x in labels)


def _ordered(name: str, leaf: PyTree, known: tuple[str, ...] | None) -> Any:
    now = _labels(leaf)
    if known is None or now is None:
        _refuse_numbers_of_levels(name, leaf, known)
        return leaf
    if any(isinstance(x, LabelText) for x in known):
        leaf, now = _by_text(name, leaf, now)
        known = tuple(map(str, known))
    if now == known:
        return leaf
    if hasattr(leaf, "columns"):
        if Counter(now) != Counter(known) or len({*known}) < len(known):
            _refuse_columns(name, known, now)
        return leaf[list(known)]
    of_series = getattr(leaf, "cat", leaf)
    used = {now[code] for code in set(of_series.codes) if code >= 0}
    if new := sorted(used - set(known), key=str):
        raise ValueError(
            f"{name} has the levels {new}, and the fit had {list(known)}: nothing is known of new ones{_of_type(new, known)}. "
            "Leave those rows out, or predict them with effects of their own that the model draws: code them from 0, and name in "
            "keep= what the fit knows."
        )
    return of_series.set_categories(list(known))


def _by_text(name: str, leaf: PyTree, now: tuple[Any, ...]) -> tuple[Any, tuple[str, ...]]:
    """The data with the texts of its labels in their place, and these texts."""
    texts = tuple(map(str, now))
    if len({*texts}) < len(texts):
        raise ValueError(
            f"{name} has labels of the same text, {list(texts)}, and those of the file that was loaded are known by their texts "
            "alone. Give them names that differ."
        )
    if hasattr(leaf, "columns"):
        return leaf.set_axis(list(texts), axis=1), texts
    return getattr(leaf, "cat", leaf).rename_categories(list(texts)), texts


def _refuse_columns(name: str, known: tuple[Any, ...], now: tuple[Any, ...]) -> NoReturn:
    missing, extra = [c for c in known if c not in now], [c for c in now if c not in known]
    if twice := [c for c, number in Counter(known).items() if number > 1]:
        raise ValueError(
            f"{name} has the columns {list(now)}, and the fit had {list(known)}, of which {twice} are there twice: their names "
            "do not tell which is which. Give a frame of these columns in this order, or fit one whose names differ."
        )
    raise ValueError(
        f"{name} has the columns {list(now)}, and the fit had {list(known)}: missing {missing}, extra "
        f"{extra}{_of_type(extra, known)}. Give a frame of these columns, in any order."
    )


def _of_type(new: Sequence[Any], known: Sequence[Any]) -> str:
    """What is said of labels that print as known ones and are of another type, 1 and "1"."""
    alike = [x for x in new if any(str(x) == str(y) for y in known)]
    if not alike:
        return ""
    kind = type(next(y for y in known if str(y) == str(alike[0]))).__name__
    return f" ({alike} are {type(alike[0]).__name__} here and {kind} there: rename them)"


def _refuse_numbers_of_levels(name: str, leaf: PyTree, known: tuple[Any, ...] | None) -> None:
    """Refuse integers in the place of a category whose levels are integers, but not their own codes."""
    is_row = getattr(getattr(leaf, "dtype", None), "kind", "") in ("i", "u") and np.ndim(leaf) <= 1
    if not is_row or not known or known == tuple(range(len(known))):
        return
    if all(isinstance(x, int) for x in known):
        raise ValueError(
            f"{name} holds integers, and was a category with the levels {list(known)}: nothing tells whether these are levels or "
            f"their places. Give pd.Categorical(x, categories={list(known)}) for levels, "
            f"pd.Categorical.from_codes(x, categories={list(known)}) for places."
        )
