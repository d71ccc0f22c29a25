"""Flat priors without a total: posteriors that are proper are found, those that are not are refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoMultivariateNormal
from scipy.stats import t as student

from lapilli import inference, ppl

NUM, KEY = 12, jax.random.key(0)
X = np.random.default_rng(0).normal(size=(NUM, 2)).astype(np.float32)
Y = (X @ [1.0, 2.0] + 0.5 * np.random.default_rng(1).normal(size=NUM)).astype(np.float32)
REAL, POSITIVE = dist.constraints.real, dist.constraints.positive


def flat(x, y=None):
    """Flat coefficients, and 1 / s as the density of s: the coefficients' posterior is Student's."""
    b = ppl.sample("b", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    s = ppl.sample("s", dist.ImproperUniform(POSITIVE, (), ()))
    ppl.factor("scale", -jnp.log(s))
    with ppl.plate("rows", NUM):
        ppl.sample("y", dist.Normal(x @ b, s), obs=y)


def truth():
    """Means and standard deviations of the coefficients: Student's with NUM - 2 degrees of freedom."""
    x = X.astype(float)
    mean, rest = np.linalg.lstsq(x, Y.astype(float))[:2]
    scale = np.sqrt(rest / (NUM - 2) * np.diag(np.linalg.inv(x.T @ x)))
    return mean, student(NUM - 2, scale=scale).std()


def assert_right(b, weights=None):
    """Means within 0.2 deviations, and deviations within 20 %: a thousand draws are exact to 0.03 and 3 %."""
    mean, sd = truth()
    b = np.asarray(b, float)
    w = np.full(len(b), 1 / len(b)) if weights is None else weights
    assert (np.abs(w @ b - mean) < 0.2 * sd).all()
    np.testing.assert_allclose(np.sqrt(w @ (b - mean) ** 2), sd, rtol=0.2)


@pytest.mark.slow(reason="a tempered run")
def test_tempering_from_draws_finds_a_students_posterior(key):
    rng = np.random.default_rng(3)
    start = {"b": rng.normal(1.0, 0.7, (200, 2)), "s": np.exp(rng.normal(0.0, 0.5, 200))}
    result = inference.tempered_smc(flat, key, X, Y, start=start)
    assert_right(result.particles["b"], np.exp(np.asarray(result.log_weights, float)))
    assert result.improper == ("b", "s") and not result.problems
    assert "log_evidence  not normalised" in repr(result)


@pytest.mark.slow  # a fit and two runs
def test_a_bound_is_fitted_and_a_fit_is_a_start():
    bound = inference.elbo(ppl.model(flat), AutoMultivariateNormal(flat))
    fit = inference.fit(bound, args=(X, Y), key=KEY, num_steps=3000, progress=False, k_hat="skip")
    mean, sd = truth()
    assert (np.abs(fit.posterior(KEY, 1000).choices["b"].mean(0) - mean) < 0.5 * sd).all()
    assert "evidence   not normalised" in repr(fit)
    result = inference.tempered_smc(flat, KEY, X, Y, start=fit, num_particles=400)
    assert (np.abs(np.asarray(result.particles["b"]).mean(0) - mean) < 0.5 * sd).all()
    new = fit.predict(KEY, X, num_samples=5)  # predictions of a posterior have draws
    assert new["y"].shape == (5, NUM)


@pytest.mark.slow  # chains
def test_nuts_and_fit_with_nothing_chosen_take_improper_sites():
    draws = inference.nuts(flat, args=(X, Y), key=KEY, progress=False)
    assert_right(draws.choices["b"])
    fit = inference.fit(flat, args=(X, Y), key=KEY, progress=False, k_hat="skip")
    mean, sd = truth()
    assert (np.abs(fit.posterior(KEY, 1000).choices["b"].mean(0) - mean) < 0.5 * sd).all()


