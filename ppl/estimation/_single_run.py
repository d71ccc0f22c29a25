"""Single runs under the engine, for reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._compat import own_caches, typed_key
from ..strategies import Engine
from ..traces import compiled


def run_once(
    fn: Callable[[Any], Any],
    params: Any,
    key: Any,
    strategies: Mapping[str, Any] | str | None = None,
) -> Any:
    """`fn(params)` with its draws made once, without gradients; compiled."""

    def run(params: Any, key: jax.Array) -> Any:
        with own_caches(), Engine(key, strategies):
            return fn(params)

    return compiled(run, params, typed_key(key))


def plate_sizes(
    run: Callable[[], Any], strategies: Mapping[str, Any] | str | None = None
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
