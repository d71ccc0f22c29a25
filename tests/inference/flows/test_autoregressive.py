"""Laws of events whose numbers are of any kind: masses sum to one, densities integrate to it, nothing looks ahead."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli.inference.flows import AutoregressiveLaw, AutoregressiveNet, columns_of

CONTEXT = np.random.default_rng(0).normal(size=(4_000, 2))


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def law_of(rows, *, spread=0.0, context=CONTEXT, at=(0.4, -0.3)):
    """The law that rows begin with, and with `spread` random numbers in all its parameters."""
    columns, kinds, most = columns_of(rows, context)
    net = AutoregressiveNet(kinds, context.shape[1], most, key=jax.random.key(0), width=16)
    scaled = np.asarray(columns.scaled(jnp.asarray(rows, jnp.float32)))
    begun = net.fitted(context, scaled, rows[:, net.few] - columns.low[net.few])
    arrays, rest = eqx.partition(begun, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + spread * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    net = eqx.combine(jax.tree.unflatten(tree, noisy), rest)
    return AutoregressiveLaw(net, columns, jnp.asarray(at, jnp.float32), (rows.shape[1],)), kinds


def whole(rng, rate):
    return rng.poisson(rate, len(CONTEXT)).astype(float)


def moved(rng, scale=1.0):
    return CONTEXT @ [1.0, -0.5] + scale * rng.normal(size=len(CONTEXT))


@pytest.mark.parametrize("spread", [0.0, 0.3], ids=["start", "random"])
@pytest.mark.parametrize("rate", [20.0, 2_000.0], ids=["small", "narrow cells"])
def test_masses_of_counts_sum_to_one(rng, rate, spread):
    """Counts from 0 on without end, on any of the three scales."""
    rows = np.stack([whole(rng, rate * np.exp(0.3 * CONTEXT[:, 0])), whole(rng, rate)], 1)
    law, kinds = law_of(rows, spread=spread)
    assert kinds == ("whole", "whole")
    values = np.arange(10 * int(rate) + 200.0)
    second = np.stack([np.full_like(values, rate), values], 1)
    # Given the first, whose own mass is taken off by the sum over the second.
    logs = np.asarray(jax.jit(law.log_prob)(second), float)
    firsts = np.stack([values, np.full_like(values, rate)], 1)
    first, fixed = np.asarray(jax.jit(lambda x: marginal(law, x))(firsts), float), rate
    assert np.exp(first).sum() == pytest.approx(1.0, abs=2e-4)
    own = first[values == fixed]
    assert np.exp(logs - own).sum() == pytest.approx(1.0, abs=2e-4)


def marginal(law, x):
    """Log-mass of the first number: of an event of that number alone."""
    from lapilli.inference.flows._autoregressive import _moved

    loc, log_scale, knots, _ = law._numbers(law.columns.scaled(x))
    own = x[..., :1], law._only(np.array([0])), np.array([True])
    return _moved(*own, loc[..., :1], log_scale[..., :1], knots[..., :1, :])[..., 0]


@pytest.mark.parametrize("spread", [0.0, 0.1], ids=["start", "random"])
def test_a_mixed_event_integrates_to_one(rng, spread):
    """A choice among three, a small count and a positive number of orders of magnitude."""
    rows = np.stack([rng.integers(0, 3, len(CONTEXT)), whole(rng, 14.0), np.exp(2 * moved(rng))], 1)
    law, kinds = law_of(rows, spread=spread)
    assert kinds == ("few", "whole", "real") and law.columns.is_log[2]
    logs = np.linspace(-40.0, 40.0, 1_201)
    choices, counts = np.arange(3.0), np.arange(0.0, 100.0)
    grid = np.stack(np.meshgrid(choices, counts, np.exp(logs), indexing="ij"), -1)
    density = np.exp(np.asarray(jax.jit(law.log_prob)(grid.astype(np.float32)), float))
    total = (density * grid[..., 2]).sum() * (logs[1] - logs[0])
    assert total == pytest.approx(1.0, abs=2e-3)


def test_no_number_knows_a_later_one(rng):
    rows = np.stack([moved(rng), rng.integers(0, 2, len(CONTEXT)), whole(rng, 50.0), moved(rng)], 1)
    law, _ = law_of(rows, spread=0.3)
    x = jnp.asarray(rows[0], jnp.float32)
    for i, numbers in enumerate(_jacobians(law, x)):
        assert np.abs(numbers[:, i:]).max() == 0.0
        assert i == 0 or np.abs(numbers[:, :i]).max() > 0.0


def _jacobians(law, x):
    """Of each number's law by all numbers, [what it has, d]."""
    z = law.columns.scaled(x)
    loc, log_scale, knots, logits = jax.jacobian(lambda z: law.net(law.context, z))(z)
    each = {i: jnp.concatenate([loc[k, None], log_scale[k, None], knots[k]]) for k, i in enumerate(law.net.moved)}  # fmt: skip
    each |= {i: logits[k] for k, i in enumerate(law.net.few)}
    return [np.asarray(each[i]) for i in range(len(x))]


