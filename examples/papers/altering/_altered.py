"""What the scripts that alter a model share: options, a table of means over seeds, a picture, files and record."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import keep, parsed, record_figure

SEEDS = (0, 1, 2)
Rows = dict[str, dict[str, float]]
Means = dict[str, dict[str, tuple[float, float]]]  # with standard errors


def over_seeds(found: Sequence[Rows]) -> Means:
    """Mean and standard error over the runs, by row and column."""
    n = len(found) ** 0.5
    cell = lambda row, col: np.array([f[row][col] for f in found])
    return {
        row: {col: (float(cell(row, col).mean()), float(cell(row, col).std(ddof=1) / n)) for col in cols}
        for row, cols in found[0].items()
    }  # fmt: skip


def table(rows: Means) -> str:
    """Rows with their errors as text; counts as they are."""
    columns = list(dict.fromkeys(col for row in rows.values() for col in row))

    def cell(mean: float, error: float) -> str:
        is_count = error == 0 and mean == round(mean)
        return f"{mean:,.0f}" if is_count else f"{mean:.3f} +- {error:.3f}"

    show = lambda row, c: cell(*row[c]) if c in row else "-"
    line = lambda name, cells: f"{name:<40}" + "".join(f"{c:>25}" for c in cells)
    lines = [line(k, (show(row, c) for c in columns)) for k, row in rows.items()]
    return "\n".join([line("", columns), *lines])


def bars(rows: Means, columns: Sequence[str], path: Path) -> None:
    """A picture of some columns beside one another, a bar with its error for each row."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(columns), figsize=(5 * len(columns), 0.3 * len(rows) + 1), layout="constrained", sharey=True, squeeze=False
    )  # fmt: skip
    for axis, column in zip(axes[0], columns, strict=True):
        names = [k for k, row in rows.items() if column in row][::-1]
        means, errors = zip(*(rows[k][column] for k in names), strict=True)
        axis.barh(names, means, xerr=errors, color="C0")
        axis.set_xlabel(column)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def options(
    name: str, description: str, arguments: list[str] | None, label: int | None = None, by: Sequence[str] = (),
    temperature: float | None = None,
) -> argparse.Namespace:  # fmt: skip
    """The options of a script; the folder `out` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="few steps and draws, two seeds")
    if label is not None:
        parser.add_argument("--label", type=int, default=label)
    if temperature is not None:
        parser.add_argument("--temperature", type=float, default=temperature)
    if by:
        parser.add_argument("--by", nargs="*", choices=by, default=list(by))
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    return parsed(parser, arguments)


def told(
    options: argparse.Namespace, name: str, run: Callable[[int], Rows], *, what: str, column: str,
    notes: Sequence[str], measures: Sequence[str], first: str = "", seeds: Sequence[int] = SEEDS,
    draw: Callable[[Means, Path], None] | None = None,
) -> None:  # fmt: skip
    """Run all seeds; print and keep the table of means and standard errors, and a picture; record a column where that is asked.

    Args:
        options: of `options`.
        name: of the record and the picture.
        run: the rows of one seed.
        what: is measured.
        column: what is recorded.
        notes: columns told beside it.
        measures: what the figures belong to.
        first: lines above the table.
        seeds: the first two of them at smoke size.
        draw: makes the picture; by default bars of `column` and the first of `notes`.
    """
    rows = over_seeds([run(seed) for seed in (seeds[:2] if options.smoke else seeds)])
    keep(options.out, first + table(rows), rows)
    (draw or (lambda rows, path: bars(rows, [column, *notes[:1]], path)))(rows, options.out / f"{name}.png")  # fmt: skip
    if options.record:
        column_of = lambda c: "; ".join(f"{k} {r[c][0]:.3g}" for k, r in rows.items() if c in r)
        record_figure(
            f"altering/{name}",
            what=what,
            value={k: r[column][0] for k, r in rows.items() if column in r},
            spread={k: r[column][1] for k, r in rows.items() if column in r},
            seeds=", ".join(map(str, seeds)),
            note=first.replace("\n", ". ") + ". ".join(f"{c}: {column_of(c)}" for c in notes),
            measures=measures,
        )
