"""Networks of marginalization models: uniform at the start, anchored at nothing observed, convolutions that are convolutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mam import odd_networks, rows

from lapilli.models import mam
from lapilli.models.mam._convolutions import Conv3x3


def shaken(pair, seed=0):
    """The networks away from the zeros of their start."""
    rng = np.random.default_rng(seed)
    move = lambda x: x + 0.3 * rng.normal(size=x.shape) if eqx.is_inexact_array(x) else x
    return jax.tree.map(move, pair)


MAKERS = {
    "mlp": lambda key: mam.residual_mlps(12, 3, width=8, depth=2, key=key),
    "cnn": lambda key: mam.residual_cnns((3, 4), 3, channels=4, depth=2, key=key),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_new_pair_is_uniform_and_nothing_observed_has_probability_one(make, key):
    pair = make(key)
    tokens = jax.random.randint(key, (12,), 0, 4)
    uniform = -jnp.log(3.0)
    np.testing.assert_allclose(pair.log_conditionals(tokens), np.full((12, 3), uniform), rtol=1e-6)
    want = (tokens > 0).sum() * uniform
    np.testing.assert_allclose(pair.log_marginal(tokens), want, rtol=1e-6)
    moved = shaken(pair)
    assert moved.log_marginal(jnp.zeros(12, int)) == 0
    assert abs(moved.log_marginal(tokens) - want) > 1e-2
    log_c = moved.log_conditionals(tokens)
    np.testing.assert_allclose(jax.nn.logsumexp(log_c, 1), 0, atol=1e-5)


@pytest.mark.parametrize("is_periodic", [False, True], ids=["bordered", "torus"])
def test_a_convolution_is_that_of_xla(is_periodic, key):
    conv = Conv3x3(2, 5, is_periodic=is_periodic, key=key)
    x = jax.random.normal(key, (4, 6, 2))
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="wrap" if is_periodic else "constant")
    kernel = conv.linear.weight.reshape(5, 3, 3, 2)
    want = jax.lax.conv_general_dilated(
        padded[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "OHWI", "NHWC")
    )
    np.testing.assert_allclose(conv(x), want[0] + conv.linear.bias, atol=1e-5)


def test_on_a_torus_both_networks_move_with_the_grid(key):
    pair = shaken(mam.residual_cnns((4, 5), 2, channels=3, is_periodic=True, key=key))
    tokens = jax.random.randint(key, (4, 5), 0, 3)
    moved = jnp.roll(tokens, (1, 2), (0, 1))
    np.testing.assert_allclose(*(pair.log_marginal(t.ravel()) for t in (tokens, moved)), rtol=1e-4)
    log_c, log_c_moved = (
        pair.log_conditionals(t.ravel()).reshape(4, 5, 2) for t in (tokens, moved)
    )
    np.testing.assert_allclose(jnp.roll(log_c, (1, 2), (0, 1)), log_c_moved, rtol=1e-4)


def test_fitted_parameters_replace_their_network_only():
    pair, other = odd_networks(3, 2, 0), odd_networks(3, 2, 1)
    params = {"marginal": eqx.filter(other.marginal, eqx.is_inexact_array)}
    mixed = pair.with_params(params)
    for tokens in rows(3, 3)[::5]:
        np.testing.assert_array_equal(mixed.log_marginal(tokens), other.log_marginal(tokens))
        np.testing.assert_array_equal(mixed.log_conditionals(tokens), pair.log_conditionals(tokens))


def test_convolutions_carry_over_to_another_grid_and_other_shapes_do_not(key):
    """With all weights shared, what is observed in a corner of a large grid has the log-marginal it has on a small one."""
    make = lambda grid: mam.residual_cnns(grid, 2, channels=3, depth=1, key=key)
    small, large = shaken(make((5, 5))), make((9, 9))
    params = {
        n: eqx.filter(getattr(small, n), eqx.is_inexact_array) for n in ("marginal", "conditional")
    }
    large = large.with_params(params)
    tokens = jnp.zeros((9, 9), int).at[1:3, 1:3].set(1 + jnp.eye(2, dtype=int))
    want = small.log_marginal(tokens[:5, :5].ravel())
    np.testing.assert_allclose(large.log_marginal(tokens.ravel()), want, rtol=1e-4)
    with pytest.raises(ValueError, match="with_params: 'marginal' has shapes"):
        mam.residual_cnns((4, 4), 2, channels=5, depth=1, key=key).with_params(params)


def test_impossible_sizes_are_refused(key):
    with pytest.raises(ValueError, match="residual_mlps: 3 variables, 1 values"):
        mam.residual_mlps(3, 1, key=key)
    with pytest.raises(ValueError, match=r"residual_cnns: grid \(0, 4\), 2 values"):
        mam.residual_cnns((0, 4), 2, key=key)


def test_made_is_a_normalised_law_of_one_order(key):
    """Its probabilities sum to one over all values; logits of a variable do not see it, or those after it."""
    network = mam.MADE(4, 3, width=16, depth=2, key=key)
    keys = iter(jax.random.split(key, 20))
    noisy = lambda a: a + 0.7 * jax.random.normal(next(keys), a.shape)
    network = eqx.tree_at(lambda n: n.layers, network, jax.tree.map(noisy, network.layers))
    everything = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij"), -1).reshape(-1, 4)
    log_p = jax.vmap(network.log_prob)(everything)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-5)
    assert log_p.std() > 0.1
    base = np.array([0, 1, 2, 1])
    for d in range(4):
        changed = base.copy()
        changed[d] = (base[d] + 1) % 3
        gap = np.abs(network.logits(changed) - network.logits(base)).max(1)
        assert np.all(gap[: d + 1] == 0)
        assert d == 3 or gap[d + 1] > 1e-4


def test_made_is_uniform_at_the_start_and_its_objective_is_the_likelihood(key):
    network = mam.MADE(5, 2, width=8, key=key)
    x = jnp.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    objective = mam.autoregressive(network)
    value = objective.value(objective.init(key, x), key, x)
    np.testing.assert_allclose(value, -10 * np.log(2), rtol=1e-6)
