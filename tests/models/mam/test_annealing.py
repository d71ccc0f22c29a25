"""Learning from an energy without losing modes: mixtures against enumeration, bounds, stopping, ten random tables."""

import functools
import itertools
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _mam import joint, odd_networks, rows
from scipy.special import logsumexp

from lapilli import inference
from lapilli.models import mam
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

    def test_the_share_is_the_best_one(self):
        """Against a grid; a law that the memory has never met gives it nothing."""
        rng = np.random.default_rng(0)
        inside = np.where(rng.random(500) < 0.7, rng.normal(size=500) - 2, -np.inf)
        outside = rng.normal(size=500) - 3
        mean = lambda w: np.logaddexp(np.log(w) + inside, np.log1p(-w) + outside).mean()
        grid = np.linspace(0.001, 0.989, 989)
        assert abs(best_share(inside, outside) - grid[np.argmax([mean(w) for w in grid])]) < 2e-3
        assert best_share(np.full(500, -np.inf), outside) < 1e-12


def test_an_energy_as_a_program_has_its_constant_as_evidence(key):
    """Eight states: log f + 3 log 2 under the uniform law averages to Z."""
    program = mam.unnormalised(log_f, D, K)
    density = jax.vmap(lambda x: program.log_density({"x": x}))(jnp.asarray(X))
    np.testing.assert_allclose(logsumexp(density), logsumexp(LOG_F), rtol=1e-5)


@pytest.mark.slow  # compiles two chains
def test_bounds_lie_on_both_sides_and_tell_of_a_lost_mode(key):
    """Exact networks of p, and of p without its heaviest state: the EUBO and `unseen` see it, the ELBO does not."""
    p = np.exp(LOG_F - logsumexp(LOG_F))
    draws = X[np.random.default_rng(1).choice(len(X), 4_000, p=p.ravel())]
    log_z = logsumexp(LOG_F)
    exact = mam.bracket(mam.MaM(mam.Tables(LOG_F)), log_f, draws, key)
    np.testing.assert_allclose(exact.lower, log_z, atol=1e-4)
    np.testing.assert_allclose(exact.upper, log_z, atol=1e-4)
    top = np.unravel_index(LOG_F.argmax(), LOG_F.shape)
    without = LOG_F.copy()
    without[top] -= 25.0
    with pytest.warns(UserWarning, match="has lost that much of the posterior"):
        lost = mam.bracket(mam.MaM(mam.Tables(without)), log_f, draws, key)
    share, error = lost.unseen
    assert abs(share - p[top]) < 4.5 * error
    # What is left is fitted exactly, so that the lower bound is log Z + log(1 - p_top) with no spread at all.
    np.testing.assert_allclose(lost.lower, log_z + np.log1p(-p[top]), atol=1e-3)
    assert lost.upper.mean() > log_z + 0.5 * 25 * p[top]


def test_a_model_of_another_density_is_refused(key):
    for model in (
        mam.MaM(Q, density="marginal"),
        mam.MaM(Q, orders=jnp.arange(3)),
        mam.MaM(Q).condition(jnp.zeros(3, int), jnp.array([True, False, False])),
    ):
        with pytest.raises(ValueError, match=r"bracket: the model has density .*Give MaM"):
            mam.bracket(model, log_f, X, key)


@pytest.mark.slow  # a training
def test_distillation_ends_by_itself_near_the_chain(key):
    """A consistent chain of 8 states: the held-out error falls below 0.05 nats, before the last step that is allowed."""
    pair = odd_networks(D, K, scale=0.0)
    table = mam.Tables(LOG_F)
    pair = eqx.tree_at(lambda n: n.conditional, pair, table.log_conditionals)
    start = mam.residual_mlps(D, K, width=32, key=key)
    pair = eqx.tree_at(lambda n: n.marginal, pair, start.marginal)
    options = {"warm": False, "num_draws": 2_000, "max_steps": 8_000, "patience": 300}
    found = mam.distilled(pair, np.repeat(X, 50, 0), key, **options)
    assert found.stop_reason == "settled" and found.error < 0.05
    assert "held-out rows" in repr(found)


def test_too_few_rows_to_stop_by_are_refused(key):
    with pytest.raises(ValueError, match="distilled: 8 rows in all"):
        mam.distilled(odd_networks(D, K), X, key, num_draws=0)


