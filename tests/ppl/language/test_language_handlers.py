"""condition, intervene, block and mask, NumPyro's own handlers and control flow."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import cond as numpyro_cond, scan as numpyro_scan

from lapilli import inference, ppl

KEY = jax.random.key(0)


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@ppl.model
def chain(x):
    """A chain a -> b -> x."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    b = ppl.sample("b", dist.Normal(a, 2.0))
    ppl.sample("x", dist.Normal(b, 1.0), obs=x)
    ppl.factor("penalty", -b)
    ppl.deterministic("sum", a + b)
    return b


@ppl.model
def walk(ys):
    """A random walk with readings: sites of a scan carry a time axis."""

    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, z

    return ppl.scan(step, 0.0, ys)[1]


YS = jnp.array([0.3, -0.1, 0.4])
ZS = jnp.array([0.2, 0.1, 0.5])
PREVIOUS = jnp.array([0.0, 0.2, 0.1])


def test_a_conditioned_site_counts_and_is_no_choice():
    given = ppl.condition(chain, {"b": 0.5})
    trace = given.simulate(KEY, 1.0)
    assert set(trace.choices) == {"a"} and set(trace.observed) == {"b", "x"}
    a = trace.choices["a"]
    exact = norm.logpdf(a) + norm.logpdf(0.5, a, 2.0) + norm.logpdf(1.0, 0.5, 1.0) - 0.5
    close(trace.log_density, exact)
    close(given.log_density({"a": a}, 1.0), chain.log_density({"a": a, "b": 0.5}, 1.0))
    close(trace.retval, 0.5)


def test_an_intervened_site_acts_downstream_and_has_no_density():
    do = ppl.intervene(chain, {"b": 0.5})
    trace = do.simulate(KEY, 1.0)
    assert set(trace.choices) == {"a"}
    a = trace.choices["a"]
    close(trace.log_density, norm.logpdf(a) + norm.logpdf(1.0, 0.5, 1.0) - 0.5)
    close(do.log_density({"a": a}, 1.0), trace.log_density)
    close(trace.deterministic["sum"], a + 0.5)


def test_conditioning_and_intervention_differ_on_the_cause():
    """p(a | b) is not p(a | do b): generate tells them apart by its weight."""
    seen = ppl.condition(chain, {"b": 3.0}).generate(KEY, {"a": 0.0}, 1.0)[1]
    done = ppl.intervene(chain, {"b": 3.0}).generate(KEY, {"a": 0.0}, 1.0)[1]
    close(seen - done, norm.logpdf(3.0, 0.0, 2.0))


@pytest.mark.parametrize("statement", [ppl.condition, ppl.intervene])
@pytest.mark.parametrize(("name", "kind"), [("sum", "deterministic"), ("x", "observed")])
def test_only_latent_sites_can_be_given(statement, name, kind):
    with pytest.raises(ValueError, match=f"'{name}': '{kind}'.*Name the latent sites"):
        statement(chain, {name: 1.0}).simulate(KEY, 1.0)


@pytest.mark.parametrize("statement", [ppl.condition, ppl.intervene])
def test_sites_of_a_scan_take_stacked_values(statement):
    program = statement(walk, {"z": ZS})
    trace = program.trace({}, YS)
    assert trace.choices == {}
    close(trace.retval, ZS)
    transition = norm.logpdf(ZS, PREVIOUS, 1.0).sum() if statement is ppl.condition else 0.0
    close(trace.log_density, transition + norm.logpdf(YS, ZS, 0.5).sum())
    close(program.simulate(KEY, YS).log_density, trace.log_density)


@pytest.mark.parametrize("statement", [ppl.condition, ppl.intervene])
def test_sites_of_particles_take_stacked_values(statement):
    @ppl.model
    def lanes():
        return ppl.particles(2)(lambda: ppl.sample("z", dist.Normal(0, 1)))()

    trace = statement(lanes, {"z": jnp.array([0.1, 0.2])}).simulate(KEY)
    assert trace.choices == {}
    close(trace.retval, [0.1, 0.2])


def test_an_intervention_under_the_gradient_engine():
    def cost(m):
        program = ppl.intervene(chain, {"b": m**2})
        return ppl.draw(program, 1.0).log_density

    value, grad = ppl.expectation(cost).value_and_grad(0.5, KEY)
    # E over a of log p(a) cancels in the gradient: d/dm [log N(1; m^2, 1) - m^2] with m = 0.5.
    close(grad, 2 * 0.5 * ((1.0 - 0.25) - 1.0))
    assert np.isfinite(value)


