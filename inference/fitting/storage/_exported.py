"""Draws of a fit as a compiled function that needs neither this library nor the programs: an artefact of `jax.export`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import jax
import jax.export
import numpy as np
from jaxtyping import PyTree

from ....ppl._types import ModelFn
from ....ppl.language import Program
from ..._arguments import Arguments, array_names, is_array, leaves_of, shapes_of
from ...inputs import Axis, met, rows_of, unbound
from ..prediction import predictive
from ._archive import write_bytes


def export_fit(
    model: Program, guide: Program, path: str | os.PathLike, args: tuple, fit_args: tuple | None,
    *, keep: str | Sequence[str] | None, only: str | None, symbolic_rows: bool, platforms: Sequence[str] | None,
) -> None:  # fmt: skip
    """See `Fit.export`."""
    try:
        import flatbuffers  # noqa: F401  # jax.export writes with it
    except ImportError as err:
        raise ImportError(
            "Fit.export: the package flatbuffers is missing. Install it, or lapilli[export]."
        ) from err
    split = Arguments(args)
    arrays = split.arrays(args)
    names = array_names(model, args)
    draw, (_, guide_args) = predictive(
        model, guide, args, fit_args, keep, are_examples=True, is_guide_alone=only is not None
    )

    def run(key_data: PyTree, inputs: dict[str, PyTree]) -> dict[str, PyTree]:
        new_args = split.join([inputs[name] for name in names])
        at = new_args if keep is None else guide_args
        keys = jax.random.wrap_key_data(key_data)
        kept, predicted = jax.vmap(lambda key: draw(key, new_args, at))(keys)
        return {"posterior": kept} | ({} if only else {"predictive": predicted})

    shapes = dict(zip(names, split.arrays(shapes_of(args)), strict=True))
    first = next((x.shape for x in shapes.values()), ())
    num_rows = first[0] if symbolic_rows and first else None
    num_draws, rows = jax.export.symbolic_shape("draws, rows")
    of_rows = [] if num_rows is None else _of_rows(model, args, split, names, num_rows)
    for name in of_rows:
        shapes[name] = jax.ShapeDtypeStruct((rows, *shapes[name].shape[1:]), shapes[name].dtype)
    like = jax.random.key_data(jax.random.key(0))
    key_data = jax.ShapeDtypeStruct((num_draws, *like.shape), like.dtype)
    try:
        exported = jax.export.export(jax.jit(run), platforms=platforms)(key_data, shapes)
    except Exception as err:
        if num_rows is None:
            raise
        reason = f"{type(err).__name__}: {str(err).splitlines()[0]}"
        raise ValueError(
            f"Fit.export: the programs cannot be compiled for any number of rows, the leading axis of '{names[0]}' ({reason}). "
            "Where a program asks for len(x), write x.shape[0]; or export for as many rows as these arguments have: "
            "symbolic_rows=False."
        ) from err
    inputs = dict(zip(names, arrays, strict=True))
    _check(exported, run, inputs)
    if num_rows is not None:
        _check(exported, run, {n: _longer(x) if n in of_rows else x for n, x in inputs.items()})
    write_bytes(path, bytes(exported.serialize()))


def _check(
    exported: jax.export.Exported, run: Callable[..., PyTree], inputs: dict[str, PyTree]
) -> None:
    """Refuse a function that draws something else: to JAX, an open number of rows is equal to no number."""
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 2))
    found, expected = exported.call(keys, inputs), jax.jit(run)(keys, inputs)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        # Rounding differs; a discrete draw may fall to the other side once in a while.
        if np.mean(~np.isclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True)) > 0.01:
            shapes = {name: np.shape(value) for name, value in inputs.items()}
            raise ValueError(
                f"Fit.export: compiled for any number of rows, site '{path[-1].key}' is drawn otherwise than by the programs at "
                f"arguments of the shapes {shapes}: they must decide something by the number of rows. Export them for one "
                "number: symbolic_rows=False."
            )


def _longer(x: PyTree) -> PyTree:
    """The array with one more row."""
    x = np.asarray(x)
    return np.concatenate([x, x[:1]])


def _of_rows(
    model: ModelFn, args: tuple, split: Arguments, names: list[str], size: int
) -> list[str]:
    """Arguments that have the same rows as the first."""
    arrays = dict(zip(names, split.arrays(args), strict=True))
    with_axes = [i for i, x in enumerate(leaves_of(args)[0]) if is_array(x) and np.ndim(x)]
    leaf_of = dict(zip([n for n, x in arrays.items() if x.ndim], with_axes, strict=True))
    found = rows_of(lambda args: met(unbound(model), args), args, size=size)
    (rows,) = [r for r in found if Axis(leaf_of[names[0]], 0) in r.axes]
    return [name for name, leaf in leaf_of.items() if Axis(leaf, 0) in rows.axes]
