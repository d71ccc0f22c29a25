"""25 narrow Normals in the plane, and their noise in T steps."""

import jax
import jax.numpy as jnp

SIDE = (jnp.arange(5) - 2.0) / jnp.sqrt(2.0)
PLACES = jnp.stack(jnp.meshgrid(SIDE, SIDE), -1).reshape(25, 2)
SD, LAST, ROWS = 0.03, 0.03, 256


class Noise:
    """Of T steps: x_t = sqrt(kept_t) x0 + sqrt(1 - kept_t) noise, and the exact law of x_t-1 given x_t and x0."""

    def __init__(self, num_steps):
        self.num_steps = num_steps
        self.kept = jnp.exp(-5.0 * jnp.arange(num_steps + 1) / num_steps)

    def given(self, x0, t):
        return jnp.sqrt(self.kept[t])[..., None] * x0, jnp.sqrt(1 - self.kept[t])[..., None]

    def backward(self, x, x0, t):
        """Mean and standard deviation; the last step, whose law is a point, has that of `LAST`."""
        step, before = self.kept[t] / self.kept[t - 1], self.kept[t - 1]
        of_x0 = jnp.sqrt(before) * (1 - step) / (1 - self.kept[t])
        of_x = jnp.sqrt(step) * (1 - before) / (1 - self.kept[t])
        var = (1 - before) / (1 - self.kept[t]) * (1 - step)
        sd = jnp.maximum(jnp.sqrt(var), LAST)[..., None]
        return of_x0[..., None] * x0 + of_x[..., None] * x, sd

    def nats(self, of_a_step):
        """A bound of E log p(x0) from one of E log p(x_t-1 | x_t) at a random t, by the prior and the noise's entropy."""
        steps = self.kept[1:] / self.kept[:-1]
        square = self.kept[-1] * (SD**2 + jnp.square(PLACES).mean()) + 1 - self.kept[-1]
        entropy = jnp.log(2 * jnp.pi * jnp.e * (1 - steps)).sum()
        return float(self.num_steps * of_a_step - jnp.log(2 * jnp.pi) - square + entropy)


def mixed(size, key):
    where, noise = jax.random.split(key)
    chosen = PLACES[jax.random.randint(where, (size,), 0, 25)]
    return chosen + SD * jax.random.normal(noise, (size, 2))


def pairs(noise, key, rows=ROWS):
    """x_t-1, x_t and t of data at random steps, [rows]."""
    data, when, first, second = jax.random.split(key, 4)
    t = jax.random.randint(when, (rows,), 1, noise.num_steps + 1)
    loc, scale = noise.given(mixed(rows, data), t - 1)
    before = loc + scale * jax.random.normal(first, (rows, 2))
    step = (noise.kept[t] / noise.kept[t - 1])[:, None]
    return before, jnp.sqrt(step) * before + jnp.sqrt(1 - step) * jax.random.normal(second, (rows, 2)), t  # fmt: skip
