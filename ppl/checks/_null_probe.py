"""Trying whether parameters move probabilities that are 0 where they stand (`distributions/_null_values.py`)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._compat import ClosedJaxpr, Var
from ..analysis import Analysed
from ..distributions import LIMIT, alarm
from ..evaluation import evaluate
from ..strategies import StrategyError
from ._probe_inputs import COMPILER_OPTIONS, Inputs, inputs_of


def try_null_values(program: Analysed, params: list[PyTree], data: list[PyTree]) -> None:
    """Raise if one of these parameters moves a probability that is 0, at a site whose strategy misses that value.

    Args:
        program: the program, analysed with its data as inputs.
        params: leaves of the parameters.
        data: leaves of the data.

    Raises:
        StrategyError: naming site, strategy and remedy.
        ValueError: the same for a program that is eliminated.
    """
    suspects: dict[int | str, Any]
    suspects = {i: n.probabilities for i, n in program.numbers.items() if n.probabilities}
    if program.alarmed:
        suspects[", ".join(sorted(program.alarmed))] = [program.result]

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def alarms(consts: list[PyTree], inputs: tuple[PyTree, ...]) -> list[jax.Array]:
        """The largest derivative of each suspect's alarm."""
        closed, inputs = ClosedJaxpr(program.closed.jaxpr, consts), Inputs(*inputs)

        def largest(suspect: int | str, atoms: tuple[Var, ...]) -> jax.Array:
            def one(params: list[Array]) -> jax.Array:
                found = evaluate(closed, inputs._replace(params=params).leaves, {}, atoms)
                return found[0] if isinstance(suspect, str) else alarm(found)

            slopes = [jnp.abs(g).max(initial=0.0) for g in jax.grad(one)(inputs.params)]
            return functools.reduce(jnp.maximum, slopes, jnp.zeros(()))

        return [largest(*suspect) for suspect in suspects.items()]

    with jax.ensure_compile_time_eval():
        inputs = inputs_of(params, data, program.closed)
        sizes = alarms(program.closed.consts, (inputs.params, inputs.data, inputs.key))
    for index, size in zip(suspects, sizes, strict=True):
        if not np.asarray(size) > LIMIT:  # NaN has other causes
            continue
        if isinstance(index, str):
            raise ValueError(
                f"{index}: at these parameters a value of an eliminated site has probability exactly 0, and a parameter moves "
                "that probability. The logarithm of the sum does not see it, and the gradient would lack that part. Keep "
                "probabilities strictly inside, e.g. by logits."
            )
        site = program.sites[index]
        raise StrategyError(
            site.name,
            f"Site '{site.address}': at these parameters a value of {site.distribution} has probability exactly 0, and a "
            f"parameter moves that probability. Strategy '{site.strategy.name}' never sees what the value would cost, and "
            "its gradient would lack that part. Use 'enum' or 'mvd', which evaluate the cost there, or keep probabilities "
            "strictly inside, e.g. by logits.",
        )
