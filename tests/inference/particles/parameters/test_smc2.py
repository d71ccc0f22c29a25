"""SMC^2 and IBIS against exact posteriors and evidences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import gammaln

from lapilli import inference, ppl
from lapilli.inference.particles import FilterOptions

Y = np.array([0.5, -1.0, 0.25, 2.0, 1.5, 2.5], np.float32)


@ppl.model
def walk(ys):
    """An unknown coefficient on (-1, 1) and an unknown noise scale above 0; one observation before the scan."""
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))
    s = ppl.sample("s", dist.Gamma(3.0, 3.0))
    x = ppl.sample("x0", dist.Normal(0.0, 1.0))
    ppl.sample("y0", dist.Normal(x, 1.0), obs=ys[0])

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, s))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, x, ys[1:])


@functools.cache
def exact():
    """Log predictive density of each observation; posterior means of a, a^2, log s, a log s, the last state and its square."""
    a = np.linspace(-1, 1, 803)[1:-1, None]
    log_s = np.linspace(-5, 2.5, 801)[None]
    s = np.exp(log_s)
    mean, var = np.zeros((801, 801)), np.ones((801, 801))
    log_p = 3 * np.log(3.0) - np.log(4.0) + 3 * log_s - 3 * s + 0.0 * a
    cell = (a[1, 0] - a[0, 0]) * (log_s[0, 1] - log_s[0, 0])
    totals = []
    for t, y in enumerate(Y.astype(float)):
        if t:
            mean, var = a * mean, a**2 * var + s**2
        total = var + 1
        log_p = log_p - 0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
        mean, var = mean + var / total * (y - mean), var / total
        totals.append(np.log(np.exp(log_p).sum() * cell))
    p = np.exp(log_p - log_p.max())
    functions = [a, a**2, log_s, a * log_s, mean, mean**2 + var]
    means = np.array([(p * f).sum() / p.sum() for f in functions])
    return np.diff(totals, prepend=0.0), means


def assert_near(runs, truth):
    """4.5 standard errors + 0.01, for a bias of order 1 / N."""
    runs = np.asarray(runs, float)
    error = runs.std(0) / np.sqrt(len(runs))
    assert (np.abs(runs.mean(0) - truth) < 4.5 * error + 0.01).all(), (runs.mean(0), truth, error)


def run_walk(key, num_runs=60, **options):
    """Increments, and posterior means of the functions of `exact`."""

    def run(key):
        result = inference.particles.smc2(
            walk, key, Y, parameters=["a", "s"], num_parameter_particles=400, num_particles=10, **options
        )  # fmt: skip
        a, log_s, x = (
            result.parameters["a"],
            jnp.log(result.parameters["s"]),
            result.states["x"][:, -1],
        )
        moments = jnp.stack([a, a**2, log_s, a * log_s, x, x**2], -1)
        return result.increments, jnp.exp(result.log_weights) @ moments, result.is_resampled

    # One after the other: under vmap the moves would run at every step.
    return jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(key, num_runs))


@pytest.mark.slow
def test_parameters_states_and_evidence_are_exact(key):
    """Ten particles for each filter. Standard errors are 0.01 and less, posterior sds about 0.5."""
    increments, moments, is_resampled = run_walk(key, target_ess=0.8)
    assert_near(increments, exact()[0])
    assert_near(moments, exact()[1])
    assert np.asarray(is_resampled).any(0)[:-1].any()


@ppl.model
def guided(ys):
    """The locally optimal proposal given the parameters, which it takes as they come."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    s = ppl.sample("s", dist.Normal(0.0, 1.0))
    x = ppl.sample("x0", dist.Normal(0.5 * ys[0], jnp.sqrt(0.5)))

    def step(x, y):
        gain = s**2 / (1 + s**2)
        return ppl.sample("x", dist.Normal(a * x + gain * (y - a * x), jnp.sqrt(gain))), None

    ppl.scan(step, x, ys[1:])


