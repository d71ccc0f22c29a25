"""The weighted score function: exact mean over all outcomes of the proposal's noise; z tests for continuous proposals and lanes.

Exact tests find any bias above float32 rounding; z tests state theirs as `catches` (power over 99%, false-alarm rate
6.8e-6 per coordinate and seed, seeds 0, 1, 2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _contexts import CONTEXTS, PARAMS, Language
from _oracles import (
    Exact,
    assert_exact,
    assert_mean,
    bernoulli,
    bits,
    categorical,
    digits,
    exact,
    moments,
    nodes,
    normal,
    of,
    on_rows,
    reference_elbo,
    reference_iwelbo,
)

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

sigmoid = jax.nn.sigmoid
MATRIX = [name for name in CONTEXTS if name not in ("rows", "short-scan")]
# Proposals with their 1 - h as a function of 1 - p.
FIXED = ppl.Importance(lambda p: bernoulli(0.4 * jnp.ones(p.noise.shape), p.noise))
TEMPERED = ppl.Importance(lambda p: bernoulli(0.3 + 0.4 * p.probs, p.noise))
EDGES = {"fixed": lambda cdf: np.full_like(cdf, 0.6), "tempered": lambda cdf: 0.3 + 0.4 * cdf}
PROPOSALS = {"fixed": FIXED, "tempered": TEMPERED}


def proposed(truth, name, names=None):
    edges = {k: EDGES[name](v) if names is None or k in names else v for k, v in truth.cdfs.items()}
    return Exact(truth.value, truth.grads, edges)


@functools.cache
def truth_of(context):
    program = CONTEXTS[context]
    return exact(program.raw("bernoulli"), PARAMS, program.spec("bernoulli"))


def cases(quick):
    every = [(c, p) for c in MATRIX for p in PROPOSALS]
    marks = lambda c: () if c in quick else pytest.mark.slow  # noqa: E731
    return [pytest.param(*c, marks=marks(c)) for c in every]  # slow: the rest of the matrix


QUICK = [(c, "fixed") for c in ("plate-mixed", "scan", "cond")]
QUICK += [(c, "tempered") for c in ("straight", "plate-around-scan")]


@pytest.mark.fast("straight-tempered")
@pytest.mark.parametrize(("context", "proposal"), cases(QUICK))
def test_expectation_has_the_exact_mean(context, proposal):
    program, truth = CONTEXTS[context], proposed(truth_of(context), proposal)
    expectation = ppl.expectation(program.raw("bernoulli"), strategies={"*": PROPOSALS[proposal]})
    assert_exact(moments(expectation, PARAMS, program.spec("bernoulli"), truth), truth)


@pytest.mark.slow
@pytest.mark.parametrize(("context", "proposal"), cases([("plate", "tempered")]))
def test_elbo_has_the_exact_mean(context, proposal):
    program = CONTEXTS[context]
    spec, (model, guide) = program.spec("bernoulli"), program.programs("bernoulli")
    objective = inference.elbo(model, guide, strategies={"*": PROPOSALS[proposal]})
    noise = {name: jnp.full(site.shape, 0.5) for name, site in spec.items()}
    params = objective.init(jax.random.key(0), noise)
    truth = proposed(exact(reference_elbo(model, guide), params, spec), proposal)
    assert_exact(moments(objective, params, spec, truth), truth)


def four(p, noise):
    x = ppl.sample("x", bernoulli(sigmoid(p["a"]), of(noise, "x")))
    with ppl.plate("rows", 2):
        y = ppl.sample("y", bernoulli(sigmoid(p["r"][:2] + 0.6 * x), of(noise, "y")))
    z = ppl.sample("z", bernoulli(sigmoid(p["b"] - y.sum() + x), of(noise, "z")))
    n = ppl.sample("n", normal(p["w"] * y.prod() + z, 0.7, of(noise, "n")))
    return (x + y.sum() - z) ** 2 * n + p["a"] * y[0] * z + n**2


MIXTURES = {
    "before an enumerated site": {"x": TEMPERED, "y": TEMPERED, "z": "enum"},
    "behind an enumerated site": {"x": "enum", "y": TEMPERED, "z": TEMPERED},
    "among score functions with a baseline": {"x": ppl.Reinforce(0.8), "y": TEMPERED, "z": ppl.Reinforce(0.5)},
    "among weak derivatives": {"x": "mvd", "y": TEMPERED, "z": "mvd"},
}  # fmt: skip


@pytest.mark.fast("among score functions with a baseline")
@pytest.mark.parametrize("name", MIXTURES)
def test_mixed_strategies_have_the_exact_mean(name):
    spec = {"x": bits(), "y": bits(2), "z": bits(), "n": nodes(5)}
    truth, strategies = exact(four, PARAMS, spec), MIXTURES[name]
    got = moments(
        ppl.expectation(four, strategies=strategies), PARAMS, spec,
        proposed(truth, "tempered", [k for k, v in strategies.items() if v is TEMPERED]),
        enumerated=[k for k, v in strategies.items() if v == "enum"],
    )  # fmt: skip
    assert_exact(got, truth)


# The proposals' own noise.


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    [
        "plate",
        pytest.param("scan", marks=pytest.mark.slow),
        pytest.param("cond", marks=pytest.mark.slow),
    ],
)  # slow: more contexts
def test_wider_normal_proposals_are_unbiased(context, key):
    program = CONTEXTS[context]
    strategies = {"*": ppl.Importance(lambda p: dist.Normal(p.loc, 1.4 * p.scale))}
    if context == "cond":
        strategies["x"] = "enum"
    fn = program.raw("normal")
    truth = exact(fn, PARAMS, program.spec("normal", 4))
    expectation = ppl.expectation(lambda p: fn(p, None), strategies=strategies)
    assert_mean(expectation, PARAMS, truth, key, n=200_000, catches=0.4)


@pytest.mark.slow
def test_particles_under_a_cost_that_is_not_linear(key):
    """Lanes that meet: their weights multiply."""
    program = CONTEXTS["rows"]

    def fn(params, noise):
        costs = ppl.particles(2)(lambda: program.body(Language("bernoulli", params), noise))()
        return 0.1 * costs[0] * costs[1] + costs.mean()

    truth = exact(fn, PARAMS, program.spec("bernoulli", num_lanes=2))
    expectation = ppl.expectation(
        lambda p: fn(p, None), strategies={"*": ppl.Importance(dist.Bernoulli(0.55))}
    )
    assert_mean(expectation, PARAMS, truth, key, n=40_000, catches=0.4)


@pytest.mark.slow  # a bound of several lanes compiles slowly
def test_iwelbo_is_unbiased(key):
    program = CONTEXTS["rows"]
    model, guide = program.programs("bernoulli")
    objective = inference.iwelbo(
        ppl.model(lambda: model(None)), ppl.model(lambda: guide(None)), num_particles=2, per="plate",
        strategies={"*": ppl.Importance(dist.Bernoulli(0.5))},
    )  # fmt: skip
    params = objective.init(jax.random.key(0))
    truth = exact(reference_iwelbo(model, guide, 2, "rows"), params, program.spec("bernoulli", num_lanes=2))  # fmt: skip
    assert_mean(objective, params, truth, key, catches=0.25)


@pytest.mark.slow
def test_leave_one_out_beside_it_is_unbiased(key):
    def fn(p, noise):
        x = ppl.sample("x", categorical(p["r"], of(noise, "x")))
        y = ppl.sample("y", bernoulli(sigmoid(p["b"] + x), of(noise, "y")))
        return (x - 2.0 * y) ** 2 * p["a"] + y

    params = {name: PARAMS[name] for name in "rba"}
    truth = exact(fn, params, {"x": digits(3), "y": bits()})
    strategies = {"x": ppl.Importance(dist.Categorical(logits=jnp.zeros(3))), "y": "reinforce_loo"}
    expectation = ppl.expectation(lambda p: fn(p, None), strategies=strategies)
    assert_mean(expectation, params, truth, key, n=40_000, catches=0.1)


# Variance.


@pytest.mark.slow
def test_the_best_proposal_has_no_variance():
    """For h proportional to p f, rho f is E[f] whatever is drawn."""
    logits, f = jnp.array([0.3, -0.5, 0.2]), jnp.array([1.0, 4.0, 0.5])
    strategy = ppl.Importance(dist.Categorical(logits=logits + jnp.log(f)))
    expectation = ppl.expectation(
        lambda t: f[ppl.sample("k", dist.Categorical(logits=t))], strategies=strategy
    )
    values = jax.vmap(lambda k: expectation.value(logits, k))(
        jax.random.split(jax.random.key(0), 50)
    )
    np.testing.assert_allclose(values, jax.nn.softmax(logits) @ f, rtol=1e-5)


@pytest.mark.slow
def test_rows_that_separate_keep_weights_of_their_own():
    """The estimate of one row's gradient does not know what the other rows drew."""
    program = CONTEXTS["rows"]
    expectation = ppl.expectation(program.raw("bernoulli"), strategies=FIXED)
    rows = {"x": jnp.array([[0.1, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.9]])}
    grads = on_rows(expectation, PARAMS, rows)[1]["r"]
    np.testing.assert_allclose(grads[0, 0], grads[1, 0], rtol=1e-6)
    np.testing.assert_allclose(grads[2, 0], grads[3, 0], rtol=1e-6)
    assert "weights multiply" not in expectation.plan(PARAMS, {"x": rows["x"][0]})["x"].evaluations
    meeting = ppl.expectation(CONTEXTS["plate-mixed"].raw("bernoulli"), strategies=FIXED)
    noise = {"x": rows["x"][0, 0] * jnp.ones(3), "y": rows["x"][0, 0]}
    assert "1 (weights multiply" in meeting.plan(PARAMS, noise)["x"].evaluations


