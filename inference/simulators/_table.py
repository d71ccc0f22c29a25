"""Simulations that are made once and learned from: draws of parameters and data together, in rows.

A row is a draw of p(theta, x). Rows whose data are not finite, or whose simulator failed, are dropped and counted. What is left
has the law p(theta, x | x is finite). Its posteriors are those of the whole: given data that are finite, that they are tells
nothing more. Its prior is not: p(theta | x is finite) is the prior cut where simulations fail. So `amortise` learns the right
posterior from these rows, `ratio` compares them with parameters of all rows, failed ones included, and is right too, and a
likelihood learned from them would lack the factor P(x is finite | theta): `surrogate` refuses them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions.constraints import Constraint

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike, typed_key
from ...ppl._show import shown
from ...ppl._types import Key, ModelFn
from .._runs import checked
from .._supports import supports_of
from ..fitting.storage._archive import read, write
from ._coordinates import StandardCoordinates
from ._simulators import SimulatedRows, SimulatorFn, black_box, called, carrier, drawn_by

Part = Literal["training", "validation", "held out"]
_FORMAT = "lapilli simulations 1"
_SHARE, _LEAST = 0.05, 100  # of the rows that validate, and as many that are held out
_FEWEST, _JUDGED = 60, 20  # rows in all, and of those that judge: fewer tell nothing


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceTable:
    """Simulations in rows, and how they are split and scaled. Made by `reference_table`.

    Rows are split once: 5% (at least 100, or a tenth of few rows) validate what is trained, as many are held out to judge it,
    the rest train. Coordinates are standardised by the training rows.

    Attributes:
        model: the program of parameters and data. Of a simulator that is a plain function the prior, with the data as point
            masses that only a learned law or ratio can stand in for.
        args: its arguments; observations among them give shapes only.
        parameters: latent site -> [N, ...].
        data: observed site -> [N, ...].
        failed: latent site -> [F, ...], parameters of the simulations that were dropped.
        reason: why the first of them was; "" where there is none.
    """

    model: ppl.Program
    args: tuple
    parameters: Mapping[str, np.ndarray]
    data: Mapping[str, np.ndarray]
    failed: Mapping[str, np.ndarray]
    reason: str = ""

    def __post_init__(self) -> None:
        _check_rows(self)

    @property
    def num_simulations(self) -> int:
        """N, those that can be learned from."""
        return len(next(iter(self.parameters.values())))

    @property
    def num_failed(self) -> int:
        """F, those that were dropped."""
        return len(next(iter(self.failed.values()), ()))

    @functools.cached_property
    def parts(self) -> dict[Part, np.ndarray]:
        """Numbers of the rows of each part, in an order that does not depend on that of the table."""
        size = self.num_simulations
        few = max(int(_SHARE * size), min(_LEAST, max(_JUDGED, size // 10)))
        order = np.random.default_rng(0).permutation(size)
        return {
            "validation": order[:few],
            "held out": order[few : 2 * few],
            "training": order[2 * few :],
        }

    def rows(self, part: Part) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Parameters and data of one part.

        Args:
            part: "training", "validation" or "held out".
        """
        take = lambda values: {name: x[self.parts[part]] for name, x in values.items()}
        return take(self.parameters), take(self.data)

    @functools.cached_property
    def coordinates(self) -> tuple[StandardCoordinates, StandardCoordinates]:
        """Of parameters, unconstrained, and of data; both standardised by the training rows."""
        parameters, data = self.rows("training")
        supports = self.supports("ReferenceTable", list(parameters))
        self._check_supports(supports)
        return StandardCoordinates.of(parameters, supports), StandardCoordinates.of(data, {})

    def supports(self, caller: str, names: Sequence[str]) -> dict[str, Constraint]:
        """The supports of latent sites, the same at every draw.

        Args:
            caller: who asks, for messages.
            names: of the sites.

        Raises:
            ValueError: one that depends on another draw.
        """
        values = {name: jnp.asarray(self.parameters[name][0]) for name in names}
        return supports_of(caller, self.model, self.args, values)

    def _check_supports(self, supports: Mapping) -> None:
        for name, support in supports.items():
            inside = np.asarray(support(jnp.asarray(self.parameters[name])))
            if not inside.all():
                wrong = int((~inside).reshape(self.num_simulations, -1).any(1).sum())
                raise ValueError(
                    f"ReferenceTable: parameters of site '{name}' lie outside of its prior's support in {wrong} of "
                    f"{self.num_simulations} rows. Draw them from the model's prior, or give the model that they come from."
                )

    def save(self, path: str | os.PathLike) -> None:
        """Write parameters and data to one file, whole or not at all; the program is code and is given again to `load`.

        Args:
            path: where.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
        """
        groups = {"parameters": self.parameters, "data": self.data, "failed": self.failed}
        arrays = {f"{g}/{n}": x for g, values in groups.items() for n, x in values.items()}
        write(path, {"format": _FORMAT, "reason": self.reason}, arrays)

    @classmethod
    def load(
        cls, path: str | os.PathLike, model: ModelFn, args: tuple | None = None
    ) -> ReferenceTable:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the program, or the prior of a simulator that is a function, as given to `reference_table`.
            args: its arguments, likewise.

        Raises:
            OSError: it cannot be read.
            ValueError: the file is none of `save`, or the program has other sites.
        """
        header, arrays = read(path, "simulations", _FORMAT)
        groups: dict[str, dict[str, np.ndarray]] = {"parameters": {}, "data": {}, "failed": {}}
        for name, x in arrays.items():
            group, _, site = name.partition("/")
            groups[group][site] = x
        program, args = ppl.as_program(model), () if args is None else args
        shapes = {name: x.shape[1:] for name, x in groups["data"].items()}
        trace = program.simulate(jax.random.key(0), *args)
        if not trace.observed:
            program, args = carrier(program, args, shapes), _zeros(shapes)
            trace = program.simulate(jax.random.key(0), *args)
        same = lambda values, stored: (
            {n: np.shape(x) for n, x in values.items()}
            == {n: x.shape[1:] for n, x in stored.items()}
        )
        if not (same(trace.choices, groups["parameters"]) and same(trace.observed, groups["data"])):
            raise ValueError(
                f"ReferenceTable.load: the file holds parameters {list(groups['parameters'])} and data {shapes}, and {program!r} "
                f"has {list(trace.choices)} and { {n: np.shape(x) for n, x in trace.observed.items()} }. Give the program and "
                "the arguments that they were simulated with."
            )  # fmt: skip
        return cls(program, args, **groups, reason=str(header["reason"]))

    def _facts(self) -> dict[str, PyTree]:
        sizes = {part: len(rows) for part, rows in self.parts.items()}
        dropped = f"{self.num_failed} of {self.num_failed + self.num_simulations}, dropped"
        return {
            "simulations": f"{self.num_simulations}, of which {sizes['training']} train, "
            f"{sizes['validation']} validate, {sizes['held out']} judge",
            "parameters": {n: x[0] for n, x in self.parameters.items()},
            "data": {n: x[0] for n, x in self.data.items()},
            "failed": f"{dropped}: {self.reason}" if self.num_failed else "none",
            "prior": "cut where simulations fail, see reference_table" if self.num_failed else None,
        }


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
        batch_size: simulations that run at once in a compiled loop.
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
    check_counts("reference_table", _FEWEST, num_simulations=num_simulations)
    check_counts("reference_table", 0, num_workers=num_workers)
    check_counts("reference_table", batch_size=batch_size)
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
        return _table(program, args, drawn)
    prior = lambda key: dict(program.simulate(key, *args).choices)
    if loop == "compiled":
        drawn = drawn_by(lambda k: called(simulator, prior, k), key, num_simulations, batch_size)
    else:
        parameters = drawn_by(lambda k: (prior(k), {}), key, num_simulations, batch_size)
        drawn = black_box(simulator, parameters.parameters, key, num_workers, progress)
    shapes = {name: x.shape[1:] for name, x in drawn.data.items()}
    return _table(carrier(program, args, shapes), _zeros(shapes), drawn)


def _zeros(shapes: Mapping[str, tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(shape, np.float32) for shape in shapes.values())


def _joint(program: ppl.Program, key: Key, args: tuple) -> tuple[dict, dict]:
    trace = program.predict_trace(key, {}, *args)
    return dict(trace.choices), dict(trace.observed)


def _table(program: ppl.Program, args: tuple, drawn: SimulatedRows) -> ReferenceTable:
    """The table of the draws that are finite."""
    groups = (drawn.parameters, drawn.data)
    size = len(drawn.failed)
    finite = np.ones(size, bool)
    for values in groups:
        for x in values.values():
            finite &= np.isfinite(np.asarray(x, float).reshape(size, -1)).all(1)
    fine = finite & ~drawn.failed
    if not fine.any():
        raise ValueError(
            f"reference_table: all {size} simulations failed, the first one: {drawn.reason or 'its data are not finite'}. Mend "
            "the simulator, or a prior that draws what it cannot take."
        )
    # JAX sorts names; what follows reads them in the order of the program.
    known = list(program.simulate(jax.random.key(0), *args).sites)
    order = lambda values: {n: values[n] for n in sorted(values, key=known.index)}
    reason = drawn.reason or ("" if finite.all() else "data that are not finite")
    take = lambda values, rows: {name: np.asarray(x)[rows] for name, x in values.items()}
    return ReferenceTable(
        program, args, take(order(drawn.parameters), fine), take(order(drawn.data), fine),
        take(order(drawn.parameters), ~fine), reason,
    )  # fmt: skip


def _check_model(program: ppl.Program, args: tuple, *, has_simulator: bool) -> None:
    trace = program.simulate(jax.random.key(0), *args)
    sites = trace.sites.items()
    factors = [n for n, s in sites if s.kind == "factor" and s.alters_law]
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


def _check_rows(table: ReferenceTable) -> None:
    values: list[ArrayLike] = [*table.parameters.values(), *table.data.values()]
    sizes = {np.shape(x)[:1] for x in values}
    if not table.parameters or not table.data or len(sizes) != 1 or next(iter(sizes)) < (_FEWEST,):
        raise ValueError(
            f"ReferenceTable: parameters {list(table.parameters)} and data {list(table.data)} have {sorted(sizes)} rows. Give "
            f"one number of rows to all, at least {_FEWEST} that did not fail."
        )
