"""REBAR and RELAX: exact mean by quadrature over the uniform numbers, whatever the control variate; z tests for the rest.

For Bernoulli sites the estimate is a smooth function of each uniform between the values of 1 - p, so that Gauss-Legendre nodes in
these cells integrate it to float32 rounding. The z tests state the bias that they find as `catches` (power over 99%,
false-alarm rate 6.8e-6 per coordinate and seed, seeds 0, 1, 2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _contexts import CONTEXTS, PARAMS, Language
from _oracles import (
    Exact,
    _on_rows,
    _table,
    assert_mean,
    bernoulli,
    bits,
    exact,
    nodes,
    normal,
    of,
    reference_elbo,
    reference_iwelbo,
    steps,
)

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

sigmoid = jax.nn.sigmoid
NETWORK = {"w": jnp.array([1.5, -0.8]), "b": jnp.array([0.3, -0.4]), "out": jnp.array([1.0, 2.0])}


def network(weights, z):
    """Two units of softplus on a weighted sum of whatever z holds."""
    z = jnp.ravel(z)
    total = jnp.sum(z * jnp.arange(1, z.size + 1)) / z.size
    return jnp.sum(weights["out"] * jax.nn.softplus(total * weights["w"] + weights["b"]))


class Preset:
    """The uniform numbers are data."""

    def uniforms(self, distribution, key, shape):
        return distribution.noise.reshape(shape)


class Relax(Preset, ppl.Relax):
    pass


class Rebar(Preset, ppl.Rebar):
    pass


def smooth(weights, z):
    """Rational in the uniform number: the quadrature is exact to rounding."""
    return weights[0] * sigmoid(z) + weights[1] * sigmoid(z) ** 2 - weights[2]


def row(weights, z):
    return weights[0] * jnp.prod(sigmoid(z)) + weights[1] * jnp.sum(sigmoid(z)) - weights[2]


RELAX = Relax(smooth, jnp.array([1.5, -2.0, 0.7]))
LARGE = Relax(smooth, jnp.array([-8.0, 5.0, 3.0]))
ROW = Relax(row, jnp.array([1.5, -2.0, 0.7]), num_joint_axes=1)
SOFT = Rebar(0.8, 1.0)
SHARP = Rebar(1.3, 0.5)


def rule(spec, truth, m, enumerated=()):
    """Gauss-Legendre nodes in the cells of Bernoulli sites; other sites by their own rule."""
    x, w = np.polynomial.legendre.leggauss(m)

    def values(name, i):
        if not spec[name].num_values:
            return spec[name].rule
        if name in enumerated:
            return [0.5], [1.0]
        edges = np.unique(
            np.round(np.concatenate([[0.0], truth.cdfs[name][:, i].ravel(), [1.0]]), 9)
        )
        half, mid = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        return (mid[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()

    return _table(spec, values)


def moments(expectation, params, spec, truth, m=6, enumerated=(), state=None):
    """Mean and variance of the gradient estimates by quadrature, and the mean value."""
    rows, weights = rule(spec, truth, m, enumerated)
    assert len(weights) < 200_000
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    rows = jax.tree.map(lambda x: jnp.asarray(x, float), rows)
    value, grads = jax.tree.map(lambda x: np.asarray(x, float), _on_rows(expectation)(params, state, rows))  # fmt: skip
    mean = jax.tree.map(lambda g: np.tensordot(weights, g, 1), grads)
    variance = jax.tree.map(lambda g, m: np.tensordot(weights, (g - m) ** 2, 1), grads, mean)
    return float(weights @ value), mean, variance


def assert_quadrature(got, truth, tol=1e-4):
    """Mean gradients equal the truth up to the quadrature's and float32's error, relative to the largest coordinate."""
    np.testing.assert_allclose(got[0], truth.value, rtol=tol, atol=tol)
    scale = max(1.0, max(float(np.abs(g).max()) for g in jax.tree.leaves(truth.grads)))
    for name, want in truth.grads.items():
        np.testing.assert_allclose(got[1][name], want, atol=tol * scale, err_msg=name)


def meeting_steps(p, noise):
    """A scan whose draws do not depend on each other, and whose costs meet in the carry."""

    def step(carry, x):
        b = ppl.sample("b", bernoulli(sigmoid(p["a"] + x["r"]), x.get("b")))
        return 0.5 * carry + b, (b - carry) ** 2

    carry, costs = ppl.scan(step, jnp.array(0.2), {"r": p["r"]} | steps(noise, "b"))
    return costs.sum() * (1 + p["w"]) + carry**3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SOFT, RELAX], ids=["rebar", "relax"])
def test_steps_that_meet_in_a_carry_have_the_exact_mean(strategy):
    spec = {"b": bits(3)}
    truth = exact(meeting_steps, PARAMS, spec)
    expectation = ppl.expectation(meeting_steps, strategies={"b": strategy})
    assert_quadrature(moments(expectation, PARAMS, spec, truth), truth)


@pytest.mark.slow
def test_rebar_inside_branches_has_the_exact_mean():
    program, truth = CONTEXTS["cond"], truth_of("cond")
    strategies = {"x": "enum", "*": SOFT}
    expectation = ppl.expectation(program.raw("bernoulli"), strategies=strategies)
    got = moments(expectation, PARAMS, program.spec("bernoulli"), truth, 6, enumerated=["x"])
    assert_quadrature(got, truth)


@functools.cache
def truth_of(context):
    program = CONTEXTS[context]
    return exact(program.raw("bernoulli"), PARAMS, program.spec("bernoulli"))


CASES = [
    ("straight", "relax", RELAX, 6),
    ("straight", "large", LARGE, 6),
    ("rows", "relax", RELAX, 6),
    ("rows", "joint row", ROW, 6),
    ("short-scan", "relax", RELAX, 6),
    ("cond", "relax", RELAX, 5),
    ("plate-mixed", "relax", RELAX, 4),
    ("rows", "rebar", SOFT, 6),
    ("rows", "sharp", SHARP, 8),
]
SLOW = [("event", "relax", RELAX, 4)]  # slow: 70,000 outcomes


@pytest.mark.fast("rows-rebar")
@pytest.mark.parametrize(
    ("context", "strategy", "m"),
    [pytest.param(c, s, m, id=f"{c}-{n}") for c, n, s, m in CASES]
    + [pytest.param(c, s, m, id=f"{c}-{n}", marks=pytest.mark.slow) for c, n, s, m in SLOW],
)
def test_expectation_has_the_exact_mean(context, strategy, m):
    program, truth = CONTEXTS[context], truth_of(context)
    expectation = ppl.expectation(program.raw("bernoulli"), strategies={"*": strategy})
    assert_quadrature(moments(expectation, PARAMS, program.spec("bernoulli"), truth, m), truth)


@pytest.mark.fast("rows-sharp")
@pytest.mark.parametrize(
    ("context", "strategy"),
    [
        ("rows", SOFT),
        ("rows", SHARP),
        ("rows", ROW),
        ("short-scan", RELAX),
        pytest.param("cond", RELAX, marks=pytest.mark.slow),
    ],
    ids=["rows-rebar", "rows-sharp", "rows-joint", "short-scan-relax", "cond-relax"],
)  # slow: the largest table of outcomes
def test_elbo_has_the_exact_mean(context, strategy):
    """The site's own log-density lies in the cost: at relaxed values its derivative counts."""
    program = CONTEXTS[context]
    spec, (model, guide) = program.spec("bernoulli"), program.programs("bernoulli")
    objective = inference.elbo(model, guide, strategies={"*": strategy})
    noise = {name: jnp.full(site.shape, 0.5) for name, site in spec.items()}
    params = objective.init(jax.random.key(0), noise)
    truth = exact(reference_elbo(model, guide), params, spec)
    assert_quadrature(moments(objective, params, spec, truth, 5 if context == "cond" else 8), truth)


