"""More programs with comparisons that a site decides: control flow, plates, particles; and their exact expectations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _boundary_programs import ROWS, below, draw, normal_mean, stop
from jax.scipy.stats import norm

from lapilli import ppl

# Control flow that outcomes enter.


def branches(p):
    z = draw("z", p["m"])
    flip = lambda: (
        ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(z)), infer={"strategy": "reinforce"}) * z
    )
    chosen = ppl.cond(z < p["t"], flip, lambda: p["t"] * 1.0)
    return chosen + jax.lax.cond(z > 2 * p["t"], lambda: z, lambda: p["t"] ** 2)


def branches_exact(p):
    def cost(z, inside):
        chosen = jnp.where(inside < stop(p["t"]), z * jax.nn.sigmoid(z), p["t"])
        return chosen + jnp.where(inside > 2 * stop(p["t"]), z, p["t"] ** 2)

    return normal_mean(cost, p["m"], cuts=[p["t"], 2 * p["t"]])


def steps(p):
    """Outcomes enter a scan with sites of its own."""
    z = draw("z", p["m"])

    def step(c, is_below):
        b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(c + is_below)), strategy="reinforce")
        return c * 0.5 + b, b * (c + is_below)

    c, y = ppl.scan(step, z, z < jnp.arange(3) * p["t"])
    return y.sum() + c


def steps_exact(p):
    def cost(z, inside):
        total = 0.0
        for draws in itertools.product((0, 1), repeat=3):
            c, weight, value = z, 1.0, 0.0
            for i, b in enumerate(draws):
                is_below = 1.0 * (inside < i * stop(p["t"]))
                q = jax.nn.sigmoid(c + is_below)
                weight = weight * (q if b else 1 - q)
                value, c = value + b * (c + is_below), c * 0.5 + b
            total += weight * (value + c)
        return total

    return normal_mean(cost, p["m"], cuts=[i * p["t"] for i in range(3)])


# Runs that meet in one bound.


def bound(p):
    def lane():
        with ppl.plate("n", 2):
            z = draw("z", jnp.stack([p["m"], 2 * p["m"]]))
        return (jnp.where(z < p["t"], p["a"], 0.0) + 0.2 * z).sum()

    return jax.nn.logsumexp(ppl.particles(2)(lane)())


def bound_exact(p):
    nodes, weights = np.polynomial.legendre.leggauss(24)

    def row(loc):
        parts = []
        for a, b, value in ((loc - 7, p["t"], p["a"]), (p["t"], loc + 7, 0.0)):
            z = (a + b) / 2 + (b - a) / 2 * nodes
            parts.append((weights * norm.pdf(z - loc) * (b - a) / 2, value + 0.2 * z))
        return [jnp.concatenate(x) for x in zip(*parts, strict=True)]

    (w1, v1), (w2, v2) = row(p["m"]), row(2 * p["m"])
    w, v = (w1[:, None] * w2).ravel(), (v1[:, None] + v2).ravel()
    return (w[:, None] * w * jnp.logaddexp(v[:, None], v)).sum()


def subsampled(p):
    data = jnp.asarray([0.1, 0.5, -0.4, 0.8])
    with ppl.plate("n", 4, subsample_size=2) as i:
        z = draw("z", p["m"])
    return 2 * jnp.where(z < p["t"] * data[i], z, 1.0).sum()


def subsampled_exact(p):
    mass, mean = below(p["m"], p["t"] * jnp.asarray([0.1, 0.5, -0.4, 0.8]))
    return (mean + 1 - mass).sum()


# Places of elements.


def mixed_shapes(p):
    """Comparisons of one plate in several shapes: elements, all pairs with data, reversed, one of them, across."""
    with ppl.plate("n", 3):
        z = draw("z", p["m"])
    own = (z < p["t"]).sum()
    data = (z[:, None] < p["t"] * ROWS).sum(1) @ jnp.arange(3.0)
    back = (2 * z[::-1] > p["c"]) @ jnp.arange(3.0)
    one = z[1] < -p["t"]
    across = (z[None, :] + 0 * ROWS[:, None] < p["c"] * ROWS[:, None]).sum(0) @ ROWS
    return jnp.cos(own + data + 0.5 * back + one + 0.3 * across + 0.2 * z.sum())


def mixed_shapes_exact(p):
    product = 1.0  # of characteristic functions, row by row
    for i in range(3):
        places = [p["t"], *(p["t"] * ROWS), p["c"] / 2, -p["t"], *(p["c"] * ROWS)]

        def factor(z, inside, i=i):
            t, c = stop(p["t"]), stop(p["c"])
            angle = 1.0 * (inside < t) + i * (inside < t * ROWS).sum()
            angle += 0.5 * (2 - i) * (inside > c / 2) + (i == 1) * (inside < -t)
            return jnp.exp(1j * (angle + 0.3 * ROWS[i] * (inside < c * ROWS).sum() + 0.2 * z))

        product *= normal_mean(factor, p["m"], cuts=places)
    return product.real


def one_event(p):
    z = ppl.sample("z", dist.Normal(p["m"], 1.0).expand([3]).to_event(1))
    return ((z < p["t"] * ROWS) * z.sum()).sum()


def nested_plates(p):
    z = draw("z", p["m"] * jnp.ones((2, 1)))
    with ppl.plate("a", 2, dim=-2), ppl.plate("b", 3, dim=-1):
        y = draw("y", z)
    return (1.0 * (z < p["t"])).sum() * (y < p["t"] * ROWS).sum()


def nested_plates_exact(p):
    inner = lambda z: norm.cdf(p["t"] * ROWS - z).sum()
    same = normal_mean(lambda z, i: (i < stop(p["t"])) * inner(z), p["m"], cuts=[p["t"]])
    other = norm.cdf(p["t"] - p["m"]) * normal_mean(lambda z, _: inner(z), p["m"])
    return 2 * (same + other)


def hidden_states(p):
    """A change point in a chain that is summed by a forward recursion."""
    z = draw("z", p["m"])

    def step(k, is_below):
        changed = jnp.where(is_below, 0.2, jax.nn.sigmoid(z))
        k = ppl.sample("k", dist.Bernoulli(jnp.where(k == 1, 0.7, changed)))
        return k, k * (1.0 + is_below) * z

    return ppl.scan(step, jnp.int32(0), z < jnp.arange(4) * p["t"])[1].sum()


def hidden_states_exact(p):
    def cost(z, inside):
        q = total = 0.0
        for i in range(4):
            is_below = inside < i * stop(p["t"])
            q = q * 0.7 + (1 - q) * jnp.where(is_below, 0.2, jax.nn.sigmoid(z))
            total += q * (1.0 + is_below) * z
        return total

    return normal_mean(cost, p["m"], cuts=[i * p["t"] for i in range(4)])


@jax.jit
def _inner(z, t):
    return jax.jit(lambda z: jnp.where(z < t, z, 1.0))(2 * z)


def nested_calls(p):
    with ppl.plate("n", 3):
        z = draw("z", p["m"])
    return _inner(z[0], p["t"]) + jax.vmap(lambda z, r: jnp.where(z < r, z * r, 1.0))(z, ROWS).sum()


def nested_calls_exact(p):
    halves = lambda z, inside: jnp.where(2 * inside < stop(p["t"]), 2 * z, 1.0)
    total = normal_mean(halves, p["m"], cuts=[p["t"] / 2])
    for r in ROWS:
        mass, mean = below(p["m"], r)
        total += r * mean + 1 - mass
    return total
