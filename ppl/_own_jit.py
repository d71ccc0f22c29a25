"""A jit whose compiled programs end with the object that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._types import Key


class OwnJit:
    """`fn` compiled: arrays among the leaves of its arguments are traced, all else is static and hashable.

    `equinox.filter_jit` does the same with one cache for all functions of a name, which holds each function, and what it closes
    over, until `jax.clear_caches()`. Here each function has its own.
    """

    def __init__(self, fn: Callable[..., PyTree]) -> None:
        self._fn = fn
        self._runs: dict[Any, Any] = {}

    def __call__(self, *args: PyTree) -> Any:
        leaves, tree = jax.tree.flatten(args)
        arrays = [x for x in leaves if _is_array(x)]
        static = tuple(None if _is_array(x) else (type(x), x) for x in leaves)
        if (tree, static) not in self._runs:
            self._runs[tree, static] = self._of(tree, static)
        return self._runs[tree, static](arrays)

    def _of(self, tree: PyTree, static: tuple[Any, ...]) -> PyTree:
        fn = self._fn

        def run(arrays: list[Key]) -> PyTree:
            rest = iter(arrays)
            leaves = [next(rest) if known is None else known[1] for known in static]
            return fn(*jax.tree.unflatten(tree, leaves))

        run.__name__ = run.__qualname__ = getattr(fn, "__name__", "run")
        return jax.jit(run)


def _is_array(x: object) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)