def three(p, noise):
    x = ppl.sample("x", bernoulli(sigmoid(p["a"]), of(noise, "x"))) * 1.0
    with ppl.plate("rows", 2):
        y = ppl.sample("y", bernoulli(sigmoid(p["r"][:2] + 0.6 * x), of(noise, "y"))) * 1.0
    z = ppl.sample("z", bernoulli(sigmoid(p["b"] - y.sum() + x), of(noise, "z"))) * 1.0
    n = ppl.sample("n", normal(p["w"] * y.prod() + z, 0.7, of(noise, "n")))
    return (x + y.sum() - z) ** 2 * (1 + 0.1 * n) + p["a"] * y[0] * z + n**2


MIXTURES = {
    "rebar between enumerated sites": {"x": "enum", "y": SHARP, "z": "enum"},
    "rebar behind a score function": {"x": "reinforce", "y": SOFT, "z": "enum"},
    "rebar behind a weak derivative": {"x": "mvd", "y": "enum", "z": SHARP},
    "relax between enumerated sites": {"x": "enum", "y": RELAX, "z": "enum"},
    "relax before and behind others": {"x": RELAX, "y": "mvd", "z": RELAX, "n": "reinforce"},
    "both": {"x": RELAX, "y": RELAX, "z": SHARP},
}


