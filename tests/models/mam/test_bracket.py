"""What a model has lost: bounds on both sides against enumeration, and what is said after training from an energy."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _mam import joint, odd_networks, rows
from scipy.special import logsumexp

from lapilli import inference
from lapilli.models import mam
from lapilli.models.mam._bracket import verdicts

D, K = 3, 2
X = rows(D, K)
LOG_F = np.asarray(joint(D, K, 4)) * 2.0
LOG_Z = logsumexp(LOG_F)
P = np.exp(LOG_F - LOG_Z)
TOP = np.unravel_index(LOG_F.argmax(), LOG_F.shape)
EXACT = mam.Tables(LOG_F)


def without_the_top():
    """Exact networks of the law without its heaviest state."""
    table = LOG_F.copy()
    table[TOP] -= 25.0
    return mam.Tables(table)


def log_f(x):
    return jnp.asarray(LOG_F)[tuple(x)]


def test_an_energy_as_a_program_has_its_constant_as_evidence(key):
    """Eight states: log f + 3 log 2 under the uniform law averages to Z."""
    program = mam.unnormalised(log_f, D, K)
    density = jax.jit(jax.vmap(lambda x: program.log_density({"x": x})))(jnp.asarray(X))
    np.testing.assert_allclose(logsumexp(density), logsumexp(LOG_F), rtol=1e-5)


@pytest.mark.slow  # compiles a chain
def test_bounds_lie_on_both_sides_and_tell_of_a_lost_mode(key):
    """Exact networks of p, and of p without its heaviest state: the EUBO and `unseen` see it, the ELBO does not."""
    draws = X[np.random.default_rng(1).choice(len(X), 4_000, p=P.ravel())]
    exact = mam.bracket(mam.MaM(EXACT), log_f, draws, key)
    np.testing.assert_allclose(exact.lower, LOG_Z, atol=1e-4)
    np.testing.assert_allclose(exact.upper, LOG_Z, atol=1e-4)
    with pytest.warns(UserWarning, match="mam.bracket: .* has lost that much .*mam.anneal learns"):
        lost = mam.bracket(mam.MaM(without_the_top()), log_f, draws, key)
    share, error = lost.unseen
    assert abs(share - P[TOP]) < 4.5 * error
    # What is left is fitted exactly, so that the lower bound is log Z + log(1 - p_top) with no spread at all.
    np.testing.assert_allclose(lost.lower, LOG_Z + np.log1p(-P[TOP]), atol=1e-3)
    assert lost.upper.mean() > LOG_Z + 0.5 * 25 * P[TOP]


@pytest.mark.slow  # compiles a tempering run
def test_tempered_particles_stand_in_for_draws_of_the_target(key):
    """2,000 particles of eight states, which two Gibbs sweeps make all but independent: the mean log-weight within 4.5 errors."""
    networks = odd_networks(D, K)
    found = mam.bracket(mam.MaM(networks), log_f, None, key, num_rows=2_000)
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    model = mam.MaM(networks)
    log_q = np.asarray(model.log_steps(X[:, None], orders[None]).sum(-1)).mean(1)
    exact = P.ravel() @ (LOG_F.ravel() - log_q)
    assert abs(found.upper.mean() - exact) < 4.5 * found.upper.std(ddof=1) / 2_000**0.5


@pytest.mark.slow  # compiles a tempering run
def test_what_is_said_after_training(key):
    """Of two models, one of which has lost a state, by the same particles."""
    exact, lost = verdicts([EXACT, without_the_top()], log_f, key, 10**6)
    assert exact is None
    assert re.search(r"fit: \d\d% of the draws.*mam.anneal learns.*k_hat='skip'", str(lost))
    few = verdicts([EXACT, EXACT], log_f, key, 10_000)
    assert ["nobody has looked for modes" in str(said) for said in few] == [True, True]
    [said] = verdicts([EXACT], lambda x: jnp.nan * x.sum(), key, 10**6)
    assert re.search(
        "nobody knows whether energy has lost modes: bracket: the tempering run", str(said)
    )


@pytest.mark.slow  # a thousand steps
@pytest.mark.parametrize("num_seeds", [None, 2])
@pytest.mark.parametrize("k_hat", ["warn", "skip"])
def test_fit_warns_of_an_energy_that_has_lost_modes(k_hat, num_seeds, key):
    """Rate 0: networks that know hardly more than one state stay as they are; the target is uniform."""
    objective = mam.energy(odd_networks(D, K, scale=20.0), lambda x: 0.0 * x.sum(), num_chains=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"num_steps": 1_000, "key": key, "progress": False, "k_hat": k_hat}
        options["num_seeds"] = num_seeds
        inference.fit(objective, optax.sgd(0.0), (), **options)
    told = [str(w.message) for w in caught]
    assert ["mam.anneal learns" in text for text in told] == [True] * (k_hat == "warn")
    if num_seeds is not None:
        assert all("fit: 2 of 2 seeds, [0, 1], do not pass" in text for text in told)


def test_a_model_of_another_density_is_refused(key):
    networks = odd_networks(D, K)
    for model in (
        mam.MaM(networks, density="marginal"),
        mam.MaM(networks, orders=jnp.arange(3)),
        mam.MaM(networks).condition(jnp.zeros(3, int), jnp.array([True, False, False])),
    ):
        with pytest.raises(ValueError, match=r"bracket: the model has density .*Give MaM"):
            mam.bracket(model, log_f, X, key)
