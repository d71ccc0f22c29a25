"""Models ranked by noisy comparisons: a posterior of strengths and ranks in place of Elo's numbers.

What it shows: pairwise votes with ties, read by the model of Davidson (1970), Bradley and Terry's with ties, in eight lines:

    P(i beats j) : P(tie) : P(j beats i)  =  e^{s_i} : nu e^{(s_i + s_j) / 2} : e^{s_j},   s ~ N(0, 1), nu half-normal.

NUTS draws strengths, and from the draws come P(rank), P(i better than j) and intervals. Arenas of generative models print Elo's
numbers, which change when the same votes arrive in another order, and say nothing of what is not known.

Data: seven classifiers of scikit-learn's 1,797 digits, 897 of them held out. A voter sees two models at random, and the mean log
score of each on ten held-out digits drawn at random; the larger one wins, and scores within 0.02 nats are a tie. The mean log
score on all held-out digits is what the votes are to find out; no platform's votes are used. A model that is right or wrong by
much wins single votes as surely as one by little, so that votes rank by how often, scores by how much: the two may differ.

Claim (GenAI-Arena, Jiang et al. 2024, arXiv:2406.04485): votes of users rank generative models by Elo's numbers. Their figures
cannot be repeated without their votes.

Expected, 400 votes of seed 0, in the order of the log score; Elo's numbers over 200 orders of the same votes:

    model                log score          strength  P(first)     Elo over orders
    nearest neighbours      -0.091      1.61 +- 0.45      0.91        1188 to 1337
    logistic                -0.149      0.50 +- 0.44      0.00        1012 to 1171
    discriminant            -0.160      1.18 +- 0.43      0.09        1076 to 1286
    extra trees             -0.343     -0.41 +- 0.43      0.00         822 to 1005
    random forest           -0.378     -1.13 +- 0.44      0.00          725 to 901
    naive Bayes             -0.403     -0.27 +- 0.43      0.00         836 to 1075
    tree                    -0.914     -1.52 +- 0.45      0.00          681 to 841

The order of the votes moves an Elo number by 150 to 240, and the first place changes hands in 6% of the orders; the posterior
means stay, up to the error of the draws (0.04). Of 21 pairs the posterior is sure of 18, two of them against the log score: the
discriminant wins most batches from the logistic regression and loses few by much. Run time: half a minute on 2 CPU cores.

    python examples/papers/evaluation/ranking.py [--smoke] [--votes 400] [--seed 0] [--out ranking_output]
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import _scripts
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from lapilli import inference, ppl

TIE = 0.02  # nats
BATCH = 10  # held-out rows that a voter sees


class Votes(NamedTuple):
    """Pairs of models and outcomes: 0 the first wins, 1 a tie, 2 the second wins; all [votes]."""

    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray


@ppl.model
def davidson(first, second, outcome, num_models, scale=1.0):
    with ppl.plate("model", num_models):
        strength = ppl.sample("strength", dist.Normal(0.0, scale))
    nu = ppl.sample("nu", dist.HalfNormal(scale))
    a, b = strength[first], strength[second]
    logits = jnp.stack([a, jnp.log(nu) + (a + b) / 2, b], -1)
    with ppl.plate("votes", len(first)):
        ppl.sample("outcome", dist.Categorical(logits=logits), obs=outcome)


def elo(votes, num_models, step=32.0):
    """Elo's numbers after these votes in this order, from 1,000; a tie is half a win."""
    numbers = np.full(num_models, 1000.0)
    for i, j, outcome in zip(*votes, strict=True):
        expected = 1 / (1 + 10 ** ((numbers[j] - numbers[i]) / 400))
        change = step * (1 - outcome / 2 - expected)
        numbers[i] += change
        numbers[j] -= change
    return numbers


def draws_of(votes, num_models, key, num_warmup=500, num_draws=2000):
    """NUTS after its run; may be traced."""
    mcmc = MCMC(NUTS(davidson), num_warmup=num_warmup, num_samples=num_draws, progress_bar=False)
    mcmc.run(key, *votes, num_models)
    return mcmc


def rank_probabilities(strengths):
    """P(rank), [models, ranks], best first, of draws [draws, models]."""
    ranks = np.argsort(np.argsort(-strengths, 1), 1)
    return np.stack([np.mean(ranks == r, 0) for r in range(strengths.shape[1])], 1)


def scores(seed):
    """Names of the models and their log scores on each held-out digit, [models, digits]."""
    from sklearn.datasets import load_digits
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    models = {
        "nearest neighbours": KNeighborsClassifier(5),
        "logistic": LogisticRegression(C=0.01, max_iter=2000),
        "discriminant": LinearDiscriminantAnalysis(),
        "naive Bayes": GaussianNB(var_smoothing=0.05),
        "tree": DecisionTreeClassifier(max_depth=8, random_state=seed),
        "random forest": RandomForestClassifier(100, random_state=seed),
        "extra trees": ExtraTreesClassifier(100, random_state=seed),
    }
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[:900], order[900:]
    rows = []
    for model in models.values():
        probs = model.fit(pixels[train], labels[train]).predict_proba(pixels[test])
        # A share of 2% on all classes: a probability of 0 has no finite score.
        rows.append(np.log(0.98 * probs[np.arange(len(test)), labels[test]] + 0.02 / 10))
    return list(models), np.array(rows)


def vote(log_scores, num_votes, rng):
    """Voters that see two models, each on the same ten rows."""
    num_models, num_rows = log_scores.shape
    first = rng.integers(0, num_models, num_votes)
    second = (first + rng.integers(1, num_models, num_votes)) % num_models
    rows = rng.integers(0, num_rows, (num_votes, BATCH))
    gap = (log_scores[first[:, None], rows] - log_scores[second[:, None], rows]).mean(1)
    outcome = np.where(np.abs(gap) < TIE, 1, np.where(gap > 0, 0, 2))
    return Votes(first, second, outcome)


