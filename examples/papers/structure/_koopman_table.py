"""Cases of koopman.py, and their scores: a table, and the records of it."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _koopman_rows import KINDS
from _koopman_scores import Score

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import interval
from _record import record_figure

REAL = "real series"
HELPERS = ("_koopman_data", "_koopman_rows", "_koopman_published", "_koopman_scores")


class Case(NamedTuple):
    """One row of the table and one seed; `rate` is the share of missing cells, 0 for real series."""

    data: str
    kind: str
    rate: float
    seed: int


class Result(NamedTuple):
    """Of a case: its scores, seconds of processor time, and five series of the first channel."""

    case: Case
    score: Score
    seconds: float
    drawn: list[list[float]]


Table = dict[tuple[str, str, float], np.ndarray]


def table_of(results: list[Result]) -> Table:
    """Data, kind, rate -> scores [seeds, fields]."""
    table: dict[tuple[str, str, float], list[Score]] = {}
    for one in results:
        table.setdefault((one.case.data, one.case.kind, one.case.rate), []).append(one.score)
    return {row: np.array(scores) for row, scores in table.items()}


def name_of(row: tuple[str, str, float]) -> str:
    data, kind, rate = row
    return f"{data}, {kind if kind == REAL else f'{KINDS[kind]}, {rate:.0%} missing'}"


def lines_of(table: Table) -> list[str]:
    """Means over seeds and halves of 95 % intervals, a line for each row."""
    lines = [f"    {'':62}" + "".join(f"{field:>18}" for field in Score._fields)]
    for row, scores in table.items():
        pairs = (interval(column) for column in scores.T)
        cells = "".join(f"{f'{m:.3f} +- {h:.3f}' if m == m else '-':>18}" for m, h in pairs)
        lines.append(f"    {name_of(row):62}{cells}")
    return lines


def differences(table: Table) -> dict[str, tuple[float, float]]:
    """Bound of the linear law less that of other rows, nats per cell, paired over seeds: mean and half of the interval."""
    found = {}
    for (data, kind, rate), scores in table.items():
        ours = table.get((data, "linear", rate))
        if ours is not None and kind not in (REAL, "linear"):
            found[name_of((data, kind, rate))] = interval(ours[:, 3] - scores[:, 3])
    return found


def record(table: Table, seconds: float) -> None:
    """The scores, and what the linear law is worth, for the page of figures."""
    scores = {
        "gru": "told from real series by a GRU of two units, |accuracy - 1/2|",
        "minirocket": "told from real series by MiniRocket, |accuracy - 1/2|",
        "predictive": "error of the next step by a regression learned from draws",
        "nats": "bound, nats per observed cell",
    }
    figures = {
        (field, what): {name_of(r): interval(x[:, i]) for r, x in table.items() if np.isfinite(x[:, i]).all()}
        for i, (field, what) in enumerate(scores.items())
    }  # fmt: skip
    figures["gain", "bound of the unit disc less that of others, nats per observed cell"] = (
        differences(table)
    )
    for (field, what), pairs in figures.items():
        claim: dict[str, Any] = {}
        if field == "gru":
            claim["claim"] = (
                "0.005 on sines, 0.03 to 0.05 where cells are missing, trained for long"
            )
            claim["claimed_by"] = "Naiman et al. 2024"
        record_figure(
            f"structure/koopman_{field}",
            what=f"autoencoders of series: {what}; spread: half of the 95 % interval over seeds",
            value={name: mean for name, (mean, _) in pairs.items()},
            spread={name: half for name, (_, half) in pairs.items()},
            seeds=len(next(iter(table.values()))),
            time=f"{round(seconds / 60)} minutes of processor time",
            measures=[f"examples/papers/structure/{name}.py" for name in HELPERS]
            + ["models/koopman"],
            **claim,
        )