@pytest.mark.slow  # compiles model and proposal
def test_filters_with_a_proposal_are_exact(key):
    increments, moments, _ = run_walk(key, target_ess=0.8, filter=FilterOptions(guided))
    assert_near(increments, exact()[0])
    assert_near(moments, exact()[1])


@pytest.mark.slow  # compiles the same once more
def test_moves_that_look_ahead_are_found(key, monkeypatch):
    from lapilli.inference.particles.parameters import _smc2

    ahead = lambda cloud, t: cloud.log_priors + cloud.increments.sum(1)
    monkeypatch.setattr(_smc2, "_log_target", ahead)
    with pytest.raises(AssertionError):
        test_parameters_states_and_evidence_are_exact(key)


@ppl.model
def die(rolls):
    p = ppl.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    ppl.scan(lambda _, y: (None, ppl.sample("y", dist.CategoricalProbs(p), obs=y)), None, rolls)


@pytest.mark.slow
def test_without_states_it_is_ibis(key):
    """Dirichlet and multinomial: predictive probabilities are ratios of counts."""
    rolls = np.array([0, 0, 1, 2, 0, 0, 0, 0, 2, 0])
    counts, predictive = np.array([1.0, 2.0, 3.0]), [0.0]  # nothing is observed before the scan
    for y in rolls:
        predictive.append(np.log(counts[y] / counts.sum()))
        counts[y] += 1
    total = gammaln(6) - gammaln(16) + (gammaln(counts) - gammaln([1, 2, 3])).sum()
    assert np.isclose(sum(predictive), total)

    def run(key):
        result = inference.particles.smc2(
            die, key, rolls, parameters=["p"], num_parameter_particles=500, num_particles=1, batch_size=100
        )  # fmt: skip
        return result.increments, jnp.exp(result.log_weights) @ result.parameters["p"]

    increments, means = jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(key, 50))
    assert_near(increments, predictive)
    assert_near(means, counts / 16)


@pytest.mark.slow  # seconds of compilation
def test_shapes_samples_and_lost_particles(key):
    result = inference.particles.smc2(
        die, key, np.array([0, 1]), parameters=["p"], num_parameter_particles=20, num_particles=1
    )
    assert result.particles.keys() == {"p"} and result.sample(key, 7)["p"].shape == (7, 3)
    np.testing.assert_allclose(result.log_evidence, result.increments.sum(), rtol=1e-6)
    tree = inference.to_arviz(result, key=key, num_samples=6)
    assert tree.posterior["p"].shape == (1, 6, 3)
    assert tree.posterior.attrs["log_evidence"] == pytest.approx(float(result.log_evidence))

    @ppl.model
    def impossible(ys):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.scan(lambda _, y: (None, ppl.factor("f", jnp.where(y > 0, -jnp.inf, a))), None, ys)

    with pytest.warns(UserWarning, match="smc2: after weighing 2 no particle"):
        lost = inference.particles.smc2(
            impossible, key, jnp.array([0.0, 1.0]), parameters=["a"], num_parameter_particles=5, num_particles=1
        )  # fmt: skip
    assert jnp.isnan(lost.sample(key, 3)["a"]).all()
    assert lost.log_evidence == -jnp.inf and lost.ess[-1] == 0
    assert lost.failed_at == 2 and result.failed_at == -1


def refuse(**options):
    options = {"parameters": ["a"], "num_parameter_particles": 4, "num_particles": 2} | options
    return lambda key: inference.particles.smc2(walk, key, Y, **options)


ERRORS = {
    "in a scan": (refuse(parameters=["x"]), "smc2: parameter 'x' stands in a scan"),
    "scheme": (refuse(filter=FilterOptions(resampling="metropolis")), "smc2: resampling scheme 'metropolis'"),
    "parameter particles": (refuse(num_parameter_particles=1), "num_parameter_particles must be"),
    "particles": (refuse(num_particles=0), "num_particles must be"),
    "moves": (refuse(num_moves=0), "num_moves must be"),
    "ess": (refuse(target_ess=1.0), "target_ess must"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(key)
