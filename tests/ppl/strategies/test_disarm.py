"""ARM and DisARM: exact mean over all outcomes of the uniform numbers, z tests where replicates or lanes come in.

The uniforms of an element run through the cells between all values of its p and 1 - p; ARM is linear in them within a cell,
so midpoints integrate it exactly. Exact tests find any bias above float32 rounding; the z tests state theirs as `catches`
(power over 99%, false-alarm rate 6.8e-6 per coordinate and seed, seeds 0, 1, 2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _contexts import CONTEXTS, PARAMS, Language
from _oracles import (
    Exact,
    Site,
    _on_rows,
    _table,
    assert_exact,
    assert_mean,
    bernoulli,
    bits,
    exact,
    gamma,
    gamma_nodes,
    moments,
    normal,
    num_outcomes,
    of,
    reference_elbo,
    reference_iwelbo,
)

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

sigmoid = jax.nn.sigmoid


class Preset:
    """The uniform numbers are data."""

    def uniforms(self, distribution, key, shape):
        return distribution.noise.reshape(shape)


class DisARM(Preset, ppl.DisARM):
    pass


class ARM(Preset, ppl.ARM):
    pass


PRESET = {"disarm": DisARM(), "arm": ARM()}
MATRIX = [name for name in CONTEXTS if name not in ("rows", "short-scan")]


def both_edges(truth, names=None):
    """The antithetic partner jumps at p where the draw jumps at 1 - p."""
    edges = {
        k: np.concatenate([v, 1 - v]) if names is None or k in names else v
        for k, v in truth.cdfs.items()
    }
    return Exact(truth.value, truth.grads, edges)


@functools.cache
def truth_of(context, kind="bernoulli"):
    program = CONTEXTS[context]
    return exact(program.raw(kind), PARAMS, program.spec(kind))


def cases(names, quick):
    return [
        pytest.param(*c, marks=() if c in quick else pytest.mark.slow)
        for c in ((c, s) for c in names for s in PRESET)
    ]  # slow: the rest of the matrix, up to 75,000 outcomes


QUICK = [
    (c, "disarm") for c in ("plate-mixed", "nested-plate", "cond", "plate-inside-scan", "event")
]
QUICK += [("plate-mixed", "arm")]


@pytest.mark.fast("event-disarm")
@pytest.mark.parametrize(("context", "strategy"), cases(MATRIX, QUICK))
def test_expectation_has_the_exact_mean(context, strategy):
    program = CONTEXTS[context]
    spec, truth = program.spec("bernoulli"), both_edges(truth_of(context))
    assert num_outcomes(spec, truth) < 200_000
    expectation = ppl.expectation(program.raw("bernoulli"), strategies={"*": PRESET[strategy]})
    assert_exact(moments(expectation, PARAMS, spec, truth), truth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "strategy"),
    cases(MATRIX, [("plate-mixed", "disarm")]),
)
def test_elbo_has_the_exact_mean(context, strategy):
    program = CONTEXTS[context]
    spec, (model, guide) = program.spec("bernoulli"), program.programs("bernoulli")
    objective = inference.elbo(model, guide, strategies={"*": PRESET[strategy]})
    noise = {name: jnp.full(site.shape, 0.5) for name, site in spec.items()}
    params = objective.init(jax.random.key(0), noise)
    truth = both_edges(exact(reference_elbo(model, guide), params, spec))
    assert_exact(moments(objective, params, spec, truth), truth)


# Stick breaking.


class _Sticks(dist.CategoricalLogits):
    """A categorical site whose noise has one number per stick."""

    pytree_data_fields = ("noise",)

    def __init__(self, logits, noise):
        self.noise = noise
        super().__init__(jnp.broadcast_to(logits, noise.shape[:-1] + logits.shape[-1:]))


_Sticks.__name__ = "CategoricalLogits"


class _OneHotSticks(ppl.distributions.OneHotCategorical):
    pytree_data_fields = ("noise",)

    def __init__(self, logits, noise):
        self.noise = noise
        super().__init__(jnp.broadcast_to(logits, noise.shape[:-1] + logits.shape[-1:]))


_OneHotSticks.__name__ = "OneHotCategorical"


class Broken(Language):
    """Categorical sites whose sticks are preset, as numbers or as one-hot rows."""

    make = _Sticks

    def site(self, name, eta, noise, shape=(), kind=None, event=0):
        eta = jnp.broadcast_to(eta, shape)
        logits = eta[..., None] * jnp.array([0.0, 0.8, -0.5]) + jnp.array([0.1, -0.2, 0.3])
        fn = self.make(logits, noise)
        z = ppl.sample(name, fn.to_event(event) if event else fn)
        if isinstance(fn, _OneHotSticks):
            z = z @ jnp.arange(3.0)
        return 0.7 * z


class BrokenOneHot(Broken):
    make = _OneHotSticks


def sticks_of(truth):
    edges = {}
    for name, cdf in truth.cdfs.items():
        first, second = cdf[..., 0], (cdf[..., 1] - cdf[..., 0]) / (1 - cdf[..., 0])
        sticks = np.stack([first, second], -1).reshape(len(cdf), -1, 1)
        edges[name] = np.concatenate([sticks, 1 - sticks])
    return Exact(truth.value, truth.grads, edges)


CATEGORICAL = [  # (context, language, strategy)
    ("straight", Broken, "disarm"),
    ("straight", BrokenOneHot, "arm"),
    ("rows", BrokenOneHot, "disarm"),
    ("short-scan", Broken, "disarm"),
    ("short-scan", Broken, "arm"),
]


@pytest.mark.fast("rows-BrokenOneHot-disarm")
@pytest.mark.parametrize(("context", "language", "strategy"), CATEGORICAL)
def test_categorical_sites_have_the_exact_mean(context, language, strategy):
    program = CONTEXTS[context]
    truth = sticks_of(truth_of(context, "categorical"))
    spec = {name: bits(*shape, 2) for name, shape in program.shapes.items()}
    assert num_outcomes(spec, truth) < 200_000
    expectation = ppl.expectation(
        lambda params, noise: program.body(language("categorical", params), noise),
        strategies={"*": PRESET[strategy]},
    )
    assert_exact(moments(expectation, PARAMS, spec, truth), truth)


# Beside other strategies.


def four(p, noise):
    """Two antithetic elements that meet, between sites of other kinds, in a cost that is a product."""
    x = ppl.sample("x", bernoulli(sigmoid(p["a"]), of(noise, "x")))
    with ppl.plate("rows", 2):
        y = ppl.sample("y", bernoulli(sigmoid(p["r"][:2] + 0.6 * x), of(noise, "y")))
    z = ppl.sample("z", bernoulli(sigmoid(p["b"] - y.sum() + x), of(noise, "z")))
    n = ppl.sample("n", normal(p["w"] * y.prod() + z, 0.7, of(noise, "n")))
    return (x + y.sum() - z) ** 2 * n + p["a"] * y[0] * z + n**2


MIXTURES = {
    "upstream enumerated": {"x": "enum", "y": DisARM(), "z": DisARM()},
    "downstream enumerated": {"x": DisARM(), "y": DisARM(), "z": "enum"},
    "weak derivatives around": {"x": "mvd", "y": DisARM(), "z": "mvd"},
    "score functions around": {"x": "reinforce", "y": ARM(), "z": "reinforce", "n": "reinforce"},
}


@pytest.mark.fast("weak derivatives around")
@pytest.mark.parametrize("name", MIXTURES)
def test_mixed_strategies_have_the_exact_mean(name):
    spec = {"x": bits(), "y": bits(2), "z": bits(), "n": Site((), 0, digits_rule())}
    truth = exact(four, PARAMS, spec)
    strategies = MIXTURES[name]
    enumerated = [k for k, v in strategies.items() if v == "enum"]
    antithetic = [k for k, v in strategies.items() if isinstance(v, Preset)]
    got = moments(
        ppl.expectation(four, strategies=strategies),
        PARAMS,
        spec,
        both_edges(truth, antithetic),
        enumerated=enumerated,
    )
    assert_exact(got, truth)


def digits_rule(num_nodes=5):
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    return x, w / w.sum()


# The samplers' own noise: lanes, multi-sample bounds, replicates.


@pytest.mark.slow
@pytest.mark.parametrize(
    "context", ["straight", pytest.param("rows", marks=pytest.mark.slow)]
)  # slow: the second context
@pytest.mark.parametrize(
    "kind", ["bernoulli", pytest.param("categorical", marks=pytest.mark.slow)]
)  # slow: the second kind
def test_particles_under_a_cost_that_is_not_linear(context, kind, key):
    program = CONTEXTS[context]

    def fn(params, noise):
        costs = ppl.particles(2)(lambda: program.body(Language(kind, params), noise))()
        return 0.1 * costs[0] * costs[1] + costs.mean()

    truth = exact(fn, PARAMS, program.spec(kind, num_lanes=2))
    expectation = ppl.expectation(lambda p: fn(p, None), strategies={"*": "disarm"})
    assert_mean(expectation, PARAMS, truth, key, n=40_000, catches=0.4)


@pytest.mark.parametrize(
    ("context", "per"),
    [("short-scan", "joint"), ("rows", "plate")],
)
@pytest.mark.slow  # bounds of several lanes compile slowly
def test_iwelbo_is_unbiased(context, per, key):
    program = CONTEXTS[context]
    model, guide = program.programs("bernoulli")
    objective = inference.iwelbo(
        ppl.model(lambda: model(None)), ppl.model(lambda: guide(None)), num_particles=2, per=per,
        strategies={"*": "disarm"},
    )  # fmt: skip
    params = objective.init(jax.random.key(0))
    reference = reference_iwelbo(model, guide, 2, None if per == "joint" else "rows")
    truth = exact(reference, params, program.spec("bernoulli", num_lanes=2))
    assert_mean(objective, params, truth, key, catches=0.25)


@pytest.mark.slow  # three replicates of four strategies compile slowly
def test_strategies_of_several_replicates_mix_with_others(key):
    def fn(p, noise):
        x = ppl.sample("x", bernoulli(sigmoid(p["a"]), of(noise, "x")))
        y = ppl.sample("y", bernoulli(sigmoid(p["b"] + x), of(noise, "y")))
        g = ppl.sample("g", gamma(3.0, jnp.exp(p["s"] + 1), of(noise, "g")))
        return (x + y) ** 2 * g + p["a"] * y * x

    params = {name: PARAMS[name] for name in "abs"}
    truth = exact(fn, params, {"x": bits(), "y": bits(), "g": gamma_nodes(3.0, 2)})
    strategies = {"x": "reinforce_loo", "y": "disarm", "g": "implicit"}
    expectation = ppl.expectation(lambda p: fn(p, None), strategies=strategies)
    assert_mean(expectation, params, truth, key, catches=0.15)


@pytest.mark.slow_for("Categorical")
@pytest.mark.parametrize(
    "make",
    [dist.Categorical, pytest.param(ppl.distributions.OneHotCategorical, marks=pytest.mark.slow)],
)  # slow: the second class
def test_the_site_draws_from_its_density(make, key):
    """Values and gradients of the class frequencies, with own uniforms: E[1[k = c]] = p_c."""

    def fn(logits):
        k = ppl.sample("k", make(logits=logits))
        onehot = k if make is ppl.distributions.OneHotCategorical else jax.nn.one_hot(k, 4)
        return onehot @ jnp.array([1.0, -2.0, 0.5, 3.0])

    logits = jnp.array([0.3, -0.5, 0.2, 0.0])
    value, grad = jax.value_and_grad(
        lambda t: jax.nn.softmax(t) @ jnp.array([1.0, -2.0, 0.5, 3.0])
    )(logits)
    truth = Exact(float(value), np.asarray(grad), {})
    assert_mean(ppl.expectation(fn, strategies="disarm"), logits, truth, key, n=40_000, catches=0.1)


# Variance and cost.

TARGET = jnp.array([0.4, -0.3, 0.8, 0.1])
LOGITS = jnp.array([0.4, -0.7, 0.2, 1.1])


def meeting(logits, noise):
    with ppl.plate("rows", 4):
        b = ppl.sample("b", bernoulli(sigmoid(logits), of(noise, "b")))
    return (b @ TARGET - 0.5) ** 2 + 3.0 * b[0] * b[1] + b.sum()


def variances(strategy):
    """Exact variances of each coordinate; two Gauss nodes a cell integrate squares of ARM's weights."""
    spec = {"b": bits(4)}
    truth = both_edges(exact(meeting, LOGITS, spec))

    def nodes(name, i):
        edges = np.unique(np.concatenate([[0.0], truth.cdfs[name][:, i].ravel(), [1.0]]))
        half, mid = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        offset = half / np.sqrt(3)
        return np.concatenate([mid - offset, mid + offset]), np.concatenate([half, half])

    rows, weights = _table(spec, nodes)
    expectation = ppl.expectation(meeting, strategies=strategy)
    _, grads = _on_rows(expectation)(LOGITS, None, jax.tree.map(lambda x: jnp.asarray(x, float), rows))  # fmt: skip
    grads = np.asarray(grads, float)
    mean = weights @ grads
    np.testing.assert_allclose(mean, truth.grads, rtol=1e-4, atol=1e-4)
    return weights @ (grads - mean) ** 2


