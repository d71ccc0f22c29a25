"""A tilted program as the reward of `fkc`: the corrected law is that tilt, by closed forms and by the report."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.models import diffusion

KEY = jax.random.key(0)
NOISING = diffusion.VP(0.1, 8.0)
GRID = NOISING.log_snr_times(20)
CENTRE, WIDTH = 0.5, 0.8  # mean and variance of the model's data
NORMAL = diffusion.gaussian_mixture(NOISING, [1.0], [CENTRE], WIDTH)
A, C = 1.2, 0.7


def evidences(model, number=1000):
    run = lambda key: inference.smc(model, key, num_particles=64, history="none").log_evidence
    return jax.jit(jax.vmap(run))(jax.random.split(KEY, number))


def quadratic(x):
    return A * x - C * x**2 / 2


def program(model=NORMAL, name="x"):
    return ppl.model(lambda: diffusion.reverse_chain(name, model, GRID))


def closed_form(temperature, centre=CENTRE, width=WIDTH):
    """Log Z, mean and variance of the tilt of the model's marginal at the last time."""
    t = GRID[-1]
    a, c = A / temperature, C / temperature
    m, v = (
        float(NOISING.alpha(t)) * centre,
        float(NOISING.alpha(t) ** 2 * width + NOISING.variance(t)),
    )
    variance = 1 / (1 / v + c)
    mean = variance * (m / v + a)
    log_z = 0.5 * np.log(variance / v) + mean**2 / (2 * variance) - m**2 / (2 * v)
    return log_z, mean, variance


@functools.partial(jax.jit, static_argnums=0)
def many(temperature, keys):
    tilt = inference.tilt(program(), quadratic, temperature)
    model = inference.diffusion.fkc(NORMAL, GRID, reward=tilt)
    assert model.weights == ("exact",)

    def one(key):
        run = inference.smc(model, key, num_particles=64, history="none")
        return run.log_evidence, *run.mean(lambda p: (p.x, p.x**2))

    return jax.vmap(one)(keys)


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")
@pytest.mark.slow_for("0.5")  # the same at another number
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_corrected_law_is_the_tilt(temperature):
    """Evidence without bias; moments by weights of evidence, whose ratio's bias is a thousandth here."""
    log_z, mean, variance = closed_form(temperature)
    found = [np.asarray(x, float) for x in many(temperature, jax.random.split(KEY, 1000))]
    weights = np.exp(found[0] - log_z)
    assert_unbiased(weights, 1.0)  # sd .1 or so: a bias of .03 is 7 standard errors
    assert_unbiased(weights * found[1], mean)
    assert_unbiased(weights * found[2], variance + mean**2)
    assert abs(mean - CENTRE) > 0.1  # of the model's own


@pytest.mark.slow(reason="many small programs")
@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")
def test_the_report_reads_the_point_alone():
    """Particles of the corrected law, which have no path of the program: log Z, rewards by both."""
    tilt = inference.tilt(program(), quadratic)
    model = inference.diffusion.fkc(NORMAL, GRID, reward=tilt)
    run = inference.smc(model, KEY, num_particles=2000, history="none")
    log_z, mean, variance = closed_form(1.0)
    made = inference.tilts.report(tilt, {"x": run.sample(KEY, 2000).x}, KEY, num_draws=2000)
    expected = A * mean - C * (mean**2 + variance) / 2
    # The chain's law is not the model's: at 20 steps its log Z is .01 off.
    assert abs(made.log_z.value - log_z) < 4.5 * made.log_z.error + 0.02
    assert abs(made.reward.value - expected) < 4.5 * made.reward.error * 2
    assert abs(made.reward_tilt.value - expected) < 4.5 * made.reward_tilt.error + 0.02
    assert made.kl is None and made.evaluations == 4000
    assert made.reward_base.value < made.reward.value


