"""What a fit belongs to: its objective, programs and libraries, in words that a file can hold and that can be compared.

A site is known by its kind, law and shapes, and by a hash of the traced computation of its log-density, arrays that the program
closes over included. The hash is of use only between equal versions of the libraries: others may trace the same program to
other operations.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from ....ppl._types import Key
from ....ppl.language import Program
from ....ppl.traces import stand_ins
from ..._abstract_objective import AbstractObjective
from ..._arguments import Arguments, shapes
from ._digest import digests

_LIBRARIES = "lapilli", "jax", "numpyro"
_HASHES = "2"  # 2: of what is computed, not of how it is written down
_PLAIN = bool | int | float | str | None
_ROOT = Path(__file__).parents[3]
_OWN = tuple(f"{_ROOT / part}{os.sep}" for part in ("ppl", "inference", "models"))


def versions(*more: str) -> dict[str, str]:
    """Library -> version, of those that make the computations of programs, and of `more`."""
    found = {"hashes of lapilli": _HASHES}
    for name in (*_LIBRARIES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def warn_of_versions(text: str) -> None:
    """Warn at the line of the caller's own code, whichever decorators and modules of lapilli lie between."""
    warnings.warn(text, skip_file_prefixes=_OWN)


def structure(
    objective: AbstractObjective, params: PyTree, args: tuple | None
) -> dict[str, PyTree]:
    """The objective's options, its programs' sites and its parameters; `args` are arguments or their shapes, None for no sites.

    Returns:
        "objective": option -> value. "params": name -> shapes. "model" and "guide", if there are: site -> [words, hash].
    """
    found: dict[str, PyTree] = {"objective": _options(objective)}
    constraints = getattr(params, "constraints", {})
    found["params"] = {
        name: ", ".join(
            [
                *shapes([*map(_array, jax.tree.leaves(params[name]))]),
                *_constraint(constraints.get(name)),
            ]
        )
        for name in params
    }
    for which in ("model", "guide"):
        program = getattr(objective, which, None)
        if isinstance(program, Program) and args is not None:
            found[which] = _sites(program, params, args)
    for number, part in enumerate(objective.parts, 1):
        own = structure(part, params, args)
        found |= {f"part {number}, {k}": v for k, v in own.items() if k != "params"}
    return found


def structure_of(program: Program, args: tuple | None) -> dict[str, PyTree]:
    """The structure of one program with its bound parameters: "model": site -> [words, hash]."""
    return {} if args is None else {"model": _sites(program, program.params or {}, args)}


def differences(
    was: Mapping[str, PyTree], now: Mapping[str, PyTree], *, hashes: bool, file: str = "file"
) -> list[str]:
    """One line for each thing that differs; with `hashes`, also where only numbers of a site's law do. `file`: what it is."""
    lines = []
    for part in dict.fromkeys([*was, *now]):
        old, new = was.get(part, {}), now.get(part, {})
        for name in dict.fromkeys([*old, *new]):
            before, after = old.get(name, "absent"), new.get(name, "absent")
            label = f"{part}, '{name}'"
            if isinstance(before, list) and isinstance(after, list):
                (before, old_hash), (after, new_hash) = before, after
                if before == after and hashes and old_hash != new_hash:
                    what = "value" if before.startswith("deterministic") else "log-density"
                    lines.append(f"{label}: another computation of its {what}")
                    break  # the sites after it read its value
            if before != after:
                as_text = lambda x: x[0] if isinstance(x, list) else x
                lines.append(f"{label}: {as_text(before)} in the {file}, {as_text(after)} now")
    return lines


def _array(leaf: Array) -> PyTree:
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _constraint(constraint: dist.constraints.Constraint | None) -> list[str]:
    return [] if constraint is None else [type(constraint).__name__.strip("_")]


def _options(objective: AbstractObjective) -> dict[str, PyTree]:
    recipe = getattr(objective, "recipe", None)
    options = {} if recipe is None else dict(recipe.kwargs)
    options |= {"name": objective.name, "direction": objective.direction}
    if dataclasses.is_dataclass(objective):
        options |= {
            f.name: getattr(objective, f.name) for f in dataclasses.fields(objective) if f.repr
        }
    return {k: v for k, v in options.items() if k != "check_jumps" and _is_plain(v)}


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(n, str) and isinstance(x, _PLAIN) for n, x in value.items())
    return isinstance(value, _PLAIN)


def _sites(program: Program, params: PyTree, args: tuple) -> dict[str, list[str]]:
    split = Arguments(args)
    infos = {}

    def run(params: PyTree, arrays: list[Key]) -> dict[str, PyTree]:
        with stand_ins():
            trace = program.bind(params).simulate(jax.random.key(0), *split.join(arrays))
        infos.update(trace.sites)
        return {**trace.log_probs, **trace.deterministic}

    hashes = hashed(run, params, split.arrays(args))
    found = {}
    for name, info in infos.items():
        batch = [f"{d or '?'}={n}" for d, n in zip(info.dims, info.batch_shape, strict=True)]
        words = f"{info.kind} {info.distribution}, batch [{', '.join(batch)}], event {list(info.event_shape)}"
        found[name] = [words, hashes.get(name, "")]
    return found


def without_places(tree: PyTree) -> PyTree:
    """The tree with shapes in the place of arrays: a program traced from them does not tell on which devices these lie."""

    def shape(x: PyTree) -> PyTree:
        if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            return x
        weak = getattr(x, "weak_type", False)  # keys have none
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)

    return jax.tree.map(shape, tree)


def hashed(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """What `fn` returns, with a hash of its computation in the place of each array; `args` are arrays or their shapes."""
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*without_places(args))
    inputs = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(args)]
    return jax.tree.unflatten(jax.tree.structure(out), digests(closed, inputs))
