"""Data of which each process of a run has its own rows.

Arrays: the rows of all processes, one after the other in the order of the processes, are one array, of which each device holds
an equal part; where processes have unequally many, some move once, at the start. What a run makes of them is then what one
process makes of all rows, also where each epoch draws them in a new order. Batches: process p of P yields the p-th of P equal
parts of each batch; a loader that cuts the same batches in another number of parts gives the same run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ..._arguments import Arguments
from ..._processes import check_same, gathered, spans_processes
from ._sharding import SEEDS


class ProcessLocal:
    """Arguments of `fit` of which each process has its own rows of one plate.

    Args:
        args: what `fit` takes as `args`, with this process's rows: a tuple or dict of arrays, or an iterable of batches. Of
            batches each process has equally many rows for each of its devices; of arrays the numbers may differ. What
            has no rows of the plate is the same in all processes.
        plate: the plate with whose rows arrays go.

    Raises:
        TypeError: `plate` is no name.

    Example:
        >>> rows = ProcessLocal((np.zeros(3),), plate="rows")  # of the file of this process
        >>> rows
        ProcessLocal(a tuple, plate='rows')
    """

    def __init__(self, args: tuple | Mapping[str, PyTree] | Iterable[PyTree], plate: str):
        if not isinstance(plate, str):
            raise TypeError(
                f"ProcessLocal: plate is {plate!r}; give the name of the plate of which each process has its own rows."
            )
        self.args, self.plate = args, plate

    def __repr__(self) -> str:
        return f"ProcessLocal(a {type(self.args).__name__}, plate={self.plate!r})"


def check_plate(plate: str, sizes: Mapping[str, int]) -> None:
    """Refuse a plate that is not there."""
    if plate not in sizes:
        raise ValueError(
            f"Argument 'args': there is no plate '{plate}', whose rows ProcessLocal says are spread over processes; the plates "
            f"and their sizes are {dict(sizes)}. Name one of these."
        )


def check_spread(plate: str, mesh: Mesh | None) -> None:
    """Refuse rows of several processes without a mesh of all of them, or with one that splits seeds as well."""
    if jax.process_count() > 1 and mesh is not None and SEEDS in mesh.axis_names:
        raise ValueError(
            f"Argument 'args': each process has its own rows of plate '{plate}', and the mesh's axis '{SEEDS}' would hold them "
            "more than once. Use a mesh without this axis."
        )
    if jax.process_count() > 1 and not spans_processes("fit", mesh):
        raise ValueError(
            f"Argument 'args': each of {jax.process_count()} processes has its own rows of plate '{plate}', and no mesh has the "
            "devices of all of them. Pass mesh=jax.make_mesh((jax.device_count(),), ('devices',))."
        )


def spread(args: tuple, plate: str, mesh: Mesh, is_cut: list[bool]) -> tuple:
    """The arguments with the rows of all processes.

    Args:
        args: those of this process.
        plate: that is spread.
        mesh: the devices.
        is_cut: of each array, whether it has the rows of the plate.

    Raises:
        ValueError: the devices do not divide the number of all rows; arrays differ in what is no row.
    """
    split = Arguments(args)
    arrays = split.arrays(args)
    common = [x for x, cut in zip(arrays, is_cut, strict=True) if not cut]
    kinds = [f"{x.dtype}{x.shape[1:]}" for x, cut in zip(arrays, is_cut, strict=True) if cut]
    check_same("fit", {"kinds of rows": str(kinds), "arrays that all have": common})
    (size,) = {len(x) for x, cut in zip(arrays, is_cut, strict=True) if cut}
    counts = gathered([size])[:, 0].tolist()
    if sum(counts) % mesh.size:
        raise ValueError(
            f"Argument 'args': the processes have {counts} rows of plate '{plate}', {sum(counts)} in all, which cannot be split "
            f"evenly over {mesh.size} devices. Leave out {sum(counts) % mesh.size}, or give the mesh other devices."
        )
    whole = [
        _assembled(np.asarray(x), counts, mesh) if cut else x
        for x, cut in zip(arrays, is_cut, strict=True)
    ]
    return split.join(whole)


def _assembled(rows: np.ndarray, counts: list[int], mesh: Mesh) -> Array:
    """The rows of all processes, in their order, split over the devices of the mesh."""
    rows = rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype), copy=False)
    owners = np.array([device.process_index for device in mesh.devices.flat])
    places = [np.flatnonzero(owners == process) for process in range(len(counts))]
    part = max(-(-n // len(own)) for n, own in zip(counts, places, strict=True))
    # Each process fills its own devices, all with as many places; then the rows move together.
    held = np.zeros((part * len(places[jax.process_index()]), *rows.shape[1:]), rows.dtype)
    held[: len(rows)] = rows
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shape = (part * mesh.size, *rows.shape[1:])
    ranks = {int(device): rank for rank, device in enumerate(places[jax.process_index()])}

    def mine(index: PyTree) -> np.ndarray:
        rank = ranks[(index[0].start or 0) // part]
        return held[rank * part : (rank + 1) * part]

    loose = jax.make_array_from_callback(shape, sharding, mine)
    found = [np.arange(n) for n in counts]
    where = [own[i // part] * part + i % part for i, own in zip(found, places, strict=True)]
    order = np.concatenate(where).astype(np.int32)
    return jax.jit(lambda x, order: x[order], out_shardings=sharding)(loose, order)
