"""Particles over time against exact answers: Gaussian process regression, values that hide themselves, and what is refused."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from _stats import assert_unbiased
from lapilli import ppl
from lapilli.models import imputation

T, NOISE = 8, 0.4
MIX = np.array([[1.0, 0.6], [-0.5, 0.9]])
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(T, 2)).cumsum(0) / 2
VALUES[RNG.random((T, 2)) < 0.4] = np.nan
K = np.asarray(imputation.cauchy_kernel(jnp.arange(float(T)), length_scale=3.0), float)


def copies(values, num):
    """The same series many times: as many independent runs."""
    return imputation.series(np.broadcast_to(values, (num, *values.shape)))


def mixing(data):
    kernel = imputation.cauchy_kernel(jnp.asarray(data.times), length_scale=3.0)
    return imputation.own_cholesky(kernel, jnp.asarray(data.valid))


def regression(reads=lambda path: path, spread=1.0):
    """Two channels that mix two Gaussian process paths, under noise; `reads` is what the decoder makes of the paths first.

    z has the standard deviation `spread`.
    """

    @ppl.model
    def model(data):
        size, steps = data.valid.shape
        with ppl.plate("rows", size):
            z = ppl.sample("z", dist.Normal(0, spread).expand([size, 2, steps]).to_event(2))
            matrix = ppl.deterministic("mixing", mixing(data))
            path = ppl.deterministic("path", jnp.einsum("nts,nds->ntd", matrix, z))
            loc = ppl.deterministic("x_loc", reads(path) @ MIX.T)
            law = dist.Normal(loc, NOISE)
            ppl.sample("x", law.to_event(2), obs=data.values, obs_mask=data.observed)
            step = jnp.where(data.observed, law.log_prob(data.values), 0).sum(-1)
            ppl.deterministic("step_log_prob", step)
            ppl.deterministic(
                "step_log_draw", jnp.zeros(step.shape)
            )  # not read: nothing weighs x_m

    return model


@ppl.model
def rough(data):
    """A guide whose looks at the paths are the values, whatever the mixture."""
    seen = jnp.asarray(data.observed).mT
    with ppl.plate("rows", len(data.valid)):
        looks = ppl.deterministic("looks", jnp.where(seen, jnp.asarray(data.values).mT, 0.0))
        precision = ppl.deterministic("look_precision", jnp.where(seen, 2.0, 0.1))
        matrix = ppl.deterministic("looked", mixing(data))
        ppl.sample("z", dist.Independent(imputation.smoothed(matrix, looks, precision), 1))


def exact(kernel=K):
    """Log evidence, and the mean of all cells given the observed ones."""
    seen = ~np.isnan(VALUES.ravel())
    prior = np.kron(kernel, MIX @ MIX.T)
    covariance = prior[np.ix_(seen, seen)] + NOISE**2 * np.eye(seen.sum())
    values = VALUES.ravel()[seen]
    log_z = stats.multivariate_normal(np.zeros(len(values)), covariance).logpdf(values)
    mean = prior[:, seen] @ np.linalg.solve(covariance, values)
    return log_z, np.where(np.isnan(VALUES), mean.reshape(T, 2), VALUES)


@pytest.mark.slow
def test_evidence_and_imputed_means_are_unbiased(key):
    """1,000 runs of 30 particles: E[Z] and E[Z mean] are exact at every K; a bias of 3% is 7 standard errors or more."""
    data = copies(VALUES, 1000)
    found = imputation.impute(
        regression(),
        rough,
        data,
        key,
        num_particles=30,
        method=imputation.OverTime(0),
        batch_size=1000,
    )
    log_z, mean = exact()
    ratio = np.exp(found.log_weights[:, 0] - log_z).mean(0)
    assert ratio.std() < 0.03 / 7 * np.sqrt(1000) * 4
    assert_unbiased(ratio, 1.0)
    missing = np.isnan(VALUES)
    assert_unbiased((ratio[:, None, None] * found.mean)[:, missing], mean[missing])
    whole = imputation.impute(
        regression(), rough, data.rows(slice(0, 50)), key, num_particles=30, num_imputations=1
    )
    log_mean = np.log(np.exp(whole.log_weights - log_z).mean((0, 1)))
    assert np.log(ratio[:50]).std() < log_mean.std()
    assert np.all(found.ess <= 30.001) and np.all(found.ess >= 1)


@pytest.mark.slow  # compiles the gradient of a bound
def test_a_refined_guide_leaves_no_bias_and_has_weights_that_vary_less(key):
    """200 runs of 52 draws: E[Z] is exact, a bias of 5% is 7 standard errors; the bound from 4 draws loses half of its gap."""
    data = copies(VALUES, 200)
    run = lambda num: imputation.impute(
        regression(), rough, data, key, num_particles=52, num_imputations=1, batch_size=200, num_refinements=num
    )  # fmt: skip
    ratios = [np.exp(run(num).log_weights[:, 0].astype(float) - exact()[0]) for num in (0, 100)]
    assert ratios[1].mean(0).std() < 0.05 / 7 * np.sqrt(200) * 4
    assert_unbiased(ratios[1].mean(0), 1.0)
    gaps = [-np.log(ratio.reshape(13, 4, 200).mean(1)).mean() for ratio in ratios]
    assert 0 < gaps[1] < 0.5 * gaps[0]


@pytest.mark.slow  # compiles Hamiltonian Monte Carlo
@pytest.mark.parametrize("method, spread", [("importance", 1.0), ("smc", 1.0), ("importance", 2.0)])
def test_moves_repair_what_a_few_weighted_draws_miss(method, spread, key):
    """1,000 runs of 2 draws: mean and variance of missing cells are exact after moves; without, 7 standard errors off."""
    model = regression(lambda path: path / spread, spread)
    data, missing = copies(VALUES, 1000), np.isnan(VALUES)
    more = {"num_imputations": 1} if method == "importance" else {}
    method = imputation.OverTime(0) if method == "smc" else method
    run = lambda num: imputation.impute(
        model, rough, data, key, num_particles=2, method=method, num_moves=num, batch_size=1000, **more
    )  # fmt: skip
    before, after = run(0), run(40)
    _, mean = exact()
    law = np.kron(K, MIX @ MIX.T) + NOISE**2 * np.eye(2 * T)
    seen = ~missing.ravel()
    rest = law[np.ix_(~seen, ~seen)] - law[np.ix_(~seen, seen)] @ np.linalg.solve(
        law[np.ix_(seen, seen)], law[np.ix_(seen, ~seen)]
    )
    draws = after.x[0, 0][:, missing]  # of two draws of a run one: runs are independent
    assert_unbiased(draws, mean[missing])
    assert_unbiased((draws - mean[missing]) ** 2, np.diag(rest))
    np.testing.assert_allclose(after.weights, 0.5)
    log_mean = np.log(np.exp(before.log_weights).mean((0, 1)))
    np.testing.assert_allclose(after.log_weights[0, 0], log_mean, rtol=1e-4)
    assert 0.7 < after.acceptance.mean() < 0.95 and after.acceptance.shape == (1000,)
    poor = before.mean[:, missing]
    z = (poor.mean(0) - mean[missing]) / (poor.std(0) / np.sqrt(1000))
    assert np.abs(z).max() > 7


@ppl.model
def hiding(data):
    """Cells N(0, 1), of which a share is due to z, that hide themselves: P(miss | x) = sigmoid(2 x)."""
    size, steps = data.valid.shape
    with ppl.plate("rows", size):
        z = ppl.sample("z", dist.Normal(0, 1).expand([size, 1, steps]).to_event(2))
        eye = jnp.broadcast_to(jnp.eye(steps), (size, steps, steps))
        ppl.deterministic("mixing", eye)
        loc = 0.8 * ppl.deterministic("path", z.mT)
        ppl.deterministic("x_loc", loc)
        law = dist.Normal(loc, 0.6)
        x = ppl.sample("x", law.to_event(2), obs=data.values, obs_mask=data.observed)
        mask = dist.Bernoulli(logits=-2 * x).mask(jnp.asarray(data.valid)[..., None])
        ppl.sample("s", mask.to_event(2), obs=data.observed * 1.0)
        seen = jnp.where(data.observed, law.log_prob(data.values), 0)
        ppl.deterministic("step_log_prob", (seen + mask.log_prob(data.observed * 1.0)).sum(-1))
        ppl.deterministic("step_log_draw", jnp.where(data.observed, 0, law.log_prob(x)).sum(-1))


@ppl.model
def blind(data):
    size, steps = data.valid.shape
    with ppl.plate("rows", size):
        ppl.deterministic("looked", jnp.broadcast_to(jnp.eye(steps), (size, steps, steps)))
        none = ppl.deterministic("looks", jnp.zeros((size, 1, steps)))
        ppl.deterministic("look_precision", none)
        ppl.sample("z", dist.Normal(none, 1.0).to_event(2))


@pytest.mark.slow  # compiles another filter
def test_particles_carry_the_cells_that_hide_themselves(key):
    """Five missing cells: P(miss) = 1/2 and E[x | miss] = 0.605706 each, by quadrature."""
    data = copies(np.full((5, 1), np.nan), 2000)
    found = imputation.impute(
        hiding, blind, data, key, num_particles=30, method=imputation.OverTime(0), batch_size=2000
    )
    ratio = np.exp(found.log_weights[:, 0] + 5 * np.log(2.0)).mean(0)
    assert_unbiased(ratio, 1.0)
    assert_unbiased(ratio[:, None] * found.mean[..., 0], np.full(5, 0.605706))
    # Particles of one origin have cells of their own, drawn anew at the end.
    first, origins = found.x[:, 0, :, 0, 0], found.origins
    count = lambda a: np.mean([len(np.unique(column)) for column in a.T])
    assert count(first) > 1.3 * count(origins)


@pytest.mark.slow  # compiles two more filters
@pytest.mark.parametrize("shift", [-1, 1], ids=["reads the next step", "remembers the last"])
def test_what_the_window_does_not_show_leaves_no_bias(shift, key):
    """A decoder that reads another step than the window has: the weight in one piece puts it right."""
    reads = lambda path: path + 0.3 * jnp.roll(path, shift, 1) * (path.shape[1] == T)
    # In one piece the decoder mixes two steps, in windows of one step it does not.
    found = imputation.impute(
        regression(reads), rough, copies(VALUES, 1000), key, num_particles=30, method=imputation.OverTime(0), batch_size=1000
    )  # fmt: skip
    roll = np.eye(T) + 0.3 * np.roll(np.eye(T), shift, 0)
    log_z, mean = exact(roll @ K @ roll.T)
    ratio = np.exp(found.log_weights[:, 0] - log_z).mean(0)
    assert_unbiased(ratio, 1.0)
    missing = np.isnan(VALUES)
    assert_unbiased((ratio[:, None, None] * found.mean)[:, missing], mean[missing])


@pytest.mark.slow  # compiles three networks and their filters
@pytest.mark.parametrize(
    "switches", [{"prior": "gp"}, {"prior": "normal"}, {"prior": "gp", "is_causal": True}]
)
def test_members_of_the_family_run_over_time(switches, key):
    """Series of several lengths: with all steps in the window or only those that the decoder reads, the same particles."""
    data = imputation.series(np.stack([VALUES] * 3), lengths=[T, T - 3, T - 1])
    imputer = imputation.programs(
        2, num_classes=3, missingness="linear", num_hidden=4, encoder="conv", classifier="conv", key=key, **switches
    )  # fmt: skip
    run = lambda memory: imputation.impute(
        *imputer, data, key, num_particles=20, method=imputation.OverTime(memory)
    )
    narrow, wide = run(imputation.memory("conv")), run(None)
    assert narrow.logits.shape == (20, 1, 3, 3) and narrow.origins.shape == (20, 3)
    # Noise of the cells has the window's shape, so that only what is drawn before the first cell is equal.
    whole = imputation.impute(*imputer, data, key, num_particles=2000, num_imputations=1)
    for found in (narrow, wide):
        assert np.all(found.log_weights.max((0, 1)) < whole.log_weights.max((0, 1)) + 10)
        np.testing.assert_allclose(found.probs.sum(-1), 1.0, atol=1e-5)


def test_what_cannot_be_run_over_time_is_refused_by_name(key):
    data = copies(VALUES, 2)
    with pytest.raises(ValueError, match="one draw each, but num_imputations=3"):
        imputation.impute(regression(), rough, data, key, method="smc", num_imputations=3)
    with pytest.raises(ValueError, match="'looked' of the guide, 'looks' of the guide"):
        imputation.impute(regression(), regression(), data, key, method="smc")
    with pytest.raises(ValueError, match="no method 'filter'"):
        imputation.impute(regression(), rough, data, key, method="filter")
    with pytest.raises(ValueError, match="OverTime: memory must be an integer >= 0"):
        imputation.OverTime(-1)
    with pytest.raises(ValueError, match="num_refinements=5 moves .* of the guide, which it lacks"):
        imputation.impute(regression(), regression(), data, key, num_refinements=5)
    with pytest.raises(ValueError, match="num_moves must not be negative"):
        imputation.impute(regression(), rough, data, key, num_moves=-1)
    with pytest.raises(ValueError, match="num_moves=5 moves draws of z .* a model of the mask"):
        imputation.impute(hiding, blind, copies(np.full((5, 1), np.nan), 1), key, num_moves=5)
    with pytest.raises(ValueError, match="num_moves=5 needs site 'z' .*'looks'"):
        imputation.impute(regression(), regression(), data, key, num_moves=5)
