"""The boundary strategy against closed forms and quadrature.

About 300 comparisons in all, slow ones included: a correct estimator fails one with probability 0.2%. Biases of 5% of an
estimate's standard deviation are caught with N = 20,000, and the boundary terms here are far larger.
"""

import _boundary_programs as programs
import _boundary_structures as structures
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _boundary_programs import (
    change_point,
    change_point_exact,
    mixed_rows,
    rows,
)

from _stats import assert_unbiased
from lapilli import ppl
from lapilli.ppl.distributions._distribution_functions import LAWS as FUNCTIONS

pytestmark = pytest.mark.one_in(2)

PROGRAMS = {**vars(programs), **vars(structures)}
KEPT = ppl.Boundary("reinforce")
MTA = {"m": 0.2, "t": 0.5, "a": 0.4}
MT = {"m": 0.2, "t": 0.6}
MSAB = {"m": 2.3, "s": 0.2, "a": 0.2, "b": 1.0}
ABC = {"a": 0.1, "b": 0.3, "c": -0.5}
ABT = {"a": 1.7, "b": 1.1, "t": 0.2}
LAWS = {
    "Normal": lambda p: dist.Normal(p[0], 1 + p[1]),
    "Logistic": lambda p: dist.Logistic(p[0], 1 + p[1]),
    "Laplace": lambda p: dist.Laplace(p[0], 1 + p[1]),
    "Gumbel": lambda p: dist.Gumbel(p[0], 1 + p[1]),
    "Cauchy": lambda p: dist.Cauchy(p[0], 1 + p[1]),
    "Gamma": lambda p: dist.Gamma(1.5 + p[0], 1 + p[1]),
    "Exponential": lambda p: dist.Exponential(1 + p[1]),
    "Uniform": lambda p: dist.Uniform(p[0] - 1, 2 + p[1]),
}


def gradients(fn, params, strategies, num=20_000, seed=0):
    """Estimates of the gradient: parameter -> (num, *shape)."""
    expectation = ppl.expectation(fn, strategies=strategies)
    params = jax.tree.map(jnp.float32, params)
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.jit(jax.vmap(lambda key: expectation.grad(params, key)))(keys)


def check(fn, exact, params, strategies, num=20_000, seed=0):
    found = gradients(fn, params, strategies, num, seed)
    with jax.enable_x64(True):
        target = jax.grad(exact)({k: jnp.float64(v) for k, v in params.items()})
    for name in params:
        assert_unbiased(found[name], target[name], names=[name])


@pytest.mark.slow
@pytest.mark.parametrize("base", ["reparam", "reinforce"])
def test_steps_of_each_law(base):
    """E[1(z < t)] = F(t): the derivative in t is exact in every draw. One program for all laws, each with its own parameters."""
    names = [n for n in LAWS if n != "Uniform" or base == "reparam"]  # its support moves

    def cost(params):
        return sum(
            jnp.where(ppl.sample(n, LAWS[n](params[n])) < params[n][2], 1.0, 0.0) for n in names
        )

    p = jnp.asarray([0.1, 0.2, 0.7])
    found = gradients(cost, dict.fromkeys(names, p), ppl.Boundary(base))
    for n in names:
        target = np.asarray(jax.grad(lambda p, n=n: LAWS[n](p).cdf(p[2]))(p))
        assert_unbiased(found[n][:, :2], target[:2], names=[f"{n} {i}" for i in range(2)])
        np.testing.assert_allclose(found[n][:, 2], target[2], rtol=2e-5)


def test_kink_in_the_middle_of_a_law():
    """Distribution functions are put together from halves there; parameters often start there."""
    cost = lambda p: jnp.where(ppl.sample("z", dist.Laplace(p, 1.0)) < 0, 1.0, 0.0)
    assert np.allclose(gradients(cost, 0.0, "boundary", num=10), -0.5)


@pytest.mark.parametrize("name", LAWS)
def test_derivative_of_the_distribution_function(name):
    """Against central differences of NumPyro's, and finite far out."""
    law = FUNCTIONS[name]
    with jax.enable_x64(True):
        points = [(x, *np.linspace(0.4, 1.3, len(law.names))) for x in (0.5, 0.9, 1.2)]
        for point in points:
            found = jax.grad(lambda at: law.flow(*at))(tuple(point))
            for i, slope in enumerate(found):
                low, high = list(point), list(point)
                low[i], high[i] = low[i] - 1e-5, high[i] + 1e-5
                change = law.cls(*high[1:]).cdf(high[0]) - law.cls(*low[1:]).cdf(low[0])
                np.testing.assert_allclose(slope, change / 2e-5, rtol=1e-5, atol=1e-7)
    if name not in ("Uniform", "Exponential", "Gamma"):
        far = jax.grad(lambda at: law.flow(*at))((-100.0, 0.3, 0.5))
        assert np.isfinite(far).all()


