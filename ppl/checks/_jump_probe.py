"""How far a traced program jumps along random paths (`_jump_paths.py`), bisected (`_bisection.py`): one compiled search.

What can be found: a jump of more than the threshold (`JumpSearch`) of 1 + |value| that some of the paths cross alone in one step
of the grid. One function is compiled for all sources, since compiling is nearly all of the search's time. For the same reason its
random numbers are quick ones (`_quick_keys.py`, `_quick_draws.py`): a probe needs typical values, not exact ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from .._compat import ClosedJaxpr, Jaxpr
from ..analysis import Analysed
from ..jaxprs import inner_jaxprs, shape_of
from ._jump_paths import Job, Paths, is_short, leaves_data
from ._jump_search import JumpSearch
from ._probe_inputs import COMPILER_OPTIONS, Inputs
from ._quick_draws import with_quick_draws

BATCH = 8
DEFAULT = JumpSearch()


class Found(NamedTuple):
    """The largest jumps in one source: at the data given, at other data; infinite where nothing was finite."""

    here: float
    elsewhere: float


class Probe:
    """A compiled search: `probe(inputs)` gives source -> what was found.

    Args:
        sources: sites by index; a name stands for the parameters.
        program: the program, analysed with its data as inputs.
        is_double: whether it computes in float64.
        how: how finely.
    """

    def __init__(
        self,
        sources: Collection[int | str],
        program: Analysed,
        *,
        is_double: bool,
        how: JumpSearch = DEFAULT,
    ) -> None:
        self.sources, self.is_double, self.how = list(sources), is_double, how
        self.program = program
        self._paths = Paths(program, self.sources, is_double, how)
        self._work = work_of(program.closed.jaxpr)
        self._batch = batch = batch_of(program.closed.jaxpr)

        @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
        def run(consts: list[Any], inputs: Any, jobs: Any) -> tuple[jax.Array, jax.Array]:
            """Data are operands: XLA would fold what it can compute from constants, slowly."""
            closed = with_quick_draws(ClosedJaxpr(program.closed.jaxpr, consts))
            one = lambda job: self._paths.jump(Job(closed, Inputs(*inputs), *job))
            keys = jax.random.split(Inputs(*inputs).key, len(jobs[0]))
            return jax.lax.map(one, (keys, *jobs), batch_size=None if batch == 1 else batch)

        self._run = run
        self._compiled: Any = None

    def __call__(self, inputs: Inputs) -> dict[int | str, Found]:
        if not self._paths.groups.size:  # in this precision nothing is suspected
            return dict.fromkeys(self.sources, Found(0.0, 0.0))
        source, group, number = self._jobs(inputs)
        parts = (inputs.params, inputs.data, inputs.key)
        given = self.program.closed.consts, parts, (source, group, number)
        if self._compiled is None:  # traced as every program is, see `Search`
            self._compiled = self._run.lower(*given).compile()
        sizes, finite = jax.tree.map(np.asarray, self._compiled(*given))

        def largest(mine: Any) -> float:
            return float(sizes[mine].max(initial=0.0)) if finite[mine].any() else math.inf

        there = leaves_data(number) & bool(inputs.data)
        return {
            s: Found(
                largest((source == n) & ~there),
                float(sizes[(source == n) & there].max(initial=0.0)),
            )
            for n, s in enumerate(self.sources)
        }

    def _jobs(self, inputs: Inputs) -> tuple[np.ndarray, ...]:
        """Source, group and number of each path."""
        num_groups = self._paths.groups.max(1) + 1
        how = self.how
        most = how.budget / (num_groups.sum() * 2 * how.num_points * self._work)
        jobs = []
        for n, source in enumerate(self.sources):
            many = how.paths(_num_elements(self.program, source, inputs)) // num_groups[n]
            count = int(max(min(many, most), how.min_paths))
            jobs += itertools.product([n], range(num_groups[n]), range(count))
        # Those alike run together, since they take equally many steps.
        jobs.sort(key=lambda job: (bool(is_short(job[2])), job))
        jobs += jobs[-1:] * (-len(jobs) % self._batch)  # a rest would be compiled by itself
        return tuple(np.array(jobs).T)


def batch_of(jaxpr: Jaxpr) -> int:
    """How many paths are evaluated at once: several where what starts an operation costs more than what it computes.

    That is so in loops, and on accelerators. Elsewhere one path at a time takes no longer, and is traced and compiled in half
    the time.
    """
    is_fast = jax.default_backend() == "cpu" and not _has_loop(jaxpr)
    return 1 if is_fast else BATCH


def _has_loop(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in ("scan", "while") or any(map(_has_loop, inner_jaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def work_of(jaxpr: Jaxpr) -> float:
    """How many numbers one evaluation computes."""
    total = 0.0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        inner = sum(work_of(j) for j in inner_jaxprs(eqn))
        total += times * inner or sum(math.prod(shape_of(v)) for v in eqn.outvars)
    return total


def _num_elements(program: Analysed, source: int | str, inputs: Inputs) -> int:
    """The dimension of the space in which the paths of a source run."""
    if isinstance(source, int):
        return math.prod(program.sites[source].sizes)
    return sum(x.size for x in inputs.params)
