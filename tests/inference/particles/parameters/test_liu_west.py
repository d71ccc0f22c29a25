"""The parameter filter of Liu and West: exact where it is, its moves, its bias seen, refusals.

False alarms: 6.8e-6 per coordinate (see _stats).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import inference, ppl

Y = np.array([0.5, -1.0, 0.25, 2.0, 1.5, 2.5], np.float32)


@ppl.model
def level(ys):
    """A normal mean, seen by a step through a constant that is made of it before the scan, and before the scan once."""
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    double = 2 * m
    ppl.sample("first", dist.Normal(m, 1.0), obs=ys[0])
    rows = double * jnp.ones(len(ys) - 1)

    def step(x, inputs):
        y, row = inputs
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(0.25 * double + 0.25 * row, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, (ys[1:], rows))


def run_level(key, **options):
    return inference.particles.liu_west(level, key, Y, parameters=["m"], **options)


@pytest.mark.slow
def test_a_normal_mean_is_learnt_as_exactly_as_by_a_sum(key):
    """The posterior after each step; K = 2,000 has a bias of order 1 / K, far below the standard errors of 200 runs, 0.001."""
    runs = jax.jit(jax.vmap(lambda key: run_level(key, num_particles=2000)))(
        jax.random.split(key, 200)
    )
    seen = np.arange(2, 7)
    assert_unbiased(runs.means["m"], np.cumsum(Y)[1:] / (1 + seen))
    np.testing.assert_allclose(runs.stds["m"].mean(0), (1 + seen) ** -0.5, rtol=0.01)
    final = jax.vmap(lambda r: r.mean(lambda p: p["m"]))(runs)
    np.testing.assert_allclose(final, runs.means["m"][:, -1], rtol=1e-4, atol=1e-5)
    assert runs.evidence == "biased" and (runs.failed_at == -1).all()
    tree = inference.to_arviz(jax.tree.map(lambda x: x[0], runs), key=key, num_samples=30)
    assert tree.posterior["m"].shape == (1, 30) and tree.posterior.attrs["evidence"] == "biased"
    cov = np.ones((6, 6)) + np.eye(6)
    exact = -0.5 * (Y @ np.linalg.solve(cov, Y) + np.linalg.slogdet(2 * np.pi * cov)[1])
    assert abs(runs.log_evidence.mean() - exact) < 0.05


@ppl.model
def square(ys):
    """Two modes, between which a normal kernel of their common mean and covariance puts its mass."""
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    ppl.scan(lambda c, y: (c, ppl.sample("y", dist.Normal(m**2, 1.0), obs=y)), 0.0, ys)


@pytest.mark.slow  # two compilations
def test_two_modes_are_smeared_and_smc_shows_it(key):
    """200 runs of 1,000 particles: the same test passes for smc, and finds the filter's evidence biased."""
    ys = np.full(6, 4.0, np.float32)
    grid = np.linspace(-6, 6, 4001)
    log_p = -0.5 * (7 * np.log(2 * np.pi) + grid**2 + 6 * (4.0 - grid**2) ** 2)
    exact = np.log(np.exp(log_p).sum() * (grid[1] - grid[0]))
    options = {"num_particles": 1000}

    def ratios(run):
        log_z = jax.jit(jax.vmap(lambda key: run(key).log_evidence))(jax.random.split(key, 200))
        return np.exp(np.asarray(log_z, float) - exact)

    assert_unbiased(ratios(lambda key: inference.smc(square, key, ys, **options)), 1.0)
    with pytest.raises(AssertionError, match="z ="):
        moved = lambda key: inference.particles.liu_west(
            square, key, ys, parameters=["m"], **options
        )
        assert_unbiased(ratios(moved), 1.0)


@pytest.mark.slow  # two compilations
def test_parameters_stay_where_particles_are_not_resampled(key):
    run = lambda policy: jax.jit(lambda key: run_level(key, num_particles=50, policy=policy))(key)
    never = run(inference.particles.resampling.never())
    assert not never.is_resampled.any() and never.ess.shape == (6,)
    np.testing.assert_array_equal(np.ptp(never.means["m"]) > 0, True)
    # Resampled parameters are drawn anew: no two are equal, though their ancestors were.
    assert len(np.unique(run(inference.particles.resampling.every()).parameters["m"])) == 50
    assert never.sample(key, 7)["m"].shape == (7,)


def program(ys, *, mixed=False, carried=False, late=False, scans=1):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    shift = m * z if mixed else m

    def step(carry, y):
        x, held = carry
        x = ppl.sample("x", dist.Normal(x, 1.0))
        ppl.sample("y", dist.Normal(x + (0.0 * shift if carried else shift) + held, 1.0), obs=y)
        return (x, 0.5 * held), None

    for _ in range(scans):
        ppl.scan(step, (z, jnp.exp(m) if carried else 0.0), ys)
    if late:
        ppl.sample("late", dist.Normal(m, 1.0), obs=0.0)


REFUSED = {
    "mixed": ({"mixed": True}, {}, "depend on parameters and on other draws from before the scan"),
    "carried": ({"carried": True}, {}, "number 1 of the scan's carry is a function of the parameters"),
    "late": ({"late": True}, {}, "observations after its scan"),
    "no scan": ({"scans": 0}, {}, "0 top-level scans"),
    "discount": ({}, {"discount": 1.0}, r"discount must lie in \(1/3, 1\)"),
    "particles": ({}, {"num_particles": 0}, "num_particles must be"),
    "parameter": ({}, {"parameters": ["x"]}, "'x' stands in a scan"),
}  # fmt: skip


@pytest.mark.slow_for("mixed", "parameter")
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_worse_than_biased_is_refused(name, key):
    change, options, message = REFUSED[name]
    options = {"parameters": ["m"], "num_particles": 4} | options
    with pytest.raises(ValueError, match=message):
        inference.particles.liu_west(lambda ys: program(ys, **change), key, Y, **options)
