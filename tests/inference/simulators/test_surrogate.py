"""Learned likelihoods stand in for simulated sites: of rows, of missing cells, of mixed data; the rest of the program stays."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.simulators import reference_table
from lapilli.inference.simulators._standing_in import standing_in

KEY = jax.random.key(0)


def rows(x, seen=None):
    """A simulator of one row: a normal place with noise, as a point mass."""
    place = ppl.sample("place", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        noise = jax.random.normal(ppl.rng_key("noise"), x.shape)
        ppl.sample("x", dist.Delta(place + noise), obs=x, obs_mask=seen)


@pytest.fixture(scope="module")
def learned():
    table = reference_table(rows, (np.zeros(1),), num_simulations=10_000, key=KEY)
    return inference.surrogate(table, key=jax.random.key(1), num_steps=200, progress=False)


def posterior_on_grid(program, *args):
    """Mean and standard deviation of "place" by quadrature."""
    grid = jnp.linspace(-2.0, 2.0, 4_001)
    density = jax.jit(jax.vmap(lambda m: program.log_density({"place": m}, *args)))(grid)
    weights = np.exp(np.asarray(density - density.max(), float))
    weights /= weights.sum()
    mean = weights @ np.asarray(grid, float)
    return mean, (weights @ (np.asarray(grid, float) - mean) ** 2) ** 0.5


def test_a_hundred_rows_have_the_posterior_of_a_normal_mean(learned):
    """Trained on single rows: N(sum x / 101, 1 / 101)."""
    x = 0.3 + np.random.default_rng(0).normal(size=100)
    mean, sd = posterior_on_grid(learned.model, x)
    exact = 101**-0.5
    assert sd == pytest.approx(exact, rel=0.05) and abs(mean - x.sum() / 101) < 0.5 * exact
    assert learned.parents == {"x": ("place",)}
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    assert learned.held_out[0] == pytest.approx(-entropy, abs=4.5 * learned.held_out[1] + 0.01)


@pytest.mark.slow(reason="compiles the law a second time")
def test_missing_rows_count_as_rows_that_are_not_there(learned):
    x, seen = np.random.default_rng(1).normal(size=10), np.arange(10) % 2 == 0
    there = learned.model.log_density({"place": 0.2}, x[seen])
    values = {"place": 0.2, "x_unobserved": x}
    scored = learned.model.trace(values, np.where(seen, x, np.nan), seen)
    assert float(scored.log_probs["x_observed"].sum() + scored.log_probs["place"]) == pytest.approx(
        float(there), abs=1e-4
    )


def trials(choice, time):
    """A choice by a logistic law, and a time that depends on it: the choice's law is known, the time is simulated."""
    drift = ppl.sample("drift", dist.Normal(0.0, 1.0))
    with ppl.plate("trials", time.shape[0]):
        chosen = ppl.sample("choice", dist.Bernoulli(logits=2 * drift), obs=choice)
        noise = jax.random.normal(ppl.rng_key("noise"), time.shape)
        ppl.sample("time", dist.Delta(0.5 * drift + chosen + 0.3 * noise), obs=time)


@pytest.mark.slow(reason="a training of its own")
def test_what_is_tractable_stays_exact():
    args = (np.zeros(1, int), np.zeros(1))
    table = reference_table(trials, args, num_simulations=3_000, key=KEY)
    found = inference.surrogate(table, num_steps=400, progress=False)
    assert list(found.parents) == ["time"] and "choice" in found.parents["time"]
    trace = found.model.trace({"drift": 0.4}, np.array([1, 0]), np.array([1.2, 0.1]))
    exact = dist.Bernoulli(logits=0.8).log_prob(np.array([1, 0]))
    assert np.allclose(trace.log_probs["choice"], exact, atol=1e-6)
    log_time = dist.Normal(np.array([1.2, 0.2]), 0.3).log_prob(np.array([1.2, 0.1]))
    assert np.allclose(trace.log_probs["time"], log_time, atol=0.25)


@pytest.mark.slow(reason="a training of its own")
def test_mixed_data_are_learned_one_after_the_other():
    def simulated(choice, time):
        drift = ppl.sample("drift", dist.Normal(0.0, 1.0))
        with ppl.plate("trials", time.shape[0]):
            coin, noise = jax.random.split(ppl.rng_key("noise"))
            chosen = jax.random.bernoulli(coin, jax.nn.sigmoid(2 * drift), time.shape).astype(int)
            ppl.sample("choice", dist.Delta(chosen), obs=choice)
            made = chosen + 0.3 * jax.random.normal(noise, time.shape)
            ppl.sample("time", dist.Delta(made), obs=time)

    table = reference_table(
        simulated, (np.zeros(1, int), np.zeros(1)), num_simulations=4_000, key=KEY
    )
    found = inference.surrogate(table, num_steps=600, progress=False)
    assert found.parents == {"choice": ("drift",), "time": ("choice",)} or found.parents[
        "time"
    ] == ("drift", "choice")
    trace = found.model.trace({"drift": 0.4}, np.array([1, 0]), np.array([1.1, 0.2]))
    exact = dist.Bernoulli(logits=0.8).log_prob(np.array([1, 0]))
    assert np.allclose(trace.log_probs["choice"], exact, atol=0.25)
    log_time = dist.Normal(np.array([1.0, 0.0]), 0.3).log_prob(np.array([1.1, 0.2]))
    assert np.allclose(trace.log_probs["time"], log_time, atol=0.3)