@pytest.mark.slow
def test_disarm_varies_less_than_arm_and_than_leave_one_out_of_two():
    """All three cost two evaluations for four elements that meet. No random numbers."""
    p = np.asarray(sigmoid(LOGITS), float)
    b = np.indices((2,) * 4).reshape(4, -1).T
    weight = np.prod(np.where(b == 1, p, 1 - p), 1)
    f = (b @ np.asarray(TARGET, float) - 0.5) ** 2 + 3.0 * b[:, 0] * b[:, 1] + b.sum(1)
    score = b - p
    loo = 0.5 * (f[:, None] - f)[..., None] * (score[:, None] - score)
    pairs = weight[:, None] * weight
    mean = np.tensordot(pairs, loo, 2)
    loo = np.tensordot(pairs, (loo - mean) ** 2, 2)
    disarm, arm = variances(DisARM()), variances(ARM())
    assert (disarm <= 0.9 * arm).all(), (disarm, arm)
    assert (disarm <= 0.9 * loo).all(), (disarm, loo)


def test_elements_that_meet_cost_two_evaluations():
    def steps(p, hands_on):
        def step(carry, _):
            b = ppl.sample("b", dist.Bernoulli(sigmoid(p + carry if hands_on else p)))
            return carry + b, None

        return ppl.scan(step, 0.0, None, 5)[0] ** 2

    evaluations = lambda fn, s: ppl.expectation(fn, strategies=s).plan(0.3)["b"].evaluations
    rows = lambda p: meeting(p * LOGITS, None)
    assert evaluations(rows, "disarm") == "2"
    assert "4 element" in evaluations(rows, "mvd")
    assert evaluations(lambda p: steps(p, False), "disarm") == "2"
    assert "5 step" in evaluations(lambda p: steps(p, True), "disarm")


