"""Networks of marginalization models: uniform at the start, anchored at nothing observed, convolutions that are convolutions."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mam import odd_networks, orders, rows

from _stats import assert_unbiased
from lapilli.models import mam
from lapilli.models.mam.networks._convolutions import Conv3x3
from lapilli.models.mam.networks._networks import Gathered
from lapilli.models.mam.networks._tables import all_tokens


def shaken(pair, seed=0):
    """The networks away from the zeros of their start."""
    rng = np.random.default_rng(seed)
    move = lambda x: x + 0.3 * rng.normal(size=x.shape) if eqx.is_inexact_array(x) else x
    return jax.tree.map(move, pair)


# On a grid of 2 x 2 sites with 2 values.
MAKERS = {
    "mlp": lambda key: mam.residual_mlps(4, 2, width=8, depth=2, key=key),
    "cnn": lambda key: mam.residual_cnns((2, 2), 2, channels=4, depth=2, key=key),
    "unet": lambda key: mam.unets((2, 2), 2, widths=(4, 8), key=key),
    "transformer": lambda key: mam.transformers(
        4, 2, width=8, depth=1, num_heads=2, reach=1, key=key
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)  # long compilations
def test_on_a_tiny_lattice(name, key):
    """Uniform at the start; away from it nothing observed has probability 1, and the 16 values of each of 24 orders sum to 1."""
    tokens = all_tokens(4, 2)
    size = (tokens > 0).sum(1)
    pair = MAKERS[name](key)
    look = lambda pair, row: (pair.log_marginal(row), pair.log_conditionals(row))
    evaluate = eqx.filter_jit(lambda pair: jax.vmap(lambda row: look(pair, row))(tokens))

    level, log_c = evaluate(pair)
    np.testing.assert_allclose(level, -size * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(log_c, np.full((81, 4, 2), -np.log(2)), rtol=1e-6)

    warm = shaken(pair).with_warm_marginal()
    assert warm.conditional is not pair.conditional and isinstance(warm.marginal, Gathered)
    level, log_c = evaluate(warm)
    np.testing.assert_allclose(level, -size * np.log(2), rtol=1e-6)
    assert np.ptp(log_c) > 1e-2

    level, log_c = evaluate(shaken(pair))
    assert level[0] == 0 and np.ptp(level + size * np.log(2)) > 1e-2
    log_c = np.reshape(log_c, (3,) * 4 + (4, 2))
    log_p = np.zeros((24, 16))
    for order, row in zip(orders(4), log_p, strict=True):
        for (j, x), i in itertools.product(enumerate(rows(4, 2)), range(4)):
            seen = np.where(np.isin(np.arange(4), order[:i]), x + 1, 0)
            row[j] += log_c[(*seen, order[i], x[order[i]])]
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-5)
    assert np.ptp(log_p, 0).max() > 1e-2


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


@pytest.mark.slow
def test_on_a_torus_both_networks_move_with_the_grid(key):
    pair = shaken(mam.residual_cnns((4, 5), 2, channels=3, is_periodic=True, key=key))
    tokens = jax.random.randint(key, (4, 5), 0, 3)
    moved = jnp.roll(tokens, (1, 2), (0, 1))
    np.testing.assert_allclose(*(pair.log_marginal(t.ravel()) for t in (tokens, moved)), rtol=1e-4)
    log_c, log_c_moved = (
        pair.log_conditionals(t.ravel()).reshape(4, 5, 2) for t in (tokens, moved)
    )
    np.testing.assert_allclose(jnp.roll(log_c, (1, 2), (0, 1)), log_c_moved, rtol=1e-4)


def test_a_gathered_network_sums_what_observed_variables_say():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    network = Gathered(lambda tokens: table + tokens.sum())
    assert network(jnp.zeros(4, int)) == 0
    got = network(jnp.array([2, 0, 0, 1]))
    np.testing.assert_allclose(got, table[0, 1] + table[3, 0] + 2 * 3, rtol=1e-6)


def test_fitted_parameters_replace_their_network_only():
    pair, other = odd_networks(3, 2, 0), odd_networks(3, 2, 1)
    params = {"marginal": eqx.filter(other.marginal, eqx.is_inexact_array)}
    mixed = pair.with_params(params)
    for tokens in rows(3, 3)[::5]:
        np.testing.assert_array_equal(mixed.log_marginal(tokens), other.log_marginal(tokens))
        np.testing.assert_array_equal(mixed.log_conditionals(tokens), pair.log_conditionals(tokens))


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"unets: grid \(4, 4\), 2 values, widths \(\)"):
        mam.unets((4, 4), 2, widths=(), key=key)
    with pytest.raises(ValueError, match="unets: a grid of 4 x 6 cannot be halved 2 times"):
        mam.unets((4, 6), 2, widths=(4, 4, 4), key=key)
    with pytest.raises(ValueError, match="Transformer: .* width 6, depth 2, 4 heads"):
        mam.transformers(3, 2, width=6, key=key)
    with pytest.raises(ValueError, match="Transformer: 3 variables, 2 values, .* reach -1"):
        mam.CausalTransformer(3, 2, reach=-1, key=key)


@pytest.mark.slow  # a long compilation
def test_a_unet_knows_how_much_is_observed(key):
    """Blind to the symbols it still counts them: equal outputs for equal counts only."""
    network = shaken(mam.MaskedUNet((2, 2), 2, 1, is_summed=True, widths=(4,), key=key))
    first = network.net.first
    blind = eqx.tree_at(lambda n: n.net.first, network, jax.tree.map(jnp.zeros_like, first))
    tokens = rows(4, 2)
    level = np.asarray(jax.jit(jax.vmap(blind))(tokens))
    by_count = [level[tokens.sum(1) == count] for count in range(5)]
    assert max(np.ptp(same) for same in by_count) < 1e-5
    assert np.diff(np.sort([same[0] for same in by_count])).min() > 1e-3


@pytest.mark.slow
def test_a_transformer_tells_positions_apart_and_reads_far_ones(key):
    options = {"is_summed": False, "width": 8, "depth": 1, "num_heads": 2, "reach": 1}
    network = shaken(mam.MaskedTransformer(9, 2, 3, **options, key=key))
    blank = jnp.zeros(9, int)
    out, changed = jax.jit(jax.vmap(network))(jnp.stack([blank, blank.at[8].set(1)]))
    assert out.shape == (9, 3) and np.ptp(out, 0).min() > 1e-3
    assert jnp.abs(changed - out).max(1).min() > 1e-5


ORDERED = {
    "made": lambda size, num_values, key: mam.MADE(size, num_values, width=16, depth=2, key=key),
    "transformer": lambda size, num_values, key: mam.CausalTransformer(
        size, num_values, width=8, depth=1, num_heads=2, reach=1, key=key
    ),
}


@pytest.mark.parametrize("make", ORDERED.values(), ids=ORDERED)
class TestOneOrder:
    @pytest.mark.fast("made")
    def test_it_is_a_normalised_law(self, make, key):
        """Probabilities sum to one over all values; logits of a variable do not see it, or those after it."""
        network = shaken(make(4, 3, key))
        everything = rows(4, 3)
        log_p = jax.vmap(network.log_prob)(everything)
        np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-5)
        assert log_p.std() > 0.1
        base = np.array([0, 1, 2, 1])
        changed = base + np.eye(4, dtype=int) * ((base + 1) % 3 - base)
        first, *others = np.asarray(jax.vmap(network.logits)(np.stack([base, *changed])))
        for d, other in enumerate(others):
            gap = np.abs(other - first).max(1)
            assert np.all(gap[: d + 1] < 1e-6)
            assert d == 3 or gap[d + 1] > 1e-4

    @pytest.mark.slow
    def test_it_is_uniform_at_the_start_and_its_objective_is_the_likelihood(self, make, key):
        network = make(5, 2, key)
        x = jnp.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
        objective = mam.autoregressive(network)
        value = objective.value(objective.init(key, x), key, x)
        np.testing.assert_allclose(value, -10 * np.log(2), rtol=1e-6)


@pytest.mark.slow  # seconds of compilation
def test_draws_of_a_causal_transformer_follow_its_law(seed):
    """Frequencies of all 8 values of 3 bits, |z| < 4.5; a bias of 0.035 is 7 standard errors or more."""
    network = shaken(mam.CausalTransformer(3, 2, width=8, depth=1, key=jax.random.key(5)))
    x = rows(3, 2)
    draws = jax.jit(jax.vmap(network.sample))(jax.random.split(seed, 10_000))
    is_value = (np.asarray(draws)[:, None] == x).all(-1)
    assert_unbiased(is_value, np.exp(jax.vmap(network.log_prob)(x)))


def test_what_cannot_be_has_no_probability_in_any_order():
    """Log 0 - log 0 is NaN, which no -inf is."""
    with np.errstate(divide="ignore"):
        expected = np.log([[0.25, 0.75], [0.0, 0.0]])
    tables = mam.Tables(expected)
    np.testing.assert_allclose(mam.sampler_law(tables)[1:, 1:], expected, rtol=1e-6)
    for order in ([0, 1], [1, 0]):
        model = mam.MaM(tables).with_order(jnp.array(order))
        found = model.log_prob(jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-6)


@pytest.mark.parametrize("make", [mam.MADE, mam.CausalTransformer])
def test_what_is_no_value_has_no_density(make, key):
    """JAX reads -1 as the last value."""
    network = make(3, 2, width=8, depth=1, key=key)
    np.testing.assert_allclose(network.log_prob(jnp.array([0.0, 1, 1])), -3 * np.log(2), rtol=1e-6)
    rows = jnp.array([[0, -1, 1], [0, 2, 1], [0, 1, 1]])
    for row in rows[:2]:
        with pytest.raises(
            ValueError, match=f"{make.__name__}: 1 of 1 rows have values that are no"
        ):
            network.log_prob(row)
    assert np.isnan(jax.jit(jax.vmap(network.log_prob))(rows)).tolist() == [True, True, False]
