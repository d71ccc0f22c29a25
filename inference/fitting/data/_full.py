"""Every step sees all data."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from ....ppl._types import Key
from ..._arguments import Arguments, shapes
from ._interface import Source
from ._sharding import check_divisible, num_parts, put, row_axes, with_leading


class FullData(Source):
    """Every step sees the same arguments."""

    def __init__(self, args: tuple, mesh: jax.sharding.Mesh | None, plate_sizes: Mapping[str, int]):
        self.split = Arguments(args)
        arrays = self.split.arrays(args)
        self.shapes = shapes(arrays)
        if mesh is not None:
            # Any split is correct (the partitioner keeps the program's meaning); even ones are fast.
            sizes = [size for size in plate_sizes.values() if size % num_parts(mesh) == 0]
            sharded = with_leading(arrays, sizes)
            check_divisible(mesh, sharded, arrays, "the data")
            arrays = put(arrays, mesh, sharded, PartitionSpec(row_axes(mesh)))
        self._data = [jnp.asarray(array) for array in arrays]

    def load(self, num_steps: int) -> tuple[PyTree, int]:
        return self._data, num_steps

    def batch(self, data: list[Key], order: PyTree, index: Array, step: Array) -> tuple:
        return self.split.join(data)

    def first(self) -> tuple:
        """The arguments for initialisation."""
        return self.split.join(self._data)

    def resume(self, state: PyTree, num_steps: int) -> None:
        """Nothing to do: every step has the same rows."""
