"""Statements after a scan that read what its steps have made, against the quadratic form that the whole program is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _dense_normal import check_integral, dense
from jax.scipy.special import logsumexp

from lapilli import inference, ppl

KEY = jax.random.key(0)
RNG = np.random.default_rng(5)
Y = RNG.normal(size=5)
Y2 = RNG.normal(size=(4, 3))


def mean_and_some(y):
    """The mean, the last state and every other one, after data in the steps."""

    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, z

    last, zs = ppl.scan(step, ppl.sample("start", dist.Normal(0.0, 1.0)), y)
    ppl.sample("mean", dist.Normal(zs.mean() + 0.2 * last, 0.2), obs=0.3)
    ppl.sample("some", dist.Normal(zs[::2], 0.4).to_event(1), obs=y[:3] + 1)


def path_then_data(y):
    """A path of hidden states, observed in a plate."""
    step = lambda z, _: (ppl.sample("z", dist.Normal(0.9 * z, 0.5)),) * 2
    _, zs = ppl.scan(step, 0.0, None, y.shape[0])
    with ppl.plate("time", y.shape[0]):
        ppl.sample("y", dist.Normal(2.0 * zs, 0.3), obs=y)


def of_noise_alone(y):
    """No state: what is drawn in the steps, times what stands outside."""
    slope = ppl.sample("slope", dist.Normal(1.0, 0.5))

    def step(carry, y):
        z = ppl.sample("z", dist.Normal(carry, 0.5))
        ppl.sample("y", dist.Normal(z + slope, 0.3), obs=y)
        return carry + 0.1, z

    _, zs = ppl.scan(step, 0.0, y)
    ppl.sample("sum", dist.Normal(zs.sum() - slope, 0.3), obs=0.2)


def rows_of_series(y):
    def step(z, y):
        with ppl.plate("series", 3):
            z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
            ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, 2.0 * z

    _, zs = ppl.scan(step, jnp.zeros(3), y)
    with ppl.plate("series", 3):
        ppl.sample("mean", dist.Normal(zs.mean(0), 0.2), obs=y[0])


def rows_that_meet(y):
    def step(z, y):
        with ppl.plate("series", 3):
            z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
            ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, z

    _, zs = ppl.scan(step, jnp.zeros(3), y)
    ppl.sample("all", dist.Normal(zs.sum(), 0.2), obs=0.7)


def steps_of_steps(y):
    """The inner steps are read in the outer step, whose own are read after it."""

    def outer(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        inner = lambda u, _: (ppl.sample("u", dist.Normal(u, 0.2)),) * 2
        _, us = ppl.scan(inner, z, None, 2)
        ppl.sample("y", dist.Normal(us.sum(), 0.3), obs=y)
        return z, None

    ppl.scan(outer, 0.0, y)


def two_scans(y):
    """The path of one chain moves another one."""
    step = lambda z, _: (ppl.sample("z", dist.Normal(0.9 * z, 0.5)),) * 2
    _, zs = ppl.scan(step, 0.0, None, y.shape[0])
    ppl.sample("sum", dist.Normal(zs.sum(), 0.5), obs=0.4)

    def second(u, y):
        u = ppl.sample("u", dist.Normal(0.5 * u, 0.5))
        ppl.sample("y", dist.Normal(u, 0.3), obs=y)
        return u, u

    _, us = ppl.scan(second, zs[-1], y)
    ppl.sample("both", dist.Normal(us[0] + zs[1], 0.3), obs=0.1)


CASES = [
    (mean_and_some, ["start", "z"], (Y,)),
    (path_then_data, ["z"], (Y,)),
    (of_noise_alone, ["z", "slope"], (Y,)),
    (rows_of_series, ["z"], (Y2,)),
    (rows_that_meet, ["z"], (Y2,)),
    (steps_of_steps, ["z", "u"], (Y,)),
    (two_scans, ["z", "u"], (Y,)),
]


def test_a_path_that_is_observed_in_a_plate():
    found = jax.jit(ppl.eliminate(path_then_data, "z").log_density)({}, jnp.asarray(Y[:3]))
    root = 0.5 * np.array([[1.0, 0.0, 0.0], [0.9, 1.0, 0.0], [0.81, 0.9, 1.0]])
    law = dist.MultivariateNormal(np.zeros(3), 4 * root @ root.T + 0.09 * np.eye(3))
    np.testing.assert_allclose(found, law.log_prob(Y[:3]), rtol=1e-5)


@pytest.mark.slow  # densities, moments and their oracle
@pytest.mark.parametrize(
    ("program", "sites", "args"), [pytest.param(*x, id=x[0].__name__) for x in CASES]
)
def test_what_steps_have_made_is_read_after_them(program, sites, args):
    check_integral(program, sites, {}, args)


@pytest.mark.slow
def test_draws_are_joint():
    left, sites, args = (
        ppl.eliminate(mean_and_some, ["start", "z"]),
        ["start", "z"],
        (jnp.asarray(Y),),
    )
    exact = dense(mean_and_some, sites, {}, args)
    draws = jax.jit(lambda key: left.posterior(key, {}, *args, num_samples=4000))(KEY)
    flat = np.concatenate([draws["start"][:, None], draws["z"]], -1)
    variance = np.diag(exact.covariance)
    mean = np.r_[exact.mean["start"], exact.mean["z"]]
    assert (np.abs(flat.mean(0) - mean) < 4.5 * np.sqrt(variance / 4000)).all()
    bound = 4.5 * np.sqrt(2 / 4000) * np.sqrt(np.outer(variance, variance))
    assert (np.abs(np.cov(flat.T) - exact.covariance) < bound).all()


@pytest.mark.slow
def test_gradients_and_parallel_steps_agree_with_the_quadratic_form():
    def scaled(y, scale):
        def step(z, y):
            z = ppl.sample(
                "z", dist.Normal(jnp.array([[0.9, 0.2], [0.0, 0.5]]) @ z, scale).to_event(1)
            )
            ppl.sample("y", dist.Normal(z[0], 0.3), obs=y)
            return z, z

        _, zs = ppl.scan(step, jnp.zeros(2), y)
        ppl.sample("mean", dist.Normal(zs.mean(0), scale).to_event(1), obs=y[:2])

    with jax.enable_x64(True):
        y, h = jnp.asarray(Y), 1e-5
        exact = lambda scale: dense(scaled, ["z"], {}, (y, jnp.asarray(scale))).log_density
        slope = (exact(0.7 + h) - exact(0.7 - h)) / (2 * h)
        for parallel in (False, True):
            left = ppl.eliminate(scaled, "z", parallel=parallel)
            f = jax.jit(jax.value_and_grad(lambda scale, p=left: p.log_density({}, y, scale)))
            value, found = f(0.7)
            np.testing.assert_allclose(value, exact(0.7), rtol=1e-9)
            np.testing.assert_allclose(found, slope, rtol=1e-6)
    single = jax.jit(lambda y: ppl.eliminate(scaled, "z").log_density({}, y, 0.7))(
        jnp.asarray(Y, jnp.float32)
    )
    np.testing.assert_allclose(single, value, rtol=1e-5)


def regimes(y):
    def step(state, y):
        s, z = state
        s = ppl.sample("s", dist.Bernoulli(0.2 + 0.6 * s))
        z = ppl.sample("z", dist.Normal(0.9 * z + s, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return (s, z), z

    _, zs = ppl.scan(step, (0, 0.0), y)
    ppl.sample("mean", dist.Normal(zs.mean(), 0.1), obs=0.8)


@pytest.mark.slow
def test_particles_keep_what_is_read_of_their_paths():
    y = jnp.array([0.2, 1.1, 1.3, 0.4])
    left = ppl.eliminate(regimes, "z")
    paths = jnp.array(list(itertools.product([0, 1], repeat=4)))
    exact = logsumexp(jax.jit(jax.vmap(lambda s: left.log_density({"s": s}, y)))(paths))
    one = dense(regimes, ["z"], {"s": paths[5]}, (y,)).log_density
    np.testing.assert_allclose(left.log_density({"s": paths[5]}, y), one, rtol=1e-5)
    run = lambda key: inference.smc(left, key, y, num_particles=16).log_evidence
    ratio = np.exp(np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 2000))) - float(exact))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(2000)
    with pytest.raises(ValueError, match="stacked values of a scan after it"):
        inference.smc(left, KEY, y, num_particles=16, history="none")


@pytest.mark.slow
def test_an_extended_filter_keeps_its_points_of_expansion():
    """What is read after the steps is that of the linearised chain: written out, it has the same density."""

    def curved(y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(jnp.sin(z), 0.5))
            ppl.sample("y", dist.Normal(z, 0.3), obs=y)
            return z, z

        _, zs = ppl.scan(step, 0.3, y)
        ppl.sample("mean", dist.Normal(zs.mean(), 0.2), obs=0.3)

    def by_hand(y):
        means, zs, z, m, p = [], [], 0.3, 0.3, 0.0
        for t, value in enumerate(np.asarray(y, float)):
            at, slope = np.sin(m), np.cos(m)
            z = ppl.sample(f"z{t}", dist.Normal(at + slope * (z - m), 0.5))
            ppl.sample(f"y{t}", dist.Normal(z, 0.3), obs=value)
            p = slope**2 * p + 0.25
            gain = p / (p + 0.09)
            m, p = at + gain * (value - at), p * (1 - gain)
            zs.append(z)
            means.append(m)
        ppl.sample("mean", dist.Normal(jnp.stack(zs).mean(), 0.2), obs=0.3)

    with jax.enable_x64(True):
        y = jnp.asarray(Y)
        found = jax.jit(ppl.eliminate(curved, "z", approximation="ekf").log_density)({}, y)
        exact = dense(by_hand, [f"z{t}" for t in range(5)], {}, (y,)).log_density
        np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_too_many_steps_together_are_refused_where_they_are_read():
    def chain(is_read):
        step = lambda z, _: (ppl.sample("z", dist.Normal(0.9 * z, 0.5)),) * 2
        last, zs = ppl.scan(step, 0.0, None, 3000)
        ppl.sample("last", dist.Normal(zs.mean() if is_read else last, 0.1), obs=0.2)
        ppl.deterministic("mean", zs.mean())
        return zs

    left = ppl.eliminate(chain, "z")
    with pytest.raises(
        ValueError, match="Site 'last': its mean .*put together.*3001 numbers .* at most 2048"
    ):
        left.log_density({}, True)
    assert "3001" not in str(jax.make_jaxpr(lambda: left.log_density({}, False))())


def test_steps_with_loops_of_their_own_are_not_put_together():
    def nested(y):
        def outer(z, y):
            inner = lambda u, _: (ppl.sample("u", dist.Normal(u, 0.2)), None)
            z, _ = ppl.scan(inner, z, None, 2)
            ppl.sample("y", dist.Normal(z, 0.3), obs=y)
            return z, z

        _, zs = ppl.scan(outer, 0.0, y)
        ppl.sample("mean", dist.Normal(zs.mean(), 0.1), obs=0.2)

    with pytest.raises(
        ValueError,
        match="'mean': its mean .*with a ppl.scan inside of the step.*inside of the step",
    ):
        ppl.eliminate(nested, "u").log_density({}, Y)
