"""A regression on a table with holes: twenty completed tables, pooled, beside complete rows and one completed table.

What it shows: 442 patients of the diabetes study (Efron et al. 2004, shipped with scikit-learn), the progression of the disease
in a year regressed on age, sex, body mass index, blood pressure, and logarithm of triglycerides. Holes are punched: the worse the
disease went on, the likelier is each measurement to be missing, so that complete rows are another population. `TableImputer`
completes the table twenty times from as many draws of its parameters, and `pool` applies Rubin's rules.

The table without holes is known, so that two numbers can be compared for each way, in standard errors of that table's slopes:
how far its slopes are from those of the full table, and how far its own standard errors say that they may be on account of the
holes, sqrt(SE^2 - SE of the full table^2). Root mean squares over slopes and punched tables.

Expected: pooled tables are nearest, and say how near. One completed table is farther off and says that it is nearer. Complete
rows are five times as far off as their standard errors say, since they are biased. Figures: docs/_data/figures,
missing_data/regression. Run time: a minute of processor time.

    python examples/papers/imputation/regression.py [--smoke] [--punches 20] [--imputations 20]
        [--out regression_output] [--record]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

from lapilli.models.imputation import TableImputer, pool

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

SLOPES = ["age", "sex", "bmi", "bp", "s5"]
WAYS = ("complete rows", "one completed table", "pooled tables")


def patients() -> pd.DataFrame:
    """The table without holes."""
    data = load_diabetes(as_frame=True, scaled=False)
    sex = data.data.sex.map({1.0: "one", 2.0: "two"})  # which is which is not said
    return data.data[SLOPES].assign(sex=sex, progression=data.target)


def punched(full: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Cells lost at random given the progression, which is never lost: a quarter of them."""
    height = (full.progression - full.progression.mean()) / full.progression.std()
    loss = 1 / (1 + np.exp(1.4 - 1.2 * height))
    holes = np.random.default_rng(seed).random((len(full), len(SLOPES))) < loss.to_numpy()[:, None]
    return full.assign(**full[SLOPES].mask(holes))


def regression(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the progression, and their variances."""
    numbers = table[SLOPES].assign(sex=table.sex == "two").astype(float)
    design = np.column_stack([np.ones(len(table)), numbers])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ table.progression
    squares = ((table.progression - design @ found) ** 2).sum()
    return found[1:], np.diag(inverse)[1:] * squares / (len(table) - design.shape[1])


def ways(holed: pd.DataFrame, seed: int, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Slopes and variances of each way."""
    imputer = TableImputer(random_state=seed).fit(holed)
    tables = imputer.sample(holed, count)
    fits = [regression(table) for table in tables]
    pooled = pool([b for b, _ in fits], [v for _, v in fits], df=len(holed) - len(SLOPES) - 1)
    return {
        "complete rows": regression(holed.dropna()),
        "one completed table": regression(imputer.transform(holed)),
        "pooled tables": (pooled.estimate, pooled.variance),
    }


def run(config: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Distance from the full table's slopes, and what standard errors say of it, in standard errors of the full table."""
    full = patients()
    slopes, variances = regression(full)
    errors, said = {way: [] for way in WAYS}, {way: [] for way in WAYS}
    for seed in range(config.punches):
        for way, (found, variance) in ways(punched(full, seed), seed, config.imputations).items():
            errors[way].append((found - slopes) ** 2 / variances)
            said[way].append(np.maximum(variance / variances - 1, 0))
    mean = lambda parts: float(np.sqrt(np.mean(parts)))
    return {way: {"distance": mean(errors[way]), "said": mean(said[way])} for way in WAYS}


def report(scores: dict[str, dict[str, float]], punches: int) -> str:
    lines = [
        f"five slopes, {punches} punched tables; in standard errors of the full table",
        f"{'':<22}{'from the full table':>20}{'said to be':>14}",
    ]
    lines += [
        f"{way:<22}{row['distance']:>20.2f}{row['said']:>14.2f}" for way, row in scores.items()
    ]
    return "\n".join(lines)


def draw(scores: dict[str, dict[str, float]], path: Path) -> None:
    """Both numbers of each way, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    places = np.arange(len(WAYS))
    for shift, name, label in (
        (-0.2, "distance", "off by"),
        (0.2, "said", "off by, as its own standard errors say"),
    ):
        axis.barh(places + shift, [scores[way][name] for way in WAYS], 0.36, label=label)
    axis.set_yticks(places, WAYS)
    axis.invert_yaxis()
    axis.set_xlabel("standard errors of the slopes of the full table")
    axis.set_title("Slopes from a table with a quarter of its cells missing", loc="left")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A regression on a table with holes.")
    parser.add_argument("--smoke", action="store_true", help="one punched table")
    parser.add_argument("--punches", type=int, default=None)
    parser.add_argument("--imputations", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("regression_output"))
    config = parsed(parser, arguments)
    config.punches = config.punches or (1 if config.smoke else 20)
    scores = run(config)
    text = report(scores, config.punches)
    print(text)
    (config.out / "report.txt").write_text(text + "\n")
    draw(scores, config.out / "regression.png")
    (config.out / "metrics.json").write_text(json.dumps(scores, indent=1))
    if config.record:
        record_figure(
            "missing_data/regression",
            what=f"five slopes on the diabetes data, a quarter of the cells lost at random given the outcome, {config.punches} "
            "punched tables: distance from the full table's slopes, and what standard errors say of it; in its standard errors",
            value={f"{way}, {name}": row[name] for way, row in scores.items() for name in row},
            seeds=f"0 to {config.punches - 1}",
            measures=["models/imputation/tables", "models/imputation/estimators/_table.py"],
        )


if __name__ == "__main__":
    main()
