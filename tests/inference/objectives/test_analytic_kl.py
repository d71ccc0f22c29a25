"""elbo(kl="analytic") against the sampled bound and against closed forms; what it leaves to sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions.kl import kl_divergence

from _stats import assert_same_mean
from lapilli import inference, ppl

Y = jnp.array([0.5, -1.0, 2.0, 0.3])


def model(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
    with ppl.plate("rows", y.shape[0]):
        z = ppl.sample("z", dist.Normal(mu, 1.0))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)


def guide(y):
    mu = ppl.sample("mu", dist.Normal(ppl.param("m", 0.3), jnp.exp(ppl.param("s", -1.0))))
    with ppl.plate("rows", y.shape[0]):
        ppl.sample("z", dist.Normal(y + ppl.param("a", 0.1) * mu, jnp.exp(ppl.param("t", -0.5))))


def reversed_guide(y):
    with ppl.plate("rows", y.shape[0]):
        z = ppl.sample("z", dist.Normal(y, jnp.exp(ppl.param("t", -0.5))))
    ppl.sample("mu", dist.Normal(ppl.param("a", 0.5) * z.sum(), jnp.exp(ppl.param("s", -1.0))))


def estimates(bound, key, rows, num=4000):
    bound = bound.with_plate_sizes({"rows": rows})
    params = bound.init(jax.random.key(0), Y)
    values, grads = jax.jit(jax.vmap(lambda k: bound.value_and_grad(params, k, Y)))(
        jax.random.split(key, num)
    )
    return np.column_stack([values, *jax.tree.leaves(grads)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guide", "rows"),
    # A guide that draws the global site given all rows takes no subsample of them.
    [pytest.param(guide, 40, marks=pytest.mark.slow), (reversed_guide, 4)],
    ids=["in_order", "reversed"],
)  # one is enough
def test_value_and_gradient_have_the_mean_of_the_sampled_bound(guide, rows):
    """4,000 estimates each, |z| < 4.5. A divergence taken out of order (mu's law is given z) is off by tens of errors."""
    analytic = estimates(inference.elbo(model, guide, kl="analytic"), jax.random.key(1), rows)
    sampled = estimates(inference.elbo(model, guide), jax.random.key(2), rows)
    assert_same_mean(analytic, sampled)


def test_a_guide_equal_to_the_prior_costs_nothing_and_has_no_noise_in_its_divergence():
    def prior(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("z", dist.Normal(mu, 1.0))

    bound = inference.elbo(ppl.block(model, ["y"]), prior, kl="analytic")
    for seed in range(3):
        assert bound.value({}, jax.random.key(seed), Y) == 0.0


def test_vectors_against_independent_normals_use_the_closed_form():
    tril = jnp.array([[1.0, 0.0], [0.4, 0.7]])
    p = lambda: ppl.sample(
        "x", dist.Normal(jnp.array([1.0, -1.0]), jnp.array([2.0, 0.5])).to_event(1)
    )
    q = lambda: ppl.sample("x", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))
    expected = -kl_divergence(
        dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril),
        dist.MultivariateNormal(jnp.array([1.0, -1.0]), scale_tril=jnp.diag(jnp.array([2.0, 0.5]))),
    )
    value = inference.elbo(p, q, kl="analytic").value({}, jax.random.key(0))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.slow
def test_sites_in_scan_and_masked_sites_are_sampled():
    def chain():
        ppl.sample("u", dist.Normal(0.0, 1.0).mask(jnp.array(True)))
        ppl.scan(lambda c, _: (ppl.sample("x", dist.Normal(c, 1.0)), None), 0.0, None, length=3)

    def approximation():
        ppl.sample("u", dist.Normal(0.2, 1.0).mask(jnp.array(True)))
        ppl.scan(lambda c, _: (ppl.sample("x", dist.Normal(c, 0.8)), None), 0.0, None, length=3)

    one, two = (inference.elbo(chain, approximation, kl=kl) for kl in ("analytic", "sampled"))
    key = jax.random.key(0)
    np.testing.assert_allclose(one.value({}, key), two.value({}, key), rtol=1e-6)


