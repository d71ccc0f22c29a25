"""Figures that are older than their code: which they are, and what they are today.

    python .ci/figures.py [--anew SECONDS] [NAME ...]

lists them with the paths that have changed, what each took, and its command. `--anew` measures again, at full size and on
record, those that took so many seconds of a processor at most, one command after the other, and says which moved by more than
their spread. NAME: only those whose name (SUBJECT/NAME) has this in it, old or not. Some figures are times: nothing else may run.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import figures  # noqa: E402

type Record = Mapping[str, Any]
_UNITS = {"second": 1, "minute": 60, "hour": 3600}


def seconds(record: Record) -> float:
    """What a figure took of a processor, of its own words; infinite where they say nothing."""
    found = re.match(r"([\d.]+) (second|minute|hour)", str(record.get("time", "")))
    return float(found[1]) * _UNITS[found[2]] if found else float("inf")


def moved(before: Record, after: Record) -> Iterator[str]:
    """In words, the numbers that differ by more than the larger of both spreads; all that differ where there is none."""
    pairs = [_numbers(r["value"]) for r in (before, after)]
    spreads = [_numbers(r.get("spread", {})) for r in (before, after)]
    for name in dict.fromkeys([*pairs[0], *pairs[1]]):
        old, new = (part.get(name) for part in pairs)
        known = [part[name] for part in spreads if isinstance(part.get(name), float)]
        are_numbers = isinstance(old, float) and isinstance(new, float)
        if old == new or are_numbers and known and abs(new - old) <= max(known):
            continue
        size = f", spread {max(known):g}" if known else ", without a spread"
        yield f"{name or 'value'} {old} -> {new}{size}"


def _numbers(value: object) -> dict[str, Any]:
    """A value by name, "" for one without; numbers as floats."""
    named = value if isinstance(value, Mapping) else {"": value}
    return {k: float(v) if isinstance(v, int | float) else v for k, v in named.items()}


def measure(command: str, names: list[str]) -> None:
    """Run one command on record, and say what moved."""
    before = dict(figures.records())
    print(f"\n{command} --record", flush=True)
    words = [sys.executable if w == "python" else w for w in shlex.split(command)]
    if subprocess.run([*words, "--record"], cwd=ROOT).returncode:
        print("  failed; its figures stay as they were")
        return
    after = dict(figures.records())
    for name in names:
        lines = list(moved(before[name], after[name]))
        print(*(f"  {name}: {line}" for line in lines or ["within its spread"]), sep="\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--anew", type=float, metavar="SECONDS", help="measure what took no more")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    records = dict(figures.records())
    older = {name: figures.older(record) for name, record in records.items()}
    chosen = {
        name: record
        for name, record in records.items()
        if (any(part in name for part in options.names) if options.names else older[name])
    }
    for name, record in sorted(chosen.items(), key=lambda item: seconds(item[1])):
        print(
            f"{name}: {', '.join(older[name]) or 'as its code'}; {record.get('time', 'time unknown')}; {record['command']}"
        )
    print(f"{sum(map(bool, older.values()))} of {len(records)} figures are older than their code")
    if options.anew is not None:
        commands: dict[str, list[str]] = {}
        for name, record in chosen.items():
            if seconds(record) <= options.anew:
                commands.setdefault(record["command"], []).append(name)
        for command, names in commands.items():
            measure(command, names)


if __name__ == "__main__":
    main()
