"""Statements: factor, deterministic, rng_key, obs_mask, plates and subsamples, addresses."""

import contextlib
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

from _stats import assert_unbiased
from lapilli import inference, ppl

KEY = jax.random.key(0)


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# Factor and deterministic.


def test_factor_keeps_its_shape_and_is_scaled_by_plates():
    @ppl.model
    def program(x):
        with ppl.plate("rows", 6, subsample_size=2):
            ppl.factor("potential", x)
        ppl.factor("number", 2.0)

    trace = program.simulate(KEY, jnp.array([1.0, 2.0]))
    close(trace.log_probs["potential"], [3.0, 6.0])
    close(trace.log_density, 11.0)
    assert trace.sites["potential"].kind == "factor" and trace.sites["potential"].scale == 3.0


SHAPES = [(), (1,), (3,), (2,), (3, 3), (1, 3), (3, 1), (2, 3), (2, 1), (2, 1, 3), (3, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plates", [{"a": -1}, {"a": -2}, {"a": -1, "b": -2}, {"a": -1, "b": -3}])
def test_a_factor_counts_each_row_once_or_is_refused(plates, shape):
    """A column of rows beside rows, w[:, None] - w in a plate of three, would count each of them three times."""
    sizes, weights = {"a": 3, "b": 2}, np.random.default_rng(0).normal(size=shape)

    def program():
        with contextlib.ExitStack() as around:
            for name, dim in plates.items():
                around.enter_context(ppl.plate(name, sizes[name], dim=dim))
            ppl.factor("w", weights)

    rows = [1] * -min(plates.values())
    for name, dim in plates.items():
        rows[dim] = sizes[name]
    density = lambda: ppl.Program(program).log_density({})
    try:
        whole = np.broadcast_shapes(shape, rows)
    except ValueError:
        pytest.raises(ValueError, density)
    else:
        if math.prod(whole) == math.prod(rows):
            close(density(), np.broadcast_to(weights, whole).sum())
        else:
            with pytest.raises(ValueError, match="Site 'w'.*of none of its plates.*log_weight.sum"):
                density()


def test_a_factor_of_minus_infinity_makes_the_density_zero():
    program = ppl.model(lambda z: ppl.factor("wall", jnp.where(z > 0, 0.0, -jnp.inf)))
    assert program.log_density({}, -1.0) == -jnp.inf and program.log_density({}, 1.0) == 0.0


def test_deterministic_returns_its_value_and_adds_nothing():
    @ppl.model
    def program():
        z = ppl.sample("z", dist.Normal(0, 1))
        return ppl.deterministic("double", 2 * z)

    trace = program.trace({"z": 1.5})
    close(trace.retval, 3.0)
    close(trace.deterministic["double"], 3.0)
    close(trace.log_density, norm.logpdf(1.5))


# Keys by address.


@ppl.model
def dropout(x):
    z = ppl.sample("z", dist.Normal(0, 1))
    keep = jax.random.bernoulli(ppl.rng_key("keep"), 0.5, x.shape)
    other = jax.random.bernoulli(ppl.rng_key("other"), 0.5, x.shape)
    ppl.sample("x", dist.Normal(z, 1).expand(x.shape).to_event(1), obs=jnp.zeros(x.shape))
    return keep, other


def test_rng_key_depends_on_the_run_and_on_its_name():
    x = jnp.ones(64)
    keep, other = dropout.simulate(KEY, x).retval
    again, _ = dropout.simulate(KEY, x).retval
    fresh, _ = dropout.simulate(jax.random.key(1), x).retval
    np.testing.assert_array_equal(keep, again)
    assert (keep != other).any() and (keep != fresh).any()
    # A constraint on a latent site moves no key.
    constrained, _ = dropout.generate(KEY, {"z": 3.0}, x)[0].retval
    np.testing.assert_array_equal(keep, constrained)


def test_rng_key_differs_between_steps_and_lanes():
    bits = lambda: jax.random.uniform(ppl.rng_key("noise"))

    @ppl.model
    def program():
        _, steps = ppl.scan(lambda c, _: (c, bits()), 0.0, None, length=3)
        return jnp.concatenate([steps, ppl.particles(3)(bits)()])

    values = np.asarray(program.simulate(KEY).retval)
    assert len(set(values.tolist())) == 6


def test_replays_see_the_same_rng_key():
    """A measure-valued derivative replays the program: equal noise cancels from its differences."""

    def cost(p):
        b = ppl.sample("b", dist.Bernoulli(p), strategy="mvd")
        noise = 100 * jax.random.normal(ppl.rng_key("noise"))
        return 3.0 * b + noise

    grads = [ppl.expectation(cost).grad(0.3, jax.random.key(i)) for i in range(3)]
    close(grads, [3.0] * 3, atol=1e-4)


def test_rng_key_needs_a_running_program():
    with pytest.raises(RuntimeError, match=r"ppl.rng_key\('keep'\) needs a running program"):
        ppl.rng_key("keep")


def test_rng_key_in_log_density_is_refused_by_name():
    """Scoring has no key: noise from nowhere would be a hidden constant."""
    with pytest.raises(RuntimeError, match="keep"):
        dropout.log_density({"z": 0.0}, jnp.ones(4))


def test_rng_key_serves_numpyro_too():
    with numpyro.handlers.seed(rng_seed=0):
        assert ppl.rng_key("keep").dtype == jax.random.key(0).dtype


# Missing observations.


@ppl.model
def gaps(x, seen):
    loc = ppl.sample("loc", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        return ppl.sample("x", dist.Normal(loc, 2.0), obs=x, obs_mask=seen)


HOLED = jnp.array([1.0, jnp.nan, -0.5, jnp.nan])
SEEN = jnp.array([True, False, True, False])


def gap_choices(loc, missing):
    return {"loc": jnp.asarray(loc), "x_unobserved": jnp.where(SEEN, 0.0, missing)}


def test_missing_cells_are_latent_and_observed_cells_are_scored():
    trace = gaps.simulate(KEY, HOLED, SEEN)
    assert set(trace.choices) == {"loc", "x_unobserved"}
    close(trace.retval[SEEN], HOLED[SEEN])
    close(trace.retval[~SEEN], trace.choices["x_unobserved"][~SEEN])
    close(trace.deterministic["x"], trace.retval)
    loc = trace.choices["loc"]
    exact = norm.logpdf(loc) + norm.logpdf(trace.retval, loc, 2.0).sum()
    close(trace.log_density, exact)
    assert np.isfinite(trace.log_density)
    close(trace.log_probs["x_observed"][~SEEN], 0.0)
    close(trace.log_probs["x_unobserved"][SEEN], 0.0)


def test_missing_cells_never_reach_a_value_or_a_gradient():
    def density(loc, x):
        return gaps.log_density(gap_choices(loc, 0.7), x, SEEN)

    value, grads = jax.value_and_grad(density, (0, 1))(0.3, HOLED)
    exact = jax.value_and_grad(
        lambda loc, x: norm.logpdf(loc) + norm.logpdf(jnp.where(SEEN, x, 0.7), loc, 2.0).sum(),
        (0, 1),
    )(0.3, jnp.where(SEEN, HOLED, 0.0))
    jax.tree.map(close, (value, grads), exact)
    close(grads[1][~SEEN], 0.0)


@pytest.mark.parametrize("filler", [0.0, jnp.nan, -3.0], ids=str)
def test_choices_in_observed_cells_are_ignored(filler):
    @ppl.model
    def positive(x):
        with ppl.plate("rows", 4):
            ppl.sample("x", dist.Exponential(2.0), obs=x, obs_mask=SEEN)

    x = jnp.where(SEEN, 1.0, jnp.nan)
    choice = jnp.where(SEEN, filler, 0.5)
    exact = 4 * jnp.log(2.0) - 2 * (1.0 + 1.0 + 0.5 + 0.5)
    close(jax.jit(positive.log_density)({"x_unobserved": choice}, x), exact)


@pytest.mark.slow
def test_a_missing_cell_may_hold_anything_for_any_support():
    @ppl.model
    def events(x):
        with ppl.plate("rows", 2):
            seen = jnp.array([True, False])
            return ppl.sample("x", dist.Dirichlet(jnp.array([1.0, 2.0])), obs=x, obs_mask=seen)

    x = jnp.array([[0.3, 0.7], [jnp.nan, jnp.nan]])
    trace = events.simulate(KEY, x)
    assert np.isfinite(trace.log_density) and trace.retval.shape == (2, 2)
    close(trace.retval[0], x[0])
    close(trace.retval[1].sum(), 1.0)
    close(trace.log_probs["x_observed"], [jnp.log(2 * 0.7), 0.0])


def test_all_seen_equals_plain_observation_and_none_seen_equals_none():
    x = jnp.array([0.1, 0.2, 0.3, 0.4])
    all_seen = gaps.generate(KEY, {"loc": 0.5}, x, jnp.ones(4, bool))[1]
    close(all_seen, norm.logpdf(0.5) + norm.logpdf(x, 0.5, 2.0).sum())
    none_seen = gaps.generate(KEY, {"loc": 0.5}, x * jnp.nan, jnp.zeros(4, bool))[1]
    close(none_seen, norm.logpdf(0.5))


def test_elbo_integrates_missing_cells_out_without_a_proposal():
    """Where no guide proposes the missing cells they are drawn from their prior and cancel."""

    @ppl.model
    def guide(x, seen):
        ppl.sample("loc", dist.Normal(ppl.param("m", 0.2), 0.5))

    objective = inference.elbo(gaps, guide)
    estimate = lambda *args: objective.value_and_grad({"m": 0.2}, KEY, *args)
    # The same estimate as without the missing rows, value and gradient.
    jax.tree.map(close, estimate(HOLED, SEEN), estimate(HOLED[SEEN], SEEN[SEEN]))


def test_a_wrong_obs_mask_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="Site 'x'.*obs_mask"):
        gaps.simulate(KEY, HOLED, jnp.ones((4, 1), bool))


@pytest.mark.parametrize(
    "mask", [np.array([-1, 1, 1, 1]), np.array([0.0, 1.0, 0.5, 1.0]), [0, 1, 1, 0]]
)
@pytest.mark.parametrize(
    "run",
    [
        lambda program, *args: program.log_density({"x_unobserved": jnp.zeros(4)}, *args),
        lambda program, *args: jax.jit(program.log_density)({"x_unobserved": jnp.zeros(4)}, *args),
    ],
)
def test_a_mask_of_numbers_is_refused(mask, run):
    """-1 for missing beside 1 for seen would have counted both as seen."""

    @ppl.model
    def program(seen):
        with ppl.plate("rows", 4):
            ppl.sample("x", dist.Normal(0.0, 1.0), obs=jnp.zeros(4), obs_mask=seen)

    with pytest.raises(TypeError, match="Site 'x': obs_mask holds .*mask == 1"):
        run(program, np.asarray(mask))
    close(run(program, np.asarray(mask) == 1), 4 * norm.logpdf(0.0))


# Plates.


@ppl.model
def hierarchy(x):
    """Nested plates: groups (axis -1) of rows (axis -2)."""
    with ppl.plate("groups", 3, dim=-1):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0], dim=-2):
            ppl.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_nested_plates_give_the_density_of_independent_rows():
    x = jnp.arange(6.0).reshape(2, 3) / 4
    mean = jnp.array([0.1, 0.2, 0.3])
    trace = hierarchy.trace({"mean": mean}, x)
    assert trace.log_probs["x"].shape == (2, 3) and trace.sites["x"].dims == ("rows", "groups")
    close(trace.log_density, norm.logpdf(mean).sum() + norm.logpdf(x, mean, 1.0).sum())


