"""The page "All messages": what every `raise` statement says, read off the sources."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from faces import ROOT, faces, load, public, renew
from message_text import (
    Module,
    Scope,
    Text,
    has_words,
    least,
    matcher,
    module,
    of_exception,
    read,
    shown,
)

# Folder -> what readers call it. A folder belongs to the longest of these that begins it.
TOPICS = {
    "ppl": "Errors of NumPyro and of tables, with the site's name",
    "ppl/language": "Statements, programs and handlers",
    "ppl/inputs": "Indices out of range, and random numbers of a program's own",
    "ppl/traces": "Choices, shapes, plates and branches of a program",
    "ppl/distributions": "Distributions",
    "ppl/strategies": "Gradient strategies",
    "ppl/analysis": "Strategies that cannot serve a site soundly",
    "ppl/checks": "Jumps, rows and values outside of their ranges",
    "ppl/estimation": "Expectations and their gradients",
    "ppl/jaxprs": "Operations that cannot be looked into",
    "ppl/evaluation": "Operations that cannot be evaluated again",
    "ppl/enumeration": "Exact sums over discrete sites",
    "ppl/gaussian": "Exact integrals over normal sites",
    "ppl/densities": "Marginals, normalising constants, elimination",
    "ppl/formulas": "Formulas of regressions",
    "inference/posteriors": "Draws of a posterior with a certificate",
    "inference/inputs": "Arguments of programs, and the data in them",
    "inference": "Games, sums of objectives, meshes and processes",
    "inference/objectives": "Objectives",
    "inference/fitting": "Fitting",
    "inference/fitting/data": "Data of a fit: batches and streams",
    "inference/fitting/prediction": "Predictions of a fit",
    "inference/fitting/stationarity": "Averages and the end of a fit",
    "inference/fitting/storage": "Checkpoints and saved fits",
    "inference/local": "Laplace posteriors of rows",
    "inference/particles": "Particles",
    "inference/diffusion": "Diffusion models and their correction by particles",
    "inference/diagnostics": "Diagnostics",
    "inference/evaluation": "Metrics of samples",
    "inference/posterior_checks": "Checks of posteriors",
    "inference/flows": "Normalising flows",
    "inference/simulators": "Simulators, and what is learned from them",
    "inference/tilts": "Tilts of trained models",
    "inference/search": "Searches",
    "inference/export": "Predictions and ArviZ",
    "models": "Networks and model families",
    "models/diffusion": "Models: diffusion",
    "models/paths": "Models: paths between laws",
    "models/adapters": "Adapters",
    "models/flows": "Models: normalising flows",
    "models/gflownet": "Models: GFlowNets",
    "models/imputation": "Models: imputation",
    "models/koopman": "Models: linear laws of series",
    "models/mam": "Models: marginalisation models",
    "models/niw_meta": "Models: few-shot learning",
    "models/pv_rnn": "Models: recurrent networks",
    "": "Errors whose text is another's",  # handed on, or made at run time
}
EXAMPLES = ROOT / "docs" / "_data" / "messages.json"
INTRO = """# All messages

What every error of the library says. To find yours, search for a piece of it without the names and numbers of your program:
`{name}` stands for such a value here, and `[a | b]` for a part that reads one way or the other, or is missing.
[Each refusal and why](errors.md) has programs that provoke errors, and reasons; a message that has one there is linked with it.
Below the others stands what one of our tests has provoked, and which.

```{raw} html
<input id="pasted" type="search" placeholder="Or paste an error here" aria-label="Paste an error" autocomplete="off">
<ul id="found" aria-live="polite"></ul>
<script src="_static/messages.js" defer></script>
```
"""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message, its text with marks, and the `raise` statements that say it: file, first and last line."""

    topic: str
    kind: str
    text: str
    spans: tuple[tuple[Path, int, int], ...]

    @property
    def lines(self) -> list[tuple[Path, int]]:
        """Where the statements begin."""
        return [(file, first) for file, first, _ in self.spans]


def raises(path: Path) -> list[ast.Raise]:
    """The statements of a file that raise an exception with a message."""
    return [
        node
        for node in module(path).nodes
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
    ]


def topic(path: Path) -> str:
    folder = path.relative_to(ROOT).parent
    return next(str(f) for f in (folder, *folder.parents) if str(f) in TOPICS)


def tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@functools.cache
def known_kinds() -> set[str]:
    """Exceptions that a user can name."""
    ours = {
        name
        for face in faces()
        for name in public(face)
        if _is_exception(getattr(load(face), name))
    }
    return ours | {n for n, x in vars(builtins).items() if _is_exception(x)}


def _is_exception(thing) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def sources() -> list[Path]:
    return [
        f
        for package in ("ppl", "inference", "models")
        for f in sorted((ROOT / package).rglob("*.py"))
    ]


@functools.cache
def calls_of() -> dict[str, list[tuple[Module, ast.Call]]]:
    """Name of a function -> the calls by that name that have a first argument."""
    found: dict[str, list[tuple[Module, ast.Call]]] = {}
    for path in sources():
        for call in module(path).nodes:
            if isinstance(call, ast.Call) and call.args and isinstance(call.func, ast.Name):
                found.setdefault(call.func.id, []).append((module(path), call))
    return found