# Broken on purpose, refusals.


class Unweighted(ppl.Importance):
    def log_weight(self, draw):
        return draw.log_prob - jax.lax.stop_gradient(draw.log_prob)


class WithProposal(ppl.Importance):
    """Differentiates the proposal's density as well."""

    def log_weight(self, draw):
        return draw.log_prob - self._of(draw.distribution).log_prob(draw.value)


@pytest.mark.fast("Unweighted-straight")
@pytest.mark.parametrize("context", ["straight", "plate-mixed"])
@pytest.mark.parametrize("broken", [Unweighted, WithProposal])
def test_exact_tests_find_a_broken_estimator(broken, context):
    program, truth = CONTEXTS[context], proposed(truth_of(context), "tempered")
    expectation = ppl.expectation(program.raw("bernoulli"), strategies={"*": broken(TEMPERED.proposal)})  # fmt: skip
    with pytest.raises(AssertionError, match="Mismatch"):
        assert_exact(moments(expectation, PARAMS, program.spec("bernoulli"), truth), truth)


REFUSED = {
    "another support": (
        lambda t: dist.Gamma(t, 1.0), dist.Normal(0.0, 1.0), "needs a proposal with the support of Gamma.*Normal",
    ),
    "fewer values": (
        lambda t: dist.Binomial(3, t), dist.Binomial(2, 0.5), "needs a proposal with the support of BinomialProbs",
    ),
    "event shape": (
        lambda t: dist.Dirichlet(t * jnp.ones(3)), dist.Dirichlet(jnp.ones(2)), "event shape .3,., but Dirichlet has .2,.",
    ),
    "no density": (lambda t: dist.Delta(t), dist.Normal(0.0, 1.0), "Delta has none"),
    "a function that fails": (
        lambda t: dist.Gamma(t, 1.0), lambda p: dist.Gamma(p.shape_parameter, 1.0),
        "could not make its proposal from Gamma.*shape_parameter",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "proposal", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_proposal_that_cannot_serve_is_refused(make, proposal, reason):
    fn = lambda t: jnp.sum(1.0 * ppl.sample("z", make(t)))  # noqa: E731
    with pytest.raises(ValueError, match=f"Site 'z': strategy 'importance' .*{reason}.*Sound here"):
        ppl.expectation(fn, strategies=ppl.Importance(proposal)).plan(0.5)


def test_a_support_that_moves_with_a_parameter_is_refused():
    strategy = ppl.Importance(lambda p: dist.Uniform(0.0, p.high))
    with pytest.raises(ValueError, match="Site 'z'.*support"):
        ppl.expectation(lambda h: ppl.sample("z", dist.Uniform(0.0, h)), strategies=strategy).plan(
            0.5
        )


def test_relaxed_values_upstream_are_refused():
    def fn(p):
        b = ppl.sample("b", dist.Bernoulli(p), strategy="rebar")
        return (
            ppl.sample(
                "c", dist.Bernoulli(sigmoid(b)), strategy=ppl.Importance(dist.Bernoulli(0.5))
            )
            * b
        )

    with pytest.raises(ValueError, match="Site 'b'.*the sampled site 'c' depends"):
        ppl.expectation(fn).plan(0.3)


REACHES = {
    "never": (dist.Categorical(jnp.array([0.0, 0.5, 0.5])), 0.3, False),
    "logits": (
        dist.Categorical(logits=jnp.array([-jnp.inf, 0, 0]), validate_args=False),
        0.3,
        False,
    ),
    "both": (dist.Categorical(jnp.array([0.0, 0.5, 0.5])), 0.0, True),
    "everywhere": (dist.Categorical(jnp.array([0.2, 0.4, 0.4])), 0.3, True),
}


@pytest.mark.fast("never")
@pytest.mark.parametrize("name", REACHES)
def test_values_that_the_proposal_never_makes(name):
    """The mean would lack their part, and no draw could tell."""
    proposal, p, is_sound = REACHES[name]
    costs = jnp.array([3.0, 1.0, -1.0])

    def fn(t):
        law = dist.Categorical(jnp.stack([p * t, 0.5 * t, 1 - (p + 0.5) * t]))
        return costs[ppl.sample("k", law, strategy=ppl.Importance(proposal))]

    value = ppl.expectation(fn, num_replicates=20_000).value(1.0, jax.random.key(0))
    if is_sound:
        np.testing.assert_allclose(value, 3 * p + 0.5 - (0.5 - p), atol=0.06)
    else:
        assert np.isnan(value)


def test_an_event_that_the_proposal_never_makes():
    proposal = ppl.Importance(dist.Bernoulli(0.0))
    fn = lambda t: 1.0 * ppl.sample("k", dist.Bernoulli(t), strategy=proposal)
    assert np.isnan(ppl.expectation(fn).value(0.3, jax.random.key(0)))
