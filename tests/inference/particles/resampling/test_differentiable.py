"""Gradients through resampling: enumeration of all draws and ancestors, quadrature, Kalman's recursion."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import resampling
from lapilli.inference.particles.resampling._schemes import killing_law
from lapilli.inference.particles.resampling._transport import log_plan

pytestmark = pytest.mark.one_in(2)

# A hidden Markov chain of two states: every run of two particles is one of 16^3.

BITS = np.array([1, 0, 1])
HMM = {"emit": np.array([-0.5, 1.1]), "move": np.array([-0.4, 0.8])}
POLICIES = {"every": resampling.every(), "ess": resampling.ess_below(0.97)}


def move_rows(params):
    ones = jax.nn.sigmoid(params["move"])
    return jnp.stack([1 - ones, ones], -1)


@ppl.model
def hmm(params, ys):
    def step(k, y):
        k = ppl.sample("k", dist.Categorical(probs=move_rows(params)[k]))
        ppl.sample("y", dist.Bernoulli(logits=params["emit"][k]), obs=y)
        return k, None

    ppl.scan(step, 0, ys)


def multinomial(log_weights, ancestors):
    return jnp.exp(log_weights[ancestors].sum())


def killing(log_weights, ancestors):
    w = jnp.exp(log_weights)
    stay = w / w.max()
    return jnp.prod((ancestors == jnp.arange(2)) * stay + (1 - stay) * w[ancestors])


def enumerated(params, law):
    """(E[log Z-hat], E[Z-hat]) of two particles that are resampled at every step."""
    grid = np.array(list(itertools.product([0, 1], repeat=4)))  # ancestors, states
    ancestors, states = grid[:, :2], grid[:, 2:]
    move, emit = move_rows(params), jax.nn.sigmoid(params["emit"])
    prob, log_z = jnp.ones(1), jnp.zeros(1)
    x, lw = np.zeros((1, 2), int), jnp.full((1, 2), -np.log(2))
    for y in BITS:
        chosen = jax.vmap(jax.vmap(law, (None, 0)), (0, None))(lw, ancestors)
        parents = x[:, ancestors]
        drawn = move[parents, states].prod(-1)
        g = jnp.log(emit if y else 1 - emit)[states]
        total = jax.nn.logsumexp(g, 1)
        prob = (prob[:, None] * chosen * drawn).ravel()
        log_z = (log_z[:, None] + total - np.log(2)).ravel()
        x = np.tile(states, (len(lw), 1))
        lw = jnp.tile(g - total[:, None], (len(lw), 1))
    return (prob * log_z).sum(), (prob * jnp.exp(log_z)).sum()


@functools.cache
def exact_gradients(law):
    """(d E[log Z-hat], E[Z-hat], d E[Z-hat])."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, HMM)
        both = jax.jit(lambda p: (enumerated(p, law), jax.jacrev(lambda p: enumerated(p, law))(p)))
        (_, z), (bound, of_z) = both(params)
        return flat(bound), float(z), flat(of_z)


def flat(tree):
    leaves = [np.asarray(x, float) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[: x.ndim - 1], -1) for x in leaves], -1)


def estimates(key, n=20_000, params=HMM, target=hmm, args=(BITS,), **options):
    """Independent log Z-hat and their derivatives."""

    def log_z(params, key):
        options_ = {"num_particles": 2, "history": "none", "policy": resampling.every()} | options
        return inference.smc(target, key, params, *args, **options_).log_evidence

    run = jax.jit(jax.vmap(jax.value_and_grad(log_z), (None, 0)))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    log_z, grads = run(params, jax.random.split(key, n))
    return np.asarray(log_z, float), flat(grads)


SLOW = pytest.mark.slow  # one more program to compile


@pytest.mark.slow
@pytest.mark.parametrize("law", [multinomial, pytest.param(killing, marks=SLOW)])
def test_score_is_unbiased_for_the_bound(law, key):
    """Dropping the ancestors' score is a bias of 9 standard errors here."""
    _, grads = estimates(key, gradient="score", resampling=law.__name__)
    assert_unbiased(grads, exact_gradients(law)[0])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["every", pytest.param("ess", marks=SLOW)])
