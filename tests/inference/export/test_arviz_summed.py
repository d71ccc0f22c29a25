"""Programs whose discrete sites are summed out, as ArviZ sees them: rows, chains, priors; against recursions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = np.array([0.1, 2.0, -1.0, 3.0, 0.3, 1.7], np.float32)
PAIRS = np.stack([Y, 0.5 * Y[::-1]], 1)
A = np.array([[0.8, 0.2], [0.3, 0.7]], np.float32)
MU = np.random.default_rng(0).normal(size=7).astype(np.float32)


def emission(y, mu, k):
    return norm.logpdf(y, mu + 2 * k, 1.0)


def mixture(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
    with ppl.plate("rows", y.shape[0]):
        k = ppl.sample("k", dist.Bernoulli(0.3))
        ppl.sample("y", dist.Normal(mu + 2 * k, 1.0), obs=y)


def two_observations(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
    with ppl.plate("rows", y.shape[0]):
        k = ppl.sample("k", dist.Bernoulli(0.3))
        ppl.sample("a", dist.Normal(mu + 2 * k, 1.0), obs=y)
        ppl.sample("b", dist.Normal(mu + 2 * k, 1.0), obs=y + 1)


def chain(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))

    def step(k, y_t):
        k = ppl.sample("k", dist.Categorical(jnp.array(A)[k]))
        ppl.sample("y", dist.Normal(mu + 2 * k, 1.0), obs=y_t)
        return k, None

    ppl.scan(step, jnp.int32(0), y)


def chains(y):
    """A chain for each column of y, and emissions that lean on the observation before."""
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))

    def step(carry, y_t):
        k, last = carry
        with ppl.plate("rows", y.shape[1]):
            k = ppl.sample("k", dist.Categorical(jnp.array(A)[k]))
            ppl.sample("y", dist.Normal(mu + 2 * k + 0.5 * last, 1.0), obs=y_t)
        return (k, y_t), None

    ppl.scan(step, (jnp.zeros(y.shape[1], jnp.int32), jnp.zeros(y.shape[1])), y)


def tree_of(model, y, groups=("log_likelihood",), sites="k"):
    program = ppl.eliminate(model, sites)
    return inference.to_arviz({"mu": MU}, model=program, args=(y,), key=KEY, groups=groups)


def forward(y, mu, lean=0.0):
    """Log p(y_t | y_<t, mu) by the forward recursion."""
    found, a, last = [], np.array([1.0, 0.0]), 0.0
    for y_t in y:
        joint = np.log(a @ A) + emission(y_t - lean * last, mu, np.arange(2))
        found.append(logsumexp(joint))
        a, last = np.exp(joint - found[-1]), y_t
    return np.array(found)


def mixed(y, mu):
    parts = [np.log([0.7, 0.3])[k] + emission(y, mu, k) for k in (0, 1)]
    return logsumexp(parts, axis=0)


def test_rows_of_a_mixture_have_log_likelihoods():
    tree = tree_of(mixture, Y, ("log_likelihood", "log_prior", "observed_data"))
    found = tree["log_likelihood"]["y"]
    assert found.dims == ("chain", "draw", "rows")
    np.testing.assert_allclose(found[0], [mixed(Y, m) for m in MU], rtol=2e-5)
    np.testing.assert_allclose(tree["log_prior"]["mu"][0], norm.logpdf(MU, 0, 2), rtol=1e-5)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y)


def test_observations_that_share_a_summed_site_are_one_row():
    tree = tree_of(two_observations, Y, ("log_likelihood", "observed_data"))
    found = tree["log_likelihood"]["a+b"]
    want = [
        logsumexp(
            [np.log([0.7, 0.3])[k] + emission(Y, m, k) + emission(Y + 1, m, k) for k in (0, 1)], 0
        )
        for m in MU
    ]
    assert found.dims == ("chain", "draw", "rows")
    np.testing.assert_allclose(found[0], want, rtol=2e-5)


def test_a_chain_has_one_step_ahead_densities_and_no_likelihood_for_leave_one_out():
    tree = tree_of(chain, Y, ("log_likelihood", "log_predictive"))
    assert "log_likelihood" not in tree.children
    assert "log_predictive" in tree["posterior"].attrs["log_likelihood"]
    assert "leave-one-out cannot be made of it" in tree["log_predictive"].attrs["what"]
    found = tree["log_predictive"]["y"]
    assert found.dims == ("chain", "draw", "time")
    np.testing.assert_allclose(found[0], [forward(Y, m) for m in MU], rtol=1e-4)


def test_leaving_emissions_in_would_be_seen():
    # Smoothed instead of filtered: the total without step t is not the total up to t.
    want = np.array([forward(Y, m) for m in MU])
    other = np.array([forward(Y[::-1], m)[::-1] for m in MU])
    assert np.abs(want - other).max() > 0.1


@pytest.mark.slow
def test_several_chains_are_rows_and_their_steps_are_foretold():
    tree = tree_of(chains, PAIRS, ("log_likelihood", "log_predictive"))
    want = np.array([[forward(c, m, 0.5) for c in PAIRS.T] for m in MU])  # draws, rows, time
    found = tree["log_predictive"]["y"]
    assert found.dims == ("chain", "draw", "time", "rows")
    np.testing.assert_allclose(found[0], want.transpose(0, 2, 1), rtol=1e-4)
    of_rows = tree["log_likelihood"][
        "y_by_rows"
    ]  # of a whole series each: leaving one series out is sound
    assert of_rows.dims == ("chain", "draw", "rows")
    np.testing.assert_allclose(of_rows[0], want.sum(2), rtol=1e-4)


@pytest.mark.slow
def test_steps_foretold_are_not_made_unless_asked_for():
    tree = tree_of(chain, Y, None)
    assert "log_predictive" not in tree.children and "prior_predictive" in tree.children


def test_the_prior_of_a_program_with_sums_is_that_of_the_program():
    # Each draw its own: 1000 draws of sd 2; z of mean and of variance, false alarm 1.4e-5.
    program = ppl.eliminate(mixture, "k")
    tree = inference.to_arviz(
        {"mu": MU}, model=program, args=(Y,), key=KEY, groups=("prior",), num_samples=1000
    )
    mu = tree["prior"]["mu"].values[0]
    assert set(tree["prior"].data_vars) == {"mu"}
    assert abs(mu.mean()) < 4.5 * 2 / 1000**0.5
    assert abs(mu.var() / 4 - 1) < 4.5 * (2 / 1000) ** 0.5


def test_a_latent_site_in_the_sum_is_no_likelihood():
    def model(y):
        with ppl.plate("rows", y.shape[0]):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            mu = ppl.sample("mu", dist.Normal(2.0 * k, 1.0))
            ppl.sample("y", dist.Normal(mu + k, 1.0), obs=y)

    program = ppl.eliminate(model, "k")
    draws = {"mu": np.zeros((3, len(Y)))}
    tree = inference.to_arviz(draws, model=program, args=(Y,), groups=("log_likelihood",))
    assert "log_likelihood" not in tree.children
    assert "hold the densities of ['mu']" in tree["posterior"].attrs["log_likelihood"]


@pytest.mark.parametrize(
    ("model", "why"),
    [(mixture, r"\['y'\] are not one for each step"), (None, "sums no sites out")],
    ids=["rows", "nothing"],
)
def test_steps_foretold_need_a_chain(model, why):
    program = ppl.eliminate(mixture, "k") if model else lambda y: ppl.sample("mu", dist.Normal())
    with pytest.raises(ValueError, match="log_predictive.*hidden Markov chain.*" + why):
        inference.to_arviz({"mu": MU}, model=program, args=(Y,), groups=("log_predictive",))


def test_integrated_states_foretell_steps_and_have_no_likelihood_for_leave_one_out():
    def level(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))

        def step(z, y_t):
            z = ppl.sample("z", dist.Normal(z, 0.5))
            ppl.sample("y", dist.Normal(mu + z, 1.0), obs=y_t)
            return z, None

        ppl.scan(step, 0.0, y)

    tree = tree_of(level, Y, ("log_likelihood", "log_predictive", "prior"), sites="z")
    assert "log_likelihood" not in tree.children
    assert "log_predictive" in tree["posterior"].attrs["log_likelihood"]
    found = tree["log_predictive"]["y"]
    assert found.dims == ("chain", "draw", "time")
    want = []
    for mu in MU:
        mean, var = 0.0, 0.0
        row = []
        for y_t in Y:
            var = var + 0.25
            row.append(norm.logpdf(y_t, mu + mean, (var + 1) ** 0.5))
            gain = var / (var + 1)
            mean, var = mean + gain * (y_t - mu - mean), (1 - gain) * var
        want.append(row)
    np.testing.assert_allclose(found[0], want, rtol=1e-4)
    assert float(tree["prior"]["mu"].std()) > 1.0


@pytest.mark.slow(reason="a fit and its labels")
def test_labels_that_a_fit_sums_out_are_drawn_given_the_rest(key):
    """Share of label 1 in each row, averaged over the draws of mu, against Bayes' rule at these."""
    fit = inference.fit(mixture, args=(Y,), num_steps=200, progress=False, k_hat="skip")
    tree = inference.to_arviz(fit, key=key, num_samples=2000)
    mu, k = (tree.posterior[name].values[0] for name in ("mu", "k"))
    ones, zeros = (w * np.exp(emission(Y, mu[:, None], i)) for i, w in ((1, 0.3), (0, 0.7)))
    share = (ones / (ones + zeros)).mean(0)
    assert (np.abs(k.mean(0) - share) < 5 * np.sqrt(share * (1 - share) / 2000) + 1e-3).all()
    assert "rows" in tree.posterior["k"].dims


