"""Initial parameters of a program, and single runs that are compiled."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from .._compat import is_concrete, own_caches, typed_key
from .._shared_jit import shared_jit
from .._types import Key
from ..evaluation import evaluate
from ._params import ParamCollector, Params, check_initial
from ._recorder import Recorder


def init_params(
    run: Callable[..., PyTree], key: Key, recorder: Callable[[jax.Array], Recorder]
) -> Params:
    """Initial unconstrained parameters of every param and module statement met in `run` under an exploring recorder.

    Raises:
        ValueError: an initial value outside its constraint.
    """

    def initial(key: jax.Array) -> PyTree:
        collector = ParamCollector()  # holds tracers, and ends with the trace
        with own_caches(), collector, recorder(key):
            run()
        return collector.unconstrained()

    params = compiled(initial, typed_key(key))
    return check_initial(params) if is_concrete(params) else params


def compiled(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fn(*args)` compiled as one program, site markers removed; what the result does not need is not run."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    outs = shared_jit(lambda inputs: evaluate(closed, inputs, {}))(jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)