@pytest.mark.fast("relax before and behind others")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if i in (0, 1, 4) else pytest.mark.slow)
        for i, n in enumerate(MIXTURES)
    ],
)  # slow: the rest
def test_mixed_strategies_have_the_exact_mean(name):
    strategies = MIXTURES[name]
    spec = {"x": bits(), "y": bits(2), "z": bits(), "n": nodes(4)}
    truth = exact(three, PARAMS, spec)
    enumerated = [k for k, v in strategies.items() if v == "enum"]
    m = 4 if name in ("both", "relax before and behind others") else 6
    expectation = ppl.expectation(three, strategies=strategies)
    assert_quadrature(
        moments(expectation, PARAMS, spec, truth, m, enumerated),
        truth,
        tol=3e-4 if m == 4 else 1e-4,
    )


# The samplers' own noise.

NET = ppl.Relax(network, NETWORK)
LEARNED = ppl.Relax(network, NETWORK, optax.sgd(0.02))


class OneHot(Language):
    """Categorical sites as one-hot rows, which can be relaxed."""

    def site(self, name, eta, noise, shape=(), kind=None, event=0):
        eta = jnp.broadcast_to(eta, shape)
        logits = eta[..., None] * jnp.array([0.0, 0.8, -0.5]) + jnp.array([0.1, -0.2, 0.3])
        fn = ppl.distributions.OneHotCategorical(logits)
        return 0.7 * ppl.sample(name, fn.to_event(event) if event else fn) @ jnp.arange(3.0)


SAMPLED = [
    ("scan", "bernoulli", LEARNED),
    ("plate-around-scan", "bernoulli", NET),
    ("nested-plate", "bernoulli", NET),
    ("plate-inside-scan", "bernoulli", NET),
    ("plate-mixed", "categorical", LEARNED),
    ("cond", "categorical", NET),
    ("scan", "categorical", NET),
    ("plate", "one-hot", NET),
    ("straight", "one-hot", {"x": "enum", "y": "rebar"}),
    ("rows", "one-hot", ppl.Rebar(0.7, 0.8)),
    ("rows", "bernoulli", ppl.Rebar(0.5, 0.3, optax.sgd(0.01))),
]
QUICK = (0, 8, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "kind", "strategy"),
    [
        pytest.param(*c, marks=() if i in QUICK else pytest.mark.slow, id=f"{c[0]}-{c[1]}-{i}")
        for i, c in enumerate(SAMPLED)
    ],
)  # slow: the rest of the matrix
def test_estimates_with_their_own_noise_are_unbiased(context, kind, strategy, key):
    program = CONTEXTS[context]
    truth_kind = "bernoulli" if kind == "bernoulli" else "categorical"
    language = OneHot if kind == "one-hot" else Language
    truth = exact(program.raw(truth_kind), PARAMS, program.spec(truth_kind))
    expectation = ppl.expectation(
        lambda p: program.body(language(kind, p), None),
        strategies=strategy if isinstance(strategy, dict) else {"*": strategy},
    )
    assert_mean(expectation, PARAMS, truth, key, n=40_000, catches=0.3, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [NET, ppl.Rebar(0.7, 0.5)], ids=["relax", "rebar"])
def test_particles_under_a_cost_that_is_not_linear(strategy, key):
    program = CONTEXTS["rows"]

    def fn(params, noise):
        costs = ppl.particles(2)(lambda: program.body(Language("bernoulli", params), noise))()
        return 0.1 * costs[0] * costs[1] + costs.mean()

    truth = exact(fn, PARAMS, program.spec("bernoulli", num_lanes=2))
    expectation = ppl.expectation(lambda p: fn(p, None), strategies={"*": strategy})
    assert_mean(expectation, PARAMS, truth, key, n=40_000, catches=0.4)


