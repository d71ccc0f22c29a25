"""Noise schedules, parametrisations and exact mixtures against formulas and quadrature."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad

from lapilli import inference
from lapilli.models import diffusion

SCHEDULES = [diffusion.VP(), diffusion.VP(0.1, 8.0), diffusion.Cosine(), diffusion.VE(), diffusion.EDM()]  # fmt: skip
every_schedule = pytest.mark.parametrize("noising", SCHEDULES, ids=repr)


@pytest.mark.fast("EDM(sigma_min=0.002, sigma_max=80.0, rho=7.0)")
@every_schedule
def test_the_marginal_solves_the_differential_equation(noising):
    """That is, d log alpha = a dt and d variance = (2 a variance + g2) dt, integrated by quadrature."""
    for share in (0.2, 0.7):
        t = share * noising.end
        drift = quad(lambda u: float(noising.drift(u)), 0, t, epsabs=1e-6, limit=30)[0]
        np.testing.assert_allclose(noising.log_alpha(t), drift, rtol=1e-4, atol=1e-6)
        grow = lambda u, t=t: float(
            noising.g2(u) * jnp.exp(2 * (noising.log_alpha(t) - noising.log_alpha(u)))
        )
        variance = quad(grow, 0, t, epsrel=1e-5, limit=30)[0]
        np.testing.assert_allclose(noising.variance(t), variance, rtol=1e-4)


@every_schedule
def test_data_are_left_alone_at_first_and_drowned_at_last(noising):
    assert noising.alpha(0.0) == pytest.approx(1) and noising.variance(0.0) == pytest.approx(
        0, abs=1e-7
    )
    assert noising.alpha(noising.end) < 0.02 * noising.std(noising.end) + 0.14
    times = np.asarray(noising.times(50))
    assert times.shape == (51,) and np.all(np.diff(times) < 0) and times[-1] > 0
    np.testing.assert_allclose(times[0], noising.end, rtol=1e-5)


def test_the_cosine_loses_no_digits_beside_the_data():
    """Against the two logarithms of its definition in double precision, and no noise at all at 0."""
    noising = diffusion.Cosine()
    u = lambda t: 0.5 * np.pi * (t + noising.offset) / (1 + noising.offset)
    t = np.concatenate([np.geomspace(1e-6, 0.1, 20), np.linspace(0.2, noising.end, 5)])
    exact = np.log(np.cos(u(t))) - np.log(np.cos(u(0.0)))
    np.testing.assert_allclose(jax.vmap(noising.log_alpha)(jnp.asarray(t)), exact, rtol=1e-5)
    assert noising.variance(0.0) == 0 and noising.alpha(0.0) == 1


def test_published_formulas():
    t = 0.3
    np.testing.assert_allclose(diffusion.VP().g2(t), 0.1 + 19.9 * t, rtol=1e-4)
    np.testing.assert_allclose(diffusion.VP().drift(t), -0.5 * (0.1 + 19.9 * t), rtol=1e-5)
    np.testing.assert_allclose(diffusion.EDM().g2(3.0), 6.0, rtol=1e-6)
    ratio = np.log(5000)
    np.testing.assert_allclose(diffusion.VE().g2(t), (0.01 * 5000**t) ** 2 * 2 * ratio, rtol=1e-4)
    steps = (80 ** (1 / 7) + np.arange(6) / 5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(diffusion.EDM().times(5), steps, rtol=1e-4)


def test_equal_settings_are_one_process():
    assert diffusion.VP(0.1, 8.0) == diffusion.VP(0.1, 8.0) != diffusion.VP()
    assert diffusion.VP() != diffusion.VE()


NAMES = ("score", "noise", "data", "velocity", "flow")


@pytest.mark.slow_for(
    "Cosine(offset=0.008, first=0.001, last=0.9946)", "VP(beta_min=0.1, beta_max=20.0, first=0.001)"
)
@every_schedule
def test_parametrisations_are_what_they_say(noising):
    """All conversions of one pair (x_0, eps), and back."""
    key = jax.random.key(0)
    data, noise = jax.random.normal(key, (2, 3))
    t = jnp.asarray(0.4 if noising.end < 2 else 0.9)
    alpha, std = noising.alpha(t), noising.std(t)
    x = alpha * data + std * noise
    moving = lambda t: noising.alpha(t) * data + noising.std(t) * noise
    truth = {
        "score": -noise / std,
        "noise": noise,
        "data": data,
        "velocity": alpha * noise - std * data,
        "flow": jax.jvp(moving, (t,), (jnp.ones(()),))[1],
    }
    for source, target in itertools.product(NAMES, NAMES):
        got = diffusion.convert(truth[source], x, t, noising, source, target)
        np.testing.assert_allclose(got, truth[target], rtol=2e-3, atol=2e-3, err_msg=f"{source} {target}")  # fmt: skip


def test_the_flow_is_the_drift_of_the_probability_flow():
    noising = diffusion.VP()
    model = diffusion.gaussian_mixture(noising, [0.3, 0.7], [-1.5, 1.0], [0.2, 0.3])
    x, t = jnp.asarray(0.4), jnp.asarray(0.3)
    flow = diffusion.convert(model.score(x, t), x, t, noising, "score", "flow")
    want = noising.drift(t) * x - 0.5 * noising.g2(t) * model.score(x, t)
    np.testing.assert_allclose(flow, want, rtol=1e-4)


def test_an_unknown_parametrisation_is_refused():
    with pytest.raises(ValueError, match="'epsilon'.*'noise'"):
        diffusion.convert(jnp.zeros(2), jnp.zeros(2), 0.5, diffusion.VP(), "epsilon", "score")


@every_schedule
def test_mixture_marginals_by_quadrature(noising):
    """The density of x_t is the mixture's, convolved with the noise; the denoised point is its posterior mean."""
    model = diffusion.gaussian_mixture(noising, [3, 7], [-1.5, 1.0], [0.2, 0.3])
    t, y = 0.3, 0.6
    x0 = np.linspace(-6, 6, 4001)
    parts = ((0.3, -1.5, 0.2), (0.7, 1.0, 0.3))
    prior = sum(w * np.exp(dist.Normal(m, v**0.5).log_prob(x0)) for w, m, v in parts)
    joint = prior * np.exp(dist.Normal(noising.alpha(t) * x0, noising.std(t)).log_prob(y))
    np.testing.assert_allclose(
        model.log_density(y, t), np.log(joint.sum() * (x0[1] - x0[0])), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        model.denoise(jnp.asarray(y), t), (joint * x0).sum() / joint.sum(), rtol=1e-3
    )


