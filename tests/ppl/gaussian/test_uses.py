"""Integrated programs in use: with discrete sites, under particles, objectives and NumPyro's samplers; forecasts and draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from _dense_normal import dense
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC, NUTS

from lapilli import inference, ppl

KEY = jax.random.key(0)
MOVES = jnp.array([[0.9, 0.1], [0.2, 0.8]])
Y = jnp.array(np.random.default_rng(0).normal(size=8)) + 0.5


def switching(y):
    def step(state, y):
        s, z = state
        s = ppl.sample("s", dist.Categorical(MOVES[s]))
        mean = jnp.array([0.9, 0.5])[s] * z + jnp.array([0.0, 1.0])[s]
        z = ppl.sample("z", dist.Normal(mean, jnp.array([0.3, 0.8])[s]))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return (s, z), None

    ppl.scan(step, (0, 0.0), y)


def local_level(y, noise_scale=1.0):
    noise = ppl.sample("noise", dist.LogNormal(-0.5, noise_scale))

    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z, noise), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


@pytest.fixture(scope="module")
def switching_evidence():
    """Each of the 2^8 paths of states, with the continuous ones integrated out by the oracle's quadratic form."""
    paths = jnp.array(list(itertools.product([0, 1], repeat=8)))
    left = ppl.eliminate(switching, "z")
    found = jax.jit(jax.vmap(lambda s: left.log_density({"s": s}, Y)))(paths)
    some = {"s": paths[77]}
    np.testing.assert_allclose(
        found[77], dense(switching, ["z"], some, (Y,)).log_density, rtol=1e-5
    )
    return float(jax.scipy.special.logsumexp(found))


@pytest.mark.slow(reason="a sum over paths of filters to compile")
def test_a_switching_system_is_summed_and_integrated(switching_evidence):
    both = ppl.eliminate(switching, ["s", "z"])
    np.testing.assert_allclose(jax.jit(both.log_density)({}, Y), switching_evidence, rtol=1e-5)
    twice = ppl.eliminate(ppl.eliminate(switching, "z"), "s")
    np.testing.assert_allclose(jax.jit(twice.log_density)({}, Y), switching_evidence, rtol=1e-5)
    drawn = jax.jit(lambda key: both.posterior(key, {}, Y, num_samples=3))(KEY)
    assert {name: x.shape for name, x in drawn.items()} == {"s": (3, 8), "z": (3, 8)}


