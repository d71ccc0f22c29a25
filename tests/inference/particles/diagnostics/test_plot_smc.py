"""Pictures of particle runs: the numbers drawn, the panels, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.particles.diagnostics._plot_smc import weighted_quantiles


@ppl.model
def walk(ys):
    ppl.sample("scale", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


YS = jnp.array([0.5, -1.0, 0.25, 2.0])


@pytest.fixture(scope="module")
def result():
    return inference.smc(
        walk, jax.random.key(0), YS, num_particles=50, policy=inference.particles.resampling.every()
    )


def test_weighted_quantiles_are_those_of_repeated_values():
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=(40, 3)), rng.integers(1, 5, 40)
    levels = [0.025, 0.25, 0.5, 0.975]
    want = np.quantile(np.repeat(values, counts, axis=0), levels, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(weighted_quantiles(values, counts / counts.sum(), levels), want)


@pytest.mark.slow
def test_panels_show_the_run(result):
    figure = inference.particles.plot_smc(result, ["x"], times=[2001, 2002, 2003, 2004])
    fan, ess, evidence, genealogy, count = figure.axes
    lines = [axis.lines[0] for axis in (fan, ess, evidence)]
    weights = np.exp(np.asarray(result.log_weights, float))
    median = weighted_quantiles(np.asarray(result.particles["x"]), weights, [0.5])[0]
    np.testing.assert_array_equal(lines[0].get_xdata(), [2001, 2002, 2003, 2004])
    np.testing.assert_allclose(lines[0].get_ydata(), median)
    np.testing.assert_allclose(lines[1].get_ydata(), result.ess / 50, rtol=1e-6)
    np.testing.assert_allclose(lines[2].get_ydata()[-1], result.log_evidence, rtol=1e-5)
    assert len(genealogy.lines) == 50
    distinct = count.lines[0].get_ydata()
    assert distinct[-1] == 50 and np.all(np.diff(distinct) >= 0) and distinct[0] < 50


@pytest.mark.slow
def test_a_run_without_history_has_no_genealogy():
    short = inference.smc(walk, jax.random.key(0), YS, num_particles=8, history="none")
    assert len(inference.particles.plot_smc(short).axes) == 2


@pytest.mark.slow
def test_what_does_not_fit_is_refused(result):
    with pytest.raises(ValueError, match=r"'v' is not among the particles \['scale', 'x'\]"):
        inference.particles.plot_smc(result, ["v"])
    with pytest.raises(ValueError, match=r"'scale' has shape \(50,\).*\[particles, time\]"):
        inference.particles.plot_smc(result, ["scale"])
    with pytest.raises(ValueError, match=r"times has shape \(3,\), but site 'x' has 4 steps"):
        inference.particles.plot_smc(result, ["x"], times=[1, 2, 3])
    many = jax.tree.map(lambda x: jnp.stack([x, x]), result)
    with pytest.raises(ValueError, match=r"takes one run.*\(2, 50\)"):
        inference.particles.plot_smc(many)
    with pytest.raises(ValueError, match="result must be of type SMCResult"):
        inference.particles.plot_smc({})
    chain = inference.FeynmanKac(
        lambda key: jax.random.normal(key), lambda key, x, t: x, lambda a, b, t: -(b**2), 2
    )
    of_model = inference.smc(chain, jax.random.key(0), num_particles=8)
    with pytest.raises(ValueError, match="have no sites"):
        inference.particles.plot_smc(of_model, ["x"])
    assert len(inference.particles.plot_smc(of_model).axes) == 4
