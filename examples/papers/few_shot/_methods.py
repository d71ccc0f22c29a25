"""Methods of few-shot regression, trained and measured alike (for sine_line.py and pose.py)."""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _baselines as baselines
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lapilli import inference, ppl
from lapilli.models import niw_meta

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure


class Config(NamedTuple):
    """Sizes of a run; `num_train` episodes are the pool that minibatches are drawn from."""

    num_steps: int = 5000
    num_seeds: int = 3
    num_train: int = 20_000
    num_spare: int = 200
    num_test: int = 400
    num_draws: int = 20
    batch_size: int = 8
    width: int = 40


SMOKE = Config(
    num_steps=60, num_seeds=2, num_train=200, num_spare=20, num_test=20, num_draws=5, width=10
)


LABELS = (
    "",
    ", noise fitted",
    ", Student fitted",
    ", spread fitted",
)  # what is fitted to spare episodes


class Task(NamedTuple):
    """What the networks see: inputs of `num_inputs` numbers; labels that are numbers (`num_outputs=None`) or vectors.

    Attributes:
        inner_rate: of the gradient steps of MAML and Reptile on the mean negative log-likelihood.
    """

    num_inputs: int
    num_outputs: int | None
    noise: float
    inner_rate: float


class Method(NamedTuple):
    """What is trained, and what predicts.

    Attributes:
        objective: to be maximised.
        model: predicts the queries.
        guide: draws an episode's weights; None: the model has no latent sites.
        head: of the training.
        start: seed -> initial parameters that differ between seeds.
        rate: of Adam.
    """

    objective: inference.Objective
    model: ppl.Program
    guide: ppl.Program | None
    head: niw_meta.Head
    start: Callable[[int], dict[str, Any]]
    rate: float = 2e-3


class Result(NamedTuple):
    """One method: its fit, by seed the heads fitted last and the predictions, measures by name and seed, seconds of training."""

    fit: Any
    heads: list[Any]
    predictions: list[niw_meta.Prediction]
    measures: dict[str, list[float]]
    seconds: float