@pytest.mark.slow(reason="a training of its own")
def test_discrete_sites_are_summed_out_through_a_learned_law(learned):
    """`ppl.eliminate` evaluates a learned law at every value of its parent."""

    def switched(x):
        k = ppl.sample("k", dist.Categorical(probs=jnp.array([0.3, 0.7])))
        noise = jax.random.normal(ppl.rng_key("noise"))
        ppl.sample("x", dist.Delta(jnp.array([-1.0, 1.0])[k] + noise), obs=x)

    table = reference_table(switched, (0.0,), num_simulations=3_000, key=KEY)
    found = inference.surrogate(table, num_steps=300, progress=False)
    summed = ppl.eliminate(found.model, ["k"])
    each = [found.model.log_density({"k": k}, 0.4) for k in (0, 1)]
    assert float(summed.log_density({}, 0.4)) == pytest.approx(
        float(jnp.logaddexp(*each)), abs=1e-5
    )
    exact = 0.3 * np.exp(dist.Normal(-1.0, 1.0).log_prob(0.4)) + 0.7 * np.exp(
        dist.Normal(1.0, 1.0).log_prob(0.4)
    )
    assert float(summed.log_density({}, 0.4)) == pytest.approx(float(np.log(exact)), abs=0.1)


def test_a_law_of_ones_own():
    def law(place):
        line = ppl.param("line", jnp.array([0.8, 0.1]))
        scale = ppl.param("scale", 0.9, constraint=dist.constraints.positive)
        return dist.Normal(line[0] * place + line[1], scale)

    table = reference_table(rows, (np.zeros(1),), num_simulations=2_000, key=KEY)
    found = inference.surrogate(table, by=law, num_steps=600, progress=False)
    x = np.array([0.2, -0.7, 1.0])
    exact = dist.Normal(0.3, 1.0).log_prob(x)
    assert np.allclose(found.model.trace({"place": 0.3}, x).log_probs["x"], exact, atol=0.15)


@pytest.mark.slow(reason="compiles a training")
def test_events_of_binary_numbers_begin_as_logistic_regressions():
    """Ten logistic laws of 9,000 rows, 30 numbers: on average 30 / 18,000 nats are lost, and less than ten times that here."""
    slopes = np.random.default_rng(2).normal(size=(10, 2))

    def spikes(x):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ppl.sample("x", dist.Bernoulli(logits=slopes @ theta - 0.5).to_event(1), obs=x)

    table = reference_table(spikes, (np.zeros(10, int),), num_simulations=10_000, key=KEY)
    found = inference.surrogate(table, sites=["x"], num_steps=1, progress=False)
    parameters, data = table.rows("held out")

    def gap(theta, x):
        exact = ppl.as_program(spikes).trace({"theta": theta}, x).log_probs["x"]
        return exact - found.model.trace({"theta": theta}, x).log_probs["x"]

    gaps = np.asarray(jax.vmap(gap)(parameters["theta"], data["x"]))
    assert abs(gaps.mean()) < 0.017 and gaps.std() < 0.15
    events = np.array(list(np.ndindex(*(2,) * 10)))
    law = lambda x: found.model.trace({"theta": jnp.array([0.3, -1.0])}, x).log_probs["x"]
    assert np.exp(np.asarray(jax.vmap(law)(events), float)).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow(reason="a training of its own")
def test_counts_have_masses():
    """Two Poisson counts and a total that is given by them but for noise, all in one event of floating numbers."""

    def counts(x):
        theta = ppl.sample("theta", dist.Uniform(1.0, 4.0))
        key, noise = jax.random.split(ppl.rng_key("noise"))
        own = jax.random.poisson(key, jnp.exp(theta) * jnp.array([1.0, 2.0])).astype(float)
        total = own.sum() + jax.random.normal(noise)
        ppl.sample("x", dist.Delta(jnp.append(own, total)).to_event(1), obs=x)

    table = reference_table(counts, (np.zeros(3),), num_simulations=10_000, key=KEY)
    found = inference.surrogate(table, num_steps=3_000, progress=False)
    parameters, data = table.rows("held out")
    theta, x = parameters["theta"], data["x"]
    exact = dist.Poisson(np.exp(theta)[:, None] * [1.0, 2.0]).log_prob(x[:, :2]).sum(1)
    exact = exact + dist.Normal(x[:, :2].sum(1), 1.0).log_prob(x[:, 2])
    own = lambda theta, x: found.model.trace({"theta": theta}, x).log_probs["x"]
    gaps = np.asarray(exact - jax.vmap(own)(theta, x))
    assert abs(gaps.mean()) < 0.1
    assert own(jnp.asarray(2.0), jnp.array([3.5, 9.0, 12.0])) == -jnp.inf


