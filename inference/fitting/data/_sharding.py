"""Arguments of a step split over the devices of a mesh."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ..._arguments import shapes
from ..._meshes import placed

SEEDS = "seeds"  # the axis of a mesh over which independent runs are split


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which rows are split."""
    return tuple(axis for axis in mesh.axis_names if axis != SEEDS)


def num_parts(mesh: Mesh) -> int:
    """Over how many devices rows are split."""
    return math.prod(mesh.shape[axis] for axis in row_axes(mesh))


def with_leading(arrays: list[PyTree], sizes: Iterable[int]) -> list[bool]:
    sizes = set(sizes)
    return [array.ndim > 0 and array.shape[0] in sizes for array in arrays]


def check_divisible(mesh: Mesh, sharded: list[bool], arrays: list[PyTree], what: str) -> None:
    leading = [array.shape[0] for array, shard in zip(arrays, sharded, strict=True) if shard]
    if num_parts(mesh) == 1:
        return
    if not leading:
        raise ValueError(
            f"Argument 'mesh': no argument has as its leading axis a plate that {num_parts(mesh)} devices divide, so {what} "
            f"cannot be split. Argument shapes: {shapes(arrays)}. Leave 'mesh' out, or choose sizes that divide."
        )
    if any(size % num_parts(mesh) for size in leading):
        raise ValueError(
            f"Argument 'mesh': the leading axes {leading} of {what} cannot be split evenly over {num_parts(mesh)} devices. "
            "Choose a batch size that the number of devices divides."
        )


def put(
    arrays: list[PyTree], mesh: Mesh, sharded: list[bool], spec: PartitionSpec
) -> list[jax.Array]:
    return [
        placed(array, NamedSharding(mesh, spec if shard else PartitionSpec()))
        for array, shard in zip(arrays, sharded, strict=True)
    ]


def shared_out(array: PyTree, mesh: Mesh) -> jax.Array:
    """The array with its rows split over all devices; where they do not come out even, zeros follow the last row."""
    more = -len(array) % num_parts(mesh)
    if more:
        pad = jnp.pad if isinstance(array, jax.Array) else np.pad
        array = pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))
    return placed(array, NamedSharding(mesh, PartitionSpec(row_axes(mesh))))


def constrain(arrays: list[Array], mesh: Mesh | None, sharded: Iterable[PyTree]) -> list[Array]:
    if mesh is None:
        return arrays
    sharding = NamedSharding(mesh, PartitionSpec(row_axes(mesh)))
    return [
        jax.lax.with_sharding_constraint(array, sharding) if shard else array
        for array, shard in zip(arrays, sharded, strict=True)
    ]
