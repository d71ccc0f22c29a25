"""Data that are no numbers are refused before anything is computed, by site and argument; under a mask nobody reads them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.inputs._readers import Readers

CALLS = {
    "fit": lambda model, *args: inference.fit(model, args=args, num_steps=1, progress=False),
    "infer": lambda model, *args: inference.infer(model, args=args, progress=False),
    "nuts": lambda model, *args: inference.nuts(model, args=args, progress=False),
}


def line(x, y, seen=True):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 5), numpyro.handlers.mask(mask=seen):
        ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def data(seed, in_x, in_y):
    """A predictor and an outcome with holes at one random row each."""
    rng = np.random.default_rng(seed)
    x, y, row = rng.normal(size=5), rng.normal(size=5), rng.integers(5)
    x[row] = np.nan if in_x else x[row]
    y[row] = np.nan if in_y else y[row]
    return x, y, np.arange(5) != row


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("in_x", "in_y"), [(True, False), (False, True), (True, True)])
def test_numbers_that_are_none_are_refused_by_site_and_argument(call, in_x, in_y):
    x, y, _ = data(0, in_x, in_y)
    number = 1 if in_x else 2
    with pytest.raises(
        ValueError, match=rf"{call}: site 'y'.*Argument {number} holds NaN.*obs_mask"
    ):
        CALLS[call](line, x, y)


def test_constants_of_a_program_are_data():
    x, y, _ = data(1, True, False)
    with pytest.raises(
        ValueError, match="infer: site 'y'.*Constants of the program hold NaN.*obs_mask"
    ):
        CALLS["infer"](lambda: line(x, y))


@pytest.mark.slow_for("1", "2")
@pytest.mark.parametrize("seed", range(3))
def test_what_a_mask_leaves_out_may_be_anything(seed):
    """Exact posterior of the slope from the rows that count: precision 1 + sum x^2."""
    x, y, seen = data(seed, False, True)
    draws = CALLS["infer"](line, x, y, seen).choices["slope"]
    precision = 1 + (x[seen] ** 2).sum()
    assert abs(draws.mean() - (x * y)[seen].sum() / precision) < 5 / (precision * len(draws)) ** 0.5


def test_data_that_are_impossible_are_never_exact():
    def model(y):
        loc = ppl.sample("loc", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(loc, 1.0), obs=y)
        ppl.sample("waited", dist.Exponential(1.0), obs=-1.0)

    with warnings.catch_warnings(), pytest.raises((ValueError, RuntimeError), match="log-density"):
        warnings.simplefilter("ignore")  # NumPyro's own, of the value
        inference.infer(model, args=(0.3,), progress=False)


def two(y, second=None):
    first = ppl.sample("first", dist.Normal(0.0, 1.0))
    second = ppl.sample("second", dist.Normal(0.0, 1.0) if second is None else second(first))
    ppl.sample("y", dist.Normal(first + second, 1.0), obs=y)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("second", [None, lambda first: dist.Delta(2 * first)])
def test_a_latent_site_of_one_value_is_refused(call, second):
    """A sampler would move what NumPyro's `substitute` has fixed, and finds no gradient at a point mass."""
    model = two if second is not None else numpyro.handlers.substitute(two, {"second": 2.0})
    given = (3.0,) if second is None else (3.0, second)
    with pytest.raises(ValueError, match="'second' of .* has one value.*ppl.intervene"):
        CALLS[call](model, *given)


@pytest.mark.parametrize("y", [np.array([0.3, 0.9]), np.float32(0.9), 0.9, jnp.array([0.9])])
def test_bounds_that_are_learned_meet_data_of_any_kind(y):
    """Data are uniform on (0, b), b on (0, 2): there is no density where b is below the largest observation."""

    def model(y):
        b = ppl.sample("b", dist.Uniform(0.0, 2.0))
        with numpyro.plate_stack("rows", np.shape(y)):
            ppl.sample("y", dist.Uniform(0.0, b), obs=y)

    log_prob = jax.jit(lambda b: ppl.as_program(model).log_density({"b": b}, y))
    np.testing.assert_allclose(log_prob(1.0), -np.log(2.0), rtol=1e-6)
    assert log_prob(0.8) == -np.inf


def test_truth_values_are_no_numbers():
    with pytest.raises(TypeError, match="'y'.*True and False, and Normal.*astype"):
        CALLS["infer"](line, np.ones(5), np.arange(5) < 3)


@pytest.mark.parametrize("statement", [ppl.factor, numpyro.factor], ids=["lapilli", "numpyro"])
def test_truth_values_are_no_log_weights(statement):
    """A constraint counted as e to 1, so that Normal(0, 1) kept (1 + e) / 2 in place of 1 / 2."""

    def program(kind):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        statement(
            "above", {"truth": z > 0, "weight": jnp.where(z > 0, 0.0, -jnp.inf), "count": 0}[kind]
        )

    run = lambda kind: (
        inference.smc(program, jax.random.key(0), kind, num_particles=1000).log_evidence
    )
    with pytest.raises(
        TypeError, match="'above'.*True and False would count as 1 and 0 nats.*jnp.where"
    ):
        run("truth")
    np.testing.assert_allclose(jnp.exp(run("weight")), 0.5, atol=4.5 * 0.5 / np.sqrt(1000))
    assert run("count") == 0


SUPPORTS = {
    "simplex": (dist.Dirichlet(jnp.ones(3)), lambda p, z: dist.Categorical(p + jax.nn.sigmoid(z) * (1 / 3 - p))),
    "positive": (dist.LogNormal(0.0, 1.0), lambda p, z: dist.Normal(z, p)),
    "interval": (dist.Uniform(1.0, 2.0), lambda p, z: dist.Normal(z, p)),
    "factor": (dist.LKJCholesky(2), lambda p, z: dist.MultivariateNormal(jnp.full(2, z), scale_tril=p)),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPPORTS)
def test_what_reads_a_site_is_told_where_zero_is_no_value_of_another(name):
    """Laws whose arguments are other sites are not asked what they are at zeros, which lie outside of these supports."""
    law, of = SUPPORTS[name]

    @ppl.model
    def program():
        p = ppl.sample("p", law)
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", of(p, z))
        ppl.sample("y", dist.Normal(0.0, 1.0))

    trace = program.simulate(jax.random.key(0))
    readers = Readers(program, (), trace)
    assert readers("z") == ["x", "z"] and readers("p") == ["p", "x"] and readers("y") == ["y"]
