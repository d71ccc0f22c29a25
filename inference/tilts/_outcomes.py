"""All outcomes of a small discrete program, and laws on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ... import ppl
from ...ppl._shared_jit import shared_jit
from ...ppl.traces import stand_ins
from ..particles.samplers import FiniteSupports

MOST = 2**16  # outcomes
BATCH = 4096


class Outcomes(NamedTuple):
    """Every value that the latent sites of a program can have together.

    Attributes:
        choices: latent site -> values, [outcomes, ...].
        number: of outcomes.
    """

    choices: dict[str, np.ndarray]
    number: int

    def log_density(self, program: ppl.Program, args: tuple) -> Float[np.ndarray, " outcomes"]:
        """Of a program with these sites, float64."""
        run = lambda x: jax.lax.map(
            lambda choices: program.log_density(choices, *args), x, batch_size=BATCH
        )
        return np.asarray(shared_jit(run)(self.choices), np.float64)

    def numbers(self, draws: Mapping[str, Array]) -> Int[np.ndarray, " draws"]:
        """Which outcome each of some draws [S, ...] is, compared by value; -1 for none."""
        # 0.0 is -0.0, and bytes tell them apart.
        row = lambda x, n: np.asarray(x[n], np.float64).reshape(len(x[n]), -1) + 0.0
        rows = lambda x: np.concatenate([row(x, n) for n in self.choices], 1)
        known = {row.tobytes(): i for i, row in enumerate(rows(self.choices))}
        return np.array([known.get(row.tobytes(), -1) for row in rows(draws)], int)


def outcomes_of(program: ppl.Program, args: tuple) -> Outcomes | None:
    """The outcomes of the latent sites; None where they are not finitely many, or more than `MOST`."""
    watched = FiniteSupports()

    def run(*args: PyTree) -> PyTree:
        with watched:
            return program(*args)

    simulate = lambda key: ppl.as_program(run).simulate(key, *args).choices
    with stand_ins():
        shapes = {n: x.shape for n, x in jax.eval_shape(simulate, jax.random.key(0)).items()}
    supports = {}
    for name in shapes:
        found = watched.laws.get(name, ["unknown"])
        told = [x for x in found if isinstance(x, str)]
        if told or any(not np.array_equal(found[0], x) for x in found):
            return None
        supports[name] = np.asarray(found[0])
    sizes = {n: math.prod(shape) for n, shape in shapes.items()}
    digits = [np.arange(len(supports[n])) for n in shapes for _ in range(sizes[n])]
    number = math.prod(map(len, digits))
    if not digits or number > MOST:
        return None
    table = np.stack(np.meshgrid(*digits, indexing="ij"), -1).reshape(number, -1)
    choices, at = {}, 0
    for name, shape in shapes.items():
        part = table[:, at : at + sizes[name]]
        choices[name] = supports[name][part].reshape(number, *shape)
        at += sizes[name]
    return Outcomes(choices, number)
