"""What was learned from simulations as files: the rows, the run, and what both belong to, compared when they come back.

The archive is that of a saved fit, whose header and arrays it holds beside those of a table. Programs, guides, laws and critics
are code and are given again; they are made anew from the stored rows by the functions that made them, and get the parameters.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._types import ModelFn
from ..fitting import Fit
from ..fitting.storage import (
    as_skeleton,
    check_same,
    from_skeleton,
    packed_fit,
    read,
    structure_of,
    unpacked_fit,
    versions,
    write,
)
from ._learn import Learned, RowLoss, RowProblem
from ._region import TruncatedPrior
from ._simulators import carrier, data_of, is_carrier, zeros_of

if TYPE_CHECKING:
    from ._table import ReferenceTable

What = Literal["Amortised", "Ratio", "Surrogate"]
_TABLE = "lapilli simulations 1"
_GROUPS = ("parameters", "data", "failed")


def save_table(table: ReferenceTable, path: str | os.PathLike) -> None:
    """See `ReferenceTable.save`."""
    header, arrays = _packed(table)
    write(path, {"format": _TABLE, **header}, arrays)


def load_table(
    make: type[ReferenceTable], path: str | os.PathLike, model: ModelFn, args: tuple | None
) -> ReferenceTable:
    """See `ReferenceTable.load`; `make` is `ReferenceTable`."""
    header, arrays = read(path, "simulations", _TABLE)
    return _unpacked(make, "ReferenceTable.load", os.fspath(path), header, arrays, model, args)


def save_learned(
    path: str | os.PathLike,
    what: What,
    table: ReferenceTable,
    training: Learned,
    given: Mapping[str, PyTree],
    facts: PyTree,
    records: Sequence[type] = (),
) -> None:
    """Write one file; `given` is the structure of what was given beside the table, `facts` what else comes back."""
    if jax.process_index() != 0:
        return
    header, arrays = _packed(table)
    of_fit, fit_arrays = packed_fit(training.fit, data=False)
    arrays |= {f"fit/{name}": x for name, x in fit_arrays.items()}
    header["structure"] |= given
    looks = [(int(step), float(loss)) for step, loss in training.validation]
    header |= {
        "format": f"{what} 1",
        "fit": of_fit,
        "training": {"validation": looks, "kept": training.kept, "decay": training.decay},
        "facts": as_skeleton(facts, arrays, "facts", records),
    }
    write(path, header, arrays)


class LearnedFile(NamedTuple):
    """What such a file has, its table made and compared.

    Attributes:
        what: whose it is.
        name: of the file.
        header: of the file.
        arrays: of the file.
        table: the rows with their program.
    """

    what: What
    name: str
    header: Mapping[str, PyTree]
    arrays: Mapping[str, np.ndarray]
    table: ReferenceTable

    @classmethod
    def read(
        cls,
        make: type[ReferenceTable],
        path: str | os.PathLike,
        what: What,
        model: ModelFn,
        args: tuple | None,
    ) -> LearnedFile:
        """The file, if it is one of `what`, and of the program."""
        header, arrays = read(path, f"file of {what}.save", f"{what} 1")
        name = os.fspath(path)
        table = _unpacked(make, f"{what}.load", name, header, arrays, model, args)
        return cls(what, name, header, arrays, table)

    def check(self, given: Mapping[str, PyTree], defaults: Collection[str]) -> None:
        """Refuse what is given now and was another, each difference named.

        `defaults`: parts that the library makes itself. They hold means of the rows, whose last digit is the machine's: of them
        sites and shapes are compared, and no digest.
        """
        was = {part: self.header["structure"].get(part, {}) for part in given}
        words = lambda parts: {p: _words(x) if p in defaults else x for p, x in parts.items()}
        was, given = words(was), words(given)
        check_same(f"{self.what}.load", self.name, {**self.header, "structure": was}, given, "run")

    def training(self, problem: RowProblem) -> Learned:
        """The run, of the loss that was made anew."""
        objective = RowLoss(problem)
        own = {n[4:]: x for n, x in self.arrays.items() if n.startswith("fit/")}
        method, header = f"{self.what}.load", self.header["fit"]
        fit = unpacked_fit(Fit, method, self.name, header, own, objective, objective.args)
        kept = self.header["training"]
        looks = [(step, loss) for step, loss in kept["validation"]]
        return Learned(fit.params, fit, looks, kept["kept"], kept["decay"])

    def facts(self, records: Sequence[type] = ()) -> Any:
        """What else was stored."""
        return from_skeleton(self.header["facts"], self.arrays, records)


def _packed(table: ReferenceTable) -> tuple[dict[str, PyTree], dict[str, np.ndarray]]:
    arrays = {f"{g}/{n}": x for g in _GROUPS for n, x in getattr(table, g).items()}
    header = {
        "versions": versions(),
        "reason": table.reason,
        "structure": structure_of(table.model, table.args),
    }
    if table.region is not None:
        header["region"] = as_skeleton(dict(table.region.data), arrays, "region")
    return header, arrays


def _unpacked(
    make: type[ReferenceTable],
    method: str,
    name: str,
    header: Mapping[str, PyTree],
    arrays: Mapping[str, np.ndarray],
    model: ModelFn,
    args: tuple | None,
) -> ReferenceTable:
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
    return make(program, args, *rows, str(header["reason"]), simulate, region)


def _words(part: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Without digests."""
    return {name: x[0] if isinstance(x, list) else x for name, x in part.items()}