def test_it_begins_as_the_normal_of_least_squares(rng):
    """Correlated noise on lines: the exact log-density up to what 4,000 rows leave, 13 numbers."""
    mixed = rng.normal(size=(len(CONTEXT), 3)) @ np.array([[1, 0.5, 0], [0, 0.7, 0.2], [0, 0, 0.3]])
    slopes = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
    rows = CONTEXT @ slopes + mixed
    factor = np.array([[1, 0.5, 0], [0, 0.7, 0.2], [0, 0, 0.3]]).T
    law, _ = law_of(rows)
    exact = dist.MultivariateNormal(jnp.array([0.4, -0.3]) @ slopes, scale_tril=jnp.asarray(factor))
    x = exact.sample(jax.random.key(2), (4_000,))
    gap = np.asarray(exact.log_prob(x) - law.log_prob(x))
    assert abs(gap.mean()) < 0.01 and gap.std() < 0.15


def test_it_begins_as_logistic_regression(rng):
    logits = 1.5 * CONTEXT[:, 0] - 0.5
    rows = (rng.uniform(size=(len(CONTEXT), 1)) < 1 / (1 + np.exp(-logits))[:, None]).astype(float)
    law, kinds = law_of(rows)
    exact = dist.Bernoulli(logits=1.5 * 0.4 - 0.5).log_prob(np.array([0.0, 1.0]))
    assert kinds == ("few",)
    assert np.allclose(law.log_prob(np.array([[0.0], [1.0]])), exact, atol=0.1)


def test_draws_have_the_masses(rng):
    """Frequencies of 20,000 draws of a choice and a count, z below 4.5 in 24 comparisons."""
    rows = np.stack([rng.integers(0, 3, len(CONTEXT)), whole(rng, 30.0)], 1)
    law, _ = law_of(rows, spread=0.2)
    drawn = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(3)))
    pairs = np.array(list(itertools.product(range(3), range(26, 34))))
    mass = np.exp(np.asarray(law.log_prob(pairs), float))
    share = (drawn[:, None] == pairs).all(-1).mean(0)
    assert np.abs((share - mass) / np.sqrt(mass * (1 - mass) / len(drawn))).max() < 4.5


def test_what_cannot_be_has_no_mass(rng):
    rows = np.stack([rng.integers(0, 2, len(CONTEXT)), whole(rng, 30.0), np.exp(3 * moved(rng))], 1)
    law, _ = law_of(rows)
    possible = np.array([1.0, 30.0, 2.0])
    assert np.isfinite(law.log_prob(possible))
    for place, wrong in [(0, 2.0), (0, 0.5), (1, -1.0), (1, 29.5), (2, -0.1)]:
        x = possible.copy()
        x[place] = wrong
        assert law.log_prob(x) == -np.inf


def test_its_support_is_that_of_its_numbers(rng):
    counts, _ = law_of(np.stack([whole(rng, 30.0), whole(rng, 60.0)], 1))
    mixed, _ = law_of(np.stack([whole(rng, 30.0), moved(rng)], 1))
    assert counts.support.is_discrete and not mixed.support.is_discrete
    assert counts.support(np.array([3.0, 7.0])) and not counts.support(np.array([3.0, 0.5]))
    assert mixed.support(np.array([3.0, 0.5])) and counts.sample(jax.random.key(0)).shape == (2,)
