"""Objectives: the ELBO in closed form, users' own, minibatches, reports, directions, compilations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import multivariate_normal, norm
from numpyro.infer.autoguide import AutoNormal

from _stats import assert_unbiased
from lapilli import inference, ppl

KEY = jax.random.key(0)
X = jnp.array([0.5, 1.5, 1.0])


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@ppl.model
def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(z, ppl.param("noise", 1.0)), obs=x)


@ppl.model
def guide(x):
    loc = ppl.param("loc", 0.2)
    scale = ppl.param("scale", 0.5, constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(loc, scale))


PARAMS = {"loc": jnp.asarray(0.2), "scale": jnp.log(0.5), "noise": jnp.asarray(1.0)}


def closed_form(params, x=X):
    """E_q[log p(x, z)] + H[q] for q = N(loc, scale)."""
    loc, scale, noise = params["loc"], jnp.exp(params["scale"]), params["noise"]
    expected = lambda at, s: norm.logpdf(at, loc, s) - 0.5 * scale**2 / s**2
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(scale)
    return expected(0.0, 1.0) + expected(x, noise).sum() + entropy


def evidence(x=X):
    return multivariate_normal.logpdf(x, jnp.zeros(len(x)), jnp.eye(len(x)) + 1)


# Value and gradient.


@jax.jit
@jax.vmap
def estimates(key):
    value, grads = inference.elbo(model, guide).value_and_grad(PARAMS, key, X)
    return jnp.stack([value, *(grads[name] for name in sorted(grads))])


def test_the_elbo_and_its_gradient_are_unbiased(seed):
    # sd about 1: with 10,000 keys a bias of 0.07 in any coordinate is 7 errors.
    value, grads = jax.value_and_grad(closed_form)(PARAMS)
    exact = np.stack([value, *(grads[name] for name in sorted(grads))])
    assert_unbiased(
        estimates(jax.random.split(seed, 10_000)), exact, names=["value", *sorted(grads)]
    )


def test_the_elbo_at_the_exact_posterior_is_the_evidence_with_every_key():
    params = {"loc": X.sum() / 4, "scale": jnp.log(0.5), "noise": jnp.asarray(1.0)}
    objective = inference.elbo(model, guide)
    for i in range(3):
        close(objective.value(params, jax.random.key(i), X), evidence())


def test_a_wrong_estimator_is_caught(seed):
    """Negative control: leaving out the entropy's gradient shows in the z score of `scale`."""

    @inference.objective
    def broken(model, guide, x):
        q = ppl.draw(guide, x)
        return ppl.score(model, q, x).log_density - jax.lax.stop_gradient(q.log_density)

    run = jax.jit(jax.vmap(lambda k: broken(model, guide).grad(PARAMS, k, X)["scale"]))
    with pytest.raises(AssertionError, match="z = "):
        assert_unbiased(run(jax.random.split(seed, 2_000)), jax.grad(closed_form)(PARAMS)["scale"])


@pytest.mark.slow
def test_value_under_jax_grad_is_grad():
    objective = inference.elbo(model, guide)
    value, grads = objective.value_and_grad(PARAMS, KEY, X)
    close(objective.value(PARAMS, KEY, X), value)
    again = jax.value_and_grad(lambda p: objective.value(p, KEY, X))(PARAMS)
    close(again[0], value)
    jax.tree.map(close, again[1], grads)
    jax.tree.map(close, objective.grad(PARAMS, KEY, X), grads)
    jax.tree.map(close, jax.jit(jax.grad(objective.value))(PARAMS, KEY, X), grads)


@pytest.mark.fast("reparam")
@pytest.mark.parametrize("strategy", ["reinforce", "mvd", "reparam", "reinforce_loo"])
def test_value_under_jax_grad_is_grad_for_every_strategy(strategy):
    objective = inference.elbo(model, guide, strategies={"z": strategy})
    grads = objective.grad(PARAMS, KEY, X)
    jax.tree.map(close, jax.grad(objective.value)(PARAMS, KEY, X), grads)


def test_step_is_value_and_grad_with_a_state():
    objective = inference.elbo(model, guide)
    state = objective.init_state(PARAMS, KEY, X)
    value, grads, state = objective.step(PARAMS, state, KEY, X)
    jax.tree.map(close, (value, grads), objective.value_and_grad(PARAMS, KEY, X))


