"""Random minibatches of data in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..._arguments import Arguments, shapes
from ._interface import UNBOUNDED, Source
from ._reshuffling import draw_order, entries
from ._sharding import check_divisible, constrain, put


class Minibatches(Source):
    """Rows drawn by random reshuffling: in each epoch every row at most once, the last partial batch dropped.

    Step t lies in epoch e = t // (N // n) and takes entries number (t mod (N // n)) n ... of the e-th permutation, which is
    drawn from `fold_in(fold_in(key, plate), e)` (`_reshuffling.py`). At each place each row is equally likely, so N / n times
    the sum over a batch is unbiased for the sum over all rows; over one epoch with n dividing N their mean is exact.

    Args:
        args: arguments of the programs.
        batch_sizes: plate -> n.
        plate_sizes: plate -> N.
        mesh: devices, or None.
        plate_of: for each array of the arguments, the plate with whose rows it is cut, or None.
    """

    def __init__(
        self,
        args: tuple,
        batch_sizes: Mapping[str, int],
        plate_sizes: Mapping[str, int],
        mesh: jax.sharding.Mesh | None,
        plate_of: Sequence[str | None],
    ):
        self.split = Arguments(args)
        arrays = self.split.arrays(args)
        self.shapes = shapes(arrays)
        self._plates = {name: (plate_sizes[name], batch) for name, batch in batch_sizes.items()}
        self._plate_of = list(plate_of)
        self.share = min(batch / size for size, batch in self._plates.values())
        self._mesh = mesh
        if mesh is not None:
            batches = [
                array[: self._plates[p][1]]
                for array, p in zip(arrays, self._plate_of, strict=True)
                if p
            ]
            check_divisible(mesh, [True] * len(batches), batches, "a minibatch")
            # Each device holds its share of the rows, where these can be shared out evenly, and hands over those of a batch.
            is_shared = [p is not None and plate_sizes[p] % mesh.size == 0 for p in self._plate_of]
            arrays = put(arrays, mesh, is_shared, PartitionSpec(mesh.axis_names))
        self._data = [jnp.asarray(array) for array in arrays]

    def load(self, num_steps: int) -> tuple[Any, int]:
        return self._data, num_steps

    def segment(self, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        order, valid = {}, jnp.int32(UNBOUNDED)
        for number, (name, (size, batch)) in enumerate(sorted(self._plates.items())):
            epoch, position = jnp.divmod(step, size // batch)
            epoch_key = jax.random.fold_in(jax.random.fold_in(key, number), epoch)
            order[name] = draw_order(epoch_key, size)
            valid = jnp.minimum(valid, size // batch - position)
        return order, valid

    def batch(self, data: Any, order: Any, index: Any, step: Any) -> tuple:
        rows = {}
        for name, (size, batch) in self._plates.items():
            start = step % (size // batch) * batch
            rows[name] = entries(order[name], size, start, batch)
        arrays = [
            # The indices are of a permutation: in bounds and distinct.
            array.at[rows[plate]].get(mode="promise_in_bounds", unique_indices=True)
            if plate
            else array
            for array, plate in zip(data, self._plate_of, strict=True)
        ]
        return self.split.join(constrain(arrays, self._mesh, self._plate_of))

    def first(self) -> tuple:
        """The first rows of the data, not shuffled: arguments for initialisation and for checks."""
        arrays = [
            array[: self._plates[plate][1]] if plate else array
            for array, plate in zip(self._data, self._plate_of, strict=True)
        ]
        return self.split.join(arrays)

    def resume(self, state: Any, num_steps: int) -> None:
        """Nothing to do: the rows depend on the step alone."""