@pytest.mark.slow_for("2.0")
@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")
@pytest.mark.parametrize("least", [CENTRE, 2.0])
def test_a_constraint_is_a_tilt_of_a_diffusion(least):
    """Of a half, and of a twentieth: from points that break it on the way the end may keep it."""
    tilt = inference.tilt(program(), lambda x: x > least)
    model = inference.diffusion.fkc(NORMAL, GRID, reward=tilt)
    found = np.exp(np.asarray(evidences(model), float))
    t = GRID[-1]
    width = jnp.sqrt(NOISING.alpha(t) ** 2 * WIDTH + NOISING.variance(t))
    assert_unbiased(found, float(1 - dist.Normal(NOISING.alpha(t) * CENTRE, width).cdf(least)))


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")
def test_a_constraint_on_the_way_is_refused_or_lost():
    """Killed on the way, what would keep it at the end is missed: .05 in place of .5 before this was refused."""
    hard = lambda x, t: jnp.where(x > CENTRE, 0.0, -jnp.inf)
    with pytest.raises(
        ValueError, match="does not vanish at the first time|is -inf at .* points at time"
    ):
        inference.diffusion.fkc(NORMAL, GRID, reward=hard)
    early = lambda x, t: jnp.where(t < GRID[0], hard(x, t), 0.0)
    with pytest.raises(ValueError, match="is -inf at .* points at time"):
        inference.diffusion.fkc(NORMAL, GRID, reward=early)
    late = lambda x, t: jnp.where(
        t < GRID[15], hard(x, t), 0.0
    )  # after the half, not at the end alone
    assert np.isnan(evidences(inference.diffusion.fkc(NORMAL, GRID, reward=late))).all()
    euler = {"weights": "euler", "zeta": 1.5}
    with pytest.raises(ValueError, match="jumps, and weights='euler'"):
        inference.diffusion.fkc(
            NORMAL, GRID, reward=inference.tilt(program(), lambda x: x > CENTRE), **euler
        )


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")
def test_a_model_made_anew_with_equal_scores_is_the_same():
    def anew():
        return diffusion.reverse_chain(
            "x", diffusion.gaussian_mixture(NOISING, [1.0], [CENTRE], WIDTH), GRID
        )

    assert (
        inference.diffusion.fkc(
            NORMAL, GRID, reward=inference.tilt(anew, quadratic)
        ).composition.reward
        is not None
    )


def two_points():
    diffusion.reverse_chain("z", NORMAL, GRID)
    return diffusion.reverse_chain("x", NORMAL, GRID)


def observed():
    x = diffusion.reverse_chain("x", NORMAL, GRID)
    ppl.sample("y", dist.Normal(x, 1.0), obs=0.3)
    return x


def normal():
    return ppl.sample("x", dist.Normal(0.0, 1.0))


def with_path():
    path = ppl.sample("x_path", diffusion._chain.ReverseChain(NORMAL, GRID))
    return path[0] + ppl.sample("x", dist.Normal(path[-1], 0.1))


OTHER = diffusion.gaussian_mixture(NOISING, [1.0], [CENTRE + 0.1], WIDTH)
REFUSED = {
    "two models": ([NORMAL, OTHER], program(), {}, "is the tilt of one model"),
    "exponent": (NORMAL, program(), {"exponents": 2.0}, "is the tilt of one model"),
    "another": (OTHER, program(), {}, "is the tilt of another diffusion model"),
    "two points": (NORMAL, two_points, {}, "draws one point and nothing else"),
    "observed": (NORMAL, observed, {}, "draws one point and nothing else"),
    "no diffusion": (NORMAL, normal, {}, "draws one point and nothing else"),
    "path": (NORMAL, with_path, {}, r"reads \['x_path'\], and only \['x'\] are given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tilt_of_another_law_is_named(case):
    models, base, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        inference.diffusion.fkc(
            models, GRID, reward=inference.tilt(base, lambda x: 0.1 * x), **options
        )


def test_a_bad_reward_of_a_tilt_is_named_before_anything_runs():
    bad = inference.tilt(program(), lambda x: jnp.where(x > 0, jnp.nan, x))
    with pytest.raises(ValueError, match="tilt: reward '.*' is NaN"):
        inference.diffusion.fkc(NORMAL, GRID, reward=bad)


@pytest.mark.slow(reason="runs of a corrector of its own")
@pytest.mark.parametrize("method", ["fk_steering", "twisted_diffusion"])
def test_a_look_ahead_that_excludes_what_the_end_allows_costs_nothing(method):
    """Of x > 1.2: the first denoised points, near .5, all break it, and what the chain ends in may keep it."""
    far = lambda x: jnp.where(x > 1.2, 0.0, -jnp.inf)
    make = getattr(inference.diffusion, method)
    times = NOISING.log_snr_times(10)
    model = make(NORMAL, times, far)
    found = np.exp(np.asarray(evidences(model, 2000), float))
    x = diffusion.ancestral(NORMAL, jax.random.key(1), times, num_samples=200_000)
    share = float((x > 1.2).mean())
    error = (found.var() / len(found) + share / 200_000) ** 0.5
    assert abs(found.mean() - share) < 4.5 * error and share > 20 * error
