"""Fits as files, and what is checked when they come back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ....ppl._types import ModelFn
from ....ppl.language import LabelText, Program, as_program, check_set_up, labelled_as
from ..._abstract_objective import AbstractObjective
from ..._arguments import Arguments, outcome
from ..stationarity import Averaging
from ._archive import from_raw, read, to_raw, write
from ._skeleton import as_skeleton, from_skeleton
from ._structure import differences, structure, versions, warn_of_versions

_FORMAT = "fit 2"
_AVERAGING = ("start", "count", "spread", "error", "r_hat")


def save_fit(fit: Any, path: str | os.PathLike, *, data: bool) -> None:
    """See `Fit.save`."""
    for part in ("params", "last_params", "state"):
        for name, leaf in _named(part, getattr(fit, part)).items():
            if not any(getattr(leaf, f"is_fully_{n}", True) for n in ("addressable", "replicated")):
                raise ValueError(
                    f"Fit.save: '{name}' lies in parts over several processes, and one of them writes the file. Gather first, "
                    "by jax.experimental.multihost_utils: fit.with_params(process_allgather(fit.params, tiled=True))."
                )
    if jax.process_index() == 0:
        write(path, *packed_fit(fit, data=data))


def packed_fit(fit: Any, *, data: bool) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
    """The header and the arrays of its file."""
    has_data = data and fit.args is not None
    arrays: dict[str, np.ndarray] = {}
    trees = {"params": fit.params, "state": fit.state, "history": fit.history}
    if fit.last_params is not fit.params:
        trees["last_params"] = fit.last_params
    if fit.averaging is not None:
        kept = fit.averaging
        trees |= {f"averaging/{name}": getattr(kept, name) for name in _AVERAGING}
    for part, tree in trees.items():
        arrays |= {name: to_raw(leaf) for name, leaf in _named(part, tree).items()}
    example = fit.example if fit.args is None else fit.args
    header = {
        "format": _FORMAT,
        "versions": versions(),
        "is_averaged": "last_params" in trees,
        "noise": None if fit.averaging is None else fit.averaging.noise,
        "steps": fit.steps,
        "num_skipped": np.asarray(fit.num_skipped).tolist(),
        "num_seeds": fit.num_seeds,
        "stop_reason": fit.stop_reason,
        "has_data": has_data,
        "args": kept_arguments(example, arrays, has_data=has_data),
        **kept_labels(fit.labels),
    }
    if example is not None:
        header["structure"] = structure(fit.objective, _first_seed(fit), example)
    return header, arrays


def load_fit(
    make: Callable[..., PyTree],
    path: str | os.PathLike,
    objective: AbstractObjective | ModelFn,
    args: PyTree,
    choose: Callable[[Program, tuple], AbstractObjective],
) -> Any:
    """See `Fit.load`; `make` is `Fit`, and `choose` makes the objective of a model alone."""
    header, arrays = read(path, "file of Fit.save", _FORMAT)
    name = os.fspath(path)
    if not isinstance(objective, AbstractObjective):
        program = as_program(objective)
        objective = choose(program, _example(name, header, arrays, program, args))
    return unpacked_fit(make, "Fit.load", name, header, arrays, objective, args)


def unpacked_fit(
    make: Callable[..., PyTree],
    method: str,
    name: str,
    header: Mapping[str, PyTree],
    arrays: Mapping[str, np.ndarray],
    objective: AbstractObjective,
    args: PyTree,
) -> Any:
    """The inverse of `packed_fit`; `method` and `name`, of the file, are for messages."""
    example = _example(name, header, arrays, objective.model, args)
    has_data = header["has_data"] or args is not None
    own = _own_params(objective, example, has_data)
    if "structure" in header:
        check_same(method, name, header, structure(objective, own, example), "objective")
    num_seeds = header["num_seeds"]
    restored = lambda part, like: _restored(f"{method}: '{name}'", part, like, num_seeds, arrays)
    params, state = restored("params", own), restored("state", _state(objective, own, example))
    num_skipped = header["num_skipped"]
    return make(
        objective=objective,
        params=params,
        last_params=restored("last_params", own) if header["is_averaged"] else params,
        state=state,
        averaging=_averaging(own, header["noise"], arrays),
        history={n[8:]: x for n, x in arrays.items() if n.startswith("history/")},
        args=example if has_data else None,
        steps=header["steps"],
        num_skipped=num_skipped if num_seeds is None else np.asarray(num_skipped),
        num_seeds=num_seeds,
        stop_reason=header["stop_reason"],
        example=None if has_data else example,
        labels=labels_in(header),
    )


def _example(
    name: str,
    header: Mapping[str, PyTree],
    arrays: Mapping[str, np.ndarray],
    program: Program | None,
    args: PyTree,
) -> tuple:
    """The arguments that are given, in the order of the file's levels and columns, else those of the file."""
    if args is not None:
        return labelled_as(labels_in(header), args, program)
    if header["args"] is None:
        raise ValueError(
            f"Fit.load: '{name}' has no arguments of the program, by which it is checked. Pass some: args=(...)."
        )
    return from_skeleton(header["args"], arrays)


