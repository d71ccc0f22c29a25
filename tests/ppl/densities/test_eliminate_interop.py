"""Eliminated programs in the hands of others: NumPyro's starting points, guides, `Predictive`, and a second elimination."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _brute_force import check
from numpyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
)
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.util import initialize_model

from lapilli import inference, ppl

KEY = jax.random.key(0)
X = jnp.array([0.1, 2.2, 1.9])
STARTS = {"median": init_to_median, "mean": init_to_mean, "sample": init_to_sample, "uniform": init_to_uniform}  # fmt: skip


def mixture(x):
    p = ppl.sample("p", dist.Beta(2.0, 3.0))
    with ppl.plate("rows", x.shape[0]):
        b = ppl.sample("b", dist.Bernoulli(p))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


def log_posterior(p):
    rows = [p * np.exp(-0.5 * (x - 2) ** 2) + (1 - p) * np.exp(-0.5 * x**2) for x in np.asarray(X)]
    return np.log(p) + 2 * np.log1p(-p) + sum(map(np.log, rows))


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_a_point_estimate_finds_the_mode_of_the_marginal_from_every_start(start):
    """MAP under AutoDelta: the largest p of the marginal posterior on a grid of step 1e-5."""
    eliminated = ppl.eliminate(mixture, "b")
    guide = AutoDelta(eliminated, init_loc_fn=STARTS[start])
    svi = SVI(eliminated, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    params = svi.run(KEY, 800, X, progress_bar=False).params
    p = np.linspace(0.0, 1.0, 100_001)[1:-1]
    np.testing.assert_allclose(guide.median(params)["p"], p[log_posterior(p).argmax()], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_mcmc_starts_inside_of_the_support(start):
    info = initialize_model(
        KEY, ppl.eliminate(mixture, "b"), init_strategy=STARTS[start], model_args=(X,)
    )
    assert np.isfinite(info.param_info.potential_energy)


def improper_by_a_mask(x):
    a = ppl.sample("a", dist.Normal(0.0, 1.0).mask(False))
    with ppl.plate("rows", x.shape[0]):
        b = ppl.sample("b", dist.Bernoulli(0.4))
        ppl.sample("x", dist.Normal(a + b, 1.0), obs=x)


def improper(x):
    a = ppl.sample("a", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with ppl.plate("rows", x.shape[0]):
        b = ppl.sample("b", dist.Bernoulli(0.4))
        ppl.sample("x", dist.Normal(a + b, 1.0), obs=x)


@pytest.mark.slow
def test_an_improper_prior_stands_beside_eliminated_sites():
    eliminated = ppl.eliminate(improper, "b")
    same, _ = check(improper_by_a_mask, ["b"], {"a": jnp.array(0.7)}, (X,))
    want = same.log_density({"a": 0.7}, X)
    np.testing.assert_allclose(eliminated.log_density({"a": 0.7}, X), want, rtol=1e-6)
    info = initialize_model(KEY, eliminated, model_args=(X,))
    assert np.isfinite(info.param_info.potential_energy)


@pytest.mark.slow  # MCMC
def test_nuts_runs_beside_an_improper_prior():
    mcmc = MCMC(
        NUTS(ppl.eliminate(improper, "b")), num_warmup=50, num_samples=50, progress_bar=False
    )
    mcmc.run(KEY, X)
    assert (mcmc.get_samples()["a"] > 0).all()


def predicted(x=None):
    p = ppl.sample("p", dist.Beta(2.0, 3.0))
    with ppl.plate("rows", 3):
        b = ppl.sample("b", dist.Bernoulli(p))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


def test_predictive_draws_what_the_program_predicts():
    """E[x] = 2 p, standard error below 0.03 with 2000 draws of three rows."""
    draws = Predictive(ppl.eliminate(predicted, "b"), {"p": jnp.full(2000, 0.7)})(KEY)
    assert draws["x"].shape == draws["b"].shape == (2000, 3)
    assert abs(float(draws["x"].mean()) - 1.4) < 4.5 * 1.4 / np.sqrt(6000)


def three(x):
    a = ppl.sample("b_first", dist.Bernoulli(0.3))
    b = ppl.sample("b", dist.Bernoulli(logits=1.0 * a))
    c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * b))
    ppl.sample("x", dist.Normal(a + b - 1.0 * c, 1.0), obs=x)


@pytest.mark.slow
def test_two_eliminations_are_one():
    once = ppl.eliminate(three, ["c", "b", "b_first"])
    twice = ppl.eliminate(ppl.eliminate(three, "c"), ["b", "b_first"])
    np.testing.assert_allclose(twice.log_density({}, 0.7), once.log_density({}, 0.7), rtol=1e-6)
    assert set(twice.posterior_probs({}, 0.7)) == {"b", "b_first", "c"}
    given = ppl.eliminate(ppl.condition(ppl.eliminate(three, "c"), {"b": 1}), "b_first")
    check(ppl.condition(three, {"b": 1}), ["b_first", "c"], {}, (0.7,))
    want = ppl.eliminate(ppl.condition(three, {"b": 1}), ["b_first", "c"]).log_density({}, 0.7)
    np.testing.assert_allclose(given.log_density({}, 0.7), want, rtol=1e-6)
    with pytest.raises(ValueError, match=r"\['c'\] are summed out of eliminate\[c\] already.*left"):
        ppl.eliminate(ppl.eliminate(three, "c"), ["c", "b"])


def calls_an_eliminated_program(x):
    ppl.eliminate(three, "c")(x)


def test_a_site_inside_of_an_eliminated_program_is_refused_with_the_remedy():
    program = ppl.eliminate(calls_an_eliminated_program, "b")
    match = r"Site 'b' stands in eliminate\[c\].*Sum all sites out at once.*ppl.eliminate\("
    guide = lambda x: ppl.sample("b_first", dist.Bernoulli(0.3))
    objective = inference.elbo(program, guide, strategies={"b_first": "enum"})
    for run in (
        lambda: program.log_density({"b_first": 1}, 0.7),
        lambda: jax.jit(lambda x: program.log_density({"b_first": 1}, x))(0.7),
        lambda: objective.value({}, KEY, 0.7),
    ):
        with pytest.raises(ValueError, match=match):
            run()


def test_a_site_to_be_enumerated_by_numpyro_is_refused_with_the_remedy():
    def program(x):
        with ppl.plate("rows", 3):
            b = numpyro.sample("b", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)

    objective = ppl.expectation(lambda _: ppl.draw(ppl.model(program), X).log_density)
    for run in (objective.value, jax.jit(objective.value)):
        with pytest.raises(
            ValueError, match=r"Site 'b'.*no strategy.*ppl.eliminate\(program, 'b'\)"
        ):
            run({}, KEY)
