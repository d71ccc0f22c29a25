"""Classifier two-sample tests: can a classifier tell generated rows from real ones, or models from each other?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._compat import ArrayLike
from ...ppl._types import Key, ModelFn
from ._estimate import Estimate
from ._inputs import Features, check_held_out, equal_sizes, fitted, generator, rows

_LEAST = 40
_CLIP = 1e-6  # any probabilities give a bound; none of 0 or 1 gives a bad one for a single row


@dataclasses.dataclass(frozen=True)
class ClassifierTest:
    """See `classifier_test`; printing it is a line for each.

    Attributes:
        accuracy: balanced, on held-out rows; 1/2 under equality.
        auc: probability that a generated row scores above a real one; 1/2 under equality.
        js_bound: lower bound of the Jensen-Shannon divergence, nats; at most 0 in mean under equality, at most log 2.
        p_value: of equality, from the ranks of held-out rows, one-sided.
    """

    accuracy: Estimate
    auc: Estimate
    js_bound: Estimate
    p_value: float

    def __repr__(self) -> str:
        lines = [repr(e) for e in (self.accuracy, self.auc, self.js_bound)]
        return "\n".join([*lines, f"p-value of equal laws {self.p_value:.3g}"])


@checked_call
def classifier_test(
    real: Float[ArrayLike, "n d"],
    generated: Float[ArrayLike, "m d"],
    key: Key,
    *,
    classifier: object = None,
    features: Features | None = None,
    held_out: Float[ArrayLike, "m d"] | None = None,
) -> ClassifierTest:
    """Train a classifier to tell generated rows from real ones on half of them, and test it on the other half.

        JS(p, q) >= log 2 - cross entropy of any classifier, both samples weighted alike

    Args:
        real: n rows.
        generated: m rows. If m differs from n, both still weigh alike: the log odds are moved by the log ratio of sizes.
        key: PRNG key of the halves and of the classifier.
        classifier: of scikit-learn, with probabilities; a copy is trained. None: logistic regression on 256
            features of a Gaussian kernel between standardised rows.
        features: a function of each sample.
        held_out: real rows for the floor, as many as `generated`.

    Returns:
        A `ClassifierTest`. Errors: binomial of the accuracy, DeLong's of the AUC, of a mean for the bound.

    Raises:
        ValueError: what `rows` are not; fewer than 40 rows; a classifier without probabilities.
        ImportError: scikit-learn is missing.

    Validity: held-out rows are independent of the classifier: the p-value (Mann-Whitney's) holds for every classifier, and the
    bound is one in mean. Errors are given the classifier. An accuracy of 1/2 says that this classifier saw nothing.

    Reference: Lopez-Paz and Oquab 2017, arXiv:1610.06545.
    """
    label = "classifier_test"
    x, y, *other = rows(
        label, features, {"real": real, "generated": generated, "held_out": held_out},
        least=_LEAST, why="a classifier and its test",
    )  # fmt: skip
    draws = generator(key)
    found = _told_apart(label, x, y, classifier, draws)
    if other:
        check_held_out(label, x, y, other[0])
        floor = _told_apart(label, x, other[0], classifier, draws)
        numbers = {
            name: dataclasses.replace(getattr(found, name), floor=getattr(floor, name))
            for name in ("accuracy", "auc", "js_bound")
        }
        found = dataclasses.replace(found, **numbers)
    return found


def _told_apart(
    label: str, x: np.ndarray, y: np.ndarray, classifier: object, draws: np.random.Generator
) -> ClassifierTest:
    (x_train, x_test), (y_train, y_test) = _halves(x, draws), _halves(y, draws)
    train = np.concatenate([x_train, y_train])
    target = np.repeat([0, 1], [len(x_train), len(y_train)])
    model = fitted(label, classifier, train, target, int(draws.integers(2**31)))
    of_x, of_y = (_log_odds(model, part, len(x_train), len(y_train)) for part in (x_test, y_test))
    sizes = (len(x), len(y))
    numbers = {
        "accuracy": (*_balanced_accuracy(of_x, of_y), 0.5),
        "auc": (*_auc(of_x, of_y), 0.5),
        "js_bound": (*_bound(of_x, of_y), None),
    }
    made = {
        name: Estimate(value, error, exact=exact, name=f"classifier {name}", sizes=sizes)
        for name, (value, error, exact) in numbers.items()
    }
    return ClassifierTest(**made, p_value=_p_value(of_x, of_y))


def _halves(x: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = draws.permutation(len(x))
    return x[order[: len(x) // 2]], x[order[len(x) // 2 :]]


def _log_odds(model: ModelFn, x: np.ndarray, num_real: int, num_generated: int) -> np.ndarray:
    """Log-odds of being generated, where both samples are equally probable beforehand."""
    prob = np.clip(model.predict_proba(x)[:, 1], _CLIP, 1 - _CLIP)
    return np.log(prob) - np.log1p(-prob) - np.log(num_generated / num_real)


def _balanced_accuracy(of_x: np.ndarray, of_y: np.ndarray) -> tuple[float, float]:
    """Mean of both shares that are right, a tie being half right, and its binomial error."""
    right = [(side > 0) + 0.5 * (side == 0) for side in (-of_x, of_y)]
    shares = [part.mean() for part in right]
    variance = sum(s * (1 - s) / len(part) for s, part in zip(shares, right, strict=True))
    return float(np.mean(shares)), float(variance**0.5 / 2)


def _auc(of_x: np.ndarray, of_y: np.ndarray) -> tuple[float, float]:
    """Area under the curve, and DeLong's error: from how many rows of the other sample each row lies above."""
    from scipy.stats import rankdata

    n, m = len(of_x), len(of_y)
    ranks = rankdata(np.concatenate([of_x, of_y]))
    below_y = (ranks[n:] - rankdata(of_y)) / n
    below_x = (ranks[:n] - rankdata(of_x)) / m
    return float(below_y.mean()), float((below_y.var(ddof=1) / m + below_x.var(ddof=1) / n) ** 0.5)


def _bound(of_x: np.ndarray, of_y: np.ndarray) -> tuple[float, float]:
    losses = np.logaddexp(0, of_x), np.logaddexp(0, -of_y)
    variance = sum(loss.var(ddof=1) / len(loss) for loss in losses)
    return float(np.log(2) - sum(loss.mean() for loss in losses) / 2), float(variance**0.5 / 2)


def _p_value(of_x: np.ndarray, of_y: np.ndarray) -> float:
    from scipy.stats import mannwhitneyu

    if np.ptp(np.concatenate([of_x, of_y])) == 0:
        return 1.0
    return float(mannwhitneyu(of_y, of_x, alternative="greater").pvalue)


@dataclasses.dataclass(frozen=True)
class Attribution:
    """See `attribution`; printing it is a table.

    Attributes:
        names: of the samples.
        confusion: share of each sample's held-out rows (first axis) that is said to be of each (second).
        accuracy: share of held-out rows that is said to be where it comes from; 1 over the number of samples under equality.
    """

    names: tuple[str, ...]
    confusion: Float[np.ndarray, "samples samples"]
    accuracy: Estimate

    def __repr__(self) -> str:
        width = max(8, *map(len, self.names))
        head = " " * width + "".join(f"  {name:>{width}}" for name in self.names)
        lines = [
            f"{name:<{width}}" + "".join(f"  {share:>{width}.3f}" for share in row)
            for name, row in zip(self.names, self.confusion, strict=True)
        ]
        return "\n".join([repr(self.accuracy), head, *lines])


@checked_call
def attribution(
    samples: Mapping[str, Float[ArrayLike, "n d"]],
    key: Key,
    *,
    classifier: object = None,
    features: Features | None = None,
) -> Attribution:
    """Train a classifier to say which model, or reality, rows come from, on half of them; test it on the other half.

    Args:
        samples: by name, the real one among them, of equally many rows.
        key: PRNG key of the halves and of the classifier.
        classifier: as in `classifier_test`.
        features: a function of each sample.

    Returns:
        An `Attribution`; the error of its accuracy is binomial.

    Raises:
        ValueError: what `rows` are not; different sizes; fewer than 40 rows; a classifier without probabilities.
        ImportError: scikit-learn is missing.

    Validity: held-out rows are independent of the classifier. Errors are given the classifier.
    """
    label = "attribution"
    found = rows(label, features, samples, least=_LEAST, why="a classifier and its test")
    equal_sizes(label, dict(zip(samples, found, strict=True)))
    draws = generator(key)
    halves = [_halves(x, draws) for x in found]
    train, number = np.concatenate([a for a, _ in halves]), len(halves[0][0])
    owner = np.repeat(np.arange(len(found)), number)
    model = fitted(label, classifier, train, owner, int(draws.integers(2**31)))
    said = [model.predict(b) for _, b in halves]
    confusion = np.array([np.bincount(s, minlength=len(found)) / len(s) for s in said])
    share = float(np.diag(confusion).mean())
    error = float(np.sqrt(sum(p * (1 - p) for p in np.diag(confusion)) / len(said[0]))) / len(found)
    sizes = (len(found[0]), len(found[0]))
    accuracy = Estimate(
        share, error, exact=1 / len(found), name="attribution accuracy", sizes=sizes
    )
    return Attribution(tuple(samples), confusion, accuracy)