def test_place_beyond_the_support():
    """The distribution function is flat there; what the support's end itself does is pathwise."""

    def cost(p):
        u = ppl.sample("u", dist.Uniform(0.0, 1.0 + p))
        e = ppl.sample("e", dist.Exponential(1.0 + p))
        return jnp.where(u < 3.0 + p, 1.0, 0.0) + jnp.where(e < -p, 1.0, 0.0) + u

    found = gradients(cost, 0.3, "boundary", num=1000)
    assert_unbiased(found, 0.5)


def test_cost_that_overflows_where_there_is_no_density():
    """At the place the cost is infinite, but nothing ever comes near."""

    def cost(p):
        z = ppl.sample("z", dist.Normal(p, 1.0))
        g = ppl.sample("g", dist.Gamma(2.0, 1.0 + p))
        late = jnp.where(z < 1000 * p, z, jnp.exp(z)) + jnp.where(g > 1000 * p, jnp.exp(g), 0.0)
        return late + 0.0 * p

    assert np.allclose(gradients(cost, 0.3, "boundary", num=10), 1.0)


def test_at_the_support():
    """A comparison with the support's moving end is always true."""
    cost = lambda p: jnp.where(ppl.sample("u", dist.Uniform(0.0, p)) < p, 1.0, 0.0) * p
    assert np.allclose(gradients(cost, 0.3, "boundary", num=10), 1.0)


def case(name, params, strategies, num=20_000, *, exact="", note=""):
    """A program by its name, with its exact mean."""
    fn, target = PROGRAMS[name], PROGRAMS[f"{exact or name}_exact"]
    title = name.replace("_", " ") + (f", {note}" if note else "")
    return pytest.param(fn, target, params, strategies, num, id=title)


FAST = [
    case("change_point", MSAB, "boundary"),
    case("ties", {"m": 0.2, "t": 0.5, "u": 0.4}, "boundary"),
    case("rows", MT, "boundary"),
    case("censoring", ABT, KEPT, note="kept"),
    case("downstream", MTA, {"z": "boundary", "b": "reinforce"}, 100_000),
    case("bound", {**MT, "a": 1.5}, "boundary"),
]
# Slow: variants of what the others show, each with a compilation of its own.
SLOW = [
    case("change_point", MSAB, KEPT, 100_000, note="kept"),
    case("change_point", MSAB, ppl.Boundary(ppl.Reinforce("leave-one-out")), 50_000, note="loo"),
    case("ranking", ABC, "boundary", 40_000),
    case("ranking", ABC, {"z1": KEPT, "z2": KEPT, "z3": "boundary"}, 100_000, note="two bases"),
    case("mixed_rows", MT, "boundary"),
    case("one_event", MT, "boundary", exact="mixed_rows"),
    case("rows_by_data", {**MT, "c": 0.3}, "boundary"),
    case("rows_by_data", {**MT, "c": 0.3}, KEPT, 100_000, note="kept"),
    case("mixed_shapes", {**MT, "c": 0.3}, "boundary"),
    case("mixed_shapes", {**MT, "c": 0.3}, KEPT, 100_000, note="kept"),
    case("nested_plates", MT, "boundary"),
    case("nested_calls", MT, "boundary"),
    case("hidden_states", {"m": 0.7, "t": 0.5}, {"z": "boundary", "k": "enum"}),
    case("hidden_states", {"m": 0.7, "t": 0.5}, {"z": KEPT, "k": "enum"}, 50_000, note="kept"),
    case("censoring", ABT, ppl.Boundary("implicit"), note="implicit"),
    case("chain", {"m": 0.2, "t": 0.5}, "boundary", 40_000),
    case("branches", {"m": 0.2, "t": 0.5}, {"z": "boundary"}, 50_000),
    case("steps", {"m": 0.2, "t": 0.5}, {"z": "boundary"}, 50_000),
    case("subsampled", {"m": 0.2, "t": 0.5}, "boundary"),
    case("bound", {**MT, "a": 1.5}, KEPT, 50_000, note="kept"),
    *(
        case("downstream", MTA, {"z": ppl.Boundary(base), "b": b}, 100_000, note=f"{base} {b}")
        for b in ("mvd", "enum", "reinforce_loo", "disarm")
        for base in ("reparam", "reinforce")
    ),
    *(
        case("upstream", MTA, {"z": "boundary", "b": b, "r": r}, 50_000, note=f"{b} {r}")
        for b in ("enum", "reinforce", "mvd")
        for r in ("reparam", "reinforce", "boundary")
    ),
]


