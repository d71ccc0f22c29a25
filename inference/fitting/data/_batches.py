"""An iterable of batches: stacked, moved to the device and read ahead.

Several batches make a stack, which one or more device calls use up. The length of a stack's arrays is constant, whatever is
missing is zero and never read, so that one compilation serves all stacks. A batch with fewer rows is a stack by itself, and the
second compilation.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, PyTree

from ....ppl.language import as_tuple, labels_of
from ..._arguments import Arguments
from ..._meshes import at_hand
from ..._processes import checksum, gathered, spans_processes
from ._ahead import Ahead
from ._buffers import Buffers
from ._interface import Source
from ._reader import IterableReader, LoaderState, as_args
from ._sharding import check_divisible, constrain, put, row_axes, with_leading

# Batches in a stack, at least and at most: each device call costs the host about a millisecond.
_LENGTHS = 16, 64
_BYTES = 2**25  # of a stack of more than the least
_SECONDS = 0.1  # after which a stack is handed over half full, if it is waited for


class _Stack(NamedTuple):
    """Some batches, one after the other.

    Attributes:
        arrays: of shape [length, *batch].
        size: how many batches they hold.
        origin: from where these can be read again.
        buffers: their memory.
        wider: number and arrays of those whose integers are beyond those of earlier batches.
        signature: what is the same in all processes: how far their loaders are, numbers of rows, values.
    """

    arrays: list[PyTree]
    size: int
    origin: LoaderState
    buffers: list[np.ndarray]
    wider: Sequence[tuple[int, list[np.ndarray]]] = ()
    signature: tuple[int, ...] = ()


class Batches(Source):
    """One item of an iterable per step.

    A batch with fewer rows r of a plate than the first one's n has the plate's terms scaled by N / r, and its gradient counts
    r / n of a step. Then every row has the same weight over an epoch, N / n, in the order of a list as in a random one, and the
    terms outside of the plate have the weight N / n, too: the sum over an epoch is N / n times the gradient of all data.

    Args:
        iterable: of batches.
        prefetch: stacks that a thread reads ahead; 0 for no thread.
    """

    def __init__(self, iterable: Iterable, prefetch: int = 0):
        self._reader, self._prefetch = IterableReader(iterable), prefetch
        origin = LoaderState(self._reader.get_state(), 0)
        item = self._reader.next()
        if item is None:
            raise ValueError(
                "Argument 'args': the iterable holds no batch. Pass one that yields at least one tuple or dict of arguments; a "
                "generator that was read to its end is empty."
            )
        args = as_args(item, 0, {})
        self.given = as_tuple(item)
        self._labels = labels_of(self.given, None)  # a chunk of a table has levels of its own
        self.split = Arguments(args)
        self._first = self.split.arrays(args)
        self.shapes = self._own_shapes = _shapes(self._first)
        num_bytes = sum(_dtype(a).itemsize * int(np.size(a)) for a in self._first)
        self.steps_per_call = int(np.clip(_BYTES // max(num_bytes, 1), *_LENGTHS))
        self._buffers = Buffers()
        self._num_taken = 0  # into stacks
        self._held: list | None = self._first  # read, and in no stack yet
        self._stack, self._used = _Stack([], 0, origin, []), 0
        self._origin = origin  # of the next stack, while a batch is held
        self._mesh: jax.sharding.Mesh | None = None
        self._sharded: list[bool] = []
        self._is_spread, self._is_shared = False, False  # over processes
        self._num_parts, self._num_here = 1, 1
        self._plates: Collection[int] = ()
        self._other: list[str] = []  # shapes of batches with fewer rows
        self._check_plates, self._is_checked = (lambda args: None), False
        self._ranges = [_range(a) for a in self._first]
        self._ahead: Ahead | None = None
        self._wanted = self.steps_per_call

    def set_sharding(self, mesh: jax.sharding.Mesh, batch_sizes: Iterable[int]) -> None:
        """Shard the leaves whose leading axis is one of `batch_sizes`."""
        self._mesh, self._is_shared = mesh, spans_processes("fit", mesh)
        self._sharded = with_leading(self._first, batch_sizes)
        check_divisible(mesh, self._sharded, self._first, "a batch")

    def set_spread(self, mesh: jax.sharding.Mesh, is_cut: list[bool]) -> None:
        """Each process has its own rows of these leaves."""
        self._mesh, self._sharded = mesh, is_cut
        self._is_spread = self._is_shared = spans_processes("fit", mesh)
        if not self._is_spread:
            check_divisible(mesh, is_cut, self._first, "a batch")
            return
        self._num_parts = jax.process_count()
        own = {len(x) for x, cut in zip(self._first, is_cut, strict=True) if cut}
        num_here = self._num_here = len(mesh.local_devices)
        is_even = len(own) == 1 and max(own) % num_here == 0
        sizes, are_even = gathered([max(own, default=0), is_even]).T.tolist()
        if len(set(sizes)) > 1 or not all(are_even):
            raise ValueError(
                f"Argument 'args': the first batches of the processes have {sizes} rows, and each needs as many as the others, a "
                f"multiple of the {num_here} devices that it has. Cut batches in equal parts."
            )
        self.shapes = _shapes([jax.ShapeDtypeStruct(s, _dtype(x)) for s, x in self._whole_shapes()])

    def _whole_shapes(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """The shapes of the first batch with the rows of all processes, and its arrays."""
        sharded = self._sharded or [False] * len(self._first)
        factors = [self._num_parts if s else 1 for s in sharded]
        return [
            ((f * x.shape[0], *x.shape[1:]) if f > 1 else np.shape(x), x)
            for f, x in zip(factors, self._first, strict=True)
        ]

    def set_plates(self, sizes: Collection[int], check: Callable[[tuple], None]) -> None:
        """Leading axes of which a later batch may have fewer; `check` is called with the arguments of the first such batch."""
        self._plates, self._check_plates = sizes, check

    def load(self, num_steps: int) -> tuple[PyTree, int]:
        if self._used == self._stack.size:
            self._wanted = num_steps
            stack = self._next_stack()
            if stack is None:
                return None, 0
            data = [np.int32(0), *stack.arrays]
            if not self._is_checked and self.weight(data) != 1:
                self._check_plates(self.batch(data, (), 0, 0))
                self._is_checked = True
            for number, arrays in stack.wider:
                self.check_indices(number, self.split.join(arrays))
            # The device calls with the stack before have ended: their results were waited for.
            self._buffers.give_back(self._stack.buffers)
            self._stack, self._used = stack, 0
        begin = self._used
        count = min(num_steps, self._stack.size - begin)
        self._used += count
        return [np.int32(begin), *self._stack.arrays], count

    def batch(
        self, data: list[ArrayLike], order: PyTree, index: ArrayLike, step: ArrayLike
    ) -> tuple:
        begin, *stacks = data
        arrays = [jax.lax.dynamic_index_in_dim(a, begin + index, keepdims=False) for a in stacks]
        is_whole = self._is_spread or self.weight(data) == 1
        sharded = self._sharded if is_whole else [False] * len(stacks)
        return self.split.join(constrain(arrays, self._mesh, sharded))

    def weight(self, data: PyTree) -> float:
        pairs = zip(data[1:], self._whole_shapes(), strict=True)
        parts = {a.shape[1] / shape[0] for a, (shape, _) in pairs if a.shape[1:] != shape}
        return parts.pop() if parts else 1.0

    def first(self) -> tuple:
        """The first batch: arguments for initialisation and for checks."""
        if not self._is_spread:
            return self.split.join([jnp.asarray(array) for array in self._first])
        stacks = self._to_device([np.asarray(x)[None] for x in self._first], 1)
        return self.split.join([at_hand(x)[0] for x in stacks])

    def signature(self) -> tuple[int, ...]:
        return self._stack.signature

    def get_state(self, num_steps: int) -> LoaderState | None:
        origin = self._stack.origin
        return None if origin.state is None or origin.num_read > num_steps else origin

    def resume(self, state: LoaderState | None, num_steps: int) -> None:
        if state is not None:
            self._reader.set_state(state.state)
            self._held, self._num_taken = None, state.num_read
            self._stack = _Stack([], 0, state, [])
        while self._num_taken < num_steps:
            if self._take() is None:
                raise ValueError(
                    f"Argument 'args': the iterator ended after {self._num_taken} batches, but the checkpoint is at step "
                    f"{num_steps}. Pass an iterable that yields the same batches again from the start."
                )

    @contextlib.contextmanager
    def reading(self, num_steps: int | None, gives_up: Callable[[], bool]) -> Iterator[None]:
        self._limit = math.inf if num_steps is None else num_steps
        self._gives_up = gives_up
        self._stacks = self._make_stacks(None) if self._prefetch == 0 else None
        try:
            yield
        finally:
            if self._ahead is not None:
                self._ahead.stop()
                self._ahead = None

    def waiting(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._ahead is None else self._ahead.waiting()

    def _next_stack(self) -> _Stack | None:
        if self._stacks is not None:
            return next(self._stacks, None)
        if self._ahead is None:
            self._ahead = Ahead(self._make_stacks, self._prefetch)
        return self._ahead.get(self._gives_up)

    def _make_stacks(self, ahead: Ahead | None) -> Iterator[_Stack]:
        """Stacks up to the limit or the end. In a thread they are full, or as much as there is when they are waited for."""
        turn = contextlib.nullcontext if ahead is None else ahead.turn
        error, has_ended = None, False
        while error is None and not has_ended and self._num_taken < self._limit:
            began, items = time.monotonic(), []
            if self._held is None:
                with turn():
                    self._origin = LoaderState(self._reader.get_state(), self._num_taken)
            while len(items) < self.steps_per_call and self._num_taken < self._limit:
                try:
                    with turn():
                        self._hold()
                except BaseException as err:  # after what has been read before it
                    error = err
                    break
                has_ended = self._held is None
                is_part = not has_ended and self._has_fewer_rows(self._held)
                if has_ended or (is_part and items):
                    break
                items.append(self._take())
                if is_part or self._is_enough(ahead, len(items), began):
                    break
            if items and not (
                error is not None and self._is_shared
            ):  # then all processes hear of it
                yield self._stacked(items)
        if error is not None:
            raise error

    def _is_enough(self, ahead: Ahead | None, num_items: int, began: float) -> bool:
        if ahead is None:
            return num_items >= self._wanted
        if self._is_shared:  # all processes cut the same stacks, however fast they read
            return False
        return ahead.is_awaited and time.monotonic() - began > _SECONDS

    def _stacked(self, items: list[list]) -> _Stack:
        length = 1 if self._has_fewer_rows(items[0]) else self.steps_per_call
        first = [np.asarray(array) for array in items[0]]
        shapes = [(length, *array.shape) for array in first]
        buffers = self._buffers.take(shapes, [_dtype(array) for array in first])
        for number, arrays in enumerate(items):
            for buffer, array in zip(buffers, arrays, strict=True):
                buffer[number] = array
        begin = self._num_taken - len(items)
        wider = [(begin + n, arrays) for n, arrays in enumerate(items) if self._is_wider(arrays)]
        arrays = self._to_device(buffers, length)
        found = self._signature(buffers, items) if self._is_shared else ()
        return _Stack(arrays, len(items), self._origin, buffers, wider, found)

    def _signature(self, buffers: list[np.ndarray], items: list[list]) -> tuple[int, ...]:
        is_own = self._sharded if self._is_spread else [False] * len(buffers)
        rows = sum(len(x) for x in items[0] if np.ndim(x))
        common = [b[: len(items)] for b, own in zip(buffers, is_own, strict=True) if not own]
        return *self._reader.place, rows, checksum(common)

    def _is_wider(self, arrays: list) -> bool:
        """Whether integers of a batch are beyond all before it, to which they belong from now on, or it has the first NaN."""
        found = [_range(array) for array in arrays]
        joined = [
            (min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(found, self._ranges, strict=True)
        ]
        is_wider, self._ranges = joined != self._ranges, joined
        return is_wider

    def _to_device(self, stacks: list[np.ndarray], length: int) -> list[Array]:
        if self._mesh is None:
            return [jax.device_put(stack) for stack in stacks]
        spec = PartitionSpec(None, row_axes(self._mesh))
        if self._is_spread:
            split = NamedSharding(self._mesh, spec)
            return [
                jax.make_array_from_process_local_data(split, stack)
                if is_own
                else put([stack], self._mesh, [False], spec)[0]
                for stack, is_own in zip(stacks, self._sharded, strict=True)
            ]
        sharded = self._sharded if length > 1 else [False] * len(stacks)
        return put(stacks, self._mesh, sharded, spec)

    def _take(self) -> list | None:
        """The next batch, for a stack."""
        self._hold()
        batch, self._held = self._held, None
        self._num_taken += batch is not None
        return batch

    def _hold(self) -> None:
        """Read a batch, if none is held; none is held then at the end."""
        if self._held is not None:
            return
        item = self._reader.next()
        self._held = None if item is None else self._check(item)

    def _check(self, item: tuple[np.ndarray, ...]) -> list:
        number = self._num_taken
        try:
            arrays = self.split.arrays(as_args(item, number, self._labels))
        except ValueError as err:
            raise ValueError(
                f"Argument 'args': batch {number} differs from batch 0, and all must be of one kind. {err}"
            ) from err
        seen = _shapes(arrays)
        if seen == self._own_shapes or seen == self._other:
            return arrays
        if self._other or not self._is_part(arrays):
            other = f" and an earlier one {self._other}" if self._other else ""
            raise ValueError(
                f"Argument 'args': batch {number} has {seen}, but batch 0 has {self._own_shapes}{other}. All batches must have "
                "equal shapes; the last of an epoch alone may have fewer rows of a plate in 'plate_sizes'. Else drop it "
                "(drop_last=True in most data loaders), or pad it and mask it."
            )
        self._other = seen
        cut = self._sharded if self._is_spread else [False] * len(arrays)
        own = [len(x) for x, is_cut in zip(arrays, cut, strict=True) if is_cut]
        if any(size % self._num_here for size in own):
            raise ValueError(
                f"Argument 'args': batch {number} has {max(own)} rows, which cannot be split evenly over the {self._num_here} "
                "devices of this process. Drop it (drop_last=True in most data loaders)."
            )
        return arrays

    def _is_part(self, arrays: list) -> bool:
        """Whether these have fewer rows of a plate, and else the shapes of the first batch."""
        found = set()
        for array, first in zip(arrays, self._first, strict=True):
            if _shapes([array]) == _shapes([first]):
                continue
            like = np.shape(array)[1:] == np.shape(first)[1:] and _dtype(array) == _dtype(first)
            if not (like and array.ndim and 0 < len(array) < len(first) in self._plates):
                return False
            found.add((len(array), len(first)))
        return len(found) == 1

    def _has_fewer_rows(self, arrays: PyTree) -> bool:
        return bool(self._other) and _shapes(arrays) == self._other


def _range(array: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest of the integers in an array; of numbers with NaN everything, of others what holds nothing."""
    if array.dtype.kind not in "iuf" or not np.size(array):
        return math.inf, -math.inf
    numbers = np.asarray(array)
    if array.dtype.kind == "f":
        return (-math.inf, math.inf) if np.isnan(numbers.min()) else (math.inf, -math.inf)
    return int(numbers.min()), int(numbers.max())


def _dtype(array: PyTree) -> np.dtype:
    """The type on the device, so that a loader may mix float32 and float64."""
    return jax.dtypes.canonicalize_dtype(array.dtype)


def _shapes(arrays: list[PyTree]) -> list[str]:
    return [f"{_dtype(array)}{list(np.shape(array))}" for array in arrays]


def is_iterable_of_batches(args: PyTree) -> bool:
    """Whether `args` is data that comes batch by batch, rather than arguments themselves."""
    return isinstance(args, Iterable | Iterator) and not isinstance(args, tuple | Mapping)
