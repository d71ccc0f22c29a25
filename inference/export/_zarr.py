"""Trees in a Zarr folder, written block by block: of draws that do not fit in memory.

Input: trees of the same variables, of one block of draws each. Output: a folder in which they lie one after the other along
"draw", as one tree would have them; a chunk holds a block, so that what is read later is read by blocks, too. A folder whose
writing was cut short holds the blocks before.
"""

from __future__ import annotations

import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

_FORMAT = 2  # the third has no type yet for labels that are words


def is_zarr(path: str | os.PathLike) -> bool:
    """Whether a path names a Zarr folder."""
    return Path(path).suffix == ".zarr"


def check_zarr(path: str | os.PathLike) -> None:
    """Raise where the folder cannot be written."""
    if importlib.util.find_spec("zarr") is None:
        raise ImportError(
            f"to_arviz: path='{os.fspath(path)}' writes a Zarr folder, and zarr is not installed. Install lapilli[zarr], or name "
            "a netCDF file, e.g. path='fit.nc'."
        )
    if Path(path).exists():
        raise ValueError(
            f"to_arviz: path='{os.fspath(path)}' is there already, and a folder is not overwritten. Delete it, or choose another "
            "name."
        )


def write_blocks(
    path: str | os.PathLike,
    trees: Iterable[xarray.DataTree],
    late: Callable[[], Mapping[str, float | str]],
) -> xarray.DataTree:
    """The tree of all blocks, which reads the folder as it is asked for its values.

    What `late` returns when all are written are attributes of "sample_stats".
    """
    import xarray
    import zarr

    done: dict[str, int] = defaultdict(int)  # draws of each group
    for tree in trees:
        for group, node in tree.children.items():
            data = node.to_dataset()
            if group in done and "draw" not in data.dims:
                continue
            num = data.sizes.get("draw", 0)
            options: dict[str, Any] = {"append_dim": "draw"}
            if group not in done:
                whole = {n: {"chunks": tuple(max(s, 1) for s in v.shape)} for n, v in data.items()}
                options = {"encoding": whole, "zarr_format": _FORMAT}
            if num:
                data = data.assign_coords(draw=done[group] + np.arange(num))
            data.to_zarr(path, group=group, mode="a", consolidated=False, **options)
            done[group] += num
    root = zarr.open_group(path, mode="r+", zarr_format=_FORMAT)
    if attrs := late():
        plain = lambda x: x.item() if isinstance(x, np.generic | np.ndarray) else x
        root["sample_stats"].attrs.update({name: plain(x) for name, x in attrs.items()})
    zarr.consolidate_metadata(path, zarr_format=_FORMAT)
    return xarray.open_datatree(path, engine="zarr")
