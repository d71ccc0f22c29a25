"""Question: do 95 % intervals of regression slopes hold 95 % of the time when cells of the table are missing?

Tables of 200 rows: age, blood pressure, body mass index (skew), a group of three levels that depends on age, and cholesterol,
which is regressed on all of them. Completely at random ("mcar") a quarter of the cells is missing, a tenth of the groups; at
random ("mar") cholesterol is seen, and the higher it is, the likelier are the others to be missing (a third of the numbers, a
sixth of the groups), so that complete rows are biased.

Ways: `TableImputer`; scikit-learn's `IterativeImputer(sample_posterior=True)`, the group as two columns of zeros and ones;
complete rows. Both impute as many tables, pooled by Rubin's rules. Coverage is over tables and the five slopes; slopes of a table
are correlated, so that its standard error is taken over tables. Widths are relative to those from the table without holes, the
bias is the largest of a slope, in its standard deviations.

usage: python benchmarks/models/tables.py [--tables 200] [--imputations 10] [--record]
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from lapilli.models.imputation import TableImputer, pool

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import parsed, record_figure

ROWS = 200
NUMBERS = ["age", "pressure", "mass", "cholesterol"]
SLOPES = {"age": 0.3, "pressure": 0.5, "mass": 2.0, "mild": 5.0, "severe": 10.0}
WAYS = ("TableImputer", "IterativeImputer", "complete rows")


def table(rng: np.random.Generator) -> pd.DataFrame:
    """A table without holes."""
    age = rng.normal(50, 12, ROWS)
    score = np.stack([0 * age, (age - 50) / 12, (age - 55) / 8], 1) + rng.gumbel(size=(ROWS, 3))
    group = pd.Categorical.from_codes(score.argmax(1), ["none", "mild", "severe"])
    pressure = 90 + 0.6 * age + 4 * (group == "severe") + rng.normal(0, 8, ROWS)
    mass = rng.gamma(9, 3, ROWS)
    numbers = {"age": age, "pressure": pressure, "mass": mass}
    effects = sum(SLOPES[name] * x for name, x in numbers.items())
    effects = effects + sum(SLOPES[level] * (group == level) for level in ("mild", "severe"))
    return pd.DataFrame(
        {**numbers, "group": group, "cholesterol": 100 + effects + rng.normal(0, 15, ROWS)}
    )


def with_holes(full: pd.DataFrame, mechanism: str, rng: np.random.Generator) -> pd.DataFrame:
    """The table, some of its cells lost."""
    share = dict.fromkeys(full, 0.25) | {"group": 0.1}
    if mechanism == "mar":
        height = (full.cholesterol - full.cholesterol.mean()) / full.cholesterol.std()
        loss = 1 / (1 + np.exp(0.8 - 1.2 * height))
        share = dict.fromkeys(full, loss) | {"group": loss / 2, "cholesterol": 0.0}
    return full.mask(rng.random(full.shape) < pd.DataFrame(share, full.index))


def dummies(data: pd.DataFrame) -> np.ndarray:
    """Numbers, cholesterol last, and two columns of zeros and ones, NaN where the group is missing."""
    found = data[NUMBERS[:-1]].copy()
    for level in ("mild", "severe"):
        found[level] = (data.group == level).astype(float).where(data.group.notna())
    return found.assign(cholesterol=data.cholesterol).to_numpy()


def regression(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the last column on the others, and their variances, by least squares."""
    design = np.column_stack([np.ones(len(x)), x[:, :-1]])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ x[:, -1]
    noise = ((x[:, -1] - design @ found) ** 2).sum() / (len(x) - design.shape[1])
    return found[1:], noise * np.diag(inverse)[1:]


def analyses(holed: pd.DataFrame, seed: int, count: int) -> dict[str, Any]:
    """Estimate, low and high end of each slope by each way."""
    own = TableImputer(random_state=seed).fit(holed).sample(holed, count, random_state=seed)
    arrays = {"TableImputer": [dummies(t) for t in own]}
    x = dummies(holed)
    arrays["IterativeImputer"] = [
        IterativeImputer(sample_posterior=True, random_state=1000 * seed + i).fit_transform(x)
        for i in range(count)
    ]
    found = {}
    for way, tables in arrays.items():
        pooled = pool(
            *map(np.array, zip(*map(regression, tables), strict=True)), df=ROWS - len(SLOPES) - 1
        )
        found[way] = (pooled.estimate, *pooled.interval())
    found["complete rows"] = alone(x[~np.isnan(x).any(1)])
    return found


def alone(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and ends of the interval from one table."""
    found, variance = regression(x)
    from scipy.stats import t

    reach = t.ppf(0.975, len(x) - len(SLOPES) - 1) * np.sqrt(variance)
    return found, found - reach, found + reach


def run(mechanism: str, size: int, count: int) -> dict[str, dict[str, float]]:
    """Coverage and its standard error, bias and width of each way."""
    truth, found, widths = np.array(list(SLOPES.values())), {way: [] for way in WAYS}, []
    for number in range(size):
        rng = np.random.default_rng([number, mechanism == "mar"])
        full = table(rng)
        holed = with_holes(full, mechanism, rng)
        for way, ends in analyses(holed, number, count).items():
            found[way].append(ends)
        low, high = alone(dummies(full))[1:]
        widths.append(high - low)
    scores = {}
    for way, ends in found.items():
        mean, low, high = np.array(ends).transpose(1, 0, 2)
        covered = ((low <= truth) & (truth <= high)).mean(1)
        biases = (mean.mean(0) - truth) / mean.std(0)
        scores[way] = {
            "coverage": covered.mean(),
            "error": covered.std() / np.sqrt(size),
            "least": ((low <= truth) & (truth <= high)).mean(0).min(),
            "bias": biases[np.abs(biases).argmax()],
            "width": float(((high - low) / np.array(widths)).mean()),
        }
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of slopes from tables with holes.")
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--imputations", type=int, default=10)
    config = parsed(parser)
    warnings.filterwarnings("ignore", "\\[IterativeImputer\\] Early stopping")
    values, spread = {}, {}
    for mechanism in ("mcar", "mar"):
        start = time.process_time()
        scores = run(mechanism, config.tables, config.imputations)
        print(f"{mechanism}, {config.tables} tables, {time.process_time() - start:.0f} s")
        for way, row in scores.items():
            print(
                f"  {way:<18}" + "".join(f"{name} {value:7.3f}   " for name, value in row.items())
            )
            values[f"{way}, {mechanism}"] = row["coverage"]
            spread[f"{way}, {mechanism}"] = 1.96 * row["error"]
    if config.record:
        record_figure(
            "missing_data/tables",
            what=f"coverage of 95% intervals of five regression slopes, {config.tables} tables of {ROWS} rows with holes, "
            f"{config.imputations} imputations pooled (0.95 is right); spread: half of a 95% interval over tables",
            value=values,
            spread=spread,
            seeds=f"0 to {config.tables - 1}",
            measures=["models/imputation/tables", "models/imputation/estimators/_table.py"],
            packages=["scikit-learn"],
        )


if __name__ == "__main__":
    main()
