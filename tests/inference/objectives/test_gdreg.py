"""Generalised doubly reparameterised gradients: unbiased on closed forms and in hierarchies, less variance, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.infer.autoguide import AutoMultivariateNormal

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.objectives import _path_gradients
from lapilli.inference.objectives._path_gradients import transported
from lapilli.ppl.strategies._strategy import element

KEY = jax.random.key(0)
X = jnp.array([-1.0, 0.5, 2.0])
PARAMS = {
    "mean": jnp.asarray(0.2), "width": jnp.log(1.1), "loc": jnp.asarray(0.3), "scale": jnp.log(0.8),
}  # fmt: skip
positive = dist.constraints.positive


@ppl.model
def model(x):
    mean, width = ppl.param("mean", 0.2), ppl.param("width", 1.1, constraint=positive)
    with ppl.plate("rows", x.shape[0]):
        z = ppl.sample("z", dist.Normal(mean, width))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)


@ppl.model
def guide(x):
    loc, scale = ppl.param("loc", 0.3), ppl.param("scale", 0.8, constraint=positive)
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("z", dist.Normal(0.5 * x + 0.5 * loc, scale))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def exact(params, x):
    """K = 2, row by row."""
    loc, scale = 0.5 * x + 0.5 * params["loc"], jnp.exp(params["scale"])
    z = loc + scale * NODES[:, None]
    log_p = norm.logpdf(z, params["mean"], jnp.exp(params["width"])) + norm.logpdf(x, z)
    lw = log_p - norm.logpdf(z, loc, scale)
    pairs = jnp.logaddexp(lw[:, None], lw[None]) - jnp.log(2.0)
    return jnp.einsum("i,j,ijn->", WEIGHTS, WEIGHTS, pairs)


def check(n=20_000):
    """The sd is below 1.5 in every coordinate: 20,000 keys find a bias of 0.08."""
    objective = inference.iwelbo(model, guide, num_particles=2, per="plate", gradient="gdreg")
    run = jax.jit(jax.vmap(lambda k: objective.value_and_grad(PARAMS, k, X)))
    value, grads = run(jax.random.split(KEY, n))
    want, want_grads = jax.value_and_grad(exact)(PARAMS, X)
    assert_unbiased(value, want)
    for name in PARAMS:
        assert_unbiased(grads[name], want_grads[name], names=[name])


@pytest.mark.slow
def test_it_is_unbiased_on_a_closed_form():
    check()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["weights not squared", "downstream blind"])
def test_a_broken_estimator_is_found(part, monkeypatch):
    if part == "downstream blind":  # the observations do not see the move
        carry = _path_gradients._Carry.postprocess_message

        def broken(self, msg):
            value = msg["value"]
            carry(self, msg)
            msg["value"] = value

        monkeypatch.setattr(_path_gradients._Carry, "postprocess_message", broken)
    else:
        monkeypatch.setattr(_path_gradients, "log_density_of", lambda trace, plate: jnp.zeros(3))
    with pytest.raises(AssertionError):
        check()


def estimates(gradient, program, proposal, params, keys, num_particles=3, args=()):
    o = inference.iwelbo(
        program, proposal, num_particles=num_particles, gradient=gradient, check_jumps=False
    )  # the supports' guards would be probed for jumps: twenty seconds
    grads = jax.jit(jax.vmap(lambda k: o.grad(params, k, *args)))(keys)
    return np.column_stack([grads[name] for name in sorted(params)])


def deep(x):
    """A Normal over a Normal, Exponential and LogNormal priors with parameters; a Weibull, which keeps its score."""
    a, b = ppl.param("a", 0.4), ppl.param("b", 0.9, constraint=positive)
    u = ppl.sample("u", dist.Normal(a, b))
    g = ppl.sample("g", dist.Exponential(b + 0.3))
    v = ppl.sample("v", dist.LogNormal(a * u, b).expand([2]).to_event(1))
    p = ppl.sample("p", dist.Weibull(b, 2.0))
    z = ppl.sample("z", dist.Normal(a * u + 0.2 * g, b))
    ppl.sample("x", dist.Normal(z + 0.2 * v.sum() * a + 0.3 * p, 0.8), obs=x)


def deep_guide(x):
    m, s = ppl.param("m", 0.2), ppl.param("s", 0.7, constraint=positive)
    u = ppl.sample("u", dist.Normal(m, s))
    ppl.sample("g", dist.LogNormal(-0.5, s))
    ppl.sample("v", dist.LogNormal(m * u, s).expand([2]).to_event(1))
    ppl.sample("p", dist.LogNormal(-0.3, s))
    ppl.sample("z", dist.Normal(m * u + 0.3 * x, s))


def chain(x):
    a, b = ppl.param("a", 0.4), ppl.param("b", 0.9, constraint=positive)
    both = jnp.stack([jnp.eye(2)[0] * b, jnp.array([0.3 * a, 0.7])])
    start = ppl.sample("start", dist.MultivariateNormal(a * jnp.ones(2), scale_tril=both))

    def step(z, x):
        z = ppl.sample("z", dist.Normal(a * z, b))
        ppl.sample("x", dist.Normal(z, 0.8), obs=x)
        return z, None

    ppl.scan(step, start.sum(), x * jnp.ones(3))


def chain_guide(x):
    m, s = ppl.param("m", 0.2), ppl.param("s", 0.7, constraint=positive)
    start = ppl.sample("start", dist.MultivariateNormal(m * jnp.ones(2), scale_tril=s * jnp.eye(2)))
    ppl.scan(
        lambda z, x: (ppl.sample("z", dist.Normal(m * z + 0.3 * x, s)), None), start.sum(), x * jnp.ones(3)
    )  # fmt: skip


# slow: a scan compiles longer
@pytest.mark.slow  # 20,000 keys a side
@pytest.mark.parametrize(
    "programs", [(deep, deep_guide), (chain, chain_guide)],
    ids=["deep", "chain"],
)  # fmt: skip
def test_it_has_the_mean_of_the_plain_gradient_in_a_hierarchy(programs):
    """Sd below 2.5 in every coordinate: 20,000 keys a side find a bias of 0.2."""
    params = {"a": 0.4, "b": jnp.log(0.9), "m": 0.2, "s": jnp.log(0.7)}
    runs = [
        estimates(g, *programs, params, jax.random.split(jax.random.key(i), 20_000), args=(1.0,))
        for i, g in enumerate(("full", "gdreg"))
    ]
    assert_same_mean(*runs, names=sorted(params))


@ppl.model
def of_sd(x, sd):
    mean, width = ppl.param("mean", 0.2), ppl.param("width", 1.0, constraint=positive)
    with ppl.plate("rows", x.shape[0]):
        z = ppl.sample("z", dist.Normal(mean, width))
        ppl.sample("x", dist.Normal(z, sd), obs=x)


@ppl.model
def near_posterior(x, sd):
    """Its sd is 6% too wide, as a trained guide's may be."""
    loc, scale = ppl.param("loc", 0.2), ppl.param("scale", 1.06, constraint=positive)
    gain = 1 / (1 + sd**2)
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("z", dist.Normal(gain * x + (1 - gain) * loc, scale * sd * gain**0.5))


