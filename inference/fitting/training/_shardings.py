"""Where parameters, and what goes along with them, lie on the devices of a mesh.

Input: patterns on names, each with a split. Output: a sharding for every leaf of what a step hands to the next.

Invariants: a split changes where numbers lie and not what they are; a leaf of the optimiser's or the objective's state, or of the
average, that has the path and the shape of a parameter's leaf lies where that lies; all else, and every leaf that no pattern
names, is held by every device.

Reference: Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054 (stage 3: parameters, gradients and states are all split).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ....ppl._types import ParamMap
from ..data import SEEDS
from ._optimizer import leaf_paths

# What `fit` takes: patterns on names of parameters or of their leaves -> the split.
type Shardings = Mapping[str, PartitionSpec | str]


def shardings_of(
    shardings: Shardings | None, params: ParamMap, mesh: Mesh | None, num_seeds: int | None
) -> Callable[[PyTree], PyTree] | None:
    """A function from trees of arrays, or of their shapes, to the sharding of each leaf; None without a mesh.

    Args:
        shardings: by pattern; None to hold everything everywhere.
        params: of one seed, or their shapes.
        mesh: the devices.
        num_seeds: of the trees, whose leaves then have a leading axis, split over the mesh's axis "seeds" if there is one.

    Raises:
        ValueError: patterns that match nothing or that overlap; axes that the mesh has not, or that cannot split a leaf.
    """
    if mesh is None:
        return None
    seeds = () if num_seeds is None else (num_seeds,)
    over = SEEDS if SEEDS in mesh.axis_names else None
    rest = PartitionSpec() if over is None else PartitionSpec(over)
    specs = leaf_specs(shardings or {}, params, mesh)
    paths = jax.tree_util.tree_leaves_with_path(params)
    known = {
        path: ((*seeds, *leaf.shape), PartitionSpec(*(over for _ in seeds), *spec))
        for (path, leaf), spec in zip(paths, specs, strict=True)
    }

    def place(path: tuple, leaf: PyTree) -> NamedSharding:
        for begin in range(len(path)):
            shape, spec = known.get(path[begin:], (None, PartitionSpec()))
            if shape == np.shape(leaf):
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, rest)

    return lambda tree: jax.tree_util.tree_map_with_path(place, tree)


def check_seeds(mesh: Mesh | None, num_seeds: int | None) -> None:
    """Refuse an axis for seeds where these are not several, or not a multiple of its devices."""
    if mesh is None:
        return
    if SEEDS in mesh.axis_names and (num_seeds is None or num_seeds % mesh.shape[SEEDS]):
        raise ValueError(
            f"Argument 'mesh': its axis '{SEEDS}' splits independent runs over {mesh.shape[SEEDS]} devices, and "
            f"num_seeds={num_seeds}. Give num_seeds= a multiple of these, or the axis another name, which then splits rows."
        )


def leaf_specs(shardings: Shardings, params: ParamMap, mesh: Mesh) -> list[PartitionSpec]:
    """How each leaf of the parameters is split, in the order of `jax.tree.leaves(params)`."""
    leaves, names = jax.tree.leaves(params), _names(params)
    found = [[p for p in shardings if _matches(p, name)] for name in names]
    problems = [
        f"pattern '{p}' matches no parameter" for p in shardings if not any(p in ps for ps in found)
    ]
    problems += [
        f"'{name}' matches several patterns: {patterns}"
        for name, patterns in zip(names, found, strict=True)
        if len(patterns) > 1
    ]
    specs, split = [], dict.fromkeys(shardings, False)
    for name, leaf, patterns in zip(names, leaves, found, strict=True):
        spec: PartitionSpec | str | None = _spec(shardings[patterns[0]], leaf, mesh) if patterns else PartitionSpec()  # fmt: skip
        if isinstance(spec, str):
            problems.append(f"'{name}' of shape {list(leaf.shape)}: {spec}")
        elif patterns and any(spec):
            split[patterns[0]] = True
        specs.append(spec)
    problems += [
        f"pattern '{p}': no leaf has a dimension that the {mesh.shape[axis]} devices of axis '{axis}' divide"
        for p, axis in shardings.items()
        if isinstance(axis, str) and axis in mesh.shape and any(p in ps for ps in found) and not split[p]
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f"Argument 'shardings': {'; '.join(problems)}. Leaves of parameters: {names}; axes of the mesh: {dict(mesh.shape)}. "
            "Give each pattern a jax.P with one axis (or None) for each dimension, or the name of an axis, which splits the "
            "longest dimension that its devices divide; what no pattern matches is held by every device."
        )
    return specs


def _spec(given: PartitionSpec | str, leaf: PyTree, mesh: Mesh) -> PartitionSpec | str:
    """The split of a leaf, or what is wrong with it."""
    axes = [given] if isinstance(given, str) else [a for part in given for a in _axes(part)]
    if missing := [axis for axis in axes if axis not in mesh.shape]:
        return f"the mesh has no axis {missing}"
    if isinstance(given, str):
        sizes = [(n, -d) for d, n in enumerate(leaf.shape) if n % mesh.shape[given] == 0 and n]
        dim = -max(sizes)[1] if sizes else None
        return PartitionSpec(*(given if d == dim else None for d in range(len(leaf.shape))))
    if len(given) > len(leaf.shape):
        return f"{given} is for {len(given)} dimensions"
    for dim, part in enumerate(given):
        number = math.prod(mesh.shape[axis] for axis in _axes(part))
        if leaf.shape[dim] % number:
            return f"{number} devices do not divide dimension {dim}"
    return given


def _axes(part: object) -> tuple[str, ...]:
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)  # pyright: ignore[reportArgumentType]


def _names(params: ParamMap) -> list[str]:
    """For each leaf the name of its parameter, with the path inside of it: `net.layers.0.weight`."""
    return [f"{name}.{inner}" if inner else name for name, inner in leaf_paths(params)]


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a leaf, or the parameter to which it belongs."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.split(".")[0], pattern)
