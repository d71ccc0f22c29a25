"""Correctors on trees of sites, in programs with discrete sites, and over whole paths."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.diffusion import _points as points
from lapilli.models import diffusion

# Few steps are enough for identities, and for evidence that is unbiased at any; their weights may have no variance.
pytestmark = pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")

VP = diffusion.VP()
FLAT = [
    diffusion.gaussian_mixture(VP, [0.3, 0.7], [[-1.0, 0.5, 0.2], [0.4, -0.6, 0.1]], 0.3),
    diffusion.gaussian_mixture(VP, [1.0], [[0.5, 0.0, -0.4]], 0.5),
]
TIMES = np.linspace(1.0, 1e-3, 11)


def as_tree(x):
    return {"a": x[0], "b": x[1:]}


def as_array(tree):
    return jnp.append(tree["b"], tree["a"])[jnp.array([2, 0, 1])]


def on_tree(model, is_blind=False):
    """The same model of two sites: a number and a vector."""
    log_density = None if is_blind else lambda x, t: model.log_density(as_array(x), t)
    score = lambda x, t: as_tree(model.score(as_array(x), t))
    return inference.diffusion.Diffusion(model.noising, score, {"a": (), "b": (2,)}, log_density)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["exact", "rne", "euler"])
def test_sites_weigh_as_one_array_does(weights, key):
    """The step's mean and log-weights, at a state and the one after it, cut scores and a reward included."""
    options = {"exponents": [0.7, 0.8], "zeta": 1.3, "weights": weights}
    reward = lambda x, t: (1 - t) * jnp.sin(x).sum()
    one = inference.diffusion.fkc(
        [m.with_clipped_score(2.0) for m in FLAT], TIMES, reward=reward, **options
    ).corrector
    many = inference.diffusion.fkc(
        [on_tree(m).with_clipped_score(2.0) for m in FLAT],
        TIMES,
        reward=lambda x, t: reward(as_array(x), t),
        **options,
    ).corrector

    def numbers(corrector, x, y):
        previous = corrector.at(x, 4, None)
        state = corrector.at(y, 5, previous)
        mean, scale = corrector.moments(previous, 4)
        return mean, scale, corrector.log_weight(previous, state, 4), corrector.log_start(previous)

    @jax.jit
    def both(x, y):
        mean, *rest = numbers(many, as_tree(x), as_tree(y))
        return numbers(one, x, y), (as_array(mean), *rest)

    a, b = both(*jax.random.normal(key, (2, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), a, b)


@pytest.mark.slow  # one more compilation of many runs
def test_evidence_of_sites_is_that_of_the_array(key):
    """Product of the two: the exact log Z from Gaussian integrals, 500 runs."""
    model = inference.diffusion.fkc([on_tree(m) for m in FLAT], np.linspace(1.0, 0.0, 31))
    run = lambda key: inference.smc(model, key, num_particles=100, history="none")
    log_zs = jax.jit(jax.vmap(lambda key: run(key).log_evidence))(jax.random.split(key, 500))
    m = np.array([[-1.0, 0.5, 0.2], [0.4, -0.6, 0.1]])
    parts = dist.Normal(m, np.sqrt(0.8)).log_prob(np.array([0.5, 0.0, -0.4])).sum(-1)
    assert_unbiased(np.exp(np.asarray(log_zs, float)), np.exp(parts) @ np.array([0.3, 0.7]))
    assert run(key).particles.x["b"].shape == (100, 2)


# Discrete sites: a class of which the diffusion is conditional, resampled with the point.

MEANS, SPREAD, NOISE, Y = jnp.array([-1.0, 0.3, 1.5]), 0.2, 0.6, 0.9
PRIOR = np.array([0.5, 0.3, 0.2])


@ppl.model
def observed(y, control=None):
    """A class, a point of the class's diffusion model squared, and a noisy measurement of it."""
    c = ppl.sample("class", dist.Categorical(probs=jnp.asarray(PRIOR)))
    model = diffusion.gaussian_mixture(VP, [1.0], MEANS[c][None], SPREAD)
    cold = inference.diffusion.fkc(model, np.linspace(1.0, 0.0, 21), exponents=2.0, control=control)
    ppl.sample("y", dist.Normal(inference.diffusion.diffuse("x", cold), NOISE), obs=y)


def exact():
    """Evidence and posterior of the class: Normal(m, v)^2 is Normal(m, v/2) / sqrt(4 pi v)."""
    scale = np.sqrt(SPREAD / 2 + NOISE**2)
    joint = PRIOR * np.exp(dist.Normal(MEANS, scale).log_prob(Y)) / np.sqrt(4 * np.pi * SPREAD)
    return joint.sum(), joint / joint.sum()


@pytest.mark.slow
def test_discrete_sites_of_a_program_are_resampled_with_the_point(key):
    """Over 300 runs of 1000 particles: the evidence, and the unnormalised posterior of each class, exact at 20 steps.

    Of 100 particles the estimates are too skewed for a z-test: their third moment is 16 to 65, single runs reach 500 times
    the mean.
    """

    def run(key):
        result = inference.smc(
            observed, key, Y, num_particles=1000, policy=inference.particles.resampling.every()
        )
        shares = result.mean(lambda p: jax.nn.one_hot(p["class"], 3))
        return jnp.append(1.0, shares) * jnp.exp(result.log_evidence)

    estimates = jax.jit(jax.vmap(run))(jax.random.split(key, 300))
    z, posterior = exact()
    assert_unbiased(estimates, np.append(1.0, posterior) * z, names=["Z", "class 0", "1", "2"])


@pytest.mark.slow  # one more compilation of many runs
def test_a_control_within_a_program_keeps_its_evidence_and_takes_its_variance(key):
    """Each class has a pilot of ten particles of its own: the same integrals, now with 100 particles, whose sd is 0.28 of Z.

    Of as many particles without a control the sd is 1.6. A bias of 11% of Z is 7 standard errors of 300 runs.
    """
    control = inference.diffusion.DriftControl(jax.random.key(7), 10)

    def run(key):
        result = inference.smc(
            observed, key, Y, control, num_particles=100, policy=inference.particles.resampling.every(), history="none"
        )  # fmt: skip
        shares = result.mean(lambda p: jax.nn.one_hot(p["class"], 3))
        return jnp.append(1.0, shares) * jnp.exp(result.log_evidence)

    estimates = jax.jit(jax.vmap(run))(jax.random.split(key, 300))
    z, posterior = exact()
    assert_unbiased(estimates, np.append(1.0, posterior) * z, names=["Z", "class 0", "1", "2"])
    assert np.std(estimates[:, 0]) < 0.5 * z


@pytest.mark.slow  # one more compilation of many runs
def test_a_diffusion_at_each_step_of_a_scan_is_filtered(key):
    """Each step draws x' given x by a diffusion of its own and sees it in noise: the Kalman filter's evidence, 500 runs."""
    ys = np.array([0.8, -0.5, 0.3])

    @ppl.model
    def chain(ys):
        def step(x, y):
            model = diffusion.gaussian_mixture(VP, [1.0], (0.5 * x)[None], 0.3)
            x = inference.diffusion.diffuse(
                "x", inference.diffusion.fkc(model, np.linspace(1.0, 0.0, 11))
            )
            ppl.sample("y", dist.Normal(x, NOISE), obs=y)
            return x, None

        ppl.scan(step, jnp.zeros(()), ys)

    mean, variance, log_z = 0.0, 0.0, 0.0
    for y in ys:
        mean, variance = 0.5 * mean, 0.25 * variance + 0.3
        total = variance + NOISE**2
        log_z += float(dist.Normal(mean, np.sqrt(total)).log_prob(y))
        mean, variance = mean + variance / total * (y - mean), variance * NOISE**2 / total
    run = lambda key: inference.smc(chain, key, ys, num_particles=200, history="none").log_evidence
    log_zs = jax.jit(jax.vmap(run))(jax.random.split(key, 500))
    assert_unbiased(np.exp(np.asarray(log_zs, float) - log_z), 1.0)


@pytest.mark.slow
def test_a_program_has_the_density_of_path_and_weights(key):
    """Of a path of the program, recomputed from the corrector step by step; choices score as they were drawn."""
    model = inference.diffusion.fkc(
        [on_tree(m) for m in FLAT],
        TIMES,
        exponents=[0.7, 0.8],
        reward=lambda x, t: (1 - t) * x["a"],
    )
    program = ppl.model(lambda: inference.diffusion.diffuse("x", model))

    @jax.jit
    def densities(key):
        trace = program.simulate(key)
        c = trace.choices
        state = model.corrector.at({"a": c["x.a_start"], "b": c["x.b_start"]}, 0, None)
        total = points.log_prob(model.corrector.law, state.x) + model.log_potential(state, state, 0)

        def step(carry, inputs):
            previous, total = carry
            a, b, n = inputs
            state = model.corrector.at({"a": a, "b": b}, n, previous)
            move = model.log_transition(previous, state, n)
            return (state, total + move + model.log_potential(previous, state, n)), None

        steps = (c["x.a"], c["x.b"], jnp.arange(1, len(TIMES)))
        (_, total), _ = jax.lax.scan(step, (state, total), steps)
        return trace.log_density, program.log_density(c), total

    one, again, by_hand = densities(key)
    np.testing.assert_allclose([again, by_hand], [one, one], rtol=1e-4)


def test_what_a_program_cannot_have_is_refused():
    with pytest.raises(
        TypeError, match="diffuse\\('x'\\).*result of inference.diffusion.fkc, got Diffusion"
    ):
        inference.diffusion.diffuse("x", FLAT[0])
    for options, what in (
        ({"zeta": 0.0}, "zeta = 0"),
        ({"langevin": inference.diffusion.Langevin()}, "Langevin moves"),
    ):
        model = inference.diffusion.fkc(FLAT[0], TIMES, **options)
        with pytest.raises(ValueError, match=f"{what}.*steps have no density"):
            inference.diffusion.diffuse("x", model)


def test_a_score_of_another_shape_is_refused(key):
    model = inference.diffusion.Diffusion(
        VP, lambda x, t: {"a": x["a"], "b": x["b"][0]}, {"a": (), "b": (2,)}
    )
    with pytest.raises(ValueError, match="a score has shape.*nothing is broadcast"):
        jax.eval_shape(inference.diffusion.fkc(model, TIMES).init, key)


# Paths: under exact weights the law of a whole path is p_N(x_N) prod_n B_n(x_{n-1} | x_n), which can be drawn from.

PAIR = [diffusion.gaussian_mixture(VP, [1.0], [m], v) for m, v in ((-0.4, 0.5), (0.6, 0.3))]
COARSE = np.linspace(1.0, 0.0, 9)


def drawn_path(model, key):
    """An exact path of the product of PAIR: its end, then backwards by B."""
    corrector, grid = model.corrector, model.corrector.grid
    precision = 1 / 0.5 + 1 / 0.3
    end_key, back_key = jax.random.split(key)
    end = (-0.4 / 0.5 + 0.6 / 0.3) / precision + jax.random.normal(end_key) / np.sqrt(precision)

    def back(x, n):
        state = corrector.at(x, n + 1, None)
        shift = corrector._shift(state, n, grid.exponents[n + 1], -1)
        noise = jax.random.normal(jax.random.fold_in(back_key, n))
        before = x + shift + grid.zeta[n] * jnp.sqrt(grid.noise[n]) * noise
        return before, state

    steps = model.num_steps
    first, states = jax.lax.scan(back, end, jnp.arange(steps), reverse=True)
    start = corrector.at(first, 0, None)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["ancestor", *(pytest.param(p, marks=pytest.mark.slow) for p in ("genealogy", "backward"))],
)
def test_conditional_smc_moves_whole_paths_within_their_law(path, key):
    """One move of 4 particles from 5,000 exact paths: first and second moments at three times, and across time.

    The end's moments are known; a bias of 10% of a standard deviation is 7 standard errors.
    """
    model = inference.diffusion.fkc(PAIR, COARSE, zeta=1.2, weights="exact")

    def move(key):
        draw_key, other_key, move_key = jax.random.split(key, 3)
        old, other = drawn_path(model, draw_key), drawn_path(model, other_key)
        new = inference.particles.conditional_smc(model, move_key, old, num_particles=4, path=path)
        values = lambda x: jnp.stack(
            [x[0], x[4], x[8], x[0] ** 2, x[4] ** 2, x[8] ** 2, x[0] * x[8]]
        )
        return values(new.x), values(other.x), jnp.mean(new.x != old.x, -1)

    new, other, is_new = jax.jit(jax.vmap(move))(jax.random.split(key, 5000))
    assert_same_mean(new, other)
    precision = 1 / 0.5 + 1 / 0.3
    mean = (-0.4 / 0.5 + 0.6 / 0.3) / precision
    assert_unbiased(new[:, [2, 5]], [mean, mean**2 + 1 / precision])
    assert np.mean(is_new) > (0.1 if path == "genealogy" else 0.35)


