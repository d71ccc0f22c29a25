"""The ten tasks as programs of one latent site "theta" and one observed site "x", written from the paper's appendix.

What the benchmark draws once for all tasks alike (the stimulus of the Bernoulli models, the law of the distractors and their
order) comes from NumPy's old generator with the benchmark's seed, and is the same to the last digit.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl


@dataclasses.dataclass(frozen=True)
class Task:
    """A program `model(x)` of as many parameters; the shape of its data; where its observations are.

    `exact` is a program with the density of the data, up to a factor of the data alone; None: the benchmark has none here.
    `place` is the folder and the file of the benchmark's observations, where these are not named after the task.
    """

    model: ppl.Program
    size: int
    x_shape: tuple
    exact: ppl.Program | None = None
    place: tuple[str, str] | None = None

    def shaped(self, x):
        """The benchmark's flat data in the program's shape."""
        return np.asarray(x, np.float32).reshape(self.x_shape)


def uniform(size, bound):
    return ppl.sample("theta", dist.Uniform(-bound, bound).expand([size]).to_event(1))


@ppl.model
def two_moons(x):
    t1, t2 = uniform(2, 1.0)
    angle_key, radius_key = jax.random.split(ppl.rng_key("noise"))
    a = jax.random.uniform(angle_key, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    r = 0.1 + 0.01 * jax.random.normal(radius_key)
    made = jnp.array(
        [r * jnp.cos(a) + 0.25 - jnp.abs(t1 + t2) / 2**0.5, r * jnp.sin(a) + (t2 - t1) / 2**0.5]
    )
    ppl.sample("x", dist.Delta(made).to_event(1), obs=x)


@ppl.model
def gaussian_linear(x):
    theta = ppl.sample("theta", dist.Normal(0.0, 0.1**0.5).expand([10]).to_event(1))
    ppl.sample("x", dist.Normal(theta, 0.1**0.5).to_event(1), obs=x)


@ppl.model
def gaussian_linear_uniform(x):
    ppl.sample("x", dist.Normal(uniform(10, 1.0), 0.1**0.5).to_event(1), obs=x)


@ppl.model
def slcp(x):
    t = uniform(5, 3.0)
    s1, s2, rho = t[2] ** 2, t[3] ** 2, jnp.tanh(t[4])
    covariance = jnp.array([[s1**2, rho * s1 * s2], [rho * s1 * s2, s2**2]]) + 1e-6 * jnp.eye(2)
    law = dist.MultivariateNormal(t[:2], covariance)
    ppl.sample("x", law.expand([4]).to_event(1), obs=x)


@functools.cache
def distracting():
    """Places and factors of the mixture of 20 laws of Student that distract, and the order of all 100 numbers."""
    rng = np.random.RandomState(42)
    loc = np.array([15 * rng.normal(size=92) for _ in range(20)])
    factors = [
        np.tril(rng.normal(size=(92, 92))) + np.diag(np.exp(rng.normal(size=92))) for _ in range(20)
    ]
    return loc, 3 * np.array(factors), rng.permutation(100)


@ppl.model
def slcp_distractors(x):
    t = uniform(5, 3.0)
    s1, s2, rho = t[2] ** 2, t[3] ** 2, jnp.tanh(t[4])
    factor = jnp.array([[s1, 0.0], [rho * s2, s2 * jnp.sqrt(1 - rho**2)]])
    data_key, part_key, normal_key, chi_key = jax.random.split(ppl.rng_key("noise"), 4)
    data = t[:2] + jax.random.normal(data_key, (4, 2)) @ factor.T
    loc, factors, order = distracting()
    part = jax.random.randint(part_key, (), 0, 20)
    z = jax.random.normal(normal_key, (92,))
    chi = 2 * jax.random.gamma(chi_key, 1.0)  # of two degrees of freedom
    noise = jnp.asarray(loc, jnp.float32)[part] + jnp.asarray(factors, jnp.float32)[
        part
    ] @ z * jnp.sqrt(2 / chi)
    ppl.sample("x", dist.Delta(jnp.concatenate([data.ravel(), noise])[order]).to_event(1), obs=x)


def stimulus():
    """Ones, and white noise at lags 0 to 8, [100, 9 + 1]."""
    noise = np.random.RandomState(42).randn(100)
    lags = [np.concatenate([np.zeros(j), noise[: 100 - j]]) for j in range(9)]
    return np.stack([np.ones(100), *lags], 1)


DESIGN = stimulus()
SMOOTHNESS = np.eye(9) - np.eye(9, k=-1)
SMOOTHNESS = SMOOTHNESS @ SMOOTHNESS + np.diag(np.sqrt(np.arange(9) / 9))
PRECISION = np.block(
    [[np.full((1, 1), 0.5), np.zeros((1, 9))], [np.zeros((9, 1)), SMOOTHNESS.T @ SMOOTHNESS]]
)


def filters():
    law = dist.MultivariateNormal(jnp.zeros(10), jnp.asarray(np.linalg.inv(PRECISION), jnp.float32))
    return ppl.sample("theta", law)


def filtered(theta):
    """Log-odds of a spike at each of a hundred times."""
    return jnp.asarray(DESIGN, jnp.float32) @ theta


@ppl.model
def bernoulli_glm_raw(x):
    ppl.sample("x", dist.Bernoulli(logits=filtered(filters())).to_event(1), obs=x)


@ppl.model
def bernoulli_glm(x):
    """The number of spikes, and their sums with the stimulus: sufficient."""
    odds = jax.nn.sigmoid(filtered(filters()))
    spikes = jax.random.uniform(ppl.rng_key("noise"), (100,)) < odds
    made = jnp.asarray(DESIGN.T, jnp.float32) @ spikes.astype(jnp.float32)
    ppl.sample("x", dist.Delta(made).to_event(1), obs=x)


@ppl.model
def bernoulli_glm_given_sums(x):
    """The density of the spikes, which their sums are sufficient for: theta' x - sum of log(1 + e^odds)."""
    theta = filters()
    ppl.factor("x", theta @ jnp.asarray(x) - jax.nn.softplus(filtered(theta)).sum())


