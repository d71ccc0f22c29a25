"""Question: does `fit` from a file keep up with the memory that the rows pass through?

A linear regression of 15 slopes on rows of 16 float32 numbers, which lie in a memory-mapped file of 1 GB; batches are blocks of
8,192 rows in an order drawn anew for each pass, ten passes stand for a file of 10 GB. Beside each pass, in pauses of the same
run, the same rows are copied from memory into a buffer, block by block: that is the reading speed. Variants: the file read ahead
by a thread (default), the file read between device calls (prefetch=0), the rows in memory read ahead; and one batch that stays on
the device, which is what the steps cost by themselves. Figures are medians over the passes of paired ratios (pass of `fit` /
pass of copying), with a 95% bootstrap interval. The file is in the page cache of the system after the pass that writes it: where
it is larger than memory, the disk's own speed is the bound.

usage: python benchmarks/language/streaming.py [--gigabytes 1.0] [--passes 10] [--rows 8192]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lapilli import inference, ppl  # first: it sets a flag that JAX reads when it starts

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import paired

WIDTH = 16


@ppl.model
def model(rows: Any) -> None:
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([WIDTH - 1]).to_event(1))
    with ppl.plate("rows", rows.shape[0]):
        ppl.sample("y", dist.Normal(rows[:, :-1] @ beta, 1.0), obs=rows[:, -1])


def guide(rows: Any) -> None:
    loc = ppl.param("loc", jnp.zeros(WIDTH - 1))
    scale = ppl.param("scale", 0.1 * jnp.ones(WIDTH - 1), constraint=dist.constraints.positive)
    ppl.sample("beta", dist.Normal(loc, scale).to_event(1))


def write(path: str, num_rows: int) -> None:
    """Standard normal features, and targets from slopes 0, 1, ..., 14 over 15; the first part repeated."""
    rng = np.random.default_rng(0)
    part = rng.normal(size=(min(num_rows, 2**20), WIDTH)).astype(np.float32)
    part[:, -1] += part[:, :-1] @ np.arange(WIDTH - 1, dtype=np.float32) / (WIDTH - 1)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, WIDTH))
    for start in range(0, num_rows, len(part)):
        file[start : start + len(part)] = part[: num_rows - start]
    file.flush()


def batches(rows: Any, size: int, passes: int, seed: int = 0) -> Iterator[tuple]:
    """Blocks of rows, in a new order in each pass."""
    rng = np.random.default_rng(seed)
    for _ in range(passes):
        for block in rng.permutation(len(rows) // size):
            yield (rows[block * size : (block + 1) * size],)


def copying(rows: np.ndarray, size: int) -> float:
    """Seconds of copying one pass into a buffer."""
    buffer, start = np.empty((size, WIDTH), np.float32), time.perf_counter()
    for (block,) in batches(rows, size, 1):
        np.copyto(buffer, block)
    return time.perf_counter() - start


def streamed(
    rows: Any, in_memory: np.ndarray, size: int, passes: int, prefetch: int
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Seconds of each pass of `fit`, seconds of copying beside it, and the fit; the first pass warms up."""
    per_pass, fitted, copied = len(in_memory) // size, [], []
    began = [time.perf_counter()]

    def look(info: Any) -> None:
        fitted.append(time.perf_counter() - began[0])
        copied.append(copying(in_memory, size))
        began[0] = time.perf_counter()

    streams = {"args": batches(rows, size, passes + 1), "plate_sizes": {"rows": len(in_memory)}}
    fit = inference.fit(
        inference.elbo(model, guide), optax.adam(0.01), prefetch=prefetch,
        num_steps=per_pass * (passes + 1), **({"args": (rows,)} if len(rows) == size else streams),
        callbacks=[look], callback_every=per_pass, progress=False,
    )  # fmt: skip
    return np.array(fitted[1:]), np.array(copied[1:]), fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--rows", type=int, default=8192, help="rows of a batch")
    options = parser.parse_args()
    num_rows = int(options.gigabytes * 1e9 / (4 * WIDTH)) // options.rows * options.rows
    print(f"{os.cpu_count()} cores, JAX {jax.__version__}, {jax.default_backend()}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.npy")
        write(path, num_rows)
        file = np.load(path, mmap_mode="r")
        in_memory = np.array(file)
        gigabytes = in_memory.nbytes / 1e9
        print(f"{num_rows:,} rows, {gigabytes:.2f} GB a pass, {options.passes} passes")
        variants = {
            "file, read ahead": (file, 2),
            "file, prefetch=0": (file, 0),
            "memory, read ahead": (in_memory, 2),
            "steps alone": (in_memory[: options.rows], 0),
        }
        means = []
        for name, (rows, prefetch) in variants.items():
            fitted, copied, fit = streamed(rows, in_memory, options.rows, options.passes, prefetch)
            means.append(np.asarray(fit.params["loc"]))
            print(
                f"{name:20} {gigabytes / np.median(fitted):6.2f} GB/s, copying {gigabytes / np.median(copied):6.2f} GB/s, "
                f"time relative to copying {paired(fitted, copied):.2f}"
            )
    equal = all(np.array_equal(means[0], m) for m in means[:3])
    off = np.abs(means[0] - np.arange(WIDTH - 1) / (WIDTH - 1)).max()
    print(f"fits equal to the bit: {equal}; slopes within {off:.4f} of the truth")


if __name__ == "__main__":
    main()
