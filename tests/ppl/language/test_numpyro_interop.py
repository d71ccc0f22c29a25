"""Programs stay NumPyro models: MCMC, Predictive, autoguides and SVI run them; objectives are losses of SVI."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import multivariate_normal, norm
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from numpyro.infer.util import log_density

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference, ppl

KEY = jax.random.key(0)
NET = eqx.nn.Linear(1, 1, key=jax.random.key(7))
YS = jnp.array([0.3, -0.1, 0.4])


def close(a, b, rtol=1e-4, atol=1e-4):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@ppl.model
def everything(ys):
    """A scan with a module and a param inside the step, cond with equal sites, a plate, a factor."""
    start = ppl.sample("start", dist.Normal(0.0, 1.0))

    def step(z, y):
        net = ppl.module("net", NET)
        scale = ppl.param("scale", 0.7, constraint=dist.constraints.positive)
        z = ppl.sample("z", dist.Normal(net(z[None])[0], scale))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, z

    last, _ = ppl.scan(step, start, ys)
    shift = ppl.cond(
        ys[0] > 0,
        lambda: ppl.sample("w", dist.Normal(1.0, 1.0)),
        lambda: 2.0 * ppl.sample("w", dist.Normal(-1.0, 2.0)),
    )
    with ppl.plate("rows", 2):
        ppl.sample("x", dist.Normal(shift + last, 1.0), obs=jnp.array([0.5, 1.5]))
    ppl.factor("penalty", -0.1 * shift**2)


CHOICES = {"start": jnp.asarray(0.2), "z": jnp.array([0.1, 0.2, 0.3]), "w": jnp.asarray(0.4)}


@pytest.mark.fast("false_branch")
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["true_branch", "false_branch"])
def test_numpyros_density_of_a_program_is_ours(sign):
    theirs = lambda choices: log_density(everything, (sign * YS,), {}, choices)[0]
    ours = lambda choices: everything.log_density(choices, sign * YS)
    one, two = jax.value_and_grad(theirs)(CHOICES), jax.value_and_grad(ours)(CHOICES)
    jax.tree.map(close, one, two)


def walk(n=3):
    def step(z, _):
        z = ppl.sample("z", dist.Normal(z, 1.0))
        ppl.factor("f", -(z**2))
        return z, z

    return ppl.scan(step, 0.0, None, length=n)[0]


def start_and_walk():
    ppl.sample("start", dist.Normal(0.0, 1.0))
    walk()


def cond_in_scan():
    def step(c, x):
        yes, no = (lambda s=s: ppl.sample("z", dist.Normal(0.0, s)) for s in (1.0, 2.0))
        return ppl.cond(x > 0, yes, no), None

    ppl.scan(step, 0.0, jnp.array([1.0, -1.0, 1.0]))


def parameter_in_a_branch():
    scale = ppl.cond(True, lambda: ppl.param("scale", 2.0), lambda: 1.0)
    ppl.sample("z", dist.Normal(jnp.zeros(3), scale).to_event(1))


def plated_observations():
    with ppl.plate("rows", 3):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=jnp.ones(3))


def holes():
    with ppl.plate("rows", 3):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        x, seen = jnp.array([1.0, jnp.nan, 2.0]), jnp.array([True, False, True])
        ppl.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)


ZS = jnp.array([0.1, 0.2, 0.3])
FORMS = {
    "scan": (ppl.model(walk), {"z": ZS}),
    "cond_in_scan": (ppl.model(cond_in_scan), {"z": ZS}),
    "parameter_in_a_branch": (ppl.model(parameter_in_a_branch), {"z": ZS}),
    "condition": (ppl.condition(walk, {"z": ZS}), {}),
    "intervene": (ppl.intervene(walk, {"z": ZS}), {}),
    "condition_beside_a_scan": (ppl.condition(start_and_walk, {"start": 0.5}), {"z": ZS}),
    "mask": (ppl.mask(walk, False), {"z": ZS}),
    "block": (ppl.block(walk, ["f"]), {"z": ZS}),
    "rescale_plates": (ppl.rescale_plates(plated_observations, {"rows": 6}), {"z": ZS}),
    "bind": (ppl.model(parameter_in_a_branch).bind({"scale": 3.0}), {"z": ZS}),
    "obs_mask": (ppl.model(holes), {"z": ZS, "x_unobserved": jnp.array([9.0, 0.5, 9.0])}),
}


@pytest.mark.fast("bind", "condition", "intervene", "obs_mask")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_program_has_one_density_in_both_worlds(form):
    program, choices = FORMS[form]
    seeded = numpyro.handlers.seed(program, rng_seed=0)
    close(log_density(seeded, (), {}, choices)[0], program.log_density(choices))


def test_what_numpyros_primitives_cannot_do_is_said_loudly():
    """A plate around a scan and scans in scans work in our methods only."""

    def plate_around_scan():
        with ppl.plate("rows", 2):
            ppl.scan(
                lambda c, _: (ppl.sample("z", dist.Normal(c, 1.0)), None), jnp.zeros(2), None, 3
            )

    def nested():
        ppl.scan(lambda c, _: (walk(), None), 0.0, None, 2)

    def different_sites():
        a, b = (lambda n=n: ppl.sample(n, dist.Normal(0.0, 1.0)) for n in ("a", "b"))
        ppl.cond(True, a, b)

    for fn, choices, message in (
        (plate_around_scan, {"z": jnp.ones((3, 2))}, "control flow.*plate"),
        (nested, {"z": jnp.ones((2, 3))}, "nested"),
        (different_sites, {"a": 0.1, "b": 0.2}, "cond"),
    ):
        assert jnp.isfinite(ppl.model(fn).log_density(choices))
        with pytest.raises(
            (NotImplementedError, RuntimeError, TypeError, ValueError), match=message
        ):
            log_density(numpyro.handlers.seed(fn, rng_seed=0), (), {}, choices)


@pytest.mark.slow
def test_nuts_runs_a_program_with_control_flow():
    mcmc = MCMC(NUTS(everything, max_tree_depth=3), num_warmup=4, num_samples=4, progress_bar=False)
    mcmc.run(KEY, YS)
    samples = mcmc.get_samples()
    assert {name: x.shape for name, x in samples.items() if name in CHOICES} == {
        "start": (4,), "z": (4, 3), "w": (4,),
    }  # fmt: skip
    densities = jax.vmap(lambda c: everything.log_density(c, YS))(
        {name: samples[name] for name in CHOICES}
    )
    assert jnp.isfinite(densities).all()


def test_predictive_draws_from_the_prior_and_from_the_posterior():
    prior = Predictive(everything, num_samples=3)(KEY, YS)
    assert prior["z"].shape == (3, 3) and prior["w"].shape == (3,) and prior["x"].shape == (3, 2)
    given = jax.tree.map(lambda x: jnp.stack([x, x + 1]), CHOICES)
    posterior = Predictive(everything, given, return_sites=["x", "y"], parallel=True)(KEY, YS)
    assert posterior["x"].shape == (2, 2) and posterior["y"].shape == (2, 3)


def test_trace_and_seed_see_the_sites_of_regions():
    trace = numpyro.handlers.trace(numpyro.handlers.seed(everything, rng_seed=0)).get_trace(YS)
    assert {"start", "z", "y", "w", "x", "penalty", "net", "scale"} <= set(trace)


# Autoguides. Two coupled Gaussian latents have a Gaussian posterior, a positive one needs a Jacobian.

X = jnp.array([0.5, 1.0])


@ppl.model
def gaussian():
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    b = ppl.sample("b", dist.Normal(a, 1.0))
    ppl.sample("x", dist.Normal(jnp.stack([a, b]), 1.0).to_event(1), obs=X)


PRIOR = jnp.array([[1.0, 1.0], [1.0, 2.0]])
EVIDENCE = multivariate_normal.logpdf(X, jnp.zeros(2), PRIOR + jnp.eye(2))
POSTERIOR = jnp.linalg.inv(jnp.linalg.inv(PRIOR) + jnp.eye(2))
MEAN = POSTERIOR @ X


@pytest.mark.slow
def test_a_multivariate_autoguide_at_the_posterior_gives_the_evidence_every_time():
    guide = AutoMultivariateNormal(gaussian)
    objective = inference.elbo(gaussian, guide)
    params = objective.init(KEY)
    exact = {"auto_loc": MEAN, "auto_scale_tril": jnp.linalg.cholesky(POSTERIOR)}
    transform = dist.biject_to(params.constraints["auto_scale_tril"])
    params = ppl.Params(
        {"auto_loc": MEAN, "auto_scale_tril": transform.inv(exact["auto_scale_tril"])},
        params.constraints,
    )
    for i in range(3):
        close(objective.value(params, jax.random.key(i)), EVIDENCE)
    assert set(objective.grad(params, KEY)) == {"auto_loc", "auto_scale_tril"}


@pytest.mark.slow
def test_a_delta_autoguide_is_the_log_joint():
    guide = AutoDelta(gaussian)
    objective = inference.elbo(gaussian, guide)
    params = objective.init(KEY)
    assert set(params) == {"a_auto_loc", "b_auto_loc"}
    new = {"a_auto_loc": jnp.asarray(0.3), "b_auto_loc": jnp.asarray(-0.2)}
    value, grads = objective.value_and_grad(new, KEY)
    exact = lambda p: gaussian.log_density({"a": p["a_auto_loc"], "b": p["b_auto_loc"]})
    close(value, exact(new))
    jax.tree.map(close, grads, jax.grad(exact)(new))


@pytest.mark.parametrize("make", [AutoDelta, AutoNormal])
def test_an_autoguide_whose_parameters_were_not_made_is_refused(make):
    message = f"{make.__name__}: the autoguide has not met its model.*Call objective.init"
    for run in (
        lambda b: b.value({}, KEY),
        lambda b: jax.jit(b.grad)({}, KEY),
        lambda b: b.plan({}),
    ):
        with pytest.raises(ValueError, match=message):
            run(inference.elbo(gaussian, make(gaussian)))
    with pytest.raises(ValueError, match=message):
        ppl.model(make(gaussian)).log_density({"a": 0.1, "b": 0.2})
    guide = ppl.model(make(gaussian))
    for _ in range(2):  # the second time no tracer of the first is left
        params = guide.init(KEY)
    close(params["a_auto_loc"], inference.elbo(gaussian, guide).init(KEY)["a_auto_loc"])


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_point_mass_has_as_many_lanes_as_everything_else(shape):
    """It has no noise that would tell lanes apart; all weights are alike, and bounds those of one particle."""

    def model():
        z = ppl.sample("z", dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape)))
        ppl.sample("x", dist.Normal(z.sum(), 1.0), obs=0.7)

    def guide():
        ppl.sample("z", dist.Delta(0.4 * jnp.ones(shape), event_dim=len(shape)))

    exact = ppl.model(model).log_density({"z": 0.4 * jnp.ones(shape)})
    for bound in (inference.iwelbo, inference.wake_theta, inference.rws):
        close(bound(model, guide, num_particles=3).value({}, KEY), exact)


@ppl.model
def positive():
    s = ppl.sample("s", dist.HalfNormal(1.0))
    with ppl.plate("rows", 2):
        z = ppl.sample("z", dist.Normal(0.0, s))
        ppl.sample("x", dist.Normal(z, 0.5), obs=X)


AUTOGUIDES = {
    "AutoNormal": lambda m: AutoNormal(m, init_scale=0.3),
    "AutoMultivariateNormal": lambda m: AutoMultivariateNormal(m, init_scale=0.3),
    "AutoIAFNormal": lambda m: AutoIAFNormal(m, num_flows=1, hidden_dims=[4]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "AutoNormal")) for n in AUTOGUIDES],
)  # slow: compilation
def test_an_autoguide_gives_the_value_and_gradient_of_numpyros_elbo(name):
    """3000 keys: value sd about 1 nat, so a missing Jacobian (of order 1 nat) is 30 errors."""
    guide = AUTOGUIDES[name](positive)
    objective = inference.elbo(positive, guide)
    params = objective.init(KEY)
    ours = jax.jit(jax.vmap(lambda k: objective.value_and_grad(params, k)))

    def theirs(key):
        def loss(p):
            constrained = ppl.constrain(ppl.Params(p, params.constraints))
            return -Trace_ELBO().loss(key, constrained, positive, guide)

        return jax.value_and_grad(loss)(dict(params))

    one, two = jax.random.split(jax.random.key(1))
    values, grads = ours(jax.random.split(one, 3000))
    other_values, other_grads = jax.jit(jax.vmap(theirs))(jax.random.split(two, 3000))
    assert_same_mean(values, other_values)
    assert set(grads) == set(other_grads)
    for name in grads:
        for x, y in zip(*(jax.tree.leaves(g[name]) for g in (grads, other_grads)), strict=True):
            assert_same_mean(x, y, names=[f"{name}[{i}]" for i in range(x[0].size)])


@pytest.mark.slow
def test_autoguides_serve_a_program_with_a_scan():
    for make in (AutoNormal, AutoDelta):
        objective = inference.elbo(everything, make(everything))
        params = objective.init(KEY, YS)
        assert {"net", "scale"} <= set(params)
        value, grads = objective.value_and_grad(params, KEY, YS)
        leaves = jax.tree.leaves((value, grads))
        assert all(jnp.isfinite(x).all() for x in leaves)


# Objectives as losses of numpyro.infer.SVI.


@ppl.model
def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)


@ppl.model
def guide(x):
    loc = ppl.param("loc", jnp.asarray(-0.5))
    scale = ppl.param("scale", jnp.asarray(0.5), constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(loc, scale))


DATA = jnp.array([0.5, 1.5, 1.0])
POSTERIOR_LOC, POSTERIOR_SCALE = DATA.sum() / 4, 0.5

LOSSES = {
    "elbo": lambda m, g: inference.elbo(m, g, num_replicates=4),
    "iwelbo": lambda m, g: inference.iwelbo(m, g, num_particles=4),
}


@pytest.mark.fast("elbo")
@pytest.mark.parametrize("name", LOSSES)
def test_svi_converges_with_our_objective_as_its_loss(name):
    # A falling step: at a constant one the last parameters of the importance-weighted bound spread by 0.13.
    step = optax.exponential_decay(0.03, 100, 0.5, transition_begin=300)
    svi = SVI(model, guide, optax.adam(step), loss=LOSSES[name](model, guide))
    result = svi.run(KEY, 1000, DATA, progress_bar=False)
    assert abs(result.params["loc"] - POSTERIOR_LOC) < 0.1
    assert abs(result.params["scale"] - POSTERIOR_SCALE) < 0.12
    evidence = multivariate_normal.logpdf(DATA, jnp.zeros(3), jnp.eye(3) + 1)
    close(result.losses[-50:].mean(), -evidence, atol=0.05)


@pytest.mark.fast("elbo")
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_the_loss_is_our_gradient_in_expectation(name):
    """10,000 keys a side: 0.02 of a gradient of order 1 with sd 0.4 is over 7 errors."""
    objective = LOSSES[name](model, guide)
    constrained = {"loc": jnp.asarray(-0.5), "scale": jnp.asarray(0.5)}
    params = {"loc": jnp.asarray(-0.5), "scale": jnp.log(0.5)}

    def theirs(key):
        loss = lambda p: objective.loss(key, p, model, guide, DATA)
        value, grads = jax.value_and_grad(loss)(constrained)
        return -value, -grads["loc"], -grads["scale"] * 0.5  # d scale / d log scale = scale

    def ours(key):
        value, grads = objective.value_and_grad(params, key, DATA)
        return value, grads["loc"], grads["scale"]

    one, two = jax.random.split(jax.random.key(1))
    a, b = (
        np.stack(jax.jit(jax.vmap(f))(jax.random.split(k, 10_000)), -1)
        for f, k in ((theirs, one), (ours, two))
    )
    assert_same_mean(a, b, names=["value", "loc", "scale"])


def test_svi_accepts_a_discrete_guide_with_a_strategy():
    """NumPyro's own Trace_ELBO warns and then does a random walk here; the exact answer is a number."""

    @ppl.model
    def coin():
        b = ppl.sample("b", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=1.5)

    @ppl.model
    def coin_guide():
        ppl.sample("b", dist.Bernoulli(logits=ppl.param("l", jnp.asarray(0.0))))

    objective = inference.elbo(coin, coin_guide, strategies={"b": "enum"})
    svi = SVI(coin, coin_guide, numpyro.optim.Adam(0.1), loss=objective)
    result = svi.run(KEY, 200, progress_bar=False)
    odds = jnp.log(0.3 / 0.7) + norm.logpdf(1.5, 2.0) - norm.logpdf(1.5, 0.0)
    close(result.params["l"], odds, atol=1e-2)


