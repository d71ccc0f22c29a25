"""ppl.marginal: both identities by enumeration and quadrature, nested, learned proposals, bounds and their gradients.

With every site under "enum" an expectation is a finite sum, so the identities are tested without random numbers; the
oracles are tables and quadrature written out by hand. The samplers outside of the engine get z tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

from _stats import assert_unbiased
from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

P_A = 0.3
P_V = np.array([0.2, 0.9])  # P(v = 1 | a)
R_A = np.array([0.6, 0.25])  # P(a = 1 | v) of the proposal
EVIDENCE = np.array(
    [(1 - P_A) * (1 - P_V[0]) + P_A * (1 - P_V[1]), (1 - P_A) * P_V[0] + P_A * P_V[1]]
)


@ppl.model
def joint():
    a = ppl.sample("a", dist.Bernoulli(P_A))
    ppl.sample("v", dist.Bernoulli(jnp.asarray(P_V)[a]))


@ppl.model
def later():
    """The auxiliary site comes after the kept one."""
    v = ppl.sample("v", dist.Bernoulli(EVIDENCE[1]))
    ppl.sample("a", dist.Bernoulli(jnp.asarray(P_A * P_V / EVIDENCE[1])[1] * v))


@ppl.model
def proposal(kept):
    ppl.sample("a", dist.Bernoulli(jnp.asarray(R_A)[kept["v"]]))


def close(a, b, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def means(*fns):
    """E[fn] of several functions by enumeration of every site: derivatives of a weighted sum in its weights."""
    weights = jnp.ones(len(fns))
    total = ppl.expectation(
        lambda w: sum(w[i] * fn() for i, fn in enumerate(fns)), strategies="enum"
    )
    return np.asarray(total.grad(weights, jax.random.key(0)))


def both_identities(program, evidence, sites=("v",)):
    """E[exp w | x] = p(x) and E[exp(-w); x] = p(x) / p(x) = 1 for every x that the table `evidence` names."""

    def estimate(choices):
        return jnp.exp(ppl.score(program, choices).log_density)

    def reciprocal(choices):
        q = ppl.draw(program)
        hit = jnp.stack([q.choices[name] == x for name, x in choices.items()]).all()
        return jnp.where(hit, jnp.exp(-q.log_density), 0.0)

    choices = [dict(zip(sites, values, strict=True)) for values in evidence]
    got = means(*[lambda c=c, f=f: f(c) for f in (estimate, reciprocal) for c in choices])
    close(got, [*evidence.values(), *[1.0] * len(evidence)])


TABLE = {(0,): EVIDENCE[0], (1,): EVIDENCE[1]}


@pytest.mark.fast("aux later-1", "prior-1")
@pytest.mark.parametrize("num_particles", [1, 2, 3])
@pytest.mark.parametrize("kind", ["prior", "proposal", "aux later"])
def test_both_identities_hold_on_a_two_state_model(kind, num_particles):
    program = later if kind == "aux later" else joint
    r = proposal if kind == "proposal" else None
    m = ppl.marginal(program, keep=["v"], proposal=r, num_particles=num_particles)
    both_identities(m, TABLE)


class NoRetained(type(ppl.marginal(joint, keep=["v"]))):
    """Broken: the sampled auxiliary choice is thrown away and all particles are fresh."""

    def _draw(self, *args):
        kept = self.program._draw(*args).choices["v"]
        return self._score({"v": kept}, *args)


class NoProposal(NoRetained):
    """Broken: weights without the density of the auxiliary proposal."""

    def _draw(self, *args):
        q = self.program._draw(*args)
        return self._with(q.choices["v"], q.log_density)

    def _score(self, choices, *args):
        a = self.proposal._draw(choices, *args).choices
        return self._with(choices["v"], self.program._score(choices | a, *args).log_density)

    def _with(self, v, log_density):
        trace = self.program._score({"v": v, "a": v})
        from lapilli.ppl.densities._stochastic import estimated

        return estimated("broken", {"v": v}, trace.sites, log_density)


@pytest.mark.fast("NoProposal")
@pytest.mark.parametrize("broken", [NoRetained, NoProposal])
def test_the_identities_find_a_broken_marginal(broken):
    with pytest.raises(AssertionError):
        both_identities(broken(joint, ("v",), proposal, 2), TABLE)


# slow: 2^6 lanes of an outer and an inner marginal compile
@pytest.mark.slow
@pytest.mark.parametrize("outer", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_marginals_nest(outer):
    """p(v) = sum over b, a of p(b) p(a | b) p(v | a, b): a is summed out inside, b outside."""
    p_b, p_a, p_v = 0.4, np.array([0.3, 0.7]), np.array([[0.1, 0.5], [0.8, 0.6]])

    @ppl.model
    def three():
        b = ppl.sample("b", dist.Bernoulli(p_b))
        a = ppl.sample("a", dist.Bernoulli(jnp.asarray(p_a)[b]))
        ppl.sample("v", dist.Bernoulli(jnp.asarray(p_v)[a, b]))

    @ppl.model
    def r_b(kept):
        ppl.sample("b", dist.Bernoulli(0.2 + 0.5 * kept["v"]))

    def r_a(kept):
        ppl.sample("a", dist.Bernoulli(0.3 + 0.2 * kept["v"] + 0.1 * kept["b"]))

    inner = ppl.marginal(three, keep=["v", "b"], proposal=r_a, num_particles=2)
    pairs = {(v, b): 0.0 for v in (0, 1) for b in (0, 1)}
    for v, b in pairs:
        for a in (0, 1):
            p = (p_b if b else 1 - p_b) * (p_a[b] if a else 1 - p_a[b])
            pairs[v, b] += p * (p_v[a, b] if v else 1 - p_v[a, b])
    both_identities(inner, pairs, ("v", "b"))
    m = ppl.marginal(inner, keep="v", proposal=r_b, num_particles=outer)
    both_identities(m, {(v,): pairs[v, 0] + pairs[v, 1] for v in (0, 1)})


@pytest.mark.slow  # two levels of lanes compile
def test_a_proposal_may_be_a_marginal_itself():
    @ppl.model
    def mixed(kept):
        c = ppl.sample("c", dist.Bernoulli(0.5))
        ppl.sample("a", dist.Bernoulli(0.2 + 0.3 * kept["v"] + 0.4 * c))

    r = ppl.marginal(mixed, keep=["a"], num_particles=2)
    both_identities(ppl.marginal(joint, keep=["v"], proposal=r, num_particles=2), TABLE)


# Outside of the engine, and continuous auxiliary sites.

SD = 0.5


@ppl.model
def gaussian():
    a = ppl.sample("a", dist.Normal(0.5, 1.2))
    ppl.sample("v", dist.Normal(jnp.tanh(a), SD))


@ppl.model
def gaussian_proposal(kept):
    ppl.sample("a", dist.Normal(0.8 * kept["v"], 1.3))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def density(v):
    """Integral of N(v; tanh a, SD) over a ~ N(0.5, 1.2), by quadrature."""
    return (WEIGHTS * norm.pdf(v, np.tanh(0.5 + 1.2 * NODES), SD)).sum()


@pytest.mark.parametrize("r", [None, gaussian_proposal], ids=["prior", "proposal"])
def test_a_normal_auxiliary_site_matches_quadrature(r, seed):
    # Relative sd below 1: a bias of 5% is 7 errors with 20,000 keys.
    m = ppl.marginal(gaussian, keep=["v"], proposal=r, num_particles=2)
    run = jax.jit(jax.vmap(lambda k: m.estimate_log_density(k, {"v": 0.4})))
    assert_unbiased(jnp.exp(run(jax.random.split(seed, 20_000))) / density(0.4), 1.0)


def draws(program, keys):
    def one(key):
        trace = program.simulate(key)
        return trace.choices["v"], trace.log_density

    return jax.jit(jax.vmap(one))(keys)


def test_simulate_has_unbiased_reciprocals(seed):
    """E[f(v) exp(-w)] = integral of f over v; f an indicator, so that the estimates are light-tailed."""
    m = ppl.marginal(gaussian, keep=["v"], proposal=gaussian_proposal, num_particles=2)
    v, w = draws(m, jax.random.split(seed, 20_000))
    bins = np.array([-0.5, 0.0, 0.5, 1.0])
    inside = (v[:, None] > bins[:-1]) & (v[:, None] < bins[1:])
    assert_unbiased(inside * jnp.exp(-w)[:, None], np.diff(bins))


@pytest.mark.slow
def test_many_particles_come_close_to_the_density():
    m = ppl.marginal(gaussian, keep=["v"], num_particles=100_000)
    key = jax.random.key(0)
    for w in (
        m.estimate_log_density(key, {"v": 0.4}),
        m.generate(key, {"v": 0.4})[1],
    ):
        close(w, np.log(density(0.4)), rtol=0, atol=0.02)
    trace = m.simulate(key)
    close(trace.log_density, np.log(density(float(trace.choices["v"]))), rtol=0, atol=0.02)
    assert set(trace.choices) == {"v"} and trace.choices["v"].shape == ()


def test_an_object_with_the_two_methods_is_a_proposal():
    class Sampler:
        def simulate(self, key, kept):
            return gaussian_proposal.simulate(key, kept)

        def estimate_log_density(self, key, choices, kept):
            return gaussian_proposal.log_density(choices, kept)

    m = ppl.marginal(gaussian, keep=["v"], proposal=Sampler(), num_particles=2)
    run = jax.jit(jax.vmap(lambda k: m.estimate_log_density(k, {"v": 0.4})))
    keys = jax.random.split(jax.random.key(0), 20_000)
    assert_unbiased(jnp.exp(run(keys)) / density(0.4), 1.0)
    v, w = draws(m, keys)
    assert_unbiased((jnp.abs(v) < 0.5) * jnp.exp(-w), 1.0)


# Inside objectives.


def hierarchical(num_particles, r="learned"):
    """A guide z | u ~ N, u ~ Bernoulli, with the model z ~ N(0, 1), x ~ N(z, 1)."""

    @ppl.model
    def model(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    @ppl.model
    def guide(x):
        u = ppl.sample("u", dist.Bernoulli(logits=ppl.param("logit", 0.4)))
        ppl.sample("z", dist.Normal(ppl.param("loc", jnp.array([0.1, 1.0]))[u], 0.8))

    def reverse(kept, x):
        slope = ppl.param("slope", 0.7)
        ppl.sample("u", dist.Bernoulli(logits=slope * kept["z"] + ppl.param("offset", -0.2)))

    proposal = reverse if r == "learned" else None
    q = ppl.marginal(guide, keep=["z"], proposal=proposal, num_particles=num_particles)
    return model, q


PARAMS = {
    "logit": jnp.asarray(0.4),
    "loc": jnp.array([0.1, 1.0]),
    "slope": jnp.asarray(0.7),
    "offset": jnp.asarray(-0.2),
}
X = 1.5


def exact_bound(params, num_particles, learned):
    """E[log p(x, z) - log Z]: u_1 ~ q(u), z ~ q(z | u_1), u_2.. ~ r; sums over u and quadrature over z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    p_u = jax.nn.sigmoid(params["logit"])
    prior = jnp.stack([1 - p_u, p_u])
    total = 0.0
    for u1 in (0, 1):
        z = params["loc"][u1] + 0.8 * nodes
        log_p = norm.logpdf(z) + norm.logpdf(X, z)
        log_q = [jnp.log(prior[u]) + norm.logpdf(z, params["loc"][u], 0.8) for u in (0, 1)]
        r1 = jax.nn.sigmoid(params["slope"] * z + params["offset"]) if learned else p_u + 0 * z
        r = [1 - r1, r1]
        w = [jnp.exp(log_q[u]) / r[u] for u in (0, 1)]
        if num_particles == 1:
            total += prior[u1] * (weights * (log_p - jnp.log(w[u1]))).sum()
        else:
            for u2 in (0, 1):
                mean = (w[u1] + w[u2]) / 2
                total += prior[u1] * (weights * r[u2] * (log_p - jnp.log(mean))).sum()
    return total