def test_a_plate_equals_repeated_sites():
    x = jnp.array([0.3, -0.2])

    @ppl.model
    def plated():
        with ppl.plate("rows", 2):
            z = ppl.sample("z", dist.Normal(0, 2))
            ppl.sample("x", dist.Normal(z, 1), obs=x)

    @ppl.model
    def repeated():
        for i in range(2):
            z = ppl.sample(f"z{i}", dist.Normal(0, 2))
            ppl.sample(f"x{i}", dist.Normal(z, 1), obs=x[i])

    z = jnp.array([1.0, -1.0])
    close(plated.log_density({"z": z}), repeated.log_density({"z0": z[0], "z1": z[1]}))


DATA = jnp.arange(10.0)


@ppl.model
def subsampled(x):
    z = ppl.sample("z", dist.Normal(0, 1))
    with ppl.plate("rows", 10, subsample_size=4) as rows:
        batch = x[rows]
        ppl.sample("x", dist.Normal(z, 1), obs=batch)
    return rows, batch


def test_a_subsample_is_drawn_from_the_key_and_scaled():
    trace = subsampled.simulate(KEY, DATA)
    rows, batch = trace.retval
    assert len(set(rows.tolist())) == 4 and trace.log_probs["x"].shape == (4,)
    close(batch, DATA[rows])
    z = trace.choices["z"]
    close(trace.log_probs["x"], 2.5 * norm.logpdf(batch, z, 1.0))
    assert trace.sites["x"].scale == 2.5
    other = subsampled.simulate(jax.random.key(1), DATA).retval[0]
    assert set(rows.tolist()) != set(other.tolist())