def handed(node: ast.Raise, here: Scope) -> list[Text]:
    """The texts that functions of this file are called with, if a statement raises what one of them was handed."""
    arg = node.exc.args[-1]
    if not isinstance(arg, ast.Name):
        return []
    takers = {
        f.name
        for f in here.module.nodes
        if isinstance(f, ast.FunctionDef)
        and f.name != "_"
        and arg.id in [a.arg for a in f.args.args[:1]]
    }
    calls = [
        Text(ast.unparse(node.exc.func), read(call.args[0], Scope(there).at(call)))
        for name in takers
        for there, call in calls_of().get(name, ())
    ]
    return [said for said in calls if has_words(said.text)]


@functools.cache
def messages() -> list[Message]:
    """All of them, equal ones merged, by topic and alphabet."""
    known = known_kinds()
    found: dict[tuple[str, str], list] = {}
    for path in sources():
        for node in raises(path):
            here = Scope(module(path)).at(node)
            texts = of_exception(node.exc, here)
            if not any(has_words(said.text) for said in texts):
                texts = handed(node, here) or texts
            for said in texts:
                kind = said.kind if said.kind in known else ""
                found.setdefault((kind, tidy(said.text)), []).append(
                    (path, node.lineno, node.end_lineno)
                )
    made = [
        Message(
            topic(spans[0][0]) if has_words(text) else "", kind, text, tuple(dict.fromkeys(spans))
        )
        for (kind, text), spans in found.items()
    ]
    for kept in (module, calls_of):  # trees of all files: half a million objects
        kept.cache_clear()
    return sorted(made, key=lambda m: shown(m.text).lower())


def headings() -> dict[str, str]:
    """Output of a program of `errors.md` -> the heading above it."""
    found, heading = {}, ""
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif output := re.match(r"```\{literalinclude\} /_outputs/(\S+\.txt)", line):
            found[output[1]] = heading
    return found


def programs() -> list[tuple[str, str]]:
    """What the programs of `errors.md` print, in one line each, and the heading of each."""
    folder = ROOT / "docs" / "_outputs"
    return [
        (tidy((folder / name).read_text().replace("-\n", "-")), heading)
        for name, heading in headings().items()
    ]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def link(message: Message, printed: list[tuple[str, str]]) -> str:
    if least(message.text) < 25:
        return ""  # most errors would be like it
    is_like = matcher(message.text)
    heading = next((heading for text, heading in printed if is_like(text)), None)
    return f" ([program and reason](errors.md#{slug(heading)}))" if heading else ""


@functools.cache
def examples() -> dict[str, dict[str, str]]:
    """Message without a program -> what a test has provoked (`said`), and the test."""
    return json.loads(EXAMPLES.read_text())


def label(message: Message) -> str:
    """A message by its kind and text."""
    return f"{message.kind}: {shown(message.text)}" if message.kind else shown(message.text)


def keep_examples(seen: Mapping[tuple[str, int], list[tuple[str, str]]]) -> None:
    """Write an example of every message without a program: what a test has provoked, the one of old if it was not seen to change.

    Args:
        seen: file and line that raised -> (what was said, test), some of each.
    """
    old, printed = examples() if EXAMPLES.exists() else {}, programs()
    by_file: dict[str, list[tuple[int, str, str]]] = {}
    ran = {test for said in seen.values() for _, test in said}
    for (file, line), said in seen.items():
        by_file.setdefault(file, []).extend((line, text, test) for text, test in said)
    kept = {}
    for message in messages():
        if not has_words(message.text) or link(message, printed):
            continue
        is_like, found = matcher(message.text), []
        for file, first, last in message.spans:
            found += [
                (plainness(text), test, anonymous(text))
                for line, text, test in by_file.get(str(file), ())
                if first <= line <= last and test and is_like(tidy(text))
            ]
        known = old.get(label(message))
        if known and (known["test"] not in ran or any(known["test"] == t for _, t, _ in found)):
            kept[label(message)] = known
        elif found:
            _, test, text = min(found)
            kept[label(message)] = {"said": text, "test": test}
    EXAMPLES.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def anonymous(text: str) -> str:
    """A message in one line, without folders and addresses of whoever ran the test."""
    text = tidy(text).replace(f"{ROOT}/", "")
    text = re.sub(r"/[^\s'\"]*/(?=[^\s/'\"]+)", ".../", text)
    return re.sub(r"0x[0-9a-f]{6,}", "0x...", text)


def plainness(text: str) -> tuple[bool, int]:
    """Smaller for what is better read: nothing of the machine in it, and short."""
    return anonymous(text) != tidy(text), len(text)


def line(message: Message, printed: list[tuple[str, str]]) -> str:
    kind = f"{message.kind}: " if message.kind else ""
    text = f"- {kind}{literal(shown(message.text))}{link(message, printed)}"
    example = examples().get(label(message))
    if example is None:
        return text
    return f"{text}\n  - {literal(example['said'])} (`{example['test']}`)"


def literal(text: str) -> str:
    """Code of one line, whatever ticks are in it."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


@functools.cache
def text() -> str:
    printed, lines = programs(), [INTRO]
    everything = messages()
    for folder, title in TOPICS.items():
        here = [m for m in everything if m.topic == folder]
        if here:
            lines += [f"## {title}", "", *(line(m, printed) for m in here), ""]
    return "\n".join(lines)


def write() -> None:
    renew(ROOT / "docs" / "messages.md", text())
