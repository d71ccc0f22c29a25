"""Sites eliminated call by call: what one call leaves is read by the next one, in any order, as by one call."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

RNG = np.random.default_rng(3)
Y = RNG.normal(size=6) + 1.0
Y2 = RNG.normal(size=(4, 3))
GROUP = np.array([0, 0, 2, 1, 1, 2])
OTHER = np.array([1, 0, 1, 1, 0, 0])
SEEN = np.array([1, 1, 0, 1, 1, 1], bool)


def grouped(y):
    mean = ppl.sample("mean", dist.Normal(0.0, 10.0))
    with ppl.plate("groups", 3):
        effect = ppl.sample("effect", dist.Normal(mean, 1.0))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(effect[GROUP], 0.5), obs=y)


def crossed(y):
    """Rows meet in each of two groupings, and some are missing."""
    level = ppl.sample("level", dist.Normal(0.0, 3.0))
    with ppl.plate("groups", 3):
        effect = ppl.sample("effect", dist.Normal(level, 1.0))
    with ppl.plate("others", 2):
        other = ppl.sample("other", dist.Normal(0.0, 0.7))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(effect[GROUP] + other[OTHER], 0.5), obs=y, obs_mask=SEEN)


def series(y):
    """A chain around what stands outside, and a statement after it."""
    slope = ppl.sample("slope", dist.Normal(0.0, 2.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.8 * x + 0.3 * slope, 0.5))
        ppl.sample("y", dist.Normal(x, 0.4), obs=y)
        return x, None

    last, _ = ppl.scan(step, ppl.sample("start", dist.Normal(0.0, 1.0)), y)
    ppl.sample("end", dist.Normal(last - slope, 0.3), obs=0.2)


def events(y):
    """Rows of a plate with an event each, a mean for all, and noise that they share."""
    mean = ppl.sample("mean", dist.Normal(jnp.zeros(3), 2.0).to_event(1))
    shared = ppl.sample("shared", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 4):
        row = ppl.sample("row", dist.MultivariateNormal(mean, jnp.eye(3) + 0.4))
        ppl.sample("y", dist.Normal(row + shared, 0.5).to_event(1), obs=y)
        ppl.sample("z", dist.Normal(row.sum(-1), 0.5), obs=y[:, 0])


def inner_rows(y):
    """Plates within plates: the rows of the first integral are not those of the second."""
    with ppl.plate("columns", 3, dim=-1):
        mean = ppl.sample("mean", dist.Normal(0.0, 2.0))
    with ppl.plate("lines", 4, dim=-2):
        line = ppl.sample("line", dist.Normal(0.0, 1.0))
        with ppl.plate("columns", 3, dim=-1):
            cell = ppl.sample("cell", dist.Normal(mean + line, 0.5))
            ppl.sample("y", dist.Normal(cell, 0.3), obs=y)


def switched(y):
    """With a discrete site beside them."""
    mean = ppl.sample("mean", dist.Normal(0.0, 2.0))
    k = ppl.sample("k", dist.Bernoulli(0.3))
    with ppl.plate("rows", len(y)):
        effect = ppl.sample("effect", dist.Normal(mean + k, 1.0))
        ppl.sample("y", dist.Normal(effect, 0.5), obs=y)


PROGRAMS = {
    grouped: (["mean", "effect"], Y),
    crossed: (["level", "effect", "other"], Y),
    series: (["slope", "x", "start"], Y),
    events: (["mean", "shared", "row"], Y2),
    inner_rows: (["mean", "line", "cell"], Y2),
    switched: (["mean", "effect", "k"], Y),
}
ORDERS = [
    (program, order)
    for program, (sites, _) in PROGRAMS.items()
    for order in itertools.permutations(sites)
]


def in_turn(program, order):
    for name in order:
        program = ppl.eliminate(program, name)
    return program


@pytest.mark.fast("grouped-mean-effect")  # a chain takes longest to compile
@pytest.mark.parametrize(
    ("program", "order"), ORDERS, ids=lambda x: x.__name__ if callable(x) else "-".join(x)
)
def test_calls_in_any_order_are_one_call(program, order):
    y = PROGRAMS[program][1]

    def run(eliminated):
        has_mode = "k" not in order  # no mode of summed and integrated sites together
        return eliminated.log_density({}, y), eliminated.mode({}, y)[0] if has_mode else {}

    with jax.enable_x64(True):
        log_density, found = jax.jit(lambda: run(in_turn(program, order)))()
        exact, want = jax.jit(lambda: run(ppl.eliminate(program, order)))()
    np.testing.assert_allclose(log_density, exact, rtol=1e-9)
    for name in found:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-6, atol=1e-9)
