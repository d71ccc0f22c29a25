"""Reference tables from programs and from plain functions."""

from __future__ import annotations

import os
from typing import Literal

import jax

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._types import Key, ModelFn
from .._simulated import altering_factors
from ..inputs import checked
from ._black_box import BlackBox
from ._simulators import (
    DataFn,
    SimulatedRows,
    SimulatorFn,
    called,
    carrier,
    check_traced,
    data_by,
    data_of,
    drawn_by,
    named,
    zeros_of,
)
from ._table import FEWEST, ReferenceTable, sorted_rows


@checked_call
def reference_table(
    model: ModelFn,
    args: tuple | None = None,
    *,
    simulator: SimulatorFn | None = None,
    num_simulations: int = 10_000,
    key: Key | None = None,
    loop: Literal["compiled", "python"] = "compiled",
    num_workers: int = 0,
    batch_size: int = 1_000,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> ReferenceTable:
    """Simulations of a program, or of a prior and a plain function, drawn once: what `amortise`, `ratio`, `surrogate` learn from.

    Args:
        model: a program with observations, which are drawn with the latent sites; one without a density observes a point mass,
            see `inference.sleep`. With `simulator`, the prior alone.
        args: its arguments; observations in them give shapes only.
        simulator: `(key, parameters) -> data`, a function of the latent sites by name: data by name, or one array, which is then
            called "x". With loop="python" its first argument is a `numpy.random.Generator` of its own for each simulation.
        num_simulations: how many are drawn, those that fail included.
        key: PRNG key; default `jax.random.key(0)`.
        loop: "compiled" traces the simulator once and runs it on the device; "python" calls it with NumPy's numbers.
        num_workers: processes that call it, for loop="python"; 0 calls it in this one. The numbers do not depend on it. Workers
            are started afresh and import the function, so that it must stand in a module (and a script needs
            `if __name__ == "__main__":`).
        batch_size: simulations that run at once in a compiled loop, or that are kept together.
        folder: where batches of a Python loop are kept as they are done. The same call after it was stopped goes on behind them,
            to the same table; files belong to one simulator (its source and state, not what it calls), prior and key.
        progress: show a bar, for loop="python".

    Returns:
        A `ReferenceTable`.

    Raises:
        ValueError: the model observes nothing, has a factor, missing cells or a parameter to be learned; the prior of a
            `simulator` observes something; all simulations fail; data have other shapes from one to the next.

    Validity: simulations that raise (of a Python loop) or are not finite are dropped and counted. Posteriors learned from the
    rest are right for data that are finite, whose simulations cannot have failed; the prior of the rows is cut there.

    Example:
        >>> import numpy as np, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> prior = lambda: ppl.sample("rate", dist.Gamma(2.0, 1.0))
        >>> def counts(rng, parameters):
        ...     return rng.poisson(parameters["rate"], size=5)
        >>> table = inference.simulators.reference_table(
        ...     prior, simulator=counts, loop="python", num_simulations=100, progress=False
        ... )
        >>> table.data["x"].shape
        (100, 5)

    Reference: the name is that of approximate Bayesian computation, Marin et al. 2012, arXiv:1101.0955.
    """
    check_counts("reference_table", FEWEST, num_simulations=num_simulations)
    check_counts("reference_table", 0, num_workers=num_workers)
    check_counts("reference_table", batch_size=batch_size)
    if folder is not None and (simulator is None or loop == "compiled"):
        raise ValueError(
            "reference_table: folder= keeps batches of loop='python', and compiled simulations are cheap to draw again. Leave it "
            "out, and use ReferenceTable.save."
        )
    args = checked(reference_table, model, () if args is None else args, {})
    program = ppl.as_program(model)
    key = jax.random.key(0) if key is None else typed_key(key)
    _check_model(program, args, has_simulator=simulator is not None)
    if simulator is None:
        if loop == "python":
            raise ValueError(
                "reference_table: loop='python' is for a simulator that is a plain function, and none is given. Pass "
                "simulator=, or leave loop out: a program is compiled."
            )
        drawn = drawn_by(lambda k: _joint(program, k, args), key, num_simulations, batch_size)
        return _table(program, args, drawn, data_of(program, args, batch_size))
    prior = lambda key: dict(program.simulate(key, *args).choices)
    if loop == "compiled":
        check_traced(simulator, prior)
        drawn = drawn_by(lambda k: called(simulator, prior, k), key, num_simulations, batch_size)
        again = data_by(lambda key, values: named(simulator(key, values)), batch_size)
    else:
        parameters = drawn_by(lambda k: (prior(k), {}), key, num_simulations, batch_size)
        again = BlackBox(simulator, num_workers, batch_size, folder, progress)
        drawn = again(parameters.parameters, key)
    shapes = {name: x.shape[1:] for name, x in drawn.data.items()}
    return _table(carrier(program, args, shapes), zeros_of(shapes), drawn, again)


def _joint(program: ppl.Program, key: Key, args: tuple) -> tuple[dict, dict]:
    trace = program.predict_trace(key, {}, *args)
    return dict(trace.choices), dict(trace.observed)


def _table(
    program: ppl.Program, args: tuple, drawn: SimulatedRows, simulate: DataFn
) -> ReferenceTable:
    """The table of the draws that are finite."""
    parameters, data, failed, reason = sorted_rows(program, args, drawn)
    if not len(next(iter(parameters.values()))):
        raise ValueError(
            f"reference_table: all {len(drawn.failed)} simulations failed, the first one: {reason}. Mend the simulator, or a "
            "prior that draws what it cannot take."
        )
    return ReferenceTable(program, args, parameters, data, failed, reason, simulate)


def _check_model(program: ppl.Program, args: tuple, *, has_simulator: bool) -> None:
    trace = program.simulate(jax.random.key(0), *args)
    sites = trace.sites.items()
    factors = altering_factors(trace.sites)
    cells = [n for n, s in sites if s.is_imputed or s.is_masked]
    if factors or cells:
        raise ValueError(
            f"reference_table: sites {factors + cells} of {program!r} are factors or have masks, and simulations are draws of "
            "whole data. Simulate complete data without factors; missing cells belong to the program that a surrogate serves."
        )
    if not trace.choices:
        raise ValueError(
            f"reference_table: {program!r} has no latent site, so that there is nothing to infer. Draw its parameters by "
            "ppl.sample."
        )
    if has_simulator and trace.observed:
        raise ValueError(
            f"reference_table: {program!r} observes {list(trace.observed)}, and a simulator makes the data. Give the prior "
            "alone, or leave simulator out."
        )
    if not has_simulator and not trace.observed:
        raise ValueError(
            f"reference_table: {program!r} observes nothing. Pass data of the right shape as its arguments (their values are not "
            "used), or the simulator as a function, simulator=."
        )