def test_stop_gradient_is_unbiased_for_the_evidence(policy, key):
    """E[Z-hat d log Z-hat] = dZ under every policy. Constant weights are a bias of 12 standard errors here."""
    log_z, grads = estimates(key, gradient="stop_gradient", policy=POLICIES[policy])
    assert_unbiased(np.exp(log_z)[:, None] * grads, exact_gradients(multinomial)[2])


@pytest.mark.slow
def test_drop_is_biased_for_both_and_the_tests_see_it(key):
    bound, _, of_z = exact_gradients(multinomial)
    log_z, grads = estimates(key, gradient="drop", resampling="multinomial")
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_unbiased(grads, bound)
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_unbiased(np.exp(log_z)[:, None] * grads, of_z)


@pytest.mark.slow  # three programs compile
def test_soft_keeps_the_evidence_unbiased_and_is_drop_at_one(key):
    log_z, _ = estimates(key, gradient=resampling.Soft(0.5))
    assert_unbiased(np.exp(log_z), exact_gradients(multinomial)[1])
    same = [estimates(key, 50, gradient=g) for g in (resampling.Soft(1.0), "drop")]
    np.testing.assert_allclose(same[0][1], same[1][1], rtol=1e-4, atol=1e-5)


# A linear-Gaussian chain, whose states are drawn pathwise.

YS = np.array([0.5, -1.0, 0.25, 2.0])
WALK = {"log_scale": np.array([-0.2]), "rho": np.array([0.7])}


@ppl.model
def walk(params, ys):
    def step(x, y):
        scale = jnp.exp(params["log_scale"][0])
        x = ppl.sample("x", dist.Normal(params["rho"][0] * x, scale))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


def log_normal(y, mean, var=1.0):
    return -0.5 * (jnp.log(2 * jnp.pi * var) + (y - mean) ** 2 / var)


def kalman(params, ys=YS):
    """Log evidence."""
    mean, var, total = 0.0, 0.0, 0.0
    for y in ys:
        mean, var = params["rho"][0] * mean, params["rho"][0] ** 2 * var
        var = var + jnp.exp(2 * params["log_scale"][0])
        total += log_normal(y, mean, var + 1)
        mean, var = mean + var / (var + 1) * (y - mean), var / (var + 1)
    return total


def in_double(fn, params, *args):
    with jax.enable_x64(True):
        value, grads = jax.jit(jax.value_and_grad(fn))(jax.tree.map(jnp.asarray, params), *args)
        return float(value), flat(grads)


def bound_by_quadrature(params, num_nodes=14):
    """E[log Z-hat] of two particles over two steps: four normals, four pairs of ancestors."""
    e, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    noise = np.stack(np.meshgrid(*[e] * 4, indexing="ij"), -1).reshape(-1, 4)
    mass = np.stack(np.meshgrid(*[w / w.sum()] * 4, indexing="ij"), -1).reshape(-1, 4).prod(-1)
    scale = jnp.exp(params["log_scale"][0])
    first = scale * noise[:, :2]
    g = log_normal(YS[0], first)
    weights = jax.nn.softmax(g, -1)
    log_z = jax.nn.logsumexp(g, -1) - np.log(2)
    total = 0.0
    for a, b in itertools.product([0, 1], repeat=2):
        second = params["rho"][0] * first[:, [a, b]] + scale * noise[:, 2:]
        more = jax.nn.logsumexp(log_normal(YS[1], second), -1) - np.log(2)
        total += (mass * weights[:, a] * weights[:, b] * (log_z + more)).sum()
    return total


@pytest.mark.slow
def test_score_of_ancestors_joins_pathwise_states(key):
    _, exact = in_double(bound_by_quadrature, WALK)
    _, finer = in_double(lambda p: bound_by_quadrature(p, 18), WALK)
    np.testing.assert_allclose(exact, finer, rtol=1e-4)  # the noise: 1e-2
    _, grads = estimates(
        key, params=WALK, target=walk, args=(YS[:2],), gradient="score", resampling="multinomial"
    )
    assert_unbiased(grads, exact)


OF_WALK = {"params": WALK, "target": walk, "args": (YS,), "gradient": "stop_gradient"}


