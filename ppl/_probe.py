"""Single runs under the engine, for initialisation and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ._compat import is_concrete, own_caches, typed_key
from ._engine import Engine
from ._evaluate import evaluate
from ._params import ParamCollector, Params, check_initial
from ._recorder import Recorder


def init_params(
    run: Callable[[], Any], key: Any, recorder: Callable[[jax.Array], Recorder]
) -> Params:
    """Initial unconstrained parameters of every param and module statement met in `run` under an exploring recorder.

    Raises:
        ValueError: an initial value outside its constraint.
    """
    collector = ParamCollector()

    def initial(key: jax.Array) -> Any:
        with own_caches(), collector, recorder(key):
            run()
        return collector.unconstrained()

    params = compiled(initial, typed_key(key))
    return check_initial(params) if is_concrete(params) else params


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


def compiled(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)` compiled as one program, site markers removed; what the result does not need is not run."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    outs = jax.jit(lambda inputs: evaluate(closed, inputs, {}))(jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


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
