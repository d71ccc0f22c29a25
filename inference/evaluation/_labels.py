"""Metrics of conditional models: what a classifier learns from generated rows, and distances class by class."""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, PyTree, Shaped

from ...ppl._calls import checked_call
from ...ppl._compat import ArrayLike
from ...ppl._types import Key
from ._estimate import Estimate
from ._frechet import frechet_distance
from ._inputs import Features, equal_sizes, fitted, generator, labelled, of_one_kind, rows

Labels = Shaped[ArrayLike, " n"]


@checked_call
def classification_accuracy_score(
    real: Float[ArrayLike, "n d"],
    real_labels: Labels,
    generated: Float[ArrayLike, "m d"],
    generated_labels: Labels,
    test: Float[ArrayLike, "t d"],
    test_labels: Labels,
    key: Key,
    *,
    train_on: Literal["generated", "both"] = "generated",
    classifier: object = None,
    features: Features | None = None,
) -> Estimate:
    """Accuracy on real rows of a classifier that was trained on generated ones, or on real and generated ones together.

    Args:
        real: rows to train on for the floor.
        real_labels: their classes.
        generated: generated rows, as many as real ones unless the classifier is trained on both.
        generated_labels: the classes that they were generated for.
        test: real rows that neither the model nor a classifier was trained on.
        test_labels: their classes.
        key: PRNG key of the classifier.
        train_on: "generated" asks what generated rows are worth in place of real ones, "both" whether they help beside them.
        classifier: as in `classifier_test`.
        features: a function of each sample.

    Returns:
        The accuracy with its binomial error; `floor` is that of training on the real rows alone, with the same seed. Details:
        "difference" to it, and "difference_error" of the paired rows.

    Raises:
        ValueError: what `rows` are not; different sizes where "generated" is asked for; labels that do not fit; a classifier
            without probabilities; an unknown option.
        TypeError: labels are numbers in one sample and text in another.
        ImportError: scikit-learn is missing.

    Validity: errors are given both classifiers: whether generated rows help a kind of classifier takes several samples of all
    rows. A model that repeats its training rows scores well. One that was trained on the real rows knows no more than
    they do: what "both" gains is what the model assumes.

    Reference: Ravuri and Vinyals 2019, arXiv:1905.10887; Zheng, Wu and Li 2023, arXiv:2305.17476 ("both").
    """
    label = "classification_accuracy_score"
    x, y, t = rows(label, features, {"real": real, "generated": generated, "test": test})
    if train_on == "generated":
        equal_sizes(label, {"real": x, "generated": y})
    of_x, of_y = labelled(label, "real", x, real_labels), labelled(label, "generated", y, generated_labels)  # fmt: skip
    of_t = labelled(label, "test", t, test_labels)
    of_one_kind(label, {"real": of_x, "generated": of_y, "test": of_t})
    seed = int(generator(key).integers(2**31))
    if train_on == "both":
        y, of_y = np.concatenate([x, y]), np.concatenate([of_x, of_y])
    right = [fitted(label, classifier, a, b, seed).predict(t) == of_t for a, b in ((x, of_x), (y, of_y))]  # fmt: skip

    def estimate(hits: np.ndarray, **more: PyTree) -> Estimate:
        share = float(hits.mean())
        error = float((share * (1 - share) / len(hits)) ** 0.5)
        return Estimate(share, error, name=label, sizes=(len(t), len(y)), **more)

    on_real, on_generated = right
    gap = on_generated.astype(float) - on_real
    details = {
        "difference": float(gap.mean()),
        "difference_error": float(gap.std(ddof=1) / len(gap) ** 0.5),
    }
    return estimate(on_generated, floor=estimate(on_real), details=details)


@checked_call
def intra_class_frechet(
    real: Float[ArrayLike, "n d"],
    real_labels: Labels,
    generated: Float[ArrayLike, "m d"],
    generated_labels: Labels,
    key: Key,
    *,
    features: Features | None = None,
) -> Estimate:
    """Mean over classes of the extrapolated Frechet distance within each: a model that confuses its classes is seen.

    Args:
        real: n rows.
        real_labels: their classes.
        generated: m rows.
        generated_labels: the classes that they were generated for.
        key: PRNG key, as in `frechet_distance`.
        features: a function of each sample; few, since every class needs some four rows for each.

    Returns:
        The mean, its jackknife error from those of the classes. Details: the distance of each class, "class NAME"; "plain", the
        mean of the uncorrected ones.

    Raises:
        ValueError: what `rows` are not; labels that do not fit; other classes in one sample than in the other; classes of too few
            rows for `frechet_distance`.

    Validity: as `frechet_distance`, class by class. Classes of different sizes count alike.
    """
    label = "intra_class_frechet"
    x, y = rows(label, features, {"real": real, "generated": generated})
    of_x, of_y = labelled(label, "real", x, real_labels), labelled(label, "generated", y, generated_labels)  # fmt: skip
    classes = np.unique(of_x)
    if not np.array_equal(classes, np.unique(of_y)):
        raise ValueError(
            f"{label}: real has the classes {classes.tolist()}, generated {np.unique(of_y).tolist()}. Give rows of the same "
            "classes."
        )
    found = {
        f"class {c}": frechet_distance(x[of_x == c], y[of_y == c], jax.random.fold_in(key, i))
        for i, c in enumerate(classes)
    }
    errors = np.array([e.standard_error for e in found.values()])
    details = {name: e.value for name, e in found.items()}
    details["plain"] = float(np.mean([e.details["plain"] for e in found.values()]))
    value = float(np.mean([e.value for e in found.values()]))
    error = float((errors**2).sum() ** 0.5 / len(errors))
    return Estimate(value, error, exact=0.0, name=label, sizes=(len(x), len(y)), details=details)
