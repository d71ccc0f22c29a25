"""The boundary strategy against closed forms and quadrature.

About 150 comparisons in all, slow ones included: a correct estimator fails one with probability 0.1%. Biases of 3% of a derivative's
standard deviation are caught with N = 50,000, and all boundary terms here are far larger.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _boundary_programs import (
    bound, bound_exact, branches, branches_exact, censoring, censoring_exact, chain, chain_exact, change_point,
    change_point_exact, downstream, downstream_exact, mixed_rows, mixed_rows_exact, ranking, ranking_exact, rows, rows_by_data,
    rows_by_data_exact, rows_exact, steps, steps_exact, subsampled, subsampled_exact, ties, ties_exact, upstream, upstream_exact,
)  # fmt: skip
from _stats import assert_unbiased

from lapilli import ppl

KEPT = ppl.Boundary("reinforce")
MTA = {"m": 0.2, "t": 0.5, "a": 0.4}
MT = {"m": 0.2, "t": 0.6}
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


@pytest.mark.parametrize("base", ["reparam", "reinforce"])
def test_steps_of_each_law(base):
    """E[1(z < t)] = F(t): the derivative in t is exact in every draw; one program for all laws, each with parameters of its own."""
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


def test_place_beyond_the_support():
    """The distribution function is flat there; what the support's end itself does is pathwise."""

    def cost(p):
        u = ppl.sample("u", dist.Uniform(0.0, 1.0 + p))
        e = ppl.sample("e", dist.Exponential(1.0 + p))
        return jnp.where(u < 3.0 + p, 1.0, 0.0) + jnp.where(e < -p, 1.0, 0.0) + u

    found = gradients(cost, 0.3, "boundary", num=1000)
    assert_unbiased(found, 0.5)


def test_at_the_support():
    """A comparison with the support's moving end is always true."""
    cost = lambda p: jnp.where(ppl.sample("u", dist.Uniform(0.0, p)) < p, 1.0, 0.0) * p
    assert np.allclose(gradients(cost, 0.3, "boundary", num=10), 1.0)


FAST = [
    pytest.param(change_point, change_point_exact, {"m": 2.3, "s": 0.2, "a": 0.2, "b": 1.0}, "boundary", 20_000, id="change point"),
    pytest.param(ties, ties_exact, {"m": 0.2, "t": 0.5, "u": 0.4}, "boundary", 20_000, id="ties"),
    pytest.param(rows, rows_exact, MT, "boundary", 20_000, id="rows behind a network"),
    pytest.param(censoring, censoring_exact, {"a": 1.7, "b": 1.1, "t": 0.2}, KEPT, 20_000, id="censoring, kept"),
    pytest.param(downstream, downstream_exact, MTA, {"z": "boundary", "b": "reinforce"}, 100_000, id="reinforce downstream"),
    pytest.param(bound, bound_exact, {**MT, "a": 1.5}, "boundary", 20_000, id="runs that meet"),
]  # fmt: skip
# Slow: variants of what the others show, each with a compilation of its own.
SLOW = [
    pytest.param(rows_by_data, rows_by_data_exact, {**MT, "c": 0.3}, "boundary", 10_000, id="rows by data"),
    pytest.param(upstream, upstream_exact, MTA, {"z": "boundary", "b": "enum"}, 50_000, id="enum upstream"),
    pytest.param(change_point, change_point_exact, {"m": 2.3, "s": 0.2, "a": 0.2, "b": 1.0}, {"z": KEPT}, 100_000, id="change point, kept"),
    pytest.param(change_point, change_point_exact, {"m": 2.3, "s": 0.2, "a": 0.2, "b": 1.0},
                 {"z": ppl.Boundary(ppl.Reinforce("leave-one-out"))}, 50_000, id="change point, leave-one-out"),
    pytest.param(ranking, ranking_exact, {"a": 0.1, "b": 0.3, "c": -0.5}, "boundary", 40_000, id="ranking"),
    pytest.param(ranking, ranking_exact, {"a": 0.1, "b": 0.3, "c": -0.5}, {"z1": KEPT, "z2": KEPT, "z3": "boundary"}, 100_000, id="ranking, two bases"),
    pytest.param(mixed_rows, mixed_rows_exact, MT, "boundary", 20_000, id="rows that meet"),
    pytest.param(rows_by_data, rows_by_data_exact, {**MT, "c": 0.3}, KEPT, 100_000, id="rows by data, kept"),
    pytest.param(censoring, censoring_exact, {"a": 1.7, "b": 1.1, "t": 0.2}, ppl.Boundary("implicit"), 20_000, id="censoring, implicit"),
    *(pytest.param(downstream, downstream_exact, MTA, {"z": z, "b": b}, 100_000, id=f"{b} downstream of {z.base}")
      for b in ("mvd", "enum", "reinforce_loo", "disarm") for z in (ppl.Boundary(), KEPT)),
    *(pytest.param(upstream, upstream_exact, MTA, {"z": "boundary", "b": b, "r": r}, 50_000, id=f"{b} and {r} upstream")
      for b in ("enum", "reinforce", "mvd") for r in ("reparam", "reinforce", "boundary") if (b, r) != ("enum", "reparam")),
    pytest.param(chain, chain_exact, {"m": 0.2, "t": 0.5}, "boundary", 40_000, id="chain"),
    pytest.param(branches, branches_exact, {"m": 0.2, "t": 0.5}, {"z": "boundary"}, 50_000, id="branches"),
    pytest.param(steps, steps_exact, {"m": 0.2, "t": 0.5}, {"z": "boundary"}, 50_000, id="steps"),
    pytest.param(subsampled, subsampled_exact, {"m": 0.2, "t": 0.5}, "boundary", 20_000, id="subsampled"),
    pytest.param(bound, bound_exact, {**MT, "a": 1.5}, KEPT, 50_000, id="runs that meet, kept"),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "exact", "params", "strategies", "num"), FAST)
def test_boundary_is_unbiased(fn, exact, params, strategies, num):
    check(fn, exact, params, strategies, num)


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize(("fn", "exact", "params", "strategies", "num"), SLOW)
@pytest.mark.parametrize("seed", [1, 2])
def test_boundary_is_unbiased_in_more_programs(fn, exact, params, strategies, num, seed):
    check(fn, exact, params, strategies, num, seed)


def test_without_its_term_it_is_found_biased():
    params = {"m": 2.3, "s": 0.2, "a": 0.2, "b": 1.0}
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
    strategy = ppl.Boundary(ppl.Reinforce(ppl.MovingAverage()))
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
    plan = find(change_point, {"m": 2.3, "s": 0.2, "a": 0.2, "b": 1.0})["z: comparison 1"]
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
