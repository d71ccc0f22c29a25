"""A particle method as a program: both density estimates against the law of its path, all runs enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import resampling
from lapilli.inference.particles.samplers._smc_sampler import SMCSampler

MOVE, EMIT = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0.2, 0.8])  # P(k' | k), P(y = 1 | k)
YS = np.array([1, 0, 1])
PATHS = np.array(list(itertools.product([0, 1], repeat=3)))


@ppl.model
def chain(ys):
    def step(k, y):
        k = ppl.sample("k", dist.Categorical(probs=jnp.asarray(MOVE)[k]))
        ppl.sample("y", dist.Bernoulli(probs=jnp.asarray(EMIT)[k]), obs=y)
        return k, None

    ppl.scan(step, 0, ys)


def density(paths, ys=YS):
    """P(path, ys)."""
    before = np.concatenate([np.zeros_like(paths[:, :1]), paths[:, :-1]], 1)
    emitted = np.where(ys, EMIT[paths], 1 - EMIT[paths])
    return (MOVE[before, paths] * emitted).prod(1)


def law_of_path(num_particles):
    """P(path) of the path chosen from a run of multinomial resampling at every step: all runs summed."""
    law = dict.fromkeys(map(tuple, PATHS), 0.0)

    def extend(paths, weights, prob):
        if len(paths[0]) == len(YS):
            for path, w in zip(paths, weights, strict=True):
                law[path] += prob * w
            return
        emit = EMIT if YS[len(paths[0])] else 1 - EMIT
        for a in itertools.product(range(num_particles), repeat=num_particles):
            for k in itertools.product([0, 1], repeat=num_particles):
                parents = [paths[i] for i in a]
                drawn = [MOVE[p[-1] if p else 0, j] for p, j in zip(parents, k, strict=True)]
                w = emit[list(k)]
                chosen = prob * np.prod(weights[list(a)]) * np.prod(drawn)
                extend([(*p, j) for p, j in zip(parents, k, strict=True)], w / w.sum(), chosen)

    extend([()] * num_particles, np.full(num_particles, 1 / num_particles), 1.0)
    return np.array([law[tuple(p)] for p in PATHS])


def draws_and_estimates(sampler, key, n):
    """Which path a draw is, [n, 8]; exp(-w) where it is that path; exp(w) of the estimates at every path."""

    def run(key):
        draw_key, score_key = jax.random.split(key)
        trace = sampler.simulate(draw_key, YS)
        is_path = (trace.choices["k"] == PATHS).all(1)
        estimate = lambda path: sampler.estimate_log_density(score_key, {"k": path}, YS)
        return is_path, trace.log_density, jax.lax.map(estimate, jnp.asarray(PATHS))

    is_path, w, estimates = jax.jit(jax.vmap(run))(jax.random.split(key, n))
    is_path, w, estimates = (np.asarray(x, float) for x in (is_path, w, estimates))
    return is_path, is_path * np.exp(-w)[:, None], np.exp(estimates)


@pytest.mark.slow
def test_both_identities_hold_for_the_enumerated_law(key):
    sampler = inference.smc_sampler(chain, num_particles=2, resampling="multinomial")
    is_path, reciprocal, estimates = draws_and_estimates(sampler, key, 20_000)
    law = law_of_path(2)
    assert_unbiased(is_path, law)
    assert_unbiased(reciprocal, np.ones(8))
    assert_unbiased(estimates, law)


SCHEMES = {
    "systematic": resampling.every(),
    "stratified": resampling.ess_below(0.7),
    "ssp": resampling.every(2),
    "killing": resampling.every(),
}


@pytest.mark.slow  # four programs compile
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_identities_hold_under_every_scheme_and_policy(scheme, key):
    """The density estimates have the law of the draws as their mean."""
    sampler = inference.smc_sampler(
        chain, num_particles=3, resampling=scheme, policy=SCHEMES[scheme]
    )
    is_path, reciprocal, estimates = draws_and_estimates(sampler, key, 20_000)
    assert_same_mean(is_path, estimates)
    assert_unbiased(reciprocal, np.ones(8))


class Forgetful(SMCSampler):
    """Broken: given a path, it runs without it."""

    def _run(self, key, args, retained=None):
        return super()._run(key, args)


@pytest.mark.slow  # one more program to compile
def test_the_identities_find_a_run_without_its_path(key):
    sampler = inference.smc_sampler(chain, num_particles=2)
    broken = Forgetful(sampler.program, None, sampler.options)
    is_path, _, estimates = draws_and_estimates(broken, key, 20_000)
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_same_mean(is_path, estimates)


# Inside marginal, normalize and objectives.


@ppl.model
def joint():
    """The chain with its data as a latent site."""

    def step(k, _):
        k = ppl.sample("k", dist.Categorical(probs=jnp.asarray(MOVE)[k]))
        ppl.sample("y", dist.Bernoulli(probs=jnp.asarray(EMIT)[k]))
        return k, None

    ppl.scan(step, 0, None, length=3)


@pytest.mark.slow
def test_a_marginal_with_a_particle_filter(key):
    """E[exp w] = p(y) at given data, E[exp(-w); y] = 1 at draws."""
    sampler = inference.smc_sampler(lambda kept: chain(kept["y"]), num_particles=2)
    of_y = ppl.marginal(joint, keep=["y"], proposal=sampler)

    def run(key):
        drawn = of_y.simulate(key)
        estimate = lambda y: of_y.estimate_log_density(key, {"y": y})
        is_y = (drawn.choices["y"] == PATHS).all(1)
        return is_y * jnp.exp(-drawn.log_density), jax.lax.map(estimate, jnp.asarray(PATHS))

    reciprocal, w = jax.jit(jax.vmap(run))(jax.random.split(key, 20_000))
    assert_unbiased(np.exp(np.asarray(w, float)), [density(PATHS, y).sum() for y in PATHS])
    assert_unbiased(reciprocal, np.ones(8))


@pytest.mark.slow  # two levels of particles compile
def test_a_normalize_that_proposes_by_a_particle_filter(key):
    sampler = inference.smc_sampler(chain, num_particles=2)
    program = ppl.normalize(chain, proposal=sampler, num_particles=2)
    is_path, reciprocal, estimates = draws_and_estimates(program, key, 20_000)
    assert_same_mean(is_path, estimates)
    assert_unbiased(reciprocal, np.ones(8))


@ppl.model
def learned(ys):
    """The chain with P(k' = 1 | k = 1) to be learned."""
    up = jax.nn.sigmoid(ppl.param("up", 0.3))

    def step(k, y):
        k = ppl.sample("k", dist.Bernoulli(probs=jnp.where(k == 1, up, 0.3)))
        ppl.sample("y", dist.Bernoulli(probs=jnp.asarray(EMIT)[k]), obs=y)
        return k, None

    ppl.scan(step, 0, ys)


@pytest.mark.slow  # the analysis of an objective around a particle run
def test_a_fixed_sampler_as_guide(key):
    """d/d up of E_q[log p(path, ys)], q the enumerated law: sum over steps from state 1 of (k' - sigmoid(up))."""
    sampler = inference.smc_sampler(chain, num_particles=2, resampling="multinomial")
    bound = inference.elbo(learned, sampler)
    params = bound.init(key, YS)
    run = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, YS)))
    value, grads = run(jax.random.split(key, 20_000))
    up = 1 / (1 + np.exp(-0.3))
    score = ((PATHS[:, :-1] == 1) * (PATHS[:, 1:] - up)).sum(1)
    assert_unbiased(grads["up"], law_of_path(2) @ score)
    evidence = np.log(sum(density(PATHS)))
    assert np.mean(value) < evidence + 0.05  # a lower bound of p's evidence, near chain's


