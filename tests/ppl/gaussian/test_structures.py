"""Normal sites integrated out of programs of many structures, against the quadratic form that the whole program is in them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _dense_normal import check_integral

from lapilli import ppl

RNG = np.random.default_rng(3)
X = RNG.normal(size=(9, 3))
Y = RNG.normal(size=9)
Y2 = RNG.normal(size=(6, 4))
MASK = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0], bool)
GROUP = np.array([0, 2, 1, 1, 0, 2, 2, 3, 3])


def chain_of_three():
    a = ppl.sample("a", dist.Normal(1.0, 2.0))
    b = ppl.sample("b", dist.Normal(0.5 * a - 1.0, 0.7))
    c = ppl.sample("c", dist.Normal(a + 2.0 * b, 1.3))
    ppl.sample("y", dist.Normal(b - c, 0.4), obs=0.3)
    ppl.sample("w", dist.Normal(jnp.stack([a, c]), 1.1).to_event(1), obs=jnp.array([0.2, -0.4]))


def regression(x, y):
    beta = ppl.sample("beta", dist.Normal(0.0, jnp.array([1.0, 2.0, 3.0])).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def wide_regression(x, y):
    beta = ppl.sample("beta", dist.MultivariateNormal(jnp.ones(9), 0.1 * jnp.eye(9) + 0.5))
    ppl.sample("y", dist.Normal(x.T @ beta, 0.5).to_event(1), obs=y[:3])


def random_effects(y):
    with ppl.plate("rows", y.shape[0]):
        a = ppl.sample("a", dist.Normal(0.3, 1.5))
        ppl.sample("y", dist.Normal(2.0 * a, 0.5), obs=y)
        ppl.sample(
            "v", dist.Normal(jnp.stack([a, -a], -1), 0.8).to_event(1), obs=jnp.stack([y, y], -1)
        )


def panel(y):
    with ppl.plate("rows", y.shape[0], dim=-2):
        a = ppl.sample("a", dist.Normal(0.3, 1.5))
        with ppl.plate("columns", y.shape[1], dim=-1):
            ppl.sample("y", dist.Normal(a, 0.5), obs=y)


def panel_by_columns(y):
    with ppl.plate("columns", y.shape[1], dim=-1):
        a = ppl.sample(
            "a", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.4], [0.4, 2.0]]))
        )
        with ppl.plate("rows", y.shape[0], dim=-2):
            ppl.sample("y", dist.Normal(a.sum(-1), 0.5), obs=y)


def crossed(y):
    with ppl.plate("rows", y.shape[0], dim=-2):
        a = ppl.sample("a", dist.Normal(0.3, 1.5))
    with ppl.plate("columns", y.shape[1], dim=-1):
        b = ppl.sample("b", dist.Normal(0.3, 0.5))
    with ppl.plate("rows", y.shape[0], dim=-2), ppl.plate("columns", y.shape[1], dim=-1):
        ppl.sample("y", dist.Normal(a + b, 0.5), obs=y)


def grouped(group, y):
    mean = ppl.sample("mean", dist.Normal(0.0, 3.0))
    with ppl.plate("groups", 4):
        a = ppl.sample("a", dist.Normal(mean, 1.5))
    with ppl.plate("rows", y.shape[0]):
        ppl.sample("y", dist.Normal(a[group], 0.5), obs=y)


def schools(y):
    mean = ppl.sample("mean", dist.Normal(0.0, 3.0))
    with ppl.plate("rows", y.shape[0]):
        a = ppl.sample("a", dist.Normal(mean, 1.5))
        ppl.sample("y", dist.Normal(a, 0.5), obs=y)


def rows_that_meet(y):
    with ppl.plate("rows", y.shape[0]):
        a = ppl.sample("a", dist.Normal(0.0, 1.5))
    ppl.sample("y", dist.Normal(jnp.cumsum(a)[::-1], 0.5).to_event(1), obs=y)


def masked_rows(y, mask):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.5))
    with ppl.plate("rows", y.shape[0]), numpyro.handlers.mask(mask=mask):
        ppl.sample("y", dist.Normal(slope * jnp.arange(y.shape[0]), 0.5), obs=y)


def missing_cells(y, mask):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.5))
    with ppl.plate("rows", y.shape[0]):
        a = ppl.sample("a", dist.Normal(slope, 1.0))
        ppl.sample("y", dist.Normal(a, 0.5).mask(mask), obs=y)


def correlated_noise(y):
    a = ppl.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    tril = jnp.array([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.3, 0.1, 0.6]])
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.MultivariateNormal(jnp.flip(a), scale_tril=tril), obs=y.reshape(3, 3))


def left_choice(y):
    """A site that is left stands between the integrated one and the data, and moves a scale."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    w = ppl.sample("w", dist.Normal(a, 0.5))
    b = ppl.sample("b", dist.Normal(w * a, 0.2))
    ppl.sample("y", dist.Normal(a + b, jnp.exp(w)), obs=y[0])