def test_rows_that_a_mask_leaves_out_are_no_rows_of_a_sum():
    """A sum over no observation is 0 up to rounding only."""
    seen = np.array([True, False, True, True])

    def masked(y, w):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with ppl.plate("rows", 4):
            k = ppl.sample("k", dist.Categorical(jnp.array([0.15, 0.85])))
            ppl.sample("y", dist.Normal(mu[k], 1.0).mask(seen), obs=y)
            ppl.sample("w", dist.Normal(mu[k], 2.0).mask(seen), obs=w)

    y, mu = np.array([0.0, -999.0, 1.0, 2.0]), np.array([[0.2, 1.0], [-1.0, 0.5]])
    tree = inference.to_arviz(
        {"mu": mu}, model=ppl.eliminate(masked, "k"), args=(y, y), groups=["log_likelihood", "observed_data"]
    )  # fmt: skip
    law = lambda k: sum(norm.logpdf(y[seen], mu[:, k, None], sd) for sd in (1.0, 2.0))
    want = np.logaddexp(np.log(0.15) + law(0), np.log(0.85) + law(1))
    (found,) = tree["log_likelihood"].data_vars.values()
    np.testing.assert_allclose(found.values[0], want, rtol=1e-5)
    np.testing.assert_array_equal(tree["observed_data"]["w"], y[seen])
