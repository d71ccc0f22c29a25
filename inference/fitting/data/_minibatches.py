"""Random minibatches of data in memory, and of files that are mapped into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, PyTree

from ....ppl._shared_jit import shared_jit
from ..._arguments import Arguments, shapes
from ..._meshes import at_hand, placed
from ._interface import UNBOUNDED, Source
from ._reshuffling import draw_order, entries
from ._sharding import check_divisible, constrain, row_axes, shared_out

MOST_STEPS, MOST_BYTES = 1024, 2**25  # of a device call, of rows that are read from a file


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
        self._data = self._held(arrays)

    def _held(self, arrays: list[Array]) -> list[Array]:
        """Over a mesh each device holds its share of the rows, and hands over those of a batch."""
        if self._mesh is None:
            return [jnp.asarray(array) for array in arrays]
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        return [
            placed(array, everywhere) if p is None else shared_out(array, self._mesh)
            for array, p in zip(arrays, self._plate_of, strict=True)
        ]

    def load(self, num_steps: int) -> tuple[list[Array], int]:
        return self._data, num_steps

    def segment(self, key: jax.Array, step: ArrayLike) -> tuple[PyTree, Array]:
        order, valid = {}, jnp.int32(UNBOUNDED)
        for number, (name, (size, batch)) in enumerate(sorted(self._plates.items())):
            epoch, position = jnp.divmod(step, size // batch)
            epoch_key = jax.random.fold_in(jax.random.fold_in(key, number), epoch)
            order[name] = draw_order(epoch_key, size)
            valid = jnp.minimum(valid, size // batch - position)
        return order, valid

    def batch(self, data: list[Array], order: PyTree, index: ArrayLike, step: ArrayLike) -> tuple:
        rows = self._rows(order, step)
        arrays = [
            # The indices are of a permutation: in bounds and distinct.
            array.at[rows[plate]].get(mode="promise_in_bounds", unique_indices=True)
            if plate
            else array
            for array, plate in zip(data, self._plate_of, strict=True)
        ]
        return self.split.join(constrain(arrays, self._mesh, self._plate_of))

    def _rows(self, order: PyTree, step: PyTree) -> dict[str, jax.Array]:
        """Plate -> numbers of its rows in a step."""
        return {
            name: entries(order[name], size, step % (size // batch) * batch, batch)
            for name, (size, batch) in self._plates.items()
        }

    def first(self) -> tuple:
        """The first rows of the data, not shuffled: arguments for initialisation and for checks."""
        arrays = [
            at_hand(array[: self._plates[plate][1]]) if plate else at_hand(array)
            for array, plate in zip(self._data, self._plate_of, strict=True)
        ]
        return self.split.join(arrays)

    def resume(self, state: PyTree, num_steps: int) -> None:
        """Nothing to do: the rows depend on the step alone."""


class MappedMinibatches(Minibatches):
    """The rows that `Minibatches` takes, of data on the host: of a `numpy.memmap` a device call reads those of its steps.

    Over a mesh of several processes each reads the rows that its own devices compute on, from a file that all can open.

    Args:
        order_key: key of the order of the data, see `run_keys`.
        args, batch_sizes, plate_sizes, mesh, plate_of: as of `Minibatches`.
    """

    def __init__(
        self,
        order_key: jax.Array,
        args: tuple,
        batch_sizes: Mapping[str, int],
        plate_sizes: Mapping[str, int],
        mesh: jax.sharding.Mesh | None,
        plate_of: Sequence[str | None],
    ):
        super().__init__(args, batch_sizes, plate_sizes, mesh, plate_of)
        size = sum(array.nbytes for array, p in zip(self.first_arrays, plate_of, strict=True) if p)
        self.steps_per_call = int(np.clip(MOST_BYTES // max(size, 1), 1, MOST_STEPS))
        self._key, self._step = order_key, 0
        self._rows_of_steps = shared_jit(self._numbers)

    def _held(self, arrays: list[Array]) -> list[Array]:
        mesh, whole = self._mesh, jnp.asarray
        if mesh is not None:
            whole = lambda a: placed(a, NamedSharding(mesh, PartitionSpec()))
        return [a if p else whole(a) for a, p in zip(arrays, self._plate_of, strict=True)]

    @property
    def first_arrays(self) -> list[Array]:
        """The arrays of `first`."""
        return self.split.arrays(self.first())

    def _numbers(self, key: jax.Array, first_step: ArrayLike) -> dict[str, jax.Array]:
        """Plate -> numbers of the rows in the steps of a device call, [steps, batch]."""
        own = lambda step: self._rows(Minibatches.segment(self, key, step)[0], step)
        return jax.vmap(own)(first_step + jnp.arange(self.steps_per_call))

    def load(self, num_steps: int) -> tuple[list[Array], int]:
        num_steps = min(num_steps, self.steps_per_call)
        numbers = self._rows_of_steps(self._key, np.int32(self._step))
        rows = {plate: np.asarray(x)[:num_steps] for plate, x in numbers.items()}
        self._step += num_steps
        return [
            self._read(array, rows[plate]) if plate else array
            for array, plate in zip(self._data, self._plate_of, strict=True)
        ], num_steps

    def _read(self, array: Array | np.ndarray, rows: np.ndarray) -> jax.Array:
        """The rows of all steps; of one shape, so that calls are one program."""
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)

        def part(index: PyTree) -> np.ndarray:
            own = rows[:, index[1]]  # of all steps, those that a device computes on
            found = np.zeros((self.steps_per_call, own.shape[1], *array.shape[1:]), dtype)
            found[: len(own)] = array[own]
            return found

        if self._mesh is None:
            return jnp.asarray(part((slice(None), slice(None))))
        shape = (self.steps_per_call, rows.shape[1], *array.shape[1:])
        split = NamedSharding(self._mesh, PartitionSpec(None, row_axes(self._mesh)))
        return jax.make_array_from_callback(shape, split, part)

    def segment(self, key: jax.Array, step: ArrayLike) -> tuple[PyTree, Array]:
        return (), jnp.int32(UNBOUNDED)

    def batch(self, data: list[Array], order: PyTree, index: ArrayLike, step: ArrayLike) -> tuple:
        arrays = [
            array[index] if plate else array
            for array, plate in zip(data, self._plate_of, strict=True)
        ]
        return self.split.join(constrain(arrays, self._mesh, self._plate_of))

    def resume(self, state: PyTree, num_steps: int) -> None:
        """The rows depend on the step alone."""
        self._step = num_steps