@pytest.mark.slow
def test_paths_whose_weights_see_all_of_the_past_keep_their_ancestors(key):
    blind = inference.diffusion.Diffusion(VP, FLAT[0].score, (3,))
    moving = inference.diffusion.fkc(blind, TIMES, exponents=lambda t: 1 - 0.5 * t)
    assert moving.corrector.is_followed and moving.log_transition is None
    state = jax.eval_shape(moving.init, key)
    path = jax.tree.map(lambda x: jnp.zeros((11, *x.shape), x.dtype), state)
    with pytest.raises(ValueError, match="log_transition is missing"):
        inference.particles.conditional_smc(moving, key, path, num_particles=3, path="ancestor")


# Langevin moves.


GENTLE = [diffusion.gaussian_mixture(diffusion.VP(0.1, 8.0), [1.0], [m], v) for m, v in ((-0.4, 0.5), (0.6, 0.3))]  # fmt: skip


def langevin_evidences(key, method, step_size):
    model = inference.diffusion.fkc(
        GENTLE, np.linspace(1.0, 0.0, 21), exponents=0.5, zeta=1.0, weights="exact",
        langevin=inference.diffusion.Langevin(2, step_size, method),
    )  # fmt: skip

    def run(key):
        result = inference.smc(model, key, num_particles=64, history="none")
        mean, square = result.mean(lambda p: (p.x, p.x**2))
        return jnp.stack([jnp.ones(()), mean, square]) * jnp.exp(result.log_evidence)

    return jax.jit(jax.vmap(run))(jax.random.split(key, 1000))


