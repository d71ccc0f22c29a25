"""What demo.py measures: gradients of the estimators, bounds and classes on held-out images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import numpy as np
from scipy.optimize import linear_sum_assignment

from lapilli import inference, ppl


def compare_gradients(
    objectives: dict[str, inference.Objective],
    checkpoints: dict[str, Any],
    x: np.ndarray,
    num_estimates: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Gradients of the bound per image in the classifier's weights: checkpoint -> estimator -> figures.

    "variance" is the sum of the variances of all weights, nats^2. "distance" is |mean - mean of enum|^2 over its
    expectation if the two have the same mean: about 1 for an unbiased estimator.
    """
    estimators = {name: _estimator(o, x, num_estimates) for name, o in objectives.items()}
    return {when: _compare(estimators, params) for when, params in checkpoints.items()}


def _estimator(objective: inference.Objective, x: np.ndarray, num_estimates: int) -> Callable:
    @jax.jit
    def estimates(params: Any, key: Any) -> Any:
        grad = lambda key: objective.grad(params, key, x)["classifier"]
        flat = lambda key: jax.flatten_util.ravel_pytree(grad(key))[0] / len(x)
        return jax.lax.map(flat, jax.random.split(key, num_estimates))

    return estimates


def _compare(estimators: dict[str, Callable], params: Any) -> dict[str, dict[str, float]]:
    moments = {}
    for number, (name, estimates) in enumerate(estimators.items()):
        # Keys of their own: common noise would make the means dependent.
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
    """Held-out images under one run.

    Attributes:
        elbo: nats per image, mean of 200 draws.
        iwelbo: importance-weighted bound with 50 draws, nats per image.
        ess: effective number of 200 draws of the guide, median over images.
        k_hat: Pareto shape of their weights, median over images.
        accuracy: share of images whose class is matched to their digit.
        class_probs: q(k | x), [images, classes].
    """

    elbo: float
    iwelbo: float
    ess: float
    k_hat: float
    accuracy: float
    class_probs: np.ndarray


def make_assessor(model: ppl.Program, guide: ppl.Program, data: Any) -> Callable[[Any], HeldOut]:
    """`params -> HeldOut`. A relaxed run has the same parameters, and is judged by the categorical program too."""
    iwelbo = inference.iwelbo(
        model, guide, num_particles=50, per="rows", strategies={"k": "reinforce"}
    )
    x = data.test

    @jax.jit
    def measure(params: Any, key: Any) -> Any:
        def weigh(key: Any) -> Any:
            q = guide.bind(params).simulate(key, x)
            p = model.bind(params).trace(q.choices, x)
            log_weights = sum(p.log_probs.values()) - sum(q.log_probs.values())
            return log_weights, q.deterministic["class_probs"]

        log_weights, probs = jax.lax.map(weigh, jax.random.split(key, 200))
        return iwelbo.value(params, key, x) / len(x), log_weights, probs[0]

    def assess(params: Any) -> HeldOut:
        bound, log_weights, probs = map(np.asarray, measure(params, jax.random.key(2)))
        diagnostics = [
            inference.diagnostics.importance_diagnostics(column) for column in log_weights.T
        ]
        return HeldOut(
            elbo=float(log_weights.mean()),
            iwelbo=float(bound),
            ess=float(np.median([d.ess for d in diagnostics])),
            k_hat=float(np.median([d.k_hat for d in diagnostics])),
            accuracy=accuracy(probs.argmax(-1), data.labels),
            class_probs=probs,
        )

    return assess


def kmeans_accuracy(data: Any, num_classes: int) -> float:
    """What k-means makes of the same pixels: the best of five starts by its own criterion."""
    from sklearn.cluster import KMeans

    kmeans = KMeans(num_classes, n_init=5, random_state=0).fit(data.train)
    return accuracy(kmeans.predict(data.test), data.labels)


def accuracy(classes: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that agree under the best one-to-one assignment of classes to digits."""
    counts = np.zeros((classes.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (classes, labels), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(labels))
