"""Chains that exchange their points along a corrected diffusion: their law is left as it is, and found from elsewhere."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mixture_rows import NOISING, Q1, Q2, log_target, quadrature, tilt

from _stats import assert_unbiased
from lapilli import inference
from lapilli.inference.diffusion import (
    DriftControl,
    Langevin,
    _replica_exchange as module,
    fkc,
    replica_exchange,
)
from lapilli.inference.diffusion._replica_exchange import _evidence, _sweep

TIMES = np.linspace(1.0, 0.0, 6)
ROW = (2.0, 0.0, 0.0)
TILTED = (1.0, 0.7, 1.0)


def corrected(row, times=TIMES, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fkc.*infinite variance")
        return fkc(
            [Q1, Q2], times, exponents=list(row[:2]), reward=tilt(row[2]), **({"zeta": 1.0, "weights": "exact"} | options)
        )  # fmt: skip


def exact_ladders(row, num, seed):
    """Independent points of every level, [num, levels], by the inverse of the distribution function on a grid."""
    rng, x = np.random.default_rng(seed), np.linspace(-15, 15, 60_001)
    columns = []
    for t in TIMES:
        p = np.exp(log_target(row, t, x))
        columns.append(np.interp(rng.uniform(size=num), np.cumsum(p) / p.sum(), x + 2.5e-4))
    return np.stack(columns, 1).astype(np.float32)


def after_a_sweep(model, row, num, key):
    """Points after one sweep from exact ones, and the mean acceptance of each exchange."""
    levels = jnp.arange(len(TIMES))

    @jax.jit
    def run(x, keys):
        def one(x, key):
            states = jax.vmap(lambda x, n: model.corrector.at(x, n, None))(x, levels)
            states, (_, _, _, accepted) = _sweep(model.corrector, key, states)
            return states.x, accepted

        return jax.vmap(one)(x, keys)

    x, accepted = run(exact_ladders(row, num, 0), jax.random.split(key, num))
    return np.asarray(x, float), np.asarray(accepted.mean(0))


def assert_law(x, row):
    """Mean, mean square and share below 0 of every level: 18 comparisons, a bias of 7% of a standard deviation is seen."""
    for n, t in enumerate(TIMES):
        _, mean, variance, share = quadrature(row, t)
        found = np.stack([x[:, n], x[:, n] ** 2, x[:, n] < 0], 1)
        assert_unbiased(found, [mean, variance + mean**2, share], names=["mean", "square", "share"])


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (ROW, {}),
        pytest.param(TILTED, {"zeta": 1.5}, marks=pytest.mark.slow),
        pytest.param(ROW, {"control": DriftControl(jax.random.key(1), 50)}, marks=pytest.mark.slow),
        pytest.param(ROW, {"langevin": Langevin(2)}, marks=pytest.mark.slow),
    ],
    ids=["annealed", "tilted", "control", "langevin"],
)
def test_a_sweep_leaves_the_law_of_all_levels(row, options, key):
    """Five coarse steps: whatever an exchange does to the points, their law stays."""
    x, accepted = after_a_sweep(corrected(row, **options), row, 10_000, key)
    assert accepted.min() > 0.1
    assert_law(x, row)


@pytest.mark.slow
def test_the_rule_of_acceptance_is_what_keeps_it(key, monkeypatch):
    """Accepting every exchange, or by the weight there alone: the law is lost, which the test above then sees."""
    always = lambda key, old, new, ratio: (new, jnp.exp(jnp.minimum(ratio, 0.0)))
    monkeypatch.setattr(module, "accept", always)
    x, _ = after_a_sweep(corrected(ROW), ROW, 20_000, key)
    with pytest.raises(AssertionError):
        assert_law(x, ROW)


@pytest.mark.slow
@pytest.mark.parametrize("row", [ROW, TILTED], ids=str)
def test_draws_and_evidence_are_found_from_the_samplers_path(row, key):
    """Evidence within 4.5 standard errors; mean and share below 0 by the spread of 200 independent ladders."""
    model = corrected(row, np.linspace(1.0, 0.0, 21), control=DriftControl(key, 200))
    result = jax.jit(lambda key: replica_exchange(model, key, num_sweeps=200, num_chains=200))(key)
    log_z, mean, _, share = quadrature(row, 0.0)
    assert result.standard_error < 0.01
    assert abs(result.log_evidence - log_z) < 4.5 * result.standard_error
    by_ladder = jnp.stack([result.x, result.x < 0], -1).mean(0)
    assert_unbiased(by_ladder, [mean, share])
    assert result.acceptance.min() > 0.3


@pytest.mark.slow
def test_points_that_are_trees_without_densities(key):
    """A Gaussian squared from its score alone, by path ratios of short steps: variance halved, in each of three coordinates."""
    noising = NOISING
    scale = lambda t: noising.alpha(t) ** 2 * 0.5 + noising.variance(t)
    shape = {"a": (2,), "b": ()}
    q = inference.diffusion.Diffusion(
        noising, lambda x, t: jax.tree.map(lambda v: -v / scale(t), x), shape
    )
    model = fkc(
        q, noising.times(100), exponents=2.0, zeta=1.0, weights="rne", control=DriftControl(key, 50)
    )
    result = jax.jit(lambda key: replica_exchange(model, key, num_sweeps=100, num_chains=100))(key)
    assert result.x["a"].shape == (100, 100, 2) and result.x["b"].shape == (100, 100)
    squares = jnp.concatenate([result.x["a"] ** 2, result.x["b"][..., None] ** 2], -1).mean(0)
    np.testing.assert_allclose(squares.mean(0), 0.25, rtol=0.05)


def test_ratios_of_evidence_from_both_directions(key):
    """Two laws in closed form: log G there ~ Normal(c - v/2, v), and back ~ Normal(c + v/2, v), have the ratio exp(c)."""
    c, v = jnp.array([0.7, -1.2]), 0.8
    noise = jax.random.normal(key, (2, 200, 50, 2))
    forward = c - v / 2 + jnp.sqrt(v) * noise[0]
    backward = c + v / 2 + jnp.sqrt(v) * noise[1]
    log_z, error = jax.jit(_evidence)(jnp.full((200, 50), 0.3), forward, backward)
    assert 0.002 < error < 0.02
    assert abs(log_z - (0.3 - 0.5)) < 4.5 * error


def test_an_error_of_evidence_is_that_between_chains(key):
    """1,000 repetitions: the standard error is right to a tenth in the mean."""
    noise = jax.random.normal(key, (1000, 2, 10, 20, 1))

    def one(noise):
        return _evidence(jnp.zeros((10, 20)), noise[0] - 0.5, noise[1] + 0.5)

    log_z, error = jax.jit(jax.vmap(one))(noise)
    assert abs(error.mean() / log_z.std() - 1) < 0.1


def test_exchanges_that_break_a_constraint_count(key):
    """A third of the proposals is impossible, and the others have no spread: the ratio is 2/3, and was 0 (log Z -inf)."""
    forward = jnp.where(jax.random.uniform(key, (200, 50, 2)) < 1 / 3, -jnp.inf, 0.0)
    forward = forward.at[..., 1].set(0.0)
    backward = jnp.zeros_like(forward)
    log_z, error = jax.jit(_evidence)(jnp.zeros((200, 50)), forward, backward)
    assert 0.001 < error < 0.02 and abs(log_z - np.log(2 / 3)) < 4.5 * error
    none = _evidence(jnp.zeros((200, 50)), forward.at[..., 0].set(-jnp.inf), backward)
    assert none[0] == -jnp.inf
    lost = _evidence(jnp.zeros((200, 50)), forward.at[0, 0, 0].set(jnp.nan), backward)
    assert np.isnan(lost[0])
