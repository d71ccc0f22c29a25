"""Any-order SMC: exact for exact networks, unbiased for any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mam import joint, odd_networks, orders, rows

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import mam

D, K = 3, 3
LOG_F = jnp.asarray(joint(D, K, 7)) + 1.5
MODELS = {
    "random_order": mam.MaM(odd_networks(D, K, scale=0.7)),
    "fixed_order": mam.MaM(odd_networks(D, K, scale=0.7), orders=orders(D)[3]),
    "ensemble": mam.MaM(odd_networks(D, K, scale=0.7), density="ensemble", orders=orders(D)[:2]),
}


def log_f(x):
    return LOG_F[tuple(x)]


@pytest.mark.slow
def test_a_perfect_model_weighs_nothing(key):
    model = mam.MaM(mam.Tables(LOG_F))
    run = inference.smc(mam.feynman_kac(model, log_f), key, num_particles=20)
    np.testing.assert_allclose(run.increments[1:-1], 0, atol=1e-5)
    np.testing.assert_allclose(run.log_evidence, 1.5, atol=1e-5)
    np.testing.assert_allclose(run.ess, 20, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_evidence_is_unbiased_for_any_model(name, key):
    """Z from 8 particles, resampled at every step, 4000 runs; a bias of 5 % is 7 standard errors and more."""
    model = mam.feynman_kac(MODELS[name], log_f)
    policy = inference.particles.resampling.every()
    run = lambda key: inference.smc(model, key, num_particles=8, policy=policy).log_evidence
    estimates = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    assert_unbiased(np.exp(estimates), np.exp(1.5))


@pytest.mark.slow
def test_evidence_gives_the_sum_over_what_agrees(key):
    model = MODELS["random_order"].condition([0, 2, 0], [False, True, False])
    chain = mam.feynman_kac(model, log_f)
    assert chain.num_steps == 2
    run = lambda key: inference.smc(chain, key, num_particles=8)
    runs = jax.jit(jax.vmap(run))(jax.random.split(key, 4000))
    assert_unbiased(np.exp(runs.log_evidence), np.exp(np.asarray(LOG_F))[:, 2].sum())
    assert (runs.particles.value[..., 1] == 2).all()


@pytest.mark.slow
def test_without_anything_to_draw_the_evidence_is_the_target(key):
    x = jnp.array([1, 0, 2])
    model = MODELS["random_order"].condition(x, np.ones(D, bool))
    run = inference.smc(mam.feynman_kac(model, log_f), key, num_particles=2)
    np.testing.assert_allclose(run.log_evidence, log_f(x), rtol=1e-6)


@pytest.mark.slow
def test_weighted_particles_follow_the_target(key):
    """Frequencies of the 27 values from 4,000 particles, 50 runs: the mean of Z times them is unbiased."""
    model = mam.feynman_kac(MODELS["random_order"], log_f)

    def run(key):
        result = inference.smc(model, key, num_particles=1000)
        is_value = lambda p: (p.value == rows(D, K)).all(-1).astype(float)
        return jnp.exp(result.log_evidence) * result.mean(is_value)

    estimates = jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(key, 100))
    assert_unbiased(estimates, np.exp(np.asarray(LOG_F)).ravel())


def test_a_batch_of_models_is_refused():
    model = mam.MaM(odd_networks(D, K), orders=orders(D))
    with pytest.raises(ValueError, match=r"batch shape \(6,\).*jax.vmap"):
        mam.feynman_kac(model, log_f)
