"""A program watched while it is traced.

What resampling sees of its states becomes an output of the step of its
scan, and is computed with the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._types import Args
from ....ppl.traces import Runner, SiteInfo
from ..resampling import Look
from ._traced import TracedProgram

Array = jax.Array
# Names that no user gives, numbered by scan.
STEP, START = "(seen, steps) {}", "(seen, start) {}"


class Stepped(Runner):
    """A runner of a program whose scans are run step by step afterwards."""

    is_stepped = True


class Watcher(Stepped):
    """A runner that keeps what is seen at the start and after each step of every top-level scan, as deterministic sites."""

    def __init__(
        self, *args: PyTree, look: Callable[[PyTree, Array], Array], **options: PyTree
    ) -> None:
        super().__init__(*args, **options)
        self.look, self.number = look, 0

    def begin_steps(self, init: PyTree) -> None:
        if len(self.frames) == 1:
            self.number += 1
            self._keep(START, init, jnp.zeros((), jnp.int32))

    def end_step(self, state: PyTree, t: Array) -> None:
        if len(self.frames) == 2:  # not in a scan inside the scan
            self._keep(STEP, state, t + 1)

    def _keep(self, name: str, state: PyTree, t: Array) -> None:
        name, sites = name.format(self.number), len(self.frame.infos)
        value = self.look(state, t)
        if len(self.frame.infos) != sites:
            raise ValueError(
                f"smc: twist or order has the sites {list(self.frame.infos)[sites:]}, and it is a function of the state, not a "
                "part of the model. Return numbers."
            )
        self.frame.infos[name] = SiteInfo(name, "deterministic", (), (), (), "")
        # A new variable: JAX takes values that only pass through out of a scan.
        self.frame.numbers[name] = {"value": value + 0.0}


def watching(look: Look | None, args: Args) -> Callable[..., Runner]:
    """The runner of a program, at whose states of the same arguments resampling looks."""
    if look is None:
        return Stepped
    # `t` is traced, and NumPy arrays take no traced index.
    args = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, args)
    return functools.partial(Watcher, look=lambda state, t: look(state, t, *args))


class Watched(NamedTuple):
    """Where a traced program has what is seen: the variables for the start and for the steps of its scan."""

    start: PyTree
    steps: Any


def find_watched(model: TracedProgram) -> Watched:
    """The variables of the scan with sites.

    Raises:
        ValueError: there is none, or more than one.
    """
    sites, loops = model.trace.deterministic, model.loops()
    if len(loops) != 1:
        raise ValueError(
            f"smc: twist and order look at the state of a scan between its steps, and the program has {len(loops)} top-level "
            "scans with observations or proposed sites. Write it with one ppl.scan, or leave out twist= and order=."
        )
    outvars = {id(v) for v in model.closed.jaxpr.eqns[loops[0]].outvars}
    steps = {name: v for name, v in sites.items() if name.startswith(STEP.format(""))}
    (name,) = [name for name, v in steps.items() if id(v) in outvars]
    return Watched(sites[name.replace(STEP.format(""), START.format(""))], steps[name])
