"""Means that are not affine: extended and unscented filters against textbook recursions, and as proposals against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.array([[0.3, 0.9], [1.2, 0.1], [-0.5, 1.4], [0.8, 0.2]])
SEEN = jnp.array([True, True, False, True])
Q, R = np.diag([0.4, 0.25]), np.diag([0.5, 0.3])


@jax.jit
def move(x):
    return jnp.stack([x[0] + 0.5 * jnp.sin(x[1]), 0.8 * x[1] * jnp.exp(-0.1 * x[0] ** 2)])


@jax.jit
def look(x):
    return jnp.stack([x[0] ** 2 / 2, jnp.log1p(jnp.exp(x[1]))])


def system(y, slope=1.0):
    first = ppl.sample("first", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))

    def step(x, data):
        y, seen = data
        x = ppl.sample("x", dist.MultivariateNormal(move(x), jnp.asarray(Q)))
        law = dist.MultivariateNormal(slope * look(x), jnp.asarray(R))
        ppl.sample("y", law.mask(seen), obs=y)
        return x, None

    ppl.scan(step, first, (y, SEEN))


def extended(y):
    """Log-likelihood, and smoothed means and variances, by the recursions of Sarkka 2013, sections 5.2 and 9.1."""
    slope_of = {fn: jax.jit(jax.jacobian(fn)) for fn in (move, look)}
    m, p, total, kept = np.zeros(2), np.eye(2), 0.0, []
    for value, seen in zip(np.asarray(y, float), SEEN, strict=True):
        f = np.asarray(slope_of[move](m), float)
        before = m, p
        m, p = np.asarray(move(m), float), f @ p @ f.T + Q
        predicted = m, p
        if seen:
            h = np.asarray(slope_of[look](m), float)
            s = h @ p @ h.T + R
            gain, away = p @ h.T @ np.linalg.inv(s), value - np.asarray(look(m), float)
            total += -0.5 * (away @ np.linalg.solve(s, away) + np.linalg.slogdet(2 * np.pi * s)[1])
            m, p = m + gain @ away, p - gain @ s @ gain.T
        kept.append((before, f, predicted, (m, p)))
    means, variances = [m], [np.diag(p)]
    for (before, f, predicted, _), (_, _, _, _) in zip(kept[:0:-1], kept[-2::-1], strict=True):
        back = before[1] @ f.T @ np.linalg.inv(predicted[1])
        m = before[0] + back @ (m - predicted[0])
        p = before[1] + back @ (p - predicted[1]) @ back.T
        means.append(m)
        variances.append(np.diag(p))
    return total, np.array(means[::-1]), np.array(variances[::-1])


def unscented(y):
    """Log-likelihood by the recursion of Sarkka 2013, section 6.5, with points of equal weight and none at the centre."""

    def moments(fn, m, p):
        root = np.sqrt(2) * np.linalg.cholesky(p)
        points = np.concatenate([m + root.T, m - root.T])
        values = np.array([np.asarray(fn(jnp.asarray(x)), float) for x in points])
        mean = values.mean(0)
        around = values - mean
        return mean, around.T @ around / 4, (points - m).T @ around / 4

    m, p, total = np.zeros(2), np.eye(2), 0.0
    for value, seen in zip(np.asarray(y, float), SEEN, strict=True):
        m, p, _ = moments(move, m, p)
        p = p + Q
        if seen:
            mean, s, cross = moments(look, m, p)
            s = s + R
            gain, away = cross @ np.linalg.inv(s), value - mean
            total += -0.5 * (away @ np.linalg.solve(s, away) + np.linalg.slogdet(2 * np.pi * s)[1])
            m, p = m + gain @ away, p - gain @ s @ gain.T
    return total


@pytest.mark.slow(reason="a filter and a smoother to compile")
def test_the_extended_filter_and_smoother_are_the_textbooks():
    program = ppl.eliminate(system, ["first", "x"], approximation="ekf")
    total, means, variances = extended(Y)

    @jax.jit
    def run(y):
        law, draws = (
            program.posterior_marginals({}, y),
            program.posterior(KEY, {}, y, num_samples=4000),
        )
        return program.log_density({}, y), law["x"], draws["x"]

    found, law, draws = run(Y)
    assert abs(float(found) - total) < 1e-4
    np.testing.assert_allclose(law.loc, means, atol=2e-4)
    np.testing.assert_allclose(law.scale**2, variances, rtol=2e-3)
    # Draws of the linearised system have these moments.
    np.testing.assert_allclose(draws.mean(0), means, atol=4.5 * np.sqrt(variances.max() / 4000))
    np.testing.assert_allclose(draws.var(0), variances, rtol=0.15)


def test_the_unscented_filter_is_the_textbooks():
    # Points depend on the root of a covariance: both are triangular.
    program = ppl.eliminate(system, ["first", "x"], approximation="ukf")
    with jax.enable_x64(True):
        found = float(
            jax.jit(lambda y: program.log_density({}, y))(jnp.asarray(np.asarray(Y), float))
        )
        assert abs(found - unscented(Y)) < 1e-9
    with pytest.raises(TypeError, match='keeps no law of .*Use approximation="ekf"'):
        program.posterior_marginals({}, Y)


@pytest.mark.slow_for("ekf", "ukf")
@pytest.mark.parametrize("approximation", ["ekf", "ukf"])
def test_derivatives_are_those_of_the_approximation(approximation):
    program = ppl.eliminate(system, ["first", "x"], approximation=approximation)
    fn = jax.jit(lambda slope: program.log_density({}, Y, slope))
    slope = jax.grad(fn)(1.0)
    assert abs(float(slope) - float(fn(1.01) - fn(0.99)) / 0.02) < 2e-2 * (1 + abs(float(slope)))


@pytest.mark.slow
def test_derivatives_of_smoothed_means_follow_the_points_of_linearisation():
    program = ppl.eliminate(system, ["first", "x"], approximation="ekf")
    with jax.enable_x64(True):
        y = jnp.asarray(np.asarray(Y), float)
        fn = jax.jit(lambda slope: program.posterior_marginals({}, y, slope)["x"].loc.sum())
        assert abs(float(jax.grad(fn)(1.0)) - float(fn(1.00001) - fn(0.99999)) / 2e-5) < 1e-6


def test_rows_stay_apart():
    def rows(y, curve):
        with ppl.plate("rows", 3):
            x = ppl.sample("x", dist.Normal(jnp.arange(3.0), 1.0))
            ppl.sample("y", dist.Normal(x + curve * jnp.tanh(x), 0.5), obs=y)

    y = jnp.array([0.5, 0.2, 3.0])
    for approximation in ("ekf", "ukf"):
        program = ppl.eliminate(rows, "x", approximation=approximation)
        log_probs = jax.jit(lambda y, p=program: p.trace({}, y, 0.5).log_probs["y"])(y)
        assert log_probs.shape == (3,)
        for i in range(3):
            if approximation == "ekf":
                at = float(i)
                mean, slope = at + 0.5 * np.tanh(at), 1 + 0.5 / np.cosh(at) ** 2
                scale = np.sqrt(slope**2 + 0.25)
            else:
                points = np.array([i - 1.0, i + 1.0])
                values = points + 0.5 * np.tanh(points)
                mean, scale = values.mean(), np.sqrt(values.var() + 0.25)
            expected = dist.Normal(mean, scale).log_prob(y[i])
            assert abs(float(log_probs[i]) - float(expected)) < 1e-5


def growth(y):
    def step(x, y):
        regime = ppl.sample("regime", dist.Bernoulli(0.3))
        x = ppl.sample("x", dist.Normal(0.8 * x + jnp.sin(x) + regime, 0.8))
        ppl.sample("y", dist.Normal(x + 0.1 * x**2, 0.15), obs=y)
        ppl.sample("count", dist.Poisson(jnp.exp(0.3 * x)), obs=1)
        return x, None

    ppl.scan(step, 0.2, y)


def evidence_of_growth(y):
    """By a grid over x and a sum over regimes."""
    x = np.linspace(-12, 12, 4001)
    width = x[1] - x[0]
    normal = lambda v, m, s: np.exp(-0.5 * ((v - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
    density, start = None, 0.2
    for value in np.asarray(y, float):
        seen = normal(value, x + 0.1 * x**2, 0.15) * np.exp(0.3 * x - np.exp(0.3 * x))
        new = 0.0
        for regime, weight in ((0, 0.7), (1, 0.3)):
            if density is None:
                new = new + weight * normal(x, 0.8 * start + np.sin(start) + regime, 0.8)
            else:
                mean = 0.8 * x + np.sin(x) + regime
                new = new + weight * np.array(
                    [(density * normal(v, mean, 0.8)).sum() * width for v in x]
                )
        density = new * seen
    return np.log(density.sum() * width)


@pytest.mark.slow_for("ekf", "ukf")
@pytest.mark.parametrize("approximation", ["ekf", "ukf"])
def test_the_evidence_of_particles_is_unbiased_with_the_proposal(approximation):
    y = jnp.array([0.6, 1.9, 2.1])
    exact = evidence_of_growth(y)

    def run(proposal):
        run = lambda key: (
            inference.smc(
                growth, key, y, num_particles=32, proposal=proposal, history="none"
            ).log_evidence
        )
        return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 4000)))

    found = run(approximation)
    ratio = np.exp(found - exact)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))
    assert found.var() < 0.6 * run(None).var()


@pytest.mark.slow
def test_an_affine_step_gets_the_optimal_proposal():
    """All particles of a step then have the same weight given their past: the first step's evidence has no noise."""

    def drift(y):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(jnp.tanh(x), 1.0))
            ppl.sample("y", dist.Normal(2 * x, 0.3), obs=y)
            return x, None

        ppl.scan(step, 0.5, y)

    run = inference.smc(drift, KEY, jnp.array([0.7]), num_particles=8, proposal="ekf")
    exact = dist.Normal(2 * jnp.tanh(0.5), jnp.sqrt(4 + 0.09)).log_prob(0.7)
    np.testing.assert_allclose(run.log_weights, jnp.full(8, run.log_weights[0]), atol=1e-5)
    assert abs(float(run.log_evidence - exact)) < 1e-5


