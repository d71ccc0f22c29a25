"""What is refused about the shape of a program, before any device work, naming site and remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)


def normal_guide(*names, extra=()):
    @ppl.model
    def guide(*_):
        m = ppl.param("m", 0.0)
        for name in (*names, *extra):
            ppl.sample(name, dist.Normal(m, 1.0))

    return guide


# Guide against model.


@ppl.model
def two_latents(x):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    b = ppl.sample("b", dist.Normal(a, 1.0))
    ppl.sample("x", dist.Normal(b, 1.0), obs=x)


OBJECTIVES = {
    "elbo": inference.elbo,
    "iwelbo": lambda *a, **k: inference.iwelbo(*a, num_particles=2, **k),
}
each_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)


@each_objective
def test_a_guide_that_misses_a_site_is_refused(make):
    objective = make(two_latents, normal_guide("a"))
    for run in (
        lambda: objective.init(KEY, 1.0),
        lambda: objective.value({"m": 0.0}, KEY, 1.0),
        lambda: objective.plan({"m": 0.0}, 1.0),
    ):
        with pytest.raises(ValueError, match=r"two_latents.*misses the latent site\(s\) \['b'\]"):
            run()


@each_objective
def test_a_guide_that_adds_a_site_is_refused(make):
    objective = make(two_latents, normal_guide("a", "b", "c"))
    with pytest.raises(ValueError, match=r"proposes \['c'\].*is_auxiliary"):
        objective.value({"m": 0.0}, KEY, 1.0)


@each_objective
def test_both_problems_are_told_at_once(make):
    objective = make(two_latents, normal_guide("a", "c"))
    with pytest.raises(ValueError, match=r"misses the latent site\(s\) \['b'\].*proposes \['c'\]"):
        objective.value({"m": 0.0}, KEY, 1.0)


@each_objective
def test_a_guide_that_proposes_an_observed_site_is_refused(make):
    objective = make(two_latents, normal_guide("a", "b", "x"))
    with pytest.raises(ValueError, match=r"proposes \['x'\]"):
        objective.value({"m": 0.0}, KEY, 1.0)


@ppl.model
def auxiliary_guide(x, is_random):
    """Both latents are functions of u; with `is_random` they get noise of their own."""
    u = ppl.sample("u", dist.Normal(0.0, 1.0).expand([2]).to_event(1), infer={"is_auxiliary": True})
    for i, name in enumerate("ab"):
        ppl.sample(name, dist.Normal(u[i], 1.0) if is_random else dist.Delta(u[i]))


def test_auxiliary_sites_are_allowed_where_the_others_are_functions_of_them():
    model = ppl.model(lambda x, _: two_latents(x))
    objective = inference.elbo(model, auxiliary_guide)
    report = objective.site_report({}, KEY, 1.0, False)
    log_prob = {name: site["log_prob"] for name, site in report.items()}
    assert jnp.allclose(
        log_prob["guide.u"], dist.Normal(0, 1).log_prob(report["guide.u"]["value"]).sum()
    )
    bound = sum(log_prob[f"model.{name}"] for name in "abx") - log_prob["guide.u"]
    assert jnp.allclose(objective.value({}, KEY, 1.0, False), bound)


def test_auxiliary_sites_beside_random_ones_are_refused():
    """E[log p(a, b) - log q(u, a, b)] is no bound: q(a, b) is a marginal."""
    model = ppl.model(lambda x, _: two_latents(x))
    with pytest.raises(
        ValueError, match=r"auxiliary sites \['u'\] beside random sites.*a marginal"
    ):
        inference.elbo(model, auxiliary_guide).value({}, KEY, 1.0, True)


@each_objective
def test_a_proposal_of_the_wrong_shape_is_refused(make):
    @ppl.model
    def guide(x):
        ppl.sample("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ppl.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"Site 'a': the value has shape \((2, )?2,?\)"):
        make(two_latents, guide).value({}, KEY, 1.0)


# Shapes of observations: numpyro issue 1230, a loss of 17.33 instead of 3.47.


def broadcast_trap(obs_shape, logits_shape=(5,), plate=5):
    def model():
        logits = jnp.zeros(logits_shape)
        if plate is None:
            ppl.sample("x", dist.Bernoulli(logits=logits), obs=jnp.ones(obs_shape))
        else:
            with ppl.plate("rows", plate):
                ppl.sample("x", dist.Bernoulli(logits=logits), obs=jnp.ones(obs_shape))

    return model


RUNS = {
    "simulate": lambda model: ppl.model(model).simulate(KEY),
    "log_density": lambda model: ppl.model(model).log_density({}),
    "generate": lambda model: ppl.model(model).generate(KEY, {}),
    "elbo": lambda model: inference.elbo(model, lambda: None).value({}, KEY),
    "draw": lambda model: ppl.expectation(lambda m: m * ppl.draw(model).log_density).value(
        1.0, KEY
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1,), (), (2, 5), (4,)], ids=str)
def test_an_observation_is_never_broadcast(run, shape):
    with pytest.raises(ValueError, match=r"Site 'x'|\bx\b"):
        run(broadcast_trap(shape))


def test_the_message_of_the_broadcast_trap_names_shapes_plates_and_remedy():
    with pytest.raises(ValueError) as caught:
        RUNS["simulate"](broadcast_trap((5, 1)))
    message = str(caught.value)
    for part in ("Site 'x'", "(5, 1)", "(5,)", "rows", "to_event", "plate"):
        assert part in message, message


@pytest.mark.parametrize("name", ["log_density", "elbo", "draw"])
def test_an_observation_without_a_plate_counts_number_by_number(name):
    """As in NumPyro: there is no plate that it could contradict."""
    found = RUNS[name](broadcast_trap((5,), logits_shape=(), plate=None))
    np.testing.assert_allclose(found, 5 * np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("logits", [(5, 1), (3,), (2, 3)], ids=str)
def test_a_distribution_that_does_not_fit_its_plate_is_refused_by_name(logits):
    with pytest.raises(ValueError, match=r"'?x'?"):
        RUNS["simulate"](broadcast_trap((5,), logits_shape=logits))


def test_the_right_shape_passes():
    assert jnp.allclose(RUNS["log_density"](broadcast_trap((5,))), 5 * jnp.log(0.5))


@pytest.mark.parametrize("method", ["log_density", "generate"])
def test_a_choice_of_the_wrong_shape_is_refused(method):
    choices = {"a": jnp.zeros(3), "b": 0.0}
    run = {
        "log_density": lambda: two_latents.log_density(choices, 1.0),
        "generate": lambda: two_latents.generate(KEY, choices, 1.0),
    }[method]
    with pytest.raises(ValueError, match=r"Site 'a': the value has shape \(3,\)"):
        run()


def test_a_plate_of_size_zero_is_refused_by_name():
    program = ppl.model(lambda: ppl.plate("rows", 0))
    with pytest.raises(ValueError, match="[Pp]late 'rows'"):
        program.simulate(KEY)


def test_one_plate_name_with_two_sizes_is_refused_by_name():
    @ppl.model
    def program():
        with ppl.plate("rows", 3):
            ppl.sample("a", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 4):
            ppl.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'rows'"):
        program.simulate(KEY)


def test_model_and_guide_with_one_plate_name_and_two_sizes_are_refused():
    def sites(n, obs):
        with ppl.plate("rows", n):
            ppl.sample("z", dist.Normal(0.0, 1.0))

    objective = inference.elbo(lambda: sites(3, True), lambda: sites(4, False))
    with pytest.raises(ValueError, match="'(z|rows)'"):
        objective.value({}, KEY)


# What an expectation returns, and where its parts may be used.


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda z: jnp.stack([z, z]), r"shape \(2,\).*Sum it"),
        (lambda z: z[None], r"shape \(1,\)"),
        (lambda z: {"loss": z}, "got dict"),
        (lambda z: None, "got NoneType"),
        (lambda z: (z, z), "got tuple"),
        (lambda z: z > 0, "bool"),
        (lambda z: jnp.asarray(1), "int32|int64"),
        (lambda z: z + 1j, "complex"),
    ],
    ids=["vector", "one", "dict", "none", "tuple", "bool", "integer", "complex"],
)
def test_the_result_is_one_real_number(result, message):
    expectation = ppl.expectation(lambda m: result(ppl.sample("z", dist.Normal(m, 1.0))))
    with pytest.raises(TypeError, match=message):
        expectation.value(0.0, KEY)


@pytest.mark.parametrize("strategy", ["enum", "reinforce", "reinforce_loo", "mvd", "disarm"])
def test_a_cost_that_no_site_reaches_has_the_gradient_zero(strategy):
    def cost(p):
        ppl.sample("b", dist.Bernoulli(p))
        return 2.5

    value, grad = ppl.expectation(cost, strategies=strategy).value_and_grad(0.3, KEY)
    assert (value, grad) == (2.5, 0.0)


@pytest.mark.parametrize("method", ["simulate", "generate", "predict"])
def test_methods_with_a_key_are_refused_inside_an_expectation(method):
    args = {"generate": ({},), "predict": ({"a": 0.0, "b": 0.0},)}.get(method, ())

    def cost(m):
        getattr(two_latents, method)(KEY, *args, m)
        return m

    with pytest.raises(RuntimeError, match=rf"Program.{method}\(key, ...\) inside.*ppl.draw"):
        ppl.expectation(cost).value(0.0, KEY)


def test_simulate_of_one_program_inside_another_is_independent():
    """Inside a program's own simulate there is no gradient to spoil."""
    inner = ppl.model(lambda: ppl.sample("w", dist.Normal(0.0, 1.0)))

    @ppl.model
    def outer():
        return inner.simulate(ppl.rng_key("inner")).choices["w"]

    trace = outer.simulate(KEY)
    assert trace.choices == {} and jnp.isfinite(trace.retval)


