"""A row of `docs/numpyro_names.md`: a name of NumPyro, a small program with it, and what our runs make of the program.

`test_numpyro_names.py` runs each row and compares the page with the rows, so that the page says what was seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer.util import log_density

from lapilli import ppl

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One name.

    Attributes:
        name: what the page shows, Markdown.
        says: what to know of it, or the remedy.
        program: a program with it.
        choices: values of the program's latent sites.
        refused: words of the refusal, a regular expression; empty where the program has NumPyro's density.
        attempt: what is refused, of the program; default, its simulation.
        check: asserts in place of the comparison of densities.
        verdict: as the page says it.
    """

    name: str
    says: str = ""
    program: Callable[[], Any] = lambda: None
    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""
    attempt: Callable[[Any], Any] = lambda program: program.simulate(KEY)
    check: Callable[[], Any] | None = None
    verdict: str = ""

    @property
    def shown(self) -> str:
        return self.verdict or ("**refused**" if self.refused else "works")


def assert_same_density(program: Callable[[], Any], choices: Mapping[str, Any]) -> None:
    """NumPyro's density of the choices at initial parameters is ours, and a simulated trace has the density of its choices."""
    ours = ppl.as_program(program)
    params = ours.init(KEY)
    ours = ours.bind(params)
    given = {**choices, **ppl.constrain(params)}
    with handlers.seed(rng_seed=0):
        theirs = log_density(program, (), {}, given)[0]
    np.testing.assert_allclose(ours.log_density(choices), theirs, rtol=1e-5)
    trace = ours.simulate(KEY)
    assert set(choices) <= set(trace.choices)
    np.testing.assert_allclose(ours.log_density(trace.choices), trace.log_density, rtol=1e-5)


def markdown(rows: list[Row]) -> str:
    lines = ["| name | here | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.name} | {r.shown} | {r.says} |" for r in rows)]) + "\n"
