"""Learned ratios against those of normal laws; their evidence; what has none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.simulators import _ratio, reference_table

KEY = jax.random.key(0)
RHO = 0.8


def pair(x):
    """Standard normal both, correlation 0.8: mutual information -log(1 - rho^2) / 2 = 0.5108 nats."""
    theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(RHO * theta, (1 - RHO**2) ** 0.5), obs=x)


def log_ratio_of_pair(theta, x):
    joint = dist.Normal(RHO * theta, (1 - RHO**2) ** 0.5).log_prob(x)
    return joint - dist.Normal(0.0, 1.0).log_prob(x)


@pytest.fixture(scope="module")
def table():
    return reference_table(pair, (0.0,), num_simulations=10_000, key=KEY)


@pytest.fixture(
    scope="module", params=["contrastive", pytest.param("logistic", marks=pytest.mark.slow)]
)
def learned(request, table):
    return inference.ratio(table, kind=request.param, num_steps=200, progress=False)


def test_a_ratio_of_normal_laws_is_found(learned, table):
    parameters, data = table.rows("held out")
    exact = log_ratio_of_pair(parameters["theta"], data["x"])
    gaps = np.asarray(learned.log_ratio(parameters, data) - exact)
    assert np.sqrt((gaps**2).mean()) < 0.05
    information, error = learned.mutual_information()
    assert information == pytest.approx(0.5108, abs=4.5 * error) and error < 0.04
    assert "of a ratio 0" in repr(learned)


def test_its_log_evidence_is_zero(learned):
    evidence, error = learned.log_evidence()
    assert abs(evidence) < 0.05 and error < 0.03
    here, error = learned.log_evidence({"x": 0.5})
    assert abs(here) < 0.05 + 4.5 * error


def test_its_model_is_the_prior_with_the_ratio_as_a_factor(learned):
    value = {"theta": jnp.asarray(0.3)}
    log_prior = dist.Normal(0.0, 1.0).log_prob(0.3)
    factor = learned.log_ratio(value, {"x": jnp.asarray(0.5)})
    density = jax.jit(lambda choices: learned.model.log_density(choices, 0.5))
    assert float(density(value)) == pytest.approx(float(log_prior + factor), abs=1e-5)


@pytest.mark.slow(reason="weighted draws of a network's program to compile")
def test_its_model_has_draws_by_a_proposal_that_covers_it(learned):
    def wide(x):
        ppl.sample("theta", dist.Normal(0.4, 0.8))

    q = ppl.normalize(learned.model, proposal=wide, num_particles=400)
    draws = jax.vmap(lambda k: q.simulate(k, 0.5).choices["theta"])(jax.random.split(KEY, 400))
    assert draws.mean() == pytest.approx(0.4, abs=0.15) and draws.std() == pytest.approx(
        0.6, abs=0.1
    )


@pytest.mark.slow(reason="a training of its own")
def test_two_normal_laws_are_two_values_of_a_label():
    """Log p / q of N(1, 1) and N(0, 1) is x - 1/2: the difference of the log-ratios of two labels."""

    def labelled(x):
        label = ppl.sample("label", dist.Bernoulli(0.5))
        ppl.sample("x", dist.Normal(label * 1.0, 1.0), obs=x)

    table = reference_table(labelled, (0.0,), num_simulations=10_000, key=KEY)
    found = inference.ratio(table, kind="logistic", num_steps=600, progress=False)
    x = table.rows("held out")[1]["x"]
    both = [found.log_ratio({"label": np.full(len(x), k)}, {"x": x}) for k in (1, 0)]
    gaps = np.asarray(both[0] - both[1]) - (x - 0.5)
    assert np.sqrt((gaps**2).mean()) < 0.1


@pytest.mark.slow(reason="a training of its own")
def test_failed_simulations_do_not_shift_it():
    """Simulations below theta = 0 fail: p(x, success | theta) / p(x, success), whose mean over the whole prior is 1."""

    def simulate(key, p):
        x = p["theta"] + jax.random.normal(key)
        return jnp.where(p["theta"] < 0, jnp.nan, x)

    prior = lambda: ppl.sample("theta", dist.Normal(0.0, 1.0))
    table = reference_table(prior, simulator=simulate, num_simulations=6_000, key=KEY)
    found = inference.ratio(table, num_steps=600, progress=False)
    grid = np.linspace(0.0, 8.0, 4_001)
    at = lambda theta, x: np.exp(-0.5 * (x - theta) ** 2) / (2 * np.pi) ** 0.5
    for theta, x in ((0.5, 0.5), (1.5, 1.0), (1.0, 2.0)):
        total = np.trapezoid(at(grid, x) * np.exp(-0.5 * grid**2) / (2 * np.pi) ** 0.5, grid)
        exact = np.log(at(theta, x) / total)
        assert float(found.log_ratio({"theta": theta}, {"x": x})) == pytest.approx(exact, abs=0.15)
    assert abs(found.log_evidence()[0]) < 0.05


KINDS = [
    ("contrastive", 0.5, 2),
    ("contrastive", 3.0, 2),
    ("logistic", 1.0, 1),
    ("softmax", 1.0, 2),
]


@pytest.mark.parametrize("kind, gamma, num", KINDS)
def test_losses_are_least_at_the_ratio(kind, gamma, num):
    """Expected losses over a table of outcomes, exactly: three parameters, three data; no step from the ratio lowers them."""
    joint = np.random.default_rng(0).dirichlet(np.ones(9)).reshape(3, 3)
    ratio = np.log(joint / joint.sum(1, keepdims=True) / joint.sum(0))
    size = 2 * num - 1
    outcomes = np.stack(np.meshgrid(*[range(3)] * size, indexing="ij"), -1).reshape(-1, size)
    weights = joint.sum(1)[outcomes].prod(1)
    loss = lambda pair, contrasts: _ratio._LOSSES[kind](pair[None], contrasts[:, None], gamma)[0]

    def expected(f):
        """Over theta and x of a pair, and every outcome of the contrasts."""
        total = jnp.zeros(())
        for i, j in np.ndindex(3, 3):
            each = jax.vmap(loss)(jnp.full(len(outcomes), f[i, j]), f[outcomes, j])
            total = total + joint[i, j] * (jnp.asarray(weights) * each).sum()
        return total

    slope = jax.jit(jax.grad(expected))
    assert np.abs(slope(jnp.asarray(ratio))).max() < 1e-6
    # A number that depends on the data alone: seen by all but the softmax.
    shifted = jnp.asarray(ratio) + jnp.array([0.3, -0.2, 0.1])
    assert (np.abs(slope(shifted)).max() < 1e-6) == (kind == "softmax")


def test_what_has_no_normaliser_refuses_to_be_asked_for_it(learned):
    found = dataclasses.replace(learned, kind="softmax")
    for ask in (found.log_evidence, found.mutual_information, lambda: found.model):
        with pytest.raises(
            ValueError, match="kind 'softmax' \\(NRE-B\\) is learned up to a number"
        ):
            ask()
    assert "evidence" not in repr(found)


def test_a_balanced_ratio_says_that_it_is_biased(learned):
    assert "biased on purpose" in repr(dataclasses.replace(learned, kind="balanced"))
    assert "biased on purpose" in inference.ratio.__doc__


@pytest.mark.slow(reason="trainings of their own")
@pytest.mark.parametrize("kind", ["softmax", "balanced"])
def test_other_kinds_find_differences_at_one_data_set(kind, table):
    """Up to a number of the data, or to a bias: log-ratios at two parameters differ as they should, roughly."""
    found = inference.ratio(table, kind=kind, num_contrasts=4, num_steps=600, progress=False)
    both = [
        found.log_ratio({"theta": np.full(2, t)}, {"x": np.array([0.5, 1.0])}) for t in (0.5, 1.0)
    ]
    exact = [log_ratio_of_pair(t, np.array([0.5, 1.0])) for t in (0.5, 1.0)]
    assert np.allclose(both[1] - both[0], exact[1] - exact[0], atol=0.15)


def test_impossible_numbers_are_refused(table):
    with pytest.raises(ValueError, match="num_contrasts"):
        inference.ratio(table, kind="softmax", num_contrasts=1)
    with pytest.raises(ValueError, match="gamma is 0"):
        inference.ratio(table, gamma=0.0)


def test_missing_data_are_refused(learned):
    def cells(x, seen):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(theta, 1.0), obs=x, obs_mask=seen)

    from lapilli.inference.simulators._standing_in import standing_in

    program = standing_in(ppl.as_program(cells), ["x"], None)
    with pytest.raises(ValueError, match="a ratio is one number of the whole data"):
        program.log_density({"theta": 0.0, "x_unobserved": 0.0}, 0.0, np.array(False))