def test_draw_outside_an_expectation_is_refused():
    with pytest.raises(RuntimeError, match="ppl.draw.*program.simulate"):
        ppl.draw(two_latents, 1.0)
    outer = ppl.model(lambda: ppl.draw(two_latents, 1.0))
    with pytest.raises(RuntimeError, match="ppl.draw"):
        outer.simulate(KEY)


@pytest.mark.parametrize("leaf", [1, jnp.arange(3), True, jnp.array(1 + 2j)], ids=str)
def test_parameters_that_are_not_real_floats_are_refused_by_path(leaf):
    expectation = ppl.expectation(lambda p: jnp.sum(p["net"]["w"] * 1.0).real)
    for run in (expectation.value, expectation.grad, expectation.value_and_grad):
        with pytest.raises(TypeError, match=r"Parameter '\['net'\]\['w'\]' has dtype"):
            run({"net": {"w": leaf}}, KEY)


def test_parameters_that_are_no_arrays_are_refused_by_path():
    with pytest.raises(TypeError, match=r"\['w'\]"):
        ppl.expectation(lambda p: 1.0).value({"w": "text"}, KEY)


def test_a_key_that_is_no_key_is_refused():
    with pytest.raises(TypeError, match="Argument 'key'"):
        ppl.expectation(lambda m: m).value(0.0, 1)
    with pytest.raises(TypeError, match="Argument 'key'"):
        inference.elbo(two_latents, normal_guide("a", "b")).value({"m": 0.0}, 1, 1.0)


