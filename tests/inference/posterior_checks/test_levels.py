"""Each check raises a false alarm as often as it says, over 500 data sets of a posterior that is right."""

import jax
import numpy as np
import pytest
from _planted import planted, posterior_draws

from lapilli.inference import posterior_checks as pc

LEVEL, REPEATS = 0.05, 500
CHECKS = {
    "below": lambda s, key: pc.coverage(s, key, kind="below").p_values[0],
    "central": lambda s, key: pc.coverage(s, key, kind="central").p_values[0],
    "hpd": lambda s, key: pc.coverage(s, key, kind="hpd").p_values[0],
    "joint": lambda s, key: pc.coverage(s, key, kind="joint").p_values[0],
    "tarp": lambda s, key: pc.tarp(s, key).p_values[0],
    "tarp_data": lambda s, key: pc.tarp(s, key, references="data").p_values[0],
    "widest": lambda s, key: pc.directions(s, key)[0].p_values[0],
    "narrowest": lambda s, key: pc.directions(s, key)[0].p_values[1],
    "symmetry": lambda s, key: pc.vsbc(s, key).p_values[0],
    "local_shift": lambda s, key: pc.local_coverage(s, key).p_values[0, 0],
    "local_width": lambda s, key: pc.local_coverage(s, key).p_values[0, 1],
}  # fmt: skip


def z_of(p_values):
    share = np.mean(np.asarray(p_values) <= LEVEL)
    return (share - LEVEL) / (LEVEL * (1 - LEVEL) / len(p_values)) ** 0.5


@pytest.mark.slow  # 500 repeats
@pytest.mark.parametrize("name", CHECKS)
def test_false_alarms_are_at_the_level(name):
    """|z| < 3, false alarm 0.003 for each check."""
    p_values = [
        CHECKS[name](planted(seed=1000 + i, num=200, num_draws=39), jax.random.key(i))
        for i in range(REPEATS)
    ]
    z = z_of(p_values)
    print(f"{name}: share {np.mean(np.asarray(p_values) <= LEVEL):.3f}, z {z:+.2f}")
    assert abs(z) < 3


@pytest.mark.slow  # 500 repeats of 39 null classifiers
def test_false_alarms_of_local_classifiers_are_at_the_level():
    at, p_values = np.array([0.5, -0.5]), []
    for i in range(REPEATS):
        simulations = planted(seed=2000 + i, num=100, num_draws=1)
        draws = posterior_draws(np.random.default_rng(i), "right", at[None], 50)[0]
        key = jax.random.key(i)
        p_values.append(
            pc.local_c2st(simulations, {"x": at}, {"m": draws}, key, num_null=39).p_value
        )
    z = z_of(p_values)
    print(f"here: share {np.mean(np.asarray(p_values) <= LEVEL):.3f}, z {z:+.2f}")
    assert abs(z) < 3


@pytest.mark.slow  # 500 repeats
@pytest.mark.parametrize("num_sets", [1, 5])
def test_false_alarms_of_misspecification_are_at_the_level(num_sets):
    """159 simulations or permutations: p-values are multiples of 1 / 160, or of 1 / 160 with the observed in its place."""
    p_values = []
    for i in range(REPEATS):
        data = np.random.default_rng(3000 + i).standard_t(4, (159 + num_sets, 3))
        seen = data[0] if num_sets == 1 else data[:num_sets]
        key = jax.random.key(i)
        found = pc.misspecification({"x": data[num_sets:]}, {"x": seen}, key, num_permutations=159)
        p_values.append(found.p_value)
    z = z_of(p_values)
    print(f"{num_sets} data sets: share {np.mean(np.asarray(p_values) <= LEVEL):.3f}, z {z:+.2f}")
    assert abs(z) < 3


@pytest.mark.slow  # 300 reports
def test_a_report_objects_to_a_right_posterior_no_more_often_than_its_level():
    """Holm's correction: at most 0.05, up to three standard errors."""
    count = sum(
        bool(pc.check_simulations(planted(seed=4000 + i, num=200, num_draws=39), jax.random.key(i)).objections)
        for i in range(300)
    )  # fmt: skip
    print(f"reports with an objection: {count} of 300")
    assert count / 300 < LEVEL + 3 * (LEVEL * (1 - LEVEL) / 300) ** 0.5


def test_a_check_of_the_wrong_level_fails():
    """Ranks that leave out the truth's own place, as a share of draws below in tenths would: never in the last bin."""
    p_values = []
    for i in range(50):
        ranks = np.random.default_rng(i).integers(0, 37, (200, 1))
        p_values.append(pc._ranks.rank_check("", ("",), ranks, 39).p_values[0])
    assert z_of(p_values) > 3
