"""One model that answers any question about a table of categories.

What it shows: a marginalization model (`AnyOrderModel`) learns the joint law of nine answers, a tenth of them lost, and is then
asked for any column given any others. Columns that know nothing of each other are the floor; a regression was made for one
question.

Data: statsmodels' fair, answers of 6,366 women to a magazine's questionnaire, a quarter of them kept back.
Expected: 1.2 nats a row above columns alone; at one question as good as the regression made for it (-0.55 and -0.56 nats).
Run time: a quarter of a minute on 2 CPU cores.

    python examples/questions.py [--smoke] [--out questions.png]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm
from sklearn.linear_model import LogisticRegression

from lapilli.models.mam import AnyOrderModel


def load(num_rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers to learn from, with holes, and new ones."""
    whole = sm.datasets.fair.load_pandas().data.sample(num_rows, random_state=0)
    whole["affairs"] = whole["affairs"] > 0
    table = whole.mask(np.random.default_rng(0).random(whole.shape) < 0.1)
    is_new = np.arange(num_rows) % 4 == 0
    return table[~is_new], table[is_new]


def solve(table: pd.DataFrame, num_steps: int) -> AnyOrderModel:
    return AnyOrderModel(num_steps=num_steps, random_state=0).fit(table)


def regression(table: pd.DataFrame, new: pd.DataFrame) -> np.ndarray:
    """Probability of an affair, by a regression with holes at the median."""
    fill = lambda rows: rows.drop(columns="affairs").fillna(table.median(numeric_only=True))
    learn = table[table["affairs"].notna()]
    found = LogisticRegression(max_iter=5000).fit(fill(learn), learn["affairs"].astype(bool))
    return found.predict_proba(fill(new))[:, 1]


def asked(model: AnyOrderModel, columns, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The levels of a column, and the probability of an affair given that one alone."""
    levels = np.asarray(model.levels_[list(columns).index(column)], float)
    question = pd.DataFrame([[None] * len(columns)] * len(levels), columns=columns)
    question[column] = levels
    return levels, model.conditional(question, "affairs")[:, 1]


def draw(table, answers: dict, out: Path) -> None:
    figure, axes = plt.subplots(
        1, len(answers), figsize=(9, 2.8), sharey=True, layout="constrained"
    )
    for axis, (column, (levels, shares)) in zip(axes, answers.items(), strict=True):
        counted = table.groupby(column)["affairs"].mean()
        axis.plot(levels, shares, "o-", label="model")
        axis.plot(counted.index, counted, "kx", label="counted")
        axis.set(xlabel=column)
    axes[0].set(ylabel="share with an affair", ylim=(0, 1))
    axes[0].legend(frameon=False)
    figure.suptitle("Three questions to one model, which was fitted once")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("questions.png")) -> dict[str, float]:
    table, new = load(400 if smoke else 6366)
    model = solve(table, 20 if smoke else 2000)
    shares = {c: table[c].value_counts(normalize=True) for c in new}
    alone = sum(np.log(new[c].map(shares[c]).astype(float)).fillna(0) for c in new).mean()
    score = model.score(new)
    print(f"new rows: {score:.2f} nats, columns alone {alone:.2f}")
    known = new[new["affairs"].notna()]
    truth = known["affairs"].astype(bool).to_numpy()
    loss = lambda p: float(np.log(np.where(truth, p, 1 - p)).mean())
    ours, theirs = loss(model.conditional(known, "affairs")[:, 1]), loss(regression(table, known))
    print(f"an affair, given the rest: {ours:.3f} nats, by a regression for it {theirs:.3f}")
    columns = ("rate_marriage", "religious", "children")
    draw(table, {c: asked(model, new.columns, c) for c in columns}, out)
    return {"score": float(score), "alone": float(alone), "ours": ours, "theirs": theirs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Any question about a table.")
    parser.add_argument("--smoke", action="store_true", help="few steps and rows")
    parser.add_argument("--out", type=Path, default=Path("questions.png"), help="the picture")
    main(**vars(parser.parse_args()))