@pytest.mark.slow  # compiles a tempering run
def test_an_energy_that_is_no_number_is_refused(key):
    networks = mam.residual_mlps(D, K, width=4, key=key)
    with pytest.raises(RuntimeError, match="anneal: the tempering runs give log Z"):
        mam.anneal(networks, lambda x: jnp.nan * x.sum(), key, num_particles=20)


# Ten random tables.

BITS = 12
ALL = rows(BITS, 2)


def random_table(seed):
    """Log-densities of 4,096 states, independent Normal draws at the scale where the leading state has probability 0.38."""
    z = np.random.default_rng(seed).normal(size=(2,) * BITS)
    low, high = 0.1, 60.0
    for _ in range(80):
        c = (low + high) / 2
        low, high = (c, high) if c * z.max() - logsumexp(c * z) < np.log(0.38) else (low, c)
    return high * z


def look_up(table, x):
    return table[tuple(x)]


def evidence(networks, log_target, key, num_runs=100):
    """Z-hat of runs of 128 particles."""
    chain = mam.feynman_kac(mam.MaM(networks), log_target)
    run = lambda k: inference.smc(chain, k, num_particles=128, history="none").log_evidence
    return np.asarray(
        jax.jit(lambda ks: jax.lax.map(run, ks))(jax.random.split(key, num_runs)), float
    )


@pytest.mark.slow  # twenty trainings, about a quarter of an hour
def test_ten_random_tables_keep_their_modes(capsys):
    """Total variation below 0.1 and Z-hat / Z within 3 standard errors of 1 for seeds 0 to 9; settings from seeds 100 to 104.

    The standard error is the exact one of as many independent draws, (sum p^2 / q - 1) / n: that of the runs themselves is too
    small where rare states with large weights were not drawn (seed 5: 0.0034 below 1, 3.9 of its own errors
    and 1.3 of the exact ones).
    """
    lines, found = [], []
    for seed in range(10):
        table = random_table(seed)
        log_z, p = logsumexp(table), np.exp(table - logsumexp(table))
        log_target = functools.partial(look_up, jnp.asarray(table))
        networks = mam.residual_mlps(BITS, 2, width=128, depth=2, key=jax.random.key(seed))
        start = time.process_time()
        schedule = optax.cosine_decay_schedule(3e-3, 2_000)
        fit = inference.fit(
            mam.energy(networks, log_target), optax.adam(schedule), (), num_steps=2_000,
            key=jax.random.key(seed + 1000), progress=False,
        )  # fmt: skip
        old = networks.with_params(fit.params)
        middle = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the test is to find
            new = mam.anneal(
                networks, log_target, jax.random.key(seed + 2000),
                num_steps=600, num_scored=5_000, num_draws=5_000, patience=300,
            )  # fmt: skip
            end = time.process_time()
            before = mam.bracket(mam.MaM(old), log_target, new.rows[1], jax.random.key(5))
        law = np.exp(mam.sampler_law(new.networks)[(slice(1, 3),) * BITS])
        level = np.asarray(jax.vmap(old.log_marginal)(jnp.asarray(ALL) + 1))
        law_before = np.exp(level - logsumexp(level)).reshape(p.shape)
        ratio = np.exp(evidence(new.networks, log_target, jax.random.key(4)) - log_z)
        mean, own_error = ratio.mean(), ratio.std(ddof=1) / np.sqrt(len(ratio))
        error = np.sqrt(((p**2 / law).sum() - 1) / (128 * len(ratio)))
        distance, distance_before = (0.5 * np.abs(p - q).sum() for q in (law, law_before))
        found.append((distance, (mean - 1) / error, before.unseen[0]))
        lines.append(
            f"{seed}  {distance_before:.3f} {distance:.3f}  {mean:.4f} +- {error:.4f} (own {own_error:.4f})  "
            f"{before.unseen[0]:.2f} {new.bracket.unseen[0]:.3f}  {middle - start:.1f} {end - middle:.1f}"
        )
    with capsys.disabled():
        print("\nseed  TV (energy, anneal)  Z-hat / Z  unseen (energy, anneal)  processor seconds")
        print("\n".join(lines))
    distances, scores, unseen = np.array(found).T
    assert (distances < 0.1).all(), distances
    assert (np.abs(scores) < 3).all(), scores
    assert unseen.mean() > 0.3  # and the old training's loss is told