@pytest.mark.slow
def test_stop_gradient_weighted_by_the_evidence_is_the_exact_score(key):
    log_z, score = in_double(kalman, WALK)
    found, grads = estimates(key, 10_000, num_particles=20, **OF_WALK)
    assert_unbiased(np.exp(found - log_z)[:, None] * grads, score)


@pytest.mark.slow  # four sizes compile
def test_stop_gradient_is_consistent_for_the_score(key):
    """The root mean square error falls like K^(-1/2): slope -0.5 within 0.1 over K = 16 ... 1024."""
    _, score = in_double(kalman, WALK)
    sizes = [16, 64, 256, 1024]
    errors = [
        np.sqrt(((estimates(key, 400, num_particles=k, **OF_WALK)[1] - score) ** 2).mean())
        for k in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.1, errors


@pytest.mark.slow  # two programs compile
def test_a_feynman_kac_model_and_sites_asked_to_be_scored(key):
    """The same chain by its own kernel; and with its states under the score function instead of pathwise."""
    log_z, score = in_double(kalman, WALK)

    def chain(params, ys):
        scale, rho = jnp.exp(params["log_scale"][0]), params["rho"][0]
        return inference.FeynmanKac(
            lambda key: scale * jax.random.normal(key),
            lambda key, x, t: rho * x + scale * jax.random.normal(key),
            lambda previous, x, t: log_normal(jnp.asarray(ys, jnp.float32)[t], x),
            len(ys) - 1,
        )

    def log_evidence(params, key):
        return inference.smc(
            chain(params, YS), key, num_particles=20, gradient="stop_gradient", history="none"
        ).log_evidence

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), WALK)
    run = jax.jit(jax.vmap(jax.value_and_grad(log_evidence), (None, 0)))
    found, grads = run(params, jax.random.split(key, 10_000))
    assert_unbiased(np.exp(np.asarray(found) - log_z)[:, None] * flat(grads), score)

    @ppl.model
    def scored(params, ys):
        def step(x, y):
            law = dist.Normal(params["rho"][0] * x, jnp.exp(params["log_scale"][0]))
            x = ppl.sample("x", law, strategy="reinforce")
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        ppl.scan(step, 0.0, ys)

    found, grads = estimates(
        key, params=WALK, target=scored, args=(YS,), gradient="stop_gradient", num_particles=20
    )
    assert_unbiased(np.exp(found - log_z)[:, None] * grads, score)


@pytest.mark.slow
def test_scored_draws_before_the_first_weighing_and_in_a_proposal(key):
    """Two coins, one from the prior, one from a proposal with a parameter: d log Z has no share of the proposal's."""

    @ppl.model
    def coins(params, y):
        a = ppl.sample("a", dist.Bernoulli(logits=params["prior"][0]))
        b = ppl.sample("b", dist.Bernoulli(logits=0.3 * a))
        ppl.scan(lambda _, y: (0.0, ppl.sample("y", dist.Normal(a + 2.0 * b, 1.0), obs=y)), 0.0, y)

    def guess(params, y):
        ppl.sample("b", dist.Bernoulli(logits=params["guide"][0]))

    def exact(params, ys):
        terms = [
            jnp.log(jax.nn.sigmoid(jnp.where(a, 1, -1) * params["prior"][0]))
            + jnp.log(jax.nn.sigmoid(jnp.where(b, 1, -1) * 0.3 * a))
            + log_normal(ys, a + 2.0 * b).sum()
            for a, b in itertools.product([0.0, 1.0], repeat=2)
        ]
        return jax.nn.logsumexp(jnp.stack(terms))

    params = {"guide": np.array([0.4]), "prior": np.array([-0.3])}
    ys = np.array([0.8, 1.9])
    log_z, score = in_double(exact, params, ys)
    found, grads = estimates(
        key, params=params, target=coins, args=(ys,), proposal=guess, gradient="stop_gradient", num_particles=3
    )  # fmt: skip
    assert_unbiased(np.exp(found - log_z)[:, None] * grads, score)


# Optimal transport.