def test_parameters_are_met_and_bound(key):
    proposal = lambda ys: ppl.scan(
        lambda _, y: (0, ppl.sample("k", dist.Bernoulli(logits=ppl.param("tilt", 0.1) * y))), 0, ys
    )
    sampler = inference.smc_sampler(learned, num_particles=1, proposal=proposal)
    assert set(sampler.init(key, YS)) == {"up", "tilt"}
    bound = sampler.bind({"up": jnp.array(9.0), "tilt": jnp.array(-2.0)})
    path = {"k": jnp.array([1, 0, 1])}  # one particle: its density is the proposal's
    chance = jax.nn.log_sigmoid(-2.0) * 2 - jnp.log(2)
    np.testing.assert_allclose(bound.estimate_log_density(key, path, YS), chance, rtol=1e-5)


def gradient(model, sampler):
    bound = inference.elbo(model, sampler, check_jumps=False)
    return bound.grad(bound.init(jax.random.key(0), YS), jax.random.key(0), YS)


@pytest.mark.slow
def test_a_path_without_density_weighs_nothing():
    def target():
        z = ppl.sample("z", dist.Bernoulli(0.5))
        ppl.factor("one", jnp.where(z == 1, 0.0, -jnp.inf))

    sampler = inference.smc_sampler(target, num_particles=2)
    keys = jax.random.split(jax.random.key(0), 50)
    of = lambda z: jax.vmap(lambda k: sampler.estimate_log_density(k, {"z": z}))(keys)
    assert (of(jnp.array(0)) == -jnp.inf).all() and jnp.isfinite(of(jnp.array(1))).all()


REFUSALS = {
    "learned": (
        lambda: gradient(learned, inference.smc_sampler(learned, num_particles=2)),
        TypeError, "derivative with respect to what enters the particle run",
    ),
    "scheme": (
        lambda: inference.smc_sampler(chain, num_particles=2, resampling="metropolis"), ValueError, "'metropolis' is biased",
    ),
    "estimated": (
        lambda: inference.smc_sampler(inference.smc_sampler(chain, num_particles=2), num_particles=2),
        TypeError, "is estimated, but the particle method",
    ),
    "particles": (lambda: inference.smc_sampler(chain, num_particles=0), ValueError, "num_particles must be"),
    "sites": (
        lambda: inference.smc_sampler(chain, num_particles=2).estimate_log_density(jax.random.key(0), {"q": 1}, YS),
        ValueError, "extra \\['q'\\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_unsound_is_refused(name):
    call, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        call()
