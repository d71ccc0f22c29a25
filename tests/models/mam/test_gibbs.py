"""Block Gibbs moves leave invariant what they say they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mam import joint, odd_networks, orders, rows

from _stats import assert_unbiased
from lapilli.models import mam
from lapilli.models.mam import _chain

D, K, N = 3, 2, 40_000
X = rows(D, K)


def move_matrix(networks, block):
    """P(x -> x') of redrawing `block` in this order, by scoring every value given every other one's remainder."""

    def one(x, new):
        blanked = (x + 1).at[block].set(0)
        agrees = jnp.where(blanked > 0, blanked == new + 1, True).all()
        log_prob = _chain.score(networks, new + 1, blanked, jnp.asarray(block))
        return jnp.where(agrees, jnp.exp(log_prob), 0.0)

    x = jnp.asarray(rows(networks.num_variables, networks.num_values))
    return np.asarray(jax.vmap(lambda a: jax.vmap(lambda b: one(a, b))(x))(x))


@pytest.mark.fast("[3, 2, 1, 0]")
@pytest.mark.parametrize("block", [[0], [2, 0], [1, 3, 0], [3, 2, 1, 0]], ids=str)
def test_redrawing_a_block_of_a_consistent_model_keeps_its_law(block):
    log_p = joint(4, 2)
    with jax.enable_x64(True):
        matrix = move_matrix(mam.Tables(log_p), np.array(block))
    p = np.exp(log_p.ravel())
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(p @ matrix, p, atol=1e-12)


def start(log_p, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    return X[rng.choice(len(X), N, p=np.exp(log_p.ravel()))]


def frequency(value):
    return np.asarray((value[:, None] == X).all(-1))


@pytest.mark.slow
def test_a_call_moves_as_the_mean_of_its_blocks(seed):
    """From one state: 8 frequencies of 40,000 moves; a bias of 0.02 is 7 standard errors."""
    networks = odd_networks(D, K)
    blocks = [order[-2:] for order in orders(D)]
    want = np.mean([move_matrix(networks, block)[5] for block in blocks], 0)
    kernel = mam.BlockGibbs(mam.MaM(networks), 2)
    moved, acceptance = kernel(seed, np.broadcast_to(X[5], (N, D)))
    assert_unbiased(frequency(moved), want)
    assert (acceptance == 1).all()


@pytest.mark.slow
def test_corrected_moves_of_a_bad_model_keep_the_target(seed):
    """|z| < 4.5 for 8 states; without the correction the same moves drift by tens of standard errors."""
    log_p = joint(D, K, 1)
    log_f = jnp.asarray(log_p) + 2.0
    model = mam.MaM(odd_networks(D, K))
    x = start(log_p)
    corrected = mam.BlockGibbs(model, 2, lambda x: log_f[tuple(x)])
    moved, acceptance = corrected(seed, x)
    assert_unbiased(frequency(moved), np.exp(log_p.ravel()))
    assert 0.05 < acceptance.mean() < 0.95
    with pytest.raises(AssertionError, match="z ="):
        assert_unbiased(frequency(mam.BlockGibbs(model, 2)(seed, x).value), np.exp(log_p.ravel()))


@pytest.mark.slow_for("seed0")
def test_moves_keep_evidence_and_the_conditional_law(seed):
    log_p = joint(D, K, 2)
    model = mam.MaM(mam.Tables(log_p)).condition([0, 1, 0], [False, True, False])
    p = np.where(X[:, 1] == 1, np.exp(log_p.ravel()), 0)
    p /= p.sum()
    x = X[np.random.default_rng(0).choice(len(X), N, p=p)]
    moved = mam.BlockGibbs(model, 3)(seed, x).value
    assert (moved[:, 1] == 1).all()
    agrees = X[:, 1] == 1
    assert_unbiased(frequency(moved)[:, agrees], p[agrees])


def test_impossible_states_are_refused(key):
    with pytest.raises(ValueError, match="BlockGibbs: a value lies outside of 0 to 1"):
        mam.BlockGibbs(mam.MaM(odd_networks(D, K)), 2)(key, np.array([0, -1, 1]))


def test_impossible_blocks_are_refused():
    for size in (0, 4, 2.0):
        with pytest.raises(ValueError, match="block_size must be an integer from 1 to the 3"):
            mam.BlockGibbs(mam.MaM(odd_networks(D, K)), size)
