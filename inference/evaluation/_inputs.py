"""What functions of samples share: rows as numbers, refusals, random numbers, floors, jackknife."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ...ppl._compat import ArrayLike, typed_key
from ...ppl._data import Masked, as_array, as_numbers, as_one_array
from ...ppl._types import Key
from ._estimate import Estimate

Features = Callable[[Any], ArrayLike]


def rows(
    label: str,
    features: Features | None,
    samples: Mapping[str, PyTree],
    *,
    least: int = 2,
    why: str = "a variance",
) -> list[np.ndarray]:
    """Samples as [n, d] in double precision, through `features`; None stays out, columns of frames have the first one's order.

    Raises:
        ValueError: frames of other columns, other shapes, numbers that are not finite, different d, or fewer rows than `least`,
            which `why` needs.
    """
    found = {}
    for name, x in in_one_order(label, samples).items():
        x = as_numbers(f"{label}: {name}", x if features is None else features(x))
        if x.ndim != 2:
            raise ValueError(
                f"{label}: {name} must be rows of numbers, [n, d], got shape {x.shape}"
                f"{' from features' if features else ''}. Flatten each row, e.g. by features=lambda x: x.reshape(len(x), -1)."
            )
        finite(label, name, x)
        if len(x) < least:
            raise ValueError(
                f"{label}: {name} has {len(x)} rows of {x.shape[1]} numbers, and {why} needs {least}. Draw more rows, or use "
                "fewer features or neighbours."
            )
        found[name] = x
    if len({x.shape[1] for x in found.values()}) > 1:
        shapes = {name: x.shape for name, x in found.items()}
        raise ValueError(
            f"{label}: rows must have equally many numbers, got {shapes}. Pass samples of one space, or features= into one."
        )
    return list(found.values())


def in_one_order(label: str, samples: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Samples with the columns of frames in the order of the first frame; None stays out.

    Raises:
        ValueError: frames with other columns, or with one name for several.
    """
    given = {name: x for name, x in samples.items() if x is not None}
    columns = {
        name: list(x.columns)
        for name, x in given.items()
        if hasattr(x, "columns") and hasattr(x, "to_numpy")
    }
    if len(columns) < 2 or all(c == next(iter(columns.values())) for c in columns.values()):
        return given
    first, *others = columns
    order = columns[first]
    for name in others:
        if (
            set(columns[name]) != set(order)
            or len(set(order)) < len(order)
            or len(columns[name]) != len(order)
        ):
            raise ValueError(
                f"{label}: columns of {first} are {order}, of {name} {columns[name]}, and by position other numbers would be "
                f"compared. Give frames with the same columns, each of its own name, e.g. {name}[list({first}.columns)]."
            )
        given[name] = given[name][order]
    return given


def images(label: str, /, **samples: PyTree) -> list[np.ndarray]:
    """Samples as [n, h, w] in double precision; None stays out.

    Raises:
        ValueError: other shapes, different sizes, fewer than two images, or numbers that are not finite.
    """
    found = {n: as_numbers(f"{label}: {n}", x) for n, x in samples.items() if x is not None}
    shapes = {name: x.shape for name, x in found.items()}
    if any(len(s) != 3 or s[0] < 2 or min(s[1:]) < 4 for s in shapes.values()) or (
        len({s[1:] for s in shapes.values()}) > 1
    ):
        raise ValueError(
            f"{label}: images must be [n, h, w] of one size, at least 4 x 4 and two of them, got {shapes}. Reshape them, e.g. "
            "x.reshape(-1, 8, 8)."
        )
    for name, x in found.items():
        finite(label, name, x)
    return list(found.values())


def finite(label: str, name: str, x: np.ndarray) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: with their number and the first row that has one.
    """
    bad = ~np.isfinite(x)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise ValueError(
            f"{label}: {name} has {int(bad.sum())} numbers that are not finite, the first in row {row}. Mend what made them; "
            "leaving such rows out would judge another law."
        )


def labelled(label: str, name: str, x: np.ndarray, labels: object) -> np.ndarray:
    """Labels, one for each row.

    Raises:
        ValueError: another shape, or one class only.
    """
    if isinstance(labels, Masked) or isinstance(as_array(name, labels), Masked):
        raise ValueError(
            f"{label}: labels of {name} are missing in some rows. Leave those rows out of the sample and of its labels."
        )
    found = as_one_array(
        f"{label}: labels of {name}", labels
    )  # of categories their values: codes differ between samples
    if found.shape != x.shape[:1] or len(np.unique(found)) < 2:
        raise ValueError(
            f"{label}: labels of {name} have shape {found.shape} and {len(np.unique(found))} classes, for {len(x)} rows. Give "
            "one label for each row, of two classes or more."
        )
    return found


def of_one_kind(label: str, labels: Mapping[str, np.ndarray]) -> None:
    """Refuse labels that are numbers in one sample and text in another, of which none are equal.

    Raises:
        TypeError: with the kinds by sample.
    """
    kinds = {name: sorted(_kinds(x)) for name, x in labels.items()}
    if len({tuple(k) for k in kinds.values()}) > 1:
        raise TypeError(
            f"{label}: labels by sample are {kinds}, and a label of one kind is never equal to one of another, so that every row "
            "would count as wrong. Give labels of one kind, e.g. labels.astype(str)."
        )


def _kinds(labels: np.ndarray) -> set[str]:
    if labels.dtype.kind == "O":
        one = lambda x: "numbers" if isinstance(x, numbers.Number | np.bool_) else type(x).__name__
        return {one(x) for x in labels.tolist()}
    if labels.dtype.kind in "biuf":
        return {"numbers"}
    return {type(x).__name__ for x in labels[:1].tolist()}


def generator(key: Key | None) -> np.random.Generator:
    """NumPy's random numbers from a PRNG key of JAX, of either kind."""
    return np.random.default_rng(np.asarray(jax.random.key_data(typed_key(key))).ravel())


