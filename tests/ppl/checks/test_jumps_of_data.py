"""Jumps that data open or close: what was found at the first call's data does not hold for a later call's."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.ppl.checks import _jumps, _moves

KEY = jax.random.key(0)
JUMPS = "Site 'z': the result jumps by"


def annealed(m, weight):
    z = ppl.sample("z", dist.Normal(m, 1.0))
    return z + weight * jnp.where(z > 0, 1.0, 0.0)


def above(m, threshold):
    return jnp.where(ppl.sample("z", dist.Normal(m, 1.0)) > threshold, 1.0, 0.0)


def table(m, knots):
    """Continuous for knots in order only."""
    return jnp.interp(ppl.sample("z", dist.Normal(m, 1.0)), knots, jnp.array([0.0, 1.0, -1.0]))


IN_ORDER, OTHERS, OUT_OF_ORDER = jnp.array([[-1.0, 0.0, 1.0], [-2.0, 0.5, 0.6], [1.0, -1.0, 0.0]])
CASES = {"weight": (annealed, 0.0, 1.0), "threshold": (above, 60.0, 0.5)}


@pytest.mark.fast("threshold")
@pytest.mark.parametrize("name", CASES)
def test_a_jump_that_later_data_open_is_refused(name):
    cost, first, later = CASES[name]
    expectation = ppl.expectation(cost)
    expectation.grad(0.3, KEY, jnp.array(first))
    expectation.grad(0.3, KEY, jnp.array(first))
    with pytest.raises(ValueError, match=JUMPS):
        expectation.grad(0.3, KEY, jnp.array(later))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_and_so_are_data_that_nobody_knows(name):
    cost, first, later = CASES[name]
    expectation = ppl.expectation(cost)
    expectation.grad(0.3, KEY, jnp.array(first))
    run = jax.jit(lambda x: expectation.grad(0.3, KEY, x))
    with pytest.raises(ValueError, match=f"{JUMPS}.*not known inside of a transformation"):
        run(jnp.array(later))
    with pytest.raises(ValueError, match=f"{JUMPS}.*not known inside of a transformation"):
        jax.jit(lambda x: ppl.expectation(cost).grad(0.3, KEY, x))(jnp.array(later))


def test_a_jump_that_a_wider_law_reaches_is_refused_at_once():
    def cost(p):
        return jnp.where(ppl.sample("z", dist.Normal(p["m"], jnp.exp(p["s"]))) > 2.0, 1.0, 0.0)

    with pytest.raises(ValueError, match=JUMPS):
        ppl.expectation(cost).plan({"m": 0.0, "s": -3.0})


@pytest.mark.slow
def test_data_that_make_it_continuous_pass_each_by_itself(monkeypatch):
    made = []
    probe = _jumps.Probe
    monkeypatch.setattr(_jumps, "Probe", lambda *a, **k: (made.append(1), probe(*a, **k))[1])
    expectation = ppl.expectation(table)
    for knots in (IN_ORDER, OTHERS, IN_ORDER):
        expectation.grad(0.3, KEY, knots)
    with pytest.raises(ValueError, match=JUMPS):
        expectation.grad(0.3, KEY, OUT_OF_ORDER)
    assert (
        len(made) == 2
    )  # each compiled once: the search, and what tells jumps at other data from rounding


@pytest.mark.slow
def test_the_remedy_for_data_under_jit_works():
    """A closed-over array has known values."""
    cost = lambda m: table(m, np.asarray(IN_ORDER))
    jax.jit(lambda m: ppl.expectation(cost).grad(m, KEY))(0.3)


@pytest.mark.slow
def test_fit_knows_its_data():
    @ppl.model
    def model(knots, x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        mean = jnp.interp(z, knots, jnp.array([0.0, 1.0, 0.5]))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(mean, 1.0), obs=x)

    @ppl.model
    def guide(knots, x):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.1), 1.0))

    bound = inference.elbo(model, guide)
    args = (IN_ORDER, jnp.arange(4.0))
    options = {"num_steps": 3, "key": KEY, "progress": False, "subsample": {"rows": 2}}
    fit = inference.fit(bound, optax.sgd(0.1), args, **options)
    assert np.isfinite(fit.history["value"]).all()


@pytest.mark.slow
def test_a_second_fit_does_not_search_again(monkeypatch):
    made = []
    probe = _jumps.Probe
    monkeypatch.setattr(_jumps, "Probe", lambda *a, **k: (made.append(1), probe(*a, **k))[1])

    @ppl.model
    def model(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(jnp.where((z > 0) | (z > 1), z, 0.1 * z), 1.0), obs=x)

    @ppl.model
    def guide(x):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.1), 1.0))

    bound, counts = inference.elbo(model, guide), []
    options = {"num_steps": 2, "key": KEY, "progress": False, "subsample": {"rows": 2}}
    for _ in range(2):
        inference.fit(bound, optax.sgd(0.1), (jnp.arange(4.0),), **options)
        counts.append(len(made))
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_the_plan_tells_of_the_search():
    smooth = ppl.expectation(lambda m: ppl.sample("z", dist.Normal(m, 1.0)) ** 2)
    assert "jumps: nothing suspected" in str(smooth.plan(0.3))
    leaky = lambda m: (lambda z: jnp.where((z > 0) | (z > 1), z, 0.1 * z))(
        ppl.sample("z", dist.Normal(m, 1.0))
    )
    assert "jumps: searched in " in str(ppl.expectation(leaky).plan(0.3))
    assert "because of 'z' (gt)" in str(ppl.expectation(leaky).plan(0.3))


@pytest.mark.slow
def test_a_sampler_that_takes_one_kind_of_random_numbers_only() -> None:
    def fn(t: Any) -> Any:
        z = ppl.sample("z", dist.Normal(t, 1.0))
        n = ppl.sample("n", dist.Poisson(2.0), strategy="reinforce")
        return jnp.where(z > 0, 1.0, 0.0) * n

    with pytest.raises(ValueError, match="Site 'z': the result jumps by"):
        ppl.expectation(fn).grad(0.3, jax.random.key(0))


class Options:
    """A constant of the program, which does not print what is in it."""

    def __init__(self, cost):
        self.cost = cost

    def __repr__(self):
        return "Options()"


def test_constants_that_print_alike_are_checked_apart():
    fn = lambda t, options: options.cost(ppl.sample("z", dist.Normal(t, 1.0)))
    expectation = ppl.expectation(fn)
    assert jnp.isfinite(expectation.grad(0.3, jax.random.key(0), Options(jnp.square)))
    with pytest.raises(ValueError, match="Site 'z': the result jumps"):
        expectation.grad(0.3, jax.random.key(0), Options(lambda z: jnp.where(z > 0, 1.0, 0.0)))


def test_a_path_of_shares_stops_before_the_edge_of_their_simplex():
    """Draws may be 0 to the last digit; beside the end of a path numbers are not dense, and a logarithm leaps there."""
    rng = np.random.default_rng(0)
    site: Any = types.SimpleNamespace(is_unbounded=False, sizes=(5,), range=None)
    start, end = (rng.dirichlet(np.full(4, 0.05), 5).astype(np.float32) for _ in range(2))
    end[end < 1e-3] = 0.0
    first, last = _moves.reaching(site, jnp.asarray(start), jnp.asarray(end), jnp.asarray(0.0))
    np.testing.assert_array_equal(first, start)
    assert (end == 0).any()
    # The logarithm of a coordinate changes by no more than that of 1,000 on the way to an edge.
    assert (last >= 0.9e-3 * start).all()
    np.testing.assert_allclose(last, end, atol=1.1e-3)