# Broken on purpose, edges, refusals.


class HalfWeight(DisARM):
    def weight(self, uniforms, sticks):
        return 0.5 * super().weight(uniforms, sticks)


class NoPartner(DisARM):
    """Drops the cost at the antithetic values."""

    def surrogate(self, local, downstream):
        sticks, stop = local["sticks"], jax.lax.stop_gradient
        return (sticks - stop(sticks)) * stop(local["weight"] * downstream.cost[..., None])


class Alone(DisARM):
    """Weights of the whole vector's partner, cost with one element replaced: a term too few. Unbiased only by row."""

    calls = ("replay",)

    def surrogate(self, local, downstream):
        partner = downstream.replay(1 - local["other"])
        sticks, stop = local["sticks"], jax.lax.stop_gradient
        return (sticks - stop(sticks)) * stop(local["weight"] * (downstream.cost - partner)[..., None])  # fmt: skip


@pytest.mark.fast("NoPartner-short-scan")
@pytest.mark.parametrize("context", ["plate-mixed", "short-scan"])
@pytest.mark.parametrize(
    "broken", [HalfWeight(), NoPartner(), Alone()], ids=lambda s: type(s).__name__
)
def test_exact_tests_find_a_broken_estimator(broken, context):
    program = CONTEXTS[context]
    spec, truth = program.spec("bernoulli"), both_edges(truth_of(context))
    expectation = ppl.expectation(program.raw("bernoulli"), strategies={"*": broken})
    with pytest.raises(AssertionError, match="Mismatch"):
        assert_exact(moments(expectation, PARAMS, spec, truth), truth)


