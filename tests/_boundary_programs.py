"""Programs with comparisons that a site decides, and their exact expectations: quadrature between the places of the comparisons.

A program is `(params) -> cost`; an exact value is a function of the same parameters, whose derivative is the oracle. Behind
`stop` only the side of a place is looked at, so that derivatives come from the ends of the pieces and from the integrand.
"""

import itertools

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


def normal_mean(fn, loc, scale=1.0, cuts=()):
    """E fn(z, point in the same piece), z ~ Normal(loc, scale); `fn` is smooth between the cuts."""
    z, weights, inside = pieces(loc, scale, cuts)
    return jnp.sum(weights * jax.vmap(fn)(z, inside))


def below(loc, place):
    """P(z < place) and E[z; z < place], z ~ Normal(loc, 1)."""
    u = place - loc
    return norm.cdf(u), loc * norm.cdf(u) - norm.pdf(u)


def draw(name, loc, scale=1.0, **kwargs):
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
