"""Programs that give another value each time they are run: NumPy's and Python's random numbers inside.

They are drawn when a program is traced, and stay as they are in what is compiled: each trace is another program. Whether the
state of these generators has moved is seen at once; what moved it may be another thread, so that the program is then traced twice
and its numbers are compared. Parameters count as given: a start may be drawn in any way.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._compat import no_handlers
from .._types import ModelFn
from ..inputs import same_numbers
from ..traces import stand_ins

_looking = threading.local()


@contextlib.contextmanager
def repeatable(
    program: ModelFn, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> Iterator[None]:
    """A context for a run of a program, which is refused where it draws from generators outside of it."""
    if getattr(_looking, "is_on", False):
        yield
        return
    before = _states()
    yield
    if _states() != before:
        refuse_unrepeatable(program, args, kwargs)


def refuse_unrepeatable(
    program: ModelFn, args: tuple[Array | np.ndarray, ...], kwargs: dict[str, PyTree]
) -> None:
    """Refuse a program whose numbers differ from trace to trace.

    Raises:
        ValueError: they do.
    """
    key, outer = jax.random.key(0), getattr(_looking, "is_on", False)

    def traced(params: PyTree) -> PyTree:
        def run(
            params: PyTree,
        ) -> PyTree:  # a function of its own each time: JAX keeps the trace of one that it knows
            with stand_ins():
                trace = program.bind(params).simulate(key, *args, **kwargs)
            return trace.log_probs, trace.choices, trace.deterministic

        return jax.make_jaxpr(run)(params)

    _looking.is_on = True
    try:
        with no_handlers():
            params = jax.eval_shape(lambda: program.init(key, *args, **kwargs))
            one, other = traced(params), traced(params)
    finally:
        _looking.is_on = outer
    if not same_numbers(one, other):
        raise ValueError(
            f"{program!r} gives another value each time it is run: it draws random numbers that do not come from its run, as "
            "np.random and Python's random do. They are drawn once, when it is traced, and are no noise. Draw noise from "
            "ppl.rng_key(name), or make it a site; what is to stay as it is, draw outside of the program and pass as an array."
        )


def _states() -> tuple[PyTree, ...]:
    _, key, *more = np.random.get_state()
    return key.tobytes(), *more, random.getstate()  # pyright: ignore[reportAttributeAccessIssue]