@pytest.mark.parametrize("statement", [ppl.condition, ppl.intervene])
@pytest.mark.parametrize("method", ["simulate", "log_density", "draw"])
def test_an_unknown_site_is_refused_with_the_list_of_sites(statement, method):
    program = statement(chain, {"c": 1.0})
    run = {
        "simulate": lambda: program.simulate(KEY, 1.0),
        "log_density": lambda: program.log_density({"a": 0.0, "b": 0.0}, 1.0),
        "draw": lambda: ppl.expectation(lambda m: ppl.draw(program, 1.0).retval).value(0.0, KEY),
    }[method]
    with pytest.raises(ValueError, match=r"no site named \['c'\].*'a'.*'b'"):
        run()


def test_a_value_of_the_wrong_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Site 'b'.*shape \(2,\)"):
        ppl.condition(chain, {"b": jnp.zeros(2)}).simulate(KEY, 1.0)
    with pytest.raises(ValueError, match=r"Site 'b'.*shape \(2,\)"):
        ppl.intervene(chain, {"b": jnp.zeros(2)}).simulate(KEY, 1.0)
    with pytest.raises(ValueError, match=r"Site 'b'.*shape \(2,\)"):
        chain.log_density({"a": 0.0, "b": jnp.zeros(2)}, 1.0)


@pytest.mark.parametrize("length", [2, 4])
def test_stacked_values_of_the_wrong_length_are_refused_by_name(length):
    values = jnp.zeros(length)
    with pytest.raises(ValueError, match="'?z'?"):
        walk.log_density({"z": values}, YS)
    with pytest.raises(ValueError, match="'?z'?"):
        ppl.condition(walk, {"z": values}).simulate(KEY, YS)


def test_conditioning_outside_the_support_gives_density_zero():
    program = ppl.condition(ppl.model(lambda: ppl.sample("z", dist.HalfNormal(1.0))), {"z": -1.0})
    assert jax.jit(program.log_density)({}) == -jnp.inf


def test_a_blocked_observation_factor_or_deterministic_no_longer_counts():
    hidden = ppl.block(chain, ["x", "penalty", "sum"])
    trace = hidden.trace({"a": 0.1, "b": 0.2}, 1.0)
    assert set(trace.log_probs) == {"a", "b"} and trace.deterministic == {}
    close(trace.log_density, norm.logpdf(0.1) + norm.logpdf(0.2, 0.1, 2.0))


def test_a_latent_site_cannot_be_blocked():
    with pytest.raises(ValueError, match="Site 'b': ppl.block cannot hide a latent site"):
        ppl.block(chain, ["b"]).simulate(KEY, 1.0)


def test_block_acts_inside_a_scan():
    trace = ppl.block(walk, ["y"]).trace({"z": ZS}, YS)
    assert set(trace.log_probs) == {"z"}
    close(trace.log_density, norm.logpdf(ZS, PREVIOUS, 1.0).sum())


def test_block_of_an_unknown_site_is_refused():
    with pytest.raises(ValueError, match="'c'"):
        ppl.block(chain, ["c"]).simulate(KEY, 1.0)


@pytest.mark.parametrize("keep", [True, False])
def test_mask_multiplies_every_log_density(keep):
    full = chain.trace({"a": 0.1, "b": 0.2}, 1.0)
    masked = ppl.mask(chain, keep).trace({"a": 0.1, "b": 0.2}, 1.0)
    assert set(masked.choices) == set(full.choices)
    close(masked.log_density, full.log_density if keep else 0.0)


def test_mask_by_row_acts_through_plates_and_scans():
    @ppl.model
    def program(xs):
        with ppl.plate("rows", 3):
            return ppl.scan(step, jnp.zeros(3), xs)

    def step(z, x):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    xs = jnp.arange(6.0).reshape(2, 3)
    zs = jnp.arange(6.0).reshape(2, 3) / 3
    keep = jnp.array([True, False, True])
    full, masked = (p.trace({"z": zs}, xs) for p in (program, ppl.mask(program, keep)))
    for name in ("z", "x"):
        close(masked.log_probs[name], jnp.where(keep, full.log_probs[name], 0.0))