@pytest.mark.fast("2-prior-enum")
@pytest.mark.parametrize("strategy", ["enum", "mvd"])
@pytest.mark.parametrize("learned", [False, True], ids=["prior", "learned"])
@pytest.mark.parametrize("num_particles", [1, 2])
def test_gradients_of_bounds_built_on_a_marginal_are_unbiased(num_particles, learned, strategy):
    # sd below 2.5 in every coordinate: with 20,000 keys a bias of 0.13 is 7 errors.
    model, q = hierarchical(num_particles, "learned" if learned else None)
    params = PARAMS if learned else {k: PARAMS[k] for k in ("logit", "loc")}
    bound = inference.elbo(model, q, strategies={"u": strategy})
    assert set(bound.init(jax.random.key(0), X)) == set(params)
    value, grads = jax.value_and_grad(exact_bound)(params, num_particles, learned)
    run = jax.jit(jax.vmap(lambda k: bound.value_and_grad(params, k, X)))
    got_value, got = run(jax.random.split(jax.random.key(1), 20_000))
    assert_unbiased(got_value, value)
    for name in params:
        assert_unbiased(got[name], grads[name], names=None)


@pytest.mark.slow
def test_one_particle_keeps_the_terms_of_rows_apart():
    """An enumerated auxiliary site per row of a plate costs two lanes, not 2^N."""

    def guide(x):
        with ppl.plate("rows", x.shape[0]):
            u = ppl.sample("u", dist.Bernoulli(0.3))
            ppl.sample("z", dist.Normal(1.0 * u, ppl.param("scale", 1.0)))

    def model(x):
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    def reverse(kept, x):
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("u", dist.Bernoulli(logits=kept["z"]))

    x = jnp.arange(30.0)
    q = ppl.marginal(guide, keep=["z"], proposal=reverse)
    bound = inference.elbo(model, q, strategies={"u": "enum", "z": "reparam"})
    assert bound.plan({"scale": jnp.asarray(1.0)}, x)["u"].evaluations == "2"
    by_row = inference.iwelbo(model, q, num_particles=2, per="plate", strategies={"u": "mvd"})
    assert np.isfinite(by_row.value({}, jax.random.key(0), x))


