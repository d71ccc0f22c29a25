"""to_arviz of draws, traces and MCMC runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import stats

from lapilli import inference, ppl
from lapilli.inference.export._arviz import to_arviz
from lapilli.inference.fitting import Fit, Posterior
from lapilli.inference.posteriors import Certificate

X = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
MASK = np.array([True, False, True, True])
LABELS = np.array([[1, 0, 1], [0, 1, 1]])


@ppl.model
def chain(x):
    """A random walk that is seen through noise, with a boolean beside it."""
    ppl.sample("flag", dist.Bernoulli(0.5))

    def step(z, x):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    ppl.scan(step, 0.0, x)


@ppl.model
def missing(x, mask):
    mu = ppl.sample("mu", dist.Normal(0, 1))
    with ppl.plate("rows", 4):
        ppl.sample("x", dist.Normal(mu, 1), obs=x, obs_mask=mask)


def traces(program, key, num_draws, *args):
    return jax.vmap(lambda k: program.simulate(k, *args))(jax.random.split(key, num_draws))


@pytest.mark.slow
def test_a_batch_of_traces_speaks_for_itself(key):
    trace = traces(chain, key, 50, X)
    found = to_arviz(trace)
    assert list(found.children) == ["posterior", "log_likelihood", "log_prior", "observed_data"]
    assert found["posterior"]["z"].dims == ("chain", "draw", "time")
    assert found["observed_data"]["x"].dims == ("time",)
    expected = stats.norm.logpdf(X, trace.choices["z"], 0.5)
    np.testing.assert_allclose(found["log_likelihood"]["x"].values[0], expected, rtol=1e-4)
    prior = to_arviz(trace, group="prior")
    assert list(prior.children) == ["prior", "observed_data"]


@pytest.mark.slow
def test_a_mapping_with_a_model_has_the_groups_of_its_trace(key):
    trace = traces(chain, key, 50, X)
    alone = to_arviz(trace)
    found = to_arviz(trace.choices, model=chain, args=(X,))
    assert list(found.children) == list(alone.children)
    for group in found.children:
        for name, values in found[group].data_vars.items():
            assert values.dims == alone[group][name].dims
            np.testing.assert_allclose(values, alone[group][name], rtol=1e-5, atol=1e-5)
    drawn = to_arviz(trace, model=chain, args=(X,), key=key, num_samples=7)
    assert drawn["posterior_predictive"]["x"].shape == (1, 50, 4)
    assert drawn["prior"]["z"].shape == (1, 7, 4)
    prior = to_arviz(trace, model=chain, args=(X,), key=key, group="prior")
    assert list(prior.children) == ["prior", "prior_predictive", "observed_data"]
    error = (prior["prior_predictive"]["x"] - prior["prior"]["z"]).std()
    assert 0.35 < error < 0.65  # 200 draws of deviation 0.5: six standard errors


def test_auxiliary_choices_of_a_guide_are_left_out(key):
    def guide():
        u = ppl.sample("u", dist.Normal(0, 1), infer={"is_auxiliary": True})
        ppl.sample("mu", dist.Normal(u, 1))

    def model():
        ppl.sample("mu", dist.Normal(0, 1))

    trace = traces(ppl.model(guide), key, 5)
    assert set(to_arviz(trace, model=model)["posterior"].data_vars) == {"mu"}
    assert set(to_arviz(trace)["posterior"].data_vars) == {"u", "mu"}


def test_deterministic_sites_among_the_draws_are_computed_anew(key):
    def model():
        ppl.deterministic("double", 2 * ppl.sample("mu", dist.Normal(0, 1)))

    found = to_arviz({"mu": np.arange(5.0), "double": np.zeros(5)}, model=model)
    np.testing.assert_allclose(found["posterior"]["double"].values[0], 2 * np.arange(5.0))


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, True], ids=["trace", "model"])
def test_missing_cells_are_kept_apart(key, with_model):
    trace = traces(missing, key, 40, jnp.where(MASK, X, jnp.nan), MASK)
    options = {"model": missing, "args": (X, MASK), "key": key} if with_model else {}
    found = to_arviz(trace, **options)
    assert found["observed_data"]["x_observed"].dims == ("x_observed_cell",)
    np.testing.assert_array_equal(found["observed_data"]["x_observed"], X[MASK])
    np.testing.assert_array_equal(found["observed_data"]["x_observed_cell"], [0, 2, 3])
    assert found["posterior"]["x_unobserved"].dims == ("chain", "draw", "x_unobserved_cell")
    np.testing.assert_array_equal(found["posterior"]["x_unobserved_cell"], [1])
    np.testing.assert_array_equal(
        found["posterior"]["x_unobserved"].values[0, :, 0], trace.choices["x_unobserved"][:, 1]
    )
    log_prob = stats.norm.logpdf(X[MASK], np.asarray(trace.choices["mu"])[:, None])
    np.testing.assert_allclose(found["log_likelihood"]["x_observed"].values[0], log_prob, rtol=1e-4)


@pytest.mark.slow
def test_cells_of_discrete_data_are_told_in_spite_of_ties(key):
    @ppl.model
    def coins(mask):
        with ppl.plate("rows", 2, dim=-2), ppl.plate("columns", 3, dim=-1):
            ppl.sample("x", dist.Bernoulli(0.4), obs=LABELS, obs_mask=mask)

    mask = np.array([[True, True, False], [False, True, True]])
    for options in ({}, {"model": coins, "args": (mask,)}):
        for num_draws in (1, 2):
            found = to_arviz(traces(coins, key, num_draws, mask), **options)
            np.testing.assert_array_equal(found["posterior"]["x_unobserved_cell"], [2, 3])
            np.testing.assert_array_equal(found["observed_data"]["x_observed"], LABELS[mask])


def test_a_fit_with_missing_cells_draws_them_from_their_prior(key):
    def guide(x, mask):
        ppl.sample("mu", dist.Normal(0.4, 0.5))

    objective = inference.elbo(missing, guide)
    args = (np.where(MASK, X, np.nan), MASK)
    fit = Fit(objective, {}, {}, {}, {}, args, 0, 0, None, "num_steps")
    found = to_arviz(fit, key=key, num_samples=4000, batch_size=4000, groups=("log_likelihood",))
    # Conjugate evidence of the three observed cells: the imputed one must not enter the weights. log_evidence is within
    # 4.5 of its standard errors (false alarm 7e-6); the density of one cell would move it by a hundred.
    x = X[MASK]
    log_z = -1.5 * np.log(2 * np.pi) - 0.5 * np.log(4) - 0.5 * (x @ x - x.sum() ** 2 / 4)
    attrs = found["sample_stats"].attrs
    assert abs(attrs["log_evidence"] - log_z) < 4.5 * attrs["log_evidence_std_error"] < 0.1
    assert found["posterior"]["x_unobserved"].sizes["x_unobserved_cell"] == 1
    import arviz

    assert arviz.loo(found).n_data_points == 3


def test_weighted_draws_are_resampled_or_shown_as_they_are(seed):
    # Prior draws, weighted by the likelihood of one observation at 2: the posterior is N(1, 1/2), its weights bounded. 2 x 3
    # comparisons at |z| < 4.5: false alarm 4e-5; the draws as they are lie 100 standard errors off.
    mu = np.asarray(jax.random.normal(seed, (20_000,)))
    weighted = Posterior({"mu": mu}, stats.norm.logpdf(2.0, mu))
    found = to_arviz(weighted, key=seed, resample="psis")
    size = 1 / (1 / found["sample_stats"].attrs["ess"] + 1 / len(mu))
    drawn = found["posterior"]["mu"].values[0]
    assert abs(drawn.mean() - 1) * np.sqrt(2 * size) < 4.5
    assert abs(2 * drawn.var() - 1) * np.sqrt(size / 2) < 4.5
    np.testing.assert_array_equal(mu[found["sample_stats"]["source_draw"].values[0]], drawn)
    shown = to_arviz({"mu": mu}, log_weights=weighted.log_weights, resample="none")
    np.testing.assert_array_equal(shown["posterior"]["mu"].values[0], mu)
    assert shown["posterior"].attrs["draws"] == "as given, not weighted"
    assert set(shown["sample_stats"].data_vars) == {"log_weight"}
    assert shown["sample_stats"].attrs == found["sample_stats"].attrs | shown["sample_stats"].attrs


@pytest.mark.slow
def test_a_trace_is_resampled_whole(key):
    trace = traces(chain, key, 400, 0.1 * X)
    options = {"log_weights": np.zeros(400), "resample": "psis", "key": key}
    found = to_arviz(trace, **options)
    index = found["sample_stats"]["source_draw"].values[0]
    np.testing.assert_array_equal(index, np.arange(400))
    tilted = np.linspace(0.0, 1.0, 400)
    found = to_arviz(trace, **options | {"log_weights": tilted})
    index = found["sample_stats"]["source_draw"].values[0]
    assert len(set(index)) < 400
    likelihood = np.asarray(trace.log_probs["x"])[index]
    np.testing.assert_array_equal(found["log_likelihood"]["x"].values[0], likelihood)


@pytest.mark.slow
def test_mcmc_keeps_its_chains_and_statistics(key):
    def program(x, scale=1.0):
        mu = ppl.sample("mu", dist.Normal(0, 1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(mu, scale), obs=x)

    mcmc = MCMC(
        NUTS(program),
        num_warmup=20,
        num_samples=15,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    with pytest.raises(ValueError, match="MCMC holds no draws.*mcmc.run"):
        to_arviz(mcmc)
    mcmc.run(jax.random.PRNGKey(0), X, scale=0.5)
    found = to_arviz(mcmc, key=key, num_samples=9)
    assert found["posterior"]["mu"].sizes == {"chain": 2, "draw": 15}
    draws = mcmc.get_samples(group_by_chain=True)["mu"]
    np.testing.assert_array_equal(found["posterior"]["mu"], draws)
    assert found["sample_stats"]["diverging"].sizes == {"chain": 2, "draw": 15}
    expected = stats.norm.logpdf(X, np.asarray(draws)[..., None], 0.5)
    np.testing.assert_allclose(found["log_likelihood"]["x"], expected, rtol=1e-4)
    assert found["posterior_predictive"]["x"].sizes == {"chain": 2, "draw": 15, "rows": 4}
    assert found["prior"]["mu"].sizes == {"chain": 1, "draw": 9}
    assert found["sample_stats"].attrs["inference_library"] == "numpyro"


@pytest.mark.slow
def test_mcmc_on_a_potential_is_read_by_arviz(key):
    kernel = NUTS(potential_fn=lambda z: 0.5 * z @ z)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=6, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), init_params=jnp.zeros(2))
    found = to_arviz(mcmc)
    assert list(found.children) == ["posterior", "sample_stats"]
    assert found["posterior"]["Param:0"].shape == (1, 6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, True], ids=["trace", "model"])
def test_events_seen_in_part_keep_their_axes(key, with_model):
    """NaN stands in the cells that are not a site's own; log-probs are those of whole rows."""

    @ppl.model
    def series(x, mask):
        with ppl.plate("rows", 2):
            ppl.sample("x", dist.Normal(0, 1).expand([2, 3]).to_event(1), obs=x, obs_mask=mask)

    mask = np.array([[True, False, True], [False, False, True]])
    x = np.where(mask, np.arange(6.0).reshape(2, 3) + 1, np.nan)
    trace = traces(series, key, 20, x, mask)
    found = to_arviz(trace, **({"model": series, "args": (x, mask)} if with_model else {}))
    np.testing.assert_array_equal(found["observed_data"]["x_observed"], x)
    drawn = found["posterior"]["x_unobserved"]
    assert drawn.dims[2] == "rows" and drawn.shape == (1, 20, 2, 3)
    np.testing.assert_array_equal(np.isnan(drawn.values[0, 0]), mask)
    np.testing.assert_array_equal(
        drawn.values[0][:, ~mask], trace.choices["x_unobserved"][:, ~mask]
    )
    expected = (stats.norm.logpdf(np.where(mask, x, 0)) * mask).sum(1)
    np.testing.assert_allclose(
        found["log_likelihood"]["x_observed"].values[0, 0], expected, rtol=1e-5
    )


