"""Small state-space models with all kinds of memory, and exact posteriors of the Gaussian ones.

`from _state_space import LINE, walk, ...`. The golden model, x_0 ~ N(0, 1), x_t ~ N(0.9 x_{t-1}, 1), y_t ~ N(x_t, 1) for
t = 0, ..., 4, has its first observation before the scan; every other model takes four observations in the scan.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

from lapilli import inference, ppl

GOLDEN = np.array([0.5, -1.0, 0.25, 2.0, 1.5], np.float32)
GOLDEN_EVIDENCE = -8.0787984  # by Kalman's filter, nats


@ppl.model
def golden(ys):
    x = ppl.sample("x0", dist.Normal(0.0, 1.0))
    ppl.sample("y0", dist.Normal(x, 1.0), obs=ys[0])

    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, x, ys[1:])


def log_normal(mean, x):
    return -0.5 * (jnp.log(2 * jnp.pi) + (x - mean) ** 2)


def golden_chain(ys=GOLDEN):
    """The golden model as a Feynman-Kac model."""
    return inference.FeynmanKac(
        init=jax.random.normal,
        kernel=lambda key, x, t: 0.9 * x + jax.random.normal(key),
        log_potential=lambda old, x, t: log_normal(x, jnp.asarray(ys)[t]),
        num_steps=len(ys) - 1,
        log_transition=lambda old, x, t: log_normal(0.9 * old, x),
    )


def golden_posterior():
    """Means and covariances of x_0, ..., x_4 given all of `GOLDEN`, from the dense joint Gaussian."""
    n = len(GOLDEN)
    a = np.eye(n) - 0.9 * np.eye(n, k=-1)
    prior = np.linalg.inv(a.T @ a)
    gain = prior @ np.linalg.inv(prior + np.eye(n))
    return gain @ GOLDEN, prior - gain @ prior


LINE = np.array([0.5, -1.0, 0.25, 2.0], np.float32)


def walk(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


def second_order(ys):
    """x_t = x_{t-1} - x_{t-2} / 2 + noise: two steps of memory; a running sum that no density uses, a counter."""

    def step(carry, y):
        (x1, x2), total, n = carry
        x = ppl.sample("x", dist.Normal(x1 - 0.5 * x2, 1.0))
        ppl.sample("y", dist.Normal(x + 0.1 * n, 1.0), obs=y)
        return ((x, x1), total + x, n + 1), None

    ppl.scan(step, ((0.0, 0.0), 0.0, 0), ys)


def moving_average(ys):
    """y_t sees a decaying sum of all x: memory without end."""

    def step(level, y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        level = 0.8 * level + x
        ppl.sample("y", dist.Normal(level, 0.7), obs=y)
        return level, None

    ppl.scan(step, 0.0, ys)


def random_slope(ys):
    """A site before the scan that every step uses."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(x + slope, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


def two_scans(ys):
    """The second scan goes on where the first ended, and sees another site drawn between them."""
    step = lambda x, y: seen(x, y, "x", "y")
    x, _ = ppl.scan(step, ppl.sample("a", dist.Normal(0.0, 1.0)), ys[:2])
    b = ppl.sample("b", dist.Normal(x, 1.0))
    ppl.scan(lambda x, y: seen(x, y, "z", "w"), b, ys[2:])


def seen(x, y, name, data):
    x = ppl.sample(name, dist.Normal(0.9 * x, 1.0))
    ppl.sample(data, dist.Normal(x, 1.0), obs=y)
    return x, None


def independent(ys):
    """Steps that do not see each other: no memory."""

    def step(_, y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return 0.0, None

    ppl.scan(step, 0.0, ys)


def gaussian_posterior(program, ys):
    """Mean and covariance of the latent sites, from derivatives of the log-density (a quadratic)."""
    with jax.enable_x64(True):
        ys = jnp.asarray(ys, jnp.float64)
        shapes = ppl.as_program(program).simulate(jax.random.key(0), ys).choices
        flat, unflatten = ravel_pytree(shapes)
        density = lambda x: ppl.as_program(program).log_density(unflatten(x), ys)
        zero = jnp.zeros(len(flat), jnp.float64)
        cov = jnp.linalg.inv(-jax.hessian(density)(zero))
        return np.asarray(cov @ jax.grad(density)(zero)), np.asarray(cov)


def rich(ys):
    """Vectors in a plate, missing data, a branch with a site of its own, a plate before the scan that its steps take apart."""
    with ppl.plate("inputs", 4):
        u = ppl.sample("u", dist.Normal(0.0, 1.0))

    def step(x, inputs):
        y, u = inputs
        b = ppl.sample("b", dist.Bernoulli(0.4))
        far = lambda: ppl.sample("far", dist.Normal(u, 2.0))
        push = ppl.cond(b == 1, far, lambda: jnp.tanh(x).sum())
        with ppl.plate("rows", 2):
            x = ppl.sample("x", dist.MultivariateNormal(x + push, jnp.eye(2)))
            mask = jnp.array([True, False])
            ppl.sample("y", dist.Normal(x[:, 0], 1.0), obs=jnp.stack([y, y]), obs_mask=mask)
        return x, None

    ppl.scan(step, jnp.zeros((2, 2)), (ys, u))