@pytest.mark.slow
def test_a_marginal_knows_its_side_and_prints_it():
    m = ppl.marginal(joint, keep=["v"], proposal=proposal)
    assert m.bounds == {"draw": "upper", "score": "lower"}
    assert "lower bound" in str(m) and "marginal[v]" in str(m) and "proposal" in str(m)
    # In the mean: E[log Z] below log p(v) at given choices, above it at draws.
    two = ppl.marginal(joint, keep=["v"], proposal=proposal, num_particles=2)
    *given, drawn = means(
        *[lambda v=v: ppl.score(two, {"v": v}).log_density for v in (0, 1)],
        lambda: ppl.draw(two).log_density,
    )
    assert (given < np.log(EVIDENCE) - 0.01).all()
    assert drawn > (EVIDENCE * np.log(EVIDENCE)).sum() + 0.01


@pytest.mark.slow  # seconds of compilation
def test_the_fit_of_a_marginal_guide_weights_its_draws():
    """Posterior draws come with weights that average to the evidence."""
    model, q = hierarchical(3)
    objective = inference.elbo(model, q, strategies={"u": "enum"})
    import optax

    fit = inference.fit(
        objective, optax.sgd(1e-2), (X,), num_steps=2, key=jax.random.key(0), progress=False
    )
    posterior = fit.posterior(jax.random.key(1), 20_000)
    evidence = norm.pdf(X, 0.0, 2**0.5)
    assert_unbiased(jnp.exp(posterior.log_weights) / evidence, 1.0)


