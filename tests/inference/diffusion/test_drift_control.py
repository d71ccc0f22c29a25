"""Drifts fitted so that weights vary little: closed forms for Gaussians, least squares, the evidence with and without them."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _mixture_rows import NOISING, Q1, Q2, assert_evidence, quadrature, tilt

from lapilli import inference
from lapilli.inference.diffusion import DriftControl, fkc
from lapilli.inference.diffusion._drift_control import RIDGE, least_variance, pilot
from lapilli.inference.diffusion.grid._finite_variance import infinite_steps
from lapilli.models import diffusion

STEPS = np.linspace(1.0, 0.9, 11)


def corrected(row, times, control, weights="exact", zeta=1.0):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fkc.*infinite variance")
        return fkc(
            [Q1, Q2], times, exponents=list(row[:2]), reward=tilt(row[2]), zeta=zeta, weights=weights, control=control
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_an_annealed_gaussian_gets_the_drift_that_leaves_no_weights(beta, key):
    """U = -(beta - 1)/2 g2 s, for which rate + div u + u . beta s is constant, at every noise scale; tempered noise included."""
    model = diffusion.gaussian_mixture(NOISING, [1.0], [[0.5, -1.0]], 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cold = fkc(
            model, NOISING.times(20), exponents=beta, zeta=beta**-0.5, weights="euler", control=DriftControl(key, 50)
        )  # fmt: skip
    np.testing.assert_allclose(cold.control, -(beta - 1) / 2 / (1 + RIDGE), rtol=2e-4)
    result = jax.jit(lambda k: inference.smc(cold, k, num_particles=40, history="none"))(key)
    np.testing.assert_allclose(result.ess, result.ess[0], rtol=1e-3)  # that of the first points


def test_coefficients_leave_the_least_variance(key):
    """Weighted least squares with an intercept, by NumPy in double precision; functions that vanish get nothing."""
    keys = jax.random.split(key, 3)
    terms = jax.random.normal(keys[0], (50, 3)).at[:, 2].set(0.0)
    rates = jax.random.normal(keys[1], (50,)) + terms @ jnp.array([1.0, -2.0, 0.0])
    log_weights = jax.nn.log_softmax(jax.random.normal(keys[2], (50,)))
    got = least_variance(rates, terms, log_weights)
    root = np.exp(0.5 * np.asarray(log_weights, float))
    design = np.column_stack([np.ones(50), terms[:, :2]]) * root[:, None]
    want = -np.linalg.lstsq(design, np.asarray(rates, float) * root, rcond=None)[0][1:]
    np.testing.assert_allclose(got[:2], want, rtol=2e-3)  # the ridge is 1e-4 of a correlation
    assert got[2] == 0


@pytest.mark.slow
def test_the_control_enters_eulers_rate_by_its_divergence(key):
    """V sum_i c_i (b_i' + b_i (S + h')), the derivatives of scores by central differences of log-densities."""
    model = corrected((0.6, 0.9, 1.0), STEPS, DriftControl(key, 20), "euler")
    bare = corrected((0.6, 0.9, 1.0), STEPS, None, "euler")
    x, eps = 0.4, 1e-2

    @jax.jit
    def numbers(x):
        log_q = jnp.stack(
            [q.log_density(x + e, STEPS[4]) for q in (Q1, Q2) for e in (-eps, 0.0, eps)]
        )
        states = [m.corrector.at(x, 4, None) for m in (model, bare)]
        found = [
            m.corrector.log_weight(s, s, 4) for m, s in zip((model, bare), states, strict=True)
        ]
        return found, log_q.reshape(2, 3), states[0].divergences

    (with_it, without), log_q, divergences = numbers(x)
    log_q = np.asarray(log_q, float)
    curvature = (log_q[:, 0] - 2 * log_q[:, 1] + log_q[:, 2]) / eps**2
    np.testing.assert_allclose(divergences[:2], curvature, rtol=0.02)  # of float32 differences
    noise = 0.1 * 0.01 + 3.95 * (STEPS[4] ** 2 - STEPS[5] ** 2)
    slope = (1 - STEPS[4]) * (2 - x)
    scores = [q.score(x, STEPS[4]) for q in (Q1, Q2)]
    total = 0.6 * scores[0] + 0.9 * scores[1] + slope
    pushes, parts = np.array([*scores, slope]), np.array([*divergences[:2], -(1 - STEPS[4])])
    want = noise * model.control[4] @ (parts + pushes * total)
    np.testing.assert_allclose(with_it - without, want, rtol=2e-3)


@functools.partial(jax.jit, static_argnums=(1, 2))
def evidences(key, row, num_steps):
    """Log Z of 1000 runs with a control from one pilot."""
    pilot_key, key = jax.random.split(key)
    model = corrected(row, np.linspace(1.0, 0.0, num_steps + 1), DriftControl(pilot_key, 100))
    run = lambda key: inference.smc(model, key, num_particles=64, history="none").log_evidence
    return jax.vmap(run)(jax.random.split(key, 1000))


@pytest.mark.slow  # a thousand runs each
@pytest.mark.parametrize("row", [(2.0, 0.0, 0.0), (3.0, 0.0, 0.0), (1.0, 0.7, 1.0)])
def test_evidence_is_exact_with_a_control_however_coarse_the_steps(row, key):
    """20 steps at zeta = 1, at which annealing has weights of infinite variance without a control."""
    assert_evidence(evidences(key, row, 20), quadrature(row, 0.0)[0])


@pytest.mark.slow
def test_evidence_is_exact_with_any_coefficients(key):
    """A pilot of ten particles, whose coefficients are rough."""
    row = (1.0, 0.7, 1.0)
    model = corrected(row, np.linspace(1.0, 0.0, 21), DriftControl(key, 10), zeta=1.5)
    run = lambda key: inference.smc(model, key, num_particles=64, history="none").log_evidence
    assert_evidence(jax.jit(jax.vmap(run))(jax.random.split(key, 1000)), quadrature(row, 0.0)[0])


@pytest.mark.slow
def test_a_weights_mean_given_its_start_depends_on_the_control_and_not_its_mean(key):
    """Why the particles that choose c are not weighted by it: r_c(x), and its mean over p_n, by quadrature."""
    times, n = np.linspace(1.0, 0.0, 9), 5
    model = corrected((2.0, 0.0, 0.0), times, DriftControl(key, 2, ("scores",)))
    x, dx = jnp.linspace(-6.0, 6.0, 401, retstep=True)

    def means(c):
        table = jnp.broadcast_to(jnp.array([c, 0.0]), model.control.shape)
        control = dataclasses.replace(model.corrector.control, coefficients=table)
        corrector = dataclasses.replace(model.corrector, control=control)

        def one(x):
            before = corrector.at(x, n, None)
            mean, scale = corrector.moments(before, n)
            z, dz = jnp.linspace(-7.0, 7.0, 401, retstep=True)
            weigh = lambda y: jnp.exp(corrector.log_weight(before, corrector.at(y, n + 1, before), n))  # fmt: skip
            return dz * jnp.exp(-0.5 * z**2) / jnp.sqrt(2 * jnp.pi) @ jax.vmap(weigh)(mean + scale * z)  # fmt: skip

        r = jax.vmap(one)(x)
        p = jnp.exp(2 * jax.vmap(lambda x: Q1.log_density(x, times[n]))(x))
        return r, p @ r / p.sum()

    (r0, mean0), (r1, mean1) = (jax.jit(means)(c) for c in (0.0, -0.5))
    assert jnp.abs(r0 - r1)[150:250].max() > 0.1
    ratio = np.exp(quadrature((2.0, 0.0, 0.0), times[n + 1])[0] - quadrature((2.0, 0.0, 0.0), times[n])[0])  # fmt: skip
    np.testing.assert_allclose([mean0, mean1], ratio, rtol=2e-4)


@pytest.mark.slow  # 200,000 runs
def test_the_pilots_own_evidence_is_biased_and_that_of_a_run_is_not(key):
    """Two particles, ten steps: the pilot's is more than a twentieth off, by more than 7 standard errors; a run's is right."""
    model = corrected((2.0, 0.0, 0.0), np.linspace(1.0, 0.0, 11), DriftControl(key, 100))
    exact = quadrature((2.0, 0.0, 0.0), 0.0)[0]

    @jax.jit
    def both(keys):
        one = lambda k: (
            pilot(model.corrector, k, 2)[1],
            inference.smc(model, k, num_particles=2, history="none").log_evidence,
        )
        return jax.lax.map(one, keys, batch_size=20_000)

    own, run = both(jax.random.split(jax.random.fold_in(key, 1), 200_000))
    own = np.exp(np.asarray(own, float) - exact)
    assert own.mean() < 0.95 and own.mean() - 1 < -7 * own.std() / len(own) ** 0.5
    assert_evidence(run, exact)


@pytest.mark.slow
@pytest.mark.parametrize("row", [(3.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.7, 1.0)], ids=str)
def test_the_evidence_varies_less_with_a_control(row, key):
    """Automatic noise: the standard deviation of log Z over 60 runs falls by a fourth at least, with 99.9% (F test)."""
    times = np.linspace(1.0, 0.0, 101)

    def spread(control):
        model = corrected(row, times, control, zeta="auto")
        run = lambda k: inference.smc(model, k, num_particles=300, history="none").log_evidence
        log_z = jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(key, 60))
        assert abs(log_z.mean() - quadrature(row, 0.0)[0]) < 4.5 * log_z.std() / 60**0.5 + 0.01
        return log_z.var()

    ratio = spread(DriftControl(key)) / spread(None)
    assert ratio * 2.27 < 0.75**2  # 99.9% quantile of F with 59 and 59 degrees of freedom


@pytest.mark.parametrize("ratio", ["exact", "rne", "euler"])
def test_the_matrices_of_variance_see_the_control(ratio, key):
    """Tempered noise, annealed to 3: infinite at all but a few of the steps without a control, nowhere with the Gaussian one."""
    model = diffusion.gaussian_mixture(NOISING, [1.0], [0.0], 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = fkc(model, NOISING.times(400), exponents=3.0, zeta=3**-0.5).corrector.known
    ratios = "euler" if ratio == "euler" else [ratio]
    count = lambda c: infinite_steps(known, ratios, np.array([0.3]), control=c)[0].sum()
    assert count(None) > 300 and count(np.zeros((400, 1))) == count(None)
    assert count(np.full((400, 1), -1.0)) == 0


@pytest.mark.slow
def test_other_functions_and_trees(key):
    """A linear function in place of the scores does the same for a Gaussian, on points that are trees, without densities."""
    shape = {"a": (2,), "b": ()}
    scale = lambda t: NOISING.alpha(t) ** 2 * 0.3 + NOISING.variance(t)
    model = inference.diffusion.Diffusion(
        NOISING, lambda x, t: jax.tree.map(lambda v: -v / scale(t), x), shape
    )
    linear = lambda x, t: jax.tree.map(lambda v: v / scale(t), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cold = fkc(
            model, NOISING.times(20), exponents=2.0, weights="rne", zeta=1.0, control=DriftControl(key, 50, [linear])
        )  # fmt: skip
    np.testing.assert_allclose(cold.control, 0.5, rtol=1e-3)


@pytest.mark.slow
def test_divergences_are_probed_in_many_dimensions(key):
    """Beyond 64 coordinates: for a Gaussian the probe is exact, and so are the coefficients."""
    model = diffusion.gaussian_mixture(NOISING, [1.0], np.zeros((1, 65)), 0.3)
    times = NOISING.times(20)
    cold = fkc(model, times, exponents=0.5, zeta=1.0, control=DriftControl(key, 20))
    np.testing.assert_allclose(cold.control, 0.25, rtol=1e-3)


@pytest.mark.slow  # compiles a pilot twice
def test_a_known_control_stays_known_under_jit(key):
    """Its warning as well; where the pilot's key is traced the control is not known, and the warning is that of none."""
    make = lambda key: fkc(Q1, NOISING.times(100), exponents=3.0, zeta=1.0, control=DriftControl(key, 100)).control  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        want = make(key)
        got = jax.jit(lambda _: make(key))(0.0)
    np.testing.assert_array_equal(got, want)
    with pytest.warns(UserWarning, match="infinite variance"):
        jax.jit(make)(key)
