"""Programs: densities, simulation, importance weights, traces as pytrees, keys, transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

from _stats import assert_unbiased
from lapilli import ppl
from lapilli.ppl.traces._sites import LOUD


@ppl.model
def conjugate(x):
    """A latent z ~ N(0, 1) and rows x_n ~ N(z, 2)."""
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(z, 2.0), obs=x)
    ppl.deterministic("twice", 2 * z)
    ppl.factor("penalty", -0.25 * z**2)
    return z + 1


X = jnp.array([0.5, -1.0, 2.0])


def conjugate_density(z, x=X):
    return norm.logpdf(z) + norm.logpdf(x, z, 2.0).sum() - 0.25 * z**2


@ppl.model
def coins(x):
    """Two dependent coins and a Gaussian reading."""
    a = ppl.sample("a", dist.Bernoulli(0.3))
    b = ppl.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
    ppl.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x)


def coins_joint(x):
    """p(a, b, x) as a table over a (rows) and b."""
    a, b = jnp.meshgrid(jnp.arange(2.0), jnp.arange(2.0), indexing="ij")
    pa, pb = jnp.where(a == 1, 0.3, 0.7), jnp.where(b == 1, 0.2 + 0.5 * a, 0.8 - 0.5 * a)
    return pa * pb * jnp.exp(norm.logpdf(x, a + 2 * b, 1.0))


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_log_density_is_the_sum_of_latents_observations_and_factors():
    close(conjugate.log_density({"z": 0.7}, X), conjugate_density(0.7))


def test_trace_keeps_each_kind_of_site_apart():
    trace = conjugate.trace({"z": 0.7}, X)
    assert set(trace.choices) == {"z"}
    assert set(trace.observed) == {"x"}
    assert set(trace.deterministic) == {"twice"}
    assert set(trace.log_probs) == {"z", "x", "penalty"}
    assert {name: info.kind for name, info in trace.sites.items()} == {
        "z": "latent", "x": "observed", "twice": "deterministic", "penalty": "factor",
    }  # fmt: skip
    close(trace.log_probs["z"], norm.logpdf(0.7))
    close(trace.log_probs["x"], norm.logpdf(X, 0.7, 2.0))
    close(trace.log_probs["penalty"], -0.25 * 0.7**2)
    close(trace.deterministic["twice"], 1.4)
    close(trace.retval, 1.7)
    close(trace.log_density, conjugate_density(0.7))


@pytest.mark.slow
def test_log_probs_carry_the_sites_dims():
    @ppl.model
    def nested():
        with ppl.plate("columns", 2), ppl.plate("rows", 3):
            ppl.sample("inner", dist.Normal(0, 1).expand([3, 2, 4]).to_event(1))
        with ppl.plate("columns", 2):
            ppl.sample("outer", dist.Normal(0, 1))
        ppl.sample("vector", dist.Normal(0, 1).expand([5]).to_event(1))

    trace = nested.simulate(jax.random.key(0))
    assert {n: i.dims for n, i in trace.sites.items()} == {
        "inner": ("rows", "columns"), "outer": ("columns",), "vector": (),
    }  # fmt: skip
    assert {n: lp.shape for n, lp in trace.log_probs.items()} == {
        "inner": (3, 2), "outer": (2,), "vector": (),
    }  # fmt: skip
    assert trace.sites["inner"].event_shape == (4,) and trace.sites["vector"].event_shape == (5,)
    assert trace.sites["inner"].distribution == "Normal"


def test_simulate_scores_its_own_draws(seed):
    trace = conjugate.simulate(seed, X)
    close(trace.log_density, conjugate.log_density(trace.choices, X))
    close(trace.log_density, conjugate_density(trace.choices["z"]))


def test_simulate_draws_from_the_prior(seed):
    # Smallest bias worth catching: 0.08 (0.3 for 0.38, or N(0, 1) shifted) is 17 standard errors.
    keys = jax.random.split(seed, 10_000)
    choices = jax.jit(jax.vmap(lambda key: coins.simulate(key, 0.0).choices))(keys)
    a, b = choices["a"], choices["b"]
    exact = np.array([0.3, 0.35, 0.21])
    assert_unbiased(np.stack([a, b, a * b], -1), exact, names=["a", "b", "ab"])


GIVEN = ({}, {"b": 1}, {"a": 0}, {"a": 1, "b": 0})


@jax.jit
@jax.vmap
def weights_of_generate(key):
    keys = jax.random.split(key, len(GIVEN))
    pairs = zip(keys, GIVEN, strict=True)
    return jnp.stack([jnp.exp(coins.generate(k, given, 1.5)[1]) for k, given in pairs])


@pytest.mark.slow_for("seed0")
def test_weights_of_generate_average_to_the_evidence(seed):
    # Weights are bounded; a missing or doubled factor shifts their mean by over 20%, > 30 errors.
    weights = weights_of_generate(jax.random.split(seed, 10_000))
    table = np.asarray(coins_joint(1.5))
    exact = np.array([table.sum(), table[:, 1].sum(), table[0].sum(), table[1, 0]])
    assert_unbiased(weights, exact, names=list(map(str, GIVEN)))


def test_generate_keeps_the_constraints_and_scores_the_trace():
    trace, weight = coins.generate(jax.random.key(0), {"b": 1}, 1.5)
    assert trace.choices["b"] == 1
    close(weight, trace.log_probs["b"] + trace.log_probs["x"])
    close(trace.log_density, coins.log_density(trace.choices, 1.5))


def test_generate_counts_factors_in_the_weight():
    trace, weight = conjugate.generate(jax.random.key(0), {}, X)
    close(weight, conjugate_density(trace.choices["z"]) - norm.logpdf(trace.choices["z"]))


def test_generate_refuses_a_constraint_that_is_no_latent_site():
    with pytest.raises(ValueError, match=r"extra \['c'\]"):
        coins.generate(jax.random.key(0), {"c": 1}, 1.5)
    with pytest.raises(ValueError, match=r"extra \['x'\]"):
        coins.generate(jax.random.key(0), {"x": 1.0}, 1.5)


def test_predict_redraws_observations_given_the_latents(seed):
    keys = jax.random.split(seed, 10_000)
    draws = jax.jit(jax.vmap(lambda key: conjugate.predict(key, {"z": 0.7}, X)))(keys)
    assert set(draws) == {"x", "twice"}
    assert draws["x"].shape == (10_000, 3)
    # A wrong mean of 0.2 is 10 standard errors, a wrong variance of 0.5 is 9.
    assert_unbiased(draws["x"], np.full(3, 0.7))
    assert_unbiased((draws["x"] - 0.7) ** 2, np.full(3, 4.0))
    close(draws["twice"], np.full(10_000, 1.4))


def test_predict_wants_all_latents_or_draws_them_never_silently():
    with pytest.raises(ValueError, match="extra"):
        conjugate.predict(jax.random.key(0), {"z": 0.7, "w": 1.0}, X)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, r"missing \['a', 'b'\], extra \[\]"),
        ({"a": 1}, r"missing \['b'\], extra \[\]"),
        ({"a": 1, "b": 0, "c": 2}, r"missing \[\], extra \['c'\]"),
        ({"a": 1, "c": 0}, r"missing \['b'\], extra \['c'\]"),
        ({"a": 1, "b": 0, "x": 1.0}, r"extra \['x'\]"),
    ],
    ids=["empty", "missing", "extra", "both", "observed"],
)
def test_choices_must_name_exactly_the_latent_sites(choices, message):
    with pytest.raises(ValueError, match=message) as caught:
        coins.log_density(choices, 1.5)
    assert "['a', 'b']" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        coins.trace(choices, 1.5)


@pytest.mark.slow_for(
    "Beta-1.5", "BinomialProbs-4", "Dirichlet-value11", "Gamma--0.5", "Poisson--1.0"
)
@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: dist.HalfNormal(1.0), -1.0),
        (lambda: dist.Uniform(0.0, 1.0), 1.5),
        (lambda: dist.Beta(2.0, 2.0), 1.5),
        (lambda: dist.Gamma(2.0, 2.0), -0.5),
        (lambda: dist.LogNormal(0.0, 1.0), -1.0),
        (lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0), -1.0),
        (lambda: dist.Poisson(2.0), -1.0),
        (lambda: dist.Poisson(2.0), 1.5),
        (lambda: dist.Bernoulli(0.5), 2),
        (lambda: dist.Categorical(jnp.ones(3) / 3), 3),
        (lambda: dist.Binomial(3, 0.5), 4),
        (lambda: dist.Dirichlet(jnp.ones(2)), jnp.array([0.9, 0.9])),
        (lambda: dist.HalfNormal(1.0).expand([2]).to_event(1), jnp.array([1.0, -1.0])),
        (lambda: dist.Exponential(1.0).mask(True), -1.0),
    ],
    ids=lambda x: type(x()).__name__ if callable(x) else None,
)
def test_a_value_outside_the_support_has_density_zero(make, value):
    program = ppl.model(lambda: ppl.sample("z", make()))
    assert jax.jit(program.log_density)({"z": value}) == -jnp.inf


def test_a_value_outside_the_support_is_no_event_in_eager_mode_either():
    program = ppl.model(lambda: ppl.sample("z", dist.HalfNormal(1.0)))
    assert program.log_density({"z": -1.0}) == -jnp.inf


def test_only_the_element_outside_the_support_is_minus_infinity():
    @ppl.model
    def rows():
        with ppl.plate("rows", 3):
            ppl.sample("z", dist.Exponential(2.0))

    trace = jax.jit(rows.trace)({"z": jnp.array([1.0, -1.0, 2.0])})
    close(trace.log_probs["z"][jnp.array([0, 2])], np.log(2) - 2 * np.array([1.0, 2.0]))
    assert trace.log_probs["z"][1] == -jnp.inf


@pytest.mark.slow_for("Cauchy-inf", "Laplace-inf", "Logistic-inf", "StudentT--inf", "StudentT-inf")
@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("law", LOUD, ids=lambda law: law.__name__)
def test_objectives_leave_checks_out_only_where_what_is_no_number_stays_loud(law, value):
    make = functools.partial(law, 3.0) if law is dist.StudentT else law
    program = ppl.model(lambda x: ppl.sample("x", make().expand([2]).to_event(1), obs=x))
    score = ppl.expectation(lambda p, x: p * ppl.score(program, {}, x).log_density)
    x = jnp.array([0.5, value])
    unchecked = make(validate_args=False).log_prob(x).sum()
    assert not unchecked > -jnp.inf
    np.testing.assert_equal(np.asarray(score.value(1.0, jax.random.key(0), x)), unchecked)
    assert jax.jit(program.log_density)({}, x) == -jnp.inf


def test_generate_weighs_a_constraint_outside_the_support_with_zero():
    program = ppl.model(lambda: ppl.sample("z", dist.HalfNormal(1.0)))
    weigh = jax.jit(lambda z: program.generate(jax.random.key(0), {"z": z})[1])
    assert weigh(-1.0) == -jnp.inf


def test_gradient_of_log_density_inside_the_support_is_exact():
    program = ppl.model(lambda: ppl.sample("z", dist.Exponential(2.0)))
    close(jax.grad(lambda z: program.log_density({"z": z}))(0.5), -2.0)


@pytest.mark.parametrize("method", ["simulate", "generate", "predict", "init"])
def test_both_kinds_of_key_give_the_same_run(method):
    extra = {"generate": ({},), "predict": ({"z": 0.7},)}.get(method, ())
    new, old = (
        getattr(conjugate, method)(key, *extra, X)
        for key in (jax.random.key(3), jax.random.PRNGKey(3))
    )
    assert jax.tree.structure(new) == jax.tree.structure(old)
    jax.tree.map(np.testing.assert_array_equal, new, old)


@pytest.mark.parametrize(
    "key", [0, None, jnp.zeros(3), jax.random.split(jax.random.key(0), 2)], ids=str
)
def test_something_that_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match=r"Argument 'key' must be one PRNG key"):
        conjugate.simulate(key, X)


def test_keys_of_either_kind_may_be_batched_by_vmap():
    many = [
        jax.vmap(lambda k: conjugate.simulate(k, X).choices["z"])(jax.random.split(key, 2))
        for key in (jax.random.key(3), jax.random.PRNGKey(3))
    ]
    np.testing.assert_array_equal(*many)


def test_keys_of_another_implementation_work_or_are_refused_clearly():
    program = ppl.model(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
    key = jax.random.key(0, impl="rbg")
    runs = (
        lambda: program.simulate(key).choices["z"],
        lambda: ppl.expectation(lambda m: m * ppl.draw(program).retval).value(1.0, key),
    )
    for run in runs:
        try:
            assert jnp.isfinite(run())
        except TypeError as error:
            assert "key" in str(error)


def test_runs_that_share_a_key_share_the_noise_of_a_site_whatever_the_rest():
    """Keys belong to addresses: adding or removing another site does not move a draw."""

    @ppl.model
    def more():
        ppl.sample("first", dist.Normal(0, 1))
        ppl.sample("z", dist.Normal(0, 1))

    only = ppl.model(lambda: ppl.sample("z", dist.Normal(0, 1)))
    key = jax.random.key(4)
    close(more.simulate(key).choices["z"], only.simulate(key).choices["z"])


# Transformations.


def test_jit_equals_eager():
    key = jax.random.key(1)
    for fn, args in (
        (conjugate.simulate, (key, X)),
        (lambda k, x: conjugate.generate(k, {"z": 0.3}, x), (key, X)),
        (conjugate.trace, ({"z": 0.7}, X)),
    ):
        eager, jitted = fn(*args), jax.jit(fn)(*args)
        assert jax.tree.structure(eager) == jax.tree.structure(jitted)
        jax.tree.map(close, eager, jitted)


def test_vmap_equals_the_loop():
    keys = jax.random.split(jax.random.key(1), 3)
    traces = jax.vmap(conjugate.simulate, (0, None))(keys, X)
    assert traces.choices["z"].shape == (3,) and traces.log_probs["x"].shape == (3, 3)
    for i in range(3):
        one = conjugate.simulate(keys[i], X)
        jax.tree.map(lambda many, x, i=i: close(many[i], x), traces, one)
    densities = jax.vmap(lambda z: conjugate.log_density({"z": z}, X))(jnp.arange(3.0))
    close(densities, [conjugate_density(z) for z in (0.0, 1.0, 2.0)])


@pytest.mark.slow
def test_gradient_of_log_density_is_exact_in_latents_and_data():
    def density(z, x):
        return conjugate.log_density({"z": z}, x)

    got = jax.grad(density, (0, 1))(0.7, X)
    exact = jax.grad(conjugate_density, (0, 1))(0.7, X)
    jax.tree.map(close, got, exact)
    jax.tree.map(close, jax.jit(jax.grad(density, (0, 1)))(0.7, X), exact)
    close(jax.hessian(density)(0.7, X), jax.hessian(conjugate_density)(0.7, X))


def test_simulate_is_differentiable_through_reparameterised_draws():
    program = ppl.model(lambda m: ppl.sample("z", dist.Normal(m, 1.0)))
    close(jax.grad(lambda m: program.simulate(jax.random.key(0), m).choices["z"])(0.3), 1.0)


# The trace as a pytree.


def test_trace_round_trips_as_a_pytree():
    trace = conjugate.simulate(jax.random.key(0), X)
    leaves, tree = jax.tree.flatten(trace)
    again = jax.tree.unflatten(tree, leaves)
    assert again.sites == trace.sites
    jax.tree.map(np.testing.assert_array_equal, again, trace)
    doubled = jax.tree.map(lambda x: 2 * x, trace)
    assert isinstance(doubled, ppl.Trace)
    close(doubled.log_density, 2 * trace.log_density)


def test_two_runs_have_one_tree_structure_so_jit_compiles_once():
    count = 0

    @jax.jit
    def density(trace):
        nonlocal count
        count += 1
        return trace.log_density

    for i in range(3):
        trace = conjugate.simulate(jax.random.key(i), X)
        close(density(trace), trace.log_density)
    assert count == 1


def test_traces_can_be_selected_and_carried_by_lax():
    one, two = (conjugate.simulate(jax.random.key(i), X) for i in range(2))
    picked = jax.tree.map(lambda a, b: jnp.where(True, a, b), one, two)
    jax.tree.map(close, picked, one)

    def keep_better(best, key):
        new = conjugate.simulate(key, X)
        is_better = new.log_density > best.log_density
        return jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, best), new.log_density

    keys = jax.random.split(jax.random.key(5), 4)
    best, densities = jax.lax.scan(keep_better, one, keys)
    close(best.log_density, jnp.maximum(densities.max(), one.log_density))


def test_choices_of_a_simulated_trace_can_be_scored_elsewhere():
    """Choices are a plain dict of arrays by site name."""
    choices = coins.simulate(jax.random.key(0), 1.5).choices
    assert type(choices) is dict
    again = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, choices))
    close(coins.log_density(again, 1.5), coins.trace(choices, 1.5).log_density)


def test_auxiliary_choices_are_named():
    @ppl.model
    def guide():
        u = ppl.sample("u", dist.Normal(0, 1), infer={"is_auxiliary": True})
        ppl.sample("z", dist.Normal(u, 1))

    trace = guide.simulate(jax.random.key(0))
    assert trace.auxiliary == {"u"} and set(trace.choices) == {"u", "z"}


# What a program is.


def test_any_callable_is_a_program_and_others_are_refused():
    program = ppl.as_program(coins.fn)
    assert isinstance(program, ppl.Program) and ppl.as_program(coins) is coins
    close(program.log_density({"a": 1, "b": 0}, 1.5), jnp.log(coins_joint(1.5)[1, 0]))
    with pytest.raises(TypeError, match="must be a function of sample statements, got int"):
        ppl.as_program(3)


def test_a_plain_numpyro_model_is_a_program():
    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("x", dist.Normal(z, 2.0), obs=x)
        numpyro.deterministic("twice", 2 * z)
        numpyro.factor("penalty", -0.25 * z**2)
        return z + 1

    program = ppl.model(model)
    key = jax.random.key(2)
    jax.tree.map(close, program.simulate(key, X), conjugate.simulate(key, X))
    close(program.log_density({"z": 0.7}, X), conjugate_density(0.7))


def test_sample_shape_of_a_numpyro_model_is_honoured_or_refused():
    model = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0), sample_shape=(3,))
    runs = (
        lambda: ppl.as_program(model).simulate(jax.random.key(0)).choices["z"].shape,
        lambda: ppl.expectation(lambda m: m * ppl.draw(model).retval.size).value(
            1.0, jax.random.key(0)
        ),
    )
    for run, wanted in zip(runs, ((3,), 3.0), strict=True):
        try:
            assert run() == wanted
        except (ValueError, TypeError) as error:
            assert "Site 'z'" in str(error) and "sample_shape" in str(error)


def test_a_program_keeps_the_functions_name_and_documentation():
    assert conjugate.__name__ == "conjugate" and conjugate.__doc__.startswith("A latent")
    assert "conjugate" in repr(conjugate)


def test_keyword_arguments_reach_the_program():
    program = ppl.model(lambda scale=1.0: ppl.sample("z", dist.Normal(0, scale)))
    close(program.log_density({"z": 1.0}, scale=2.0), norm.logpdf(1.0, 0, 2.0))
    close(program.simulate(jax.random.key(0), scale=3.0).choices["z"],
          3 * program.simulate(jax.random.key(0)).choices["z"])  # fmt: skip


def test_a_program_calls_another():
    @ppl.model
    def outer(x):
        ppl.sample("w", dist.Normal(0, 1))
        return coins(x)

    choices = {"w": 0.5, "a": 1, "b": 0}
    exact = norm.logpdf(0.5) + jnp.log(coins_joint(1.5)[1, 0])
    close(outer.log_density(choices, 1.5), exact)


def test_a_program_without_sites_has_density_one():
    empty = ppl.model(lambda: None)
    assert empty.log_density({}) == 0 and empty.simulate(jax.random.key(0)).choices == {}
    assert empty.generate(jax.random.key(0), {})[1] == 0


@pytest.mark.parametrize("size", [1, 4])
def test_edge_shapes_of_plates(size):
    x = jnp.arange(float(size))
    trace = conjugate.simulate(jax.random.key(0), x)
    assert trace.log_probs["x"].shape == (size,)
    close(trace.log_density, conjugate_density(trace.choices["z"], x))


def test_a_plate_of_any_number_of_rows_is_traced():
    """As `Fit.export` does: the size is a symbol."""
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("rows"), jnp.float32)
    traced = jax.export.export(jax.jit(lambda x: conjugate.log_density({"z": 0.3}, x)))(shape)
    for size in (2, 5):
        x = jnp.arange(float(size))
        close(traced.call(x), conjugate_density(0.3, x))