def arguments(
    description: str, name: str, given: list[str] | None
) -> tuple[Config, argparse.Namespace]:
    """Sizes of the run, and the options of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a small run that finishes in seconds")
    parser.add_argument("--steps", type=int, default=Config().num_steps)
    parser.add_argument("--seeds", type=int, default=Config().num_seeds)
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    options = parsed(parser, given)
    config = Config(num_steps=options.steps, num_seeds=options.seeds)
    return SMOKE if options.smoke else config, options


def methods(config: Config, task: Task) -> dict[str, Method]:
    """The same network of two hidden layers for all but the neural process, which has one such on either side of its mean."""
    size = task.num_outputs or 1
    arrays = lambda network: eqx.filter(network, eqx.is_inexact_array)

    def mlp(num_in: int, num_out: int, seed: int) -> Any:
        return eqx.nn.MLP(num_in, num_out, config.width, 2, key=jax.random.key(seed))

    network = mlp(task.num_inputs, size, 0)
    own = lambda seed: {"loc": ravel_pytree(arrays(mlp(task.num_inputs, size, seed)))[0]}
    head = niw_meta.GaussianNoise(task.noise, task.num_outputs)
    bayes = niw_meta.programs(network, head)
    bound = inference.elbo(*bayes, kl="analytic").with_plate_sizes({"episodes": math.inf})
    inner = optax.sgd(task.inner_rate)
    maml = baselines.maml(network, head, optimizer=inner, num_steps=5)
    # Reptile does not differentiate through its steps, and needs more and smaller ones: at 5 of the full rate it diverges.
    small = optax.sgd(task.inner_rate / 4)
    reptile = baselines.reptile(network, head, optimizer=small, num_steps=40)
    widths = (task.num_inputs + size, config.width), (task.num_inputs + config.width, 2 * size)
    coders = lambda seed: [mlp(*pair, 2 * seed + i) for i, pair in enumerate(widths)]
    free = niw_meta.GaussianWithScale(task.noise / 3, task.num_outputs)
    cnp = baselines.cnp(*coders(0), free)
    own_coders = lambda seed: dict(
        zip(("encoder", "decoder"), map(arrays, coders(seed)), strict=True)
    )
    likelihood = baselines.likelihood
    return {
        "NIW-Meta": Method(bound, *bayes, head, own),
        "MAML": Method(likelihood(maml), maml, None, head, own),
        "Reptile": Method(likelihood(reptile.update), reptile.model, None, head, own),
        "neural process": Method(likelihood(cnp), cnp, None, free, own_coders),
    }


def train(method: Method, episodes: niw_meta.Episodes, config: Config) -> Any:
    """One fit of all seeds, each from networks of its own."""
    few = jax.tree.map(lambda leaf: leaf[:2], episodes)
    params = method.objective.init(jax.random.key(0), few)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * config.num_seeds), params)
    starts = [method.start(seed) for seed in range(config.num_seeds)]
    for name, value in jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts).items():
        copies[name] = value
    schedule = optax.cosine_decay_schedule(method.rate, config.num_steps)
    return inference.fit(
        method.objective,
        optax.chain(optax.clip_by_global_norm(1e3), optax.adam(schedule)),
        (episodes,),
        num_steps=config.num_steps,
        key=jax.random.key(0),
        subsample={"episodes": config.batch_size},
        params=copies,
        num_seeds=config.num_seeds,
    )


def predict(method: Method, fit: Any, episodes: Any, num_draws: int) -> list[niw_meta.Prediction]:
    """Predictions of every seed at the queries; a program without local sites has one draw."""

    @jax.jit
    def one(params: Any) -> niw_meta.Prediction:
        draws = {}
        if method.guide is not None:
            bound = method.guide.bind(params)
            draws = niw_meta.adapt(bound, jax.random.key(1), episodes, num_draws)
        return niw_meta.predict(method.model.bind(params), draws, episodes)

    return [jax.tree.map(np.asarray, one(fit.seed(s).params)) for s in range(fit.num_seeds)]


def quality(head: niw_meta.Head, scores: Any, points: Any, suffix: str) -> dict[str, float]:
    """Log of the mean density over draws, mean over labels, and calibration error."""
    log_prob = head.law(jnp.asarray(scores)).log_prob(points.y)
    log_density = jax.nn.logsumexp(log_prob, axis=0) - np.log(len(scores))
    error = niw_meta.regression_ece(head, scores, points)
    return {f"nats{suffix}": float(log_density.mean()), f"calibration{suffix}": error}


def means(head: niw_meta.Head, scores: Any) -> np.ndarray:
    """Mean of the predictive mixture, [episodes, n, ...]."""
    return np.asarray(head.law(jnp.asarray(scores)).mean).mean(0)


def run(
    config: Config,
    task: Task,
    episodes: Any,
    spare: Any,
    test: Any,
    error: Callable[[np.ndarray], Any],
) -> dict[str, Result]:
    """Every method on the same episodes; `error` gives measures of the predicted means.

    Where a method is given its noise, it is fitted to `spare` episodes after training, for all methods alike: one number; the
    scale and the degrees of freedom of Student t noise; beside these the spread of the draws, where there are several.
    """
    results = {}
    for name, method in methods(config, task).items():
        began = time.perf_counter()
        fit = train(method, episodes, config)
        seconds = time.perf_counter() - began
        predictions = predict(method, fit, test, config.num_draws)
        on_spare = predict(method, fit, spare, config.num_draws)
        heads, rows = [], []
        for prediction, other in zip(predictions, on_spare, strict=True):
            found = fitted_heads(method, task, other.scores, spare.query)
            row = error(means(method.head, prediction.scores))
            for label, head in found.items():
                row |= quality(head, prediction.scores, test.query, label)
            heads.append(found[LABELS[-1]])
            rows.append(row)
        measures = {key: [row[key] for row in rows] for key in rows[0]}
        results[name] = Result(fit, heads, predictions, measures, seconds)
    return results


def fitted_heads(method: Method, task: Task, scores: Any, points: Any) -> dict[str, Any]:
    """Heads to predict with: that of the training, and those that are fitted to scores of spare episodes."""
    if not isinstance(method.head, niw_meta.GaussianNoise):
        return dict.fromkeys(LABELS, method.head)
    student = niw_meta.Student(task.noise, 5.0, task.num_outputs)
    last = student if method.guide is None else niw_meta.Tempered(student)
    fitted = (niw_meta.with_fitted_noise(h, scores, points) for h in (method.head, student, last))
    return dict(zip(LABELS, (method.head, *fitted), strict=True))


def report(results: dict[str, Result]) -> None:
    """A row for each measure: mean over seeds +- their standard deviation."""
    print(f"{'':26}" + "".join(f"{name:>24}" for name in results))
    for measure in next(iter(results.values())).measures:
        cells = [r.measures[measure] for r in results.values()]
        print(f"{measure:26}" + "".join(f"{np.mean(c):14.3f} +- {np.std(c):6.3f}" for c in cells))
    print(f"{'seconds':26}" + "".join(f"{r.seconds:24.0f}" for r in results.values()))
    for name, result in results.items():
        print(f"{name}, fitted last, first seed: {result.heads[0]}")


def record(where: str, task: str, results: dict[str, Result]) -> None:
    """Errors, densities and calibration, for the page of figures."""
    cells = {
        f"{name}, {measure}": result.measures[measure]
        for measure in next(iter(results.values())).measures
        for name, result in results.items()
    }
    record_figure(
        where,
        what=f"{task}: error, log density (nats) and calibration error, with the noise of the training, and with Normal noise, "
        "Student t noise, and this and the spread of the draws fitted on spare episodes; spread: standard deviation over seeds",
        value={name: np.mean(values) for name, values in cells.items()},
        spread={name: np.std(values, ddof=1) for name, values in cells.items()},
        seeds=len(next(iter(cells.values()))),
        measures=["examples/papers/few_shot/_methods.py", "examples/papers/few_shot/_baselines.py", "models/niw_meta"],
    )  # fmt: skip


def save_posterior(results: dict[str, Result], test: Any, path: Path) -> None:
    """Draws of NIW-Meta's weights for eight test episodes, as netCDF."""
    few = jax.tree.map(lambda leaf: leaf[:8], test)
    fit = results["NIW-Meta"].fit.seed(0)
    inference.to_arviz(fit, key=jax.random.key(2), num_samples=50, args=(few,), path=path)