# Refusals.


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ppl.marginal(joint, keep=[]), ValueError, "distinct sites"),
        (lambda: ppl.marginal(joint, keep=["v", "v"]), ValueError, "distinct sites"),
        (lambda: ppl.marginal(joint, keep="v", num_particles=0), ValueError, "integer >= 1"),
        (lambda: ppl.marginal(joint, keep="v", num_particles=2.0), ValueError, "integer >= 1"),
        (lambda: ppl.marginal(3, keep="v"), TypeError, "must be a program"),
        (lambda: ppl.marginal(joint, keep="v", proposal=3), TypeError, "proposal must be a program"),
        (
            lambda: ppl.marginal(ppl.marginal(joint, keep="v"), keep="v"),
            TypeError,
            "no conditional prior",
        ),
        (
            lambda: ppl.marginal(joint, keep="b").simulate(jax.random.key(0)),
            ValueError,
            "keep names .'b'.*latent sites are .'a', 'v'",
        ),
        (
            lambda: ppl.marginal(joint, keep="b").estimate_log_density(jax.random.key(0), {"b": 1}),
            ValueError,
            "keep names .'b'",
        ),
        (
            lambda: ppl.marginal(joint, keep="v").estimate_log_density(jax.random.key(0), {"a": 1}),
            ValueError,
            "missing .'v'., extra .'a'",
        ),
        (lambda: ppl.marginal(joint, keep="v").log_density({"v": 1}), TypeError, "estimate_log_density"),
        (lambda: ppl.marginal(joint, keep="v")(), TypeError, "cannot act on it"),
        (
            lambda: ppl.condition(ppl.marginal(joint, keep="v"), {"v": 1}).simulate(jax.random.key(0)),
            TypeError,
            "condition.*cannot act on it",
        ),
        (
            lambda: ppl.marginal(joint, keep="v").predict(jax.random.key(0), {"v": 1}),
            TypeError,
            "predict from the program",
        ),
    ],
)  # fmt: skip
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def _wrong(draws):
    def wrong(kept):
        for name in draws:
            ppl.sample(name, dist.Bernoulli(0.5))

    return ppl.marginal(joint, keep=["v"], proposal=wrong, num_particles=2)


