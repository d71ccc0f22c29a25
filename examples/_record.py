"""Writes a figure that a script has measured to where the page of figures reads it: `docs/_data/figures`.

The fields of a record are listed in `docs/_ext/figures.py`. Scripts write one when they are told to (`--record`), so that whoever
merely runs them changes nothing. Commit the code first: what is measured belongs to a commit.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _ran import joined, ran, watch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "_data" / "figures"
_lines: dict[str, set[int]] = {}  # of what has run, where a figure is to be recorded


def parsed(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> argparse.Namespace:
    """The options of a script, `--record` among them, which smoke runs are refused; the folder `out` exists afterwards."""
    parser.add_argument("--record", action="store_true", help="write the figures to docs/_data")
    options = parser.parse_args(arguments)
    if options.record and getattr(options, "smoke", False):
        parser.error("--record is for the full size, without --smoke")
    if (options.record or getattr(options, "kept", None)) and not _lines:
        watch(_lines)
    if "out" in options:
        options.out.mkdir(parents=True, exist_ok=True)
    return options


def ran_so_far(paths: Sequence[str]) -> dict[str, str]:
    """Of files and folders from the root the digests of what this process has run of them, where options are `parsed`."""
    return {path: digests for path in paths if (digests := ran(_lines, ROOT / path))}


def keep(out: Path, text: str, metrics: Any) -> None:
    """Print the report; write report.txt and metrics.json."""
    print(text)
    (out / "report.txt").write_text(text + "\n")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))


def record_figure(
    where: str,
    *,
    what: str,
    value: str | Mapping[str, float | str],
    measures: Sequence[str],
    packages: Sequence[str] = (),
    folder: Path = FOLDER,
    before: Mapping[str, str] | None = None,
    **more: Any,
) -> Path:
    """Write or replace one record, with command, commit, date, processor and versions of this process.

    Args:
        where: "SUBJECT/NAME": the file, which exists, and the record in it; a new one comes last.
        what: is measured, at which size, in which unit.
        value: text, or numbers by name.
        measures: files and folders, from the root, whose change makes the figure an old one; the script is one of them.
        packages: whose versions count besides jax, numpyro and lapilli, e.g. a peer.
        folder: of the files.
        before: what ran of these paths, by `ran_so_far`, in the processes that this one goes on from; then no time is told.
        more: `spread`, `interval`, `seeds`, `claim`, `claimed_by`, `note`, `digits`, and `time` where it is not what this
            process has taken of processors.

    Returns:
        The file.
    """
    subject, _, name = where.partition("/")
    file = folder / f"{subject}.json"
    part = json.loads(file.read_text())
    script = Path(sys.argv[0]).resolve()
    paths = [*([str(script.relative_to(ROOT))] if script.is_relative_to(ROOT) else []), *measures]
    digits = more.get("digits", 3)
    given = {"what": what, "value": value, **more}
    given.setdefault("time", processor_time() if before is None else None)
    record = (
        {"name": name}
        | {k: _rounded(v, digits) for k, v in given.items() if v is not None}
        | provenance(paths, packages, before)
    )
    place = [r["name"] for r in part["figures"]]
    if name in place:
        part["figures"][place.index(name)] = record
    else:
        part["figures"].append(record)
    file.write_text(json.dumps(part, indent=1, ensure_ascii=False) + "\n")
    return file


def provenance(
    measures: Sequence[str], packages: Sequence[str] = (), before: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a record says of how it came about."""
    changes = _git("status", "--porcelain", "--", *measures)
    import lapilli

    found = {p: importlib.metadata.version(p) for p in ("jax", "numpyro", *packages)}
    paths, earlier = list(dict.fromkeys(measures)), before or {}
    now = ran_so_far(paths)
    together = {p: joined([earlier.get(p, ""), now.get(p, "")]) for p in paths}
    return {
        "command": command(),
        "commit": commit(),
        **({"changed": True} if changes else {}),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
        "versions": found | {"lapilli": lapilli.__version__},
        "measures": paths,
        "ran": {p: digests for p, digests in together.items() if digests},
    }


def commit() -> str:
    """The one that is checked out."""
    return _git("rev-parse", "--short", "HEAD")


def command() -> str:
    """This process's, from the root, without `--record`, where output goes, and the folders of this machine."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    options = [
        Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:] if a != "--record"
    ]
    if "--out" in options:
        at = options.index("--out")
        del options[at : at + 2]
    return shlex.join(["python", str(name), *options])


def processor_time() -> str:
    """Of this process and those that it has waited for, up to now, in words."""
    seconds = sum(os.times()[:4])
    amount, unit = (seconds / 60, "minute") if seconds > 90 else (seconds, "second")
    number = max(1, round(amount))
    return f"{number} {unit}{'s' * (number > 1)} of processor time"


def processor() -> str:
    """Its name, and how many of its cores this process may use; the accelerator that JAX uses, if there is one."""
    import jax

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    text = f"{names[0] if names else platform.machine()}, {cores} core{'s' * (cores > 1)}"
    kind = jax.devices()[0]
    return text if kind.platform == "cpu" else f"{kind.device_kind}; {text}"


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v, digits) for k, v in value.items()}
    is_number = hasattr(value, "__float__") and not isinstance(value, int | str)
    return round(float(value), digits) + 0.0 if is_number else value  # no -0.0


def _git(*arguments: str) -> str:
    """What git says, without its last line break."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