@pytest.mark.slow
def test_seeds_are_chains_so_that_r_hat_compares_them():
    import arviz

    def model(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
        with ppl.plate("rows", 3):
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        # Starts apart; 400 steps bring all to one place.
        loc = ppl.param("loc", lambda key: 3.0 * jax.random.normal(key))
        ppl.sample("mu", dist.Normal(loc, 0.5))

    bound, y, r_hat = inference.elbo(model, guide), np.zeros(3, np.float32), {}
    for steps in (1, 400):
        fit = inference.fit(
            bound, optax.adam(0.05), (y,), num_steps=steps, num_seeds=3, progress=False
        )
        tree = inference.to_arviz(fit, key=jax.random.key(0), num_samples=100, groups=())
        assert dict(tree["posterior"].sizes) == {"chain": 3, "draw": 100}
        assert "one for each seed" in tree["posterior"].attrs["chains"]
        r_hat[steps] = float(arviz.rhat(tree)["mu"])
        one = inference.to_arviz(fit.seed(0), key=jax.random.key(0), num_samples=9, groups=())
        assert "R-hat says nothing" in one["posterior"].attrs["chains"]
    mixed = inference.to_arviz(
        fit, key=jax.random.key(0), num_samples=100, groups=(), resample="psis"
    )
    # Weighed together they are one sample, whose parts are no seeds.
    assert dict(mixed["posterior"].sizes) == {"chain": 1, "draw": 300}
    assert "all seeds" in mixed["posterior"].attrs["chains"]
    assert r_hat[1] > 1.5 and r_hat[400] < 1.05


def test_seeds_with_models_of_their_own_are_refused():
    def model(y):
        ppl.sample("mu", dist.Normal(ppl.param("prior", 0.0), 2.0))
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def guide(y):
        ppl.sample("mu", dist.Normal(ppl.param("loc", 0.0), 0.5))

    bound = inference.elbo(model, guide)
    fit = inference.fit(bound, optax.sgd(0.1), (0.0,), num_steps=1, num_seeds=2, progress=False)
    with pytest.raises(ValueError, match=r"2 runs, each with a model of its own.*\['prior'\]"):
        inference.to_arviz(fit, key=jax.random.key(0))


@pytest.mark.slow
def test_particles_without_names_are_refused():
    pair = lambda key: (jax.random.normal(key), jax.random.normal(key))
    walk = inference.FeynmanKac(pair, lambda key, x, t: x, lambda _, x, t: -(x[0] ** 2), 2)
    run = inference.smc(walk, jax.random.key(0), num_particles=4)
    with pytest.raises(ValueError, match="have no names.*result.sample"):
        inference.to_arviz(run, key=jax.random.key(0))


@pytest.mark.slow_for("systematic", "multinomial")
@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_the_evidence_of_particles_has_an_error_where_the_run_shows_one(scheme):
    walk = inference.FeynmanKac(
        jax.random.normal,
        lambda key, x, t: x + jax.random.normal(key),
        lambda _, x, t: -(x**2),
        5,
    )
    run = lambda key: inference.smc(
        walk, key, num_particles=400, resampling=scheme, history="ancestors"
    )
    keys = jax.random.split(jax.random.key(0), 40)
    runs = jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
    of = lambda i: jax.tree.map(lambda x: x[i], runs)
    attrs = [
        inference.to_arviz(of(i), key=jax.random.key(1), num_samples=5)["posterior"].attrs
        for i in range(8)
    ]
    errors = [a["log_evidence_std_error"] for a in attrs]
    if scheme == "systematic":
        assert all("replicate" in e for e in errors)
        return
    # Over 40 runs the spread is known to 11 %; eight runs' variances scatter by half each.
    spread = float(np.asarray(runs.log_evidence).std(ddof=1))
    assert 0.5 < float(np.mean(np.square(errors)) ** 0.5) / spread < 1.7


@pytest.mark.slow  # a flow is compiled
def test_a_flow_without_an_inverse_is_exported():
    """Its density is known at its own draws, by what was computed for them."""
    from numpyro.infer.autoguide import AutoBNAFNormal

    def pair(y):
        a, b = (ppl.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        ppl.sample("y", dist.Normal(a + b, 1.0), obs=y)

    bound = inference.elbo(pair, AutoBNAFNormal(pair, num_flows=1))
    fit = inference.fit(bound, args=(0.5,), num_steps=2, progress=False, k_hat="skip")
    tree = to_arviz(fit, key=jax.random.key(0), num_samples=2_000)
    draws = np.stack([tree["posterior"][name].values[0] for name in "ab"], 1)
    # The mean of h / q is 1 for any h whose mass lies where q has its own.
    narrow = stats.multivariate_normal(draws.mean(0), 0.3 * np.cov(draws.T))
    ratio = np.exp(narrow.logpdf(draws) - tree["sample_stats"]["log_q"].values[0])
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / len(ratio) ** 0.5


def test_draws_of_rows_have_no_log_likelihoods_of_other_rows():
    """Nor those of steps: at the rows that they were drawn for they have."""

    def local(x, y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(z, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        with ppl.plate("rows", x.shape[0]):
            a = ppl.sample("a", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(a, 1.0), obs=x)
        ppl.scan(step, 0.0, y)

    choices = {"a": np.zeros((3, 4), np.float32), "z": np.zeros((3, 3), np.float32)}
    certificate = Certificate("exact", True, (), {})
    draws = inference.Draws(choices, certificate, 1, {}, ppl.as_program(local), (X, X[:3]))
    of = lambda *args: to_arviz(draws, args=args, groups=["log_likelihood"])["log_likelihood"]
    np.testing.assert_allclose(
        of(X, X[:3].copy())["x"].values[0, 0], stats.norm.logpdf(X), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"{'a': \(4,\)}.*belong to the rows that the draws were"):
        of(X[::-1], X[:3])
    with pytest.raises(ValueError, match=r"{'z': \(3,\)}.*belong to the rows that the draws were"):
        of(X, X[1:])


def test_indices_out_of_range_are_refused():
    """JAX would read the last entry in place of the one that there is not."""

    def model(g, y):
        a = ppl.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with ppl.plate("rows", len(g)):
            ppl.sample("y", dist.Normal(a[g], 1.0), obs=y)

    draws, bad = {"a": np.zeros((2, 3))}, (np.array([0, 1, 5]), np.zeros(3))
    with pytest.raises(ValueError, match=r"to_arviz: argument 'g' .*holds 5 at \[2\]"):
        to_arviz(draws, model=model, args=bad, groups=["log_likelihood"])
    tree = to_arviz(draws, model=model, args=(np.arange(3), np.zeros(3)), groups=[])
    with pytest.raises(ValueError, match=r"moment_matching: argument 'g' .*holds 5 at \[2\]"):
        inference.moment_matching(tree, model, bad)


def test_a_run_that_lost_its_particles_and_options_of_given_draws_are_refused():
    def model(y):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Uniform(a - 1.0, a + 1.0), obs=y)

    run = inference.smc(model, jax.random.key(0), 0.0, num_particles=50)
    lost = dataclasses.replace(run, failed_at=jnp.array(2))
    with pytest.raises(
        ValueError, match="to_arviz: the SMCResult lost all its particles at weighing 2"
    ):
        to_arviz(lost, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match="predict: the SMCResult lost all its particles at weighing 2"
    ):
        inference.predict(model, lost, jax.random.key(0), None)
    with pytest.raises(
        ValueError, match="'group' files the draws of a SMCResult as draws of the prior"
    ):
        to_arviz(run, key=jax.random.key(0), group="prior")
    with pytest.raises(ValueError, match=r"'log_weights' \(shape \(50,\)\) describe given draws"):
        to_arviz(run, key=jax.random.key(0), log_weights=np.zeros(50), resample="none")


def test_a_factor_leaves_no_draws_of_the_prior():
    """N(0, 1) times exp(-1.5 z^2) is N(0, 1/4), and draws forward have the standard deviation 1."""

    def model(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.factor("soft", -1.5 * z**2)
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    options = {"model": model, "args": (0.0,), "key": jax.random.key(0), "num_samples": 5}
    tree = inference.to_arviz({"z": np.zeros(3)}, **options)
    assert (
        not {"prior", "prior_predictive"} & {*tree.children} and "log_likelihood" in tree.children
    )
    assert "['soft']" in tree["posterior"].attrs["prior"]
    for groups in (["prior"], ["prior_predictive", "log_likelihood"]):
        with pytest.raises(
            ValueError, match=r"do not hear the factors \['soft'\].*Leave the groups"
        ):
            inference.to_arviz({"z": np.zeros(3)}, groups=groups, **options)