def kept_labels(labels: Mapping[str, PyTree]) -> dict[str, dict[str, list[PyTree]]]:
    """Parts of a header: labels that JSON can hold, and of others (intervals, dates, tuples) the texts."""
    plain = {name: list(x) for name, x in labels.items() if all(map(_is_plain, x))}
    texts = {name: list(map(str, x)) for name, x in labels.items() if name not in plain}
    return {"labels": plain, "label_texts": texts}


def labels_in(header: Mapping[str, PyTree]) -> dict[str, tuple[Any, ...]]:
    """The labels of a file."""
    plain, texts = (header.get(part, {}) for part in ("labels", "label_texts"))
    read = {name: tuple(x) for name, x in plain.items()}
    return read | {name: tuple(map(LabelText, x)) for name, x in texts.items()}


def _is_plain(label: object) -> bool:
    return isinstance(label, str | int | float | bool) and not isinstance(label, LabelText)


def kept_arguments(example: PyTree, arrays: dict[str, np.ndarray], *, has_data: bool) -> PyTree:
    """The arguments' skeleton; of data that stay out, None where there is none."""
    if has_data:
        return as_skeleton(example, arrays)
    try:
        return None if example is None else as_skeleton(example, None)
    except ValueError:
        return None


def _own_params(objective: AbstractObjective, example: tuple, has_data: bool) -> PyTree:
    """What the objective would begin with, or its shapes."""
    key = jax.random.key(0)
    if has_data:
        return objective.init(key, *example)
    guide = getattr(objective, "guide", None)
    if isinstance(guide, Program):
        check_set_up(guide)
    return outcome(lambda *args: objective.init(key, *args), example)


def _state(objective: AbstractObjective, params: PyTree, example: tuple) -> dict[str, PyTree]:
    """Shapes of the objective's state."""
    split = Arguments(example)
    init = lambda p, arrays: objective.init_state(p, jax.random.key(0), *split.join(arrays))
    return jax.eval_shape(init, params, split.arrays(example))


def check_same(
    method: str, name: str, header: Mapping[str, PyTree], now: Mapping[str, PyTree], what: str
) -> None:
    """Refuse a file that belongs to another structure, each difference named; warn where versions leave that open."""
    was, current = header["versions"], versions()
    others = [f"{n} {was.get(n)}, now {current[n]}" for n in current if was.get(n) != current[n]]
    lines = differences(header["structure"], now, hashes=not others)
    if lines:
        raise ValueError(
            f"{method}: '{name}' belongs to another {what}:\n"
            + "\n".join(lines)
            + f"\nLoad it with the programs that it was fitted with{' (' + '; '.join(others) + ')' if others else ''}."
        )
    if others:
        warn_of_versions(
            f"{method}: '{name}' was written by {'; '.join(others)}. Sites, shapes and options are the same; whether the "
            "log-densities are, was not compared."
        )


def _restored(
    name: str, part: str, like: PyTree, num_seeds: int | None, arrays: Mapping[str, np.ndarray]
) -> PyTree:
    """The arrays of one part in the structure of `like`, which has no axis of seeds."""
    seeds = () if num_seeds is None else (num_seeds,)
    needed = _named(part, like)
    found = {n: x for n, x in arrays.items() if n == part or n.startswith(f"{part}/")}
    lines = [f"{n}: absent now" for n in found if n not in needed]
    for leaf_name, leaf in needed.items():
        raw, shape = found.get(leaf_name), (*seeds, *jnp.shape(leaf))
        if raw is None:
            lines.append(f"{leaf_name}: absent in the file")
        elif not _is_key(leaf) and raw.shape != shape:
            lines.append(f"{leaf_name}: shape {raw.shape} in the file, {shape} now")
        elif not _is_key(leaf) and raw.dtype.itemsize != jnp.result_type(leaf).itemsize:
            lines.append(f"{leaf_name}: {raw.dtype} in the file, {jnp.result_type(leaf)} now")
    if lines:
        differences = "\n".join(lines)
        raise ValueError(
            f"{name} belongs to another objective. Pass the programs that it was saved with; what differs:\n{differences}"
        )
    leaves = [jnp.asarray(from_raw(found[n], jnp.result_type(x))) for n, x in needed.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _averaging(
    own: PyTree, noise: Mapping[str, tuple[float, float]] | None, arrays: Mapping[str, np.ndarray]
) -> Averaging | None:
    """What is known of averaged iterates; spreads and errors are of unconstrained parameters, whose shapes may be others."""
    if noise is None:
        return None

    def tree(part: str) -> PyTree:
        leaves = [jnp.asarray(arrays[name]) for name in _named(part, own)]
        return jax.tree.unflatten(jax.tree.structure(own), leaves)

    parts = {
        name: tree(f"averaging/{name}")
        if name in ("spread", "error")
        else jnp.asarray(arrays[f"averaging/{name}"])
        for name in _AVERAGING
    }
    return Averaging(**parts, noise={site: (one, mean) for site, (one, mean) in noise.items()})


def _is_key(leaf: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _named(part: str, tree: PyTree) -> dict[str, Array | np.ndarray]:
    """Leaves by part and path, e.g. "params/loc"."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    path = lambda p: "/".join(
        [part, *filter(None, [jax.tree_util.keystr(p, simple=True, separator="/")])]
    )
    return {path(p): leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for p, leaf in pairs}


def _first_seed(fit: Any) -> PyTree:
    return fit.params if fit.num_seeds is None else jax.tree.map(lambda x: x[0], fit.params)