@pytest.mark.slow  # a bound of several lanes compiles slowly
def test_iwelbo_under_rebar_is_unbiased(key):
    program = CONTEXTS["rows"]
    model, guide = program.programs("bernoulli")
    objective = inference.iwelbo(
        ppl.model(lambda: model(None)), ppl.model(lambda: guide(None)), num_particles=2, per="plate",
        strategies={"*": "rebar"},
    )  # fmt: skip
    params = objective.init(jax.random.key(0))
    truth = exact(
        reference_iwelbo(model, guide, 2, "rows"), params, program.spec("bernoulli", num_lanes=2)
    )
    assert_mean(objective, params, truth, key, catches=0.2)


@pytest.mark.slow  # 240,000 estimates
def test_inputs_follow_their_rows_through_a_scan(key):
    """A control variate that sees its row of the data."""
    data = jnp.array([[0.4, -0.3], [0.8, 0.1], [1.0, 2.0]])

    def fn(p, xs=None):
        def step(carry, x):
            with ppl.plate("rows", 3):
                b = ppl.sample("b", dist.Bernoulli(logits=p + 0.3 * carry)) * 1.0
            return carry + b.mean(), jnp.sum((b - data[:, 0]) ** 2 + b * data[:, 1])

        return ppl.scan(step, 0.0, None, 2)[1].sum()

    strategy = ppl.Relax(
        lambda w, z, x: w * (sigmoid(z) * x[1] + jnp.tanh(z) * x[0]),
        jnp.array(0.7),
        optax.sgd(0.1),
        inputs=data,
    )
    score, relax = (ppl.expectation(fn, strategies=s) for s in ("enum", strategy))
    value, grad = score.value_and_grad(jnp.array(0.2), key)
    assert_mean(
        relax,
        jnp.array(0.2),
        Exact(float(value), np.asarray(grad), {}),
        key,
        n=80_000,
        catches=0.1,
        steps=2,
    )


# What is learned.

TARGET = jnp.array([0.4, -0.3, 0.8])
LOGITS = jnp.array([0.4, -0.7, 0.2])


def meeting(logits, noise):
    with ppl.plate("rows", 3):
        b = ppl.sample("b", bernoulli(sigmoid(logits), of(noise, "b"))) * 1.0
    return 2.0 * (b @ TARGET - 0.5) ** 2 + 3.0 * b[0] * b[1] + b.sum()


@functools.cache
def variances(strategy, trained=None, num_steps=600):
    """Exact variances of the estimate; `trained` is the strategy with its own noise, whose state is learned first."""
    spec = {"b": bits(3)}
    truth = exact(meeting, LOGITS, spec)
    state = None
    if trained is not None:
        expectation = ppl.expectation(lambda p: meeting(p, None), strategies=trained)

        def step(state, key):
            return expectation.step(LOGITS, state, key)[2], None

        expectation.plan(LOGITS)
        keys = jax.random.split(jax.random.key(0), num_steps)
        state = jax.jit(lambda s, k: jax.lax.scan(step, s, k)[0])(
            expectation.init_state(LOGITS), keys
        )
    got = moments(
        ppl.expectation(meeting, strategies=strategy), LOGITS, spec, truth, 6, state=state
    )
    np.testing.assert_allclose(got[1], truth.grads, rtol=1e-3, atol=1e-3)
    return got[2]


class Plain(Preset, ppl.Relax):
    """The score function on the same noise."""


PLAIN = Plain(lambda w, z: w * jnp.sum(z), jnp.array(0.0), num_joint_axes=1)


@pytest.mark.slow
def test_rebar_lowers_the_variance_and_training_lowers_it_further():
    optimizer = optax.adam(0.02)
    before = variances(Rebar(0.3, 3.0))
    after = variances(Rebar(0.3, 3.0, optimizer), ppl.Rebar(0.3, 3.0, optimizer))
    assert (after <= 0.8 * before).all(), (before, after)
    assert (after <= 0.5 * variances(PLAIN)).all(), (variances(PLAIN), after)


@pytest.mark.slow
def test_relax_lowers_the_variance_by_training_from_nothing():
    weights = jax.tree.map(
        lambda w: 0.0 * w if w.shape == (3,) else w,
        {"w": jnp.zeros(3), "pair": jnp.zeros(()), "b": jnp.zeros(())},
    )

    def control(weights, z):
        soft = sigmoid(2.0 * z)
        return soft @ weights["w"] + weights["pair"] * soft[0] * soft[1] + weights["b"]

    optimizer = optax.adam(0.02)
    after = variances(
        Relax(control, weights, optimizer, num_joint_axes=1),
        ppl.Relax(control, weights, optimizer, num_joint_axes=1),
    )
    assert (after <= 0.5 * variances(PLAIN)).all(), (variances(PLAIN), after)


