"""The noise of Poisson flows: its density, how fast it becomes Normal, the flow that it leaves exact, what it cannot have."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import diffusion

EDM, VP = diffusion.EDM(), diffusion.VP()
POINTS = jnp.array([[-1.0, 0.3], [0.8, -0.4]])


@pytest.mark.slow_for("1")
@pytest.mark.parametrize("num_extra", [1, 8, 500])
def test_density_is_that_of_students_t(num_extra):
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    got = diffusion.PoissonNoise((2, 3), num_extra).log_prob(x)
    student = dist.MultivariateStudentT(float(num_extra), jnp.zeros(6), jnp.eye(6))
    np.testing.assert_allclose(got, student.log_prob(x.reshape(5, 6)), rtol=2e-4, atol=2e-4)


def test_draws_have_the_radius_of_the_field(key):
    """|eps|^2 is N times an F variable: shares below three of its quantiles, and signs of coordinates, at 20,000 draws."""
    x = np.asarray(diffusion.PoissonNoise((2, 3), 5).sample(key, (20_000,))).reshape(-1, 6)
    levels = np.array([0.1, 0.5, 0.9])
    below = (x**2).sum(1)[:, None] < 6 * stats.f(6, 5).ppf(levels)
    assert_unbiased(np.concatenate([below, x > 0], 1), np.append(levels, np.full(6, 0.5)))


# Kolmogorov-Smirnov distance of |eps|^2 from chi^2 with 64 degrees of freedom.
TO_NORMAL = {1: 0.59, 8: 0.32, 64: 0.11, 512: 0.015}


@pytest.mark.parametrize("num_extra", TO_NORMAL)
def test_noise_tends_to_the_normal(num_extra):
    grid = np.linspace(1, 400, 4000)
    distance = np.abs(stats.f(64, num_extra).cdf(grid / 64) - stats.chi2(64).cdf(grid)).max()
    assert abs(distance - TO_NORMAL[num_extra]) < 0.01


def poisson_model(noising, num_extra):
    """Two points of equal weight: their denoiser is exact, their marginal a mixture of two t."""
    noise = diffusion.PoissonNoise((2,), num_extra)
    logs = lambda x, t: jax.vmap(
        lambda y: noise.log_prob((x - noising.alpha(t) * y) / noising.std(t))
    )(POINTS)

    def score(x, t):
        data = jax.nn.softmax(logs(x, t)) @ POINTS
        return (noising.alpha(t) * data - x) / noising.variance(t)

    log_density = lambda x, t: jax.nn.logsumexp(logs(x, t)) - np.log(2) - 2 * jnp.log(noising.std(t))  # fmt: skip
    return inference.diffusion.Diffusion(noising, score, (2,), noise=noise), log_density


@pytest.mark.slow
@pytest.mark.parametrize(
    "noising", [EDM, pytest.param(VP, marks=pytest.mark.slow)], ids=["EDM", "VP"]
)
def test_the_flow_carries_the_marginals_of_heavy_noise(noising):
    """Log-density by the flow, D = 3, within 0.02 nats of the mixture of t's; with the Normal's prior it is off by far more."""
    model, log_density = poisson_model(noising, 3)
    x = POINTS[0] + jnp.array([[0.1, 0.0], [0.5, -0.4], [1.0, 2.0], [-4.0, 3.0]])
    options = {"at": 0.4, "rtol": 1e-5, "atol": 1e-5}
    got = jax.jit(lambda x: diffusion.flow_log_likelihood(model, x, **options))(x)
    want = jax.vmap(lambda x: log_density(x, 0.4))(x)
    if noising == VP:  # some of the data is left at the end of the process
        np.testing.assert_allclose(got, want, atol=0.05)
    else:
        np.testing.assert_allclose(got, want, atol=0.02)


@pytest.mark.slow  # one more sampler compiles
def test_heun_ends_at_the_data(key):
    """From draws of the heavy prior at sigma = 80 to the two points, equally often."""
    model, _ = poisson_model(EDM, 3)
    times = jnp.append(EDM.times(60), 0.0)
    x = np.asarray(diffusion.heun(model, key, times, num_samples=4000))
    square = ((x[:, None] - np.asarray(POINTS)) ** 2).sum(-1)
    assert square.min(1).max() < 1e-2
    assert_unbiased(square.argmin(1)[:, None], [0.5])


class Constant(eqx.Module):
    value: jax.Array
    num_classes: int = eqx.field(static=True, default=0)

    def __call__(self, x, level, label):
        return jnp.full(x.shape, self.value)


@pytest.mark.slow  # one more compilation of a training objective
def test_score_matching_draws_the_noise(key):
    """A constant c for eps, whose variance is D / (D - 2): E = -(D / (D - 2) + c^2 + log 2 pi) / 2 for each number."""
    x, noise = jnp.ones((16, 2)), diffusion.PoissonNoise((2,), 12)
    network = Constant(jnp.asarray(0.3))
    objective = diffusion.score_matching(network, VP, predicts="noise", noise=noise)
    params = objective.init(key, x)
    values = jax.jit(jax.vmap(lambda key: objective.value(params, key, x)))(jax.random.split(key, 4000))  # fmt: skip
    assert_unbiased(values, -0.5 * x.size * (12 / 10 + 0.3**2 + np.log(2 * np.pi)))
    assert diffusion.from_network(network, VP, (2,), noise=noise).noise is noise


MODEL, TIMES = poisson_model(EDM, 3)[0], EDM.times(4)
REFUSED = {
    "fkc": lambda key: inference.diffusion.fkc(MODEL, TIMES),
    "twisted_diffusion": lambda key: inference.diffusion.twisted_diffusion(MODEL, TIMES, jnp.sum),
    "fk_steering": lambda key: inference.diffusion.fk_steering(MODEL, TIMES, jnp.sum),
    "ddim": lambda key: diffusion.ancestral(MODEL, key, TIMES, num_samples=2),
    "euler_maruyama": lambda key: diffusion.euler_maruyama(MODEL, key, TIMES, num_samples=2),
    "heun": lambda key: diffusion.heun(MODEL, key, TIMES, num_samples=2, churn=1.0),
    "classifier_guided": lambda key: diffusion.classifier_guided(MODEL, lambda x, t: x.sum()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_a_reverse_process_is_refused(name, key):
    with pytest.raises(ValueError, match=f"{name}: the model's noise is PoissonNoise.*only a flow"):
        REFUSED[name](key)


def test_refusal_of_no_dimension():
    with pytest.raises(ValueError, match="num_extra must be an integer >= 1, got 0"):
        diffusion.PoissonNoise((2,), 0)
