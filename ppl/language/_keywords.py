"""Keyword arguments of a program, carried among its positional ones.

What compiles, samples or trains a program holds its arguments as one tuple. Keyword arguments travel at the end of that tuple, as
one `Keywords`; the program's call takes them out again. So `elbo(model, guide).value(params, key, x, y=y)` reaches both programs
as `(x, y=y)`, and a function in between, `fn(model, guide, *args)`, hands them on without knowing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._calls import did_you_mean
from .._compat import is_concrete
from .._data import as_data, named_data
from .._types import Args


@jax.tree_util.register_pytree_with_keys_class
class Keywords:
    """Keyword arguments of a program; the last of a tuple of arguments.

    Attributes:
        values: name -> value, in the order of the names.
    """

    def __init__(self, values: Mapping[str, PyTree]) -> None:
        self.values = {name: values[name] for name in sorted(values)}

    def tree_flatten_with_keys(self) -> tuple[list[PyTree], tuple[str, ...]]:
        """Children by name, for `jax.tree`."""
        names = tuple(self.values)
        return [(jax.tree_util.DictKey(n), self.values[n]) for n in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: PyTree) -> Keywords:
        """The inverse of flattening, for `jax.tree`."""
        new = object.__new__(cls)
        new.values = dict(zip(names, children, strict=True))
        return new

    def __repr__(self) -> str:
        return f"Keywords({', '.join(self.values)})"


def as_tuple(args: PyTree, kwargs: Mapping[str, PyTree] | None = None) -> tuple[PyTree, ...]:
    """All arguments of a call, a tuple or a mapping from names, and keywords, in one tuple; their data as they are."""
    named = {**(args if isinstance(args, Mapping) else {}), **(kwargs or {})}
    positional = () if isinstance(args, Mapping) else tuple(args)
    return (*positional, Keywords(named)) if named else positional


def joined(args: Args, kwargs: Mapping[str, PyTree], program: object = None) -> tuple[PyTree, ...]:
    """One tuple of positional and keyword arguments, their data as JAX takes them (`ppl/_data.py`).

    Raises:
        TypeError: there are dates in place of numbers.
        ValueError: a value would become another one; with the argument's name, which `program` tells of positional ones.
    """
    args, before = parted(args)
    both = {**before, **kwargs}
    _refuse_misaligned(
        [*args, *both.values()], [*told(args, program), *map("Argument '{}'".format, both)]
    )
    args = tuple(as_data(x, name) for x, name in zip(args, told(args, program), strict=True))
    return (*args, Keywords(named_data(both, "Argument '{}'"))) if both else args


def _refuse_misaligned(args: list[PyTree], names: list[str]) -> None:
    """Refuse series and frames of pandas that have the same rows in another order: pandas would match them by their labels."""
    leaves = [(n, x) for n, arg in zip(names, args, strict=True) for x in jax.tree.leaves(arg)]
    labelled = [(n, x.index) for n, x in leaves if hasattr(x, "reindex") and hasattr(x, "index")]
    for name, index in labelled[1:]:
        first, other = labelled[0]
        _refuse_gaps(name, index, first, other)
        is_same = len(index) != len(other) or index.equals(other)
        if not is_same and index.is_unique and set(index) == set(other):
            raise ValueError(
                f"{name} has the rows of {first[0].lower() + first[1:]} in another order: the first is {index[0]!r}, and there "
                f"{other[0]!r}. A program matches rows by position. Put them in one order, e.g. y.loc[x.index]; if positions are "
                "meant, pass y.to_numpy()."
            )


def _refuse_gaps(name: str, index: Any, first: str, other: Any) -> None:
    """Refuse as many rows of which each has some that the other lacks, so that they meet at places that shift along the way.

    Rows that are shifted by one number throughout are a series and its past.
    """
    if len(index) != len(other) or index.equals(other) or not (index.is_unique and other.is_unique):
        return
    places = other.get_indexer(index)
    places, here = places[places >= 0], np.flatnonzero(places >= 0)
    shifts = np.unique(places - here)
    if 2 * len(here) >= len(index) and len(here) < len(index) and len(shifts) > 1:
        own, theirs = (
            sorted(set(a) - set(b), key=str) for a, b in ((index, other), (other, index))
        )
        raise ValueError(
            f"{name} and {first[0].lower() + first[1:]} have {len(index)} rows each, and not the same: {own[:3]} are in the one "
            f"alone, {theirs[:3]} in the other, so that what stands side by side is of different rows. A program matches rows by "
            "position. Leave missing rows out of the whole frame, frame.dropna(subset=[...]), before its columns are taken; if "
            "positions are meant, pass y.to_numpy()."
        )


def told(args: Args, program: object) -> list[str]:
    """What messages call each positional argument: its name, or its place."""
    try:
        known = inspect.signature(program).parameters.values() if callable(program) else ()
    except (TypeError, ValueError):
        known = ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [f"Argument '{p.name}'" for p in known if p.kind in kinds]
    return [*names, *(f"Argument {i + 1}" for i in range(len(names), len(args)))][: len(args)]


def parted(args: tuple[PyTree, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments in such a tuple."""
    if args and isinstance(args[-1], Keywords):
        return args[:-1], args[-1].values
    return args, {}


