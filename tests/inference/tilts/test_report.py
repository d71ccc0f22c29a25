"""The report: exact on lists of outcomes, bounded elsewhere, and what it says of hacked rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _tilts import (
    KEY,
    LENGTH,
    MEAN,
    REWARDS,
    STRINGS,
    VARIANCE,
    A,
    C,
    bits,
    normal,
    pairs,
    policy,
    quadratic,
)

from lapilli import inference, ppl
from lapilli.inference.tilts._report import _narrow


def shifted(mean, scale):
    return ppl.as_program(lambda: ppl.sample("x", dist.Normal(mean, scale)))


def by_hand(logits):
    """KL, mean reward, entropy of a Markov chain of bits, by a loop over all strings."""
    x, reward = STRINGS, REWARDS
    before = np.concatenate([np.zeros((len(x), 1), int), x[:, :-1]], 1)
    each = logits[np.arange(LENGTH), before]
    log_q = (x * each - np.logaddexp(0, each)).sum(1)
    log_p = reward - LENGTH * np.log(2)
    log_p -= np.logaddexp.reduce(log_p)
    q = np.exp(log_q)
    return (q * (log_q - log_p)).sum(), (q * reward).sum(), -(q * log_q).sum(), x, log_p


@pytest.fixture(scope="module")
def strings():
    return inference.tilt(bits, pairs)


def test_outcomes_are_summed(strings):
    logits = np.random.default_rng(0).normal(size=(LENGTH, 2))
    made = inference.tilts.report(
        strings, policy.bind({"logits": jnp.asarray(logits, jnp.float32)}), KEY
    )
    kl, reward, entropy, _, log_p = by_hand(logits)
    assert made.kl_is == "exact" and made.kl.error == 0.0
    np.testing.assert_allclose(made.kl.value, kl, rtol=1e-5)
    np.testing.assert_allclose(made.reward.value, reward, rtol=1e-5)
    np.testing.assert_allclose(made.entropy.value, entropy, rtol=1e-5)
    np.testing.assert_allclose(made.reward_base.value, 11 / 4, rtol=1e-6)
    assert made.k_hat is None and made.evaluations == 2**LENGTH and made.seconds > 0
    assert "exact" in repr(made) and len(repr(made).splitlines()) <= 10


def test_draws_are_counted(strings):
    """From above, by some (outcomes - 1) / (2 draws)."""
    _, _, _, x, log_p = by_hand(np.zeros((LENGTH, 2)))
    rows = np.random.default_rng(1).choice(len(x), 200_000, p=np.exp(log_p))
    made = inference.tilts.report(strings, {"x": x[rows]}, KEY)
    assert made.kl_is == "plug-in" and 0 < made.kl.value < 2 * 4095 / 400_000
    with pytest.raises(ValueError, match=r"draws of the law have the sites \['y'\]"):
        inference.tilts.report(strings, {"y": x[rows]}, KEY)


def test_draws_of_a_coin_have_the_error_of_their_rewards():
    coin = inference.tilt(lambda: ppl.sample("x", dist.Bernoulli(0.5)), lambda x: 2.0 * x)
    report = lambda x: inference.tilts.report(coin, {"x": np.asarray(x)}, KEY)
    found = report([0, 1, 1, 0, 1])
    rewards = np.array([0.0, 2, 2, 0, 2])
    np.testing.assert_allclose(found.reward.value, rewards.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.reward.error, rewards.std(ddof=1) / 5**0.5, rtol=1e-6)
    assert found.kl.error > 0 and found.entropy.error > 0
    for draws, text in (
        ([0.2, 0.9, 1.7], "draws of the law, site 'x' .* not integers"),
        ([0, 2, 1], r"1 of 3 draws are none of the 2 outcomes .* draw 1 among them: \{'x': 2\}"),
        ([1], "1 draws of the law are given"),
        ([], "0 draws of the law are given"),
        ([[0], [1]], r"shapes \{'x': \(2, 1\)\}, and one value of each site \{'x': \(\)\}"),
    ):
        with pytest.raises(ValueError, match=text):
            report(draws)


@pytest.fixture(scope="module")
def reports():
    """Of a Normal guide, off by a known divergence; with draws of the tilt."""
    made = inference.tilt(normal, quadratic)
    at = MEAN + VARIANCE**0.5 * jax.random.normal(jax.random.key(1), (4000,))
    guide = shifted(0.9, 0.6)
    return inference.tilts.report(made, guide, KEY, num_draws=4000, draws={"x": at})


KL = np.log(VARIANCE**0.5 / 0.6) + (0.36 + (0.9 - MEAN) ** 2) / (2 * VARIANCE) - 0.5


def test_the_divergence_lies_between_its_bounds(reports):
    assert reports.kl_is == "estimate"
    assert abs(reports.kl.value - KL) < 4.5 * reports.kl.error
    assert abs(reports.kl_at_most.value - KL) > -4.5 * reports.kl_at_most.error
    forward = np.log(0.6 / VARIANCE**0.5) + (VARIANCE + (0.9 - MEAN) ** 2) / 0.72 - 0.5
    # The upper bound is off by KL(p* || q), in the mean.
    assert abs(reports.kl_at_most.value - KL - forward) < 4.5 * reports.kl_at_most.error
    log_z = A**2 / (2 * (1 + C)) - np.log1p(C) / 2
    assert abs(reports.log_z.value - log_z) < 4.5 * reports.log_z.error
    entropy = np.log(0.6) + 0.5 * np.log(2 * np.pi * np.e)
    assert abs(reports.entropy.value - entropy) < 4.5 * reports.entropy.error
    expected = A * 0.9 - C / 2 * (0.81 + 0.36)
    assert abs(reports.reward.value - expected) < 4.5 * reports.reward.error
    assert reports.k_hat < 0.7 and reports.k_hat_base < 0.7


def test_a_hacked_reward_shows_as_distance():
    """A policy at the maximum of the reward has more of it than the tilt, and far more distance than the model itself."""
    made = inference.tilt(normal, quadratic)
    honest = inference.tilts.report(made, normal, KEY)
    hacked = inference.tilts.report(made, shifted(A / C, 0.05), KEY)
    assert hacked.reward.value > hacked.reward_tilt.value > honest.reward.value
    assert hacked.kl.value > 2 * honest.kl.value


def test_weights_of_infinite_variance_are_told():
    """P(Z > 4.5) by cross-entropy: with the optimal width of 0.197 the weights have no variance, with the mean alone they do.

    K-hat does not see it at 10,000 draws: the tail begins three widths out. The rays do.
    """
    from scipy.stats import norm

    truth = norm.sf(4.5)
    np.testing.assert_allclose(truth, 3.39767e-6, rtol=1e-5)
    mean = norm.pdf(4.5) / truth
    width = np.sqrt(1 + 4.5 * mean - mean**2)
    np.testing.assert_allclose([mean, width], [4.70432, 0.19701], rtol=1e-4)
    rare = inference.tilt(normal, lambda x: x > 4.5, num_tried=0)
    keys = jax.random.split(KEY, 10_000)

    def weights(scale, at):
        q = shifted(at, scale)

        def one(key):
            trace = q.simulate(key)
            return rare.log_density(trace.choices) - trace.log_density

        return np.asarray(jax.jit(jax.vmap(one))(keys), float)

    wide = weights(1.0, 4.6)
    shares = np.exp(wide)
    estimate, error = shares.mean(), shares.std() / 100
    assert abs(estimate - truth) < 4.5 * error and error / truth < 0.03
    assert abs(shares.var() / truth**2 - 5.06) < 0.5
    with_width, with_mean = (
        inference.tilts.report(rare, shifted(*q), KEY, num_draws=10_000)
        for q in ((mean, width), (4.6, 1.0))
    )
    assert with_width.k_hat < 0.7 and with_width.narrow_tails > 0.2 and with_mean.narrow_tails == 0
    assert "have NO variance" in repr(with_width) and "have NO" not in repr(with_mean)
    for made in (with_width, with_mean):  # by draws of model and law together
        assert abs(made.log_z.value - np.log(truth)) < 4.5 * made.log_z.error


@pytest.mark.parametrize("seed", range(6))
def test_rays_end_in_the_tail_whatever_their_draws(seed):
    """Of draws near the centre, too, inwards of which the density of a tail grows and no weight does: 0, or near a half."""
    rare, key = inference.tilt(normal, lambda x: x > 4.5, num_tried=0), jax.random.key(seed)
    shares = [_narrow(rare, shifted(4.7, width), key, (), 256) for width in (1.0, 0.197)]
    assert shares[0] == 0 and 0.3 < shares[1] < 0.7


def test_estimated_densities_bound_from_one_side():
    made = inference.tilt(normal, quadratic)
    q = ppl.normalize(made, proposal=normal, num_particles=8)
    found = inference.tilts.report(made, q, KEY)
    assert found.kl_is == "estimate" and found.kl.value > -4.5 * found.kl.error
    assert found.kl.value < inference.tilts.report(made, normal, KEY).kl.value


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"y": np.zeros(9)}, r"draws of the tilt have the sites \['y'\]"),
        ({}, r"draws of the tilt have the sites \[\]"),
        ({"x": np.zeros((9, 1))}, r"draws of the tilt have the shapes {'x': \(9, 1\)}"),
        ({"x": np.zeros(1)}, "1 draws of the tilt are given"),
        ({"x": np.array([0.0, np.nan, 1.0])}, r"draws of the tilt, site 'x' .*1 of 3 numbers .* not finite"),
    ],
    ids=["another site", "none", "another shape", "one", "nan"],
)  # fmt: skip
def test_given_draws_are_draws_of_the_tilt(draws, message):
    """A NaN among them was a bound of NaN; an axis of length 1 made one number of all."""
    with pytest.raises(ValueError, match=message):
        inference.tilts.report(inference.tilt(normal, quadratic), normal, KEY, draws=draws)


def test_given_draws_lie_where_the_tilt_does():
    law = lambda: ppl.sample("x", dist.Exponential(1.0))
    made = inference.tilt(law, lambda x: -x, num_tried=0)
    with pytest.raises(
        ValueError,
        match=r"1 of 3 draws in argument 'draws' are none of the tilt, the first one draw 2",
    ):
        inference.tilts.report(made, law, KEY, draws={"x": np.array([0.5, 1.0, -1.0])})
    with pytest.raises(ValueError, match=r"draws of the law, site 'x' .* not finite"):
        inference.tilts.report(made, {"x": np.array([0.5, np.inf])}, KEY)


def test_what_cannot_be_compared_is_named(strings):
    with pytest.raises(ValueError, match="num_draws must be an integer >= 2"):
        inference.tilts.report(strings, policy.bind({}), KEY, num_draws=1)
    rare = inference.tilt(normal, lambda x: x > 20.0, num_tried=0)
    with pytest.raises(ValueError, match="-inf at all of them"):
        inference.tilts.report(rare, normal, KEY)
    squared = inference.objective(lambda model, _: -(model() ** 2))(lambda: ppl.param("m", 0.5))
    alone = inference.fit(squared, optax.sgd(0.1), num_steps=1, progress=False)
    with pytest.raises(TypeError, match="the fit has no guide"):
        inference.tilts.report(strings, alone, KEY)
    with pytest.raises(ValueError, match="tilt must be of type TiltedProgram"):
        inference.tilts.report(normal, normal, KEY)


def test_a_constraint_outside_of_which_the_law_draws_is_infinitely_far():
    above = inference.tilt(normal, lambda x: x > 0.0)
    found = inference.tilts.report(above, normal, KEY)
    assert found.kl.value == np.inf and found.residual == np.inf