def unread(x, y):
    top = ppl.sample("top", dist.ImproperUniform(REAL, (), ()))
    ppl.sample("below", dist.Normal(top, 1.0))
    ppl.sample(
        "y",
        dist.Normal(ppl.sample("b", dist.Normal(0.0, 1.0)), 1.0).expand([NUM]).to_event(1),
        obs=y,
    )


def read(x, y):
    top = ppl.sample("top", dist.ImproperUniform(REAL, (), ()))
    below = ppl.sample("below", dist.Normal(top, 1.0))
    ppl.sample("y", dist.Normal(below, 1.0).expand([NUM]).to_event(1), obs=y)


X0 = X * np.array([1.0, 0.0], np.float32)
IMPROPER = {
    "no data": (unread, X, "site 'top' has an improper law, and no observation or factor depends"),
    "a column of zeros": (flat, X0, r"does not change along 1 of its 2 elements \(at \[\[1\]\]\)"),
}


@pytest.mark.parametrize("method", ["fit", "infer", "tempered_smc"])
@pytest.mark.parametrize("case", IMPROPER)
def test_a_posterior_without_a_total_is_refused_by_name(case, method):
    model, x, told = IMPROPER[case]
    with pytest.raises(ValueError, match=f"{method}: .*{told}"):
        if method == "tempered_smc":
            start: dict[str, np.ndarray] = {
                n: np.arange(1.0, 21.0) for n in ("top", "below", "b", "s")
            }
            start["b"] = np.ones((20, 2)) if model is flat else start["b"]
            inference.tempered_smc(model, KEY, x, Y, start=start)
        else:
            getattr(inference, method)(model, args=(x, Y), key=KEY)


def test_evidence_under_a_flat_prior_is_said_to_have_no_constant():
    from lapilli.inference.inputs._runs import evidence_of

    assert evidence_of(ppl.model(flat), (X, Y)) == (
        "not normalised: up to the constant of its improper priors (b, s)"
    )
    proper = lambda y: ppl.sample("y", dist.Normal(ppl.sample("b", dist.Normal(0, 1)), 1), obs=y)
    assert evidence_of(ppl.as_program(proper), (Y,)) is None is evidence_of(ppl.model(flat), None)


def test_data_may_speak_of_it_through_another_site():
    from lapilli.inference.inputs._improper import check_proper
    from lapilli.inference.inputs._runs import abstract_run

    program = ppl.model(read)
    check_proper("fit", program, (X, Y), abstract_run(program, (X, Y)).trace)


def test_what_needs_draws_of_a_flat_prior_is_refused():
    told = "has a density and no sampler, so that the program cannot be simulated. Give"
    with pytest.raises(NotImplementedError, match=f"Site 'b': ImproperUniform {told}"):
        ppl.model(flat).simulate(KEY, X)
    with pytest.raises(ValueError, match=r"sites \['b', 's'\] have an improper law.*Give start="):
        inference.tempered_smc(flat, KEY, X, Y)
    with pytest.raises(NotImplementedError, match=told):
        jax.jit(ppl.model(flat).simulate)(KEY, X)  # a traced key is no abstract run


STARTS = {
    "missing": ({"b": np.ones((20, 2))}, "start has no draws of the sites \\['s'\\]"),
    "few": ({"b": np.ones((5, 2)), "s": np.ones(5)}, "start has \\[5\\] draws.*10 or more"),
    "uneven": ({"b": np.ones((20, 2)), "s": np.ones(30)}, "start has \\[20, 30\\] draws"),
    "edge": ({"b": np.ones((20, 2)), "s": np.zeros(20)}, "draws of the sites \\['s'\\] that are not"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_is_none_is_refused(name):
    start, told = STARTS[name]
    with pytest.raises(ValueError, match=f"tempered_smc: .*{told}"):
        inference.tempered_smc(flat, KEY, X, Y, start=start)


def test_a_start_stands_beside_no_other_path():
    with pytest.raises(ValueError, match="data_axis='rows' asks for another path. Leave one"):
        inference.tempered_smc(flat, KEY, X, Y, start=STARTS["few"][0], data_axis="rows")
