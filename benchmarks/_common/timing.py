"""How times are taken and compared: interleaved calls, medians of paired ratios, first calls in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

NUM_WARM = 2


class Times(NamedTuple):
    """Seconds of each run by name: those of the first call, with compilation, and [repeats] steady ones."""

    first: dict[str, Any]
    steady: dict[str, np.ndarray]


def interleaved(
    runs: Mapping[str, Callable[[int], Any]],
    repeats: int,
    *,
    clock: Callable[[], Any] = time.perf_counter,
    see: Callable[[str, Any], None] = lambda name, result: None,
) -> Times:
    """Times of runs in turns, in another order every round, so that what else the machine does falls on all of them alike.

    Args:
        runs: by name, functions of the number of the round; their results are waited for.
        repeats: rounds after two that warm up.
        clock: seconds, a number or an array of several clocks.
        see: is given each name and result, also those of rounds that warm up; not timed.
    """
    names, seconds = list(runs), {name: [] for name in runs}
    for i in range(NUM_WARM + repeats):
        turned = names[i % len(names) :] + names[: i % len(names)]
        for name in turned if i // len(names) % 2 else turned[::-1]:
            start = clock()
            result = jax.block_until_ready(runs[name](i))
            seconds[name].append(clock() - start)
            see(name, result)
    return Times(
        {name: s[0] for name, s in seconds.items()},
        {name: np.array(s[NUM_WARM:]) for name, s in seconds.items()},
    )


class Ratio(NamedTuple):
    """A median and its 95% interval; f"{ratio:.2f}" is "1.02 [0.99, 1.05]"."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def paired(seconds: Any, reference: Any) -> Ratio:
    """The median of seconds / reference, pair by pair, with a percentile interval from 2,000 bootstrap samples."""
    ratios = np.asarray(seconds, float) / np.asarray(reference, float)
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return Ratio(
        float(np.median(ratios)), *map(float, np.quantile(np.median(samples, 1), [0.025, 0.975]))
    )


def without_cache() -> dict[str, str]:
    """The environment without JAX's compilation cache, for first calls."""
    return {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}


def output_of(script: str, *options: str) -> str:
    """What a script prints in a Python of its own without a compilation cache."""
    command = [sys.executable, script, *options]
    return subprocess.run(
        command, env=without_cache(), check=True, capture_output=True, text=True
    ).stdout.strip()
