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
from ...ppl._show import shown
from ...ppl._types import Key, ModelFn
from .._supports import supports_of
from ..fitting.storage import (
    as_skeleton,
    check_same,
    from_skeleton,
    read,
    structure_of,
    versions,
    write,
)
from ._coordinates import StandardCoordinates
from ._normal_scores import has_few_values
from ._region import TruncatedPrior
from ._simulators import (
    DataFn,
    SimulatedRows,
    Values,
    carrier,
    data_of,
    is_carrier,
    on_host,
    zeros_of,
)

Part = Literal["training", "validation", "held out"]
_FORMAT = "lapilli simulations 1"
_GROUPS = ("parameters", "data", "failed")
_SHARE, _LEAST = 0.05, 100  # of the rows that validate, and as many that are held out
FEWEST, _JUDGED = 60, 20  # rows in all, and of those that judge: fewer tell nothing


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
        simulate: (parameters in rows, key) -> their data in rows; None where nothing is known to make others: rows that were
            given, or read from a file and simulated by a plain function.
        region: what the prior of the rows is cut to; None where it is whole.
    """

    model: ppl.Program
    args: tuple
    parameters: Mapping[str, np.ndarray]
    data: Mapping[str, np.ndarray]
    failed: Mapping[str, np.ndarray]
    reason: str = ""
    simulate: DataFn | None = None
    region: TruncatedPrior | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", ppl.as_program(self.model))
        for group in _GROUPS:
            rows = dict(getattr(self, group))
            own = {n: on_host(f"ReferenceTable: {group} '{n}'", x) for n, x in rows.items()}
            object.__setattr__(self, group, own)
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

    def rows(
        self, part: Part, turn: int = 0
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Parameters and data of one part.

        Args:
            part: "training", "validation" or "held out".
            turn: of several trainings which: rows that are not held out take turns at validating, as many at a time.
        """
        few = len(self.parts["validation"])
        numbers = self.parts[part]
        if turn and part != "held out":
            taken = np.concatenate([self.parts["validation"], self.parts["training"]])
            turned = np.roll(taken, -turn * few)
            numbers = turned[:few] if part == "validation" else turned[few:]
        take = lambda values: {name: x[numbers] for name, x in values.items()}
        return take(self.parameters), take(self.data)

    @functools.cached_property
    def coordinates(self) -> tuple[StandardCoordinates, StandardCoordinates]:
        """Of parameters, unconstrained, and of data; both standardised by the training rows."""
        parameters, data = self.rows("training")
        supports = self.supports("ReferenceTable", list(parameters))
        self._check_supports(supports)
        found = StandardCoordinates.of(parameters, supports), StandardCoordinates.of(data, {})
        for name in (n for n, support in supports.items() if not support.is_discrete):
            # Without the entries that a support fixes, e.g. of a triangle.
            free = np.asarray(found[0].part(name, parameters[name]))
            check_continuous("ReferenceTable", name, free)
        return found

    @functools.cached_property
    def ends(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Observed site -> the least and the largest of each number of its data in all rows."""
        of = lambda x: (np.asarray(x.min(0), float), np.asarray(x.max(0), float))
        return {name: of(x) for name, x in self.data.items()}

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

    def within(self, region: TruncatedPrior, parameters: Values, key: Key) -> ReferenceTable:
        """The rows that lie in a region, and simulations of other parameters there.

        Args:
            region: a part of the one that the rows are of.
            parameters: draws of the prior in it, by site in rows.
            key: PRNG key.
        """
        assert self.simulate is not None
        *found, reason = sorted_rows(self.model, self.args, self.simulate(parameters, key))
        inside = region.holds(self.parameters)
        own = [(self.parameters, inside), (self.data, inside)]
        own += [(self.failed, region.holds(self.failed) if self.failed else inside)]
        kept, data, failed = (
            {n: np.concatenate([x[rows], new[n]]) for n, x in values.items()}
            for (values, rows), new in zip(own, found, strict=True)
        )
        reason = self.reason or reason
        return dataclasses.replace(
            self, parameters=kept, data=data, failed=failed, region=region, reason=reason
        )

    def _check_supports(self, supports: Mapping) -> None:
        for name, support in supports.items():
            inside = np.asarray(support(jnp.asarray(self.parameters[name])))
            if not inside.all():
                wrong = int((~inside).reshape(self.num_simulations, -1).any(1).sum())
                raise ValueError(
                    f"ReferenceTable: parameters of site '{name}' lie outside of its prior's support in {wrong} of "
                    f"{self.num_simulations} rows. Draw them from the model's prior, or give the model that they come from."
                )

    @checked_call
    def save(self, path: str | os.PathLike) -> None:
        """Write parameters and data to one file, whole or not at all; the program is code and is given again to `load`.

        Args:
            path: where.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
            ValueError: the rows are of a prior that is cut to a region, which a file cannot hold.
        """
        if self.region is not None:
            raise ValueError(
                "ReferenceTable.save: the rows are draws of the prior cut to where one posterior can be, and a file would not "
                "say so. Save the table that the rounds began with."
            )
        header, arrays = packed_table(self)
        write(path, {"format": _FORMAT, **header}, arrays)

    @classmethod
    @checked_call
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
            ValueError: the file is none of `save`, or belongs to another program, each difference named.
        """
        header, arrays = read(path, "simulations", _FORMAT)
        method = "ReferenceTable.load"
        return unpacked_table(method, os.fspath(path), header, arrays, model, args)

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
            "region": "parameters that one posterior can have, see amortise"
            if self.region
            else None,
        }