@pytest.mark.slow_for("seed0")
def test_subsampled_log_weights_average_to_the_full_one(seed):
    keys = jax.random.split(seed, 10_000)
    weigh = jax.jit(jax.vmap(lambda k: subsampled.generate(k, {"z": 4.5}, DATA)[1]))
    exact = norm.logpdf(4.5) + norm.logpdf(DATA, 4.5, 1.0).sum()
    # A scale of 1 for 2.5 is off by 30 nats, hundreds of standard errors; one row left out, 5.
    assert_unbiased(weigh(keys), exact)


def test_ppl_subsample_slices_the_plates_rows():
    @ppl.model
    def program(x):
        with ppl.plate("rows", 10, subsample_size=4) as rows:
            return rows, ppl.subsample(x, event_dim=0)

    rows, batch = program.simulate(KEY, DATA).retval
    close(batch, DATA[rows])


@pytest.mark.slow
def test_model_and_guide_see_the_same_rows():
    """A guide's rows must be the model's: with an exact guide every estimate is the evidence."""

    @ppl.model
    def model(x):
        with ppl.plate("rows", 10, subsample_size=5) as rows:
            z = ppl.sample("z", dist.Normal(0, 1))
            ppl.sample("x", dist.Normal(z, 1), obs=x[rows])

    @ppl.model
    def guide(x):
        with ppl.plate("rows", 10, subsample_size=5) as rows:
            ppl.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    x = jnp.linspace(-2.0, 3.0, 10)
    objective = inference.elbo(model, guide)
    values = [objective.value({}, jax.random.key(i), x) for i in range(4)]
    halves = np.array(list(itertools.combinations(range(10), 5)))
    possible = 2 * np.asarray(norm.logpdf(x, 0.0, 2**0.5))[halves].sum(1)
    for value in values:
        assert abs(value - possible).min() < 1e-4 * abs(value)
    assert len(set(map(float, values))) > 1