def test_gradients_keep_the_type_of_their_parameters():
    objective = inference.elbo(model, guide)
    params = objective.init(KEY, X)
    assert isinstance(objective.grad(params, KEY, X), ppl.Params)
    assert isinstance(objective.grad(dict(params), KEY, X), dict)


@pytest.mark.parametrize("num_particles", [1, 8])
def test_particles_average_independent_runs(num_particles):
    objective = inference.elbo(model, guide, num_replicates=num_particles)
    run = jax.jit(jax.vmap(lambda k: objective.value(PARAMS, k, X)))
    values = run(jax.random.split(KEY, 4_000))
    assert_unbiased(values, closed_form(PARAMS))
    single = jax.jit(jax.vmap(lambda k: inference.elbo(model, guide).value(PARAMS, k, X)))
    # The ratio of two variances from 4000 draws has a standard error of about 5% here.
    ratio = values.var() / single(jax.random.split(jax.random.key(1), 4_000)).var()
    assert 0.75 < ratio * num_particles < 1.3


# init.


def test_init_meets_the_parameters_of_model_and_guide():
    params = inference.elbo(model, guide).init(KEY, X)
    assert set(params) == {"loc", "scale", "noise"}
    close(ppl.constrain(params)["scale"], 0.5)
    legacy = inference.elbo(model, guide).init(jax.random.PRNGKey(0), X)
    jax.tree.map(close, legacy, params)


def test_init_works_under_eval_shape():
    objective = inference.elbo(model, guide)
    shapes = jax.eval_shape(objective.init, KEY, X)
    assert {name: x.shape for name, x in shapes.items()} == dict.fromkeys(
        ("loc", "scale", "noise"), ()
    )


def test_bound_programs_need_no_parameters():
    objective = inference.elbo(model.bind(PARAMS), guide.bind(PARAMS))
    close(objective.value({}, KEY, X), inference.elbo(model, guide).value(PARAMS, KEY, X))


def test_plain_numpyro_functions_are_models_and_guides():
    def plain_model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("x", dist.Normal(z, numpyro.param("noise", 1.0)), obs=x)

    def plain_guide(x):
        loc = numpyro.param("loc", 0.2)
        scale = numpyro.param("scale", 0.5, constraint=dist.constraints.positive)
        numpyro.sample("z", dist.Normal(loc, scale))

    plain, ours = inference.elbo(plain_model, plain_guide), inference.elbo(model, guide)
    params = plain.init(KEY, X)
    jax.tree.map(close, dict(params), dict(ours.init(KEY, X)))
    jax.tree.map(close, plain.value_and_grad(params, KEY, X), ours.value_and_grad(params, KEY, X))


def test_an_autoguide_is_set_up_by_init():
    objective = inference.elbo(model, AutoNormal(model))
    params = objective.init(KEY, X)
    assert set(params) == {"z_auto_loc", "z_auto_scale", "noise"}


def test_a_guide_of_a_scan_may_be_a_plate():
    """Sites meet by name and shape: time is an axis like any other."""

    def scanned(x):
        step = lambda z, x: (ppl.sample("z", dist.Normal(z, 1.0)),) * 2
        _, zs = ppl.scan(step, 0.0, x)
        with ppl.plate("rows", len(x)):
            ppl.sample("x", dist.Normal(zs, 1.0), obs=x)

    def plated(x):
        with ppl.plate("time", len(x)):
            ppl.sample("z", dist.Normal(ppl.param("m", jnp.zeros(3)), 1e-3))

    value = inference.elbo(scanned, plated).value({"m": X}, KEY, X)
    exact = norm.logpdf(X, jnp.concatenate([jnp.zeros(1), X[:-1]])).sum() + norm.logpdf(X, X).sum()
    entropy = 3 * (0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(1e-3))
    close(value, exact + entropy, atol=3.0)


# Users' own objectives.


@inference.objective
def users_elbo(model, guide, *args):
    q = ppl.draw(guide, *args)
    return ppl.score(model, q, *args).log_density - q.log_density


@inference.objective(direction="min")
def free_energy(model, guide, *args):
    q = ppl.draw(guide, *args)
    return q.log_density - ppl.score(model, q, *args).log_density


