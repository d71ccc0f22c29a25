"""ppl.normalize: both identities by enumeration, against the law of sampling importance resampling written out by hand.

With every site under "enum" an expectation is a finite sum: no random numbers in the tests of the identities.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import norm

from _stats import assert_unbiased
from lapilli import inference, ppl

P_Z = np.array([0.5, 0.2, 0.3])
P_X = np.array([0.1, 0.7, 0.4])  # P(x = 1 | z)
Q_Z = np.array([0.3, 0.3, 0.4])
TARGET = P_Z * P_X  # p~(z), with x = 1 observed


@ppl.model
def target():
    z = ppl.sample("z", dist.Categorical(jnp.asarray(P_Z)))
    ppl.sample("x", dist.Bernoulli(jnp.asarray(P_X)[z]), obs=1)


@ppl.model
def proposal():
    ppl.sample("z", dist.Categorical(jnp.asarray(Q_Z)))


def sir_law(weights, q, num_particles):
    """P(z) of the resampled particle, summed over all N-tuples of proposals."""
    law = np.zeros(len(q))
    for zs in itertools.product(range(len(q)), repeat=num_particles):
        w = weights[list(zs)]
        for z, share in zip(zs, w / w.sum(), strict=True):
            law[z] += np.prod(q[list(zs)]) * share
    return law


def close(a, b, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def means(*fns):
    """E[fn] of several functions by enumeration of every site: derivatives of a weighted sum in its weights."""
    weights = jnp.ones(len(fns))
    total = ppl.expectation(
        lambda w: sum(w[i] * fn() for i, fn in enumerate(fns)), strategies="enum"
    )
    return np.asarray(total.grad(weights, jax.random.key(0)))


def density(program, values=range(3), name="z"):
    """E[exp w] at given choices."""
    return means(*[lambda z=z: jnp.exp(ppl.score(program, {name: z}).log_density) for z in values])


def both_identities(program, law, name="z"):
    """E[exp w | x] = p(x), P(draw = x) = p(x) and E[exp(-w); x] = 1 for every x."""

    def hit(z, reciprocal):
        q = ppl.draw(program)
        return jnp.where(q.choices[name] == z, jnp.exp(-q.log_density) if reciprocal else 1.0, 0.0)

    values = range(len(law))
    close(density(program, values, name), law)
    got = means(*[lambda z=z, r=r: hit(z, r) for r in (False, True) for z in values])
    close(got, [*law, *[1.0] * len(law)])


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_both_identities_hold_for_the_law_of_the_resampled_particle(num_particles):
    program = ppl.normalize(target, proposal=proposal, num_particles=num_particles)
    both_identities(program, sir_law(TARGET / Q_Z, Q_Z, num_particles))


@pytest.mark.slow  # 50,000 draws of two rows
def test_rows_under_vmap_are_resampled_one_by_one(key):
    """The joint law is the product of the rows', E[exp(-w); rows] = 1; |z| < 4.5. Both rows at once have another law."""

    @ppl.model
    def row(x):
        z = ppl.sample("z", dist.Categorical(jnp.asarray(P_Z)))
        ppl.sample("x", dist.Bernoulli(jnp.asarray(P_X)[z]), obs=x)

    q = ppl.normalize(row, proposal=lambda x: proposal(), num_particles=3)

    def both(key):
        trace = jax.vmap(q.simulate)(jax.random.split(key), jnp.array([0, 1]))
        z, log_density = trace.choices["z"], trace.log_density.sum()
        hit = jnp.zeros((3, 3)).at[tuple(z)].set(1.0)
        return hit, hit * jnp.exp(-log_density)

    hits, reciprocals = jax.jit(jax.vmap(both))(jax.random.split(key, 50_000))
    weights = [P_Z * p / Q_Z for p in (1 - P_X, P_X)]
    law = np.outer(*(sir_law(w, Q_Z, 3) for w in weights))
    assert_unbiased(hits, law)
    assert_unbiased(reciprocals, np.ones((3, 3)))
    at_once = sir_law(np.outer(*weights).ravel(), np.outer(Q_Z, Q_Z).ravel(), 3).reshape(3, 3)
    with pytest.raises(AssertionError):
        assert_unbiased(hits, at_once)


