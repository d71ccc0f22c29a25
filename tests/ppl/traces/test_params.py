"""Parameters: param and module statements, constraints, binding, control flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.distributions import constraints

from lapilli import inference, ppl

KEY = jax.random.key(0)


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@ppl.model
def normal(x):
    loc = ppl.param("loc", 0.5)
    scale = ppl.param("scale", 2.0, constraint=constraints.positive)
    ppl.sample("x", dist.Normal(loc, scale), obs=x)


def test_init_gives_unconstrained_values_that_constrain_maps_back():
    params = normal.init(KEY, 1.0)
    assert isinstance(params, dict) and set(params) == {"loc", "scale"}
    close(params["loc"], 0.5)
    close(ppl.constrain(params)["scale"], 2.0)
    assert abs(float(params["scale"]) - 2.0) > 0.1  # the optimiser sees another number
    assert all(isinstance(x, jax.Array) and not x.weak_type for x in params.values())


CONSTRAINTS = {
    "real": (constraints.real, -1.5),
    "positive": (constraints.positive, 0.3),
    "unit_interval": (constraints.unit_interval, 0.3),
    "interval": (constraints.interval(-1.0, 2.0), 0.3),
    "greater_than": (constraints.greater_than(1.0), 1.3),
    "less_than": (constraints.less_than(1.0), -0.3),
    "simplex": (constraints.simplex, np.array([0.2, 0.3, 0.5])),
    "ordered_vector": (constraints.ordered_vector, np.array([-1.0, 0.5, 2.0])),
    "lower_cholesky": (constraints.lower_cholesky, np.array([[1, 0], [0.5, 2]])),
    "softplus_positive": (constraints.softplus_positive, 0.3),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_constraint_round_trips_and_binds(name):
    constraint, value = CONSTRAINTS[name]
    program = ppl.model(lambda: ppl.param("p", value, constraint=constraint))
    params = program.init(KEY)
    close(ppl.constrain(params)["p"], value)
    close(program.bind(params).simulate(KEY).retval, value)
    # Any unconstrained value is a valid parameter.
    moved = jax.tree.map(lambda x: x + 0.7, params)
    assert isinstance(moved, ppl.Params)
    assert bool(jnp.all(constraint(ppl.constrain(moved)["p"])))
    close(program.bind(moved).simulate(KEY).retval, ppl.constrain(moved)["p"])


def test_methods_use_bound_values_else_the_initial_ones():
    close(normal.log_density({}, 1.0), norm.logpdf(1.0, 0.5, 2.0))
    half = normal.bind({"loc": jnp.asarray(-1.0)})
    close(half.log_density({}, 1.0), norm.logpdf(1.0, -1.0, 2.0))
    full = normal.bind({"loc": -1.0, "scale": jnp.log(3.0), "another program's": 4.0})
    close(full.log_density({}, 1.0), norm.logpdf(1.0, -1.0, 3.0))
    close(full.generate(KEY, {}, 1.0)[1], norm.logpdf(1.0, -1.0, 3.0))
    assert "loc" in repr(full) and isinstance(full, ppl.Program)


def test_binding_again_replaces_the_values():
    again = normal.bind({"loc": 5.0, "scale": 0.0}).bind({"loc": -1.0, "scale": jnp.log(3.0)})
    close(again.log_density({}, 1.0), norm.logpdf(1.0, -1.0, 3.0))


def test_gradients_reach_parameters_through_bind():
    def density(params):
        return normal.bind(params).log_density({}, 1.0)

    params = normal.init(KEY, 1.0)
    grads = jax.jit(jax.grad(density))(params)
    assert isinstance(grads, ppl.Params)
    exact = jax.grad(lambda l, s: norm.logpdf(1.0, l, jnp.exp(s)), (0, 1))(0.5, jnp.log(2.0))
    close((grads["loc"], grads["scale"]), exact)


def test_params_are_a_pytree_with_named_paths():
    params = normal.init(KEY, 1.0)
    leaves, tree = jax.tree.flatten(params)
    again = jax.tree.unflatten(tree, leaves)
    assert isinstance(again, ppl.Params) and again.constraints == params.constraints
    assert jax.tree.structure(normal.init(jax.random.key(1), 1.0)) == tree
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert paths == ["['loc']", "['scale']"]
    close(ppl.constrain(jax.jit(lambda p: p)(params))["scale"], 2.0)


def test_two_inits_have_one_structure_with_parametrised_constraints():
    program = ppl.model(lambda: ppl.param("p", 0.3, constraint=constraints.interval(-1.0, 2.0)))
    one, two = (program.init(jax.random.key(i)) for i in range(2))
    close(jax.tree.map(lambda a, b: a - b, one, two)["p"], 0.0)


def test_an_initial_value_may_be_drawn_from_the_key():
    program = ppl.model(lambda: ppl.param("w", lambda key: jax.random.normal(key, (3,))))
    one, same, other = (program.init(k)["w"] for k in (KEY, KEY, jax.random.key(1)))
    assert one.shape == (3,)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_an_initial_value_that_breaks_its_constraint_is_refused_by_name():
    program = ppl.model(lambda: ppl.param("scale", -1.0, constraint=constraints.positive))
    with pytest.raises(ValueError, match="'scale'"):
        program.init(KEY)
    with pytest.raises(ValueError, match="'scale'"):
        inference.elbo(program, ppl.model(lambda: None)).init(KEY)


def test_a_name_declared_twice_is_one_parameter():
    @ppl.model
    def model(x):
        ppl.sample("x", dist.Normal(ppl.param("m", 0.5), 1.0), obs=x)

    @ppl.model
    def guide(x):
        ppl.param("m", 0.5)

    params = inference.elbo(model, guide).init(KEY, 1.0)
    assert set(params) == {"m"}


def test_constrain_accepts_plain_dicts_and_missing_names():
    assert ppl.constrain({"a": 1.0}) == {"a": 1.0}
    assert ppl.constrain(ppl.Params({})) == {}


# Where parameters may stand.


def scan_program(xs):
    def step(carry, x):
        scale = ppl.param("scale", 2.0, constraint=constraints.positive)
        ppl.sample("x", dist.Normal(carry, scale), obs=x)
        return carry, None

    ppl.scan(step, ppl.param("start", 0.5), xs)


def cond_program(xs):
    branch = lambda sign: lambda: sign * ppl.param("scale", 2.0, constraint=constraints.positive)
    scale = ppl.cond(jnp.sum(xs) > -100, branch(1.0), branch(-1.0))
    with ppl.plate("rows", 3):
        ppl.sample("x", dist.Normal(ppl.param("start", 0.5), scale), obs=xs)


def particle_program(xs):
    def lane():
        scale = ppl.param("scale", 2.0, constraint=constraints.positive)
        return jnp.sum(dist.Normal(ppl.param("start", 0.5), scale).log_prob(xs))

    ppl.factor("mean", ppl.particles(2)(lane)().mean())


@pytest.mark.parametrize("fn", [scan_program, cond_program, particle_program])
def test_parameters_inside_regions_are_met_bound_and_differentiated(fn):
    xs = jnp.array([0.1, 0.2, 0.3])
    program = ppl.model(fn)
    params = program.init(KEY, xs)
    assert set(params) == {"scale", "start"} and all(jnp.ndim(p) == 0 for p in params.values())
    close(ppl.constrain(params)["scale"], 2.0)
    density = lambda p: program.bind(p).log_density({}, xs)
    exact = lambda p: norm.logpdf(xs, p["start"], jnp.exp(p["scale"])).sum()
    new = {"scale": jnp.asarray(-0.3), "start": jnp.asarray(1.0)}
    value, grads = jax.value_and_grad(density)(new)
    exact_value, exact_grads = jax.value_and_grad(exact)(new)
    close(value, exact_value)
    jax.tree.map(close, grads, exact_grads)


@pytest.mark.parametrize("fn", [scan_program, cond_program, particle_program])
def test_parameters_inside_regions_serve_objectives(fn):
    xs = jnp.array([0.1, 0.2, 0.3])
    objective = inference.elbo(ppl.model(fn), ppl.model(lambda xs: None))
    params = objective.init(KEY, xs)
    assert set(params) == {"scale", "start"}
    exact = jax.grad(lambda p: norm.logpdf(xs, p["start"], jnp.exp(p["scale"])).sum())
    jax.tree.map(close, dict(objective.grad(params, KEY, xs)), exact(dict(params)))


def test_a_parameter_in_a_subsampled_plate_is_sliced_to_its_rows():
    @ppl.model
    def program():
        with ppl.plate("rows", 10, subsample_size=4) as rows:
            return rows, ppl.param("loc", jnp.arange(10.0), event_dim=0)

    assert program.init(KEY)["loc"].shape == (10,)
    bound = program.bind({"loc": 2 * jnp.arange(10.0)})
    for p, factor in ((program, 1.0), (bound, 2.0)):
        rows, loc = p.simulate(KEY).retval
        close(loc, factor * rows)


# Modules.


class Net(eqx.Module):
    """A network with a non-array field, an integer array and a function."""

    linear: eqx.nn.Linear
    table: jax.Array
    name: str = eqx.field(static=True, default="net")
    activation: object = jax.nn.tanh

    def __call__(self, x):
        return self.activation(self.linear(x)) * self.table[0]


def make_net():
    return Net(eqx.nn.Linear(2, 1, key=jax.random.key(7)), jnp.array([2, 3]))


@ppl.model
def regression(x):
    net = ppl.module("net", make_net())
    return ppl.sample("y", dist.Normal(net(x)[0], 1.0), obs=0.3)


def test_a_module_is_one_parameter_with_its_floating_arrays_as_leaves():
    params = regression.init(KEY, jnp.ones(2))
    assert set(params) == {"net"}
    shapes = sorted(x.shape for x in jax.tree.leaves(params))
    assert shapes == [(1,), (1, 2)]
    again = ppl.constrain(params)["net"]
    assert jax.tree.structure(again) == jax.tree.structure(params["net"])


def test_a_module_is_called_with_its_bound_arrays_and_gets_gradients():
    x = jnp.array([0.4, -0.2])
    params = regression.init(KEY, x)
    density = lambda p: regression.bind(p).log_density({}, x)
    exact = lambda net: norm.logpdf(0.3, net(x)[0], 1.0)
    close(density(params), exact(make_net()))
    grads = jax.grad(density)(params)["net"]
    wanted = eqx.filter_grad(exact)(make_net())
    close(grads.linear.weight, wanted.linear.weight)
    close(grads.linear.bias, wanted.linear.bias)
    moved = jax.tree.map(lambda x: x + 0.1, params)
    net = eqx.apply_updates(make_net(), jax.tree.map(lambda x: jnp.full_like(x, 0.1), wanted))
    close(density(moved), exact(net))


def test_a_module_inside_a_scan_step_is_shared_by_all_steps():
    @ppl.model
    def program(xs):
        def step(h, x):
            net = ppl.module("net", make_net())
            h = net(jnp.stack([h, x]))[0]
            ppl.sample("y", dist.Normal(h, 1.0), obs=x)
            return h, None

        ppl.scan(step, jnp.zeros(()), xs)

    def exact(net):
        h, total = jnp.zeros(()), 0.0
        for x in (0.3, -0.5):
            h = net(jnp.array([h, x]))[0]
            total += norm.logpdf(x, h, 1.0)
        return total

    xs = jnp.array([0.3, -0.5])
    params = program.init(KEY, xs)
    assert [x.shape for x in jax.tree.leaves(params)] == [(1, 2), (1,)]
    moved = jax.tree.map(lambda x: 1.5 * x, params)
    net = jax.tree.map(lambda x: 1.5 * x if eqx.is_inexact_array(x) else x, make_net())
    close(program.bind(moved).log_density({}, xs), exact(net))
    grads = jax.grad(lambda p: program.bind(p).log_density({}, xs))(moved)["net"]
    close(grads.linear.weight, eqx.filter_grad(exact)(net).linear.weight)


def test_a_module_outside_a_program_is_itself():
    net = make_net()
    assert ppl.module("net", net) is net


def test_numpyros_own_param_statement_is_met_too():
    program = ppl.as_program(lambda: numpyro.param("s", 2.0, constraint=constraints.positive))
    params = program.init(KEY)
    close(ppl.constrain(params)["s"], 2.0)
    close(program.bind({"s": jnp.log(3.0)}).simulate(KEY).retval, 3.0)


@pytest.mark.parametrize(
    "other",
    [lambda: ppl.param("m", jnp.zeros(3)), lambda: ppl.param("m", 1.0, constraint=constraints.positive)],
    ids=["shape", "constraint"],
)  # fmt: skip
def test_one_name_with_two_declarations_is_refused(other):
    program = ppl.model(lambda: ppl.factor("f", jnp.sum(ppl.param("m", 1.0)) + jnp.sum(other())))
    with pytest.raises(ValueError, match="'m'"):
        program.init(KEY)
