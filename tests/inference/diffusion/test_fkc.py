"""Feynman-Kac correctors against quadrature, closed forms and each other."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _mixture_rows import MIXTURES, NOISING, Q1, Q2, assert_evidence, quadrature, tilt

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import diffusion

# Exponents and tilt -> log Z at data minus log Z at noise, mean, variance and P(x < 0) of the target at data.
GOLDEN = {
    (2.0, 0.0, 0.0): (0.098112, 0.539356, 1.077987, 0.188742),
    (3.0, 0.0, 0.0): (0.256208, 0.735428, 0.687337, 0.106622),
    (0.5, 0.0, 0.0): (-0.048067, 0.088256, 2.032401, 0.415585),
    (1.0, 1.0, 0.0): (-0.257948, 0.754198, 0.922238, 0.184732),
    (-0.5, 1.5, 0.0): (0.364864, 0.394248, 1.312189, 0.526842),
    (0.6, 0.9, 0.0): (-0.189997, 0.626976, 1.125647, 0.261366),
    (1.0, 0.0, 1.0): (-0.868502, 1.222259, 0.248717, 0.009096),
    (1.0, 0.7, 1.0): (-0.835499, 1.271762, 0.196503, 0.008251),
}


@pytest.mark.parametrize("row", GOLDEN)
def test_the_oracle_gives_the_golden_numbers(row):
    log_z, *moments = quadrature(row, 0.0)
    np.testing.assert_allclose(
        [log_z - quadrature(row, 1.0)[0], *moments], GOLDEN[row], atol=1.5e-6
    )


def corrected(row, num_steps, zeta, weights, models=(Q1, Q2), **options):
    return inference.diffusion.fkc(
        models,
        np.linspace(1.0, options.pop("last", 0.0), num_steps + 1),
        exponents=list(row[:2]),
        reward=tilt(row[2]),
        zeta=zeta,
        weights=weights,
        **options,
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def summary(key, row, num_steps, num_particles, zeta, weights):
    """Log Z, mean, variance, P(x < 0) from particles."""
    result = inference.smc(
        corrected(row, num_steps, zeta, weights), key, num_particles=num_particles, history="none"
    )
    mean, square, is_negative = result.mean(lambda p: (p.x, p.x**2, p.x < 0))
    return jnp.stack([result.log_evidence, mean, square - mean**2, is_negative])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shift", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_golden_rows(shift, key):
    """All rows with exact weights, zeta = 2, 4000 particles, 400 steps, within the thresholds of acceptance."""
    keys = jax.random.split(jax.random.fold_in(key, shift), len(GOLDEN))
    for row, row_key in zip(GOLDEN, keys, strict=True):
        log_z, _, _, is_negative = summary(row_key, row, 400, 4000, 2.0, "exact")
        exact = quadrature(row, 0.0)
        assert abs(log_z - exact[0]) < (0.10 if row[0] == 3 else 0.06), row
        assert abs(is_negative - exact[3]) < 0.03, row


# With exact weights the evidence has no bias at any step: 20 steps are plenty for a test.


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def evidences(key, row, zeta, models=(Q1, Q2)):
    model = corrected(row, 20, zeta, "exact", models)
    run = lambda key: inference.smc(model, key, num_particles=64, history="none").log_evidence
    return jax.vmap(run)(jax.random.split(key, 1000))


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")  # few steps
@pytest.mark.slow
def test_evidence_is_exact_at_every_noise_scale_however_coarse_the_steps(key):
    for row, zeta in [((1.0, 0.0, 1.0), 0.5), ((1.0, 0.7, 1.0), 1.0), ((1.0, 0.7, 1.0), 2.0)]:
        assert_evidence(evidences(key, row, zeta), quadrature(row, 0.0)[0])


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")  # few steps
@pytest.mark.slow  # one more compilation of many runs
def test_evidence_is_exact_with_cut_scores(key):
    row = (1.0, 0.7, 0.0)
    assert_evidence(
        evidences(key, row, 1.5, tuple(q.with_clipped_score(1.0) for q in (Q1, Q2))),
        quadrature(row, 0.0)[0],
    )


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")  # few steps
@pytest.mark.slow  # one more compilation of many runs
def test_evidence_is_exact_while_exponents_move(key):
    """From 1/2 at noise to 1 at data."""
    model = inference.diffusion.fkc(
        [Q1, Q2], np.linspace(1.0, 0.0, 21), exponents=lambda t: 1 - 0.5 * t, zeta=1.5, weights="exact"
    )  # fmt: skip
    run = lambda key: inference.smc(model, key, num_particles=64, history="none").log_evidence
    log_zs = jax.jit(jax.vmap(run))(jax.random.split(key, 1000))
    assert_evidence(log_zs, quadrature((1.0, 1.0, 0.0), 0.0)[0])


def blind(model):
    """The same model without its log-density."""
    return inference.diffusion.Diffusion(model.noising, model.score, model.shape)


WIDE = diffusion.VP()  # noise at its end is Normal(0, 1) to 5 digits
W1, W2 = (diffusion.gaussian_mixture(WIDE, *mixture) for mixture in MIXTURES)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def mean_log_evidence(key, weights, zeta, num_steps, kind):
    """Of a tilt ("tilt") or of exponents that rise to 1 and 1/2 ("moving"), over 8 runs of 2000 particles."""
    times = np.linspace(1.0, 1e-3, num_steps + 1)
    if kind == "tilt":
        model = inference.diffusion.fkc(
            blind(W1), times, reward=tilt(1.0), zeta=zeta, weights=weights
        )
    else:
        moving = [lambda t: 1 - 0.5 * t, 0.5]
        model = inference.diffusion.fkc(
            [blind(W1), blind(W2)], times, exponents=moving, zeta=zeta, weights=weights
        )
    run = lambda key: inference.smc(model, key, num_particles=2000, history="none").log_evidence
    return jax.lax.map(run, jax.random.split(key, 8)).mean()


@pytest.mark.slow  # many steps
@pytest.mark.parametrize(
    ("weights", "zetas"),
    [("rne", (0.5, 1.5)), pytest.param("euler", (0.0, 1.0), marks=pytest.mark.slow)],
)
def test_weights_from_scores_alone_are_consistent(weights, zetas, key):
    """Log Z of the tilted mixture; with path ratios whose noise is not the simulation's it is off by 0.2 at zeta = 1/2."""
    exact = quadrature((1.0, 0.0, 1.0), 0.0)[0]
    for zeta in zetas:
        assert abs(mean_log_evidence(key, weights, zeta, 400, "tilt") - exact) < 0.03, zeta


