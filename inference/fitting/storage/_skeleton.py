"""Arguments of a program and records of results as JSON, their arrays apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._data import Masked
from ....ppl.language import Keywords
from ..._arguments import is_array
from ._archive import from_raw, to_raw

_PLAIN = bool | int | float | str | None


def as_skeleton(
    args: PyTree,
    arrays: dict[str, np.ndarray] | None,
    path: str = "args",
    records: Sequence[type] = (),
) -> dict[str, PyTree]:
    """Containers, plain values, and of arrays their dtypes and shapes; `arrays`, if given, receives them by path.

    `records`: dataclasses and named tuples that may be met, which are stored field by field.

    Raises:
        ValueError: something is neither; with its path.
    """
    within = lambda items: {
        str(k): as_skeleton(x, arrays, f"{path}/{k}", records) for k, x in items
    }
    if type(args) in records:
        names = args._fields if hasattr(args, "_fields") else vars(args)
        fields = [(field, getattr(args, field)) for field in names]
        return {"record": {"name": type(args).__name__, "fields": within(fields)}}
    if isinstance(args, Keywords):
        return {"keywords": within(args.values.items())}
    if isinstance(args, Masked):
        return {"masked": within(vars(args).items())}
    if type(args) in (tuple, list):
        return {type(args).__name__: list(within(enumerate(args)).values())}
    if type(args) is dict and all(isinstance(k, str) for k in args):
        return {"dict": within(args.items())}
    if is_array(args):
        leaf: PyTree = args if hasattr(args, "dtype") else np.asarray(args)
        if arrays is not None:
            arrays[path] = to_raw(leaf)
        return {"array": path, "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if isinstance(args, _PLAIN):
        return {"plain": args}
    raise ValueError(
        f"Fit.save: '{path}' is a {type(args).__name__}, which a file of arrays cannot hold. Leave the data out, data=False, and "
        "pass them again to Fit.load(..., args=...)."
    )


def from_skeleton(
    skeleton: Mapping[str, PyTree],
    arrays: Mapping[str, np.ndarray],
    records: Sequence[type] = (),
) -> PyTree:
    """The inverse; what has no array becomes a `jax.ShapeDtypeStruct`."""
    kind, inside = next(iter(skeleton.items()))
    again = lambda x: from_skeleton(x, arrays, records)
    if kind == "record":
        made = {record.__name__: record for record in records}[inside["name"]]
        return made(**{name: again(x) for name, x in inside["fields"].items()})
    if kind in ("keywords", "dict", "masked"):
        values = {name: again(x) for name, x in inside.items()}
        if kind == "masked":
            return Masked(**values)
        return Keywords(values) if kind == "keywords" else values
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(map(again, inside))
    if kind == "plain":
        return inside
    dtype = _dtype(skeleton["dtype"])
    if inside in arrays:
        return from_raw(arrays[inside], dtype)
    return jax.ShapeDtypeStruct(tuple(skeleton["shape"]), jax.dtypes.canonicalize_dtype(dtype))


def _dtype(name: str) -> np.dtype:
    kinds = {str(key.dtype): key.dtype for key in map(_key, ("threefry2x32", "rbg", "unsafe_rbg"))}
    return kinds.get(name) or jnp.dtype(name)


def _key(impl: str) -> jax.Array:
    return jax.random.key(0, impl=impl)