def sorted_rows(
    program: ppl.Program, args: tuple, drawn: SimulatedRows
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """Parameters and data of the rows that did not fail, parameters of those that did, and why the first did; "" if none."""
    size = len(drawn.failed)
    finite = np.ones(size, bool)
    for x in [*drawn.parameters.values(), *drawn.data.values()]:
        with np.errstate(over="ignore"):  # what a device makes infinite is not finite
            known = np.asarray(x).astype(jnp.result_type(float))
        finite &= np.isfinite(known.reshape(size, -1)).all(1)
    fine = finite & ~drawn.failed
    reason = drawn.reason or ("" if finite.all() else "data that are not finite")
    # JAX sorts names; what follows reads them in the order of the program.
    known = list(program.simulate(jax.random.key(0), *args).sites)
    take = lambda values, rows: {
        n: np.asarray(values[n])[rows] for n in sorted(values, key=known.index)
    }
    failed = take(drawn.parameters, ~fine)
    return take(drawn.parameters, fine), take(drawn.data, fine), failed, reason


def check_continuous(caller: str, name: str, values: np.ndarray) -> None:
    """Refuse a density of values that are few: it would grow without end at each of them."""
    for column in values.reshape(len(values), -1).T:
        if has_few_values(column):
            num = len(np.unique(column))
            raise ValueError(
                f"{caller}: site '{name}' is continuous and takes only {num} values in {len(column)} simulations, so that it has "
                "no density to learn. Give whole numbers as integers at a discrete site of their own, or add what rounding took."
            )


def _check_rows(table: ReferenceTable) -> None:
    values = [*table.parameters.values(), *table.data.values()]
    sizes = {np.shape(x)[:1] for x in values}
    if not table.parameters or not table.data or len(sizes) != 1 or next(iter(sizes)) < (FEWEST,):
        raise ValueError(
            f"ReferenceTable: parameters {list(table.parameters)} and data {list(table.data)} have {sorted(sizes)} rows. Give "
            f"one number of rows to all, at least {FEWEST} that did not fail."
        )
    trace = jax.eval_shape(lambda: _shapes_of(table.model, table.args))
    own = [{n: x.shape for n, x in values.items()} for values in trace]
    given = [{n: np.shape(x)[1:] for n, x in v.items()} for v in (table.parameters, table.data)]
    if own != given:
        raise ValueError(
            f"ReferenceTable: each row has parameters {given[0]} and data {given[1]}, and {table.model!r} has {own[0]} and "
            f"{own[1]}. Give the program's sites by name, in their shapes, with one more axis in front."
        )
    not_finite = sum(~np.isfinite(x.reshape(len(x), -1)).all(1) for x in values)
    if np.any(not_finite):
        raise ValueError(
            f"ReferenceTable: {int(np.sum(not_finite > 0))} rows are not finite. Leave them out, and give their parameters as "
            "failed=."
        )


def _shapes_of(program: ppl.Program, args: tuple) -> tuple[dict, dict]:
    trace = program.simulate(jax.random.key(0), *args)
    return dict(trace.choices), dict(trace.observed)


def packed_table(table: ReferenceTable) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
    """The header and the arrays of a file that holds it."""
    arrays = {f"{g}/{n}": x for g in _GROUPS for n, x in getattr(table, g).items()}
    header = {
        "versions": versions(),
        "reason": table.reason,
        "structure": structure_of(table.model, table.args),
    }
    if table.region is not None:
        header["region"] = as_skeleton(dict(table.region.data), arrays, "region")
    return header, arrays


def unpacked_table(
    method: str,
    name: str,
    header: Mapping[str, PyTree],
    arrays: Mapping[str, np.ndarray],
    model: ModelFn,
    args: tuple | None,
) -> ReferenceTable:
    """The inverse, compared with the program; `method` and `name`, of the file, are for messages."""
    groups: dict[str, dict[str, np.ndarray]] = {g: {} for g in _GROUPS}
    for entry, x in arrays.items():
        group, _, site = entry.partition("/")
        if group in groups:
            groups[group][site] = x
    program, args = ppl.as_program(model), () if args is None else args
    shapes = {name: x.shape[1:] for name, x in groups["data"].items()}
    trace = program.simulate(jax.random.key(0), *args)
    if not trace.observed:
        program, args = carrier(program, args, shapes), zeros_of(shapes)
        trace = program.simulate(jax.random.key(0), *args)
    same = lambda values, stored: (
        {n: np.shape(x) for n, x in values.items()} == {n: x.shape[1:] for n, x in stored.items()}
    )
    if not (same(trace.choices, groups["parameters"]) and same(trace.observed, groups["data"])):
        raise ValueError(
            f"{method}: the file holds parameters {list(groups['parameters'])} and data {shapes}, and {program!r} has "
            f"{list(trace.choices)} and { {n: np.shape(x) for n, x in trace.observed.items()} }. Give the program and the "
            "arguments that they were simulated with."
        )  # fmt: skip
    if "structure" in header:
        own = structure_of(program, args)
        was = {part: header["structure"][part] for part in own}
        check_same(method, name, {**header, "structure": was}, own, "program")
    region = header.get("region")
    simulate = None if is_carrier(program) or region else data_of(program, args)
    if region:
        region = TruncatedPrior(from_skeleton(region, arrays), None)
    rows = groups["parameters"], groups["data"], groups["failed"]
    return ReferenceTable(program, args, *rows, str(header["reason"]), simulate, region)