@pytest.mark.slow
def test_sure_draws_have_finite_gradients():
    """Probabilities 0 and 1, and logits beyond float32's reach: no NaN, and no estimate for what never varies."""

    def fn(p):
        with ppl.plate("rows", 3):
            # Two of them are held at 0 and 1: probabilities there that a parameter moves are refused.
            b = ppl.sample(
                "b", dist.Bernoulli(probs=jnp.array([0.0, 1.0, 0.0]) + p * (jnp.arange(3) == 2))
            )
        k = ppl.sample(
            "k", dist.Categorical(logits=jnp.array([0.0, -jnp.inf, 1.0, -jnp.inf]) * 1.0 + p.sum())
        )
        c = ppl.sample("c", dist.Bernoulli(logits=100.0 * (p[1] + 1)))
        return b.sum() ** 2 + k + 1.0 * c

    for strategy in ("disarm", "arm"):
        grads = jax.vmap(lambda k, s=strategy: ppl.expectation(fn, strategies=s).grad(jnp.array([0.0, 1.0, 0.4]), k))(
            jax.random.split(jax.random.key(0), 100)
        )  # fmt: skip
        assert np.isfinite(grads).all()
        np.testing.assert_allclose(grads[:, :2].std(0), 0, atol=1e-6)  # rounding of the softmax


@pytest.mark.parametrize("strategy", ["disarm", "arm"])
def test_other_distributions_are_refused(strategy, key):
    with pytest.raises(
        ValueError,
        match=f"Site 'x': strategy '{strategy}' is for .*Bernoulli.*not for Poisson.*Sound here",
    ):
        ppl.expectation(lambda p: ppl.sample("x", dist.Poisson(p)) * 1.0, strategies=strategy).grad(
            0.5, key
        )


def test_too_many_steps_one_by_one_are_refused(key):
    def fn(p):
        def step(carry, _):
            return carry + ppl.sample("b", dist.Bernoulli(sigmoid(p + carry))), None

        return ppl.scan(step, 0.0, None, 70_000)[0]

    with pytest.raises(ValueError, match="'b'.*'disarm' would replay 70000 elements one by one"):
        ppl.expectation(fn, strategies="disarm").plan(0.3)