STRAIGHT = [
    (chain_of_three, ["a", "b", "c"], {}, ()),
    (regression, ["beta"], {}, (X, Y)),
    (wide_regression, ["beta"], {}, (X, Y)),
    (random_effects, ["a"], {}, (Y,)),
    (panel, ["a"], {}, (Y2,)),
    (panel_by_columns, ["a"], {}, (Y2,)),
    (crossed, ["a", "b"], {}, (Y2,)),
    (grouped, ["a", "mean"], {}, (GROUP, Y)),
    (grouped, ["a"], {"mean": 0.4}, (GROUP, Y)),
    (schools, ["a", "mean"], {}, (Y,)),
    (schools, ["a"], {"mean": 0.4}, (Y,)),
    (schools, ["mean"], {"a": Y / 2}, (Y,)),
    (rows_that_meet, ["a"], {}, (Y,)),
    (masked_rows, ["slope"], {}, (Y, MASK)),
    (missing_cells, ["slope", "a"], {}, (Y, MASK)),
    (missing_cells, ["a"], {"slope": 0.2}, (Y, MASK)),
    (correlated_noise, ["a"], {}, (Y,)),
    (left_choice, ["a", "b"], {"w": 0.3}, (Y,)),
]


def case(*values):
    """A variant named after the program and what of it is integrated."""
    return pytest.param(*values, id=f"{values[0].__name__}-{'-'.join(values[1])}")


@pytest.mark.fast("regression-beta")
@pytest.mark.parametrize(("program", "sites", "choices", "args"), [case(*x) for x in STRAIGHT])
def test_straight_code_and_plates(program, sites, choices, args):
    check_integral(program, sites, choices, args)


def level(y):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, None

    ppl.scan(step, ppl.sample("start", dist.Normal(0.0, 1.0)), y)


def structural(y):
    """Level, slope and a season of four, each with noise of its own; the state is handed on as a tuple."""

    def step(state, y):
        level, slope, season = state
        slope = ppl.sample("slope", dist.Normal(slope, 0.2))
        level = ppl.sample("level", dist.Normal(level + slope, 0.3))
        new = ppl.sample("season", dist.Normal(-season.sum(), 0.1))
        ppl.sample("y", dist.Normal(level + new, 0.4), obs=y)
        return (level, slope, jnp.concatenate([new[None], season[:-1]])), None

    ppl.scan(step, (0.0, 0.0, jnp.zeros(3)), y)


def autoregression(y):
    phi = jnp.array([0.5, -0.3, 0.2])

    def step(past, y):
        z = ppl.sample("z", dist.Normal(past @ phi, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return jnp.concatenate([z[None], past[:-1]]), z

    ppl.scan(step, jnp.zeros(3), y)


def time_varying(a, y):
    def step(z, x):
        a, y = x
        z = ppl.sample("z", dist.MultivariateNormal(a @ z, jnp.array([[0.5, 0.2], [0.2, 0.4]])))
        ppl.sample("y", dist.Normal(z, 0.3 + jnp.abs(y)).to_event(1), obs=y)
        return z, None

    ppl.scan(step, jnp.ones(2), (a, y))


def with_regression(x, y):
    beta = ppl.sample("beta", dist.Normal(jnp.zeros(3), 1.0).to_event(1))

    def step(z, x):
        x, y = x
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z + x @ beta, 0.3), obs=y)
        return z, None

    z, _ = ppl.scan(step, 0.0, (x, y))
    ppl.sample("end", dist.Normal(z - beta[0], 0.1), obs=0.2)