@pytest.mark.slow
def test_state_moves_with_an_optimizer_only_and_is_no_parameter(key):
    for optimizer, moves in ((None, False), (optax.sgd(0.1), True)):
        for strategy in (ppl.Relax(network, NETWORK, optimizer), ppl.Rebar(optimizer=optimizer)):
            expectation = ppl.expectation(lambda p: meeting(p, None), strategies={"b": strategy})
            state = expectation.init_state(LOGITS)
            _, grads, new = expectation.step(LOGITS, state, key)
            assert jnp.shape(grads) == LOGITS.shape
            same = jax.tree.map(
                lambda a, b: bool(jnp.all(a == b)), state["b"]["weights"], new["b"]["weights"]
            )
            assert all(jax.tree.leaves(same)) != moves


# Broken on purpose.


class NoSlope(Relax):
    """Subtracts c and never adds its expectation's derivative."""

    def control(self, weights, local, downstream):
        c, slope = super().control(weights, local, downstream)
        return c, 0 * slope


class Unconditional(Relax):
    """Takes the derivative of z alone, not of z given b."""

    def _slope(self, weights, local, downstream):
        c, slope = self.control(weights, local, downstream)
        return (downstream.cost - c) * ((local["z"] > 0) - sigmoid(local["logits"])) + slope


class WrongSoft(Rebar):
    """Cost and derivative at different temperatures."""

    def control(self, weights, local, downstream):
        c, _ = super().control(weights, local, downstream)
        return c, super().control(weights | {"log_temperature": 1.0}, local, downstream)[1]


BROKEN = [
    NoSlope(smooth, RELAX.weights),
    Unconditional(smooth, RELAX.weights),
    WrongSoft(0.8, 1.0),
]


@pytest.mark.fast("Unconditional")
@pytest.mark.parametrize("broken", BROKEN, ids=lambda s: type(s).__name__)
def test_quadrature_finds_a_broken_estimator(broken):
    program, truth = CONTEXTS["rows"], truth_of("rows")
    expectation = ppl.expectation(program.raw("bernoulli"), strategies={"*": broken})
    got = moments(expectation, PARAMS, program.spec("bernoulli"), truth)
    with pytest.raises(AssertionError, match="Mismatch"):
        assert_quadrature(got, truth)


# Refusals.


def bit(p, strategy, cost, fn=dist.Bernoulli):
    return ppl.expectation(
        lambda p: cost(ppl.sample("b", fn(p))) * 1.0, strategies={"b": strategy}
    ).plan(p)


JUMPING = {
    "comparison": lambda b: jnp.where(b > 0.5, 2.0, p_free()),
    "cast": lambda b: jnp.array([1.0, 5.0])[b.astype(int)],
    "round": lambda b: jnp.round(b * 1.2),
    "branch": lambda b: ppl.cond(b > 0.5, lambda: 3.0, lambda: 1.0),
}


def p_free():
    return 0.3


@pytest.mark.slow_for("comparison")
@pytest.mark.parametrize("name", JUMPING)
def test_a_cost_that_jumps_in_relaxed_values_is_refused_by_rebar_only(name):
    with pytest.raises(
        ValueError,
        match="Site 'b': the result jumps .* relaxed value .*operation.*'rebar'.*Use 'disarm'",
    ):
        bit(0.3, "rebar", JUMPING[name])
    bit(0.3, ppl.Relax(network, NETWORK), JUMPING[name])


def test_continuous_costs_pass():
    for cost in (
        jax.nn.relu,
        lambda b: jnp.where(b > 0.5, b - 0.5, 0.0),
        lambda b: jnp.abs(b - 0.3),
        jnp.square,
    ):
        bit(0.3, "rebar", cost)


def test_a_jump_inside_the_simplex_is_found():
    """Continuous on every edge between two hard values, not inside."""
    cost = lambda x: jnp.where(x.prod() > 0.01, 1.0, 0.0)  # noqa: E731
    with pytest.raises(ValueError, match="'b'.*relaxed value"):
        bit(jnp.array([0.1, 0.4, -0.3]), "rebar", cost, ppl.distributions.OneHotCategorical)


