"""Hooks for ArviZ's loo_moment_match: densities against closed forms, and leave-one-out against refits by quadrature."""

import arviz
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from lapilli import inference, ppl

Y = np.r_[np.random.default_rng(0).normal(size=12), 6.0].astype(np.float32)  # the last is odd
LOW, HIGH = 0.5, 4.0


def model(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
    sd = ppl.sample("sd", dist.Uniform(LOW, HIGH))
    with ppl.plate("rows", y.shape[0]):
        k = ppl.sample("k", dist.Bernoulli(0.02))
        ppl.sample("y", dist.Normal(mu + k, sd), obs=y)


PROGRAM = ppl.eliminate(model, "k")


def rows(y, mu, sd):
    """Log p(y_i | mu, sd), rows first."""
    y = np.reshape(y, (-1, *(1,) * np.ndim(mu)))
    one, two = np.log(0.98) + norm.logpdf(y, mu, sd), np.log(0.02) + norm.logpdf(y, mu + 1, sd)
    return np.logaddexp(one, two)


def tree_of(mu, sd):
    draws = {"mu": mu, "sd": sd}
    return inference.to_arviz(
        draws, model=PROGRAM, args=(Y,), groups=("log_likelihood", "observed_data")
    )


@pytest.mark.slow
def test_densities_are_those_of_unconstrained_draws():
    mu, sd = np.array([0.3, -1.0, 2.0]), np.array([0.7, 1.5, 3.9])
    hooks = inference.moment_matching(tree_of(mu, sd), PROGRAM, (Y,))
    assert list(hooks.upars.coords["unconstrained"].values) == ["mu[]", "sd[]"]
    t = (sd - LOW) / (HIGH - LOW)
    np.testing.assert_allclose(hooks.upars[0], np.stack([mu, np.log(t / (1 - t))], 1), rtol=1e-5)
    # The density of the logit of a uniform number is t (1 - t).
    want = norm.logpdf(mu, 0, 2) + np.log(t * (1 - t)) + rows(Y, mu, sd).sum(0)
    found = hooks.log_prob_upars_fn(hooks.upars)
    assert found.dims == ("chain", "draw")
    np.testing.assert_allclose(found[0], want, rtol=1e-5)
    for i in (0, 12):
        np.testing.assert_allclose(
            hooks.log_lik_i_upars_fn(hooks.upars, i)[0], rows(Y, mu, sd)[i], rtol=1e-5
        )


@pytest.mark.slow  # ArviZ's iterations
def test_a_repaired_leave_one_out_is_nearer_to_the_exact_one():
    # The posterior on a grid: draws are exact, and so is what is left when a row is taken out.
    grid = np.meshgrid(np.linspace(-3, 5, 500), np.linspace(LOW, HIGH, 501)[1:-1], indexing="ij")
    mu, sd = (g.ravel() for g in grid)
    log_lik = rows(Y, mu, sd)
    total = norm.logpdf(mu, 0, 2) + log_lik.sum(0)
    exact = np.array([logsumexp(total) - logsumexp(total - one) for one in log_lik])
    probs = np.exp(total - logsumexp(total))
    rng = np.random.default_rng(1)
    drawn = rng.choice(len(mu), 2000, p=probs / probs.sum())
    step = np.array([8 / 499, (HIGH - LOW) / 500])
    jitter = rng.uniform(-0.49, 0.49, (2, 2000)) * step[:, None]
    tree = tree_of(mu[drawn] + jitter[0], np.clip(sd[drawn] + jitter[1], LOW + 1e-4, HIGH - 1e-4))
    with pytest.warns(UserWarning, match="shape parameter"):
        loo = arviz.loo(tree, pointwise=True, reff=1.0)
    hooks = inference.moment_matching(tree, PROGRAM, (Y,))
    matched = arviz.loo_moment_match(tree, loo, pointwise=True, reff=1.0, **hooks._asdict())
    before, after = (np.abs(np.asarray(x.elpd_i) - exact)[-1] for x in (loo, matched))
    assert np.asarray(loo.pareto_k)[-1] > 0.7
    assert after < 0.5 * before


@pytest.mark.slow
def test_what_cannot_be_moved_is_refused():
    draws = {"mu": np.zeros(3), "sd": np.ones(3), "k": np.zeros((3, len(Y)), int)}
    tree = inference.to_arviz(draws, model=model, args=(Y,), groups=("log_likelihood",))
    with pytest.raises(ValueError, match=r"sites \['k'\] are discrete.*ppl.eliminate"):
        inference.moment_matching(tree, model, (Y,))

    def moving(y):
        top = ppl.sample("top", dist.HalfNormal(1.0))
        ppl.sample("mu", dist.Uniform(0.0, top))
        ppl.sample("y", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1), obs=y)

    tree = inference.to_arviz({"top": np.ones(3), "mu": 0.5 * np.ones(3)}, model=moving, args=(Y,))
    with pytest.raises(ValueError, match="moment_matching: the support of site 'mu' depends"):
        inference.moment_matching(tree, moving, (Y,))
    with pytest.raises(ValueError, match=r"var_name='z', and the observed sites.*\['y'\]"):
        inference.moment_matching(tree_of(np.zeros(3), np.ones(3)), PROGRAM, (Y,), var_name="z")