def test_a_masked_value_outside_the_support_counts_nothing():
    program = ppl.mask(ppl.model(lambda: ppl.sample("z", dist.HalfNormal(1.0))), False)
    assert jax.jit(program.log_density)({"z": -1.0}) == 0.0


def test_transformations_compose_and_keep_bound_parameters():
    @ppl.model
    def program(x):
        z = ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0))
        w = ppl.sample("w", dist.Normal(z, 1.0))
        ppl.sample("x", dist.Normal(w, 1.0), obs=x)

    bound = ppl.condition(ppl.intervene(program.bind({"m": 2.0}), {"w": 0.5}), {"z": 1.0})
    close(bound.log_density({}, 0.0), norm.logpdf(1.0, 2.0, 1.0) + norm.logpdf(0.0, 0.5, 1.0))
    late = ppl.block(program, ["x"]).bind({"m": 2.0})
    close(late.log_density({"z": 1.0, "w": 1.0}, 0.0), norm.logpdf(1.0, 2.0) + norm.logpdf(0.0))


# NumPyro's handlers around programs.


def numpyro_density(program, values, *args):
    return numpyro.infer.util.log_density(program, args, {}, values)[0]


def test_numpyros_handlers_act_on_programs():
    seeded = numpyro.handlers.seed(chain, rng_seed=0)
    sites = numpyro.handlers.trace(seeded).get_trace(1.0)
    assert set(sites) == {"a", "b", "x", "penalty", "sum"}
    given = numpyro.handlers.condition(chain, {"b": 0.5})
    close(numpyro_density(given, {"a": 0.1}, 1.0), chain.log_density({"a": 0.1, "b": 0.5}, 1.0))
    close(numpyro_density(walk, {"z": ZS}, YS), walk.log_density({"z": ZS}, YS))


@pytest.mark.parametrize(
    ("wrap", "exact"),
    [
        (lambda p: numpyro.handlers.condition(p, {"b": 0.5}),
         lambda a: chain.log_density({"a": a, "b": 0.5}, 1.0)),
        (lambda p: numpyro.handlers.scale(p, scale=2.0),
         lambda a: 2 * chain.log_density({"a": a, "b": 0.5}, 1.0)),
        (lambda p: numpyro.handlers.mask(p, mask=False), lambda a: 0.0),
        (lambda p: numpyro.handlers.block(p, hide=["x", "penalty"]),
         lambda a: ppl.block(chain, ["x", "penalty"]).log_density({"a": a, "b": 0.5}, 1.0)),
    ],
    ids=["condition", "scale", "mask", "block"],
)  # fmt: skip
def test_a_numpyro_handler_makes_a_program(wrap, exact):
    program = ppl.as_program(wrap(chain))
    choices = {"a": 0.1, "b": 0.5}
    if "b" not in program.simulate(KEY, 1.0).choices:
        del choices["b"]
    close(program.log_density(choices, 1.0), exact(0.1))


def test_numpyros_reparam_handler_makes_a_program():
    config = {"b": numpyro.infer.reparam.LocScaleReparam(0.0)}
    program = ppl.as_program(numpyro.handlers.reparam(chain, config=config))
    trace = program.simulate(KEY, 1.0)
    assert set(trace.choices) == {"a", "b_decentered"}
    close(trace.deterministic["b"], trace.choices["a"] + 2 * trace.choices["b_decentered"])
    z, b = trace.choices["b_decentered"], trace.deterministic["b"]
    exact = norm.logpdf(trace.choices["a"]) + norm.logpdf(z) + norm.logpdf(1.0, b, 1.0) - b
    close(trace.log_density, exact)


def test_numpyros_block_of_a_latent_site_is_refused():
    """Its draw would reach the result without a density."""
    program = ppl.as_program(numpyro.handlers.block(chain, hide=["b"]))
    with pytest.raises((ValueError, RuntimeError), match="'b'"):
        program.simulate(KEY, 1.0)


def test_a_substituted_site_inside_the_engine_is_refused_by_name():
    program = numpyro.handlers.substitute(chain.fn, {"b": jnp.asarray(0.5)})
    expectation = ppl.expectation(lambda m: ppl.draw(program, m).log_density)
    with pytest.raises(ValueError, match="Site 'b' got its value from a handler.*ppl.condition"):
        expectation.value(1.0, KEY)


def test_numpyros_seed_inside_the_engine_does_not_hide_a_site():
    """The handler gives sites a key, not a value: the engine still draws them."""
    program = numpyro.handlers.seed(chain.fn, rng_seed=0)
    plan = ppl.expectation(lambda m: ppl.draw(program, m).log_density).plan(1.0)
    assert {p.site for p in plan.sites} == {"a", "b"}


