"""Which of the library's `raise` statements the tests reach, and what they say there.

Option `--refusals`: after the run, refusals that none of its tests provoked are listed. In all tests, slow ones included, there
should be none: a message that no test has seen may say what is not so. What was said for messages without a program on the page
of errors is written to `docs/_data/messages.json` with the test, from which the page of all messages shows it. (A refusal
counts as provoked in the process of the tests, not in one that they start.)
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ppl", "inference", "models")
_seen: dict[
    tuple[str, int], list[tuple[str, str]]
] = {}  # file, line -> what was said, by which test
_MOST = 200  # of a line; one that raises what another function made says many things
_raising: set[tuple[str, int]] = set()  # lines of `refusals`
_OURS = tuple(str(ROOT / package) + os.sep for package in PACKAGES)
_TOOL = 4  # a number that neither debuggers, coverage nor profilers take


def refusals() -> list[tuple[Path, int, int]]:
    """(file, first line, last line) of every statement that raises an exception with a message."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    found.append((file, node.lineno, node.end_lineno or node.lineno))
    return found


def not_among(lines: set[tuple[str, int]]) -> list[str]:
    """`FILE:LINE` of those that are on none of the lines, given as (file, line)."""
    return [
        f"{file.relative_to(ROOT)}:{first}"
        for file, first, last in refusals()
        if not any((str(file), line) in lines for line in range(first, last + 1))
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refusals", action="store_true", help="list refusals that no test provoked")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--refusals"):
        _raising.update(
            (str(f), n) for f, first, last in refusals() for n in range(first, last + 1)
        )
        sys.monitoring.use_tool_id(_TOOL, "refusals")
        sys.monitoring.register_callback(_TOOL, sys.monitoring.events.RAISE, _note)
        sys.monitoring.set_events(_TOOL, sys.monitoring.events.RAISE)


def _note(code: CodeType, offset: int, error: BaseException) -> None:
    if code.co_filename.startswith(_OURS):
        line = code.co_filename, sys._getframe(1).f_lineno
        if line in _raising:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
            _keep(line, [(_text(error), test)])


def _text(error: BaseException) -> str:
    """What was said; `str` of a KeyError is in quotes."""
    is_quoted = isinstance(error, KeyError) and len(error.args) == 1
    return str(error.args[0] if is_quoted else error)


def _keep(line: tuple[str, int], said: list[tuple[str, str]]) -> None:
    known = _seen.setdefault(line, [])
    known += [pair for pair in said if pair not in known][: _MOST - len(known)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    worker = getattr(session.config, "workeroutput", None)
    if worker is not None:
        worker["refusals"] = list(_seen.items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    for line, said in getattr(node, "workeroutput", {}).get("refusals", ()):
        _keep(tuple(line), [tuple(pair) for pair in said])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if config.getoption("--refusals"):
        missing = not_among(set(_seen))
        terminalreporter.section(
            f"{len(missing)} of {len(refusals())} refusals provoked by no test"
        )
        for line in missing:
            terminalreporter.write_line(line)
        sys.path.insert(0, str(ROOT / "docs" / "_ext"))
        import messages

        messages.keep_examples(_seen)
