"""Arguments of a step split over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Iterable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ..._arguments import shapes


def with_leading(arrays: list[PyTree], sizes: Iterable[int]) -> list[bool]:
    sizes = set(sizes)
    return [array.ndim > 0 and array.shape[0] in sizes for array in arrays]


def check_divisible(mesh: Mesh, sharded: list[bool], arrays: list[PyTree], what: str) -> None:
    leading = [array.shape[0] for array, shard in zip(arrays, sharded, strict=True) if shard]
    if not leading:
        raise ValueError(
            f"Argument 'mesh': no argument has as its leading axis a plate that {mesh.size} devices divide, so {what} "
            f"cannot be split. Argument shapes: {shapes(arrays)}. Leave 'mesh' out, or choose sizes that divide."
        )
    if any(size % mesh.size for size in leading):
        raise ValueError(
            f"Argument 'mesh': the leading axes {leading} of {what} cannot be split evenly over {mesh.size} devices. "
            "Choose a batch size that the number of devices divides."
        )


def put(
    arrays: list[PyTree], mesh: Mesh, sharded: list[bool], spec: PartitionSpec
) -> list[jax.Array]:
    return [
        jax.device_put(array, NamedSharding(mesh, spec if shard else PartitionSpec()))
        for array, shard in zip(arrays, sharded, strict=True)
    ]


def constrain(arrays: list[Array], mesh: Mesh | None, sharded: Iterable[PyTree]) -> list[Array]:
    if mesh is None:
        return arrays
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return [
        jax.lax.with_sharding_constraint(array, sharding) if shard else array
        for array, shard in zip(arrays, sharded, strict=True)
    ]
