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
from jaxtyping import Array, PyTree

from .._compat import ClosedJaxpr
from ..analysis import Analysed
from ..jaxprs import work_of
from ._jump_paths import Job, Paths, has_loop, is_far, is_short, leaves_data
from ._jump_search import JumpSearch
from ._probe_inputs import COMPILER_OPTIONS, Inputs
from ._quick_draws import with_quick_draws

BATCH = 8
SHARE_OF_SET = 3  # a set of numbers gets a third of the paths that a source of its size gets
MOST_OTHERS = 4  # paths that are tried to see whether anything is sure
DEFAULT = JumpSearch()


class LargestJumps(NamedTuple):
    """The largest jumps in one source: at the data given, at other data; infinite where nothing was finite."""

    here: float
    elsewhere: float


class PathTrial(NamedTuple):
    """What paths have found.

    Attributes:
        jobs: place, source, group, set and number of each path, [5, paths].
        sizes: of the largest jump on each, 0 where it is none.
        is_finite: whether anything was finite on it.
    """

    jobs: np.ndarray
    sizes: np.ndarray
    is_finite: np.ndarray

    def kinds(self, places: np.ndarray) -> list[tuple[int, bool]]:
        """The source of paths, and whether they leave the data."""
        _, source, *_, number = self.jobs[:, places]
        return list(zip(source.tolist(), leaves_data(number).tolist(), strict=True))


