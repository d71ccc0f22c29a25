"""How long tests take: a record, the long ones of a selection or the others, and the fastest for `make quick`.

Options
- `--long without`: leave out the tests that take longer than `LONG` by the record, as `make test` does; `--long only`: run these.
- `--budget SECONDS`: of what is selected, run the fastest tests whose recorded durations add up to no more.
- `--record-durations`: write what tests took to `durations.txt` beside this file (those of half a second and more; the others
  count as `SHORT`). Delete `.cache` first: most of what a test takes is compilation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("durations.txt")
SHORT = 0.5
LONG = 0.5  # with longer ones `make test` takes more than eight minutes on two slow cores
_began = pytest.StashKey[float]()


def recorded() -> dict[str, float]:
    """Processor seconds by the name of a test, from the record."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    found = (line.split(" ", 1) for line in lines)
    return {name: float(seconds) for seconds, name in found}


def long(names: list[str]) -> set[str]:
    """Those of the tests that take longer than `LONG`."""
    known = recorded()
    return {name for name in names if known.get(name, SHORT) > LONG}


def within(names: list[str], budget: float) -> list[str]:
    """The fastest of the tests, as many as fit."""
    known = recorded()
    kept, total = [], 0.0
    for name in sorted(names, key=lambda n: known.get(n, SHORT)):
        total += known.get(name, SHORT)
        if total > budget:
            break
        kept.append(name)
    return kept


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help="write durations.txt anew")
    parser.addoption("--long", choices=["without", "only"], help="no long tests, or no others")
    parser.addoption("--budget", type=float, help="run the fastest tests only, SECONDS in all")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = [item.nodeid for item in items]
    kept = set(names)
    if config.getoption("--long") is not None:
        kept = long(names) if config.getoption("--long") == "only" else kept - long(names)
    if (budget := config.getoption("--budget")) is not None:
        kept = set(within([name for name in names if name in kept], budget))
    left_out = [item for item in items if item.nodeid not in kept]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.nodeid in kept]


def _processor_seconds() -> float:
    """Of this process and of those it waited for; what else runs on the machine does not count."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_began] = _processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "teardown":
        report.user_properties.append(("seconds", _processor_seconds() - item.stash[_began]))
    return report


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption("--record-durations"):
        return
    taken = {
        report.nodeid: dict(report.user_properties)["seconds"]
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"
    }
    lines = [f"{s:.1f} {name}\n" for name, s in sorted(taken.items()) if s >= SHORT]
    RECORD.write_text("".join(lines))
