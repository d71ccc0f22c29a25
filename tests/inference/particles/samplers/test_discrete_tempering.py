"""Tempering of discrete sites by Gibbs sweeps, against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles.moves import Gibbs

PROBS = np.array([0.2, 0.5, 0.3])
TABLE = np.random.default_rng(0).normal(size=(3, 2, 2)) * 2.0


@ppl.model
def table():
    """A site of three values, a vector of two bits, and a factor that ties them."""
    k = ppl.sample("k", dist.Categorical(jnp.asarray(PROBS)))
    bits = ppl.sample("bits", dist.Bernoulli(jnp.array([0.3, 0.6])).to_event(1))
    ppl.factor("table", jnp.asarray(TABLE)[k, bits[0], bits[1]])


PRIOR = PROBS[:, None, None] * np.array([0.7, 0.3])[:, None] * np.array([0.4, 0.6])
JOINT = PRIOR * np.exp(TABLE)


def numbers(particles):
    return np.asarray(particles["k"]), *np.moveaxis(np.asarray(particles["bits"]), -1, 0)


@pytest.mark.slow  # 20,000 chains
def test_a_sweep_leaves_a_law_invariant_and_ends_near_it(key):
    """From any state 20 sweeps end in draws of the law: 12 frequencies, |z| < 4.5, 20,000 chains."""
    log_p = jnp.log(jnp.asarray(JOINT))
    density = lambda u: log_p[tuple(u)]
    kernel = Gibbs([3, 2, 2])

    def chain(key):
        step = lambda at, key: (kernel.step(key, at, density, 1.0, 0.0)[0], None)
        start = kernel.start(jnp.zeros(3, int), density)
        return jax.lax.scan(step, start, jax.random.split(key, 20))[0]

    at = jax.jit(jax.vmap(chain))(jax.random.split(key, 20_000))
    np.testing.assert_allclose(at.log_density, log_p[tuple(at.point.T)], rtol=1e-5, atol=1e-6)
    truth = JOINT / JOINT.sum()
    for state in itertools.product(range(3), range(2), range(2)):
        assert_unbiased((np.asarray(at.point) == state).all(1).astype(float), truth[state])


def test_a_value_of_no_density_is_never_drawn_and_no_move_from_nowhere_breaks(key):
    density = lambda u: jnp.where(u[0] == 1, jnp.nan, jnp.where(u[0] == 2, 0.0, -jnp.inf))
    kernel = Gibbs((4,))
    for start in (0, 2):
        at = kernel.start(jnp.array([start]), density)
        ends = jax.vmap(lambda k, at=at: kernel.step(k, at, density, 1.0, 0.0)[0].point[0])(
            jax.random.split(key, 50)
        )
        assert (ends == 2).all()
    nowhere = lambda u: jnp.asarray(-jnp.inf)
    at = kernel.start(jnp.array([3]), nowhere)
    assert int(kernel.step(key, at, nowhere, 1.0, 0.0)[0].point[0]) == 3


@pytest.mark.slow  # 2,000 runs
def test_evidence_of_a_frozen_run_is_unbiased(key):
    options = {"kernel": Gibbs(), "num_moves": 1}
    pilot = inference.tempered_smc(table, key, num_particles=500, target_ess=0.8, **options)
    assert pilot.num_steps > 2
    run = lambda key: (
        inference.tempered_smc(table, key, num_particles=40, frozen=pilot, **options).log_evidence
    )
    log_z = jax.jit(jax.vmap(run))(jax.random.split(jax.random.fold_in(key, 1), 2000))
    assert_unbiased(jnp.exp(log_z), JOINT.sum())


def test_particles_follow_the_posterior(key):
    """4,000 particles: frequencies within 0.05 of the law, six standard errors of independent draws."""
    result = inference.tempered_smc(table, key, num_particles=4_000, kernel=Gibbs(), num_moves=2)
    found = np.zeros_like(JOINT)
    np.add.at(found, numbers(result.particles), 1 / 4_000)
    assert np.abs(found - JOINT / JOINT.sum()).max() < 0.05
    assert abs(float(result.log_evidence) - np.log(JOINT.sum())) < 0.1
    assert (np.asarray(result.acceptance) == 1).all()


def normal():
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.factor("f", z)


def counts():
    n = ppl.sample("n", dist.Poisson(2.0))
    ppl.factor("f", 0.0 * n)


def hot():
    z = ppl.sample("z", dist.Multinomial(2, jnp.array([0.5, 0.5])))
    ppl.factor("f", 0.0 * z.sum())


@pytest.mark.parametrize("program", [normal, counts, hot])
def test_sites_without_a_finite_support_are_refused(program, key):
    with pytest.raises(ValueError, match=r"Site '[zn]': kernel Gibbs needs .*Categorical"):
        inference.tempered_smc(program, key, num_particles=10, kernel=Gibbs())


def test_gibbs_without_numbers_of_values_is_refused(key):
    density = lambda u: jnp.zeros(())
    kernel = Gibbs()
    with pytest.raises(ValueError, match="numbers of values of the coordinates are not known"):
        kernel.step(key, kernel.start(jnp.zeros(2, int), density), density, 1.0, 0.0)


def test_a_discrete_site_under_another_kernel_is_pointed_to_gibbs(key):
    with pytest.raises(ValueError, match="Gibbs"):
        inference.tempered_smc(table, key, num_particles=10)
