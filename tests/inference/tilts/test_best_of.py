"""The best of N draws: its law, its divergence, with ties and without."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _tilts import KEY, REWARDS, bits, normal, pairs
from scipy.stats import kstest, norm

from lapilli import inference, ppl


def test_the_best_of_one_is_a_draw_of_the_base_wherever_it_lies():
    best = inference.best_of(normal, lambda x: x, 1)
    made = best.tilt(lambda reward: jnp.where(reward > 0, 1.0, 0.0))  # 0 below some draws
    for x in (-1.0, 1.0):
        assert made.log_density({"x": x}) == best.base.log_density({"x": x})


@pytest.mark.parametrize("num_draws, kl", [(1, 0.0), (4, 0.636), (16, 1.835), (64, 3.175)])
def test_the_divergence_is_that_of_the_order(num_draws, kl):
    best = inference.best_of(normal, lambda x: x, num_draws)
    assert abs(best.kl - kl) < 5e-4
    # By quadrature over u = F(r), uniform under the base: the density is N u^(N - 1).
    u = (np.arange(200_000) + 0.5) / 200_000
    density = num_draws * u ** (num_draws - 1)
    np.testing.assert_allclose(
        (density * np.log(np.maximum(density, 1e-300))).mean(), best.kl, atol=1e-5
    )


def test_draws_have_the_law_that_is_stated():
    best = inference.best_of(normal, lambda x: jnp.tanh(x), 5)
    draws = jax.jit(jax.vmap(lambda k: best.simulate(k).choices["x"]))(jax.random.split(KEY, 4000))
    assert kstest(np.asarray(draws), lambda x: norm.cdf(x) ** 5).pvalue > 1e-5
    assert kstest(np.asarray(draws), lambda x: norm.cdf(x) ** 4).pvalue < 1e-5
    law = best.tilt(lambda r: jax.scipy.stats.norm.cdf(jnp.arctanh(r)))
    x = np.linspace(-2, 3, 9)
    density = jax.jit(lambda v: law.log_density({"x": v}))
    found = [float(density(v)) for v in x]
    expected = np.log(5) + 4 * norm.logcdf(x) + norm.logpdf(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_ties_are_counted_exactly():
    """On the strings, rewards of which are 0 to 11: the law by hand, and less than log N - (N - 1) / N."""
    best = inference.best_of(bits, pairs, 4)
    reward = REWARDS
    law = best.law_of(reward)
    np.testing.assert_allclose(law.sum(), 1.0)
    upto = np.array([(reward <= r).mean() ** 4 for r in range(-1, 12)])
    level = np.array([law[reward == r].sum() for r in range(12)])
    np.testing.assert_allclose(level, np.diff(upto), atol=1e-12)
    kl = (law * np.log(law * 4096, where=law > 0, out=np.zeros(4096))).sum()
    np.testing.assert_allclose(best.kl_of(reward), kl)
    assert kl < best.kl
    weighted = best.law_of(reward, np.full(4096, 1 / 4096))
    np.testing.assert_allclose(weighted, law)
    draws = jax.jit(jax.vmap(lambda k: best.simulate(k).choices["x"]))(jax.random.split(KEY, 4000))
    mean = (law * reward).sum()
    found = np.asarray(jax.vmap(pairs)(draws))
    assert abs(found.mean() - mean) < 4.5 * found.std() / 4000**0.5


def test_the_report_knows_its_law():
    """By sums on the strings; elsewhere by draws, which have no density."""
    made, best = inference.tilt(bits, pairs, 0.7), inference.best_of(bits, pairs, 4)
    law = best.law_of(REWARDS)
    found = inference.tilts.report(made, best, KEY)
    log_p = REWARDS / 0.7 - np.logaddexp.reduce(REWARDS / 0.7)
    kl = (law * (np.log(law, where=law > 0, out=np.zeros(4096)) - log_p)).sum()
    assert found.kl_is == "exact" and found.kl.error == 0
    np.testing.assert_allclose([found.kl.value, found.reward.value], [kl, (law * REWARDS).sum()], rtol=1e-5)  # fmt: skip
    found = inference.tilts.report(
        inference.tilt(normal, jnp.tanh), inference.best_of(normal, lambda x: x, 4), KEY
    )
    u = (np.arange(100_000) + 0.5) / 100_000
    mean = np.tanh(norm.ppf(u ** (1 / 4))).mean()
    assert found.kl is None and abs(found.reward.value - mean) < 4.5 * found.reward.error


@pytest.mark.parametrize("num_draws", [4, 16])
def test_its_draws_cannot_be_weighted_to_a_tilt(num_draws):
    """The density is N F^(N - 1): weights have Pareto shape (N - 1) / N, above 1/2, so no variance."""
    best = inference.best_of(lambda: ppl.sample("x", dist.Uniform(0.0, 1.0)), lambda x: x, num_draws)  # fmt: skip
    keys = jax.random.split(KEY, 20_000)
    x = np.asarray(jax.jit(jax.vmap(lambda k: best.simulate(k).choices["x"]))(keys), float)
    log_w = x - (num_draws - 1) * np.log(x)  # towards the tilt by r = x, but for a constant
    k_hat = inference.diagnostics.importance_diagnostics(log_w).k_hat
    assert abs(k_hat - (num_draws - 1) / num_draws) < 0.15


def test_what_has_no_best_is_named():
    with pytest.raises(ValueError, match="num_draws must be an integer >= 1, got 0"):
        inference.best_of(normal, lambda x: x, 0)

    def observed():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=0.5)
        return z

    with pytest.raises(ValueError, match=r"observations or factors \['y'\]"):
        inference.best_of(observed, lambda z: z, 2).simulate(KEY)
    with pytest.raises(ValueError, match=r"has shape \(2,\)"):
        inference.best_of(normal, lambda x: x * jnp.ones(2), 2).simulate(KEY)
    for shares in (np.ones(3), np.array([1.5, -0.5, 0.0])):
        with pytest.raises(
            ValueError, match="probabilities must be probabilities of outcomes, >= 0"
        ):
            inference.best_of(normal, lambda x: x, 2).law_of(np.arange(3.0), shares)
    with pytest.raises(ValueError, match="one of each for every outcome"):
        inference.best_of(normal, lambda x: x, 2).law_of(np.arange(3.0), np.ones(2) / 2)
    estimated = ppl.normalize(normal, proposal=normal, num_particles=2)
    with pytest.raises(TypeError, match="is estimated. Give the program"):
        inference.best_of(estimated, lambda x: x, 2)


def rarely_nan(x):
    """NaN at one draw in a million: none of those that are tried first."""
    return jnp.where(x > 4.75, jnp.nan, x)


def test_a_reward_of_nan_makes_no_best():
    """It is no worst one, either: refused, and where values are traced the draw is NaN."""
    with pytest.raises(ValueError, match="best_of: reward '.*' is NaN at .* of 32 draws"):
        inference.best_of(normal, lambda x: jnp.where(x > 0, jnp.nan, x), 4).simulate(KEY)
    with pytest.raises(ValueError, match="argument 'rewards' is NaN at 1 of 3 outcomes"):
        inference.best_of(normal, lambda x: x, 2).law_of(np.array([0.0, np.nan, 1.0]))
    wide = ppl.model(lambda scale: ppl.sample("x", dist.Normal(0.0, scale)))
    best = inference.best_of(wide, rarely_nan, 8)
    assert jnp.isfinite(best.simulate(KEY, 1.0).choices["x"])
    with pytest.raises(ValueError, match="is NaN at .* of 8 draws"):
        best.simulate(KEY, 20.0)
    lost = jax.jit(lambda k: best.simulate(k, 20.0).choices["x"])(KEY)
    assert jnp.isnan(lost)
    with pytest.raises(ValueError, match="is infinite at 32 of 32 draws"):
        inference.best_of(normal, lambda x: jnp.inf, 4).simulate(KEY)