def test_rows_are_counted_without_those_that_a_mask_leaves_out():
    """The rows of the tree and of leave-one-out are those that count."""
    y, seen = np.r_[-999.0, Y[:3], -999.0, 6.0], np.array([0, 1, 1, 1, 0, 1], bool)

    def masked(y, seen):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(mu, 1.0).mask(seen), obs=y)

    mu = np.array([0.0, 1.0])
    tree = inference.to_arviz({"mu": mu}, model=masked, args=(y, seen), groups=["log_likelihood"])
    hooks = inference.moment_matching(tree, masked, (y, seen))
    for i, row in enumerate(y[seen]):
        want = norm.logpdf(row, mu, 1.0)
        np.testing.assert_allclose(hooks.log_lik_i_upars_fn(hooks.upars, i)[0], want, rtol=1e-5)
        np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0, :, i], want, rtol=1e-5)


def scoped(x, y):
    slopes = ppl.sample("a/slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("b/y", dist.Normal(x @ slopes, 1.0), obs=y)


X = np.random.default_rng(1).normal(size=(13, 2)).astype(np.float32)
SLOPES = {"a/slopes": np.array([[0.3, -2.0], [1.0, 0.5]])}


def scoped_tree():
    return inference.to_arviz(SLOPES, model=scoped, args=(X, Y), groups=("log_likelihood",))


@pytest.mark.parametrize("given", [None, "b/y", "b.y"])
def test_names_with_scopes_are_those_of_the_tree(given):
    """The program's names were looked for in the tree, which has points in place of slashes."""
    tree = scoped_tree()
    hooks = inference.moment_matching(tree, scoped, (X, Y), var_name=given)
    assert hooks.var_name == "b.y"
    found = hooks.log_lik_i_upars_fn(hooks.upars, 5)
    np.testing.assert_allclose(found, tree["log_likelihood"]["b.y"][..., 5], rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[:, ::-1], Y), "other log-probs.*at element [0-9]+ of 13.*order"),
        ((X[:5], Y[:5]), "of 5 elements in place of 13"),
    ],
    ids=["columns", "rows"],
)
def test_arguments_that_are_not_the_trees_are_refused(args, message):
    """Columns in another order gave other rows' densities, in silence."""
    with pytest.raises(ValueError, match=message):
        inference.moment_matching(scoped_tree(), scoped, args)


def test_missing_cells_are_refused_with_what_leaves_them_out():
    seen = np.arange(13) > 2

    def gaps(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    draws = {"mu": np.zeros(4), "y_unobserved": np.zeros((4, 13))}
    tree = inference.to_arviz(draws, model=gaps, args=(Y,), groups=("log_likelihood",))
    with pytest.raises(ValueError, match=r"\['y_unobserved'\] are missing cells.*law.mask"):
        inference.moment_matching(tree, gaps, (Y,))
