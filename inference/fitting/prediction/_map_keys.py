"""A function of a key for many keys: some at a time on the device, results on the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree

from ....ppl._checks import check_counts
from ....ppl._compat import typed_key
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from ..._arguments import Arguments


class MappedKeys:
    """`draw(key_s, *args)` for s < num_samples; compiled once for all arguments of the same shapes.

    Args:
        draw: a function of a key, of a tree of values of its own if there are such, and of `args`.
        args: an example; what is no array stays.
    """

    def __init__(self, draw: Callable, args: tuple) -> None:
        self._split = split = Arguments(args)
        one = lambda k, own, arrays: draw(k, *own, *split.join(arrays))
        self._run = shared_jit(jax.vmap(one, (0, 0, None)))

    def __call__(
        self,
        key: Key | None,
        num_samples: int,
        batch_size: int,
        args: tuple,
        each: dict[str, PyTree] | np.ndarray | None = None,
    ) -> PyTree:
        """The draws with a leading axis, NumPy arrays; with `each`, a tree of arrays [num_samples, ...], of its entries."""
        check_counts("draws", num_samples=num_samples, batch_size=batch_size)
        batch_size, arrays = min(batch_size, num_samples), self._split.arrays(args)
        keys = jax.random.split(typed_key(key), num_samples)
        own = () if each is None else (each,)
        parts = []
        for start in range(0, num_samples, batch_size):
            # The last part overlaps the one before, so that every part has one shape and compiles once.
            start = min(start, num_samples - batch_size)
            cut = slice(start, start + batch_size)
            own_part = jax.tree.map(lambda x, cut=cut: x[cut], own)
            part = jax.tree.map(np.asarray, self._run(keys[cut], own_part, arrays))
            parts.append((start, part))
        trees = [part for _, part in parts]
        return jax.tree.map(lambda *leaves: _join(num_samples, parts, leaves), *trees)


def map_keys(
    draw: Callable,
    key: Key | None,
    num_samples: int,
    batch_size: int,
    args: tuple,
    each: dict[str, np.ndarray] | np.ndarray | None = None,
) -> PyTree:
    """`MappedKeys` for one tuple of arguments."""
    return MappedKeys(draw, args)(key, num_samples, batch_size, args, each)


def _join(num_samples: int, parts: list, leaves: tuple) -> np.ndarray:
    out = np.empty((num_samples, *leaves[0].shape[1:]), leaves[0].dtype)
    for (start, _), leaf in zip(parts, leaves, strict=True):
        out[start : start + len(leaf)] = leaf
    return out