def with_floor(
    label: str,
    compute: Callable[..., PyTree],
    real: np.ndarray,
    generated: np.ndarray,
    held_out: np.ndarray | None,
) -> Estimate:
    """`compute` of both samples, and of real against other real rows for the floor."""
    estimate = compute(real, generated)
    if held_out is None:
        return estimate
    check_held_out(label, real, generated, held_out)
    return dataclasses.replace(estimate, floor=compute(real, held_out))


def check_held_out(
    label: str, real: np.ndarray, generated: np.ndarray, held_out: np.ndarray
) -> None:
    """Refuse a floor at other sizes, or of rows that both real samples have.

    Raises:
        ValueError: another number of rows than `generated` has, or rows in common.
    """
    if len(held_out) != len(generated):
        raise ValueError(
            f"{label}: held_out has {len(held_out)} rows and generated {len(generated)}, and a floor is one at the same sizes. "
            "Give equally many, taken at random."
        )
    shared, repeated = _shared(held_out, real)
    # Discrete rows repeat by themselves, about as often within the real ones as between two samples of them.
    if shared > 0.01 + 2 * repeated:
        raise ValueError(
            f"{label}: {shared:.0%} of held_out are rows of real, which itself repeats {repeated:.0%}; the floor would be too "
            "low. Split the real rows in two parts without common rows."
        )


def _shared(some: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Share of some rows that are among the others, and share of the others that repeat."""
    flat = [np.ascontiguousarray(x.reshape(len(x), -1)) for x in (some, others)]
    one, two = ([row.tobytes() for row in x] for x in flat)
    known: dict[bytes, int] = {}
    for row in two:
        known[row] = known.get(row, 0) + 1
    repeated = sum(n for n in known.values() if n > 1) / len(two)
    return sum(row in known for row in one) / len(one), repeated


def groups(num: int, num_groups: int) -> np.ndarray:
    """A group for each row, of sizes that differ by one at most; at random, since rows may be sorted, and always the same."""
    return np.random.default_rng(num).permutation(num) % num_groups


def jackknife_error(values: np.ndarray) -> PyTree:
    """Standard error from values without one group each, [groups, ...]: ((g - 1) / g sum (v - mean)^2)^(1/2)."""
    number = len(values)
    return np.sqrt((number - 1) / number * ((values - values.mean(0)) ** 2).sum(0))


def equal_sizes(label: str, samples: Mapping[str, np.ndarray]) -> None:
    """Refuse to compare samples of different sizes, since nearly every metric depends on them.

    Raises:
        ValueError: with all sizes, or for fewer than two samples.
    """
    sizes = {name: len(x) for name, x in samples.items()}
    if len(set(sizes.values())) != 1 or len(sizes) < 2:
        raise ValueError(
            f"{label}: rows by sample are {sizes}. Give two samples or more, cut to equally many rows at random: metrics move "
            "with the number of rows, so that other sizes do not compare."
        )


def fitted(label: str, classifier: object, x: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """A copy of a scikit-learn classifier, trained; None is logistic regression on 256 features of a Gaussian kernel.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the classifier gives no probabilities.
    """
    try:
        from sklearn.base import clone
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as err:
        raise ImportError(
            f"{label} needs scikit-learn. Install it with: pip install 'lapilli[data]'."
        ) from err
    if classifier is None:
        # Convex, so that no early end or start decides; bent, so that more than means are seen.
        number, d = x.shape
        near = Nystroem(gamma=0.5 / d, n_components=min(256, number), random_state=seed)
        pipeline: Any = make_pipeline(
            StandardScaler(), near, LogisticRegression(C=10.0, max_iter=2_000)
        )
        return pipeline.fit(x, labels)
    if not hasattr(classifier, "predict_proba"):
        raise ValueError(
            f"{label}: {type(classifier).__name__} has no predict_proba. Pass a classifier of scikit-learn that gives "
            "probabilities, e.g. LogisticRegression() or SVC wrapped in CalibratedClassifierCV."
        )
    copy: Any = clone(classifier)
    return copy.fit(x, labels)
