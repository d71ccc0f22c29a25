"""Question: what does one gradient of attend, infer, repeat cost in each system, under each estimator of the count?

The table of systems of Becker et al. 2024 (arXiv:2406.15742, table 2: seconds per epoch), run again on equal terms: one set of
networks (_peers/air_nets.py), one prior of the count, absent objects without density everywhere, the same parameters and images,
float32, one thread each, clocks stopped when results are ready. Each system runs in a process of its own, where the others wait
while it works; calls are interleaved, A B C A B C. First calls (tracing and compilation, no cache) have a column of their own.

Before its time counts, a system must compute the same thing: the mean of its bound over all calls is asserted to equal that of
the reference (lapilli, by enumeration or measure-valued derivatives) within 4.5 standard errors. The mean derivative in the bias
of the count is compared likewise; a row that is further off is marked BIASED, whatever its time.

GenJAX 1.0.14 needs jax < 0.12, and Pyro brings PyTorch; both take environments of their own:

    uv venv --python 3.13 genjax-env && uv pip install --python genjax-env 'genjax==1.0.14' 'jax<0.12'
    uv venv --python 3.13 pyro-env && uv pip install --python pyro-env pyro-ppl numpy

usage: python benchmarks/language/systems.py [--genjax-python genjax-env/bin/python] [--pyro-python pyro-env/bin/python]
    [--repeats 60] [--record]

A system whose environment is not given is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "_peers"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "papers" / "variational"))

import _air_scenes as air_scenes
import air_nets
from _common import paired, parsed, record_figure, with_intervals, without_cache

PEERS = Path(air_nets.__file__).parent
COLUMNS = (
    "ELBO, REINFORCE",
    "ELBO, ENUM",
    "ELBO, MVD",
    "IWELBO 2, REINFORCE",
    "IWELBO 2, MVD",
)
REFERENCE = {"ELBO": "ELBO, ENUM", "IWELBO 2": "IWELBO 2, MVD"}
PAPER = {  # seconds per epoch
    "genjax": (1.52, 6.22, 1.74, 2.28, 3.74),
    "pyro": (12.28, 122.93, None, 22.17, None),
}
Z_MAX = 4.5


class System:
    """A worker process."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment(), stdin=pipe, stdout=pipe, text=True
        )
        hello = self._hear()
        self.versions, self.columns = hello["versions"], hello["columns"]

    def ask(self, column: str, seeds: list[int]) -> dict[str, Any]:
        print(json.dumps({"column": column, "seeds": seeds}), file=self.process.stdin, flush=True)
        return self._hear()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended without an answer; see its messages above")
        return json.loads(line)


def environment() -> dict[str, str]:
    """One thread: clock and processor time agree, and no waiting thread spins. No compilation cache."""
    return without_cache() | {"NPROC": "1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}


def write_problem(path: Path, batch: int) -> None:
    """Parameters at their start and the first images, for all systems to read."""
    rng = np.random.default_rng(0)
    arrays = {"x": air_scenes.make_scenes(batch, 1).train}
    for name, (rows, columns) in air_nets.SHAPES.items():
        weight = rng.normal(size=(rows, columns)) / rows**0.5
        arrays[f"{name}.weight"] = weight.astype(np.float32)
        arrays[f"{name}.bias"] = np.full(columns, -2.0 * (name == "write_2"), np.float32)
    np.savez(path, **arrays)


def commands(args: argparse.Namespace, problem: Path) -> dict[str, list[str]]:
    here = lambda script: str(PEERS / script)
    found = {
        name: [sys.executable, here("air_numpyro.py"), str(problem), name]
        for name in ("lapilli", "numpyro")
    }
    for name in ("genjax", "pyro"):
        python = getattr(args, f"{name}_python")
        if python:
            found[name] = [python, here(f"air_{name}.py"), str(problem)]
    return found


def measure(systems: list[System], columns: list[str], repeats: int) -> dict[tuple[str, str], dict]:
    """(column, system) -> {"first": CPU seconds, "seconds", "cpu", "values", "grads": [repeats]} or {"error": why}."""
    found: dict[tuple[str, str], dict] = {}
    for column in columns:
        for system in systems:
            if column in system.columns:
                first = system.ask(column, [0])
                if "error" not in first:
                    system.ask(column, [0])  # once more to warm up
                    first = {"first": first["cpu"][0]} | {
                        k: [] for k in ("seconds", "cpu", "values", "grads")
                    }
                found[column, system.name] = first
                print(f"  {column}, {system.name}: first call done", file=sys.stderr, flush=True)
    for i in range(repeats):
        for column in columns:
            for system in systems if i % 2 else systems[::-1]:
                row = found.get((column, system.name), {"error": ""})
                if "error" not in row:
                    for name, numbers in system.ask(column, [i + 1]).items():
                        row[name] += numbers
    return found


def distance(a: list[float], b: list[float]) -> float:
    """Of two means, in standard errors."""
    error = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))
    return float(abs(np.mean(a) - np.mean(b)) / (error + 1e-6 * abs(np.mean(b))))


