"""A function for many inputs, draws mostly: some at a time on the device, results on the host.

Over a mesh inputs are split, and each device runs the function for its own: no word goes between devices, and a loop that ends
early on one does not wait for the others. What the function reads besides lies whole on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..ppl._checks import check_counts
from ..ppl._compat import typed_key
from ..ppl._shared_jit import shared_jit
from ..ppl._types import Key
from ._arguments import Arguments
from ._meshes import at_hand, on_mesh, over_devices
from ._processes import check_same, spans_processes


class Parts(NamedTuple):
    """How many draws are made on a device at a time, and over which devices they are split."""

    batch_size: int
    mesh: Mesh | None = None


class Mapped:
    """`fn(input_s, *args)` for each s of a leading axis; compiled once for all inputs and arguments of the same shapes.

    Args:
        fn: a function of a tree of values, and of `args`.
        args: an example; what is no array stays.
        mesh: devices, axes of type Auto, over all of which inputs are split; None for the one in use.
    """

    def __init__(self, fn: Callable[..., PyTree], args: tuple, mesh: Mesh | None = None) -> None:
        self._split, self._mesh = Arguments(args), mesh
        one = lambda own, arrays: fn(own, *self._split.join(arrays))
        self._run = shared_jit(over_devices(jax.vmap(one, (0, None)), mesh, (0, None), 0))

    def __call__(self, inputs: PyTree, batch_size: int, args: tuple) -> PyTree:
        """NumPy arrays with a leading axis, `batch_size` of whose entries are made on a device at a time."""
        size, out = len(jax.tree.leaves(inputs)[0]), None
        for start, part in self._parts(inputs, size, batch_size, args):
            if out is None:
                out = jax.tree.map(lambda x: np.empty((size, *x.shape[1:]), x.dtype), part)
            for into, leaf in zip(jax.tree.leaves(out), jax.tree.leaves(part), strict=True):
                into[start : start + len(leaf)] = leaf[:size]
        return out

    def _parts(
        self, inputs: PyTree, size: int, batch_size: int, args: tuple
    ) -> Iterator[tuple[int, PyTree]]:
        arrays = self._split.arrays(args)
        if spans_processes("mesh", self._mesh):
            check_same("mesh", {"keys or draws": inputs, "arguments": arrays})
        arrays = on_mesh(arrays, self._mesh)
        num = 1 if self._mesh is None else self._mesh.size
        width = num * min(batch_size, -(-size // num))
        for start in range(0, size, width):
            # The last part overlaps the one before, so that every part has one shape and compiles once; where devices have
            # more places than there are inputs, some are made twice.
            start = max(0, min(start, size - width))
            rows = slice(start, start + width) if width <= size else np.arange(width) % size
            part = on_mesh(jax.tree.map(lambda x, rows=rows: x[rows], inputs), self._mesh, 0)
            found = self._run(part, arrays)
            yield start, jax.tree.map(lambda x: np.asarray(at_hand(x)), found)


def map_keys(
    draw: Callable[..., PyTree],
    key: Key | None,
    num_samples: int,
    batch_size: int,
    args: tuple,
    each: PyTree = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """`draw(key_s, *args)` for s < num_samples; with `each`, a tree of arrays [num_samples, ...], `draw(key_s, each_s, ...)`."""
    run = Mapped(lambda own, *args: draw(*own, *args), args, mesh)
    return run(keyed(key, num_samples, batch_size, each), batch_size, args)


def keyed(key: Key | None, num_samples: int, batch_size: int, each: PyTree = None) -> tuple:
    """Inputs (key,), or (key, entry of `each`), one for each draw."""
    check_counts("draws", num_samples=num_samples, batch_size=batch_size)
    keys = jax.random.split(typed_key(key), num_samples)
    return (keys,) if each is None else (keys, each)