def test_options_are_checked():
    with pytest.raises(
        ValueError, match="kl must be 'sampled', 'analytic' or a mapping, .*got 'exact'"
    ):
        inference.elbo(model, guide, kl="exact")
    with pytest.raises(ValueError, match="kl must be 'sampled' or 'analytic', got"):
        inference.elbo(model, guide, kl={"z": "exact"})
    with pytest.raises(ValueError, match="'stl' leaves a score out of sampled log-ratios"):
        inference.elbo(model, guide, gradient="stl", kl="analytic")
    marginal = ppl.marginal(guide, keep=["mu"])
    with pytest.raises(TypeError, match="no law to compare"):
        inference.elbo(model, marginal, kl="analytic").init(jax.random.key(0), Y)


# Plates of infinite size.


@pytest.mark.slow_for("analytic")
@pytest.mark.parametrize("kl", [pytest.param("sampled", marks=pytest.mark.slow), "analytic"])
def test_infinite_plate_is_the_limit_of_the_bound_per_row(kl):
    bound = inference.elbo(model, guide, kl=kl)
    params = bound.init(jax.random.key(0), Y)
    key = jax.random.key(1)
    value, grads = bound.with_plate_sizes({"rows": np.inf}).value_and_grad(params, key, Y)
    large = bound.with_plate_sizes({"rows": 10**7})
    value_n, grads_n = jax.tree.map(lambda x: x / 10**7, large.value_and_grad(params, key, Y))
    np.testing.assert_allclose(value, value_n, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_n), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_subsampled_bound_is_unbiased_over_all_subsets():
    """N / B times the local terms of a subset, averaged over all subsets, is the full bound, without noise."""

    def rows(y):
        ppl.factor("global", 1.7)
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(0.2, 0.5), obs=y)

    y = jnp.asarray(np.random.default_rng(0).normal(size=7))
    bound = inference.elbo(rows, lambda y: None)
    full = bound.value({}, jax.random.key(0), y)
    part = jax.jit(lambda y: bound.with_plate_sizes({"rows": 7}).value({}, jax.random.key(0), y))
    values = [part(y[np.array(rows)]) for rows in itertools.combinations(range(7), 3)]
    np.testing.assert_allclose(np.mean(values), full, rtol=1e-5)


@pytest.mark.slow  # compiles two fits
def test_fit_takes_an_infinite_plate_from_a_pool_and_from_a_stream():
    pool = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, size=64))

    def rows(y):
        loc = ppl.param("loc", 0.0)
        ppl.factor("prior", -100.0 * (loc - 5.0) ** 2)  # counts zero per row
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(loc, 1.0), obs=y)

    bound = inference.elbo(rows, lambda y: None)
    options = {"num_steps": 300, "key": jax.random.key(0), "progress": False, "average": 0.98}
    endless = bound.with_plate_sizes({"rows": np.inf})
    one = inference.fit(endless, optax.adam(0.05), (pool,), subsample={"rows": 16}, **options)
    stream = [(part,) for part in pool.reshape(4, 16)]
    two = inference.fit(bound, optax.adam(0.05), stream, plate_sizes={"rows": np.inf}, **options)
    for fit in (one, two):
        np.testing.assert_allclose(fit.params["loc"], pool.mean(), atol=0.1)
        assert abs(fit.history["value"][-1]) < 3  # nats per row


def test_an_infinite_plate_statement_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="Plate 'rows': .*no density.*plate_sizes"):
        ppl.plate("rows", np.inf)
    with pytest.raises(ValueError, match=r"\['rows', 'columns'\] are all given an infinite size"):
        ppl.rescale_plates(model, {"rows": np.inf, "columns": np.inf})


@pytest.mark.parametrize("mask", [[True, False], [False, False]])
def test_a_masked_prior_beside_a_multivariate_guide_is_left_to_sampling(mask):
    """Its log-ratio lacks what the mask leaves out, and is no divergence: both bounds are the sampled one, draw by draw."""

    def masked():
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([2]).mask(np.array(mask)).to_event(1))
        ppl.sample("x", dist.Normal(z, 1.0).to_event(1), obs=jnp.zeros(2))

    def joint():
        ppl.sample("z", dist.MultivariateNormal(jnp.array([1.0, 2.0]), jnp.eye(2)))

    found = [
        inference.elbo(masked, joint, kl=kl).value({}, jax.random.key(0))
        for kl in ("sampled", "analytic")
    ]
    assert found[0] == found[1]