@pytest.mark.slow
def test_where_it_has_less_variance_and_where_more_and_the_same_values():
    """K = 64, the same keys. With data less sharp than the prior (sd 3) the score has ten times the variance and more.

    With sharper data (sd 1/2) it is the other way round, since the path goes through the observations.
    """
    params = {"mean": 0.2, "width": 0.0, "loc": 0.2, "scale": jnp.log(1.06)}
    objectives = {
        g: inference.iwelbo(of_sd, near_posterior, num_particles=64, per="plate", gradient=g)
        for g in ("dreg", "gdreg")
    }
    runs = {
        g: jax.jit(jax.vmap(lambda k, sd, o=o: o.value_and_grad(params, k, X, sd), (0, None)))
        for g, o in objectives.items()
    }
    for sd in (3.0, 0.5):
        (values, old), (same, new) = (run(jax.random.split(KEY, 500), sd) for run in runs.values())
        np.testing.assert_allclose(same, values, rtol=1e-4)
        ratio = {n: float(np.var(new[n]) / np.var(old[n])) for n in params}
        for name in ("mean", "width"):
            assert ratio[name] < 0.1 if sd > 1 else ratio[name] > 2, (sd, ratio)
        for name in ("loc", "scale"):
            np.testing.assert_allclose(ratio[name], 1, rtol=0.02)


