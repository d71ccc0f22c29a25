"""Sums of objectives: what their value and gradient are, which are refused, and that `fit` takes them like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

DATA = (jnp.array([0.3, -0.2, 1.1, 0.4]),)
KEY = jax.random.key(0)


@ppl.model
def model(x):
    mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mu, 1.0), obs=x)


def guide(x):
    ppl.sample("mu", dist.Normal(ppl.param("loc", 0.5), jnp.exp(ppl.param("log_scale", 0.0))))


def wide(x):
    ppl.sample("mu", dist.Normal(ppl.param("loc", -1.0), ppl.param("width", 3.0)))


BOUND = inference.elbo(model, guide)
FORWARD = inference.forward_kl(model, guide, num_particles=10)


class Pull(inference.AbstractObjective):
    """(loc - 3)^2, smaller is better."""

    name, direction, model, guide = "pull", "min", None, None

    def init(self, key, *args):
        return ppl.Params({"loc": 0.5})

    def step(self, params, state, key, *args):
        value, grads = jax.value_and_grad(lambda p: (p["loc"] - 3.0) ** 2)(params)
        return value, grads, state


@pytest.mark.parametrize(
    ("made", "factors", "name", "direction"),
    [
        (BOUND - 0.5 * FORWARD, (1.0, -0.5), "elbo - 0.5 forward_kl", "max"),
        (np.float64(2.0) * BOUND - FORWARD / 4, (2.0, -0.25), "2 elbo - 0.25 forward_kl", "max"),
        (-(BOUND - FORWARD), (-1.0, 1.0), "-elbo + forward_kl", "min"),
    ],
)
def test_value_and_gradient_are_sums_of_the_terms(made, factors, name, direction):
    assert (made.name, made.direction) == (name, direction)
    params = made.init(KEY, *DATA)
    keys = jax.random.split(KEY, 2)
    parts = [
        L.value_and_grad(params, k, *DATA) for L, k in zip((BOUND, FORWARD), keys, strict=True)
    ]
    value, grads = made.value_and_grad(params, KEY, *DATA)
    np.testing.assert_allclose(
        value, sum(a * v for a, (v, _) in zip(factors, parts, strict=True)), rtol=1e-6
    )
    for n in params:
        wanted = sum(a * g[n] for a, (_, g) in zip(factors, parts, strict=True))
        np.testing.assert_allclose(grads[n], wanted, rtol=1e-5)
    assert made.model is BOUND.model and made.guide is not None


def test_the_plan_of_a_sum_shows_each_term_and_says_which_is_biased():
    made = BOUND - 0.5 * FORWARD
    plan = made.plan(made.init(KEY, *DATA), *DATA)
    assert [(a, name) for a, name, _ in plan.terms] == [(1.0, "elbo"), (-0.5, "forward_kl")]
    first, second = str(plan).split("\n\n")
    assert first.startswith("1 x elbo\n") and "reparam" in first and "biased" not in first
    assert second.startswith(
        "-0.5 x forward_kl (biased: of order 1/K, weights are self-normalised)"
    )
    assert "forward_kl (biased" in repr(plan) and plan._repr_html_().count("<table>") == 3
    pulled = (BOUND - Pull()).plan(made.init(KEY, *DATA), *DATA)
    assert "-1 x pull (no plan: its gradient is taken at its word)" in str(pulled)


def test_what_each_term_refuses_the_plan_of_the_sum_refuses():
    def jumping(x):
        mu = ppl.sample("mu", dist.Normal(0.0, 2.0))
        ppl.sample("x", dist.Normal(jnp.where(mu > 0, 1.0, -1.0), 1.0), obs=x[0])

    made = BOUND + inference.elbo(jumping, guide)
    with pytest.raises(ValueError, match="jump"):
        made.plan(made.init(KEY, *DATA), *DATA)


def test_fixed_draws_look_at_every_term():
    score = inference.elbo(model, guide, strategies={"mu": "reinforce"})
    with pytest.raises(ValueError, match="site 'mu' has the strategy 'reinforce'"):
        inference.fitting.fit_fixed_draws(BOUND + score, DATA, key=KEY)


def test_a_sum_of_two_bounds_ends_where_its_parts_agree():
    """Both are best at the posterior, Normal(sum x / 4.25, 1 / 4.25)."""
    made = sum([BOUND, -0.5 * FORWARD])
    fit = inference.fit(
        made, optax.adam(0.02), DATA, num_steps=2000, key=KEY, average="polyak", progress=False
    )
    assert fit.model is not None and fit.label == "elbo - 0.5 forward_kl"
    assert abs(float(fit.params["loc"]) - 1.6 / 4.25) < 0.05
    assert abs(float(jnp.exp(fit.params["log_scale"])) - 4.25**-0.5) < 0.05


def test_terms_may_have_programs_and_classes_of_their_own():
    made = BOUND - 3 * Pull() + inference.elbo(model, wide)
    params = made.init(KEY, *DATA)
    assert sorted(params) == ["loc", "log_scale", "width"]
    assert params["loc"] == 0.5  # of the first term that has it
    assert made.guide is None and made.model is BOUND.model
    assert float(made.grad(params, KEY, *DATA)["loc"]) != 0.0
    report = made.site_report(params, KEY, *DATA)
    assert "term 1, elbo: guide.mu" in report and "term 3, elbo: model.x" in report


def test_minibatches_scale_each_term():
    other = inference.elbo(model, wide)
    made = BOUND + 0.5 * other
    twice = made.with_plate_sizes({"rows": 8})
    params = made.init(KEY, *DATA)
    keys = jax.random.split(KEY, 2)
    parts = [
        L.with_plate_sizes({"rows": 8}).value(params, k, *DATA)
        for L, k in zip((BOUND, other), keys, strict=True)
    ]
    np.testing.assert_allclose(
        twice.value(params, KEY, *DATA), parts[0] + 0.5 * parts[1], rtol=1e-6
    )
    assert made.plate_sizes(*DATA) == {"rows": 4}


def test_a_saved_sum_is_told_from_another(tmp_path):
    made = BOUND - 0.5 * FORWARD
    fit = inference.fit(made, optax.adam(0.1), DATA, num_steps=3, key=KEY, progress=False)
    fit.save(tmp_path / "fit.npz")
    loaded = inference.Fit.load(tmp_path / "fit.npz", BOUND - 0.5 * FORWARD)
    assert loaded.params["loc"] == fit.params["loc"]
    with pytest.raises(ValueError, match="elbo - 0.5 forward_kl in the file"):
        inference.Fit.load(tmp_path / "fit.npz", BOUND - 0.25 * FORWARD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BOUND + FORWARD, "some gain by a rise of the sum.*Subtract"),
        (lambda: BOUND * 0, "multiplied by 0.0.*Leave the term out"),
        (lambda: float("nan") * BOUND, "multiplied by nan"),
        (lambda: BOUND * True, "got bool. Pass a float"),
        (lambda: BOUND * BOUND, "got Objective. Pass a float"),
        (lambda: BOUND + 1.0, "1.0 is float. A number that does not depend on parameters"),
        (lambda: jax.jit(lambda a: (a * BOUND).terms[0][0])(2.0), "known before the steps"),
    ],
)  # fmt: skip
def test_what_is_no_sum_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_parameters_of_one_name_have_one_shape():
    def other(x):
        ppl.sample("mu", dist.Normal(ppl.param("loc", jnp.zeros(2)).sum(), 1.0))

    with pytest.raises(ValueError, match=r"parameter 'loc' has shapes \(\) in one part and \(2,\)"):
        (BOUND + inference.elbo(model, other)).init(KEY, *DATA)