def costs(config: Config, task: Task, episodes: Any, num_inner: tuple[int, ...]) -> None:
    """Processor time and temporary memory of one gradient against the number of inner steps, gradient steps for all."""
    size = task.num_outputs or 1
    network = eqx.nn.MLP(task.num_inputs, size, config.width, 2, key=jax.random.key(0))
    head, sgd = niw_meta.GaussianNoise(task.noise, task.num_outputs), optax.sgd(task.inner_rate)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[: config.batch_size]), episodes)
    infinite = {"episodes": math.inf}

    def objectives(n: int) -> dict[str, inference.Objective]:
        bayes = niw_meta.programs(network, head, inner=inference.local.Descent(sgd, n))
        found = {
            "NIW-Meta": inference.elbo(*bayes, kl="analytic").with_plate_sizes(infinite),
        }
        for order in (1, 2):
            maml = baselines.maml(network, head, optimizer=sgd, num_steps=n, order=order)
            found[f"MAML, order {order}"] = baselines.likelihood(maml)
        return found

    print(f"one gradient of {config.batch_size} episodes:")
    for n in num_inner:
        runs = {}
        for name, objective in objectives(n).items():
            params = objective.init(jax.random.key(0), batch)
            step = lambda params, key, o=objective: o.value_and_grad(params, key, batch)
            compiled = jax.jit(step).lower(params, jax.random.key(0)).compile()
            runs[name] = compiled, params, compiled.memory_analysis().temp_size_in_bytes
        times = {name: [] for name in runs}
        keys = list(jax.random.split(jax.random.key(0), 50))
        for _ in range(20):  # interleaved
            for name, (compiled, params, _) in runs.items():
                start = time.process_time()
                for key in keys:
                    jax.block_until_ready(compiled(params, key))
                times[name].append((time.process_time() - start) / len(keys))
        cells = [
            f"{name} {1e3 * np.median(times[name]):6.2f} ms {memory / 1e6:6.2f} MB"
            for name, (*_, memory) in runs.items()
        ]
        ratio = np.median(np.divide(times["NIW-Meta"], times["MAML, order 1"]))
        print(f"{n:4} inner steps: {';  '.join(cells)};  NIW-Meta / order 1: {ratio:.2f}")
