"""Random numbers of a program's own, where a program is run as it stands: its parameters may not be bound yet.

A network that is declared without being bound begins at random, by a key of its own, and that is no noise: the program is traced
again with its parameters as inputs, and judged then.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jaxtyping import PyTree

from ...ppl._compat import ClosedJaxpr
from ...ppl._types import Key
from ...ppl.inputs import own_noise, refuse_own_noise
from ...ppl.language import Program
from ...ppl.traces import stand_ins
from .._arguments import Arguments


def check_noise(
    method: str, program: Program, args: tuple, closed: ClosedJaxpr, is_key: Sequence[bool]
) -> None:
    """Refuse a program that draws from a key which is not its run's.

    Args:
        method: who asks.
        program: the program.
        args: its arguments.
        closed: a trace of it.
        is_key: by input of the trace, whether it is a key of the run.

    Raises:
        ValueError: with the line.
    """
    if not own_noise(closed, is_key):
        return
    if isinstance(program, Program):
        key, split = jax.random.key(0), Arguments(args)
        arrays = split.arrays(args)
        init = lambda key, arrays: program.init(key, *split.join(arrays))
        params = jax.eval_shape(init, key, arrays)

        def run(params: PyTree, key: Key, arrays: list[PyTree]) -> PyTree:
            trace = program.bind(params).simulate(key, *split.join(arrays))
            return trace.log_probs, trace.choices, trace.deterministic

        if jax.tree.leaves(params):
            with stand_ins():
                closed = jax.make_jaxpr(run)(params, key, arrays)
            is_key = [False] * len(jax.tree.leaves(params)) + [True] + [False] * len(arrays)
    refuse_own_noise(method, closed, is_key)
