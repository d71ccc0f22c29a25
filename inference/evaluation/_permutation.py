"""An exact test of equality from any metric of two samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike
from ...ppl._show import shown
from ...ppl._types import Key
from ._estimate import Estimate
from ._inputs import Features, generator, rows


@shown
@dataclasses.dataclass(frozen=True)
class PermutationTest:
    """See `permutation_test`.

    Attributes:
        statistic: of the samples as they are.
        p_value: share of permutations, the samples as they are among them, with a statistic at least as large.
        permuted: the statistic after each permutation.
    """

    statistic: float
    p_value: float
    permuted: Float[np.ndarray, " permutations"]


@checked_call
def permutation_test(
    statistic: Callable[[np.ndarray, np.ndarray], Estimate | float],
    real: Float[ArrayLike, "n d"],
    generated: Float[ArrayLike, "m d"],
    key: Key,
    *,
    num_permutations: int = 199,
    features: Features | None = None,
) -> PermutationTest:
    """Test whether two samples have one law, by a metric that is large where they differ.

        p = (1 + #{b: T_b >= T}) / (1 + B),  T_b of rows dealt out anew to samples of the same sizes

    with T_b that are less by rounding alone counted as ties.

    Args:
        statistic: `([n, d], [m, d]) -> Estimate | float`, e.g. `kernel_distance`.
        real: n rows.
        generated: m rows.
        key: PRNG key of the permutations.
        num_permutations: B; 1 / (B + 1) is the least p-value.
        features: a function of each sample, before the rows are dealt out.

    Returns:
        A `PermutationTest`.

    Raises:
        ValueError: what `rows` are not, or a statistic that is not finite.

    Validity: exact at every level that is a multiple of 1 / (B + 1), whatever the statistic is, for independent rows.
    """
    label = "permutation_test"
    check_counts(label, num_permutations=num_permutations)
    x, y = rows(label, features, {"real": real, "generated": generated})
    both, draws = np.concatenate([x, y]), generator(key)

    def value(order: np.ndarray) -> float:
        found = statistic(both[order[: len(x)]], both[order[len(x) :]])
        return found.value if isinstance(found, Estimate) else found

    first = value(np.arange(len(both)))
    rounding = _rounding(first)
    observed = float(first)
    permuted = np.array(
        [float(value(draws.permutation(len(both)))) for _ in range(num_permutations)]
    )
    if not np.isfinite([observed, *permuted]).all():
        raise ValueError(
            f"{label}: the statistic is {observed} and not finite for {int((~np.isfinite(permuted)).sum())} permutations. Return "
            "a finite number for every pair of samples."
        )
    # The same rows in another order tie, but their sums are rounded otherwise, and a tie lost makes the p-value too small; one
    # counted too many only makes it larger. Half the digits of the statistic's precision: differences of large sums lose some.
    close = rounding**0.5 * np.abs([observed, *permuted]).max()
    p_value = (1 + int((permuted >= observed - close).sum())) / (1 + num_permutations)
    return PermutationTest(observed, p_value, permuted)


def _rounding(value: ArrayLike) -> float:
    """Of one number in the precision that it was computed in: rows are doubles, but a function of JAX may return a single."""
    kind = getattr(value, "dtype", np.dtype(np.float64))
    return float(np.finfo(kind).eps) if np.issubdtype(kind, np.floating) else 0.0