@pytest.mark.slow
def test_svi_trains_a_module_and_a_scan():
    def guide(ys):
        for name, shape in (("start", ()), ("w", ())):
            ppl.sample(name, dist.Normal(ppl.param(f"{name}_loc", jnp.zeros(shape)), 0.1))
        ppl.scan(
            lambda c, m: (c, ppl.sample("z", dist.Normal(m, 0.1))),
            0.0,
            ppl.param("m", jnp.zeros(3)),
        )

    objective = inference.elbo(everything, guide)
    svi = SVI(everything, guide, numpyro.optim.Adam(0.01), loss=objective)
    state = svi.init(KEY, YS)
    before = svi.get_params(state)
    state, loss = svi.update(state, YS)
    after = svi.get_params(state)
    assert jnp.isfinite(loss) and after["m"].shape == (3,)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_compiled_update_needs_no_values_of_its_arguments():
    """NumPyro's validation would refuse made-up ones: probabilities that do not sum to one, a factor that is not triangular."""

    def model(probs, factor, y):
        z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), scale_tril=factor))
        numpyro.sample("c", dist.Categorical(probs), obs=1)
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Normal(z[0], 1.0), obs=y)

    def guide(probs, factor, y):
        scale = numpyro.param("scale", 0.5, constraint=dist.constraints.positive)
        numpyro.sample("z", dist.Normal(jnp.zeros(2), scale).to_event(1))

    args = jnp.array([0.2, 0.3, 0.5]), jnp.array([[1.0, 0.0], [0.5, 1.0]]), jnp.arange(3.0)
    svi = SVI(model, guide, numpyro.optim.Adam(0.03), loss=inference.elbo(model, guide))
    state = svi.init(KEY, *args)
    _, compiled = jax.jit(svi.update)(state, *args)
    _, eager = svi.update(state, *args)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)