def test_a_users_objective_equals_the_librarys():
    one, two = users_elbo(model, guide), inference.elbo(model, guide)
    jax.tree.map(close, one.value_and_grad(PARAMS, KEY, X), two.value_and_grad(PARAMS, KEY, X))
    assert one.direction == "max" and one.name == "users_elbo"
    assert isinstance(one, inference.Objective) and users_elbo.__name__ == "users_elbo"


def test_direction_min_states_what_it_estimates_and_does_not_flip_signs():
    down, up = free_energy(model, guide), users_elbo(model, guide)
    assert down.direction == "min"
    value, grads = up.value_and_grad(PARAMS, KEY, X)
    jax.tree.map(
        close, down.value_and_grad(PARAMS, KEY, X), (-value, jax.tree.map(jnp.negative, grads))
    )


def test_direction_min_is_the_loss_of_svi_as_it_stands():
    for make, sign in ((free_energy, 1), (users_elbo, -1)):
        objective = make(model, guide)
        constrained = {"loc": 0.2, "scale": 0.5, "noise": 1.0}
        loss = objective.loss(KEY, constrained, model, guide, X)
        close(loss, sign * objective.value(PARAMS, KEY, X))


def test_an_objective_may_mix_draws_expectations_and_arithmetic():
    """chi-square-like moment of two independent draws of one guide, by hand and in closed form."""

    @inference.objective
    def product(model, guide):
        one, two = ppl.draw(guide), ppl.draw(guide)
        return one.choices["z"] * two.choices["z"]

    moving = ppl.model(lambda: ppl.sample("z", dist.Normal(ppl.param("m", 0.7), 1.0)))
    objective = product(moving, moving)
    run = jax.jit(jax.vmap(lambda k: jnp.stack(
        [objective.value({"m": 0.7}, k), objective.grad({"m": 0.7}, k)["m"]]
    )))  # fmt: skip
    assert_unbiased(run(jax.random.split(KEY, 10_000)), np.array([0.49, 1.4]))
    plan = objective.plan({"m": 0.7})
    assert [p.site for p in plan.sites] == ["z", "z#2"]


def test_strategies_of_the_objective_reach_the_guide():
    objective = users_elbo(model, guide, strategies={"z": "mvd"}, num_replicates=2)
    plan = objective.plan(PARAMS, X)
    assert plan["z"].strategy == "mvd" and plan.num_replicates == 2
    assert "mvd" in str(plan)


def test_an_objective_without_a_guide():
    @inference.objective
    def likelihood(model, guide, x):
        assert guide is None
        return model.log_density({}, x)

    @ppl.model
    def regression(x):
        with ppl.plate("rows", len(x)):
            ppl.sample("x", dist.Normal(ppl.param("loc", 0.0), 1.0), obs=x)

    objective = likelihood(regression)
    params = objective.init(KEY, X)
    close(objective.value(params, KEY, X), norm.logpdf(X).sum())
    close(objective.grad(params, KEY, X)["loc"], X.sum())


# Minibatches.


def test_plate_sizes_are_those_of_the_arguments():
    objective = inference.elbo(model, guide)
    assert objective.plate_sizes(X) == {"rows": 3}
    assert objective.plate_sizes(X[:2]) == {"rows": 2}


@pytest.mark.slow
def test_with_plate_sizes_scales_the_rows_and_leaves_the_original_alone():
    objective = inference.elbo(model, guide)
    part = objective.with_plate_sizes({"rows": 3})
    report = objective.site_report(PARAMS, KEY, X[:1])
    scaled = part.site_report(PARAMS, KEY, X[:1])
    close(scaled["model.x"]["log_prob"], 3 * report["model.x"]["log_prob"])
    close(scaled["model.z"]["log_prob"], report["model.z"]["log_prob"])
    close(part.value(PARAMS, KEY, X), objective.value(PARAMS, KEY, X))
    # Averaged over all batches of one row, the estimate is that of the full data.
    batches = [part.value_and_grad(PARAMS, KEY, X[i : i + 1]) for i in range(3)]
    mean = jax.tree.map(lambda *xs: sum(xs) / 3, *batches)
    jax.tree.map(close, mean, objective.value_and_grad(PARAMS, KEY, X))
    assert objective.full_sizes == {} and part.full_sizes == {"rows": 3}