class Selfish(ppl.densities.Normalized):
    """Broken: the particle that was chosen is left out of the mean weight."""

    def _score(self, choices, *args):
        p = self._target(choices, args, {})
        others = ppl.particles(self.num_particles - 1)(lambda: self._particle(args, {}))()[0]
        from lapilli.ppl.densities._stochastic import estimated, log_mean_exp

        return estimated("broken", choices, p.sites, p.log_density - log_mean_exp(others))


class Unweighted(ppl.densities.Normalized):
    """Broken: the density of the proposal's draw, as if nothing had been resampled."""

    def _draw(self, *args):
        trace = super()._draw(*args)
        log_density = self.proposal._score(trace.choices, *args).log_density
        return dataclasses.replace(trace, log_probs={self.label: log_density})


@pytest.mark.slow
@pytest.mark.parametrize("broken", [Selfish, Unweighted])
def test_the_identities_find_a_broken_normalize(broken):
    program = broken(target, proposal, 2, "index", None)
    with pytest.raises(AssertionError):
        both_identities(program, sir_law(TARGET / Q_Z, Q_Z, 2))


# Compositions: parts with estimated densities.

P_A = np.array([0.6, 0.4])
P_ZA = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])  # P(z | a)


@ppl.model
def mixture():
    a = ppl.sample("a", dist.Categorical(jnp.asarray(P_A)))
    ppl.sample("z", dist.Categorical(jnp.asarray(P_ZA)[a]))


@ppl.model
def mixture_target():
    mixture()
    ppl.factor("f", -0.3)


def uniform_a(kept):
    ppl.sample("a", dist.Categorical(jnp.array([0.5, 0.5])))


@pytest.mark.slow  # two levels of lanes compile
def test_a_marginal_is_a_target():
    """The law with estimated weights, by hand: each particle carries an auxiliary a from its proposal."""
    m = ppl.marginal(mixture_target, keep=["z"], proposal=uniform_a)
    program = ppl.normalize(m, proposal=proposal, num_particles=2)
    pairs = list(itertools.product(range(3), range(2)))  # (z, a) of one particle
    q = np.array([Q_Z[z] * 0.5 for z, _ in pairs])
    weights = np.array([P_A[a] * P_ZA[a, z] / (0.5 * Q_Z[z]) for z, a in pairs])
    both_identities(program, sir_law(weights, q, 2).reshape(3, 2).sum(1))


@pytest.mark.slow
def test_a_marginal_is_a_proposal():
    m = ppl.marginal(mixture, keep=["z"], proposal=uniform_a, num_particles=1)
    program = ppl.normalize(target, proposal=m, num_particles=2)
    pairs = list(itertools.product(range(3), range(2)))
    q = np.array([P_A[a] * P_ZA[a, z] for z, a in pairs])
    weights = np.array([TARGET[z] / (P_A[a] * P_ZA[a, z] / 0.5) for z, a in pairs])
    both_identities(program, sir_law(weights, q, 2).reshape(3, 2).sum(1))


@pytest.mark.slow  # two levels of lanes compile
def test_normalize_nests():
    inner = ppl.normalize(target, proposal=proposal, num_particles=2, index="i")
    outer = ppl.normalize(target, proposal=inner, num_particles=1, index="j")
    both_identities(outer, sir_law(TARGET / Q_Z, Q_Z, 2))
    twice = ppl.normalize(target, proposal=inner, num_particles=2, index="j")
    law = density(twice)
    close(law.sum(), 1.0)
    both_identities(twice, law)
    distance = lambda p: np.abs(p - TARGET / TARGET.sum()).sum()
    assert distance(law) < 0.8 * distance(sir_law(TARGET / Q_Z, Q_Z, 2)), "resampled twice: closer"


@pytest.mark.slow
def test_a_normalized_program_is_the_proposal_of_a_marginal():
    """p(v) with the auxiliary site drawn by SIR given v."""

    @ppl.model
    def joint():
        a = ppl.sample("a", dist.Bernoulli(0.3))
        ppl.sample("v", dist.Bernoulli(0.2 + 0.6 * a))

    def posterior(kept):
        a = ppl.sample("a", dist.Bernoulli(0.3))
        ppl.sample("v", dist.Bernoulli(0.2 + 0.6 * a), obs=kept["v"])

    def flat(kept):
        ppl.sample("a", dist.Bernoulli(0.5))

    r = ppl.normalize(posterior, proposal=flat, num_particles=2)
    m = ppl.marginal(joint, keep=["v"], proposal=r)
    both_identities(m, [1 - 0.38, 0.38], "v")