def coin(p):
    return 2.0 * ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(p)))


SECOND = {
    "grad_of_grad": lambda e: jax.grad(lambda p: e.grad(p, KEY))(0.3),
    "hessian_of_value": lambda e: jax.hessian(lambda p: e.value(p, KEY))(0.3),
    "grad_of_grad_of_value": lambda e: jax.grad(jax.grad(lambda p: e.value(p, KEY)))(0.3),
    "jit": lambda e: jax.jit(jax.grad(lambda p: e.grad(p, KEY)))(0.3),
}


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("strategy", ["reinforce", "mvd"])
def test_the_second_derivative_of_an_estimate_is_refused(strategy, second):
    with pytest.raises(TypeError, match="differentiated again"):
        second(ppl.expectation(coin, strategies=strategy))


@pytest.mark.fast("grad_of_grad_of_value", "jit")
@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_the_second_derivative_under_enumeration_is_exact_or_refused(second):
    try:
        got = second(ppl.expectation(coin, strategies="enum"))
    except TypeError as error:
        assert "differentiated again" in str(error)
    else:
        assert jnp.allclose(got, jax.hessian(lambda p: 2 * jax.nn.sigmoid(p))(0.3))


def test_the_second_derivative_of_a_pathwise_estimate_is_exact():
    expectation = ppl.expectation(lambda m: ppl.sample("z", dist.Normal(m, 1.0)) ** 3)
    z = expectation.grad(0.3, KEY) / 3
    second = jax.grad(lambda m: expectation.grad(m, KEY))(0.3)
    assert jnp.allclose(second**2, 36 * z)
    assert jnp.allclose(jax.hessian(lambda m: expectation.value(m, KEY))(0.3), second)


