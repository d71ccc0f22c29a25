"""Arguments of a program go by position or by name, and both are the same arguments."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.ppl.language import Keywords, apply, arguments, as_arguments, joined, parted

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
Y = 0.7 * X + 0.1


def line(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def guide(x, y=None):
    loc = ppl.param("loc", 0.3)
    ppl.sample("slope", dist.Normal(loc, 0.4))


def chain(y=None, num_steps=None):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    ppl.scan(step, 0.0, y, length=num_steps)


BOUND = inference.elbo(line, guide)
PARAMS = {"loc": jnp.asarray(0.3)}
NAMES = {"x": X, "y": Y}


def test_names_and_positions_join_and_part():
    args = joined((1,), {"b": 2, "a": 3})
    assert parted(args) == ((1,), {"a": 3, "b": 2})
    assert parted(joined(args, {"c": 4})) == ((1,), {"a": 3, "b": 2, "c": 4})
    assert joined((1,), {}) == (1,)
    assert parted(as_arguments({"a": 1})) == ((), {"a": 1})
    assert as_arguments([1, 2]) == (1, 2)


def test_keywords_are_a_pytree_with_names():
    doubled = jax.tree.map(lambda x: 2 * x, Keywords({"b": 1, "a": 2}))
    assert doubled.values == {"a": 4, "b": 2}
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(doubled)]
    assert paths == ["['a']", "['b']"] and repr(doubled) == "Keywords(a, b)"


def test_functions_get_names_and_those_that_hand_on_get_the_tuple():
    args = joined((1,), {"b": 2})
    assert apply(lambda a, b: (a, b), args) == (1, 2)
    assert apply(lambda *args, **kwargs: (args, kwargs), args) == ((1,), {"b": 2})
    assert apply(lambda *args: args, args) == args


@pytest.mark.parametrize(
    "of", ["value", "value_and_grad", "init", "plan", "label", "plate_sizes", "step"]
)
def test_objectives_take_names(of):
    def call(*args, **kwargs):
        if of == "init":
            return BOUND.init(KEY, *args, **kwargs)
        if of in ("label", "plate_sizes"):
            return getattr(BOUND, of)(*args, **kwargs)
        if of == "plan":
            return str(BOUND.plan(PARAMS, *args, **kwargs))
        if of == "step":
            state = BOUND.init_state(PARAMS, KEY, *args, **kwargs)
            return BOUND.step(PARAMS, state, KEY, *args, **kwargs)
        return getattr(BOUND, of)(PARAMS, KEY, *args, **kwargs)

    by_position = call(X, Y)
    assert jax.tree.all(jax.tree.map(np.array_equal, by_position, call(X, y=Y)))
    assert jax.tree.all(jax.tree.map(np.array_equal, by_position, call(**NAMES)))


@pytest.mark.slow
def test_fit_takes_names_and_batches_of_names():
    fit = lambda args, **options: inference.fit(
        BOUND, optax.adam(0.1), args, num_steps=4, key=KEY, progress=False, **options
    )
    by_position, by_name = fit((X, Y)), fit(NAMES)
    assert by_position.params == by_name.params
    batches = [{"x": X[:3], "y": Y[:3]}, {"x": X[3:], "y": Y[3:]}]
    tuples = [tuple(batch.values()) for batch in batches]
    sizes = {"rows": 6}
    assert fit(batches, plate_sizes=sizes).params == fit(tuples, plate_sizes=sizes).params
    cut = {"rows": np.int64(3)}
    assert fit(NAMES, subsample=cut).params == fit((X, Y), subsample=cut).params
    assert "x float32[6], y float32[6]" in repr(by_name)
    posterior = by_name.posterior(KEY, 5, args=NAMES)
    np.testing.assert_array_equal(posterior.log_weights, by_position.posterior(KEY, 5).log_weights)


@pytest.mark.slow_for("smc", "particle_gibbs")
@pytest.mark.parametrize(
    "run",
    [
        lambda *a, **k: inference.smc(chain, KEY, *a, num_particles=20, **k).log_evidence,
        lambda *a, **k: inference.particles.parameters.particle_gibbs(
            chain, KEY, *a, num_samples=2, num_particles=4, **k
        ).choices["z"],
    ],
    ids=["smc", "particle_gibbs"],
)
def test_samplers_take_names(run):
    np.testing.assert_array_equal(run(Y), run(y=Y))


@pytest.mark.slow
def test_tempering_and_reports_take_names():
    run = inference.tempered_smc
    by_name = run(line, KEY, X, y=Y, num_particles=8)
    assert by_name.log_evidence == run(line, KEY, X, Y, num_particles=8).log_evidence
    report = inference.diagnostics.gradient_report
    by_name = report(BOUND, PARAMS, KEY, X, y=Y, num_draws=3)
    assert by_name.value == report(BOUND, PARAMS, KEY, X, Y, num_draws=3).value


def test_own_objectives_and_site_weights_see_names():
    weighted = BOUND.with_site_weights(lambda x, y: {"slope": 0.0 if y is None else 0.5})
    same = BOUND.with_site_weights({"slope": 0.5})
    assert weighted.value(PARAMS, KEY, X, y=Y) == same.value(PARAMS, KEY, X, Y)


@pytest.mark.parametrize("of", ["value", "plan"])
def test_forgotten_data_are_refused_with_the_remedy(of):
    call = BOUND.plan if of == "plan" else lambda params, *args: BOUND.value(params, KEY, *args)
    with pytest.raises(ValueError, match=r"misses the latent site\(s\) \['y'\]; if they are data"):
        call(PARAMS, X)


@pytest.mark.parametrize(
    ("sampler", "args"),
    [
        (lambda *a, **k: inference.smc(chain, *a, **k), {"num_steps": 3}),
        (lambda *a, **k: inference.tempered_smc(line, *a, **k), {"x": X}),
    ],
    ids=["smc", "tempered_smc"],
)
def test_samplers_refuse_a_program_that_observes_nothing(sampler, args):
    with pytest.raises(ValueError, match="no observation and no factor.*Pass the data"):
        sampler(KEY, num_particles=4, **args)


def test_a_misspelt_option_is_no_argument_of_the_program():
    with pytest.raises(
        TypeError, match="'polcy' is neither.*chain. Did you mean 'policy'.*y, num_steps"
    ):
        inference.smc(chain, KEY, Y, num_particles=4, polcy=None)
    anything = lambda x, **options: None
    assert parted(arguments(inference.smc, anything, (1,), {"polcy": 2})) == ((1,), {"polcy": 2})


def test_an_unknown_name_names_the_program():
    with pytest.raises(TypeError, match="guide.*unexpected keyword argument 'Y'"):
        BOUND.value(PARAMS, KEY, X, Y=Y)


# Every public method of a program, by position and by name.

CHOICES = {"slope": jnp.asarray(0.2)}


def mixture(x, y=None):
    with ppl.plate("rows", x.shape[0]):
        group = ppl.sample("group", dist.DiscreteUniform(1, 2))
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(group + slope * x, 0.5), obs=y)


ROWS = {"slope": jnp.zeros(6)}
PROGRAMS = {
    "program": (ppl.model(line), CHOICES),
    "integrated": (ppl.eliminate(line, "slope"), {}),
    "summed": (ppl.eliminate(mixture, "group"), ROWS),
    "marginal": (ppl.marginal(mixture, keep=["slope"], num_particles=2), ROWS),
    "normalized": (ppl.normalize(line, proposal=guide, num_particles=2), CHOICES),
    "smc_sampler": (inference.particles.samplers.smc_sampler(line, num_particles=2), CHOICES),
    "guide_of": (ppl.guide_of(lambda x, y=None: guide(x, y)), CHOICES),
    "kalman_proposal": (ppl.kalman_proposal(line), CHOICES),
}
METHODS = {
    "init": lambda p, c: (KEY,),
    "integrated": lambda p, c: (),
    "simulate": lambda p, c: (KEY,),
    "generate": lambda p, c: (KEY, c),
    "log_density": lambda p, c: (c,),
    "trace": lambda p, c: (c,),
    "estimate_log_density": lambda p, c: (KEY, c),
    "predict": lambda p, c: (KEY, c),
    "predict_trace": lambda p, c: (KEY, c),
    "forecast_trace": lambda p, c: (KEY, c, None),
    "propose": lambda p, c: (KEY, c, None),
    "run": lambda p, c: (),
    "__call__": lambda p, c: (),
    "posterior": lambda p, c: (KEY, c),
    "posterior_probs": lambda p, c: (c,),
    "posterior_marginals": lambda p, c: (c,),
    "mode": lambda p, c: (c,),
    "made": lambda p, c: (),
    "is_summed": lambda p, c: (),
    "joint": lambda p, c: (),
}
NO_RUN = {"bind", "sites_seen", "reweighted", "rebuilt", "own_key", "summed_out", "bounds"}


def outcome(call, *args, **kwargs):
    """The numbers of a call, or what it refuses."""
    try:
        found = call(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as err:
        return str(err)
    leaves = jax.tree.leaves(found)
    return [np.asarray(x) for x in leaves if isinstance(x, jax.Array | np.ndarray | float | bool)]


@pytest.mark.fast("program", "summed")
@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_method_takes_names(kind):
    program, choices = PROGRAMS[kind]
    for name, _ in inspect.getmembers(type(program), inspect.isfunction):
        if name in NO_RUN or name.startswith("_") and name != "__call__":
            continue
        method = getattr(program, name)
        program_call = numpyro.handlers.seed(method, 0) if name in ("run", "__call__") else method
        before = METHODS[name](program, choices)
        by_position = outcome(program_call, *before, X, Y)
        by_name = outcome(program_call, *before, **NAMES)
        np.testing.assert_equal(by_name, by_position, err_msg=f"{kind}.{name}")


def test_expectations_take_names():
    def cost(p, x, y):
        z = ppl.sample("z", dist.Normal(p, 1.0))
        return jnp.sum((x * z - y) ** 2)

    of = ppl.expectation(cost)
    for call in (of.value, of.grad, of.value_and_grad):
        same = jax.tree.map(np.array_equal, call(0.3, KEY, X, Y), call(0.3, KEY, y=Y, x=X))
        assert jax.tree.all(same)
    by_name = of.step(0.3, of.init_state(0.3, x=X, y=Y), KEY, X, y=Y)
    assert by_name[:2] == of.value_and_grad(0.3, KEY, X, Y)
    assert str(of.plan(0.3, x=X, y=Y)) == str(of.plan(0.3, X, Y))