@pytest.mark.slow
def test_transport_couples_weighted_with_equally_weighted_particles():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (30, 2))
        log_weights = jax.nn.log_softmax(-(x[:, 0] ** 2)).at[3].set(-jnp.inf)
        log_weights = jax.nn.log_softmax(log_weights)
        plan = np.exp(log_plan(x, log_weights, 0.1, 2000))
        np.testing.assert_allclose(plan.sum(0), 1 / 30, rtol=1e-10)
        np.testing.assert_allclose(plan.sum(1), np.exp(log_weights), atol=1e-8)
        # Towards no regularisation on a line, particles become the quantiles of the weighted ones.
        line = jnp.arange(4.0)[:, None]
        plan = np.exp(log_plan(line, jnp.log(jnp.array([0.4, 0.32, 0.18, 0.1])), 0.01, 2000))
        np.testing.assert_allclose(4 * plan.T @ line[:, 0], [0, 0.4, 1.12, 2.4], atol=1e-6)


def test_transport_is_differentiated_exactly(key):
    """Values are smooth at fixed noise: the derivative is that of the value, by central differences in float64."""
    with jax.enable_x64(True):

        def log_z(rho):
            params = {"log_scale": jnp.asarray(WALK["log_scale"]), "rho": rho}
            return inference.smc(
                walk, key, params, YS, num_particles=8, history="none", gradient="ot",
                policy=resampling.every(),
            ).log_evidence  # fmt: skip

        value = jax.jit(jax.value_and_grad(log_z))
        found = value(jnp.array([0.7]))[1]
        h = 1e-5
        slope = (value(jnp.array([0.7 + h]))[0] - value(jnp.array([0.7 - h]))[0]) / (2 * h)
        np.testing.assert_allclose(found[0], slope, rtol=1e-6)


@pytest.mark.slow  # K^2 iterations in 50 runs
def test_transport_is_consistent(key):
    log_z, score = in_double(kalman, WALK)
    found, grads = estimates(
        key, 50, params=WALK, target=walk, args=(YS,), num_particles=200, gradient=resampling.Transport(0.1)
    )  # fmt: skip
    np.testing.assert_allclose(found.mean(), log_z, atol=0.05)
    np.testing.assert_allclose(grads.mean(0), score, atol=0.05)


@pytest.mark.slow
def test_a_scheme_brings_the_law_of_its_ancestors():
    """A scheme of one's own is scored by its own law, and refused without one."""
    own = dataclasses.replace(inference.particles.resampling.RESAMPLERS["killing"], name="own")
    found = run(gradient="score", resampling=own)
    expected = run(gradient="score", resampling="killing")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    doubled = dataclasses.replace(own, log_law=lambda *inputs: 2 * killing_law(*inputs))
    assert not np.array_equal(run(gradient="score", resampling=doubled)["rho"], found["rho"])
    with pytest.raises(ValueError, match="not known for resampling='own'.*a Scheme with log_law"):
        run(gradient="score", resampling=dataclasses.replace(own, log_law=None))


# Refusals.


def run(target=walk, params=WALK, args=(YS,), key=None, fn=lambda r: r.log_evidence, **options):
    key = jax.random.key(0)
    value = lambda p: fn(
        inference.smc(target, key, p, *args, **{"num_particles": 3, "history": "none"} | options)
    )
    return jax.grad(value)(jax.tree.map(jnp.asarray, params))


@ppl.model
def subsampled(params, ys):
    with ppl.plate("rows", 10, subsample_size=2):
        ppl.sample("y", dist.Normal(params["rho"][0], 1.0), obs=jnp.ones(2))