def test_a_sampled_site_downstream_is_refused():
    def fn(p, strategy):
        b = ppl.sample("b", dist.Bernoulli(p), strategy="rebar")
        return ppl.sample("c", dist.Bernoulli(sigmoid(b)), strategy=strategy) * b

    ppl.expectation(lambda p: fn(p, "enum")).plan(0.3)
    for strategy in ("reinforce", "mvd", "disarm", "rebar"):
        with pytest.raises(
            ValueError,
            match="Site 'b': strategy 'rebar' .* the sampled site 'c' depends.*Enumerate 'c'",
        ):
            ppl.expectation(lambda p, s=strategy: fn(p, s)).plan(0.3)

    def chain(p):
        step = lambda c, _: (c + ppl.sample("b", dist.Bernoulli(sigmoid(p + c))), None)  # noqa: E731
        return ppl.scan(step, 0.0, None, 3)[0]

    with pytest.raises(ValueError, match="Site 'b'.*the sampled site 'b' depends"):
        ppl.expectation(chain, strategies="rebar").plan(0.3)


def test_other_distributions_are_refused():
    with pytest.raises(
        ValueError,
        match="Site 'b': strategy 'rebar' is for .* not for CategoricalLogits .*OneHotCategorical.*Sound",
    ):
        bit(jnp.zeros(3), "rebar", jnp.asarray, lambda t: dist.Categorical(logits=t))
    for strategy in ("rebar", ppl.Relax(network, NETWORK)):
        with pytest.raises(
            ValueError, match="Site 'b': strategy '.*' is for .* not for Poisson.*Sound here"
        ):
            bit(0.3, strategy, jnp.asarray, dist.Poisson)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="Rebar: temperature must be positive, got 0"):
        ppl.Rebar(temperature=0.0)
    with pytest.raises(
        ValueError, match=r"Relax: num_joint_axes is 1, but .*statement have shape \(\)"
    ):
        bit(0.3, ppl.Relax(network, NETWORK, num_joint_axes=1), jnp.asarray)
    jump = lambda w, z: jnp.where(z > 0, w, 0.0)  # noqa: E731
    with pytest.raises(
        ValueError,
        match="Relax: control_fn jumps by .* as a function of z .operation: .*continuous function",
    ):
        bit(0.3, ppl.Relax(jump, jnp.array(1.0)), jnp.asarray)
    bit(0.3, ppl.Relax(lambda w, z: jax.nn.leaky_relu(w * z), jnp.array(1.0)), jnp.asarray)


@pytest.mark.slow  # a long compilation
def test_relaxed_bernoulli_draws_have_a_density_inside_an_expectation(key):
    """Also those of the biased estimators, in either parametrisation; it is linear between 0 and 1."""

    def model():
        b = ppl.sample("b", dist.Bernoulli(probs=jnp.array([0.3, 0.6])).to_event(1))
        ppl.sample("x", dist.Normal(b.sum(), 1.0), obs=jnp.array(0.4))

    def guide():
        ppl.sample("b", dist.Bernoulli(logits=ppl.param("t", jnp.array([0.2, -0.3]))).to_event(1))

    for strategy in ("gumbel_softmax", "rebar"):
        objective = inference.elbo(model, guide, strategies={"b": strategy})
        value, grads = objective.value_and_grad(objective.init(key), key)
        assert np.isfinite(value) and np.isfinite(grads["t"]).all()


def test_values_given_between_zero_and_one_stay_impossible_outside_an_expectation():
    """Only an expectation's own draws are relaxed."""
    program = ppl.model(lambda: ppl.sample("b", dist.Bernoulli(0.3)))
    assert program.log_density({"b": jnp.array(0.4)}) == -jnp.inf


@pytest.mark.slow
def test_sure_draws_have_finite_gradients():
    def fn(p):
        with ppl.plate("rows", 3):
            # Two of them are held at 0 and 1: probabilities there that a parameter moves are refused.
            b = ppl.sample(
                "b", dist.Bernoulli(probs=jnp.array([0.0, 1.0, 0.0]) + p * (jnp.arange(3) == 2))
            )
        k = ppl.sample(
            "k", ppl.distributions.OneHotCategorical(jnp.array([0.0, -jnp.inf, 1.0]) + p.sum())
        )
        return b.sum() ** 2 + k @ jnp.arange(3.0)

    for strategy in ("rebar", NET):
        expectation = ppl.expectation(fn, strategies=strategy)
        keys = jax.random.split(jax.random.key(0), 100)
        grads = jax.vmap(lambda k, e=expectation: e.grad(jnp.array([0.0, 1.0, 0.4]), k))(keys)
        assert np.isfinite(grads).all()