@pytest.mark.fast("censoring, kept")
@pytest.mark.parametrize(("fn", "exact", "params", "strategies", "num"), FAST)
def test_boundary_is_unbiased(fn, exact, params, strategies, num):
    check(fn, exact, params, strategies, num)


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize(("fn", "exact", "params", "strategies", "num"), SLOW)
@pytest.mark.parametrize("seed", [1, 2])
def test_boundary_is_unbiased_in_more_programs(fn, exact, params, strategies, num, seed):
    check(fn, exact, params, strategies, num, seed)


@pytest.mark.slow
def test_without_its_term_it_is_found_biased():
    params = MSAB
    with pytest.raises(AssertionError, match="z ="):
        check(change_point, change_point_exact, params, ppl.Reparam(allow_jumps=True))


def test_derivative_in_an_argument():
    """Arguments may set places as parameters do."""

    def cost(p, c):
        return p * jnp.where(ppl.sample("z", dist.Normal(0.0, 1.0)) < c, 1.0, 0.0)

    expectation = ppl.expectation(cost, strategies={"z": KEPT})
    slope = jax.grad(lambda c: expectation.value(0.2, jax.random.key(0), c))
    exact = 0.2 * jax.scipy.stats.norm.pdf(0.5)
    assert np.isclose(slope(0.5), exact)
    assert np.isclose(jax.jit(slope)(0.5), exact)


def test_state_of_baselines_has_nothing_of_comparisons():
    """A moving average beside comparisons with data: the state keeps its structure from step to step."""
    strategy = ppl.Boundary(ppl.Reinforce(ppl.strategies.MovingAverage()))
    cost = lambda p, x: jnp.where(ppl.sample("z", dist.Normal(p, 1.0)) < x, 1.0, 0.0)
    expectation = ppl.expectation(cost, strategies={"z": strategy})
    state = expectation.init_state(0.2, 0.5)
    _, _, new = expectation.step(0.2, state, jax.random.key(0), 0.5)
    assert jax.tree.structure(state) == jax.tree.structure(new)
    assert list(state) == ["z"]


def test_plan_tells_replays():
    """Rows that stay apart share two replays; a site by itself has two for each of its comparisons."""
    find = lambda fn, p: ppl.expectation(fn, strategies="boundary").plan(
        jax.tree.map(jnp.float32, p)
    )
    plan = find(rows, MT)["z: comparison 1"]
    assert (plan.shape, plan.evaluations) == ((3,), "two replays")
    plan = find(mixed_rows, MT)["z: comparison 1"]
    assert (plan.shape, plan.evaluations) == ((3,), "two replays of 3 elements")
    plan = find(change_point, MSAB)["z: comparison 1"]
    assert (plan.shape, plan.evaluations) == ((6,), "two replays of 6 elements")


def test_what_cannot_flip_costs_nothing():
    """Guards of supports, jax.nn's own functions, and comparisons that nothing moves."""

    def cost(p):
        z = ppl.sample("z", dist.Gamma(2.0, jnp.exp(p)), strategy="boundary")
        y = ppl.sample("y", dist.Normal(0.0, 1.0), strategy="boundary")
        w = ppl.sample("w", dist.Normal(p, 1.0), strategy=KEPT)
        guard = jnp.where(z > 0.0, jax.nn.leaky_relu(z - p), -jnp.inf)
        return guard + jnp.where(y < 0.3, 1.0, p) + jnp.where(w < 0.3, 1.0, p)

    plan = ppl.expectation(cost).plan(0.3)
    assert [site.site for site in plan.sites] == ["z", "y", "w"]


def test_programs_without_it_are_traced_as_before():
    cost = lambda p: jnp.where(ppl.sample("z", dist.Normal(p, 1.0), strategy="reinforce") < 0, p, 1)
    program = ppl.expectation(cost).ready(0.3)
    assert [eqn.params for eqn in program.closed.jaxpr.eqns if "site" in str(eqn.primitive)] == [
        {"index": 0, "num_parameters": 2}
    ]
    assert list(program.sites) == [0]
