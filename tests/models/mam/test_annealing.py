"""Learning from an energy without losing modes: mixtures against enumeration, stopping, refusals."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mam import joint, odd_networks, rows

from lapilli.models import mam
from lapilli.models.mam.annealing._annealing import _of_equal_weight
from lapilli.models.mam.annealing._remembered import best_share

D, K = 3, 2
X = rows(D, K)
Q = mam.Tables(joint(D, K, 3))  # exact networks of another law
LOG_F = np.asarray(joint(D, K, 4)) * 2.0
ATOMS = X[[1, 6, 6, 3]]


def log_f(x):
    return jnp.asarray(LOG_F)[tuple(x)]


def masses(values):
    return LOG_F[tuple(np.asarray(values).T)]


class Even(mam.Networks):
    """Independent variables, each 0 with odds exp(gap)."""

    num_variables: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)
    gap: float = eqx.field(static=True)

    def log_marginal(self, tokens):
        one = jax.nn.log_softmax(jnp.array([self.gap, 0.0]))[jnp.maximum(tokens - 1, 0)]
        return jnp.where(tokens > 0, one, 0.0).sum()

    def log_conditionals(self, tokens):
        law = jax.nn.log_softmax(jnp.array([self.gap, 0.0]))
        return jnp.broadcast_to(law, (self.num_variables, 2))


class TestRemembered:
    def law(self, share, uniform):
        """The mixture by its definition, over all rows."""
        q = np.exp(np.asarray(Q.table)[(slice(1, None),) * D])
        inside = np.zeros_like(q)
        for x in np.unique(ATOMS, axis=0):
            inside[tuple(x)] = np.exp(LOG_F[tuple(x)])
        return (
            share * inside / inside.sum() + (1 - share - uniform) * q / q.sum() + uniform / q.size
        )

    @pytest.mark.parametrize("share", [0.0, 0.6])
    def test_marginals_and_conditionals_are_those_of_the_mixture(self, share):
        networks = mam.Remembered(Q, ATOMS, masses(ATOMS), share, uniform=0.1)
        exact = mam.Tables(np.log(self.law(share, 0.1)))
        tokens = jnp.asarray(list(itertools.product(range(K + 1), repeat=D)))
        both = jax.jit(
            lambda t: [
                (jax.vmap(n.log_marginal)(t), jax.vmap(n.log_conditionals)(t))
                for n in (networks, exact)
            ]
        )
        (level, log_c), (level_too, log_c_too) = both(tokens)
        np.testing.assert_allclose(level, level_too, atol=2e-6)
        hidden = np.asarray(tokens) == 0  # rows of observed variables mean nothing
        np.testing.assert_allclose(
            np.asarray(log_c)[hidden], np.asarray(log_c_too)[hidden], atol=5e-6
        )
        assert float(level[0]) == 0

    def test_of_many_variables_the_uniform_part_is_kept(self):
        """2^-400 is 0 in single precision, and its logarithm a number: of a state that neither part knows all is uniform."""
        size = 400
        networks = mam.Remembered(Even(size, 2, 20.0), np.zeros((1, size), int), [0.0], 0.5)
        model, x = mam.MaM(networks), jnp.ones(size, int)
        expected = np.log(0.005) - size * np.log(2)
        np.testing.assert_allclose(model.log_marginal(x, True), expected, rtol=1e-5)
        chain = model.with_order(jnp.arange(size)).log_prob(x)
        np.testing.assert_allclose(chain, expected, rtol=1e-4)

    def test_the_lightest_states_are_left_out_and_masses_are_relative(self):
        found = mam.Remembered(Q, X[:3], np.log([1.0, 5e-4, 3.0]), 0.5)
        assert len(found.atoms) == 2
        np.testing.assert_allclose(np.exp(found.log_masses(X[:3])), [0.25, 0.0, 0.75], rtol=1e-6)

    def test_shares_that_rule_states_out_are_refused(self):
        for share in (1.0, -0.1):
            with pytest.raises(ValueError, match="leave something to the networks"):
                mam.Remembered(Q, ATOMS, masses(ATOMS), share)
        with pytest.raises(ValueError, match=r"rows of shape \(4, 3\), 3 masses"):
            mam.Remembered(Q, ATOMS, masses(ATOMS)[:3], 0.5)
        for values in (ATOMS + K, ATOMS - 1, ATOMS + 0.5):
            with pytest.raises(
                ValueError, match=rf"states that do not exist.*integers of 0 to {K - 1}"
            ):
                mam.Remembered(Q, values, masses(ATOMS), 0.5)
        for wrong in (np.nan, np.inf):
            with pytest.raises(ValueError, match="of their masses are NaN, and the largest is"):
                mam.Remembered(Q, ATOMS, [*masses(ATOMS)[:3], wrong], 0.5)

    def test_the_share_is_the_best_one(self):
        """Against a grid; a law that the memory has never met gives it nothing."""
        rng = np.random.default_rng(0)
        inside = np.where(rng.random(500) < 0.7, rng.normal(size=500) - 2, -np.inf)
        outside = rng.normal(size=500) - 3
        mean = lambda w: np.logaddexp(np.log(w) + inside, np.log1p(-w) + outside).mean()
        grid = np.linspace(0.001, 0.989, 989)
        assert abs(best_share(inside, outside) - grid[np.argmax([mean(w) for w in grid])]) < 2e-3
        assert best_share(np.full(500, -np.inf), outside) < 1e-12


@pytest.mark.slow  # a training
def test_distillation_ends_by_itself_near_the_chain(key):
    """A consistent chain of 8 states: the held-out error falls below 0.05 nats, before the last step that is allowed."""
    pair = odd_networks(D, K, scale=0.0)
    table = mam.Tables(LOG_F)
    pair = eqx.tree_at(lambda n: n.conditional, pair, table.log_conditionals)
    start = mam.residual_mlps(D, K, width=32, key=key)
    pair = eqx.tree_at(lambda n: n.marginal, pair, start.marginal)
    options = {"num_draws": 2_000, "max_steps": 8_000, "patience": 300}
    found = mam.distilled(pair, np.repeat(X, 50, 0), key, **options)
    assert found.stop_reason == "settled" and found.error < 0.05
    assert "held-out rows" in repr(found)


def test_too_few_rows_to_stop_by_are_refused(key):
    with pytest.raises(ValueError, match="distilled: 8 rows in all"):
        mam.distilled(odd_networks(D, K), X, key, num_draws=0)


def test_rows_of_unlike_weight_are_drawn_by_it(key):
    """Of a run that keeps all temperatures the prior's particles have next to no weight, and as many rows."""
    several = jnp.arange(4)[:, None]
    weights = jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0]))
    found = np.asarray(_of_equal_weight(several, weights, key, 8))[:, 0]
    assert np.bincount(found, minlength=4).tolist() == [4, 2, 2, 0]
    assert _of_equal_weight(several, jnp.full(4, -np.log(4.0)), key, 8) is several


@pytest.mark.slow  # compiles a tempering run
def test_an_energy_that_is_no_number_is_refused(key):
    networks = mam.residual_mlps(D, K, width=4, key=key)
    with pytest.raises(RuntimeError, match="anneal: the tempering runs give log Z"):
        mam.anneal(networks, lambda x: jnp.nan * x.sum(), key, num_particles=20)