@pytest.mark.slow  # 8 runs of 2000 particles and 400 steps for each
@pytest.mark.parametrize(("weights", "zetas"), [("rne", (1.0, 1.5)), ("euler", (1.0,))])
def test_log_densities_followed_along_the_path_weigh_moving_exponents(weights, zetas, key):
    exact = quadrature((1.0, 0.5, 0.0), 0.0)[0]
    for zeta in zetas:
        assert abs(mean_log_evidence(key, weights, zeta, 400, "moving") - exact) < 0.03, zeta


@pytest.mark.slow  # one more compilation of 4000 particles and 400 steps
def test_birth_and_death_in_place_of_resampling(key):
    """At every step, by increments of Euler's weights: P(x < 0) of the guided and of the annealed row."""

    @functools.partial(jax.jit, static_argnums=1)
    def negative(key, row):
        model = corrected(row, 400, 1.5, "euler")
        result = inference.smc(
            model,
            key,
            num_particles=4000,
            history="none",
            resampling="birth_death",
            policy=inference.particles.resampling.every(1),
        )
        return result.log_evidence, result.mean(lambda p: p.x < 0)

    for row in ((-0.5, 1.5, 0.0), (0.5, 0.0, 0.0)):
        log_z, found = negative(key, row)
        exact = quadrature(row, 0.0)
        assert abs(log_z - exact[0]) < 0.06 and abs(found - exact[3]) < 0.03, row


# Identities.


def states(model, key, step=5):
    """A state before step `step` of a model, and one after."""
    move = lambda n, pair: (pair[1], model.kernel(jax.random.fold_in(key, n), pair[1], n))
    start = model.init(key)
    return *jax.lax.fori_loop(1, step + 1, move, (start, start)), step


def run(*models, num_particles=40):
    """Results of the models for one key, in one compilation."""
    options = {"num_particles": num_particles, "history": "none"}
    return jax.jit(lambda key: [inference.smc(m, key, **options) for m in models])


@functools.partial(jax.jit, static_argnums=(0, 2))
def euler_weights(pairs, key, tilted=False):
    """For each pair of exponents of Q1 and Q2: the log-weight of a step, where it started, and the two scores there."""
    found = []
    for pair in pairs:
        model = inference.diffusion.fkc(
            [Q1, Q2], STEPS, exponents=list(pair), reward=tilt(1.0) if tilted else None, zeta=1.2, weights="euler"
        )  # fmt: skip
        previous, state, n = states(model, key)
        found.append((model.log_potential(previous, state, n), previous.x, *previous.scores))
    return found


