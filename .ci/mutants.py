"""Breaks the library on purpose, one line at a time, and sees whether the fast tests fail: `make mutants`.

A mutant is a line that is replaced in a copy of the last commit. It is caught if a test fails: of the file that has seen it
before, of the folder that mirrors its own, of its package, of the rest. One that survives is a hole in the fast tests, and the
exit status is 1.

usage: python .ci/mutants.py [--only NAME ...] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """What is broken, in which file, and how; the file of tests, from `tests`, that is known to see it."""

    name: str
    file: str
    old: str
    new: str
    seen_by: str


MUTANTS = (
    Mutant(
        "a baseline sees its own cost", "ppl/strategies/_reinforce.py",
        "(cost.sum(0, keepdims=True) - cost) / (n - 1)", "cost.sum(0, keepdims=True) / n",
        "ppl/strategies/test_reinforce.py",
    ),
    Mutant(
        "a weak derivative of the scale", "ppl/strategies/_mvd.py",
        "Triple(scale, 1 / scale,", "Triple(scale, 2 / scale,",
        "ppl/strategies/test_mvd.py",
    ),
    Mutant(
        "earlier costs in place of later ones", "ppl/estimation/_downstream.py",
        "letters[link.axis], reverse=True)", "letters[link.axis], reverse=False)",
        "ppl/estimation/test_unbiased_exact.py",
    ),
    Mutant(
        "no alarm at moved null probabilities", "ppl/estimation/_estimate.py",
        "total = total + alarm(probabilities)", "del probabilities",
        "ppl/checks/test_null_values.py",
    ),
    Mutant(
        "a recursion without late factors", "ppl/enumeration/_forward.py",
        "jnp.expand_dims(left, self.oldest), *late)", "jnp.expand_dims(left, self.oldest))",
        "ppl/densities/test_eliminate.py",
    ),
    Mutant(
        "draws without noise of their own step", "ppl/enumeration/_semirings.py",
        "jax.random.fold_in(self.key, number), x.shape", "self.key, x.shape",
        "ppl/densities/test_eliminate.py",
    ),
    Mutant(
        "masked replacements everywhere", "ppl/evaluation/_evaluate.py",
        "return jnp.where(mask, value, draw)", "return jnp.where(mask | True, value, draw)",
        "ppl/estimation/test_unbiased_mixed.py",
    ),
    Mutant(
        "a sum of weights for their mean", "ppl/densities/_marginal.py",
        "log_mean_exp(jnp.concatenate(log_weights))", "jax.nn.logsumexp(jnp.concatenate(log_weights))",
        "ppl/densities/test_marginal.py",
    ),
    Mutant(
        "steps taken for smooth", "ppl/jaxprs/_continuity.py",
        "    if name in STEPS or (",
        "    if name == 'ceil':\n        return swallowed\n    if name in STEPS or (",
        "ppl/checks/test_jumps.py",
    ),
    Mutant(
        "unknown supports taken for equal", "ppl/distributions/_supports.py",
        "if a.unknown or b.unknown:\n        return False", "if a.unknown or b.unknown:\n        return True",
        "ppl/distributions/test_supports.py",
    ),
    Mutant(
        "roots whose blocks turn freely", "ppl/gaussian/beliefs/_roots.py",
        "moved, turned = moved + root @ turn, turned + q @ turn", "pass",
        "ppl/gaussian/test_roots.py",
    ),
    Mutant(
        "missing cells seen by the belief", "ppl/gaussian/_laws.py",
        "return jnp.where(is_seen[..., None], self.seen, 0), self.noise.apart(is_seen)", "return self.seen, self.noise",
        "ppl/gaussian/test_edges.py",
    ),
    Mutant(
        "what stands beside a site counted in its coefficients", "ppl/gaussian/_forms.py",
        "jnp.zeros_like(x) if i in together and i not in uncertain else x", "x",
        "ppl/gaussian/test_edges.py",
    ),
    Mutant(
        "rows of a minibatch unscaled", "inference/objectives/_bounds.py",
        "return jnp.sum(scale * log_mean_exp(log_weights))", "return jnp.sum(log_mean_exp(log_weights))",
        "inference/objectives/test_bounds.py",
    ),
    Mutant(
        "one offspring too many at a boundary", "inference/particles/resampling/_offspring.py",
        "(whole + (place < rest))", "(whole + (place <= rest))",
        "inference/particles/resampling/test_resampling.py",
    ),
    Mutant(
        "weights kept over a resampling", "inference/particles/engine/_step.py",
        "self._reweight(chosen.log_weights, log_potentials)", "self._reweight(log_weights, log_potentials)",
        "inference/particles/engine/test_smc.py",
    ),
    Mutant(
        "a retained path without its slot", "inference/particles/resampling/_conditional.py",
        "return jnp.roll(ancestors, -slot).at[0].set(0)", "return ancestors.at[0].set(0)",
        "inference/particles/resampling/test_conditional_resampling.py",
    ),
)  # fmt: skip


def main() -> None:
    """Try them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    survived = []
    for mutant in MUTANTS:
        if options.only and not any(part in mutant.name for part in options.only):
            continue
        start = time.monotonic()
        found = caught_by(mutant, options.workers)
        print(
            f"{time.monotonic() - start:5.0f} s  {mutant.name}: {found or 'SURVIVED'}", flush=True
        )
        if found is None:
            survived.append(mutant.name)
    sys.exit(bool(survived))


def caught_by(mutant: Mutant, workers: str) -> str | None:
    """The first test that fails, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "lapilli")
        subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
        file = copy / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.name}: {mutant.file} does not hold this once: {mutant.old}")
        file.write_text(text.replace(mutant.old, mutant.new))
        near = Path("tests", mutant.file).parent
        while not (copy / near).is_dir():
            near = near.parent
        for where in (
            Path("tests", mutant.seen_by),
            near,
            Path("tests", near.parts[1]),
            Path("tests"),
        ):
            failed = first_failure(copy, where, workers)
            if failed is not None:
                return failed
    return None


def first_failure(copy: Path, where: Path, workers: str) -> str | None:
    """Run the fast tests of a folder until one fails."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    cache = str(ROOT / ".cache" / "jax")
    # The copy is imported, and not the installed package.
    env = os.environ | {
        "PYTHONPATH": str(copy.parent),
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    options = f"-q -x -n {workers} --dist worksteal".split()
    command = [sys.executable, "-m", "pytest", *options, "-m", "not slow", where]
    result = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    if result.returncode == 0:
        return None
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:
        raise SystemExit(f"{where} did not run:\n{result.stdout[-500:]}{result.stderr[-500:]}")
    return failed[0]


if __name__ == "__main__":
    main()