# Bounds.


def rows_model(x, subsample=None):
    with ppl.plate("rows", len(x), subsample_size=subsample) as rows:
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def rows_guide(x, subsample=None):
    with ppl.plate("rows", len(x), subsample_size=subsample):
        ppl.sample("z", dist.Normal(ppl.param("m", 0.0), 1.0))


X = jnp.arange(4.0)


@pytest.mark.slow
def test_iwelbo_joint_is_refused_under_subsampling():
    half = [lambda x, f=f: f(x, 2) for f in (rows_model, rows_guide)]
    objective = inference.iwelbo(*half, num_particles=3)
    with pytest.raises(ValueError, match=r"Site '[zx]'.*scaled by 2.0.*per='plate'"):
        objective.value({"m": 0.0}, KEY, X)
    full = inference.iwelbo(rows_model, rows_guide, num_particles=3).with_plate_sizes({"rows": 8})
    with pytest.raises(ValueError, match=r"Site '[zx]'.*scaled by 2.0.*per='plate'"):
        full.value({"m": 0.0}, KEY, X)
    inference.iwelbo(*half, num_particles=3, per="plate").value({"m": 0.0}, KEY, X)


def test_iwelbo_per_plate_is_refused_with_a_global_site():
    def model(x):
        ppl.sample("g", dist.Normal(0.0, 1.0))
        rows_model(x)

    def guide(x):
        ppl.sample("g", dist.Normal(0.0, 1.0))
        rows_guide(x)

    for per, message in (
        ("plate", "no plate contains every site"),
        ("rows", "Site 'g' lies outside"),
    ):
        with pytest.raises(ValueError, match=message):
            inference.iwelbo(model, guide, num_particles=2, per=per).value({"m": 0.0}, KEY, X)
    with pytest.raises(ValueError, match="columns"):
        inference.iwelbo(rows_model, rows_guide, num_particles=2, per="columns").value(
            {"m": 0.0}, KEY, X
        )


@pytest.mark.parametrize("number", [0, -1, 2.0, None, "3"])
@pytest.mark.parametrize(
    "make, name", [(inference.elbo, "num_replicates"), (inference.iwelbo, "num_particles")]
)
def test_wrong_counts_are_refused(make, name, number):
    with pytest.raises(ValueError, match=f"{name} must be an integer"):
        make(rows_model, rows_guide, **{name: number})


def test_a_wrong_direction_is_refused():
    with pytest.raises(ValueError, match="direction must be 'max' or 'min', got 'up'"):
        inference.objective(lambda model, guide: 0.0, direction="up")(rows_model)


def test_something_that_is_no_program_is_refused():
    with pytest.raises(TypeError, match="program must be a function"):
        inference.elbo(3, rows_guide)


# Foreign statements.


def test_numpyros_mutable_state_is_refused_inside_the_engine():
    def cost(m):
        numpyro.primitives.mutable("counter", 0)
        return m

    with pytest.raises(TypeError, match="'counter'.*cannot be replayed"):
        ppl.expectation(cost).value(0.0, KEY)


def test_a_failing_sampler_names_its_site():
    broken = dist.Normal(jnp.zeros(2), jnp.ones(2))
    broken.sample = lambda key, sample_shape=(): jnp.zeros(2) + jnp.zeros(3)
    broken.sample_with_intermediates = lambda key, sample_shape=(): (broken.sample(key), [])
    with pytest.raises((TypeError, ValueError), match="Site 'z'"):
        ppl.model(lambda: ppl.sample("z", broken)).simulate(KEY)
    with pytest.raises((TypeError, ValueError), match="Site 'z'"):
        ppl.expectation(lambda m: ppl.sample("z", broken).sum()).value(0.0, KEY)


def test_a_failing_density_names_its_site():
    class Broken(dist.Normal):
        def log_prob(self, value):
            raise ValueError("no density here")

    with pytest.raises(ValueError, match="Site 'z'.*no density here"):
        ppl.model(lambda: ppl.sample("z", Broken(0.0, 1.0))).log_density({"z": 0.0})


