"""Bounds of models that draw missing cells themselves: averages inside and outside the logarithm, DReG."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import expit

from _stats import assert_same_mean
from lapilli import inference, ppl

X = np.array([[0.7, np.nan], [np.nan, np.nan]])
SEEN = np.isfinite(X)


@ppl.model
def model(x, seen):
    """Two cells on one latent number, self-masked."""
    with ppl.plate("rows", len(x)):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        loc = jnp.stack([z, z * ppl.param("w", 0.5)], -1)
        x = ppl.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x, obs_mask=seen)
        logits = ppl.param("a", 1.5) * x - 0.3
        ppl.sample("s", dist.Bernoulli(logits=logits).to_event(1), obs=seen.astype(float))


@ppl.model
def guide(x, seen):
    with ppl.plate("rows", len(x)):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.2) + 0.3 * seen.sum(-1), 0.9))


PARAMS = {"w": jnp.array(0.5), "a": jnp.array(1.5), "m": jnp.array(0.2)}


def exact():
    """Log p(x_o, s), by quadrature over z and the missing cells."""
    z, x = np.linspace(-7, 7, 281)[:, None], np.linspace(-12, 12, 1201)
    miss = lambda loc: np.trapezoid(stats.norm.pdf(x, loc, 0.8) * expit(0.3 - 1.5 * x), x)
    seen = stats.norm.pdf(0.7, z[:, 0], 0.8) * expit(1.5 * 0.7 - 0.3)
    rows = [
        np.trapezoid(stats.norm.pdf(z[:, 0]) * first * miss(0.5 * z), z[:, 0])
        for first in (seen, miss(z))
    ]
    return float(np.log(rows).sum())


@functools.cache
def compiled(**options):
    bound = inference.iwelbo(model, guide, per="rows", check_jumps=False, **options)
    return jax.jit(jax.vmap(lambda k: bound.value_and_grad(PARAMS, k, X, SEEN)))


def estimates(key, num, **options):
    value, grads = compiled(**options)(jax.random.split(key, num))
    names = sorted(grads)
    return np.asarray(value, float), np.stack([np.asarray(grads[n], float) for n in names], -1)


def mean_and_error(values):
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.mark.slow  # seconds of compilation
def test_more_draws_of_the_missing_cells_tighten_the_bound(key):
    """L_1,1 < L_1,32 < L_20,4 <= log p, and the last is near."""
    chain = [{}, {"num_imputations": 32}, {"num_particles": 20, "num_imputations": 4}]
    found = [
        mean_and_error(estimates(key, 4000, **{"num_particles": 1} | options)[0])
        for options in chain
    ]
    for (low, a), (high, b) in zip(found, [*found[1:], (exact(), 0.0)], strict=True):
        assert low < high + 4.5 * np.hypot(a, b)
    assert found[0][0] + 10 * found[0][1] < found[1][0]
    assert exact() - found[-1][0] < 0.05


@pytest.mark.fast("seed2-1")
@pytest.mark.parametrize("num_imputations", [1, 3])
def test_dreg_has_the_gradient_of_the_bound(seed, num_imputations):
    """Two-sample z per parameter, 10,000 estimates each."""
    options = {"num_particles": 4, "num_imputations": num_imputations}
    keys = jax.random.split(seed)
    full = estimates(keys[0], 10_000, **options)
    dreg = estimates(keys[1], 10_000, gradient="dreg", **options)
    assert_same_mean(full[0], dreg[0])
    assert_same_mean(full[1], dreg[1], names=sorted(PARAMS))


@pytest.mark.slow
def test_dreg_of_the_guide_varies_less_at_many_particles(key):
    full = estimates(key, 2000, num_particles=50)[1][:, 1]
    dreg = estimates(key, 2000, num_particles=50, gradient="dreg")[1][:, 1]
    assert dreg.var() < 0.5 * full.var()


@pytest.mark.slow
def test_without_common_noise_dreg_would_be_wrong(key, monkeypatch):
    """Negative test: weights of one draw of the cells and gradients at another."""
    from lapilli.inference.objectives import _detached

    monkeypatch.setattr(_detached, "COMMON", "nothing")
    options = {"num_particles": 4, "num_imputations": 1}
    keys = jax.random.split(key)
    full = estimates(keys[0], 10_000, **options)[1]
    compiled.cache_clear()
    broken = estimates(keys[1], 10_000, gradient="dreg", **options)[1]
    compiled.cache_clear()
    with pytest.raises(AssertionError):
        assert_same_mean(full, broken)


# Refusals.


def test_imputations_without_missing_cells_are_refused(key):
    def plain(x):
        ppl.sample("x", dist.Normal(ppl.sample("z", dist.Normal(0, 1)), 1.0), obs=x)

    bound = inference.iwelbo(
        plain, lambda x: ppl.sample("z", dist.Normal(0, 1)), num_particles=2, num_imputations=3
    )
    with pytest.raises(ValueError, match="num_imputations=3, but the model draws nothing"):
        bound.value({}, key, 0.3)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_a_wrong_number_of_imputations_is_refused(bad):
    with pytest.raises(ValueError, match="num_imputations must be an integer"):
        inference.iwelbo(model, guide, num_particles=2, num_imputations=bad)


def test_gdreg_takes_no_draws_of_missing_cells():
    with pytest.raises(ValueError, match="gdreg.*Use gradient='dreg'"):
        inference.iwelbo(model, guide, num_particles=2, num_imputations=2, gradient="gdreg")


def test_dreg_refuses_missing_cells_inside_a_scan(key):
    @ppl.model
    def walk(x, seen):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))

        def step(carry, inputs):
            x, seen = inputs
            x = ppl.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)
            return carry + x, None

        total, _ = ppl.scan(step, 0.0, (x, seen))
        ppl.sample("total", dist.Normal(total, 1.0), obs=1.0)

    bound = inference.iwelbo(
        walk, lambda x, seen: ppl.sample("z", dist.Normal(0, 1)), num_particles=2, gradient="dreg"
    )
    with pytest.raises(ValueError, match="Site 'x_unobserved'.*inside ppl.scan.*gradient='full'"):
        bound.value({}, key, X[:, 0], SEEN[:, 0])


def test_dreg_refuses_discrete_missing_cells(key):
    @ppl.model
    def counts(x, seen):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 2):
            x = ppl.sample("x", dist.Poisson(jnp.exp(z)).expand([2]), obs=x, obs_mask=seen)
        ppl.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)

    bound = inference.iwelbo(
        counts, lambda x, seen: ppl.sample("z", dist.Normal(0, 1)), num_particles=2, gradient="dreg"
    )
    with pytest.raises(ValueError, match="x_unobserved.*'reinforce'.*gradient='full'"):
        bound.value({}, key, np.array([1, 0]), np.array([True, False]))


@ppl.model
def coins(x, seen):
    """A coin, two coins that it moves (one of them missing), and their noisy sum."""
    a = ppl.sample("a", dist.Bernoulli(logits=-0.4))
    with ppl.plate("rows", 2):
        v = ppl.sample("x", dist.Bernoulli(logits=1.2 * a - 0.2), obs=x, obs_mask=seen)
    ppl.sample("y", dist.Normal(0.8 * v.sum(), 1.0), obs=0.9)


def coin_guide(x, seen):
    ppl.sample("a", dist.Bernoulli(logits=ppl.param("g", 0.5)))


def wake_exact(g):
    """-E[sum_k v_k log q(a_k)], and that plus E[sum_k v_k log p-hat_k - log 1/2 sum_k w_k], over all pairs of draws (a, m)."""
    draws = np.array([(a, m) for a in (0, 1) for m in (0, 1)])
    a, m = draws.T
    coin = lambda b, logit: jnp.where(b == 1, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit))
    cells = 1.2 * a - 0.2
    log_q = coin(a, g)
    log_p = coin(a, -0.4) + coin(1, cells) + jax.scipy.stats.norm.logpdf(0.9, 0.8 * (1 + m))
    law = jnp.exp(jax.lax.stop_gradient(log_q) + coin(m, cells))
    pairs = np.array([(i, j) for i in range(4) for j in range(4)])
    weights = jax.lax.stop_gradient(log_p - log_q)[pairs]
    shares = jax.nn.softmax(weights, axis=1)
    chance = law[pairs].prod(1)
    cross = -(shares * log_q[pairs]).sum(1)
    kl = cross + (shares * log_p[pairs]).sum(1) - (jax.nn.logsumexp(weights, axis=1) - jnp.log(2.0))
    return chance @ cross, chance @ kl


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["wake_phi", "forward_kl"])
def test_wake_phases_count_the_cells_of_the_model_as_drawn(number):
    """20,000 estimates, |z| < 4.5; counting the cells' law as the guide's shifts `wake_phi` by 0.6."""
    make = (inference.wake_phi, inference.forward_kl)[number]
    bound = make(coins, coin_guide, num_particles=2)
    x, seen = jnp.array([1, 0]), jnp.array([True, False])
    run = jax.jit(jax.vmap(lambda k: bound.value_and_grad({"g": jnp.array(0.5)}, k, x, seen)))
    value, grads = run(jax.random.split(jax.random.key(0), 20_000))
    exact, slope = jax.value_and_grad(lambda g: wake_exact(g)[number])(0.5)
    for mean, expected in ((value, exact), (grads["g"], slope)):
        assert abs(mean.mean() - expected) < 4.5 * mean.std() / 20_000**0.5
