"""Precision, recall, density and coverage: by brute force, and exact in mean under equality."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lapilli.inference import evaluation
from lapilli.inference.evaluation import _neighbours
from lapilli.inference.evaluation._inputs import generator

K = 4


def by_hand(x, y, k):
    far = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
    radius = lambda a: np.sort(far(a, a), 1)[:, k]
    in_real, in_generated = far(y, x) < radius(x), far(x, y) < radius(y)
    return {
        "precision": in_real.any(1).mean(),
        "recall": in_generated.any(1).mean(),
        "density": in_real.sum() / (k * len(y)),
        "coverage": in_real.any(0).mean(),
    }


@pytest.mark.parametrize("at_once", [1, 2**23])
def test_blocks_find_what_brute_force_finds(at_once, monkeypatch, seed):
    monkeypatch.setattr(_neighbours, "_AT_ONCE", at_once)
    draws = generator(seed)
    x, y = draws.normal(size=(70, 3)), 0.7 * draws.normal(size=(50, 3))
    found = evaluation.fidelity_diversity(x, y, k=K)
    exact = by_hand(x, y, K)
    assert {n: e.value for n, e in found.estimates().items()} == pytest.approx(exact, rel=1e-12)
    # The jackknife leaves out groups of either sample as if they had never been drawn.
    one, two = (_neighbours.groups(len(z), 10) for z in (x, y))
    rest = np.array([list(by_hand(x[one != g], y[two != g], K).values()) for g in range(10)])
    errors = [e.standard_error for e in found.estimates().values()]
    np.testing.assert_allclose(errors, _neighbours.jackknife_error(rest), rtol=1e-10)


def test_neighbours_that_are_all_of_one_group_are_found(seed):
    """Rows far from all but their group: without it the k-th neighbour is looked for among all rows."""
    draws = generator(seed)
    x = draws.normal(size=(400, 2))
    group = np.repeat(np.arange(10), 40)
    x[group == 0] += 100.0
    radii = _neighbours.squared_radii(x, K, group)
    rest = np.sort(np.linalg.norm(x[:1] - x[group != 0], axis=1))
    assert radii[0, 1] == pytest.approx(rest[K - 1] ** 2, rel=1e-9)


LAWS = {
    "normal": lambda draws, n: draws.normal(size=(n, 2)),
    "uniform": lambda draws, n: draws.uniform(size=(n, 5)),
    "counts": lambda draws, n: draws.poisson(3.0, size=(n, 2)).astype(float),
    "binary": lambda draws, n: draws.integers(0, 2, size=(n, 4)).astype(float),
    "lattice": lambda draws, n: draws.integers(0, 30, size=(n, 2)).astype(float),
    "repeated": lambda draws, n: np.sin(np.arange(40.0)[draws.integers(0, 40, n)])[:, None],
    "zeros": lambda draws, n: draws.normal(size=(n, 1)) * (draws.random((n, 1)) < 0.5),
}


def assert_exact(samples, sizes, k):
    """Means of density and coverage within 3 errors: false alarm 0.3% for each."""
    found = [evaluation.fidelity_diversity(x, y, k=k) for x, y in samples]
    values = np.array([(f.density.value, f.coverage.value) for f in found])
    exact = [1.0, evaluation.expected_coverage(*sizes, k)]
    assert [found[0].density.exact, found[0].coverage.exact] == exact
    z = (values.mean(0) - exact) / (values.std(0) / len(values) ** 0.5)
    assert (np.abs(z) < 3).all(), z


@pytest.mark.fast(
    "seed0-normal",
    "seed1-uniform",
    "seed0-counts",
    "seed1-binary",
    "seed2-lattice",
    "seed2-repeated",
)
@pytest.mark.parametrize("law", LAWS)
def test_density_and_coverage_are_exact_under_equality(law, seed):
    draws, make = generator(seed), LAWS[law]
    assert_exact([(make(draws, 90), make(draws, 60)) for _ in range(150)], (90, 60), 3)


def test_rows_at_one_distance_stand_in_random_order():
    """Of all orders of tied rows by hand: two real rows and one generated one at the first real row's radius."""
    draws = np.random.default_rng(0)
    x = np.concatenate([[[0.0], [1.0], [-1.0]], 50 + draws.normal(size=(60, 1))])
    y = np.concatenate([[[1.0]], 50 + draws.normal(size=(60, 1))])
    group = np.arange(10).repeat(7)
    radius = _neighbours.squared_radii(x, 1, group[:63])
    nearer, tied = _neighbours._ties(x, radius, _neighbours._kept(group[:63]), 1e-12)
    assert radius[0, 0] == 1 and (nearer[0, 0], tied[0, 0]) == (0, 2)
    # The generated row comes first of three with probability 1/3; at the second real row it is the nearest.
    rest = [evaluation.fidelity_diversity(x[3:], y[1:], k=1)]
    whole = evaluation.fidelity_diversity(x, y, k=1)
    covered = whole.coverage.value * 63 - rest[0].coverage.value * 60
    assert covered == pytest.approx(1 / 3 + 1.0 + 0.0)
    assert whole.density.value * 61 - rest[0].density.value * 60 == pytest.approx(1 / 3 + 1.0)


@pytest.mark.slow  # 100 pairs of halves of the digits
def test_halves_of_digits_have_the_exact_values(seed):
    images = load_digits(return_X_y=True)[0]
    draws = generator(seed)
    orders = [draws.permutation(len(images)) for _ in range(100)]
    halves = [(images[o[:899]], images[o[899:]]) for o in orders]
    assert_exact(halves, (899, 898), 5)


def test_the_published_value():
    assert evaluation.expected_coverage(1_000, 1_000, 5) == pytest.approx(0.96898, abs=5e-6)


def test_copies_are_told(seed):
    draws = generator(seed)
    x, fresh, other = draws.normal(size=(3, 60, 4))
    mixed = np.concatenate([x[:15], fresh[:45]])
    found = evaluation.nearest_distance(mixed, x, held_out=other)
    assert found.details["copies"] == 0.25 and found.floor.details["copies"] == 0
    near = np.linalg.norm(mixed[:, None] - x[None], axis=-1).min(1)
    assert found.value == pytest.approx(near.mean(), rel=1e-9)