# Outside of the engine.


@ppl.model
def gaussian(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(z, 1.0), obs=x)


@ppl.model
def wide(x):
    ppl.sample("z", dist.Normal(ppl.param("loc", 0.0), 1.5))


@pytest.mark.fast("seed0-1", "seed1-1", "seed2-1")
@pytest.mark.parametrize("num_particles", [1, 4])
def test_simulate_has_unbiased_reciprocals(num_particles, seed):
    """E[1(z in bin) exp(-w)] = length of the bin."""
    program = ppl.normalize(gaussian, proposal=wide, num_particles=num_particles)

    @jax.jit
    @jax.vmap
    def run(key):
        trace = program.simulate(key, 1.0)
        return trace.choices["z"], trace.log_density

    z, w = run(jax.random.split(seed, 20_000))
    bins = np.array([-0.5, 0.0, 0.5, 1.0])
    inside = (z[:, None] > bins[:-1]) & (z[:, None] < bins[1:])
    assert_unbiased(inside * jnp.exp(-w)[:, None], np.diff(bins))


def test_estimates_have_the_mean_of_the_resampled_density():
    """Two particles: q_2(z) = p~(z) E[2 / (W(z) + W(z'))], the expectation over z' ~ q by quadrature."""
    program = ppl.normalize(gaussian, proposal=wide, num_particles=2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    log_w = lambda z: norm.logpdf(z) + norm.logpdf(1.0, z) - norm.logpdf(z, 0.0, 1.5)
    other = np.exp(log_w(1.5 * nodes))
    own = np.exp(log_w(0.3))
    exact = norm.pdf(0.3) * norm.pdf(1.0, 0.3) * (weights / weights.sum() * 2 / (own + other)).sum()
    run = jax.jit(jax.vmap(lambda k: program.estimate_log_density(k, {"z": 0.3}, 1.0)))
    estimates = jnp.exp(run(jax.random.split(jax.random.key(0), 20_000)))
    assert_unbiased(estimates / exact, 1.0)


def test_many_particles_come_close_to_the_posterior():
    program = ppl.normalize(gaussian, proposal=wide, num_particles=20_000)
    w = program.estimate_log_density(jax.random.key(0), {"z": 0.3}, 1.0)
    close(w, norm.logpdf(0.3, 0.5, 0.5**0.5), rtol=0, atol=0.03)


# Inside objectives.

LOGITS = jnp.array([0.1, -0.2, 0.3])


@ppl.model
def learned():
    ppl.sample("z", dist.Categorical(logits=ppl.param("logits", LOGITS)))


@pytest.mark.fast("enum-enum")
@pytest.mark.parametrize(
    "strategies",
    [
        {"z": "enum", "index": "enum"},
        {"z": "enum", "index": "mvd"},
        {"z": "reinforce", "index": "enum"},
        {"z": "mvd", "index": "reinforce"},
    ],
    ids=lambda s: "-".join(s.values()),
)
def test_gradients_of_a_bound_with_a_normalized_guide_are_unbiased(strategies):
    """E[log p~(z) - w] with z from two-particle SIR, gradient in the proposal, by enumeration of the particles."""
    guide = ppl.normalize(target, proposal=learned, num_particles=2)
    bound = inference.elbo(target, guide, strategies=strategies)

    def exact(logits):
        q = jax.nn.softmax(logits)
        total = 0.0
        for a, b in itertools.product(range(3), repeat=2):
            total += q[a] * q[b] * jnp.log((TARGET[a] / q[a] + TARGET[b] / q[b]) / 2)
        return total  # log p~ - w = log of the mean weight, whichever particle is chosen

    value, grad = jax.value_and_grad(exact)(LOGITS)
    run = jax.jit(jax.vmap(lambda k: bound.value_and_grad({"logits": LOGITS}, k)))
    got, grads = run(jax.random.split(jax.random.key(0), 20_000))
    assert_unbiased(got, value)
    assert_unbiased(grads["logits"], grad)


@pytest.mark.slow
def test_gradients_through_the_chosen_particle_are_exact():
    """A cost of the particle, so that the choice itself matters: E[c(z)] under the law of the draw."""
    cost = jnp.array([1.0, -2.0, 0.5])
    program = ppl.normalize(target, proposal=learned, num_particles=2)
    fn = lambda p: cost[ppl.draw(program.bind(p)).choices["z"]]

    def exact(logits):
        q = jax.nn.softmax(logits)
        total = 0.0
        for a, b in itertools.product(range(3), repeat=2):
            wa, wb = TARGET[a] / q[a], TARGET[b] / q[b]
            total += q[a] * q[b] * (wa * cost[a] + wb * cost[b]) / (wa + wb)
        return total

    got = ppl.expectation(fn, strategies="enum").value_and_grad(
        {"logits": LOGITS}, jax.random.key(0)
    )
    want = jax.value_and_grad(exact)(LOGITS)
    close(got[0], want[0])
    close(got[1]["logits"], want[1])
    broken = ppl.expectation(
        lambda p: cost[_unaware(program.bind(p))], strategies={"z": "enum"}, check_jumps=False
    ).grad({"logits": LOGITS}, jax.random.key(0))
    assert np.abs(broken["logits"] - want[1]).max() > 0.02, "without a strategy of the index"


def _unaware(program):
    """Broken: the index is drawn outside of the strategies."""
    weights, _, q = ppl.particles(2)(lambda: program._particle((), {}))()
    j = jax.random.categorical(ppl.rng_key("j"), jax.lax.stop_gradient(weights))
    return q.choices["z"][j]


def test_a_normalized_guide_fits_and_prints():
    far = ppl.model(lambda x: ppl.sample("z", dist.Normal(ppl.param("loc", -4.0), 1.5)))
    guide = ppl.normalize(gaussian, proposal=far, num_particles=3, strategy="enum")
    bound = inference.elbo(gaussian, guide)
    fit = inference.fit(
        bound, optax.adam(0.2), (1.0,), num_steps=100, key=jax.random.key(0), progress=False
    )
    value = np.asarray(fit.history["value"])
    assert value[-20:].mean() > value[:5].mean() + 1
    fresh = jax.vmap(lambda k: bound.value(fit.params, k, 1.0))(
        jax.random.split(jax.random.key(1), 4_000)
    )
    assert fresh.mean() < norm.logpdf(1.0, 0.0, 2**0.5) + 4.5 * fresh.std() / 4_000**0.5
    assert "normalize[index]" in str(guide) and guide.bounds["draw"] == "upper"
    one = ppl.normalize(gaussian, proposal=wide, num_particles=1)
    assert one.bounds == {"draw": "exact", "score": "exact"}


# Refusals.


def test_the_index_needs_a_strategy_inside_an_objective():
    guide = ppl.normalize(gaussian, proposal=wide, num_particles=3)
    with pytest.raises(ValueError, match="Site 'index'.*'enum'"):
        inference.elbo(gaussian, guide).value({}, jax.random.key(0), 1.0)


def test_a_proposal_over_other_sites_is_refused():
    guide = ppl.normalize(
        gaussian, proposal=lambda x: ppl.sample("y", dist.Normal(0, 1)), num_particles=2
    )
    with pytest.raises(ValueError, match=r"misses \['z'\] and draws \['y'\]"):
        guide.simulate(jax.random.key(0), 1.0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"proposal": proposal, "num_particles": 0}, ValueError, "integer >= 1"),
        ({"proposal": 3, "num_particles": 1}, TypeError, "proposal must be a program"),
    ],
)
def test_wrong_arguments(options, error, words):
    with pytest.raises(error, match=words):
        ppl.normalize(target, **options)


def test_subsampled_targets_are_refused():
    def rows(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 10, subsample_size=5):
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = ppl.normalize(rows, proposal=wide, num_particles=2, strategy="enum")
    with pytest.raises(ValueError, match="Site 'x'.*scaled by 2.0"):
        guide.simulate(jax.random.key(0), jnp.zeros(5))
