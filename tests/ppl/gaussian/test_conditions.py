"""Condition numbers and single precision: moments of integrated sites against double precision on the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

RNG = np.random.default_rng(0)
NUM = 60


def regression(x, y, width, noise):
    beta = ppl.sample("beta", dist.Normal(0.0, width).expand([x.shape[1]]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)


def row_by_row(x, y, width, noise):
    beta = ppl.sample("beta", dist.Normal(0.0, width).expand([x.shape[1]]).to_event(1))

    def step(beta, row):
        ppl.sample("y", dist.Normal(row[0] @ beta, noise), obs=row[1])
        return beta, None

    ppl.scan(step, beta, (x, y))


def designs():
    """Columns in units of their own: condition numbers from 1e2 to 1e6, equilibrated ones up to 1e3."""
    iq, hs = RNG.normal(100, 15, NUM), RNG.integers(0, 2, NUM)
    ones = np.ones(NUM)
    return {
        "interaction": np.stack([ones, hs, iq, hs * iq], 1),
        "powers": np.stack([np.linspace(1, 60, NUM) ** k for k in range(4)], 1),
        "units": RNG.normal(size=(NUM, 4)) * 10.0 ** np.array([-3, -1, 1, 3]),
        "twins": np.stack([ones, ones + 1e-3 * RNG.normal(size=NUM), RNG.normal(size=NUM), hs], 1),
    }


def marginals(program):
    left = ppl.eliminate(program, "beta")
    return jax.jit(lambda *args: left.posterior_marginals({}, *args)["beta"])


@pytest.fixture(scope="module")
def fitted():
    return marginals(regression)


@pytest.fixture(scope="module")
def scanned():
    return marginals(row_by_row)


def exact(x, y, width, noise):
    """By the singular values of the whitened rows and the prior, in double precision."""
    rows = np.concatenate([x / noise, np.eye(x.shape[1]) / width])
    scaled = np.linalg.norm(rows, axis=0)
    u, s, v = np.linalg.svd(rows / scaled, full_matrices=False)
    mean = v.T @ (u[: len(y)].T @ (y / noise) / s) / scaled
    return mean, np.linalg.norm(v.T / s, axis=1) / scaled


@pytest.mark.parametrize("width", [10.0, 1e4])
@pytest.mark.parametrize("name", ["interaction", "powers", "units", "twins"])
def test_moments_of_a_regression_in_its_own_units(fitted, scanned, name, width):
    x = designs()[name].astype(np.float32)
    for noise in (18.0, 0.1):
        y = (x @ (20 / np.abs(x).max(0)) + noise * RNG.normal(size=NUM)).astype(np.float32)
        mean, scale = exact(x.astype(float), y.astype(float), width, float(np.float32(noise)))
        rounding = np.spacing(np.abs(mean).astype(np.float32))  # of what is returned
        for moments in (fitted, scanned):
            found = moments(x, y, width, np.float32(noise))
            np.testing.assert_allclose(found.scale, scale, rtol=1e-3)
            assert (np.abs(found.loc - mean) < 0.02 * scale + rounding).all()


@pytest.mark.parametrize("name", ["interaction", "powers", "units", "twins"])
def test_rows_seen_one_by_one_tell_as_much_as_all_at_once(fitted, scanned, name):
    """Noise of 1e-4, where the data are known to a few roundings of their own: means were off by 170 scales."""
    x = designs()[name].astype(np.float32)
    y = (x @ (20 / np.abs(x).max(0))).astype(np.float32)
    mean, scale = exact(x.astype(float), y.astype(float), 10.0, float(np.float32(1e-4)))
    for moments in (fitted, scanned):
        found = moments(x, y, 10.0, np.float32(1e-4))
        np.testing.assert_allclose(found.scale, scale, rtol=1e-3)
        assert (np.abs(found.loc - mean) < 0.5 * scale).all()


def blocks(size):
    """The same regression, some rows a step: met one by one, or together by the root of their covariance, or by least squares."""

    def program(x, y, width, noise):
        beta = ppl.sample("beta", dist.Normal(0.0, width).expand([x.shape[1]]).to_event(1))

        def step(beta, row):
            ppl.sample("y", dist.Normal(row[0] @ beta, noise).to_event(1), obs=row[1])
            return beta, None

        ppl.scan(step, beta, (x.reshape(-1, size, x.shape[1]), y.reshape(-1, size)))

    return program


def log_evidence(x, y, width, noise):
    """In double precision, by an orthogonal triangle of the whitened rows and the prior."""
    rows = np.concatenate([x / noise, np.eye(x.shape[1]) / width])
    rhs = np.concatenate([y / noise, np.zeros(x.shape[1])])
    scaled = np.linalg.norm(rows, axis=0)
    q, r = np.linalg.qr(rows / scaled)
    left = rhs - q @ (q.T @ rhs)
    log_det = np.log(np.abs(np.diag(r)) * scaled * width).sum() + len(y) * np.log(noise)
    return -0.5 * (len(y) * np.log(2 * np.pi) + left @ left) - log_det


@pytest.mark.fast("1")
@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_evidence_of_rows_is_right_or_not_a_number(size):
    """Priors up to 1e8 noises wide: a step that takes rounding for what it is told lost up to 2e8 nats, in silence.

    Twice the columns for blocks of five, so that they are fewer than the coefficients.
    """
    left = ppl.eliminate(blocks(size), "beta")
    run = jax.jit(lambda *args: left.log_density({}, *args))
    given = dict.fromkeys(designs(), 0)
    for name in given:
        for noise in (1e-1, 1e-2, 1e-3, 1e-4):
            x = designs()[name].astype(np.float32)
            if size == 5:
                x = np.concatenate([x, np.roll(x, 7, 0) + np.float32(0.1) * x], 1)
            y = (x @ (20 / np.abs(x).max(0)) + noise * RNG.normal(size=NUM)).astype(np.float32)
            found = float(run(x, y, np.float32(1e4), np.float32(noise)))
            want = log_evidence(x.astype(float), y.astype(float), 1e4, float(np.float32(noise)))
            # Beside 0.1, what is lost with the digits of y in units of the noise.
            assert np.isnan(found) or abs(found - want) < 0.1 + 1e-6 * 60 / noise, (name, noise)
            given[name] += np.isfinite(found)
    assert size == 5 or min(given["powers"], given["units"]) == 4  # of four


def seasons(y, width, noise):
    """A level and four seasons whose sum is seen: of wide numbers all but a sum may be unknown for long."""
    x = ppl.sample("x", dist.Normal(0.0, width).expand([4]).to_event(1))
    level = ppl.sample("level", dist.Normal(0.0, width))

    def step(carry, y):
        level, x = carry
        level = ppl.sample("levels", dist.Normal(level, 0.1 * noise))
        new = ppl.sample("seasons", dist.Normal(-x[:3].sum(), 0.1 * noise))
        ppl.sample("y", dist.Normal(level + new, noise), obs=y)
        return (level, jnp.concatenate([new[None], x[:3]])), None

    ppl.scan(step, (level, x), y)


@pytest.mark.slow(reason="two precisions of a series to compile")
def test_a_series_is_right_or_not_a_number():
    """Widths up to 1e7 noises: what a step has rounded away is seen where later data need it (6 nats were lost at 1e6)."""
    left = ppl.eliminate(seasons, ["level", "x", "levels", "seasons"])

    @jax.jit
    def run(*args):
        return left.log_density({}, *args), left.posterior_marginals({}, *args)

    y = (10 + RNG.normal(size=40)).astype(np.float32)
    found = {w: run(y, np.float32(w), np.float32(1.0)) for w in (1e1, 1e3, 1e5, 1e6, 1e7)}
    with jax.enable_x64(True):
        wide = {w: run(y.astype(float), w, 1.0) for w in found}
    for width, (log_density, marginals) in found.items():
        exact_density, exact_marginals = wide[width]
        assert np.isfinite(exact_density) and np.isfinite(log_density) == (width < 1e6)
        if np.isfinite(log_density):
            np.testing.assert_allclose(log_density, exact_density, atol=0.05)
        for name, now in marginals.items():
            known = np.isfinite(now.loc)
            assert known.mean() > 0.9 or width > 1e3
            mean, scale = (np.asarray(x) for x in exact_marginals[name].get_args().values())
            assert (np.abs(np.asarray(now.loc, float) - mean) < 0.1 * scale)[known].all()


def grouped(y, width, spread):
    """Groups side by side, and their rows one after the other."""
    mean = ppl.sample("mean", dist.Normal(0.0, width))
    with ppl.plate("groups", y.shape[1]):
        effect = ppl.sample("effect", dist.Normal(mean, spread))

        def step(carry, y):
            ppl.sample("y", dist.Normal(effect, 1.0), obs=y)
            return carry, None

        ppl.scan(step, 0.0, y)


@pytest.mark.slow  # `test_a_series_is_right_or_not_a_number` meets the same loss
def test_evidence_of_groups_under_a_vague_mean():
    left = ppl.eliminate(grouped, ["mean", "effect"])
    run = jax.jit(lambda *args: left.log_density({}, *args))
    y = (100 + RNG.normal(size=(10, 8))).astype(np.float32)
    for width in (1e1, 1e4, 1e6):
        found = run(y, np.float32(width), np.float32(1.0))
        with jax.enable_x64(True):
            want = run(y.astype(float), width, 1.0)
        np.testing.assert_allclose(found, want, atol=0.01)  # 1.8 nats were lost at 1e6


def test_draws_have_these_moments():
    x = designs()["interaction"].astype(np.float32)
    y = (x @ np.array([-11.0, 51.0, 0.97, -0.48]) + 18 * RNG.normal(size=NUM)).astype(np.float32)
    left = ppl.eliminate(regression, "beta")
    draw = jax.jit(lambda key: left.posterior(key, {}, x, y, 1e3, 18.0, num_samples=4000)["beta"])
    draws = np.asarray(draw(jax.random.key(0)), float)
    mean, scale = exact(x.astype(float), y.astype(float), 1e3, 18.0)
    assert (np.abs(draws.mean(0) - mean) < 4.5 * scale / np.sqrt(4000)).all()
    np.testing.assert_allclose(draws.std(0) / scale, 1, atol=4.5 / np.sqrt(2 * 4000))


def test_what_rounding_has_made_is_not_a_number(fitted):
    """Two columns that are one up to the seventh digit, under a prior that says nothing."""
    x = designs()["twins"].astype(np.float32)
    x[:, 1] = x[:, 0] + np.float32(2e-7) * (np.arange(NUM) % 2)
    found = fitted(x, x @ np.ones(4, np.float32), 1e4, np.float32(1e-3))
    assert np.isnan(found.scale[:2]).all() and np.isnan(found.loc[:2]).all()
    x[:, 1] = x[:, 0] + np.float32(1e-4) * RNG.normal(size=NUM).astype(np.float32)
    found = fitted(x, x @ np.ones(4, np.float32), 1e4, np.float32(1e-3))
    assert np.isfinite(found.scale).all()


def test_a_series_of_no_steps():
    def walk(y):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, x

        x, xs = ppl.scan(step, ppl.sample("start", dist.Normal(0.0, 1.0)), y)
        ppl.sample("end", dist.Normal(x + xs.sum(), 0.5), obs=0.3)

    left, y = ppl.eliminate(walk, ["start", "x"]), jnp.zeros(0)
    want = dist.Normal(0.0, 1.25**0.5).log_prob(0.3)
    run = jax.jit(lambda y: (left.log_density({}, y), left.posterior_marginals({}, y)))
    log_density, found = run(y)
    np.testing.assert_allclose(log_density, want, rtol=1e-6)
    np.testing.assert_allclose(found["start"].loc, 0.24, rtol=1e-6)
    draw = lambda y: left.posterior(jax.random.key(0), {}, y, num_samples=3)
    assert jax.eval_shape(draw, y)["x"].shape == (3, 0)