def test_what_has_no_derivative_or_no_proposal_is_refused():
    def jumps(y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(jnp.where(x > 0, 1.0, -1.0), 1.0), obs=y)

    with pytest.raises(ValueError, match="'y': its mean depends on .* through '.*gt.*|select_n"):
        ppl.eliminate(jumps, "x", approximation="ekf").log_density({}, 0.5)
    for make in (ppl.eliminate, lambda p, _, approximation: ppl.kalman_proposal(p, approximation)):
        with pytest.raises(ValueError, match="approximation='kf' is none of 'ekf', 'ukf'"):
            make(jumps, "x", approximation="kf")

    def counts(y):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.sample("n", dist.Poisson(jnp.exp(x)))
            return x, None

        ppl.scan(step, 0.0, y)

    with pytest.raises(
        ValueError, match="'n': .* depends on such sites of the same step and is not normal"
    ):
        inference.smc(counts, KEY, jnp.zeros(2), num_particles=4, proposal="ekf")

    def nested(y):
        def outer(x, y):
            def inner(x, _):
                return ppl.sample("x", dist.Normal(x, 1.0)), None

            return ppl.scan(inner, x, None, length=2)[0], None

        ppl.scan(outer, 0.0, y)

    with pytest.raises(ValueError, match="statements stand in a scan inside of a step"):
        inference.smc(nested, KEY, jnp.zeros(2), num_particles=4, proposal="ekf")


