"""Several processes of one run: what has to be the same in all of them is compared, before it could hang or mislead.

A run over a mesh of several processes is one program. A process that takes another number of steps, or stops, leaves the others
waiting for ever; one that brings other data or another key makes a run of nothing in particular. Both are agreed on, or refused
in all processes with the same words.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PyTree


def spans_processes(name: str, mesh: Mesh | None) -> bool:
    """Whether the mesh has devices of all processes, and these are several.

    Raises:
        ValueError: it has devices of some of them.
    """
    found = set() if mesh is None else {device.process_index for device in mesh.devices.flat}
    if found - {jax.process_index()} and len(found) < jax.process_count():
        raise ValueError(
            f"{name}: the mesh has devices of the processes {sorted(found)}, and there are {jax.process_count()}. Make it of the "
            "devices of one process, jax.local_devices(), or of all, jax.devices()."
        )
    return len(found) > 1


def gathered(numbers: Sequence[int]) -> np.ndarray:
    """The numbers, up to 32 bits, of all processes, [processes, numbers]; every process has to ask at the same point."""
    words = np.asarray([int(n) & 0xFFFFFFFF for n in numbers], np.uint32).view(np.int32)
    return np.asarray(multihost_utils.process_allgather(words)).reshape(-1, len(numbers))


def texts(text: str) -> list[str]:
    """The texts of all processes."""
    raw = text.encode()
    sizes = gathered([len(raw)])[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(raw)] = np.frombuffer(raw, np.uint8)
    found = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [bytes(row[:size]).decode() for row, size in zip(found, sizes, strict=True)]


_MOST = 6  # numbers of a process about its data


def exchanged(numbers: Sequence[int] | None, what: str) -> np.ndarray:
    """The numbers of all processes, [processes, at least so many], after two that are for `agreed`.

    Args:
        numbers: at most six; None says that this process has failed, and its error is about to be raised.
        what: all are doing, for the message.

    Raises:
        RuntimeError: another process has failed.
    """
    own = [1, *([0] * _MOST)] if numbers is None else [0, len(numbers), *numbers]
    found = gathered([*own, *([0] * _MOST)][: _MOST + 2])
    failed = np.flatnonzero(found[:, 0]).tolist()
    if failed and numbers is not None:
        raise RuntimeError(
            f"fit: the processes {failed} failed {what}, for the reasons that they give, and the run of all ends. "
            "Mend that and start all processes again; from a checkpoint, if there is one, they go on."
        )
    return found


_READING = "to read their data"


def anywhere(ask: Callable[[], bool], what: str, is_shared: bool) -> bool:
    """Whether it is so in any process where the run is shared; where it cannot be asked in one, the run of all ends."""
    if not is_shared:
        return ask()
    try:
        flag = ask()
    except BaseException:
        exchanged(None, what)
        raise
    return bool(exchanged([flag], what)[:, 2].any())


def agreed(numbers: Sequence[int], what: str = _READING) -> None:
    """Refuse, in all processes, data that do not go together.

    Args:
        numbers: of batches, then, of an iterable: its epoch, batches read of it, rows, values that all have.
        what: all are doing, for the message.

    Raises:
        ValueError: the numbers differ.
        RuntimeError: another process has failed.
    """
    found = exchanged(numbers, what)
    if (found == found[0]).all():
        return
    told = [f"process {p}: {_words(row[2 : 2 + row[1]].tolist())}" for p, row in enumerate(found)]
    raise ValueError(
        f"Argument 'args': the processes of the run have data that do not go together. {'; '.join(told)}. Each process has to "
        "yield as many batches in an epoch as the others, of as many rows, and the same values unless they are its own rows "
        "(inference.fitting.ProcessLocal). Of files of unequal sizes pass arrays with subsample=, whose rows are drawn among "
        "those of all processes, or cut equally many batches, or repeat without end."
    )


@contextlib.contextmanager
def together(is_shared: bool, what: str = _READING) -> Iterator[list[int]]:
    """What fails inside in one process of a run fails in all, which would wait for it else; no word goes around inside.

    The numbers of `agreed` may be put in the list meanwhile.
    """
    numbers: list[int] = []
    try:
        yield numbers
    except BaseException:
        if is_shared:
            exchanged(None, what)
        raise
    if is_shared:
        agreed(numbers, what)


def _words(numbers: list[int]) -> str:
    names = ("batches at hand", "epoch", "batches read in it", "rows", "sum of values")
    return ", ".join(f"{name} {n}" for name, n in zip(names, numbers, strict=False))


def checksum(arrays: Iterable[Array | np.ndarray]) -> int:
    """32 bits of the values of arrays on the host; those spread over processes are left out, since they are one by themselves."""
    found = 0
    for array in arrays:
        if getattr(array, "is_fully_addressable", True):
            if hasattr(array, "dtype") and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
                array = jax.random.key_data(array)
            raw = np.ascontiguousarray(array)
            found = zlib.crc32(
                raw.view(np.uint8).data if raw.size and raw.ndim else raw.tobytes(), found
            )
    return found


def check_same(name: str, what: Mapping[str, PyTree]) -> None:
    """Refuse, in all processes, what is not the same in all; values are words, numbers, or trees of arrays.

    Raises:
        ValueError: something is not.
    """
    sums = gathered([_sum_of(value) for value in what.values()])
    wrong = [label for label, row in zip(what, sums.T, strict=True) if len(set(row.tolist())) > 1]
    if wrong:
        raise ValueError(
            f"{name}: the processes were given different {', '.join(wrong)}, and a run over the devices of all of them is one. "
            "Call it in every process with the same key, options and data; of data of which each process has its own rows say "
            "so, inference.fitting.ProcessLocal(args, plate)."
        )


def _sum_of(value: PyTree) -> int:
    leaves = jax.tree.leaves(value)
    words = [f"{x!r}" for x in leaves if isinstance(x, str | int | float | complex)]
    arrays = [x for x in leaves if hasattr(x, "__array__")]
    words += [f"{x.dtype}{np.shape(x)}" for x in arrays]
    # Of a file that is mapped into memory the ends are looked at: a process is not to read what it has no use for.
    ends = [y for x in arrays for y in ([x[:1], x[-1:]] if isinstance(x, np.memmap) else [x])]
    return zlib.crc32(str(words).encode(), checksum(ends))