def test_svi_hands_on_keyword_arguments():
    svi = SVI(model, guide, numpyro.optim.Adam(0.03), loss=inference.elbo(model, guide))
    state = svi.init(KEY, DATA)
    _, by_position = svi.update(state, DATA)
    _, by_name = svi.update(state, x=DATA)
    assert by_position == by_name


@pytest.mark.slow
def test_numpyros_own_elbo_takes_programs():
    """Trace_ELBO of NumPyro on our statements, subsampled plate included, is unbiased for the same bound."""

    @ppl.model
    def half(x):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 3, subsample_size=1) as rows:
            ppl.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    params = {"loc": jnp.asarray(0.3), "scale": jnp.asarray(0.5)}
    loss = lambda key: Trace_ELBO().loss(key, params, half, guide, DATA)
    losses = jax.jit(jax.vmap(loss))(jax.random.split(KEY, 10_000))
    second = lambda x: (0.3 - x) ** 2 + 0.25  # E (z - x)^2
    expected = -0.5 * (second(DATA) + jnp.log(2 * jnp.pi)).sum()
    expected += -0.5 * (second(0.0) + jnp.log(2 * jnp.pi)) + 0.5 * jnp.log(2 * jnp.pi * 0.25) + 0.5
    assert_unbiased(-losses, expected)