def shuffled(votes, rng):
    order = rng.permutation(len(votes.first))
    return Votes(*(part[order] for part in votes))


def draw(names, strengths, ranks, path):
    import matplotlib.pyplot as plt

    order = np.argsort(-strengths.mean(0))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    low, high = np.quantile(strengths[:, order], [0.05, 0.95], axis=0)
    mean = strengths.mean(0)[order]
    places = np.arange(len(names))
    left.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", color="C0")
    left.set(xlabel="strength, log odds", yticks=places, yticklabels=[names[i] for i in order])
    left.invert_yaxis()
    right.imshow(ranks[order], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(ranks[order]):
        for j, p in enumerate(row):
            if p >= 0.005:
                right.text(
                    j, i, f"{p:.2f}", ha="center", va="center", color="w" if p > 0.6 else "k"
                )
    right.set(xlabel="rank", title="probability of each rank", yticks=[])
    left.set_title("how strong: mean and 90 %")
    best = order[0]
    figure.suptitle(
        f"Noisy comparisons, ranked with their doubt: {names[best]} is first with probability {ranks[best, 0]:.2f}"
    )
    right.set_xticks(places, places + 1)
    figure.savefig(path, dpi=110)


def record(names, truth, strengths, orders, num_votes, seed):
    """The figures, for the page of figures."""
    best = np.argsort(-truth)
    widths = np.ptp(orders, 0)
    moved = np.mean(orders.argmax(1) != np.bincount(orders.argmax(1)).argmax())
    _scripts.record_figure(
        "evaluation/ranking",
        what=f"seven classifiers of digits ranked by {num_votes} noisy comparisons, posterior mean of the strength; "
        "spread: its sd",
        value={names[i]: float(strengths[:, i].mean()) for i in best},
        spread={names[i]: float(strengths[:, i].std()) for i in best},
        claim={names[i]: float(truth[i]) for i in best},
        claimed_by="mean log score, nats",
        note=f"Elo's numbers move by {widths.min():.0f} to {widths.max():.0f} with the order of the same votes, and their first "
        f"place changes hands in {moved:.0%} of the orders",
        digits=2, seeds=str(seed), measures=["ppl"],
    )  # fmt: skip


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Models ranked by noisy comparisons.")
    parser.add_argument("--smoke", action="store_true", help="a size that ends in seconds")
    parser.add_argument("--votes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("ranking_output"))
    parser.add_argument("--record", action="store_true", help="write the figures to docs/_data")
    options = parser.parse_args(arguments)
    if options.record and options.smoke:
        parser.error("--record is for the full size, without --smoke")
    num_votes = 100 if options.smoke else options.votes
    num_draws, num_orders = (200, 20) if options.smoke else (2000, 200)
    options.out.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(options.seed)
    names, log_scores = scores(options.seed)
    votes = vote(log_scores, num_votes, rng)
    key, again_key = jax.random.split(jax.random.key(options.seed))
    mcmc = draws_of(votes, len(names), key, num_draws=num_draws)
    strengths = np.asarray(mcmc.get_samples()["strength"])
    again = draws_of(shuffled(votes, rng), len(names), again_key, num_draws=num_draws)
    others = np.asarray(again.get_samples()["strength"])
    orders = np.array([elo(shuffled(votes, rng), len(names)) for _ in range(num_orders)])
    ranks = rank_probabilities(strengths)

    lines = [f"{num_votes} votes, {np.mean(votes.outcome == 1):.0%} ties, seed {options.seed}"]
    lines += [
        f"{'model':20}{'log score':>10}{'strength':>18}{'P(first)':>10}{'Elo over orders':>20}"
    ]
    truth = log_scores.mean(1)
    for i in np.argsort(-truth):
        strength = f"{strengths[:, i].mean():.2f} +- {strengths[:, i].std():.2f}"
        spread = f"{orders[:, i].min():.0f} to {orders[:, i].max():.0f}"
        lines += [f"{names[i]:20}{truth[i]:>10.3f}{strength:>18}{ranks[i, 0]:>10.2f}{spread:>20}"]
    first = np.bincount(orders.argmax(1), minlength=len(names)) / num_orders
    leaders = ", ".join(f"{names[i]} {first[i]:.0%}" for i in np.argsort(-first) if first[i] > 0)
    moved = np.abs(strengths.mean(0) - others.mean(0)).max()
    lines += [f"Elo's first over {num_orders} orders of the same votes: {leaders}"]
    lines += [f"posterior means, the votes in another order: moved by {moved:.3f} at most (draws)"]
    better = np.argsort(-truth)
    right = [
        np.mean(strengths[:, i] > strengths[:, j])
        for place, i in enumerate(better)
        for j in better[place + 1 :]
    ]
    sure = [p for p in right if max(p, 1 - p) > 0.95]
    agree = sum(p > 0.5 for p in sure)
    lines += [
        f"pairs in a known order (95 %): {len(sure)} of {len(right)}, {agree} as by log score"
    ]
    text = "\n".join(lines)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    draw(names, strengths, ranks, options.out / "ranking.png")
    tree = inference.to_arviz(mcmc, coords={"model": names}, groups=["log_likelihood"])
    drawn = tree["posterior"].to_dataset()["strength"]
    best_first = np.argsort(np.argsort(-drawn.values, -1), -1)
    tree["posterior"]["rank"] = drawn.copy(data=1 + best_first)
    tree.to_netcdf(options.out / "posterior.nc")
    if options.record:
        record(names, truth, strengths, orders, num_votes, options.seed)


if __name__ == "__main__":
    main()
