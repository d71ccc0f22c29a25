"""Programs with comparisons that a site decides, and their exact expectations: quadrature between the places of the comparisons.

A program is `(params) -> cost`; an exact value is a function of the same parameters, whose derivative is the oracle. Behind
`stop` only the side of a place is looked at, so that derivatives come from the ends of the pieces and from the integrand.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammainc
from jax.scipy.stats import norm

from lapilli import ppl

stop = jax.lax.stop_gradient


def pieces(loc, scale, cuts, width=9.0, num_nodes=64):
    """Nodes, weights and a point inside, of each piece of a normal law between cuts."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    low, high = loc - width * scale, loc + width * scale
    ends = jnp.sort(jnp.stack([low, *(jnp.clip(c, low, high) for c in cuts), high]))
    a, b = ends[:-1, None], ends[1:, None]
    z = (a + b) / 2 + (b - a) / 2 * nodes
    inside = jnp.broadcast_to(stop((a + b) / 2), z.shape)
    return z.ravel(), ((b - a) / 2 * weights * norm.pdf(z, loc, scale)).ravel(), inside.ravel()


def normal_mean(fn, loc, scale: Any = 1.0, cuts: Any = ()):
    """E fn(z, point in the same piece), z ~ Normal(loc, scale); `fn` is smooth between the cuts."""
    z, weights, inside = pieces(loc, scale, cuts)
    return jnp.sum(weights * jax.vmap(fn)(z, inside))


def below(loc, place):
    """P(z < place) and E[z; z < place], z ~ Normal(loc, 1)."""
    u = place - loc
    return norm.cdf(u), loc * norm.cdf(u) - norm.pdf(u)


def draw(name, loc, scale: Any = 1.0, **kwargs):
    return ppl.sample(name, dist.Normal(loc, scale), **kwargs)


# Change point: one site, compared with many data.

X = jnp.asarray([0.1, 0.3, -0.2, 1.2, 0.9, 1.1])
TIMES = jnp.arange(6) * 1.0


def change_point(p):
    z = draw("z", p["m"], jnp.exp(p["s"]))
    mu = jnp.where(TIMES * p["b"] < z, p["a"], p["b"])
    return jnp.tanh(((X - mu) ** 2).sum() - z)


def change_point_exact(p):
    def cost(z, inside):
        mu = jnp.where(TIMES * stop(p["b"]) < inside, p["a"], p["b"])
        return jnp.tanh(((X - mu) ** 2).sum() - z)

    return normal_mean(cost, p["m"], jnp.exp(p["s"]), [t * p["b"] for t in range(6)])


# Comparisons that flip in one place, written in several ways; another one elsewhere, decreasing, of the other sense.


def ties(p):
    z = draw("z", p["m"])
    t = p["t"]
    same = (z < t) + 2.0 * (2 * z >= 2 * t) + 3.0 * (jnp.exp(z) < jnp.exp(t))
    other = jax.nn.sigmoid(1 - 2 * z) >= p["u"]
    return jnp.sin(same + other) * (1 + 0.1 * z)


def ties_exact(p):
    place = (1 - jnp.log(p["u"] / (1 - p["u"]))) / 2

    def cost(z, inside):
        same = jnp.where(inside < stop(p["t"]), 4.0, 2.0)
        return jnp.sin(same + (inside <= stop(place))) * (1 + 0.1 * z)

    return normal_mean(cost, p["m"], cuts=[p["t"], place])


# Ranking of three sites with different laws.


def ranking(p):
    z1 = draw("z1", p["a"])
    z2 = ppl.sample("z2", dist.Logistic(p["b"], 0.7))
    z3 = ppl.sample("z3", dist.Uniform(p["c"], p["c"] + 2.0))
    order = 1.0 * (z1 < z2) + 2.0 * (z2 < z3) + 4.0 * (z1 < z3)
    return jnp.sin(order) + 0.1 * z1 * z3


def ranking_exact(p):
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z3 = (p["c"] + 1 + nodes)[:, None]
    total = 0.1 * p["a"] * (p["c"] + 1)
    c3 = norm.cdf(z3 - p["a"])
    for low, high, code in ((p["b"] - 14, z3, 2.0), (z3, p["b"] + 14, 0.0)):
        z2 = (low + high) / 2 + (high - low) / 2 * nodes
        density = jax.scipy.stats.logistic.pdf((z2 - p["b"]) / 0.7) / 0.7
        c2 = norm.cdf(z2 - p["a"])
        between = c3 - c2 if code else c2 - c3
        value = (
            jnp.minimum(c2, c3) * jnp.sin(5 + code)
            + between * jnp.sin(6.0 if code else 1.0)
            + (1 - jnp.maximum(c2, c3)) * jnp.sin(code)
        )
        total += (weights[:, None] / 2 * weights * (high - low) / 2 * density * value).sum()
    return total


