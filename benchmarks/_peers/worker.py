"""One system of systems.py in a process and an environment of its own: told what to run, it answers with seconds and numbers.

Lines of JSON. First the worker says {"versions": ..., "columns": [...]}; then each request {"column": ..., "seeds": [...]} gets
{"seconds": [...], "cpu": [...], "values": [...], "grads": [...]}, or {"error": ...}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Gradient(NamedTuple):
    """A bound and its gradient in all parameters.

    Attributes:
        run: seed -> whatever it computes, when it is ready.
        read: what it computed -> (the bound, its derivative in the bias of the count), both summed over images, nats.
    """

    run: Callable[[int], Any]
    read: Callable[[Any], tuple[float, float]]


Make = Callable[[dict[str, dict[str, np.ndarray]], np.ndarray], Gradient]


def load(path: str) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Parameters and images."""
    arrays = dict(np.load(path))
    x, params = arrays.pop("x"), {}
    for name, array in arrays.items():
        layer, kind = name.split(".")
        params.setdefault(layer, {})[kind] = array
    return params, x


def serve(columns: Mapping[str, Make], versions: str) -> None:
    """Answer requests until there are no more."""
    params, x = load(sys.argv[1])
    made: dict[str, Gradient] = {}
    # What libraries print must not get among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    say = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    say({"versions": versions, "columns": list(columns)})
    for line in sys.stdin:
        request = json.loads(line)
        column = request["column"]
        try:
            if column not in made:
                made[column] = columns[column](params, x)
            say(answer(made[column], request["seeds"]))
        except Exception as error:  # told to whoever asked, who goes on with the others
            say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def answer(gradient: Gradient, seeds: list[int]) -> dict[str, list[float]]:
    """Seconds on the clock and of all threads of this process, and what was computed, for each seed."""
    seconds, cpu, found = [], [], []
    for seed in seeds:
        start, busy = time.perf_counter(), time.process_time()
        out = gradient.run(seed)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
        found.append(gradient.read(out))
    values, grads = zip(*found, strict=True)
    return {"seconds": seconds, "cpu": cpu, "values": list(values), "grads": list(grads)}
