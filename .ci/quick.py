"""Prints the tests of what has changed since a commit (default: the last one), for `make quick`.

A changed file of `ppl/checks` is tested by `tests/ppl/checks`, and so on up the folders; a test file by itself. Whatever has
changed, the plan of the packages and the wall around other libraries are looked at.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ["tests/ppl/test_wings.py", "tests/test_maps.py", "tests/test_packaging.py"]


def changed(since: str) -> list[str]:
    """Files that differ from a commit, those that git does not know yet included."""
    commands = (
        ["git", "diff", "--name-only", since],
        ["git", "ls-files", "--others", "--exclude-standard"],
    )
    found = [
        subprocess.run(c, cwd=ROOT, check=True, capture_output=True, text=True) for c in commands
    ]
    return [line for out in found for line in out.stdout.splitlines()]


def tests_of(name: str) -> str | None:
    """Where a file is tested; None where it is not."""
    path = Path(name)
    if path.parts[0] == "tests":
        is_test = path.name.startswith("test_") and (ROOT / path).exists()
        return name if is_test else None
    if path.suffix != ".py" or path.parts[0] not in (
        "ppl",
        "inference",
        "models",
        "examples",
        "benchmarks",
    ):
        return None
    mirrored = [Path("tests", *folder.parts) for folder in path.parents if folder.parts]
    return next((str(folder) for folder in mirrored if (ROOT / folder).is_dir()), None)


def main() -> None:
    """Print them."""
    since = sys.argv[1] if len(sys.argv) > 1 else "HEAD~1"
    found = {where for name in changed(since) if (where := tests_of(name))}
    print(*sorted({*found, *ALWAYS}))


if __name__ == "__main__":
    main()