# NumPyro's own control flow in a plain NumPyro model.


def numpyro_walk(ys):
    def step(z, y):
        z = numpyro.sample("z", dist.Normal(z, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, z

    return numpyro_scan(step, 0.0, ys)[1]


def walk_guide(ys):
    with ppl.plate("time", len(ys)):
        ppl.sample("z", dist.Normal(ppl.param("m", jnp.zeros(3)), 0.5))


@pytest.mark.slow_for("elbo", "log_density")
@pytest.mark.parametrize("method", ["simulate", "log_density", "generate", "elbo", "init"])
def test_numpyros_scan_equals_ours_or_is_refused_clearly(method):
    program = ppl.as_program(numpyro_walk)
    objective = lambda model: inference.elbo(model, walk_guide)
    run = {
        "simulate": lambda p: p.simulate(KEY, YS).log_density * 0,
        "log_density": lambda p: p.log_density({"z": ZS}, YS),
        "generate": lambda p: p.generate(KEY, {"z": ZS}, YS)[1],
        "elbo": lambda p: objective(p).value({"m": ZS}, KEY, YS),
        "init": lambda p: objective(p).init(KEY, YS)["m"],
    }[method]
    try:
        got = run(program)
    except Exception as error:
        assert isinstance(error, ValueError | TypeError), repr(error)
        assert "numpyro" in str(error) and "ppl.scan" in str(error), str(error)
    else:
        close(got, run(walk))


def test_numpyros_cond_is_refused_clearly_or_equals_ours():
    def model(x):
        branch = lambda _: numpyro.sample("z", dist.Normal(0.0, 1.0))
        return numpyro_cond(x > 0, branch, lambda _: branch(_) + 1.0, None)

    try:
        got = ppl.as_program(model).log_density({"z": 0.5}, 1.0)
    except Exception as error:
        assert isinstance(error, ValueError | TypeError), repr(error)
        assert "numpyro" in str(error) and "ppl.cond" in str(error), str(error)
    else:
        close(got, norm.logpdf(0.5))


def test_predictions_keep_an_intervention_and_draw_observations_anew():
    done = ppl.intervene(chain, {"b": 3.0}).predict(KEY, {"a": 0.0}, 1.0)
    assert float(done["b"]) == 3.0 and float(done["x"]) != 1.0

    def walk(y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(z, 1.0))
            ppl.sample("y", dist.Normal(z, 1e-3), obs=y)
            return z, None

        ppl.scan(step, 0.0, y)

    path = jnp.array([5.0, -5.0, 5.0])
    done = ppl.intervene(walk, {"z": path}).predict(KEY, {}, jnp.zeros(3))
    close(done["z"], path)
    close(done["y"], path, atol=1e-2)


# Site weights and what runs a program's statements for it.


def two_sites():
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    ppl.sample("b", dist.Normal(a, 1.0), obs=0.5)


def test_site_weights_stay_under_transformations():
    weighted = ppl.reweight(two_sites, {"b": 3.0})
    expected = norm.logpdf(0.2) + 3 * norm.logpdf(0.5, 0.2)
    close(weighted.log_density({"a": 0.2}), expected)
    close(ppl.condition(weighted, {"a": 0.2}).log_density({}), expected)
    close(ppl.mask(weighted, True).log_density({"a": 0.2}), expected)
    close(ppl.rescale_plates(weighted, {}).log_density({"a": 0.2}), expected)


@pytest.mark.parametrize(
    "run",
    [
        lambda p: ppl.as_program(numpyro.handlers.mask(p, mask=True)).log_density({"a": 0.2}),
        lambda p: ppl.as_program(lambda: p()).log_density({"a": 0.2}),
        lambda p: ppl.eliminate(p, "a").log_density({}),
        lambda p: numpyro.infer.util.log_density(p, (), {}, {"a": 0.2}),
    ],
    ids=["handler", "inside_another", "eliminate", "numpyro"],
)
def test_site_weights_that_would_be_lost_are_refused(run):
    """They are factors on the log-probs of the program's own traces, and were dropped in silence."""
    with pytest.raises(TypeError, match="its site weights .*would be lost.*Reweight the outermost"):
        run(ppl.reweight(two_sites, {"b": 3.0}))