def test_mixture_shapes_are_checked():
    with pytest.raises(ValueError, match="weights \\(2,\\) and means \\(3,\\)"):
        diffusion.gaussian_mixture(diffusion.VP(), [1, 1], [0.0, 1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="do not broadcast"):
        diffusion.gaussian_mixture(diffusion.VP(), [1, 1], [0.0, 1.0], [1.0, 1.0, 1.0])
    model = diffusion.gaussian_mixture(diffusion.VP(), [1.0], [[0.0, 1.0]], 0.5)
    assert model.shape == (2,) and isinstance(model, inference.diffusion.Diffusion)


@dataclasses.dataclass(frozen=True)
class Tabled(diffusion.VP):
    """A process by a table of rates, as DDPM has one."""

    rates: np.ndarray = dataclasses.field(default_factory=lambda: np.linspace(1e-3, 0.12, 100))

    def log_alpha(self, t):
        table = 0.5 * jnp.cumsum(jnp.log1p(-jnp.asarray(self.rates)))
        return jnp.interp(t, jnp.linspace(0.0, 1.0, 101), jnp.append(0.0, table))


def test_processes_with_arrays_are_one_where_their_values_are(key):
    """Dataclasses compare their fields, and arrays no more than entry by entry; the product of Normals has a closed form."""
    factor = lambda noising: diffusion.gaussian_mixture(noising, [1.0], [0.0], 0.5)
    times = np.linspace(1.0, 0.0, 51)
    models = [factor(Tabled()), factor(Tabled())]
    run = inference.smc(inference.diffusion.fkc(models, times), key, num_particles=2000)
    np.testing.assert_allclose(run.log_evidence, -0.5 * np.log(2 * np.pi), atol=0.1)
    other = factor(Tabled(rates=np.linspace(1e-3, 0.1, 100)))
    with pytest.raises(ValueError, match="one noising process"):
        inference.diffusion.fkc([models[0], other], times)


@pytest.mark.parametrize(
    "wanted, make",
    {
        "beta_min, beta_max >= 0": (
            lambda: diffusion.VP(-1.0, 2.0), lambda: diffusion.VP(0.0, 0.0), lambda: diffusion.VP(0.1, np.nan),
            lambda: diffusion.VP(first=1.0),
        ),
        "offset >= 0 and 0 < first < last < 1": (lambda: diffusion.Cosine(-0.1), lambda: diffusion.Cosine(last=1.0)),
        "0 < sigma_min < sigma_max and 0 < first < 1": (
            lambda: diffusion.VE(50.0, 0.01), lambda: diffusion.VE(0.0, 1.0), lambda: diffusion.VE(1.0, np.inf),
        ),
        "0 < sigma_min < sigma_max and rho > 0": (lambda: diffusion.EDM(80.0, 0.1), lambda: diffusion.EDM(rho=0.0)),
    }.items(),
    ids=("VP", "Cosine", "VE", "EDM"),
)  # fmt: skip
def test_numbers_that_make_no_noise_are_refused(wanted, make):
    for made in make:
        with pytest.raises(ValueError, match=wanted):
            made()


def test_rates_that_are_traced_pass():
    variance = lambda rate: diffusion.VP(0.1, rate).variance(0.5)
    np.testing.assert_allclose(jax.jit(variance)(8.0), variance(8.0), rtol=1e-6)
