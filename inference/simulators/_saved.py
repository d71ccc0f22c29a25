"""What was learned from simulations as files: the rows, the run, and what both belong to, compared when they come back.

The archive is that of a saved fit, whose header and arrays it holds beside those of a table. Programs, guides, laws and critics
are code and are given again; they are made anew from the stored rows by the functions that made them, and get the parameters.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ...ppl._types import ModelFn
from ..fitting import Fit
from ..fitting.storage import (
    as_skeleton,
    check_same,
    from_skeleton,
    packed_fit,
    read,
    unpacked_fit,
    write,
)
from ._learn import Learned, RowLoss, RowProblem
from ._table import ReferenceTable, packed_table, unpacked_table

What = Literal["Amortised", "Ratio", "Surrogate"]


def save_learned(
    path: str | os.PathLike,
    what: What,
    table: ReferenceTable,
    training: Learned | Sequence[Learned],
    given: Mapping[str, PyTree],
    facts: PyTree,
    records: Sequence[type] = (),
) -> None:
    """Write one file; `given` is the structure of what was given beside the table, `facts` what else comes back.

    Of several trainings those after the first stand under names with their number.
    """
    if jax.process_index() != 0:
        return
    header, arrays = packed_table(table)
    header["structure"] |= given
    header |= {"format": f"{what} 1", "facts": as_skeleton(facts, arrays, "facts", records)}
    for number, learned in enumerate([training] if isinstance(training, Learned) else training):
        own, of_fit, of_training = _names(number)
        header[of_fit], fit_arrays = packed_fit(learned.fit, data=False)
        arrays |= {f"{own}{name}": x for name, x in fit_arrays.items()}
        looks = [(int(step), float(loss)) for step, loss in learned.validation]
        header[of_training] = {"validation": looks, "kept": learned.kept, "decay": learned.decay}
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
        path: str | os.PathLike,
        what: What,
        model: ModelFn,
        args: tuple | None,
    ) -> LearnedFile:
        """The file, if it is one of `what`, and of the program."""
        header, arrays = read(path, f"file of {what}.save", f"{what} 1")
        name = os.fspath(path)
        table = unpacked_table(f"{what}.load", name, header, arrays, model, args)
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

    def trainings(self, problem_of: Callable[[int], RowProblem]) -> tuple[Learned, ...]:
        """The runs in their order, of the loss of each number."""
        numbers = itertools.takewhile(lambda i: _names(i)[1] in self.header, itertools.count())
        return tuple(self.training(problem_of(number), number) for number in numbers)

    def training(self, problem: RowProblem, number: int = 0) -> Learned:
        """One run, of the loss that was made anew."""
        objective = RowLoss(problem)
        prefix, of_fit, of_training = _names(number)
        arrays = {n.removeprefix(prefix): x for n, x in self.arrays.items() if n.startswith(prefix)}
        method, header = f"{self.what}.load", self.header[of_fit]
        fit = unpacked_fit(Fit, method, self.name, header, arrays, objective, objective.args)
        kept = self.header[of_training]
        looks = [(step, loss) for step, loss in kept["validation"]]
        return Learned(fit.params, fit, looks, kept["kept"], kept["decay"])

    def facts(self, records: Sequence[type] = ()) -> Any:
        """What else was stored."""
        return from_skeleton(self.header["facts"], self.arrays, records)


def _names(number: int) -> tuple[str, str, str]:
    """What one training's arrays begin with, and where its run and its looks stand in the header."""
    own = f" {number}" if number else ""
    return f"fit{own}/", f"fit{own}", f"training{own}"


def _words(part: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Without digests."""
    return {name: x[0] if isinstance(x, list) else x for name, x in part.items()}