@pytest.mark.slow
def test_nested_subsamples_multiply_their_scales():
    @ppl.model
    def program():
        with ppl.plate("columns", 4, subsample_size=2, dim=-1):
            with ppl.plate("rows", 9, subsample_size=3, dim=-2):
                ppl.sample("z", dist.Normal(0, 1))

    trace = program.simulate(KEY)
    assert trace.sites["z"].scale == 6.0 and trace.choices["z"].shape == (3, 2)
    close(trace.log_density, 6 * norm.logpdf(trace.choices["z"]).sum())


def test_a_subsample_without_a_key_is_refused_by_name():
    with pytest.raises(ValueError, match="[Pp]late 'rows'"):
        subsampled.log_density({"z": 4.5}, DATA)


def test_rescale_plates_stands_for_the_full_data():
    @ppl.model
    def program(x):
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(0, 1), obs=x)

    full = ppl.rescale_plates(program, {"rows": 10})
    close(full.log_density({}, DATA[:4]), 2.5 * program.log_density({}, DATA[:4]))
    with pytest.raises(ValueError, match="Plate 'rows' has 10 rows, more than its full size 3"):
        ppl.rescale_plates(program, {"rows": 3}).log_density({}, DATA)
    with pytest.raises(ValueError, match="Plate 'rows' already subsamples 4 of 10 rows"):
        ppl.rescale_plates(subsampled, {"rows": 20}).simulate(KEY, DATA)


