"""A regression with groups, and what is known of a group that nobody has seen.

What it shows: which women had an affair, by age, years of marriage and six kinds of work. Each kind has a base of its own, and
the bases a common law, so that a seventh kind can be foretold: it is drawn from that law, and its probability is less certain.

Data: statsmodels' fair (a magazine's questionnaire of 1974), 1,000 of 6,366 women.
Expected: certified; from 0.26 to 0.35 by kind of work, and a new kind within a wider band than most that were seen.
Run time: a minute on 2 CPU cores.

    python examples/groups.py [--smoke] [--out groups.png]
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import statsmodels.api as sm

from lapilli import inference, ppl

KINDS = ("student", "farming", "white collar", "teacher", "manager", "professional")


def load(num_rows: int) -> dict[str, np.ndarray]:
    """Kind of work, age and years of marriage (in decades, from 29 and 9), and whether there was an affair."""
    women = sm.datasets.fair.load_pandas().data.sample(num_rows, random_state=0)
    x = (women[["age", "yrs_married"]].to_numpy() - [29, 9]) / 10
    kind = women.occupation.to_numpy(int) - 1
    return {"kind": kind, "x": x, "had_one": (women.affairs > 0).to_numpy(int)}


@ppl.model
def affairs(kind, x, had_one=None, num_kinds=6):
    base = ppl.sample("base", dist.Normal(0.0, 2.0))
    spread = ppl.sample("spread", dist.HalfNormal(1.0))
    slopes = ppl.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with ppl.plate("kinds", num_kinds):
        by_kind = ppl.sample("by_kind", dist.Normal(base, spread))
    with ppl.plate("rows", x.shape[0]):
        logits = ppl.deterministic("logits", by_kind[kind] + x @ slopes)
        ppl.sample("had_one", dist.Bernoulli(logits=logits), obs=had_one)


def solve(data: dict[str, np.ndarray], num_samples: int) -> tuple[bool, np.ndarray]:
    """Whether the draws are certified; the probability by kind, a new one last, for age 29 after 9 years, [draws, kinds + 1]."""
    posterior = inference.infer(affairs, args=data, num_samples=num_samples, progress=False)
    same, shared = np.zeros((len(KINDS), 2)), ["base", "spread", "slopes"]
    known = posterior.predict(jax.random.key(1), np.arange(len(KINDS)), same)["logits"]
    new = posterior.predict(jax.random.key(2), np.arange(1), same[:1], keep=shared)["logits"]
    logits = np.concatenate([known, new], axis=1)
    return posterior.certificate.is_certified, 1 / (1 + np.exp(-logits))


def draw(chances: np.ndarray, data: dict[str, np.ndarray], out: Path) -> None:
    low, middle, high = np.quantile(chances, [0.05, 0.5, 0.95], axis=0)
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    at = np.arange(len(middle))
    axis.errorbar(
        at, middle, [middle - low, high - middle], fmt="o", capsize=3, label="median and 90 %"
    )
    shares = [data["had_one"][data["kind"] == k].mean() for k in range(len(KINDS))]
    axis.plot(at[:-1], shares, "kx", label="counted, all ages")
    axis.set(xticks=at, xticklabels=[*KINDS, "a new kind"], ylabel="probability")
    axis.set_title("Six kinds of work, and one that nobody had")
    axis.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("groups.png")) -> dict[str, float]:
    data = load(200 if smoke else 1000)
    is_certified, chances = solve(data, 400 if smoke else 4000)
    print("certified" if is_certified else "not certified")
    for kind, values in zip((*KINDS, "a new kind"), chances.T, strict=True):
        print(f"{kind:<14} {values.mean():.2f} +- {values.std():.2f}")
    draw(chances, data, out)
    return {"known": chances[:, 2].std(), "new": chances[:, -1].std()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A regression with groups, and a new group.")
    parser.add_argument("--smoke", action="store_true", help="few rows and draws")
    parser.add_argument("--out", type=Path, default=Path("groups.png"), help="the picture")
    main(**vars(parser.parse_args()))