# Thresholds in a plate, rows apart; a network between, and a cost that mixes the rows.

ROWS = jnp.asarray([0.3, -0.5, 1.2])


def rows(p):
    with ppl.plate("n", 3):
        z = draw("z", p["m"] * ROWS)
    place = jnp.tanh(ROWS * p["t"]) + 0.3 * jax.nn.softplus(p["t"] * ROWS[::-1])
    return jnp.where(z < place, z**2, jnp.cos(z)).sum()


def rows_exact(p):
    place = jnp.tanh(ROWS * p["t"]) + 0.3 * jax.nn.softplus(p["t"] * ROWS[::-1])
    one = lambda i: normal_mean(
        lambda z, inside: jnp.where(inside < stop(place[i]), z**2, jnp.cos(z)),
        p["m"] * ROWS[i],
        cuts=[place[i]],
    )
    return sum(map(one, range(3)))


def mixed_rows(p):
    with ppl.plate("n", 3):
        z = draw("z", p["m"])
    return ((z < p["t"] * ROWS) * z.sum()).sum()


def mixed_rows_exact(p):
    mass, mean = below(p["m"], p["t"] * ROWS)
    return (mean + 2 * p["m"] * mass).sum()


def rows_by_data(p):
    """Every row is compared with three data, and the rows meet."""
    with ppl.plate("n", 3):
        z = draw("z", p["m"])
    is_below = z[:, None] < p["t"] * ROWS + p["c"] * jnp.arange(3)[:, None]
    return jnp.cos(is_below.sum(1) + 0.3 * z.sum()).sum()


def rows_by_data_exact(p):
    factor = jnp.exp(2 * (0.3j * p["m"] - 0.045))  # the two other rows
    total = 0.0
    for i in range(3):
        places = p["t"] * ROWS + p["c"] * i
        cost = lambda z, inside, places=places: jnp.exp(
            1j * ((inside < stop(places)).sum() + 0.3 * z)
        )
        total += (factor * normal_mean(cost, p["m"], cuts=list(places))).real
    return total


# Censoring: a duration beyond the end of the study counts by its survival only.


def censoring(p):
    z = ppl.sample("z", dist.Gamma(p["a"], p["b"]))
    return jnp.where(jnp.log(z) < p["t"], z, 2.0)


def censoring_exact(p):
    at = p["b"] * jnp.exp(p["t"])
    mean = p["a"] / p["b"] * gammainc(p["a"] + 1, at)
    return mean + 2 * (1 - gammainc(p["a"], at))


# Sites downstream whose laws jump, and upstream sites that set the place.


def downstream(p):
    z = draw("z", p["m"])
    is_below = z < p["t"]
    b = ppl.sample("b", dist.Bernoulli(jnp.where(is_below, jax.nn.sigmoid(p["a"] + z), 0.3)))
    w = draw("w", jnp.where(is_below, z, p["a"]), strategy="reinforce")
    return jnp.where(b == 1, jnp.cos(w + z), 0.2 * w + is_below)


def downstream_exact(p):
    def cost(z, inside):
        is_below = inside < stop(p["t"])
        q = jnp.where(is_below, jax.nn.sigmoid(p["a"] + z), 0.3)
        mu = jnp.where(is_below, z, p["a"])
        return q * jnp.cos(mu + z) * jnp.exp(-0.5) + (1 - q) * (0.2 * mu + is_below)

    return normal_mean(cost, p["m"], cuts=[p["t"]])


def upstream(p):
    b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(p["a"])))
    r = draw("r", p["m"], 0.5)
    z = draw("z", r * 0.5 + b)
    place = jnp.where(b == 1, p["t"], -p["t"]) + r * p["a"]
    return jnp.where(2 * z < place, z * r, b + z)


def upstream_exact(p):
    def given(b):
        def cost(r, _):
            loc = r * 0.5 + b
            place = (jnp.where(b == 1, p["t"], -p["t"]) + r * p["a"]) / 2
            mass, mean = below(loc, place)
            return r * mean + b * (1 - mass) + loc - mean

        return normal_mean(cost, p["m"], 0.5)

    q = jax.nn.sigmoid(p["a"])
    return q * given(1.0) + (1 - q) * given(0.0)


def chain(p):
    """A site whose law a comparison decides, and which is compared with the first."""
    a = draw("a", p["m"])
    is_below = a < p["t"]
    b = draw("b", jnp.where(is_below, a, -a))
    return jnp.where(b < a * p["t"], b, 1.0) * (1 + is_below)


def chain_exact(p):
    def cost(a, inside):
        is_below = inside < stop(p["t"])
        mass, mean = below(jnp.where(is_below, a, -a), a * p["t"])
        return (mean + 1 - mass) * (1.0 + is_below)

    return normal_mean(cost, p["m"], cuts=[p["t"]])
