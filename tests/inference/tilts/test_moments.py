"""The nearest law with given moments: the convex dual, pinned where features are redundant."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _tilts import KEY, normal

from lapilli import inference, ppl
from lapilli.inference.tilts._moments import solve_dual

RNG = np.random.default_rng(0)


def test_the_dual_is_solved_on_fixed_codes():
    """On 4,000 codes with probabilities of five classes: the weighted moments to 1e-6, though features sum to one."""
    logits = RNG.normal(size=(4000, 5)) * 2 + np.array([2.0, 0, 0, 0, 0])
    phi = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
    goal = np.full(5, 0.2)
    gamma, log_weights = solve_dual(phi, goal)
    weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    np.testing.assert_allclose((weights[:, None] * phi).sum(0), goal, atol=1e-6)
    # Redundant: a constant added to gamma changes no weight, and a pinned last coordinate gives the same law.
    pinned = solve_dual(phi[:, :4], goal[:4])[0]
    np.testing.assert_allclose((gamma - gamma[4])[:4], pinned, atol=1e-3)


def test_a_moment_of_a_coin_has_a_closed_form():
    phi = (RNG.random((4000, 1)) < 0.3).astype(float)
    share = phi.mean()
    gamma = solve_dual(phi, np.array([0.5]))[0]
    np.testing.assert_allclose(gamma[0], np.log(1 / share - 1), rtol=1e-5)


def test_a_normal_mean_is_shifted():
    """E[x] = 0.5 by the tilt exp(x / 2), at KL 1/8; the moments follow those of the tilt."""
    made = inference.tilts.match_moments(normal, lambda x: x, 0.5, KEY, num_draws=20_000)
    assert abs(made.weights[0] - 0.5) < 4.5 / 20_000**0.5
    assert abs(made.kl - 0.125) < 0.02 and made.k_hat < 0.7
    ratio = made.tilt.log_density({"x": 1.0}) - normal.log_density({"x": 1.0})
    np.testing.assert_allclose(ratio, made.weights[0], rtol=1e-5)
    assert "0.12" in repr(made)


def test_a_shift_of_two_features_at_once():
    """Mean and square of a Normal: the tilt is Normal with the given moments."""
    made = inference.tilts.match_moments(
        normal, lambda x: jnp.stack([x, x**2]), [0.3, 0.6], KEY, num_draws=20_000
    )
    variance = 0.6 - 0.3**2
    exact = np.array([0.3 / variance, 0.5 - 0.5 / variance])
    assert np.abs(made.weights - exact).max() < 0.1


def test_moments_that_cannot_be_had_are_named():
    phi = RNG.random((100, 2))
    with pytest.raises(ValueError, match="moment 1 is to be 2"):
        solve_dual(phi, np.array([0.5, 2.0]))
    # Each within its range, not both together: the features are equal.
    with pytest.raises(ValueError, match="no weights of 100 draws have all the moments together"):
        solve_dual(phi[:, :1].repeat(2, 1), np.array([0.3, 0.7]))
    with pytest.raises(ValueError, match=r"have shape \(2,\) a draw"):
        solve_dual(phi, np.zeros(3))
    with pytest.raises(ValueError, match="are not finite"):
        solve_dual(phi * np.nan, np.zeros(2))


def test_observations_and_factors_are_refused():
    """Weights found from draws of the prior would tilt the posterior."""

    def model():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=2.0)
        return x

    tilted = inference.tilt(normal, lambda x: x)
    for made, name in ((model, "y"), (tilted, tilted.site)):
        with pytest.raises(ValueError, match=rf"match_moments: .* factors \['{name}'\].*prior"):
            inference.tilts.match_moments(made, lambda x: x, 0.5, KEY)