@pytest.mark.parametrize(
    ("draws", "words"),
    [
        ((), r"misses \['a'\] and draws \[\]"),
        (("a", "b"), r"misses \[\] and draws \['b'\]"),
        (("v", "a"), r"draws \['v'\], which are kept"),
    ],
)
def test_a_proposal_that_does_not_fit_is_refused(draws, words):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=words):
        _wrong(draws).estimate_log_density(key, {"v": 1})
    if "v" not in draws:
        with pytest.raises(ValueError, match=words):
            _wrong(draws).simulate(key)


def test_subsampled_log_probs_are_refused_where_densities_are_averaged():
    @ppl.model
    def rows():
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 10, subsample_size=5):
            ppl.sample("x", dist.Normal(a, 1.0), obs=jnp.zeros(5))
        ppl.sample("v", dist.Normal(a, 1.0))

    with pytest.raises(ValueError, match="Site 'x'.*scaled by 2.0"):
        ppl.marginal(rows, keep=["v"], num_particles=2).estimate_log_density(
            jax.random.key(0), {"v": 0.0}
        )


def test_keyed_methods_are_refused_inside_an_expectation():
    m = ppl.marginal(joint, keep="v")
    for call in (
        lambda p: m.simulate(jax.random.key(0)).log_density,
        lambda p: m.estimate_log_density(jax.random.key(0), {"v": 1}),
    ):
        with pytest.raises(RuntimeError, match="ppl.draw"):
            ppl.expectation(call).value((), jax.random.key(0))


@pytest.mark.slow
def test_a_sampler_whose_discrete_choices_follow_parameters_is_refused_inside_an_objective():
    class Sampler:
        def bind(self, params):
            self.p = jax.nn.sigmoid(params["logit"])
            return self

        def simulate(self, key, kept, *args):
            from types import SimpleNamespace

            u = jax.random.bernoulli(key, self.p).astype(int)
            return SimpleNamespace(
                choices={"u": u}, log_density=jnp.log(u * self.p + (1 - u) * (1 - self.p))
            )

        def estimate_log_density(self, key, choices, kept, *args):
            u = choices["u"]
            return jnp.log(u * self.p + (1 - u) * (1 - self.p))

    model, q = hierarchical(2)
    q = ppl.marginal(q.program, keep=["z"], proposal=Sampler(), num_particles=2)
    bound = inference.elbo(model, q, strategies={"u": "enum"})
    with pytest.raises(ValueError, match="Sampler_1.*jumps"):
        bound.value_and_grad({k: PARAMS[k] for k in ("logit", "loc")}, jax.random.key(0), X)