@pytest.mark.fast("mvd")
@pytest.mark.parametrize("strategy", ["reinforce", "mvd", "enum"])
def test_minibatches_average_to_the_full_gradient_under_every_strategy(strategy):
    """The scale must count once also where the guide's score meets scaled costs (pyro issue 531)."""

    @ppl.model
    def rows(x):
        with ppl.plate("rows", x.shape[0]):
            b = ppl.sample("b", dist.Bernoulli(0.3))
            ppl.sample("x", dist.Normal(b * 1.0, 1.0), obs=x)

    @ppl.model
    def rows_guide(x):
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("b", dist.Bernoulli(logits=ppl.param("l", 0.3) + x))

    objective = inference.elbo(rows, rows_guide, strategies={"b": strategy})
    exact = inference.elbo(rows, rows_guide, strategies={"b": "enum"})
    full = exact.value_and_grad({"l": 0.3}, KEY, X)
    part = objective.with_plate_sizes({"rows": 3})
    run = lambda key, x: jnp.stack(jax.tree.leaves(part.value_and_grad({"l": 0.3}, key, x)))
    keys = jax.random.split(KEY, 4_000)
    many = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(keys, X[:, None])
    # Values and gradients are bounded; a scale counted twice (or not) is off by a factor of 3.
    exact = np.stack(jax.tree.leaves(full))
    if strategy == "enum":
        close(many.mean((0, 1)), exact, rtol=1e-4)
    else:
        assert_unbiased(many.mean(0), exact, names=["value", "l"])


def test_more_rows_than_the_full_size_are_refused():
    part = inference.elbo(model, guide).with_plate_sizes({"rows": 2})
    with pytest.raises(ValueError, match="Plate 'rows' has 3 rows, more than its full size 2"):
        part.value(PARAMS, KEY, X)


def test_a_plate_size_that_names_no_plate_is_refused():
    part = inference.elbo(model, guide).with_plate_sizes({"row": 6})
    with pytest.raises(ValueError, match="'row'"):
        part.value(PARAMS, KEY, X)


# Reports.


def test_site_report_holds_every_site_of_both_programs_in_program_order():
    report = inference.elbo(model, guide).site_report(PARAMS, KEY, X)
    assert list(report) == ["guide.z", "model.z", "model.x"]
    z = report["guide.z"]["value"]
    close(report["model.z"]["value"], z)
    close(report["guide.z"]["log_prob"], norm.logpdf(z, 0.2, 0.5))
    close(report["model.z"]["log_prob"], norm.logpdf(z))
    close(report["model.x"]["log_prob"], norm.logpdf(X, z, 1.0))
    close(report["model.x"]["value"], X)


def test_the_report_is_of_the_run_that_value_makes():
    objective = inference.elbo(model, guide)
    report = objective.site_report(PARAMS, KEY, X)
    total = sum(
        (1 if name.startswith("model") else -1) * site["log_prob"].sum()
        for name, site in report.items()
    )
    close(objective.value(PARAMS, KEY, X), total)


# Compilations.


def counting():
    """An objective that counts how often its Python code runs."""
    counts = []

    @inference.objective
    def counted(model, guide, *args):
        counts.append(1)
        q = ppl.draw(guide, *args)
        return ppl.score(model, q, *args).log_density - q.log_density

    return counted(model, guide), counts


@pytest.mark.parametrize("method", ["value", "grad", "value_and_grad", "step"])
def test_one_compilation_per_shape(method):
    objective, counts = counting()
    run = getattr(objective, method)
    state = (objective.init_state(PARAMS, KEY, X),) if method == "step" else ()
    run(PARAMS, *state, KEY, X)
    first = len(counts)
    for i in range(3):
        moved = jax.tree.map(lambda p, i=i: p + i, PARAMS)
        run(moved, *state, jax.random.key(i), X + i)
    assert len(counts) == first  # nothing is traced again
    run(PARAMS, *state, KEY, X[:2])
    assert len(counts) > first  # a new shape is