def simulated(make):
    def program(x):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Delta(make(theta, ppl.rng_key("noise"))), obs=x)

    return reference_table(program, (make(jnp.zeros(()), KEY),), num_simulations=100)


def failing(key, p):
    return jnp.where(p["theta"] < 0, jnp.nan, p["theta"] + jax.random.normal(key))


def with_dose(x, dose):
    theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Delta(theta * dose + jax.random.normal(ppl.rng_key("noise"))), obs=x)


def of_shape(shape):
    def program(x):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
        made = theta + jax.random.normal(ppl.rng_key("noise"), shape)
        ppl.sample("x", dist.Delta(made).to_event(len(shape)), obs=x)

    return program


REFUSED = {
    "failures": (
        lambda: reference_table(lambda: ppl.sample("theta", dist.Normal(0.0, 1.0)), simulator=failing, num_simulations=200),
        {}, "lack the probability to succeed",
    ),
    "arguments that are read": (
        lambda: reference_table(with_dose, (0.0, np.float32(2.0)), num_simulations=100), {}, "read values of the program",
    ),
    "counts without end": (
        lambda: simulated(lambda t, key: jax.random.poisson(key, jnp.exp(15 + 0 * t))), {}, "whole numbers from",
    ),
    "values that are few": (
        lambda: simulated(lambda t, key: jnp.round(2 * (t + jax.random.normal(key))) / 2), {}, "no density to learn",
    ),
    "a site that is not there": (
        lambda: simulated(lambda t, key: t + jax.random.normal(key)), {"sites": ["y"]}, "cannot be learned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_refused(case):
    make, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        inference.surrogate(make(), progress=False, **options)


def test_sites_in_other_plates_are_refused():
    def uneven(x, y):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
        noise = jax.random.normal(ppl.rng_key("noise"), (3,))
        ppl.sample("y", dist.Delta(theta + noise[0]), obs=y)
        with ppl.plate("rows", 2):
            ppl.sample("x", dist.Delta(theta + noise[1:]), obs=x)

    table = reference_table(uneven, (np.zeros(2), 0.0), num_simulations=100)
    assert list(table.data) == ["y", "x"]  # as the program has them
    with pytest.raises(ValueError, match="one event of one is no event"):
        inference.surrogate(table, progress=False)


def test_noise_beneath_a_law_that_stays_is_refused():
    def noisy(x, y):
        theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
        noise = jax.random.normal(ppl.rng_key("noise"))
        ppl.sample("x", dist.Delta(theta + noise), obs=x)
        ppl.sample("y", dist.Normal(noise, 1.0), obs=y)

    table = reference_table(noisy, (0.0, 0.0), num_simulations=100)
    with pytest.raises(ValueError, match="the laws of \\['y'\\] depend on noise"):
        inference.surrogate(table, progress=False)


def test_laws_that_are_known_are_not_learned_unasked():
    def known(x):
        ppl.sample("x", dist.Normal(ppl.sample("theta", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    table = reference_table(known, (0.0,), num_simulations=100)
    with pytest.raises(ValueError, match="whose laws are known"):
        inference.surrogate(table, progress=False)


def test_events_of_another_shape_are_refused():
    table = reference_table(of_shape((2,)), (np.zeros(2),), num_simulations=200)
    normal = lambda theta: dist.Normal(
        theta[..., None] + ppl.param("a", jnp.zeros(2)), 1.0
    ).to_event(1)
    found = inference.surrogate(table, by=normal, num_steps=5, progress=False)
    law = lambda name, values: dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    program = standing_in(ppl.as_program(of_shape((2,))), ["x"], law)
    with pytest.raises(ValueError, match="has event shape \\(3,\\)"):
        program.log_density({"theta": 0.0}, np.zeros(2))
    with pytest.raises(ValueError, match="are not met at these arguments"):
        standing_in(ppl.as_program(of_shape((2,))), ["y"], law).log_density(
            {"theta": 0.0}, np.zeros(2)
        )
    assert np.isfinite(float(found.model.log_density({"theta": 0.0}, np.zeros(2))))