COUNTS = inference.FeynmanKac(
    lambda key: jax.random.poisson(key, 2.0), lambda key, x, t: x, lambda previous, x, t: 1.0 * x, 1
)
SCORED = {"gradient": "score", "resampling": "multinomial"}
REFUSALS = {
    "ancestors": (lambda: run(), TypeError, "smc resamples.*Choose gradient="),
    "discrete": (lambda: run(hmm, HMM, (BITS,), policy=resampling.never()), TypeError, "Site 'k'.*Categorical.*Choose gradient"),
    "conditional": (
        lambda: run(gradient="drop", retained={"x": jnp.zeros(4)}), ValueError, "retained choices has no gradient",
    ),
    "scheme": (lambda: run(gradient="score"), ValueError, "not known for resampling='systematic'"),
    "policy": (
        lambda: run(**SCORED, policy=resampling.ess_below()), ValueError, "policy that looks at the weights",
    ),
    "biased scheme": (
        lambda: run(gradient="stop_gradient", resampling="metropolis"), ValueError, "the scheme is biased",
    ),
    "weights": (lambda: run(**SCORED, fn=lambda r: r.log_weights[0]), TypeError, "only log_evidence and increments"),
    "sites": (
        lambda: run(hmm, HMM, (BITS,), gradient="drop", fn=lambda r: r.ess[0]), TypeError, "only log_evidence and increments",
    ),
    "name": (lambda: run(gradient="magic"), ValueError, "no gradient is called 'magic'"),
    "type": (lambda: run(gradient=1.0), ValueError, "gradient must be .* of type ResamplingGradient"),
    "alpha": (lambda: resampling.Soft(0.0), ValueError, "alpha must lie in"),
    "epsilon": (lambda: resampling.Transport(0.0), ValueError, "epsilon > 0"),
    "history": (lambda: run(gradient="ot", history="full"), ValueError, "leaves no ancestors"),
    "integers": (lambda: run(hmm, HMM, (BITS,), gradient="ot"), TypeError, "averages particles.*int32"),
    "kernel": (
        lambda: inference.smc(COUNTS, jax.random.key(0), num_particles=2, gradient="drop"), ValueError, "dtype int32.*program",
    ),
    "masked": (
        lambda: run(ppl.mask(hmm, mask=False), HMM, (BITS,), gradient="drop"), ValueError, "Site 'k'.*log-prob is masked",
    ),
    "scaled": (lambda: run(subsampled, gradient="score", resampling="multinomial"), ValueError, "scaled by 5.0"),
}  # fmt: skip


@pytest.mark.slow_for("weights", "ancestors", "scaled", "sites")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_would_be_biased_is_refused(name):
    call, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.slow
def test_derivatives_that_resampling_does_not_touch_are_allowed():
    """No resampling, or weights that do not depend on the parameter."""
    params = jax.tree.map(jnp.asarray, WALK)
    assert np.isfinite(flat(run(policy=resampling.never()))).all()
    fixed = lambda p: (
        inference.smc(walk, jax.random.key(0), params, YS, num_particles=3).log_evidence
    )
    scaled = lambda p: p["rho"][0] * fixed(p)
    np.testing.assert_allclose(jax.grad(scaled)(params)["rho"][0], fixed(params), rtol=1e-5)


@pytest.mark.slow
def test_forward_mode_is_reverse_mode(key):
    """Under a traced decision that does not look at the weights, too."""

    def log_z(emit):
        return inference.smc(
            hmm, key, {"emit": emit, "move": jnp.asarray(HMM["move"])}, BITS, num_particles=4,
            policy=resampling.window(1, 3), **SCORED,
        ).log_evidence  # fmt: skip

    emit, ones = jnp.asarray(HMM["emit"]), jnp.ones(2)
    forward = jax.jit(lambda x: jax.jvp(log_z, (x,), (ones,))[1])(emit)
    np.testing.assert_allclose(jax.jit(jax.grad(log_z))(emit).sum(), forward, rtol=1e-5)


def test_every_policy_is_known_to_read_the_weights_or_not():
    from lapilli.inference.particles.resampling._differentiable import _reads_weights

    reads = [resampling.ess_below(), resampling.window(1, 3, resampling.ess_below())]
    blind = [resampling.every(), resampling.every(2), resampling.never(), resampling.window(1, 3)]
    assert all(_reads_weights(p, 4) for p in reads)
    assert not any(_reads_weights(p, 4) for p in blind)


def test_killing_with_a_particle_of_weight_zero_keeps_derivatives_finite():
    def law(x):
        log_weights = jax.nn.log_softmax(
            jnp.array([0.0, 1.0, -jnp.inf]) + x * jnp.array([1.0, 0.0, 0.0])
        )
        return killing_law(log_weights, jnp.array([0, 1, 1]))

    assert jnp.isfinite(jax.grad(law)(0.3))