def test_weak_types_and_params_kinds_do_not_compile_twice():
    objective, counts = counting()
    objective.value({"loc": 0.2, "scale": -0.7, "noise": 1.0}, KEY, X)
    first = len(counts)
    objective.value(jax.tree.map(jnp.asarray, PARAMS), KEY, X)
    exact = np.dtype(jnp.result_type(float)).type  # NumPy's own scalar of JAX's default precision
    objective.value({"loc": exact(0.2), "scale": exact(-0.7), "noise": exact(1)}, KEY, X)
    assert len(counts) == first


def test_one_trace_under_an_outer_jit():
    objective, counts = counting()
    objective.plan(PARAMS, X)
    before = len(counts)
    run = jax.jit(objective.value_and_grad)
    run(PARAMS, KEY, X)
    once = len(counts) - before
    for i in range(3):
        run(PARAMS, jax.random.key(i), X + i)
    assert len(counts) - before == once <= 2


def test_static_arguments_select_a_program():
    """Python values in args are static: another value is another program, not a wrong one."""

    @ppl.model
    def powers(x, n):
        for i in range(n):
            ppl.factor(f"f{i}", x)

    objective = inference.elbo(powers, lambda x, n: None)
    close(objective.value({}, KEY, jnp.asarray(2.0), 1), 2.0)
    close(objective.value({}, KEY, jnp.asarray(2.0), 3), 6.0)


def test_every_objective_takes_check_jumps():
    """By name, or among the options that it hands on; and has it."""
    makers = {
        name: make
        for name in dir(inference.objectives)
        if inspect.isfunction(make := getattr(inference.objectives, name))
        and inspect.signature(make).return_annotation == "Objective"
    }
    assert {"elbo", "sleep", "rws", "wake_phi", "wake_theta", "log_variance", "vsmc"} <= set(makers)
    needed = {
        "num_particles": 2,
        "num_aux_particles": 2,
        "data_args": lambda observed: (),
        "f": "chi2",
        "alpha": 0.5,
        "keep": ["z"],
    }
    for name, make in makers.items():
        options = inspect.signature(make).parameters
        missing = [
            n for n, p in options.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        ]
        positional = [n for n, p in options.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        programs = [lambda: None] * len(positional)
        made = make(*programs, **{n: needed[n] for n in missing}, check_jumps=False)
        assert made.check_jumps is False, name


def test_a_draw_of_a_detached_program_is_held_fixed(key):
    """The forward divergence by hand, at draws that stay where they are, has the gradient of the library's."""

    def model(y):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.3), 1.0))

    @inference.objective(direction="min")
    def covering(model, guide, y):
        def particle():
            q = ppl.draw(ppl.detached(guide), y)
            return ppl.score(model, q, y).log_density, ppl.score(guide, q, y).log_density

        log_p, log_q = ppl.particles(8)(particle)()
        return -(jax.lax.stop_gradient(jax.nn.softmax(log_p - log_q)) * log_q).sum()

    ready = inference.forward_kl(model, guide, num_particles=8)
    params = ready.init(key, 1.0)
    own = covering(model, guide).grad(params, key, 1.0)
    np.testing.assert_allclose(own["m"], ready.grad(params, key, 1.0)["m"], rtol=1e-5)
    assert own["m"] != 0


def test_what_was_defined_anew_is_read_by_new_objectives_and_densities(key):
    """As in a notebook whose cell with a helper is run again: what was traced before stays as it was, as its docstring says."""
    names = {"ppl": ppl, "dist": dist, "helper": lambda z: z}
    code = (
        "def model(x):\n"
        "    z = ppl.sample('z', dist.Normal(0.0, 1.0))\n"
        "    ppl.sample('x', dist.Normal(helper(z), 1.0), obs=x)\n"
        "def guide(x):\n"
        "    ppl.sample('z', dist.Normal(ppl.param('m', 0.3), 0.5))\n"
    )
    exec(code, names)
    make = lambda: inference.elbo(names["model"], names["guide"])
    value = lambda bound: float(bound.value({"m": jnp.asarray(0.3)}, key, 2.0))
    density = lambda: float(ppl.model(names["model"]).log_density({"z": 0.1}, 2.0))
    bound = make()
    before, density_before = value(bound), density()
    names["helper"] = lambda z: z + 5.0
    assert value(bound) == before and value(make()) != before and density() != density_before
