"""Draws as files, and what is checked when they come back; the archive is that of a saved fit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ...ppl._types import ModelFn
from ...ppl.densities import Eliminated
from ...ppl.language import as_program, labelled_as
from ..fitting.storage import (
    check_same,
    from_skeleton,
    kept_arguments,
    kept_labels,
    labels_in,
    read,
    structure_of,
    versions,
    write,
)
from ._certificate import Attempt, Certificate

_FORMAT = "draws 1"


def save_draws(draws: Any, path: str | os.PathLike, *, data: bool) -> None:
    """See `Draws.save`."""
    if jax.process_index() != 0:
        return
    has_data = data and draws.args is not None
    arrays: dict[str, np.ndarray] = {}
    for part in ("choices", "statistics"):
        arrays |= {f"{part}/{name}": np.asarray(x) for name, x in getattr(draws, part).items()}
    header = {
        "format": _FORMAT,
        "versions": versions(),
        "num_chains": draws.num_chains,
        "certificate": dataclasses.asdict(draws.certificate),
        "has_data": has_data,
        "args": kept_arguments(draws.args, arrays, has_data=has_data),
        **kept_labels(draws.labels),
        "structure": structure_of(draws.model, draws.args),
    }
    write(path, header, arrays)


def load_draws(
    make: Callable[..., PyTree], path: str | os.PathLike, model: ModelFn, args: PyTree
) -> Any:
    """See `Draws.load`; `make` is `Draws`."""
    header, arrays = read(path, "file of Draws.save", _FORMAT)
    name, program = os.fspath(path), as_program(model)
    program = program.program if isinstance(program, Eliminated) else program
    if args is None and header["args"] is None:
        raise ValueError(
            f"Draws.load: '{name}' has no arguments of the program, by which it is checked. Pass some: args=(...)."
        )
    labels = labels_in(header)
    given = None if args is None else labelled_as(labels, args, program)
    example = from_skeleton(header["args"], arrays) if given is None else given
    check_same("Draws.load", name, header, structure_of(program, example), "program")
    part = lambda head: {n[len(head) :]: x for n, x in arrays.items() if n.startswith(head)}
    kept = header["certificate"]
    certificate = Certificate(
        **kept
        | {
            "problems": tuple(kept["problems"]),
            "eliminated": tuple(kept["eliminated"]),
            "attempts": tuple(Attempt(*x) for x in kept["attempts"]),
        }
    )
    return make(
        choices=part("choices/"),
        certificate=certificate,
        num_chains=header["num_chains"],
        statistics=part("statistics/"),
        model=program,
        args=example if header["has_data"] or args is not None else None,
        labels=labels,
    )