class Probe:
    """A compiled search: `probe(inputs)` is a trial, `probe.found(trial, inputs)` what it has found by source.

    Args:
        sources: sites by index; a name stands for the parameters.
        program: the program, analysed with its data as inputs.
        is_double: whether it computes in float64.
        how: how finely.
        is_rounded: whether a change counts only beyond the rounding of its ends, see `_rounded.py`.
        is_narrow: whether it overflows where single precision does.
    """

    def __init__(
        self,
        sources: Collection[int | str],
        program: Analysed,
        *,
        is_double: bool,
        how: JumpSearch = DEFAULT,
        is_rounded: bool = False,
        is_narrow: bool = False,
    ) -> None:
        self.sources, self.is_double, self.how = list(sources), is_double, how
        self.program = program
        self._paths = Paths(program, self.sources, is_double, how, is_rounded, is_narrow)
        self._work = work_of(program.closed.jaxpr)
        self._has_while = has_loop(program.closed.jaxpr, {"while"})
        self._batch = batch = batch_of(self._paths.has_loop)

        @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS, static_argnums=4)
        def run(
            consts: list[Array], inputs: PyTree, members: PyTree, jobs: PyTree, num: int
        ) -> tuple[jax.Array, jax.Array]:
            """Data are operands: XLA would fold what it can compute from constants, slowly."""
            closed = with_quick_draws(ClosedJaxpr(program.closed.jaxpr, consts))
            one = lambda job: self._paths.jump(Job(closed, Inputs(*inputs), members, *job))
            place, *jobs = jobs
            keys = jax.random.split(Inputs(*inputs).key, num)[place]
            return jax.lax.map(one, (keys, *jobs), batch_size=None if batch == 1 else batch)

        self._run = run
        self._compiled: Any = None

    def __call__(self, inputs: Inputs) -> PathTrial:
        """What the paths find."""
        if not self._paths.groups.size:  # in this precision nothing is suspected
            return PathTrial(np.zeros((5, 0), int), np.zeros(0), np.zeros(0, bool))
        jobs = self._jobs(inputs)
        sizes, is_finite = self._tried(inputs, jobs, jobs.shape[1])
        return PathTrial(jobs, sizes, is_finite)

    def again(self, inputs: Inputs, trial: PathTrial) -> PathTrial:
        """The trial with the paths that found something tried by this probe: of each kind, until one finds it, too."""
        sizes, seen, lost = trial.sizes.copy(), set(), []
        for some in self._batches(np.flatnonzero(trial.sizes)):
            if set(trial.kinds(some)) <= seen:
                sizes[some] = 0.0
                continue
            sizes[some], is_finite = self._retried(inputs, trial, some)
            lost += some[~is_finite].tolist()
            seen |= {k for k, size in zip(trial.kinds(some), sizes[some], strict=True) if size > 0}
        # Where nothing is sure on a path, rounding may lie on it or on the whole program: of that nothing is taken back.
        for kind in {*trial.kinds(np.array(lost, int))} - seen:
            mine = np.array([k == kind for k in trial.kinds(np.arange(len(sizes)))])
            others = np.flatnonzero(mine & (trial.sizes == 0))[: max(MOST_OTHERS, self._batch)]
            if not any(
                self._retried(inputs, trial, some)[1].any() for some in self._batches(others)
            ):
                sizes[mine] = trial.sizes[mine]
        return trial._replace(sizes=sizes)

    def _batches(self, places: np.ndarray) -> list[np.ndarray]:
        return [places[n : n + self._batch] for n in range(0, len(places), self._batch)]

    def _retried(
        self, inputs: Inputs, trial: PathTrial, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sizes, and whether anything was sure, on these paths of a trial, of which there are as many as are tried at once."""
        jobs = trial.jobs[:, np.resize(places, self._batch)]
        sizes, is_finite = self._tried(inputs, jobs, len(trial.sizes))
        return sizes[: len(places)], is_finite[: len(places)]

    def found(self, trial: PathTrial, inputs: Inputs) -> dict[int | str, LargestJumps]:
        """The largest jumps in each source."""
        _, source, *_, number = trial.jobs
        there = leaves_data(number) & bool(inputs.data)

        if not trial.sizes.size:
            return dict.fromkeys(self.sources, LargestJumps(0.0, 0.0))

        def largest(mine: np.ndarray) -> float:
            return (
                float(trial.sizes[mine].max(initial=0.0))
                if trial.is_finite[mine].any()
                else math.inf
            )

        return {
            s: LargestJumps(
                largest((source == n) & ~there),
                float(trial.sizes[(source == n) & there].max(initial=0.0)),
            )
            for n, s in enumerate(self.sources)
        }

    def _tried(self, inputs: Inputs, jobs: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
        parts = (inputs.params, inputs.data, inputs.key)
        given = self.program.closed.consts, parts, self._paths.members, tuple(jobs)
        if self._compiled is None:  # traced as every program is, see `Search`
            self._compiled = self._run.lower(*given, num).compile()
        sizes, is_finite = self._compiled(*given)
        return np.asarray(sizes), np.asarray(is_finite)

    def _num_elements(self, source: int | str, size: int) -> int:
        """The dimension of the space in which the paths of a source run; vectors of a site count as one."""
        return math.prod(self.program.sites[source].sizes) if isinstance(source, int) else size

    def _jobs(self, inputs: Inputs) -> np.ndarray:
        """Place, source, group, set and number of each path."""
        num_groups = self._paths.groups.max(1) + 1
        how = self.how
        # Far away a solver of differential equations takes so many steps that a few paths cost more than all others.
        is_dear = lambda number: self._has_while and bool(is_far(number))
        most = how.budget / (num_groups.sum() * 2 * how.num_points * self._work)
        jobs = []
        for n, source in enumerate(self.sources):
            sizes = self._paths.sizes_of_sets[n]
            many = [how.paths(size) for size in (self._num_elements(source, sizes[0]), *sizes[1:])]
            # Those of a set are as many as their space is large, a few at least.
            counts = [many[0] // num_groups[n], *(max(m // SHARE_OF_SET, 1) for m in many[1:])]
            share = min(most / sum(counts), 1.0)
            counts = [max(int(share * count), 2) for count in counts]
            counts[0] = max(counts[0], how.min_paths)
            for k, count in enumerate(counts):
                numbers = [i for i in range(count) if i < how.min_paths or not is_dear(i)]
                jobs += itertools.product([n], range(num_groups[n]), [k], numbers)
        # Those alike run together, since they take equally many steps.
        jobs.sort(key=lambda job: (bool(is_short(job[-1])), is_dear(job[-1]), job))
        jobs += jobs[-1:] * (-len(jobs) % self._batch)  # a rest would be compiled by itself
        return np.array([np.arange(len(jobs)), *np.array(jobs).T])


def batch_of(has_loop: bool) -> int:
    """How many paths are evaluated at once: several where what starts an operation costs more than what it computes.

    That is so in loops, and on accelerators. Elsewhere one path at a time takes no longer, and is traced and compiled in half
    the time.
    """
    return 1 if jax.default_backend() == "cpu" and not has_loop else BATCH
