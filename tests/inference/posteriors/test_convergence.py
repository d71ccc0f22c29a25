"""R-hat, effective sizes and energies of arrays, against ArviZ and against chains whose correlation is known."""

import numpy as np
import pytest
from arviz_stats.base import array_stats

from lapilli.inference.posteriors import _convergence as convergence


def autoregression(rng, correlation, chains=4, num=1000):
    x = np.zeros((chains, num))
    x[:, 0] = rng.standard_normal(chains)
    noise = rng.standard_normal((chains, num)) * (1 - correlation**2) ** 0.5
    for t in range(1, num):
        x[:, t] = correlation * x[:, t - 1] + noise[:, t]
    return x


@pytest.fixture(scope="module")
def chains():
    rng = np.random.default_rng(0)
    kinds = [autoregression(rng, r) for r in (0.0, 0.5, 0.9, 0.98, -0.4)]
    kinds += [
        kinds[1] + np.arange(4)[:, None],
        np.exp(3 * kinds[1]),
        rng.standard_cauchy((4, 1000)),
    ]
    return np.stack(kinds, -1)


def test_r_hat_is_that_of_arviz_and_sizes_are_to_a_hundredth(chains):
    bulk, tail = convergence.ess(chains)
    ratios = convergence.r_hat(chains)
    for i in range(chains.shape[2]):
        x = chains[:, :, i]
        np.testing.assert_allclose(ratios[i], array_stats.rhat(x), rtol=1e-6)
        np.testing.assert_allclose(bulk[i], array_stats.ess(x, method="bulk"), rtol=0.01)
        np.testing.assert_allclose(
            tail[i], array_stats.ess(x, method="tail", prob=(0.05, 0.95)), rtol=0.02
        )


def test_ties_have_their_mean_rank():
    x = np.repeat(np.arange(4.0), 2).reshape(1, 8, 1)
    scores = convergence._normal_scores(x)[0, :, 0]
    np.testing.assert_allclose(scores[::2], scores[1::2])
    np.testing.assert_allclose(scores, -scores[::-1], atol=1e-12)


def test_energy_that_one_momentum_hardly_covers_is_seen():
    rng = np.random.default_rng(1)
    energy = autoregression(rng, 0.95)
    np.testing.assert_allclose(convergence.e_bfmi(energy), 2 * (1 - 0.95), rtol=0.5)
    assert convergence.e_bfmi(rng.standard_normal((4, 1000))) > 1.8