def line(found: dict, column: str, name: str, batch: int) -> str:
    row = found[column, name]
    if "error" in row:
        return f"  {name:8s} {row['error']}"
    ours = found[column, "lapilli"]
    reference = found[REFERENCE[column.split(", ")[0]], "lapilli"]
    apart = distance(row["values"], reference["values"])
    assert apart < Z_MAX, f"{name}, {column}: another bound, {apart:.1f} standard errors away"
    paper = PAPER.get(name, (None,) * len(COLUMNS))[COLUMNS.index(column)]
    return (
        f"  {name:8s} {1e3 * np.median(row['seconds']):8.1f} {f'{paired(row["seconds"], ours["seconds"]):.2f}':>20s}"
        f" {1e3 * np.median(row['cpu']):8.1f} {f'{paired(row["cpu"], ours["cpu"]):.2f}':>20s} {row['first']:7.1f}"
        f"  {np.mean(row['values']) / batch:8.2f} {np.mean(row['grads']) / batch:7.2f} {np.std(row['grads']) / batch:7.2f}"
        f"  {'-' if paper is None else paper:>7}{'  BIASED' if is_biased(found, column, name) else ''}"
    )


def is_biased(found: dict, column: str, name: str) -> bool:
    """Whether the mean derivative in the bias of the count is another than the reference's."""
    reference = found[REFERENCE[column.split(", ")[0]], "lapilli"]
    return distance(found[column, name]["grads"], reference["grads"]) > Z_MAX


def record(found: dict, systems: list[System]) -> None:
    """Times relative to ours, for the page of figures."""
    rows = {k: r for k, r in found.items() if k[1] != "lapilli" and "error" not in r}
    biased = [f"{name}, {column}" for column, name in rows if is_biased(found, column, name)]
    record_figure(
        "gradients/air_systems",
        what="one gradient of attend, infer, repeat in other systems, processor time relative to lapilli; spread: half of the "
        "95% interval of the median",
        note="; ".join(f"{s.name}: {s.versions}" for s in systems) + f"; biased: {', '.join(biased) or 'none'}",
        digits=2,
        measures=["benchmarks/_peers", "models/air.py", "ppl"],
        **with_intervals({
            f"{name}, {column}": paired(row["cpu"], found[column, "lapilli"]["cpu"])
            for (column, name), row in rows.items()
        }),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genjax-python", help="a Python that has GenJAX")
    parser.add_argument("--pyro-python", help="a Python that has Pyro")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    args = parsed(parser)
    needed = {REFERENCE[c.split(", ")[0]] for c in args.columns}
    columns = [c for c in COLUMNS if c in {*args.columns, *needed}]
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem.npz"
        write_problem(problem, args.batch)
        systems = [System(name, command) for name, command in commands(args, problem).items()]
        print(f"{os.cpu_count()} cores, batch of {args.batch}, float32")
        for system in systems:
            print(f"  {system.name}: {system.versions}")
        found = measure(systems, columns, args.repeats)
        for system in systems:
            system.close()
    print(
        f"  {'':8s} {'ms':>8s} {'ratio to lapilli':>20s} {'CPU ms':>8s} {'ratio to lapilli':>20s} {'first':>7s}"
        f"  {'bound':>8s} {'grad':>7s} {'sd':>7s}  {'paper':>7s}"
    )
    for column in columns:
        print(column)
        for system in systems:
            if (column, system.name) in found:
                print(line(found, column, system.name, args.batch))
            else:
                print(f"  {system.name:8s} has no such estimator")
    print(
        "ms: median of a value and gradient on the clock; CPU ms: of the process; first: CPU seconds of the first call;\n"
        "bound, grad, sd: nats per image, of the gradient in the bias of the count; paper: seconds per epoch."
    )
    if args.record:
        record(found, systems)


if __name__ == "__main__":
    main()
