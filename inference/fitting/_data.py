"""Where a training step gets its arguments from: the full data, random minibatches of it, or an iterable of batches.

A source serves the compiled loop through four methods. `load(num_steps)`, on the host, gives the arrays for the next device call
and the number of steps they last. The other three are traced: `segment(key, step)` gives a pytree `order` and the number of
steps for which it is valid, counted from `step`; `batch(data, order, index, step)` gives the arguments of the `index`-th step
of this device call.

Invariants: what a step sees depends only on (key, step) and the data, so a resumed run sees the same; the scale of every
subsampled plate is known to the objective, or the source is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ...ppl.language import as_arguments
from .._arguments import Arguments, shapes

_UNBOUNDED = np.iinfo(np.int32).max


class FullData:
    """Every step sees the same arguments."""

    steps_per_call = _UNBOUNDED

    def __init__(self, args: tuple, mesh: jax.sharding.Mesh | None, plate_sizes: Mapping[str, int]):
        self.split = Arguments(args)
        arrays = self.split.arrays(args)
        self.shapes = shapes(arrays)
        if mesh is not None:
            # Any split is correct (the partitioner keeps the program's meaning); even ones are fast.
            sizes = [size for size in plate_sizes.values() if size % mesh.size == 0]
            sharded = _with_leading(arrays, sizes)
            _check_divisible(mesh, sharded, arrays, "the data")
            arrays = _put(arrays, mesh, sharded, PartitionSpec(mesh.axis_names))
        self._data = [jnp.asarray(array) for array in arrays]

    def load(self, num_steps: int) -> tuple[Any, int]:
        return self._data, num_steps

    def segment(self, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        return (), jnp.int32(_UNBOUNDED)

    def batch(self, data: Any, order: Any, index: Any, step: Any) -> tuple:
        return self.split.join(data)

    def first(self) -> tuple:
        """The arguments for initialisation."""
        return self.split.join(self._data)

    def get_state(self, num_steps: int) -> None:
        """None: every step has the same rows."""

    def skip(self, num_steps: int) -> None:
        """Move on by `num_steps`, when a run resumes."""


class Minibatches:
    """Rows drawn by random reshuffling: in each epoch every row at most once, the last partial batch dropped.

    Step t lies in epoch e = t // (N // n) and takes entries number (t mod (N // n)) n ... of the e-th permutation, which is
    drawn from `fold_in(fold_in(key, plate), e)`. Each step's indices are uniform without replacement, so N / n times the sum
    over a batch is unbiased for the sum over all rows; over one epoch with n dividing N their mean is exact.
    """

    steps_per_call = _UNBOUNDED

    def __init__(
        self,
        args: tuple,
        batch_sizes: Mapping[str, int],
        plate_sizes: Mapping[str, int],
        mesh: jax.sharding.Mesh | None,
    ):
        self.split = Arguments(args)
        arrays = self.split.arrays(args)
        self.shapes = shapes(arrays)
        self._plates = {name: (plate_sizes[name], batch) for name, batch in batch_sizes.items()}
        names = {size: name for name, (size, _) in self._plates.items()}
        self._plate_of = [names.get(array.shape[0]) if array.ndim else None for array in arrays]
        self._mesh = mesh
        if mesh is not None:
            batches = [
                array[: self._plates[p][1]]
                for array, p in zip(arrays, self._plate_of, strict=True)
                if p
            ]
            _check_divisible(mesh, [True] * len(batches), batches, "a minibatch")
            arrays = _put(arrays, mesh, [False] * len(arrays), PartitionSpec())
        self._data = [jnp.asarray(array) for array in arrays]

    def load(self, num_steps: int) -> tuple[Any, int]:
        return self._data, num_steps

    def segment(self, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        order, valid = {}, jnp.int32(_UNBOUNDED)
        for number, (name, (size, batch)) in enumerate(sorted(self._plates.items())):
            epoch, position = jnp.divmod(step, size // batch)
            epoch_key = jax.random.fold_in(jax.random.fold_in(key, number), epoch)
            order[name] = jax.random.permutation(epoch_key, size)
            valid = jnp.minimum(valid, size // batch - position)
        return order, valid

    def batch(self, data: Any, order: Any, index: Any, step: Any) -> tuple:
        rows = {}
        for name, (size, batch) in self._plates.items():
            start = step % (size // batch) * batch
            rows[name] = jax.lax.dynamic_slice(order[name], (start,), (batch,))
        arrays = [
            # The indices are a slice of a permutation: in bounds and distinct.
            array.at[rows[plate]].get(mode="promise_in_bounds", unique_indices=True)
            if plate
            else array
            for array, plate in zip(data, self._plate_of, strict=True)
        ]
        return self.split.join(_constrain(arrays, self._mesh, self._plate_of))

    def first(self) -> tuple:
        """The first rows of the data, not shuffled: arguments for initialisation and for checks."""
        arrays = [
            array[: self._plates[plate][1]] if plate else array
            for array, plate in zip(self._data, self._plate_of, strict=True)
        ]
        return self.split.join(arrays)

    def get_state(self, num_steps: int) -> None:
        """None: the rows depend on the step alone."""

    def skip(self, num_steps: int) -> None:
        """Nothing to do: the rows depend on the step alone."""


class Batches:
    """One item of an iterable per step; several are stacked for one device call.

    An iterable that can be iterated again (a list, a data loader) starts anew at its end; an iterator ends the run.
    """

    steps_per_call = 16  # bounds the memory of a stack of batches

    def __init__(self, iterable: Iterable):
        self._iterable = iterable
        self._iterator = iter(iterable)
        self._is_one_shot = self._iterator is iterable
        self._num_read = 0
        self._mesh = None
        item = next(self._iterator, None)
        if item is None:
            raise ValueError("Argument 'args': the iterable holds no batch.")
        args = _as_args(item, 0)
        self.split = Arguments(args)
        self._first = self.split.arrays(args)
        self.shapes = shapes(self._first)
        self._peeked: list | None = self._first

    def set_sharding(self, mesh: jax.sharding.Mesh, batch_sizes: Iterable[int]) -> None:
        """Shard the leaves whose leading axis is one of `batch_sizes`."""
        self._mesh = mesh
        self._sharded = _with_leading(self._first, batch_sizes)
        _check_divisible(mesh, self._sharded, self._first, "a batch")

    def load(self, num_steps: int) -> tuple[Any, int]:
        items = []
        while len(items) < min(num_steps, self.steps_per_call):
            item = self._next()
            if item is None:
                break
            items.append(item)
        if not items:
            return None, 0
        # A stack of constant length, whatever is missing filled by the last batch: one shape, one compilation.
        filled = items + items[-1:] * (self.steps_per_call - len(items))
        stack = [np.stack([np.asarray(a) for a in leaf]) for leaf in zip(*filled, strict=True)]
        if self._mesh is not None:
            stack = _put(
                stack, self._mesh, self._sharded, PartitionSpec(None, self._mesh.axis_names)
            )
        return stack, len(items)

    def segment(self, key: jax.Array, step: jax.Array) -> tuple[Any, Any]:
        return (), jnp.int32(_UNBOUNDED)

    def batch(self, data: Any, order: Any, index: Any, step: Any) -> tuple:
        arrays = [jax.lax.dynamic_index_in_dim(a, index, keepdims=False) for a in data]
        sharded = self._sharded if self._mesh is not None else []
        return self.split.join(_constrain(arrays, self._mesh, sharded))

    def first(self) -> tuple:
        """The first batch: arguments for initialisation and for checks."""
        return self.split.join([jnp.asarray(array) for array in self._first])

    def get_state(self, num_steps: int) -> Any:
        """The state of a loader that has one, after `num_steps` batches; None if it has none, or stands elsewhere."""
        if self._num_read != num_steps:
            return None
        return _state_of(self._iterator, self._iterable)

    def set_state(self, state: Any, num_steps: int) -> None:
        """Let the loader go on where it stood after `num_steps` batches."""
        self._iterator = _restored(self._iterator, self._iterable, state)
        self._peeked, self._num_read = None, num_steps

    def skip(self, num_steps: int) -> None:
        """Read and drop `num_steps` batches."""
        for _ in range(num_steps):
            if self._next() is None:
                raise ValueError(
                    f"Argument 'args': the iterator ended after {self._num_read} batches, but the checkpoint is at step "
                    f"{num_steps}. Pass an iterable that yields the same batches again from the start."
                )

    def _next(self) -> list | None:
        if self._peeked is not None:
            arrays, self._peeked = self._peeked, None
            self._num_read += 1
            return arrays
        item = next(self._iterator, None)
        if item is None and not self._is_one_shot:
            self._iterator = iter(self._iterable)
            item = next(self._iterator, None)
        if item is None:
            return None
        arrays = self._check(item)
        self._num_read += 1
        return arrays

    def _check(self, item: Any) -> list:
        number = self._num_read
        try:
            arrays = self.split.arrays(_as_args(item, number))
        except ValueError as err:
            raise ValueError(
                f"Argument 'args': batch {number} differs from batch 0. {err}"
            ) from err
        if shapes(arrays) != self.shapes:
            raise ValueError(
                f"Argument 'args': batch {number} has {shapes(arrays)}, but batch 0 has {self.shapes}. All batches must have "
                "equal shapes: drop the last partial batch (drop_last=True in most data loaders) or pad it and mask it."
            )
        return arrays


Source = FullData | Minibatches | Batches


def _state_of(iterator: Any, iterable: Any) -> Any:
    """What Grain's iterators and PyTorch's stateful loaders say of where they stand: JSON, or bytes."""
    if hasattr(iterator, "get_state") and hasattr(iterator, "set_state"):
        return iterator.get_state()
    if hasattr(iterable, "state_dict") and hasattr(iterable, "load_state_dict"):
        return iterable.state_dict()
    return None


def _restored(iterator: Any, iterable: Any, state: Any) -> Any:
    """The iterator that goes on from there."""
    if hasattr(iterator, "set_state"):
        iterator.set_state(state)
        return iterator
    iterable.load_state_dict(state)
    return iter(iterable)


def _as_args(item: Any, number: int) -> tuple:
    # Data loaders collate into lists as often as into tuples.
    if isinstance(item, tuple | list | Mapping):
        return as_arguments(item)
    raise TypeError(
        f"Argument 'args': batch {number} is a {type(item).__name__}, but each batch must be a tuple of the program's "
        "arguments, or a dict from their names. Yield (x,) for a program of one argument; if 'args' holds the data itself, make "
        "it a tuple."
    )


def _with_leading(arrays: list[Any], sizes: Iterable[int]) -> list[bool]:
    sizes = set(sizes)
    return [array.ndim > 0 and array.shape[0] in sizes for array in arrays]


def _check_divisible(mesh: Any, sharded: list[bool], arrays: list[Any], what: str) -> None:
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


def _put(arrays: list[Any], mesh: Any, sharded: list[bool], spec: PartitionSpec) -> list[jax.Array]:
    return [
        jax.device_put(array, NamedSharding(mesh, spec if shard else PartitionSpec()))
        for array, shard in zip(arrays, sharded, strict=True)
    ]


def _constrain(arrays: list[Any], mesh: Any, sharded: Iterable[Any]) -> list[Any]:
    if mesh is None:
        return arrays
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return [
        jax.lax.with_sharding_constraint(array, sharding) if shard else array
        for array, shard in zip(arrays, sharded, strict=True)
    ]


def is_iterable_of_batches(args: Any) -> bool:
    """Whether `args` is data that comes batch by batch, rather than arguments themselves."""
    return isinstance(args, Iterable | Iterator) and not isinstance(args, tuple | Mapping)
