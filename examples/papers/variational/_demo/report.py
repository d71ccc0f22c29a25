"""The tables of demo.py, as text and as JSON."""

import argparse
import json
from typing import Any

from _record import record_figure

REPORTED = """\
Reported elsewhere under other conditions, so not comparable (here: 4,500 images, 10 classes, minutes on a CPU):
  -86.8 nats  log-likelihood of a variational autoencoder with one stochastic layer; 60,000 images, 5,000 importance
              samples (Burda et al. 2016, arXiv:1509.00519, table 1)
  0.969       clustering accuracy, best run of a mixture-prior autoencoder; 60,000 images (Dilokthanakul et al. 2016,
              arXiv:1611.02648)
For the estimators on this program nothing is published. What theory says: enum and mvd differentiate the class in the same
way here, since mvd replays every class with the other noise kept; they differ for the decoder, which mvd trains on the drawn
class only. A baseline lowers the variance of the score function (Mohamed et al. 2020, arXiv:1906.10652)."""

RUNS = """\
ELBO, IWELBO-50: nats per image, higher is better. ESS of 200, k-hat: importance weights of the guide's draws, median over
images; above k-hat 0.7 the guide is no stand-in for the posterior, and IWELBO is still rising with the number of draws.
accuracy: classes against digits, best one-to-one assignment. start: checks and compilation."""

GRADIENTS = """\
variance: nats^2, summed over the weights. x enum: relative to enum. distance: squared distance of the mean from enum's, in
units of what noise alone would give: about 1 if unbiased. reinforce runs the program twice per estimate."""


def report(runs: dict, found: dict, noise: dict, kmeans: float, biased: set[str]) -> str:
    """All tables."""
    label = lambda name: f"{name} (biased)" if name in biased else name
    rows = [
        ("class under", "ELBO", "IWELBO-50", "ESS of 200", "k-hat", "accuracy", "s / 1000 steps", "start, s")
    ]  # fmt: skip
    for name, run in runs.items():
        f = found[name]
        figures = (
            f"{f.elbo:.2f}",
            f"{f.iwelbo:.2f}",
            f"{f.ess:.1f}",
            f"{f.k_hat:.2f}",
            f"{f.accuracy:.3f}",
        )
        clock = (f"{1000 * run.seconds_per_step:.1f}", f"{run.start_seconds:.1f}")
        rows.append((label(name), *figures, *clock))
    rows.append(("(k-means on pixels)", "", "", "", "", f"{kmeans:.3f}", "", ""))
    gradients = [
        ("", "a tenth", "of the", "steps", "the end", "of", "training"),
        ("class under", "variance", "x enum", "distance", "variance", "x enum", "distance"),
    ]
    for name in noise["early"]:
        cells = [label(name)]
        for table in noise.values():
            entry = table[name]
            cells += [
                f"{entry['variance']:.3g}",
                f"{entry['variance'] / table['enum']['variance']:.3g}",
            ]
            cells += ["" if name == "enum" else f"{entry['distance']:.2f}"]
        gradients.append(tuple(cells))
    return "\n".join(
        [
            "Training under each estimator (the same steps, batches and initial parameters), and the held-out images",
            _aligned(rows),
            RUNS,
            "",
            "Gradient of the bound per image in the classifier's weights, same parameters and images for every estimator",
            _aligned(gradients),
            GRADIENTS,
            "",
            REPORTED,
        ]
    )


def record(config: argparse.Namespace, runs: dict, found: dict, noise: dict) -> None:
    """Bounds and variances, for the page of figures."""
    more: dict[str, Any] = {
        "seeds": str(config.seed), "digits": 2, "measures": ["examples/papers/variational/_demo", "models/deep_latent.py", "ppl"],
    }  # fmt: skip
    record_figure(
        "gradients/demo_bound",
        what=f"a discrete class and a continuous code on images ({config.data}), {config.steps:,} steps: held-out ELBO by "
        "estimator of the class, nats per image",
        value={name: found[name].elbo for name in runs},
        **more,
    )
    late = noise["late"]
    record_figure(
        "gradients/demo_variance",
        what="variance of the class gradient there after training, relative to enum",
        value={name: row["variance"] / late["enum"]["variance"] for name, row in late.items()},
        note="squared distance of the mean from enum's, about 1 if unbiased: "
        + "; ".join(f"{n} {row['distance']:.2f}" for n, row in late.items() if n != "enum"),
        **more,
    )


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = lambda row: row[0].ljust(widths[0])
    rest = lambda row: [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "\n".join("  ".join([first(row), *rest(row)]).rstrip() for row in rows)


def write_metrics(
    config: argparse.Namespace, data: Any, runs: dict, found: dict, noise: dict, kmeans: float
) -> None:
    """metrics.json: the tables' figures, and the training bound at the start."""
    metrics = {
        "config": {name: str(value) for name, value in vars(config).items()},
        "kmeans_accuracy": kmeans,
        "gradients": noise,
        "runs": {
            name: {
                "first_bound": float(run.fit.history["value"][:10].mean() / len(data.train)),
                **{k: v for k, v in found[name]._asdict().items() if k != "class_probs"},
                "seconds_per_1000_steps": 1000 * run.seconds_per_step,
                "start_seconds": run.start_seconds,
            }
            for name, run in runs.items()
        },
    }
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