@pytest.mark.slow(reason="particles around an integral to compile")
def test_particles_move_only_what_is_left(switching_evidence):
    keys = jax.random.split(KEY, 400)

    def ratios(program):
        run = lambda key: inference.smc(program, key, Y, num_particles=16).log_evidence
        return np.exp(np.asarray(jax.jit(jax.vmap(run))(keys)) - switching_evidence)

    left, whole = ratios(ppl.eliminate(switching, "z")), ratios(switching)
    assert abs(left.mean() - 1) < 4.5 * left.std() / 20
    assert left.var() < whole.var() / 5


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["pmmh", "nuts"])
def test_parameters_given_exact_states(sampler):
    program = ppl.eliminate(local_level, "z")
    grid = jnp.linspace(-4.0, 2.0, 400)
    log_post = jax.vmap(lambda u: program.log_density({"noise": jnp.exp(u)}, Y) + u)(grid)
    weights = np.asarray(jax.nn.softmax(log_post))
    mean = weights @ np.asarray(grid)
    spread = np.sqrt(weights @ (np.asarray(grid) - mean) ** 2)
    if sampler == "nuts":
        chain = MCMC(NUTS(program), num_warmup=300, num_samples=2000, progress_bar=False)
        chain.run(KEY, Y)
        draws = np.log(chain.get_samples()["noise"])
    else:
        run = lambda: inference.particles.pmmh(
            program, KEY, Y, parameters=["noise"], num_particles=2, num_samples=4000, num_warmup=500
        )
        draws = np.log(np.asarray(jax.jit(run)().parameters["noise"]))
    blocks = draws[: len(draws) // 20 * 20].reshape(20, -1).mean(1)
    assert abs(draws.mean() - mean) < 4.5 * blocks.std() / np.sqrt(20)
    assert abs(draws.std() / spread - 1) < 0.25


def test_an_objective_sees_the_exact_density_and_its_slope():
    def model(y):
        noise, persistence = ppl.param("noise", 0.7), ppl.param("persistence", 0.9)

        def step(z, y):
            z = ppl.sample("z", dist.Normal(persistence * z, 0.5))
            ppl.sample("y", dist.Normal(z, noise), obs=y)
            return z, None

        ppl.scan(step, 0.0, y)

    objective = inference.elbo(ppl.eliminate(model, "z"), lambda y: None)
    params = objective.init(KEY, Y)
    value, slope = objective.value_and_grad(params, KEY, Y)

    def exact(params):
        return dense_level(Y, params["noise"], params["persistence"])

    expected, expected_slope = jax.jit(jax.value_and_grad(exact))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(slope[name], expected_slope[name], rtol=1e-4)


def dense_level(y, noise, persistence):
    """The log-density of the observations of `model` as one multivariate normal law."""
    steps = jnp.arange(len(y))
    lag = steps[:, None] - steps
    root = jnp.where(lag >= 0, persistence ** jnp.maximum(lag, 0), 0.0) * 0.5
    covariance = root @ root.T + noise**2 * jnp.eye(len(y))
    return dist.MultivariateNormal(jnp.zeros(len(y)), covariance).log_prob(y)


@pytest.mark.slow
def test_a_guide_with_a_site_integrated_out_is_the_marginal_one():
    def model(x):
        z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ppl.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    def joint(x):
        a = ppl.sample("a", dist.Normal(ppl.param("m", 0.3) * jnp.ones(2), 1.0).to_event(1))
        ppl.sample("z", dist.MultivariateNormal(a, 0.5 * jnp.eye(2) + 0.1))

    def marginal(x):
        law = dist.MultivariateNormal(ppl.param("m", 0.3) * jnp.ones(2), 1.5 * jnp.eye(2) + 0.1)
        ppl.sample("z", law)

    def narrower(x):
        law = dist.MultivariateNormal(ppl.param("m", 0.3) * jnp.ones(2), 1.2 * jnp.eye(2) + 0.1)
        ppl.sample("z", law)

    # Draws of one key differ by the root that makes them: the bounds have one law. A bias of .07 standard deviations shows.
    keys = jax.random.split(KEY, 20_000)

    def moments(guide):
        objective = inference.iwelbo(model, guide, num_particles=3)
        params = objective.init(KEY, 0.5)
        run = jax.jit(jax.vmap(lambda key: objective.value_and_grad(params, key, 0.5)))
        values, slopes = run(keys)
        found = np.stack([values, slopes["m"], values**2, slopes["m"] ** 2])
        return found.mean(1), found.var(1) / len(keys)

    (ours, error), (theirs, other), (wrong, third) = map(
        moments, (ppl.eliminate(joint, "a"), marginal, narrower)
    )
    assert (np.abs(ours - theirs) < 4.5 * np.sqrt(error + other)).all()
    assert (np.abs(ours - wrong) > 7 * np.sqrt(error + third)).any()
    z = jnp.array([[0.3, -1.2], [2.0, 0.1]])
    log_probs = []
    for guide in (ppl.eliminate(joint, "a"), marginal):
        bound = ppl.as_program(guide).bind({"m": jnp.array(0.3)})
        log_probs.append([bound.log_density({"z": x}, 0.5) for x in z])
    np.testing.assert_allclose(*log_probs, rtol=1e-5)


@pytest.mark.slow
def test_second_derivatives():
    def program(y, noise, persistence):
        def step(z, y):
            z = ppl.sample("z", dist.MultivariateNormal(persistence * z, 0.25 * jnp.eye(2)))
            ppl.sample("y", dist.Normal(z[0], noise), obs=y)
            return z, None

        ppl.scan(step, jnp.zeros(2), y)

    left = ppl.eliminate(program, "z")
    for is_double, rtol in ((False, 1e-3), (True, 1e-9)):
        with jax.enable_x64(is_double):
            y, at = jnp.asarray(np.asarray(Y)), jnp.array([0.7, 0.9])
            found = jax.jit(jax.hessian(lambda u, y=y: left.log_density({}, y, *u)))(at)
            exact = jax.hessian(lambda u, y=y: dense_level(y, *u))(at)
            np.testing.assert_allclose(found, exact, rtol=rtol)


@pytest.mark.slow
def test_joint_draws_have_the_posterior_covariance():
    exact = dense(local_level, ["z"], {"noise": 0.6}, (Y,))
    left = ppl.eliminate(local_level, "z")
    draw = lambda key: left.posterior(key, {"noise": 0.6}, Y, num_samples=20_000)
    draws = np.asarray(jax.jit(draw)(KEY)["z"])
    error = np.sqrt(np.diag(exact.covariance) / 20_000)
    assert (np.abs(draws.mean(0) - ravel_pytree(exact.mean)[0]) < 4.5 * error).all()
    scale = np.sqrt(np.outer(np.diag(exact.covariance), np.diag(exact.covariance)) * 2 / 20_000)
    assert (np.abs(np.cov(draws.T) - exact.covariance) < 4.5 * scale).all()
    found, log_density = jax.jit(left.mode)({"noise": 0.6}, Y)
    np.testing.assert_allclose(found["z"], ravel_pytree(exact.mean)[0], rtol=1e-4, atol=1e-5)
    whole = ppl.as_program(local_level).log_density({"noise": 0.6, **found}, Y)
    np.testing.assert_allclose(log_density, whole, rtol=1e-6)


@pytest.mark.slow
def test_forecasts_are_those_of_the_joint_law():
    """Four steps after eight that were seen: the conditional law of a multivariate normal."""
    steps = np.arange(12)
    lag = steps[:, None] - steps
    root = np.where(lag >= 0, 0.9 ** np.maximum(lag, 0.0), 0) * 0.5
    covariance = root @ root.T + 0.6**2 * np.eye(12)
    gain = covariance[8:, :8] @ np.linalg.inv(covariance[:8, :8])
    mean = gain @ np.asarray(Y)
    rest = covariance[8:, 8:] - gain @ covariance[:8, 8:]
    left, longer = ppl.eliminate(local_level, "z"), jnp.pad(Y, (0, 4))

    def ahead(key):
        return left.forecast_trace(key, {"noise": 0.6}, 8, longer).observed["y"]

    drawn = np.asarray(jax.jit(jax.vmap(ahead))(jax.random.split(KEY, 20_000)))
    np.testing.assert_array_equal(drawn[:, :8], np.broadcast_to(Y, (20_000, 8)))
    future = drawn[:, 8:]
    assert (np.abs(future.mean(0) - mean) < 4.5 * np.sqrt(np.diag(rest) / 20_000)).all()
    np.testing.assert_allclose(np.cov(future.T), rest, atol=4.5 * np.sqrt(2 / 20_000) * rest.max())


@pytest.mark.slow
def test_numpyro_sees_a_plain_model():
    left = ppl.eliminate(local_level, "z")
    density, trace = numpyro.infer.util.log_density(left, (Y,), {}, {"noise": jnp.array(0.6)})
    np.testing.assert_allclose(density, left.log_density({"noise": 0.6}, Y), rtol=1e-6)
    assert "z" not in trace
    with pytest.raises(TypeError, match="condition around it cannot act"):
        numpyro.handlers.seed(numpyro.handlers.condition(left, {"z": Y}), KEY)(Y)
    conditioned = ppl.condition(left, {"noise": jnp.array(0.6)})
    np.testing.assert_allclose(conditioned.log_density({}, Y), density, rtol=1e-6)


@pytest.mark.slow
def test_rows_of_a_minibatch_stand_for_others():
    def effects(y):
        mean = ppl.sample("mean", dist.Normal(0.0, 3.0))
        with ppl.plate("rows", len(y)):
            a = ppl.sample("a", dist.Normal(mean, 1.5))
            ppl.sample("y", dist.Normal(a, 0.5), obs=y)

    left = ppl.eliminate(effects, "a")
    log_prob = dist.Normal(0.4, np.sqrt(1.5**2 + 0.5**2)).log_prob(Y).sum()
    prior = dist.Normal(0.0, 3.0).log_prob(0.4)
    scaled = ppl.rescale_plates(left, {"rows": 80}).log_density({"mean": 0.4}, Y)
    np.testing.assert_allclose(scaled, prior + 10 * log_prob, rtol=1e-6)
    with pytest.raises(ValueError, match="Site 'a'.*'mean': 1.0, 'a': 10.0"):
        ppl.rescale_plates(ppl.eliminate(effects, ["a", "mean"]), {"rows": 80}).log_density({}, Y)
    objective = inference.elbo(ppl.eliminate(effects_with_param, "a"), lambda y: None)
    fit = inference.fit(
        objective,
        optax.sgd(0.02),
        (Y,),
        num_steps=400,
        subsample={"rows": 4},
        key=KEY,
        progress=False,
    )
    # Each epoch of two batches is one step along the slope of all rows, but for the change in between.
    assert abs(fit.params["mean"] - Y.mean()) < 0.05


def effects_with_param(y):
    mean = ppl.param("mean", 3.0)
    with ppl.plate("rows", len(y)):
        a = ppl.sample("a", dist.Normal(mean, 1.5))
        ppl.sample("y", dist.Normal(a, 0.5), obs=y)


@pytest.mark.slow
def test_state_spaces_of_numpyro_are_the_same_law():
    """`GaussianStateSpace` is a law of paths; here the same paths are integrated out of one line less."""
    move = np.array([[0.9, 0.2], [-0.1, 0.8]])
    noise = np.array([[0.5, 0.0], [0.2, 0.4]])

    def paths(y):
        law = dist.GaussianStateSpace(len(y), jnp.asarray(move), scale_tril=jnp.asarray(noise))
        z = ppl.sample("z", law)
        ppl.sample("y", dist.Normal(z[:, 0], 0.3).to_event(1), obs=y)

    def steps(y):
        def step(z, y):
            z = ppl.sample("z", dist.MultivariateNormal(move @ z, scale_tril=jnp.asarray(noise)))
            ppl.sample("y", dist.Normal(z[0], 0.3), obs=y)
            return z, None

        ppl.scan(step, jnp.zeros(2), y)

    with jax.enable_x64(True):
        y = jnp.asarray(np.asarray(Y, float))
        exact = dense(paths, ["z"], {}, (y,)).log_density
        np.testing.assert_allclose(ppl.eliminate(steps, "z").log_density({}, y), exact, rtol=1e-9)
