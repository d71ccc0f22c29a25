"""Simulators that cannot be traced: calls with NumPy's numbers, in this process or in workers, batch by batch, kept on disk.

Row i has a generator of its own, seeded by the key and i, so that rows depend neither on workers nor on batches. A batch that is
done is one file, named by a digest of all that it depends on: the simulator's name, source and state, the key, the rows' numbers
and parameters. A run that was stopped finds its batches by these names and goes on behind them; one of another simulator,
prior or key finds none.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import inspect
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from ...ppl._types import Key
from ...ppl.language import name_of
from ..fitting.storage._archive import digest_of, read, write
from ..fitting.storage._replacing import check_writable
from ._simulators import SimulatedRows, SimulatorFn, Values, named

_FORMAT = "lapilli batch of simulations 1"
_WHAT = "batch of simulations"

type Job = tuple[SimulatorFn, list[int], dict[str, np.ndarray]]
type Answer = tuple[dict[str, np.ndarray] | None, str | None]  # data, or why there are none


class _Calls(NamedTuple):
    """Simulations of some rows: which failed, why the first did, data of the others."""

    failed: np.ndarray
    reason: str
    data: dict[str, np.ndarray]


class BlackBox(NamedTuple):
    """Data of given parameters by calls of a function.

    Attributes:
        simulator: `(numpy.random.Generator, parameters) -> data`.
        num_workers: processes; 0 for this one.
        batch_size: calls of a batch.
        folder: where batches are kept; None for nowhere.
        progress: whether to show a bar.
    """

    simulator: SimulatorFn
    num_workers: int
    batch_size: int
    folder: str | os.PathLike | None
    progress: bool

    def __call__(self, parameters: Values, key: Key) -> SimulatedRows:
        """The rows with their data.

        Raises:
            ValueError: data of two simulations have other names or shapes; all fail.
            OSError: a batch cannot be written; those before it stay.
        """
        if self.num_workers:
            _check_can_be_sent(self.simulator)
        size = len(next(iter(parameters.values())))
        entropy = np.asarray(jax.random.key_data(key)).ravel().tolist()
        prefix = None if self.folder is None else f"{_identity(self.simulator)} {entropy}"
        # Copies, which the simulator may change.
        row = lambda i: {n: x[i].copy() for n, x in parameters.items()}
        batches: list[_Calls] = []
        with (
            _calls(self.num_workers) as calls,
            tqdm(total=size, disable=not self.progress, desc="simulations") as bar,
        ):
            for start in range(0, size, self.batch_size):
                rows = range(start, min(start + self.batch_size, size))
                path = None if prefix is None else self._path(prefix, rows, parameters)
                batch = None if path is None else _kept(path)
                if batch is None:
                    jobs = [(self.simulator, [*entropy, i], row(i)) for i in rows]
                    batch = _batch(_counted(calls(jobs), bar), start)
                    if path is not None:
                        _keep(path, batch)
                else:
                    bar.update(len(rows))
                batches.append(batch)
        return _joined(parameters, batches)

    def _path(self, prefix: str, rows: range, parameters: Values) -> Path:
        assert self.folder is not None
        own = {f"parameters/{n}": x[rows.start : rows.stop] for n, x in parameters.items()}
        simulator = np.frombuffer(f"{prefix} {rows}".encode(), np.uint8)
        digest = digest_of({"simulator": simulator, **own}).tobytes().hex()
        path = Path(self.folder) / f"{digest}.npz"
        check_writable(path)
        return path


def _check_can_be_sent(simulator: SimulatorFn) -> None:
    """Refuse a function that worker processes cannot import."""
    try:
        pickle.dumps(simulator)
    except Exception as err:  # of whatever kind the objects are
        raise ValueError(
            f"reference_table: workers import the simulator {name_of(simulator)}, which cannot be pickled. Let it stand in a "
            "module by its name, with what it needs as arguments of functools.partial, or pass num_workers=0."
        ) from err


def _identity(simulator: SimulatorFn) -> str:
    """Name, source and state of a function; what it calls is not looked at."""
    known = [getattr(simulator, "__module__", ""), getattr(simulator, "__qualname__", "")]
    called = simulator.func if isinstance(simulator, functools.partial) else simulator
    with contextlib.suppress(OSError, TypeError):
        known.append(inspect.getsource(called if inspect.isroutine(called) else type(called)))
    # Arguments of a partial and attributes of an object are in its pickle; of a local function there is what it closes over.
    cells = [cell.cell_contents for cell in getattr(called, "__closure__", None) or ()]
    for state in [simulator, *cells]:
        with contextlib.suppress(Exception):  # of whatever kind the objects are
            known.append(pickle.dumps(state).hex())
    return " ".join(known)


def _kept(path: Path) -> _Calls | None:
    """What a run before has left."""
    if not path.exists():
        return None
    header, arrays = read(path, _WHAT, _FORMAT)
    data = {n.removeprefix("data/"): x for n, x in arrays.items() if n != "failed"}
    return _Calls(arrays["failed"], str(header["reason"]), data)


def _keep(path: Path, batch: _Calls) -> None:
    arrays = {f"data/{n}": x for n, x in batch.data.items()}
    write(path, {"format": _FORMAT, "reason": batch.reason}, {"failed": batch.failed, **arrays})


@contextlib.contextmanager
def _calls(num_workers: int) -> Iterator[Callable[[list[Job]], Iterable[Answer]]]:
    """Answers to jobs, in their order."""
    if num_workers == 0:
        yield lambda jobs: map(_job, jobs)
        return
    # Started afresh: a fork of a process in which JAX has threads may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        chunk = lambda jobs: max(1, len(jobs) // (8 * num_workers))
        try:
            yield lambda jobs: pool.map(_job, jobs, chunksize=chunk(jobs))
        except concurrent.futures.process.BrokenProcessPool as err:
            raise RuntimeError(
                "reference_table: a worker process has died, killed by the simulator's own code or for want of memory. Batches "
                "in folder= are kept, so that the same call goes on behind them; give it fewer workers, or mend the simulator."
            ) from err


def _counted(answers: Iterable[Answer], bar: tqdm) -> Iterator[Answer]:
    for answer in answers:
        bar.update()
        yield answer


def _job(job: Job) -> Answer:
    simulator, entropy, parameters = job
    try:
        data = simulator(np.random.default_rng(entropy), parameters)
    except Exception as err:  # a failure is counted, and the first one told
        return None, f"{type(err).__name__}: {err}"
    # A simulator may return one array again and again, and write into it.
    return {name: np.array(x) for name, x in named(data, parameters).items()}, None


def _batch(answers: Iterable[Answer], start: int) -> _Calls:
    """Answers in rows; `start` is the number of the first."""
    rows = list(answers)
    failed = np.array([error is not None for _, error in rows])
    reason = next((error for _, error in rows if error is not None), "")
    fine = [(start + i, data) for i, (data, _) in enumerate(rows) if data is not None]
    for number, data in fine:
        _check_shapes(fine[0], (number, data))
    first = fine[0][1] if fine else {}
    return _Calls(failed, reason, {n: np.stack([data[n] for _, data in fine]) for n in first})


def _check_shapes(one: tuple[int, Values], other: tuple[int, Values]) -> None:
    first, second = ({n: np.shape(x) for n, x in data.items()} for _, data in (one, other))
    if first != second:
        raise ValueError(
            f"reference_table: simulation {one[0]} returned {first}, and simulation {other[0]} {second}. Let the simulator "
            "return data of one shape, e.g. summaries, or values padded with a count beside them."
        )


def _joined(parameters: Values, batches: list[_Calls]) -> SimulatedRows:
    """All rows; data of those that failed are zero."""
    failed = np.concatenate([b.failed for b in batches])
    reason = next((b.reason for b in batches if b.reason), "")
    if failed.all():
        raise ValueError(
            f"reference_table: all {len(failed)} calls of the simulator raised, the first one {reason}. Mend it, or a prior that "
            "draws what it cannot take."
        )
    starts = np.cumsum([0, *(len(b.failed) for b in batches)])
    firsts: list[tuple[int, Mapping[str, np.ndarray]]] = [
        (int(s + np.flatnonzero(~b.failed)[0]), {n: x[0] for n, x in b.data.items()})
        for s, b in zip(starts, batches, strict=False)
        if b.data
    ]
    for other in firsts:
        _check_shapes(firsts[0], other)
    data = {}
    for name, x in firsts[0][1].items():
        rows = np.concatenate([b.data[name] for b in batches if b.data])
        data[name] = np.zeros((len(failed), *np.shape(x)), rows.dtype)
        data[name][~failed] = rows
    return SimulatedRows(dict(parameters), data, failed, reason)
