"""Several models, judged by several metrics against the same real rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call, did_you_mean
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike, typed_key
from ...ppl._table import table
from ...ppl._types import Key
from ._classifier import classifier_test
from ._estimate import Estimate
from ._frechet import frechet_distance
from ._inputs import Features, equal_sizes, rows
from ._kernel import kernel_distance
from ._neighbours import fidelity_diversity
from ._sliced import sliced_wasserstein

if TYPE_CHECKING:
    import xarray

# Metric -> whether more is better.
METRICS = {
    "frechet": False,
    "frechet plain": False,
    "kernel": False,
    "sliced": False,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "accuracy": False,
}


@dataclasses.dataclass(frozen=True)
class SampleComparison:
    """See `compare_samples`; printing it is a table.

    Attributes:
        estimates: metric -> model -> estimate. "accuracy" is that of the classifier that tells them from real rows.
    """

    estimates: Mapping[str, Mapping[str, Estimate]]

    def ranking(self, metric: str) -> list[str]:
        """Models by a metric, the best first.

        Args:
            metric: one of those in `estimates`.

        Raises:
            ValueError: another.
        """
        if metric not in self.estimates:
            known = list(self.estimates)
            raise ValueError(
                f"ranking: metric {metric!r} was not computed.{did_you_mean(metric, known)} Choose from {known}, or name it in "
                "compare_samples(..., metrics=[...])."
            )
        found = self.estimates[metric]
        return sorted(found, key=lambda name: found[name].value, reverse=METRICS[metric])

    def to_xarray(self) -> xarray.Dataset:
        """`value`, `standard_error`, `floor` and `floor_error`, [metric, model]."""
        import xarray

        metrics, names = list(self.estimates), list(next(iter(self.estimates.values())))
        nan = Estimate(np.nan, np.nan)
        cells = [[self.estimates[m][n] for n in names] for m in metrics]
        read = {
            "value": lambda e: e.value,
            "standard_error": lambda e: e.standard_error,
            "floor": lambda e: (e.floor or nan).value,
            "floor_error": lambda e: (e.floor or nan).standard_error,
        }
        dims = ("metric", "model")
        data = {k: (dims, [[f(e) for e in row] for row in cells]) for k, f in read.items()}
        return xarray.Dataset(data, coords={"metric": metrics, "model": names})

    def __repr__(self) -> str:
        names = list(next(iter(self.estimates.values())))
        body = [("metric", *names, "real", "best")]
        for metric, found in self.estimates.items():
            first = next(iter(found.values()))
            cells = [f"{e.value:.3g} +- {e.standard_error:.1g}" for e in found.values()]
            real = "" if first.floor is None else f"{first.floor.value:.3g} +- {first.floor.standard_error:.1g}"  # fmt: skip
            body.append((metric, *cells, real, self.ranking(metric)[0]))
        return table(body)


@checked_call
def compare_samples(
    real: Float[ArrayLike, "n d"],
    generated: Mapping[str, Float[ArrayLike, "m d"]],
    key: Key,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    k: int = 5,
    features: Features | None = None,
    held_out: Float[ArrayLike, "m d"] | None = None,
) -> SampleComparison:
    """Judge the samples of several models by several metrics, all against the same real rows.

    Args:
        real: n rows.
        generated: model -> m rows; equally many, since metrics move with the number of rows.
        key: PRNG key; models have the same directions, subsets and splits.
        metrics: among "frechet" (extrapolated), "frechet plain", "kernel", "sliced", "precision", "recall", "density",
            "coverage", "accuracy" (of a classifier).
        k: neighbours of precision, recall, density and coverage.
        features: a function of each sample.
        held_out: real rows for the floors, m of them.

    Returns:
        A `SampleComparison`.

    Raises:
        ValueError: an unknown metric; models with different numbers of rows; what each metric refuses.

    Validity: that of each metric. Errors of two models are dependent, through the real rows; a difference is usually surer than
    both errors say.
    """
    label = "compare_samples"
    check_counts(label, k=k)
    if not metrics:
        raise ValueError(f"{label}: metrics is empty. Choose from {list(METRICS)}.")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(
                f"{label}: there is no metric {metric!r}.{did_you_mean(metric, METRICS)} Choose from {list(METRICS)}."
            )
    given = {"real": real} | {f"generated[{name!r}]": y for name, y in generated.items()}
    x, *found = rows(label, features, given | {"held_out": held_out})
    other = found.pop() if held_out is not None else None
    samples = dict(zip(generated, found, strict=True))
    equal_sizes(label, samples)
    key = typed_key(key)
    estimates: dict[str, dict[str, Estimate]] = {metric: {} for metric in metrics}
    for name, y in samples.items():
        for metric, estimate in _judged(x, y, other, key, set(metrics), k).items():
            if metric in estimates:
                estimates[metric][name] = estimate
    return SampleComparison(estimates)


def _judged(
    x: np.ndarray, y: np.ndarray, other: np.ndarray | None, key: jax.Array, asked: set[str], k: int
) -> dict[str, Estimate]:
    """Estimates by metric, those of functions that are asked for."""
    found: dict[str, Estimate] = {}
    if asked & {"frechet", "frechet plain"}:
        found["frechet"] = frechet_distance(x, y, key, held_out=other)
        found["frechet plain"] = _plain(found["frechet"])
    if "kernel" in asked:
        found["kernel"] = kernel_distance(x, y, held_out=other)
    if "sliced" in asked:
        found["sliced"] = sliced_wasserstein(x, y, key, held_out=other)
    if asked & {"precision", "recall", "density", "coverage"}:
        found |= fidelity_diversity(x, y, k=k, held_out=other).estimates()
    if "accuracy" in asked:
        found["accuracy"] = classifier_test(x, y, key, held_out=other).accuracy
    return found


def _plain(estimate: Estimate) -> Estimate:
    """The uncorrected distance as an estimate of its own; it is not 0 under equality."""
    floor = None if estimate.floor is None else _plain(estimate.floor)
    details = estimate.details
    return Estimate(
        details["plain"], details["plain_error"], floor, name="frechet_distance plain", sizes=estimate.sizes
    )  # fmt: skip