def half_moments():
    """Integral, and unnormalised first and second moments, of the root of Normal(-0.4, 0.5) Normal(0.6, 0.3)."""
    m, v = np.array([-0.4, 0.6]), np.array([0.5, 0.3])
    precision = (0.5 / v).sum()
    mean = (0.5 * m / v).sum() / precision
    log_z = -0.5 * (0.5 * np.log(2 * np.pi * v) + 0.5 * m**2 / v).sum()
    log_z += 0.5 * np.log(2 * np.pi / precision) + 0.5 * precision * mean**2
    return np.exp(log_z) * np.array([1.0, mean, mean**2 + 1 / precision])


@pytest.mark.slow  # a long compilation
def test_langevin_moves_leave_evidence_and_moments_exact(key):
    """Moves by Metropolis' rule, 20 steps of the diffusion: a bias of 0.8% of Z is 7 standard errors."""
    assert_unbiased(langevin_evidences(key, "mala", 1.0), half_moments())


@pytest.mark.slow  # one more compilation of many runs
def test_langevin_moves_without_metropolis_are_biased_at_long_steps(key):
    with pytest.raises(AssertionError, match="disagree"):
        assert_unbiased(langevin_evidences(key, "ula", 3.0), half_moments())


def test_refusals_of_langevin():
    with pytest.raises(ValueError, match="method must be 'auto', 'mala' or 'ula'"):
        inference.diffusion.Langevin(method="hmc")
    with pytest.raises(ValueError, match="between 0 and 4"):
        inference.diffusion.Langevin(step_size=4.0)
    with pytest.raises(ValueError, match="num_moves"):
        inference.diffusion.Langevin(0)
    blind = inference.diffusion.Diffusion(VP, PAIR[0].score)
    with pytest.raises(ValueError, match="MALA needs the log_density of every model, and model 0"):
        inference.diffusion.fkc(blind, TIMES, langevin=inference.diffusion.Langevin(method="mala"))
    with pytest.raises(ValueError, match="not along Langevin moves"):
        inference.diffusion.fkc(
            blind, TIMES, exponents=lambda t: 1 - 0.5 * t, langevin=inference.diffusion.Langevin()
        )
    assert (
        inference.diffusion.fkc(
            blind, TIMES, langevin=inference.diffusion.Langevin()
        ).log_transition
        is None
    )
