"""Modules of Flax NNX as parameters: a copy for each run of the program, whose state and random numbers stay in the run.

NNX modules are changed in place: batch statistics when they are called, counters when a key is drawn. A program is replayed, so
that what a run changes has to end with it. The module that was declared is never touched.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpyro
from jaxtyping import PyTree

from ._rng_key import rng_key


def declare(name: str, module: object) -> Any:
    """A copy of the `nnx.Module` with the parameter `name` in the place of its floating-point `nnx.Param`."""
    import equinox as eqx
    from flax import nnx

    learned = lambda _, variable: (
        isinstance(variable, nnx.Param)
        and all(map(eqx.is_inexact_array, jax.tree.leaves(variable)))
    )
    definition, params, rest = nnx.split(module, learned, ...)
    arrays: PyTree = numpyro.param(name, lambda _: nnx.to_pure_dict(params))
    copy = nnx.merge(definition, nnx.State(arrays), rest, copy=True)
    for path, node in nnx.iter_graph(copy):
        if type(node) is nnx.RngStream:
            _follow_run(node, ".".join([name, *map(str, path)]))
    return copy


def _follow_run(stream: Any, address: str) -> None:
    # In place: the stream may stand in a list, or in several places of the module. Without key and count, what reads them past
    # __call__ fails in place of drawing the same noise again and again.
    object.__setattr__(stream, "__class__", _run_stream())
    del stream.key, stream.count
    stream.address, stream.num_drawn = address, 0


@functools.cache
def _run_stream() -> type:
    """The class of a stream whose keys are those of the run, `ppl.rng_key`, where they are drawn.

    Keys that the module came with would be constants of the program: the same noise at each step of a fit.
    """
    from flax import nnx

    class RunStream(nnx.RngStream):
        address: str | None = None  # none of a stream that was made of a key, by a split or a fork

        def __call__(self) -> jax.Array:
            if self.address is None:
                return super().__call__()
            self.num_drawn += 1
            return rng_key(f"{self.address}:{self.num_drawn}")

    return RunStream