@pytest.mark.parametrize("run", ["simulate", "gradient"])
def test_a_censored_law_of_a_latent_site_is_refused(run, key):
    """NumPyro draws from the law behind it, and scores the probability of being censored."""

    def model(m):
        with ppl.plate("rows", 2):
            law = dist.RightCensoredDistribution(dist.Normal(m, 1.0), jnp.array([True, False]))
            return ppl.sample("x", law).sum()

    with pytest.raises(
        ValueError, match="Site 'x': RightCensoredDistribution is a law of observations"
    ):
        if run == "simulate":
            ppl.model(model).simulate(key, 0.0)
        else:
            ppl.expectation(model, strategies="reinforce").grad(0.0, key)


PIECES = dist.transforms
MISPLACED = {
    "square": (
        dist.Normal(0.3, 1.0),
        PIECES.PowerTransform(2.0),
        "PowerTransform is one-to-one on",
    ),
    "logarithm": (
        dist.Normal(0.3, 1.0),
        PIECES.ExpTransform().inv,
        "one-to-one on real numbers in",
    ),
    "absolute": (dist.Normal(0.3, 1.0), PIECES.AbsTransform(), "FoldedDistribution"),
    "counts": (dist.Poisson(2.0), PIECES.AffineTransform(0.0, 2.0), "input is of integer numbers"),
    "second": (
        dist.Normal(0.3, 1.0),
        [PIECES.SigmoidTransform(), PIECES.AffineTransform(0.0, 1.0), PIECES.AbsTransform()],
        "AbsTransform is not one-to-one",
    ),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_transforms_outside_of_their_domain_are_refused(name):
    """The square of a Normal number: NumPyro's density has a mass of 0.62."""
    base, parts, why = MISPLACED[name]
    law = dist.TransformedDistribution(base, parts)
    for run in (
        lambda: ppl.model(lambda: ppl.sample("x", law)).simulate(KEY),
        lambda: ppl.model(lambda: ppl.sample("x", law.expand([3]).to_event(1))).simulate(KEY),
        lambda: ppl.model(lambda: ppl.sample("x", law, obs=2.0)).log_density({}),
        lambda: inference.elbo(
            lambda: ppl.sample("x", dist.HalfNormal(1.0)), lambda: ppl.sample("x", law)
        ).value({}, KEY),
    ):
        with pytest.raises(ValueError, match=f"Site 'x': .*{why}"):
            run()


@pytest.mark.fast("affine", "logarithm", "lognormal")
@pytest.mark.parametrize(
    "law",
    [
        dist.TransformedDistribution(dist.Gamma(2.0, 1.0), PIECES.PowerTransform(-1.0)),
        dist.TransformedDistribution(dist.LogNormal(0.0, 1.0), PIECES.ExpTransform().inv),
        dist.TransformedDistribution(dist.Uniform(0.0, 1.0), PIECES.SigmoidTransform().inv),
        dist.TransformedDistribution(dist.HalfNormal(1.0), PIECES.AffineTransform(0.0, -2.0)),
        dist.FoldedDistribution(dist.Normal(0.3, 1.0)),
        dist.LogNormal(0.0, 1.0),
    ],
    ids=["power", "logarithm", "logit", "affine", "folded", "lognormal"],
)
@pytest.mark.filterwarnings("ignore:Out-of-support values")
def test_transforms_inside_of_their_domain_pass(law):
    x = np.linspace(-60.0, 60.0, 240_001)
    x = x[x != 0]
    density = np.exp(np.asarray(law.log_prob(x), np.float64))
    np.testing.assert_allclose(np.nansum(density) * 5e-4, 1.0, atol=0.05)
    program = ppl.model(lambda: ppl.sample("x", law))
    assert np.isfinite(program.simulate(KEY).log_density)


def test_a_censored_observation_is_scored():
    @ppl.model
    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        law = dist.RightCensoredDistribution(dist.Normal(z, 1.0), jnp.array(True))
        ppl.sample("x", law, obs=jnp.array(0.4))

    want = dist.Normal().log_prob(0.3) + jnp.log(1 - dist.Normal(0.3, 1.0).cdf(0.4))
    np.testing.assert_allclose(model.log_density({"z": 0.3}), want, rtol=1e-5)