@ppl.model
def gaussian_mixture(x):
    theta = uniform(2, 10.0)
    scales = jnp.array([1.0, 0.1])[:, None]
    parts = dist.Normal(theta, jnp.broadcast_to(scales, (2, 2))).to_event(1)
    ppl.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), parts), obs=x)


def solved(field, start, times, per_unit):
    """Runge and Kutta's fourth order, at whole steps."""
    h, steps = (
        1.0 / per_unit,
        np.diff(np.round(np.asarray(times) * per_unit).astype(int), prepend=0),
    )

    def step(u, _):
        k1 = field(u)
        k2 = field(u + h / 2 * k1)
        k3 = field(u + h / 2 * k2)
        return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(u + h * k3)), None

    def leg(u, _):
        u = jax.lax.scan(step, u, None, int(steps[-1]))[0]
        return u, u

    first = jax.lax.scan(step, start, None, int(steps[0]))[0]
    return jnp.concatenate([first[None], jax.lax.scan(leg, first, None, len(times) - 1)[1]])


def infected(theta):
    """Of a million, at days 0, 17, ..., 153 of the SIR model."""
    beta, gamma = theta[..., 0], theta[..., 1]

    def field(u):
        s, i = u
        return jnp.stack([-beta * s * i, beta * s * i - gamma * i])

    start = jnp.stack([jnp.full_like(beta, 1 - 1e-6), jnp.full_like(beta, 1e-6)])
    later = solved(field, start, 17.0 * np.arange(1, 10), 4)
    return jnp.concatenate([start[None], later])[:, 1]


@ppl.model
def sir(x):
    law = dist.LogNormal(jnp.log(jnp.array([0.4, 0.125])), jnp.array([0.5, 0.2])).to_event(1)
    share = infected(ppl.sample("theta", law))
    ppl.sample("x", dist.Binomial(1000, jnp.clip(share, 1e-9, 1 - 1e-6)).to_event(1), obs=x)


@ppl.model
def lotka_volterra(x):
    law = dist.LogNormal(jnp.array([-0.125, -3.0, -0.125, -3.0]), 0.5).to_event(1)
    a, b, c, d = ppl.sample("theta", law)
    field = lambda u: jnp.stack([a * u[0] - b * u[0] * u[1], -c * u[1] + d * u[0] * u[1]])
    later = solved(field, jnp.array([30.0, 1.0]), 2.1 * np.arange(1, 10), 20)
    u = jnp.concatenate([jnp.array([[30.0, 1.0]]), later]).T
    # What explodes in a solver of fixed steps is far beyond any data.
    u = jnp.clip(jnp.nan_to_num(u, nan=1e4, posinf=1e4), 1e-10, 1e4)
    ppl.sample("x", dist.LogNormal(jnp.log(u), 0.1).to_event(2), obs=x)


TASKS = {
    "two_moons": Task(two_moons, 2, (2,)),
    "gaussian_linear": Task(gaussian_linear, 10, (10,), gaussian_linear),
    "gaussian_linear_uniform": Task(gaussian_linear_uniform, 10, (10,), gaussian_linear_uniform),
    "slcp": Task(slcp, 5, (4, 2), slcp),
    "slcp_distractors": Task(
        slcp_distractors, 5, (100,), place=("slcp", "observation_distractors")
    ),
    "bernoulli_glm": Task(bernoulli_glm, 10, (10,), bernoulli_glm_given_sums),
    "bernoulli_glm_raw": Task(
        bernoulli_glm_raw, 10, (100,), bernoulli_glm_raw, place=("bernoulli_glm", "observation_raw")
    ),
    "gaussian_mixture": Task(gaussian_mixture, 2, (2,), gaussian_mixture),
    "sir": Task(sir, 2, (10,), sir),
    "lotka_volterra": Task(lotka_volterra, 4, (2, 10), lotka_volterra),
}