# Addresses.


def test_a_duplicate_site_is_refused_by_name():
    @ppl.model
    def twice():
        ppl.sample("z", dist.Normal(0, 1))
        ppl.sample("z", dist.Normal(0, 1))

    for run in (lambda: twice.simulate(KEY), lambda: twice.log_density({"z": 0.0})):
        with pytest.raises(ValueError, match="Site 'z' appears twice.*'z_2'"):
            run()


@pytest.mark.parametrize("kind", ["observed", "factor", "deterministic"])
def test_a_name_used_by_two_kinds_of_site_is_refused(kind):
    @ppl.model
    def twice():
        ppl.sample("z", dist.Normal(0, 1))
        if kind == "observed":
            ppl.sample("z", dist.Normal(0, 1), obs=0.0)
        elif kind == "factor":
            ppl.factor("z", 1.0)
        else:
            ppl.deterministic("z", 1.0)

    with pytest.raises(ValueError, match="Site 'z' appears twice"):
        twice.simulate(KEY)


def test_a_name_outside_and_inside_a_region_is_refused():
    @ppl.model
    def twice():
        ppl.sample("z", dist.Normal(0, 1))
        ppl.scan(lambda c, _: (c, ppl.sample("z", dist.Normal(0, 1))), 0.0, None, length=2)

    with pytest.raises(ValueError, match="Site 'z' appears twice"):
        twice.simulate(KEY)


def test_mutable_state_is_refused_by_name():
    @ppl.model
    def program():
        numpyro.primitives.mutable("counter", 0)

    with pytest.raises(TypeError, match="'counter'.*cannot be replayed"):
        program.simulate(KEY)


def test_a_fixed_network_is_a_module():
    program = ppl.model(lambda: ppl.module("net", eqx.nn.Identity())(3.0))
    assert program.simulate(KEY).retval == 3.0


@pytest.mark.parametrize(
    "module", [eqx.nn.Linear, {"n": 3}, jnp.sin], ids=["class", "no_arrays", "function"]
)
def test_a_module_with_nothing_to_learn_is_refused(module):
    with pytest.raises(TypeError, match="Module 'net' is .*without floating-point arrays"):
        ppl.model(lambda: ppl.module("net", module)).simulate(KEY)


def test_a_pytree_of_arrays_is_a_module():
    program = ppl.model(lambda: ppl.module("net", {"w": jnp.ones(2), "name": "a"})["w"].sum())
    assert program.simulate(KEY).retval == 2.0
    assert jax.tree.leaves(program.init(KEY))[0].shape == (2,)
