"""Tests of Monte Carlo means with a stated rate of false alarms.

`from _stats import assert_unbiased, assert_same_mean`. Both compute one z score per coordinate and
fail where |z| >= z_max. At the default z_max = 4.5 a correct estimator fails with probability
6.8e-6 per comparison (two-sided normal tail), hence 0.7% over 1000 comparisons. A bias of b
standard errors is missed with probability Phi(4.5 - b): choose N so that the smallest bias worth
catching is at least 7 standard errors (power over 99%), and say in the test which bias that is.
The normal tail needs a finite variance and N of 1e4 or more unless the estimates are light-tailed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# A coordinate with a standard deviation below this share of 1 + |exact| does not vary: its spread
# is float32 rounding, which is no measure of the error of its mean.
CONSTANT_SD = 1e-6
CONSTANT_RTOL, CONSTANT_ATOL = 1e-4, 1e-5


def assert_unbiased(
    estimates: ArrayLike,
    exact: ArrayLike,
    *,
    z_max: float = 4.5,
    names: Sequence[str] | None = None,
) -> None:
    """Asserts that the mean of independent estimates agrees with the exact value.

    z = (mean - exact) / (sd / sqrt(N)) per coordinate. False-alarm rate: 6.8e-6 per comparison
    (that is, per coordinate) at z_max = 4.5. A coordinate that does not vary (sd below 1e-6 times
    1 + |exact|) must equal the exact value to rtol 1e-4 or atol 1e-5 instead.

    Args:
        estimates: N independent estimates, shape (N, *event), N >= 2.
        exact: the expectation, shape (*event,).
        z_max: largest |z| that passes.
        names: one name per coordinate (of the event, flattened) for the message.

    Raises:
        AssertionError: lists every coordinate that is off, and every one that is not finite.
        ValueError: the shapes do not fit.
    """
    samples = _as_samples(estimates, "estimates")
    exact = np.asarray(exact, dtype=np.float64)
    if samples.shape[1:] != exact.shape:
        raise ValueError(
            f"estimates of shape {samples.shape} need an exact value of shape {samples.shape[1:]}, "
            f"got {exact.shape}"
        )
    mean, sd, error = _moments(samples)
    _assert_close(mean, exact.ravel(), error, sd, z_max, names, "exact")


def assert_same_mean(
    a: ArrayLike,
    b: ArrayLike,
    *,
    z_max: float = 4.5,
    names: Sequence[str] | None = None,
) -> None:
    """Asserts that two independent sets of estimates have the same mean.

    z = (mean a - mean b) / sqrt(sd_a^2 / N_a + sd_b^2 / N_b) per coordinate. False-alarm rate:
    6.8e-6 per comparison (that is, per coordinate) at z_max = 4.5. Where neither set varies (both
    sd below 1e-6 times 1 + |mean b|) the means must agree to rtol 1e-4 or atol 1e-5 instead. The
    two sets must not share keys: common noise makes the z score too small.

    Args:
        a: N_a independent estimates, shape (N_a, *event), N_a >= 2.
        b: N_b independent estimates, shape (N_b, *event), N_b >= 2.
        z_max: largest |z| that passes.
        names: one name per coordinate (of the event, flattened) for the message.

    Raises:
        AssertionError: lists every coordinate that is off, and every one that is not finite.
        ValueError: the shapes do not fit.
    """
    samples_a, samples_b = _as_samples(a, "a"), _as_samples(b, "b")
    if samples_a.shape[1:] != samples_b.shape[1:]:
        raise ValueError(f"event shapes differ: a {samples_a.shape[1:]}, b {samples_b.shape[1:]}")
    mean_a, sd_a, error_a = _moments(samples_a)
    mean_b, sd_b, error_b = _moments(samples_b)
    error = np.hypot(error_a, error_b)
    _assert_close(mean_a, mean_b, error, np.maximum(sd_a, sd_b), z_max, names, "other mean")


def bootstrap_ratio(
    a: ArrayLike, b: ArrayLike, num_resamples: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """99.9% interval of the ratio of variances var a / var b, by resampling estimates.

    Args:
        a: estimates, shape (n, coordinates).
        b: as many; row i may share its noise with row i of `a`.
        num_resamples: bootstrap samples.
    """
    a, b, rng = np.asarray(a, float), np.asarray(b, float), np.random.default_rng(0)
    ratios = []
    for _ in range(num_resamples):
        i = rng.integers(len(a), size=len(a))
        ratios.append(a[i].var(0) / b[i].var(0))
    centre, spread = np.mean(ratios, 0), np.std(ratios, 0)
    return centre - 3.29 * spread, centre + 3.29 * spread


def _as_samples(values: ArrayLike, what: str) -> np.ndarray:
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim == 0 or samples.shape[0] < 2:
        raise ValueError(f"{what} needs a leading axis of N >= 2, got shape {samples.shape}")
    return samples


def _moments(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and standard error per coordinate of the flattened event."""
    flat = samples.reshape(samples.shape[0], -1)
    with np.errstate(invalid="ignore", over="ignore"):
        mean, sd = flat.mean(axis=0), flat.std(axis=0, ddof=1)
    # A sum that overflows or holds one nan shows in the mean, so the mean is what is checked.
    return mean, sd, sd / np.sqrt(samples.shape[0])


def _assert_close(
    mean: np.ndarray,
    target: np.ndarray,
    error: np.ndarray,
    sd: np.ndarray,
    z_max: float,
    names: Sequence[str] | None,
    target_name: str,
) -> None:
    """Raises one AssertionError that lists every coordinate in which mean and target disagree."""
    if names is not None and len(names) != mean.size:
        raise ValueError(f"{len(names)} names for {mean.size} coordinates")
    problems = []
    for i in range(mean.size):
        name = names[i] if names is not None else f"coordinate {i}"
        numbers = f"mean {mean[i]:.8g}, {target_name} {target[i]:.8g}, sd {sd[i]:.3g}"
        if not np.all(np.isfinite([mean[i], target[i], sd[i]])):
            problems.append(f"{name}: not finite: {numbers}")
        elif sd[i] < CONSTANT_SD * (1 + abs(target[i])):
            if not np.isclose(mean[i], target[i], rtol=CONSTANT_RTOL, atol=CONSTANT_ATOL):
                problems.append(f"{name}: constant but different: {numbers}")
        else:
            z = (mean[i] - target[i]) / error[i]
            if abs(z) >= z_max:
                problems.append(f"{name}: z = {z:.2f}, limit {z_max}: {numbers}")
    if problems:
        raise AssertionError(
            f"{len(problems)} of {mean.size} coordinates disagree\n  " + "\n  ".join(problems)
        )
