"""Autoencoders of series, at smoke size, and what the published objective is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _examples import load_example
from scipy import stats


def test_the_published_sum_of_divergences_makes_no_bound():
    """Against its exact mean under an autoregressive prior with marginals N(0, 1), at two steps far from each other."""
    a, noise, at = 0.9, 0.3, np.array([3.0, -3.0])
    width = (1 - a**2) ** 0.5

    def prior(z, h):  # h counts the steps
        return h + 1, a * z, jnp.where(h == 0, 1.0, width)

    of_each = lambda row: jnp.broadcast_to(jnp.asarray(row)[:, None], (20_000, 2, 1))
    start = jnp.zeros((20_000, 1))
    paired = jax.jit(load_example("papers/structure/_koopman_published").paired, static_argnums=0)
    kl, drawn = paired(prior, of_each(at), of_each([noise, noise]), start, jax.random.key(0))
    kl = np.asarray(kl, float)

    divergence = lambda square, scale: np.log(scale / noise) + square / (2 * scale**2) - 0.5
    first = divergence(noise**2 + 9, 1.0)
    second = divergence(noise**2 + 9 + a**2, width)  # E(at - a u)^2 = at^2 + a^2
    np.testing.assert_allclose(kl[:, 0], first, rtol=1e-5)
    assert abs(kl[:, 1].mean() - second) < 4.5 * kl[:, 1].std() / len(kl) ** 0.5
    assert (
        abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 1, 0])[0, 1] - a) < 4.5 * (1 - a**2) / 20_000**0.5
    )
    assert second > divergence(noise**2 + 9, 1.0)  # from the marginal, by convexity

    # x = z + noise, seen where q has its mean.
    log_likelihood = 2 * (-np.log(noise) - 0.5 * np.log(2 * np.pi) - 0.5)
    cov = np.array([[1, a], [a, 1]]) + noise**2 * np.eye(2)
    evidence = stats.multivariate_normal.logpdf(at, cov=cov)
    along = divergence(noise**2 * (1 + a**2) + (at[1] - a * at[0]) ** 2, width)
    assert log_likelihood - first - along < evidence < log_likelihood - kl.sum(1).mean() - 15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of aeon's and numba's
def test_the_script_runs(tmp_path):
    pytest.importorskip("aeon")
    main = load_example("papers/structure/koopman").main
    options = ["--smoke", "--rates", "0.5", "--out", str(tmp_path)]
    table = main(options)
    assert [kind for _, kind, _ in table] == ["real series", "linear", "published"]
    for (_, kind, _), rows in table.items():
        assert np.isfinite(rows[:, :3]).all()
        assert np.isfinite(rows[:, 3]).all() == (kind != "real series")
    assert (tmp_path / "koopman.png").exists() and (tmp_path / "koopman.nc").exists()
    again = main([*options, "--resume"])  # trains nothing
    np.testing.assert_array_equal(np.array(list(again.values())), np.array(list(table.values())))