def test_a_scale_is_what_it_is_where_the_state_is_believed_to_be():
    def noisy(y):
        x = ppl.sample("x", dist.Normal(1.0, 0.5))
        ppl.sample("y", dist.Normal(2.0 * x, jnp.exp(0.3 * x)), obs=y)

    found = jax.jit(ppl.eliminate(noisy, "x", approximation="ekf").log_density)({}, 1.4)
    scale = np.sqrt(4 * 0.25 + np.exp(0.6))
    np.testing.assert_allclose(found, dist.Normal(2.0, scale).log_prob(1.4), rtol=1e-5)

    def volatility(y):
        x = ppl.sample("x", dist.Normal(1.0, 0.5))
        ppl.sample("y", dist.Normal(0.0, jnp.exp(x)), obs=y)

    with pytest.raises(ValueError, match="'y': its scale or mask .*would learn nothing of them"):
        ppl.eliminate(volatility, "x", approximation="ekf").log_density({}, 1.4)
    for approximation in (None, "ukf"):
        with pytest.raises(ValueError, match="'y': its scale or mask .*only its mean may"):
            ppl.eliminate(noisy, "x", approximation=approximation).log_density({}, 1.4)


def multiplicative(y):
    def step(x, y):
        x = ppl.sample("x", dist.Normal(x + 0.5 * jnp.sin(x), 0.3 + 0.2 * jnp.tanh(x)))
        ppl.sample("y", dist.Normal(jnp.exp(0.5 * x), 0.2 * jnp.exp(0.5 * x)), obs=y)
        return x, x

    ppl.scan(step, ppl.sample("first", dist.Normal(0.2, 0.7)), y)


