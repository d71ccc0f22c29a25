"""Single runs under the engine, for reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from .._compat import own_caches, typed_key
from .._types import Key
from ..strategies import Engine
from ..traces import compiled


def run_once(
    fn: Callable[[PyTree], PyTree],
    params: PyTree,
    key: Key,
    strategies: Mapping[str, object] | str | None = None,
) -> Any:
    """`fn(params)` with its draws made once, without gradients; compiled."""

    def run(params: PyTree, key: jax.Array) -> PyTree:
        with own_caches(), Engine(key, strategies):
            return fn(params)

    return compiled(run, params, typed_key(key))


def plate_sizes(
    run: Callable[..., PyTree], strategies: Mapping[str, object] | str | None = None
) -> dict[str, int]:
    """The plates met in `run()` with their numbers of rows, by abstract evaluation at initial parameters."""
    found: dict[str, int] = {}

    def abstract(key: jax.Array) -> None:
        engine = Engine(key, strategies)
        with own_caches(), engine:
            run()
        found.update(engine.plates)

    jax.eval_shape(abstract, jax.random.key(0))
    return found
