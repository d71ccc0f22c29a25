"""How long tests take: a record, a budget for each folder, and the fastest tests of a selection for `make quick`.

Options
- `--record-durations`: write what tests took to `durations.txt` beside this file (those of half a second and more; the others
  count as `SHORT`).
- `--budget SECONDS`: of what is selected, run the fastest tests whose recorded durations add up to no more.

After a run of the suite, folders that took more than their budget are named. That fails nothing: machines differ.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("durations.txt")
SHORT = 0.5
SUITE = "not slow and not docs"  # what `make test` and `make quick` select
# Seconds of one core, on the machine of the record: `make test` is to end in eight minutes on two cores.
BUDGETS = {
    "tests/ppl/analysis": 16,
    "tests/ppl/checks": 44,
    "tests/ppl/densities": 45,
    "tests/ppl/distributions": 44,
    "tests/ppl/estimation": 36,
    "tests/ppl/gaussian": 45,
    "tests/ppl/evaluation": 16,
    "tests/ppl/jaxprs": 11,
    "tests/ppl/language": 26,
    "tests/ppl/strategies": 48,
    "tests/ppl/traces": 38,
    "tests/ppl": 15,
    "tests/inference/diagnostics": 14,
    "tests/inference/diffusion": 32,
    "tests/inference/evaluation": 10,
    "tests/inference/export": 28,
    "tests/inference/fitting": 64,
    "tests/inference/local": 12,
    "tests/inference/objectives": 50,
    "tests/inference/inputs": 14,
    "tests/inference/particles": 72,
    "tests/inference/posterior_checks": 14,
    "tests/inference/posteriors": 24,
    "tests/inference/simulators": 30,
    "tests/inference/tilts": 14,
    "tests/models": 130,
    "tests/docs": 14,
    "tests/examples": 10,
    "tests": 44,
}


def recorded() -> dict[str, float]:
    """Seconds by the name of a test, from the record."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    found = (line.split(" ", 1) for line in lines)
    return {name: float(seconds) for seconds, name in found}


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


def folder_of(name: str) -> str:
    """The folder of the table that a test belongs to."""
    path = Path(name.partition("::")[0])
    return next((str(p) for p in path.parents if str(p) in BUDGETS), "tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help="write durations.txt anew")
    parser.addoption("--budget", type=float, help="run the fastest tests only, SECONDS in all")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    budget = config.getoption("--budget")
    if budget is None:
        return
    kept = set(within([item.nodeid for item in items], budget))
    left_out = [item for item in items if item.nodeid not in kept]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.nodeid in kept]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    taken: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                taken[report.nodeid] += report.duration
    by_folder: Counter[str] = Counter()
    for name, seconds in taken.items():
        by_folder[folder_of(name)] += seconds
    is_the_suite = config.option.markexpr == SUITE and config.getoption("--budget") is None
    for folder, seconds in sorted(by_folder.items()):
        if is_the_suite and seconds > BUDGETS[folder]:
            terminalreporter.write_line(
                f"{folder}: {seconds:.0f} s, budget {BUDGETS[folder]} s (tests/_helpers/_durations.py)"
            )
    if config.getoption("--record-durations"):
        lines = [f"{s:.1f} {name}\n" for name, s in sorted(taken.items()) if s >= SHORT]
        RECORD.write_text("".join(lines))