@pytest.mark.slow
def test_noise_that_is_not_additive_is_the_textbooks():
    """Algorithms 5.5 and 9.1 of Sarkka 2013, in one dimension."""
    y = np.array([1.3, 0.8, 1.9, 1.1])
    m, p, total, kept = 0.2, 0.49, 0.0, []
    for value in y:
        slope, noise = 1 + 0.5 * np.cos(m), 0.3 + 0.2 * np.tanh(m)
        before, m, p = (m, p), m + 0.5 * np.sin(m), slope**2 * p + noise**2
        predicted, h = (m, p), np.exp(0.5 * m)
        s = (0.5 * h) ** 2 * p + (0.2 * h) ** 2
        total += -0.5 * ((value - h) ** 2 / s + np.log(2 * np.pi * s))
        gain = 0.5 * h * p / s
        m, p = m + gain * (value - h), p - gain**2 * s
        kept.append((before, slope, predicted))
    means, variances = [m], [p]
    for before, slope, predicted in kept[:0:-1]:
        back = before[1] * slope / predicted[1]
        m = before[0] + back * (m - predicted[0])
        p = before[1] + back**2 * (p - predicted[1])
        means.append(m)
        variances.append(p)
    program = ppl.eliminate(multiplicative, ["first", "x"], approximation="ekf")
    with jax.enable_x64(True):
        run = lambda y: (program.log_density({}, y), program.posterior_marginals({}, y)["x"])
        found, law = jax.jit(run)(jnp.asarray(y))
        np.testing.assert_allclose(found, total, rtol=1e-9)
        np.testing.assert_allclose(law.loc, means[::-1], rtol=1e-8)
        np.testing.assert_allclose(law.scale**2, variances[::-1], rtol=1e-6)


@pytest.mark.slow
def test_a_scale_that_an_expansion_makes_negative_is_no_number():
    """It was expanded before the first observation, which moves the state far."""

    def moved(y):
        x = ppl.sample("x", dist.Normal(0.0, 3.0))
        scale = 0.5 + jnp.tanh(x) / 2
        ppl.sample("y", dist.Normal(x, 0.1), obs=y)
        ppl.sample("w", dist.Normal(x, scale), obs=y)

    run = jax.jit(ppl.eliminate(moved, "x", approximation="ekf").log_density)
    assert np.isfinite(run({}, 0.5))
    assert np.isnan(run({}, -3.0))


@pytest.mark.slow
def test_the_proposal_takes_such_scales_and_stays_sound():
    y = jnp.array([1.3, 2.2])
    x = np.linspace(-8, 8, 3001)
    width = x[1] - x[0]
    normal = lambda v, m, s: np.exp(-0.5 * ((v - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
    density = normal(x, 0.2, 0.7)
    for value in np.asarray(y, float):
        mean, scale = x + 0.5 * np.sin(x), 0.3 + 0.2 * np.tanh(x)
        moved = np.array([(density * normal(v, mean, scale)).sum() * width for v in x])
        density = moved * normal(value, np.exp(0.5 * x), 0.2 * np.exp(0.5 * x))
    exact = np.log(density.sum() * width)
    run = lambda key: (
        inference.smc(
            multiplicative, key, y, num_particles=32, proposal="ekf", history="none"
        ).log_evidence
    )
    ratio = np.exp(np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 4000))) - exact)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))