STEPS = np.linspace(1.0, 0.9, 11)
T = STEPS[4]  # where the fifth step starts
NOISE = 0.1 * 0.01 + 3.95 * (T**2 - STEPS[5] ** 2)  # the integral of g2 over it
DRIFT = -NOISE / 2


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["euler", "rne"])
def test_a_model_alone_needs_no_weights(weights, key):
    model = inference.diffusion.fkc(blind(W1), WIDE.times(20), zeta=1.3, weights=weights)
    (result,) = run(model, num_particles=50)(key)
    np.testing.assert_allclose(result.increments, 0.0, atol=2e-5)
    np.testing.assert_allclose(result.log_weights, -np.log(50), atol=1e-5)


@pytest.mark.slow
def test_guidance_weights(key):
    """(V / 2) b (b - 1) |s1 - s2|^2: zero at b = 0 and 1, positive beyond, negative between (proposition 3.1)."""
    scales = (0.0, 1.0, 3.0, -0.5, 0.5)
    found = euler_weights(tuple((1 - b, b) for b in scales), key)
    for b, (got, _, s1, s2) in zip(scales, found, strict=True):
        np.testing.assert_allclose(
            got, 0.5 * NOISE * b * (b - 1) * (s1 - s2) ** 2, rtol=5e-4, atol=1e-7
        )
        assert abs(got) < 1e-7 if b in (0, 1) else np.sign(got) == np.sign(b * (b - 1))
    _, x, *scores = found[-1]
    np.testing.assert_allclose(scores, [Q1.score(x, T), Q2.score(x, T)], rtol=1e-4)


def test_annealing_and_product_weights(key):
    """Propositions 3.2 and 3.3; the product of two models at exponent 1 leaves g2 s1 s2 + div f."""
    (got, _, s1, _), *products = euler_weights(((1.8, 0.0), (0.9, 0.9), (1.0, 1.0)), key)
    np.testing.assert_allclose(got, 0.8 * DRIFT + 0.5 * NOISE * 1.8 * 0.8 * s1**2, rtol=5e-4)
    for b, (got, _, s1, s2) in zip((0.9, 1.0), products, strict=True):
        want = (
            (2 * b - 1) * DRIFT + 0.5 * NOISE * b * (b - 1) * (s1 + s2) ** 2 + b * NOISE * s1 * s2
        )
        np.testing.assert_allclose(got, want, rtol=5e-4, atol=2e-6)


