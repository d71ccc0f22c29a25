"""The page of figures: what benchmarks and examples measured, from the records in `docs/_data/figures`, one file a subject.

A file is {"title": ..., "figures": [record, ...]}; `examples/_record.py` writes records. Fields of one:

    name        of its own in the file
    what        is measured, at which size, in which unit
    value       text, or a mapping from names to numbers, printed to `digits` decimals
    spread      of the value (standard error or standard deviation, `what` or `note` says which), as `value`; `interval`: 95%
    seeds       how many (a number) or which (text), where it is known
    claim       what the paper, a peer or an exact answer says of it, as `value`; `claimed_by` where it is a mapping
    note        what the figure does not show by itself
    command     that measures it, and `time`, what that took of processors
    commit      at which it was measured, and `date`; `changed` if what it measures had been changed since that commit
    processor, versions (package -> version)
    measures    files and folders whose change makes the figure an old one
    ran         path of these -> digests of what has run of it (`examples/_ran.py`), or of all of it where that was not recorded
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from faces import ROOT, renew
from tables import markdown

sys.path.append(str(ROOT / "examples"))
from _ran import digests_of, is_older

FOLDER = ROOT / "docs" / "_data" / "figures"
PAGE = ROOT / "docs" / "figures.md"
REQUIRED = (
    "name", "what", "value", "command", "commit", "date", "processor", "versions", "measures",
)  # fmt: skip
OPTIONAL = (
    "digits", "spread", "interval", "seeds", "claim", "claimed_by", "note", "time", "changed", "ran",
)  # fmt: skip
HEAD = """# Figures

What benchmarks and examples measured, beside what papers, peers and exact answers say, whatever came out. Each row has the
command that measures it, the commit and the day; scripts write the rows, nobody types one. A row is *older than its code* if one
of the functions that it ran, of the script or of the part of the library that it measures, is no more what it was: docstrings,
types, words of errors and names apart. Rows that were measured before this was recorded bear the mark if anything there has
changed. The paths where it has stand beside it. The figure may still hold; nobody has looked.
"""


def subjects() -> dict[str, dict[str, Any]]:
    """Name of the file -> its title and records, in the order of the page; without files that wait for their first record."""
    found = {f.stem: json.loads(f.read_text()) for f in FOLDER.glob("*.json")}
    order = sorted(found.items(), key=lambda item: item[1]["order"])
    return {name: part for name, part in order if part["figures"]}


def records() -> Iterator[tuple[str, dict[str, Any]]]:
    """Subject/name and record."""
    for subject, part in subjects().items():
        for record in part["figures"]:
            yield f"{subject}/{record['name']}", record


def older(record: Mapping[str, Any]) -> list[str]:
    """Those of the paths that a figure measures in which something that it ran has changed; where that is not known, anything."""
    ran = record.get("ran", {})
    rest = changed(record["commit"], tuple(p for p in record["measures"] if p not in ran))
    return [p for p in record["measures"] if p in rest or p in ran and is_older(ran[p], ROOT / p)]


@functools.cache
def changed(commit: str, measures: tuple[str, ...]) -> list[str]:
    """Those of the paths of which a piece of a commit is no more. Without git or the commit nothing is known: none is named."""
    try:
        files = (_git("diff", "--name-only", commit, "--", *measures) or "").splitlines()
        is_gone = lambda f, path: (
            is_older(digests_of(_git("show", f"{commit}:{f}") or ""), ROOT / path)
            if f.endswith(".py")
            else True
        )
        inside = lambda path: (f for f in files if f == path or f.startswith(f"{path}/"))
        return [path for path in measures if any(is_gone(f, path) for f in inside(path))]
    except OSError:
        return []


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def shown(value: Any, spread: Any = None, digits: int = 3) -> str:
    """A value with its spread: text as it stands, numbers to some decimals."""
    if isinstance(value, Mapping):
        around = spread if isinstance(spread, Mapping) else {}
        return "; ".join(f"{k} {shown(v, around.get(k), digits)}" for k, v in value.items())
    text = f"{value:,.{digits}f}" if isinstance(value, float) else str(value)
    return text if spread is None else f"{text} ± {shown(spread, None, digits)}"


def figure(record: Mapping[str, Any]) -> str:
    """Value, spread, interval, seeds."""
    text = shown(record["value"], record.get("spread"), record.get("digits", 3))
    text += f" {record['interval']}" if "interval" in record else ""
    return text + (f" ({seeds(record['seeds'])})" if "seeds" in record else "")


def seeds(said: int | str) -> str:
    """In words: a number counts them, text names them."""
    if isinstance(said, int):
        return f"{said} seeds" if said > 1 else "one seed"
    return f"seed {said}" if said.isdigit() else f"seeds: {said}"


def beside(record: Mapping[str, Any]) -> str:
    """What others say."""
    said = shown(record.get("claim", ""), None, record.get("digits", 3))
    return f"{record['claimed_by']}: {said}" if "claimed_by" in record else said


def machine(record: Mapping[str, Any]) -> str:
    """Processor and versions."""
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return f"{record['processor']}; {versions}"


def origin(record: Mapping[str, Any], usual: str) -> str:
    """Command, time, commit, date; the machine where it is not the usual one; whether the figure is old."""
    parts = [f"`{record['command']}`" + (f" ({record['time']})" if "time" in record else "")]
    parts += [f"measured at {record['commit']}, {record['date']}"]
    parts += ["with changes that were not committed"] if record.get("changed") else []
    parts += [machine(record)] if machine(record) != usual else []
    newer = ", ".join(f"`{p}`" for p in older(record))
    return "; ".join(parts) + (f". **Older than its code**: {newer}" if newer else "")


def escaped(text: str) -> str:
    """As a cell of a table; what is in backticks stays."""
    pieces = re.split(r"(`[^`]+`)", text)
    pieces[::2] = [re.sub(r"([*_<$\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces).replace("|", r"\|")


def rows(part: Mapping[str, Any], usual: str) -> list[list[str]]:
    cells = []
    for record in part["figures"]:
        note = f". {record['note'][0].upper()}{record['note'][1:]}." if "note" in record else ""
        row = [record["what"], figure(record) + note, beside(record)]
        cells.append([*map(escaped, row), escaped(origin(record, usual)).replace(r"\*\*", "**")])
    return cells


def text() -> str:
    blocks = [HEAD]
    for part in subjects().values():
        usual = Counter(machine(r) for r in part["figures"]).most_common(1)[0][0]
        table = markdown(["what", "figure", "beside it", "where it is from"], rows(part, usual))
        blocks += [f"## {part['title']}\n", f"Where a row says nothing else: {usual}.\n", table]
    return "\n".join(blocks)


def write() -> None:
    renew(PAGE, text())
