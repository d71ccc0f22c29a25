"""How much does `import lapilli` cost over `import numpyro`?

Each import runs in a fresh interpreter, interleaved (A B C D A B C D ...), after one warm-up round
that fills the byte-code and file caches; the clock runs around the import statement only. The
budget is 0.3 s for `import lapilli` over `import numpyro`.

Run: python benchmarks/language/import_time.py [--repeats 20] [--record]   (about two minutes on 2 CPU cores)
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from _record import parsed, record_figure

BASE = "numpyro"
IMPORTS = (BASE, "lapilli", "lapilli.ppl", "lapilli.inference")
BUDGET = 0.3
CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Seconds that importing the module takes in a fresh interpreter."""
    env = {"JAX_PLATFORMS": "cpu"} | os.environ
    command = [sys.executable, "-c", CODE.format(module)]
    return float(
        subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    )


def measure(repeats: int) -> dict[str, list[float]]:
    """Seconds per module, interleaved, without the warm-up round."""
    rounds = [{module: seconds(module) for module in IMPORTS} for _ in range(repeats + 1)]
    return {module: [r[module] for r in rounds[1:]] for module in IMPORTS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parsed(parser)
    times = measure(options.repeats)

    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("jax", "numpyro"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{versions}\n\n{'import':<20}{'median s':>10}{'quartiles s':>18}{'over numpyro s':>16}")
    base = statistics.median(times[BASE])
    for module, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{module:<20}{median:>10.3f}{f'{low:.3f} .. {high:.3f}':>18}{median - base:>+16.3f}")

    if options.record:
        record_figure(
            "gradients/import_time",
            what=f"imports beyond `import {BASE}`, seconds, median of {options.repeats}",
            value={m: statistics.median(t) - base for m, t in times.items() if m != BASE},
            note=f"aim for `import lapilli`: {BUDGET} s",
            digits=2,
            measures=["ppl", "inference"],
        )
    extra = statistics.median(times["lapilli"]) - base
    print(f"\nimport lapilli: {extra:+.3f} s over import numpyro (budget {BUDGET:+.1f} s)")
    return int(extra > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