def arguments(
    caller: Callable[..., PyTree], program: object, args: Args, kwargs: Mapping[str, PyTree]
) -> tuple[PyTree, ...]:
    """`joined`, for a function with options of its own that hands on all others: what is neither must be a slip.

    Raises:
        TypeError: a name that is neither an option of `caller` nor an argument of the program.
    """
    known = inspect.signature(program).parameters if callable(program) else {}
    takes_all = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in known.values())
    unknown = [] if takes_all else [name for name in kwargs if name not in known]
    if unknown:
        own = inspect.signature(caller).parameters.values()
        options = [p.name for p in own if p.kind == inspect.Parameter.KEYWORD_ONLY]
        near = did_you_mean(unknown[0], [*options, *known])
        name = getattr(program, "__name__", type(program).__name__)
        raise TypeError(
            f"{caller.__name__}: '{unknown[0]}' is neither an option of it nor an argument of {name}."
            f"{near} Options are {', '.join(options)}; arguments are "
            f"{', '.join(known) or 'none'}."
        )
    return joined(args, kwargs, program)


def as_arguments(args: PyTree, program: object = None) -> tuple[PyTree, ...]:
    """The tuple of a program's arguments from a tuple, or from a mapping of names to values; see `joined`."""
    return joined(as_tuple(args), {}, program)


def apply(fn: Callable[..., PyTree], args: Args) -> PyTree:
    """`fn` at such arguments. One that hands on `*args` and has no `**kwargs` gets the tuple as it is."""
    positional, keywords = parted(args)
    if not keywords:
        return fn(*args)
    kinds = {p.kind for p in inspect.signature(fn).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds and inspect.Parameter.VAR_KEYWORD not in kinds:
        return fn(*args)
    return fn(*positional, **keywords)


def where_not_finite(args: PyTree) -> str:
    """The first argument with a NaN in it, else with an infinity, and how many it has; nothing, if there is none."""
    positional, keywords = parted(args)
    for kind, is_one in (("NaN", jnp.isnan), ("infinity", jnp.isinf)):
        for name, x in (*enumerate(positional, 1), *keywords.items()):
            for leaf in jax.tree.leaves(x):
                is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
                if is_float and is_concrete(leaf) and (lost := is_one(leaf)).any():
                    return f"Argument {name} holds {kind}, in {int(lost.sum())} of {jnp.size(leaf)} numbers"
    return ""


def told_of_not_finite(args: PyTree) -> str:
    """What an error says of the first argument with a number that is not finite; nothing, if there is none."""
    if where := where_not_finite(args):
        return f" {where}: remove such rows, or mark the cells as missing, x = ppl.sample(name, law, obs=filled, obs_mask=seen)."
    return ""