FAMILIES = {
    "Normal": (lambda p: dist.Normal(p, jnp.exp(p)), 0.7),
    "Laplace": (lambda p: dist.Laplace(p, jnp.exp(p)), 0.7),
    "Logistic": (lambda p: dist.Logistic(p, jnp.exp(p)), 0.7),
    "Cauchy": (lambda p: dist.Cauchy(p, jnp.exp(p)), 0.7),
    "Gumbel": (lambda p: dist.Gumbel(p, jnp.exp(p)), 0.7),
    "HalfNormal": (lambda p: dist.HalfNormal(jnp.exp(p)), 0.7),
    "HalfCauchy": (lambda p: dist.HalfCauchy(jnp.exp(p)), 0.7),
    "Exponential": (lambda p: dist.Exponential(jnp.exp(p)), 0.7),
    "Gamma": (lambda p: dist.Gamma(jnp.exp(p), 1 + p**2), 0.7),
    "LogNormal": (lambda p: dist.LogNormal(p, jnp.exp(p)), 0.7),
    "InverseGamma": (lambda p: dist.InverseGamma(jnp.exp(p), 1 + p**2), 0.7),
    "Independent": (lambda p: dist.Normal(p, jnp.exp(p)).expand([2]).to_event(1), [0.7, -0.2]),
}  # fmt: skip


@pytest.mark.fast("Cauchy", "Gumbel", "HalfCauchy", "InverseGamma", "LogNormal", "Logistic")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_draw_is_carried_along_by_its_distribution_function(name):
    """The derivative of F(T(noise; p); p) in p is 0, by central differences of step 1e-3 in float64."""
    make, value = FAMILIES[name]
    with jax.enable_x64(True):
        value, p, h = jnp.asarray(value), jnp.asarray(0.3), 1e-3
        slope = jax.jacfwd(lambda p: transported(make(p), value))(p)
        np.testing.assert_allclose(transported(make(p), value), value, rtol=1e-12)
        base = lambda p: element(make(p))[0]  # noqa: E731
        if name == "InverseGamma":  # NumPyro has no distribution function for it
            cdf = lambda p, x: 1 - dist.Gamma(jnp.exp(p), 1 + p**2).cdf(1 / x)  # noqa: E731
        else:
            cdf = lambda p, x: base(p).cdf(x)  # noqa: E731
        ends = [cdf(p + e, value + e * slope) for e in (h, -h)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), 0, atol=1e-5)
        assert np.abs(slope).min() > 0.1


def test_what_cannot_be_carried():
    masked = dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False]))
    for fn in (dist.Beta(2.0, 1.0), dist.StudentT(3.0), masked):
        assert transported(fn, jnp.full(fn.batch_shape, 0.5)) is None


def beta(x):
    ppl.sample("z", dist.Beta(2.0, ppl.param("b", 1.0)))


def narrow(x):
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("z", dist.Uniform(-1.0, 1.0))


@ppl.model
def pair(x):
    u = ppl.sample("u", dist.Normal(0.0, 1.0))
    ppl.sample("z", dist.Normal(u, 1.0))


@pytest.mark.slow_for("model-proposal2-ValueError-Site 'z'.*point mass.*'dreg'")
@pytest.mark.parametrize(
    ("program", "proposal", "error", "words"),
    [
        (beta, beta, ValueError, "no latent site.*'z'.*'dreg'"),
        (model, narrow, ValueError, "the support that the guide has there.*'dreg'"),
        (model, AutoMultivariateNormal(model), ValueError, "Site 'z'.*point mass.*'dreg'"),
        (ppl.marginal(pair, keep=["z"]), guide, TypeError, "estimated"),
        (model, ppl.marginal(pair, keep=["z"]), TypeError, "estimated"),
    ],
)
def test_refusals(program, proposal, error, words):
    objective = inference.iwelbo(program, proposal, num_particles=2, gradient="gdreg")
    with pytest.raises(error, match=words):
        objective.value(objective.init(KEY, X), KEY, X)


def test_discrete_sites_are_refused():
    def program(x):
        ppl.sample("z", dist.Bernoulli(0.5))

    objective = inference.iwelbo(
        program, program, num_particles=2, gradient="gdreg", strategies="enum"
    )
    with pytest.raises(ValueError, match=r"site.*'z'.*'enum'.*vimco"):
        objective.value({}, KEY, X)