def passengers(y):
    """A site made before the scan is read after it, together with the last state."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))

    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, None

    z, _ = ppl.scan(step, a, y)
    ppl.sample("end", dist.Normal(z + 2 * a, 0.1), obs=0.2)


def many_series(y):
    def step(z, y):
        with ppl.plate("series", 4):
            z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
            ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, None

    ppl.scan(step, jnp.zeros(4), y)


def plate_around(y):
    with ppl.plate("series", 4):
        start = ppl.sample("start", dist.Normal(0.0, 1.0))

        def step(z, y):
            z = ppl.sample(
                "z",
                dist.MultivariateNormal(z @ jnp.array([[0.9, 0.1], [0.0, 0.8]]), 0.3 * jnp.eye(2)),
            )
            ppl.sample("y", dist.Normal(z.sum(-1), 0.3), obs=y)
            return z, None

        ppl.scan(step, jnp.stack([start, -start], -1), y)


def coupled_series(y):
    def step(z, y):
        with ppl.plate("series", 4):
            z = ppl.sample("z", dist.Normal(0.5 * z + 0.4 * z.mean(), 0.5))
            ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return z, None

    ppl.scan(step, jnp.zeros(4), y)


def gaps(y, mask):
    def step(z, x):
        y, seen = x
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3).mask(seen), obs=y)
        return z, None

    ppl.scan(step, 0.0, (y, mask))


def two_chains(y):
    def step(state, y):
        a, b = state
        a = ppl.sample("a", dist.Normal(0.9 * a, 0.5))
        b = ppl.sample("b", dist.Normal(0.3 * b + 0.2 * a, 0.5))
        ppl.sample("y", dist.Normal(a, 0.3), obs=y)
        ppl.sample("w", dist.Normal(a - b, 0.3), obs=-y)
        return (a, b), None

    ppl.scan(step, (0.0, 1.0), y)


def nested(y):
    def outer(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))

        def inner(u, y):
            u = ppl.sample("u", dist.Normal(u, 0.2))
            ppl.sample("y", dist.Normal(u, 0.3), obs=y)
            return u, None

        ppl.scan(inner, z, y)
        return z, None

    ppl.scan(outer, 0.0, y)


def fresh_every_step(y):
    """No state: the sites of a step are read in it only."""

    def step(carry, y):
        z = ppl.sample("z", dist.Normal(carry, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return carry + 0.1, z

    ppl.scan(step, 0.0, y)


def fed_back(y):
    """The observation of a step moves the next state."""

    def step(state, y):
        z, last = state
        z = ppl.sample("z", dist.Normal(0.5 * z + 0.3 * last, 0.5))
        seen = ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return (z, seen), None

    ppl.scan(step, (0.0, 0.0), y)


def raw_loops(y):
    """Loops and branches of JAX between sites, and a branch of the program that has no say in them."""
    a = ppl.sample("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    b, path = jax.lax.scan(lambda c, x: (0.5 * c + x, c.sum()), a, jnp.ones((3, 2)))
    c = jax.lax.cond(y[0] > 0, lambda: b, lambda: 2.0 * b)
    c = ppl.cond(y[0] > 0, lambda c: c + 1.0, lambda c: c, c)
    c = jax.vmap(lambda v: jnp.where(y[1] > 0, v, -v))(c)
    ppl.sample("y", dist.Normal(c.sum() + path, 0.3).to_event(1), obs=y[:3])


SERIES = [
    (level, ["z", "start"], {}, (Y,)),
    (structural, ["level", "slope", "season"], {}, (Y,)),
    (autoregression, ["z"], {}, (Y,)),
    (time_varying, ["z"], {}, (RNG.normal(size=(6, 2, 2)) / 2, Y2[:, :2])),
    (with_regression, ["z", "beta"], {}, (X, Y)),
    (with_regression, ["z"], {"beta": X[0]}, (X, Y)),
    (passengers, ["z", "a"], {}, (Y,)),
    (many_series, ["z"], {}, (Y2,)),
    (plate_around, ["z", "start"], {}, (Y2,)),
    (coupled_series, ["z"], {}, (Y2,)),
    (gaps, ["z"], {}, (Y, MASK)),
    (two_chains, ["a", "b"], {}, (Y,)),
    (nested, ["z", "u"], {}, (Y2,)),
    (nested, ["u"], {"z": Y[:6]}, (Y2,)),
    (fresh_every_step, ["z"], {}, (Y,)),
    (fed_back, ["z"], {}, (Y,)),
    (raw_loops, ["a"], {}, (Y,)),
]


@pytest.mark.fast("time_varying-z")
@pytest.mark.parametrize(("program", "sites", "choices", "args"), [case(*x) for x in SERIES])
def test_series(program, sites, choices, args):
    check_integral(program, sites, choices, args)


@pytest.mark.slow  # two filters and their gradients
@pytest.mark.parametrize(
    ("program", "sites", "choices", "args"),
    [case(*x) for x in SERIES if x[0] not in (nested, raw_loops)],
)
def test_series_in_parallel(program, sites, choices, args):
    """Equal to the filter step by step, which is held against the oracle above."""
    with jax.enable_x64(True):
        wide = lambda x: jnp.asarray(x, float) if np.asarray(x).dtype.kind == "f" else x
        choices, args = jax.tree.map(wide, (choices, args))

        @jax.jit
        def run(choices, *args):
            of = lambda parallel: ppl.eliminate(program, sites, parallel=parallel).log_density
            return [jax.value_and_grad(of(p), argnums=1)(choices, *args) for p in (False, True)]

        (value, slope), (parallel, parallel_slope) = run(choices, *args)
        np.testing.assert_allclose(parallel, value, rtol=1e-11)
        np.testing.assert_allclose(parallel_slope, slope, rtol=1e-9, atol=1e-12)
