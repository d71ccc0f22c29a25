"""At the edge of what is integrated: scales, missing cells, fills, derivatives of their own, kinds that depend on arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _dense_normal import check_integral, dense
from jax.flatten_util import ravel_pytree
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.asarray(np.random.default_rng(7).normal(size=9), jnp.float32)
MASK = np.array([1, 0, 1, 1, 0, 1, 1, 0, 1], bool)


def density(program, choices, *args):
    """Compiled as a whole: op by op each would be compiled by itself."""
    return jax.jit(lambda choices, *args: program.log_density(choices, *args))(choices, *args)


def effects(y):
    with ppl.plate("rows", len(y)):
        a = ppl.sample("a", dist.Normal(0.3, 1.0))
        ppl.sample("y", dist.Normal(a, 0.5), obs=y)


def test_moments_are_those_of_a_row_however_many_it_stands_for():
    exact = dense(effects, ["a"], {}, (Y,))
    left = ppl.eliminate(ppl.rescale_plates(effects, {"rows": 90}), "a")
    found = jax.jit(left.posterior_marginals)({}, Y)["a"]
    np.testing.assert_allclose(found.loc, exact.mean["a"], rtol=1e-5)
    np.testing.assert_allclose(found.scale, np.sqrt(np.diag(exact.covariance)), rtol=1e-4)
    draw = jax.jit(lambda key: left.posterior(key, {}, Y, num_samples=4000)["a"])
    draws = np.asarray(draw(KEY))
    error = np.sqrt(np.diag(exact.covariance) / 4000)
    assert (np.abs(draws.mean(0) - exact.mean["a"]) < 4.5 * error).all()


def mixed_rows(y):
    with ppl.plate("rows", len(y)):
        k = ppl.sample("k", dist.Bernoulli(0.3))
        a = ppl.sample("a", dist.Normal(2.0 * k, 1.0))
        ppl.sample("y", dist.Normal(a, 0.5), obs=y)


def test_rows_of_a_minibatch_that_are_summed_and_integrated():
    y, scale = np.asarray(Y, float), np.sqrt(1.25)
    each = logsumexp(
        [np.log(p) + dist.Normal(m, scale).log_prob(y) for p, m in ((0.7, 0.0), (0.3, 2.0))], axis=0
    )
    left = ppl.rescale_plates(ppl.eliminate(mixed_rows, ["a", "k"]), {"rows": 90})
    np.testing.assert_allclose(density(left, {}, Y), 10 * each.sum(), rtol=1e-5)
    objective = inference.elbo(ppl.eliminate(mixed_rows, ["a", "k"]), lambda y: None)
    value, _ = objective.value_and_grad(objective.init(KEY, Y), KEY, Y)
    np.testing.assert_allclose(value, each.sum(), rtol=1e-5)


def schools(y):
    mean = ppl.sample("mean", dist.Normal(0.0, 3.0))
    with ppl.plate("rows", len(y)):
        a = ppl.sample("a", dist.Normal(mean, 1.5))
        ppl.sample("y", dist.Normal(a, 0.5), obs=y)


@pytest.mark.slow
def test_calls_are_done_one_after_the_other():
    """Ten thousand rows, then their mean: a joint law of all would not be possible."""
    exact = dense(schools, ["a", "mean"], {}, (Y,))
    left = ppl.eliminate(ppl.eliminate(schools, "a"), "mean")
    np.testing.assert_allclose(density(left, {}, Y), exact.log_density, rtol=1e-5)
    found, log_density = jax.jit(left.mode)({}, Y)
    for name, mean in exact.mean.items():
        np.testing.assert_allclose(found[name], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        log_density, ppl.as_program(schools).log_density(found, Y), rtol=1e-6
    )
    draws = jax.jit(lambda key: left.posterior(key, {}, Y, num_samples=8000))(KEY)
    flat = np.concatenate([draws["a"], draws["mean"][:, None]], -1)
    variance = np.diag(exact.covariance)
    bound = 4.5 * np.sqrt(2 / 8000) * np.sqrt(np.outer(variance, variance))
    assert (np.abs(np.cov(flat.T) - exact.covariance) < bound).all()
    with pytest.raises(
        TypeError, match=r"\['a'\] were integrated out by an earlier call.*name all"
    ):
        left.posterior_marginals({}, Y)
    y = jax.random.normal(KEY, (10_000,))
    total, inner = 9.0, 1.5**2 + 0.5**2
    quad = (y**2).sum() / inner - total * y.sum() ** 2 / inner / (inner + total * 10_000)
    log_det = 9_999 * np.log(inner) + np.log(inner + total * 10_000)
    many = -0.5 * (quad + log_det + 10_000 * np.log(2 * np.pi))
    np.testing.assert_allclose(density(left, {}, y), many, rtol=1e-5)
    with pytest.raises(ValueError, match="more than 2048.*by two calls"):
        ppl.eliminate(schools, ["a", "mean"]).log_density({}, y)


def test_a_scale_around_a_plate_is_no_minibatch():
    def powered(y):
        with numpyro.handlers.scale(scale=2.0):
            effects(y)

    with pytest.raises(ValueError, match="Site 'a'.*'a': None.*not by rows alone"):
        ppl.eliminate(powered, "a").log_density({}, Y)


def missing(y):
    with ppl.plate("rows", len(y)):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        value = ppl.sample("y", dist.Normal(a, 0.4), obs=y, obs_mask=MASK)
    ppl.sample("t", dist.Normal(value.sum(), 0.3), obs=1.0)


def explicit(y):
    """The same with a site for the missing cells alone."""
    with ppl.plate("rows", len(y)):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(a, 0.4).mask(MASK), obs=y)
    u = ppl.sample("u", dist.Normal(a[~MASK], 0.4).to_event(1))
    ppl.sample("t", dist.Normal(jnp.asarray(y).at[~MASK].set(u).sum(), 0.3), obs=1.0)


def test_missing_cells_are_integrated_or_observed():
    both = dense(explicit, ["a", "u"], {}, (Y,)).log_density
    for sites in ("a", ["a", "y_unobserved"]):
        np.testing.assert_allclose(density(ppl.eliminate(missing, sites), {}, Y), both, rtol=1e-5)


@pytest.mark.slow
def test_missing_cells_that_are_given_and_their_mode():
    given = {"y_unobserved": Y + 1}
    fixed = density(ppl.condition(ppl.eliminate(missing, "a"), given), {}, Y)
    exact = dense(ppl.condition(missing, given), ["a"], {}, (Y,)).log_density
    np.testing.assert_allclose(fixed, exact, rtol=1e-5)
    found, log_density = jax.jit(ppl.eliminate(missing, "a").mode)({}, Y)
    assert set(found) == {"a", "y_unobserved"}
    assert np.isfinite(log_density)


def missing_in_events(y):
    a = ppl.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with ppl.plate("rows", 3):
        law = dist.MultivariateNormal(a, jnp.eye(3) + 0.5)
        ppl.sample("y", law, obs=y.reshape(3, 3), obs_mask=MASK.reshape(3, 3))


@pytest.mark.slow
def test_missing_cells_within_events():
    cells = MASK.reshape(3, 3)
    at = [(i, j) for i in range(3) for j in range(3) if cells[i, j]]
    same = lambda x, y: float(x == y)
    covariance = [[same(j, m) + same(i, k) * (same(j, m) + 0.5) for k, m in at] for i, j in at]
    law = dist.MultivariateNormal(jnp.zeros(len(at)), jnp.array(covariance))
    exact = law.log_prob(Y.reshape(3, 3)[tuple(np.array(at).T)])
    found = density(ppl.eliminate(missing_in_events, "a"), {}, Y)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def filled(y):
    a = ppl.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    b = a.at[jnp.array([0, 5, 1])].get(mode="fill", fill_value=2.0)
    c = jnp.take(a, jnp.array([7, 2]), mode="fill", fill_value=-1.0)
    d = jnp.linalg.solve(jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.3], [0.1, 0.0, 3.0]]), a)
    e = a.at[jnp.array([0, 1])].multiply(jnp.array([2.0, -1.0]))
    ppl.sample("y", dist.Normal(b + d + e, 0.5).to_event(1), obs=y[:3])
    ppl.sample("w", dist.Normal(c, 0.5).to_event(1), obs=y[3:5])


def looped(y):
    """Loops of JAX over sites, with and without a state."""
    a = ppl.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    b = jax.lax.map(lambda x: 2.0 * x + 1.0, a)
    c, _ = jax.lax.scan(lambda c, x: (0.5 * c + x, c**2), 0.1 * a.sum(), a)
    ppl.sample("y", dist.Normal(b + c, 0.5).to_event(1), obs=y[:3])


def one_row_for_all(y):
    with ppl.plate("one", 1, dim=-1):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", len(y), dim=-1):
        ppl.sample("y", dist.Normal(a, 0.5), obs=y)


@pytest.mark.slow_for("filled", "looped")
@pytest.mark.parametrize("program", [filled, looped, one_row_for_all])
def test_affine_operations(program):
    check_integral(program, ["a"], {}, (Y,))


@jax.custom_jvp
def other(x):
    return 2.0 * x


other.defjvp(lambda primals, tangents: (other(*primals), 0.0 * tangents[0]))


def test_a_derivative_of_its_own_is_not_dropped():
    def program(y):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(other(a), 1.0), obs=y[0])

    with pytest.raises(ValueError, match="Site 'y': its mean.*custom derivative of other"):
        ppl.eliminate(program, "a").log_density({}, Y)


def test_a_scale_is_right_however_much_the_data_tell():
    def program(noise):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(a, noise), obs=2.0)

    left = jax.jit(lambda noise: ppl.eliminate(program, "a").posterior_marginals({}, noise)["a"])
    for noise in (0.02, 1e-4, 1e-9):
        np.testing.assert_allclose(left(noise).scale, noise / np.sqrt(1 + noise**2), rtol=1e-5)
        np.testing.assert_allclose(left(noise).loc, 2.0 / (1 + noise**2), rtol=1e-6)


def test_what_a_site_is_may_depend_on_an_argument():
    def program(y, is_normal):
        law = dist.Normal(0.0, 1.0) if is_normal else dist.Bernoulli(0.3)
        a = ppl.sample("a", law)
        ppl.sample("y", dist.Normal(1.0 * a, 1.0), obs=y[0])

    left = ppl.eliminate(program, "a")
    y = float(Y[0])
    of = lambda mean, scale: float(dist.Normal(mean, scale).log_prob(y))
    summed = logsumexp([np.log(0.7) + of(0.0, 1.0), np.log(0.3) + of(1.0, 1.0)])
    np.testing.assert_allclose(left.log_density({}, Y, False), summed, rtol=1e-5)
    np.testing.assert_allclose(left.log_density({}, Y, True), of(0.0, np.sqrt(2)), rtol=1e-5)


@pytest.mark.slow
def test_gradients_in_single_precision():
    """Several numbers at once, and statements after them: by finite roots, whose blocks are used apart."""

    def program(y, scale, persistence):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(persistence * z, scale).to_event(1))
            ppl.sample("y", dist.Normal(jnp.stack([z.sum(), z[0], z[1]]), 0.5).to_event(1), obs=y)
            return z, None

        ppl.scan(step, jnp.zeros(2), y.reshape(3, 3))

    def exact(u):
        value = dense(program, ["z"], {}, (Y, *u))
        return value.log_density

    left = jax.jit(jax.grad(lambda u: ppl.eliminate(program, "z").log_density({}, Y, *u)))
    found = left(jnp.array([0.7, 0.9]))
    with jax.enable_x64(True):
        step = 1e-4
        for i in range(2):
            at = np.array([0.7, 0.9])
            up, down = at.copy(), at.copy()
            up[i] += step
            down[i] -= step
            slope = (exact(jnp.asarray(up)) - exact(jnp.asarray(down))) / (2 * step)
            np.testing.assert_allclose(found[i], slope, rtol=1e-3)


@pytest.mark.slow
def test_draws_of_seen_and_missing_cells_together():
    left = ppl.eliminate(missing, "a")
    draws = jax.jit(lambda key: left.posterior(key, {}, Y, num_samples=4000))(KEY)
    exact = dense(explicit, ["a", "u"], {}, (Y,))
    mean, _ = ravel_pytree(exact.mean)
    flat = np.concatenate([draws["a"], draws["y_unobserved"][:, ~MASK]], -1)
    error = np.sqrt(np.diag(exact.covariance) / 4000)
    assert (np.abs(flat.mean(0) - mean) < 4.5 * error).all()
    variance = np.diag(exact.covariance)
    bound = 4.5 * np.sqrt(2 / 4000) * np.sqrt(np.outer(variance, variance))
    assert (np.abs(np.cov(flat.T) - exact.covariance) < bound).all()


BOUNDED = {  # a law of scale b, a value inside of its support and one outside
    "uniform": (lambda b: dist.Uniform(0.0, b), 0.5, 3.0),
    "exponential": (lambda b: dist.Exponential(b), 0.5, -0.5),
    "log-normal": (lambda b: dist.LogNormal(0.0, b), 0.5, -0.5),
    "truncated": (lambda b: dist.TruncatedNormal(0.0, b, low=0.2), 0.5, 0.1),
    "mixture": (
        lambda b: dist.MixtureSameFamily(
            dist.Categorical(jnp.ones(2) / 2), dist.Gamma(2.0, jnp.stack([b, 2 * b]))
        ),
        0.5,
        -0.5,
    ),
    "event": (lambda b: dist.Uniform(0.0, b).expand([2]).to_event(1), [0.5, 0.6], [0.5, 3.0]),
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("is_in_scan", [False, True])
@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_what_lies_outside_of_a_support_has_no_density_beside_an_integrated_site(name, is_in_scan):
    """Bounds may be what is to be learned: a law that was carried as a pytree keeps NumPyro's check of its support."""
    law, inside, outside = BOUNDED[name]

    def model(b, value):
        def step(z, _):
            z = ppl.sample("z", dist.Normal(z, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=0.3)
            ppl.sample("beside", law(b), obs=value)
            return z, None

        if is_in_scan:
            ppl.scan(step, 0.0, None, length=1)
        else:
            step(0.0, None)

    found = jax.jit(lambda b, value: ppl.eliminate(model, "z").log_density({}, b, value))
    exact = dist.Normal(0.0, np.sqrt(2.0)).log_prob(0.3) + law(jnp.array(2.0)).log_prob(
        jnp.array(inside)
    )
    np.testing.assert_allclose(found(2.0, jnp.array(inside)), exact, rtol=1e-5)
    assert found(2.0, jnp.array(outside)) == -np.inf


@pytest.mark.parametrize("seed", range(3))
def test_missing_cells_that_are_arguments_are_those_of_the_call(seed):
    """What a statement says of its cells outlives the trace that read it, and numbers of that trace must not."""
    rng = np.random.default_rng(seed)
    x, y, missing = (rng.normal(size=6).astype(np.float32) for _ in range(3))
    seen = rng.random(6) < 0.6

    @ppl.model
    def program(x, y, seen):
        slope = ppl.sample("slope", dist.Normal(0.0, 2.0))
        with ppl.plate("rows", 6):
            x = ppl.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=seen)
            ppl.sample("y", dist.Normal(slope * x, 0.5), obs=y)

    def run(missing, *args):
        trace = ppl.eliminate(program, "slope").trace({"x_unobserved": missing}, *args)
        return trace.log_density, trace.cells["x_unobserved"]

    found, cells = jax.jit(run)(missing, x, y, seen)
    np.testing.assert_array_equal(cells, ~seen)
    x = np.where(seen, x, missing).astype(float)
    law = multivariate_normal(np.zeros(6), 4.0 * np.outer(x, x) + 0.25 * np.eye(6))
    np.testing.assert_allclose(found, law.logpdf(y) + norm.logpdf(x).sum(), rtol=1e-4)