def test_reward_weights(key):
    """Proposition 3.4, with h = (1 - t) r: dh/dt = r towards the data."""
    ((got, x, s1, _),) = euler_weights(((1.0, 0.0),), key, True)
    b, slope = 1 - T, 2 - x
    want = 0.01 * -0.5 * (x - 2) ** 2 - b * slope * DRIFT * x + 0.5 * b * NOISE * slope * s1
    np.testing.assert_allclose(got, want, rtol=5e-4)


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")  # few steps
@pytest.mark.slow
def test_a_corrector_of_a_corrector_is_one_corrector(key):
    """Powers multiply, shared models and rewards are added, in whatever order: the same numbers, each model evaluated once."""
    times = np.linspace(1.0, 0.0, 21)
    inner = inference.diffusion.fkc([Q2, Q1], times, exponents=[1.0, 0.6], reward=tilt(0.5))
    nested = inference.diffusion.fkc([inner, Q1], times, exponents=[1.5, 0.2], reward=tilt(0.25))
    flat = inference.diffusion.fkc([Q1, Q2], times, exponents=[1.1, 1.5], reward=tilt(1.0))
    assert nested.composition.models == (Q2, Q1)
    one, two = run(nested, flat)(key)
    np.testing.assert_allclose(one.log_weights, two.log_weights, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(one.particles.x, two.particles.x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.increments, two.increments, atol=2e-4)


@pytest.mark.parametrize("weights", ["euler", pytest.param("rne", marks=pytest.mark.slow)])
def test_scores_are_cut_in_drift_and_weight_alike(weights, key):
    """Cut to 1/2 by `with_clipped_score`, or by a model whose own score is the cut one: the same step and the same log-weight."""
    cut = lambda x, t: jnp.clip(Q1.score(x, t), -0.5, 0.5)
    by_hand = inference.diffusion.Diffusion(NOISING, cut)
    options = {"exponents": 1.8, "zeta": 1.3, "weights": weights}
    a = inference.diffusion.fkc(blind(Q1).with_clipped_score(0.5), STEPS, **options)
    b = inference.diffusion.fkc(by_hand, STEPS, **options)

    @jax.jit
    def numbers(x, y):
        found = []
        for corrector in (a.corrector, b.corrector):
            previous = corrector.at(x, 4, None)
            state = corrector.at(y, 5, previous)
            found += [*corrector.moments(previous, 4), corrector.log_weight(previous, state, 4)]
        return found

    found = numbers(2.5, 2.4)
    assert abs(Q1.score(2.5, T)) > 0.6  # is cut
    np.testing.assert_allclose(found[:3], found[3:], rtol=1e-5)


def test_the_start_is_weighed_by_target_over_law():
    """At a time inside the process and for any law of the first points: sum_i w_i log q_i + h - log law."""
    law = dist.Normal(0.2, 1.3)
    model = inference.diffusion.fkc(
        [Q1, Q2], np.linspace(0.6, 0.0, 11), exponents=[0.6, 0.9], reward=tilt(1.0), start=law
    )
    x, t = 0.4, 0.6
    want = 0.6 * Q1.log_density(x, t) + 0.9 * Q2.log_density(x, t) - 0.4 * 0.5 * 1.6**2
    state = model.corrector.at(jnp.asarray(x), 0, None)
    np.testing.assert_allclose(
        model.log_potential(state, state, 0), want - law.log_prob(x), rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore:fkc. .* too long for their noise")  # few steps
def test_particles_are_exchangeable(key):
    """Permuted states have permuted weights: nothing of a particle stays behind when it moves to another slot."""
    model = corrected((0.6, 0.9, 1.0), 10, 1.5, "rne")
    order = np.array([3, 1, 5, 0, 2, 4])

    @jax.jit
    def both(key):
        start = jax.vmap(model.init)(jax.random.split(key, 6))
        keys = jax.random.split(jax.random.fold_in(key, 1), 6)
        moved = jax.vmap(lambda k, s: model.kernel(k, s, 1))(keys, start)
        weigh = jax.vmap(lambda a, b: model.log_potential(a, b, 1))
        pick = lambda tree: jax.tree.map(lambda x: x[order], tree)
        return weigh(pick(start), pick(moved)), weigh(start, moved)[order]

    np.testing.assert_allclose(*both(key), rtol=1e-6, atol=1e-6)  # sums of terms of size 1


@pytest.mark.slow  # a long compilation
def test_one_particle_is_the_simulation_without_weights(key):
    """K = 1: each step has the mean and the scale of the module's text, recomputed by hand."""
    times = np.linspace(1.0, 0.9, 6)
    model = inference.diffusion.fkc(
        [Q1, Q2], times, exponents=[0.6, 0.9], reward=tilt(1.0), zeta=1.5
    )
    path = jax.jit(lambda key: inference.smc(model, key, num_particles=1).paths)(key)
    at, density = lambda n: jax.tree.map(lambda v: v[0, n], path), jax.jit(model.log_transition)
    for n, t in enumerate(times[:-1]):
        x, noise = at(n).x, 0.1 * 0.02 + 3.95 * (t**2 - times[n + 1] ** 2)
        score = 0.6 * Q1.score(x, t) + 0.9 * Q2.score(x, t)
        mean = x + 0.5 * noise * ((1 + 1.5**2) * score + x + 1.5**2 * (1 - t) * (2 - x))
        want = dist.Normal(mean, 1.5 * np.sqrt(noise)).log_prob(at(n + 1).x)
        np.testing.assert_allclose(density(at(n), at(n + 1), n + 1), want, atol=2e-3)


OTHERS = {
    "EDM": (diffusion.EDM(sigma_max=20.0), jnp.append(diffusion.EDM(0.01, 20.0).times(60), 0.0)),
    "VE": (diffusion.VE(sigma_max=20.0), np.linspace(1.0, 0.0, 81)),
    "Cosine": (diffusion.Cosine(), np.linspace(0.8, 0.0, 61)),  # begins inside of the process
}


@pytest.mark.slow  # three processes, 50 runs each
@pytest.mark.parametrize("name", OTHERS)
def test_product_of_gaussians_in_two_dimensions(name, key):
    """Normal(m1, 0.3) Normal(m2, 0.6), coordinate by coordinate: known integral, mean and variance."""
    noising, times = OTHERS[name]
    m1, m2, v1, v2 = np.array([0.5, -1.0]), np.array([-0.3, 0.2]), 0.3, 0.6
    models = [
        diffusion.gaussian_mixture(noising, [1.0], m[None], v) for m, v in ((m1, v1), (m2, v2))
    ]
    model = inference.diffusion.fkc(models, times)
    log_z = dist.Normal(m1, np.sqrt(v1 + v2)).log_prob(m2).sum()

    def run(key):
        result = inference.smc(model, key, num_particles=500, history="none")
        return result.log_evidence, result.mean(lambda p: p.x)

    log_zs, means = jax.jit(jax.vmap(run))(jax.random.split(key, 50))
    assert_evidence(log_zs, log_z)
    assert_unbiased(means, (m1 / v1 + m2 / v2) / (1 / v1 + 1 / v2))


# Exponents as arrays.


@pytest.mark.filterwarnings("ignore:fkc")  # the grid is coarse, and is not run
def test_exponents_as_arrays_are_those_as_numbers_and_functions():
    """All that the steps are made of is a number for each time, so that no run is needed to compare."""
    times = np.linspace(1.0, 0.0, 21)
    made = lambda models, w: inference.diffusion.fkc(models, times, exponents=w, zeta=1.5)
    grid = lambda models, w: made(models, w).corrector.grid
    falling, rising = 1 - 0.5 * times, 0.2 + times**2
    of_time = [lambda t: 1 - 0.5 * t, lambda t: 0.2 + t**2]
    cases = [
        ([Q1, Q2], np.array([0.6, 0.9]), [0.6, 0.9]),
        ([Q1, Q2], np.stack([falling, rising], 1), of_time),
        ([Q1, Q2], [falling, rising], of_time),
        ([Q1, Q2], [jnp.asarray(falling), 0.9], [of_time[0], 0.9]),
        ([Q1, Q2], falling[:, None], of_time[0]),
        (Q1, rising, of_time[1]),
        (Q1, np.array([1.5]), 1.5),
    ]
    for models, arrays, others in cases:
        found, expected = grid(models, arrays), grid(models, others)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, expected
        )
    table = np.stack([falling, rising], 1)
    # In nested models exponents multiply, at the times of the outer steps.
    inner = made([Q1, Q2], table)
    outer = inference.diffusion.fkc(inner, times[::2], exponents=2.0 - times[::2], zeta=1.5)
    np.testing.assert_allclose(
        outer.corrector.grid.exponents, (table * (2 - times)[:, None])[::2], rtol=1e-5
    )


# The noise scale.


def test_automatic_noise_scale():
    times = np.linspace(1.0, 0.0, 401)
    zeta = lambda w: inference.diffusion.fkc(Q1, times, exponents=w).zeta
    np.testing.assert_allclose(zeta(1.0), 1.0)
    np.testing.assert_allclose(zeta(0.5)[200:300], np.sqrt(10), rtol=1e-6)
    guided = inference.diffusion.fkc([Q1, Q2], times, exponents=[-2.0, 3.0]).zeta
    np.testing.assert_array_equal(guided, zeta(3.0))  # as the power of the positive exponents
    np.testing.assert_allclose(zeta(3.0)[250:300], np.sqrt(10 * 2 / 3), rtol=1e-6)
    euler = inference.diffusion.fkc(Q1, times, exponents=3.0, weights="euler").zeta
    np.testing.assert_allclose(euler[:300], np.sqrt(2.5 * 2 / 3), rtol=1e-6)
    np.testing.assert_allclose(zeta(3.0)[-1], np.sqrt(2.1 * 2 / 3), rtol=1e-6)


def test_infinite_variance_is_warned_of_with_the_remedy():
    times = np.linspace(1.0, 0.0, 101)
    with pytest.warns(UserWarning, match=r"100 of 100 steps.*W = 3.*infinite variance.*above 1.15"):
        inference.diffusion.fkc(Q1, times, exponents=3.0, zeta=1.0)
    with pytest.warns(UserWarning, match="infinite variance"):
        inference.diffusion.fkc(Q1, times, exponents=1.6, zeta=1.6**-0.5)  # tempered noise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.diffusion.fkc(Q1, times, exponents=1.5, zeta=1.0)
        inference.diffusion.fkc(Q1, times, exponents=3.0)
        inference.diffusion.fkc(Q1, times, exponents=3.0, zeta=lambda t: 1.5 + t)
