"""Single runs under the engine, for initialisation and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ._compat import fresh_caches, typed_key
from ._engine import Engine
from ._evaluate import evaluate
from ._params import ParamCollector, Params


def init_params(run: Callable[[], Any], key: Any, strategies: Mapping[str, Any] | str | None = None) -> Params:
    """Initial unconstrained parameters of every param and module statement met in `run`."""
    collector = ParamCollector()
    with fresh_caches(), collector, Engine(typed_key(key), strategies, exploring=True):
        run()
    return collector.unconstrained()


def run_once(
    fn: Callable[[Any], Any], params: Any, key: Any, strategies: Mapping[str, Any] | str | None = None
) -> Any:
    """`fn(params)` with its draws made once, without gradients; compiled."""

    def run(params: Any, key: jax.Array) -> Any:
        with fresh_caches(), Engine(key, strategies):
            return fn(params)

    closed, shapes = jax.make_jaxpr(run, return_shape=True)(params, typed_key(key))
    inputs = [*jax.tree.leaves(params), typed_key(key)]
    outs = jax.jit(lambda inputs: evaluate(closed, inputs, {}))(inputs)
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def plate_sizes(
    fn: Callable[[Any], Any], params: Any, strategies: Mapping[str, Any] | str | None = None
) -> dict[str, int]:
    """The plates met in `fn(params)` with their numbers of rows, by abstract evaluation."""
    found: dict[str, int] = {}

    def run(params: Any) -> Any:
        engine = Engine(jax.random.key(0), strategies)
        with fresh_caches(), engine:
            out = fn(params)
        found.update(engine.plates)
        return out

    jax.eval_shape(run, params)
    return found
