"""Programs that mix strategies, without random numbers: estimates averaged over all outcomes of their noise are exact.

No false alarms; a bias above float32 rounding is found.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers
import pytest
from _contexts import CONTEXTS, PARAMS, ROWS
from _oracles import (
    assert_exact,
    bernoulli,
    bits,
    categorical,
    digits,
    exact,
    moments,
    nodes,
    normal,
    of,
    reference_elbo,
    steps,
)

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

sigmoid = jax.nn.sigmoid


def check(fn, params, spec, strategies, **options):
    """The mean estimate of `fn(params, noise)` under the strategies is exact; returns its moments."""
    truth = exact(fn, params, spec)
    expectation = ppl.expectation(fn, strategies=strategies)
    enumerated = [name for name, s in strategies.items() if s == "enum"]
    got = moments(expectation, params, spec, truth, enumerated=enumerated, **options)
    assert_exact(got, truth)
    return got


def check_elbo(model, guide, spec, strategies, make=inference.elbo, reference=reference_elbo):
    model, guide = ppl.model(model), ppl.model(guide)
    objective = make(model, guide, strategies=strategies)
    params = objective.init(jax.random.key(0), {n: jnp.full(s.shape, 0.5) for n, s in spec.items()})
    truth = exact(reference(model, guide), params, spec)
    enumerated = [name for name, s in strategies.items() if s == "enum"]
    got = moments(objective, params, spec, truth, enumerated=enumerated)
    assert_exact(got, truth)
    return got


TWO_SITES = (
    "straight",
    "plate",
    "plate-mixed",
    "nested-plate",
    "nested-scan",
    "plate-inside-scan",
    "event",
    "cond",
)
PAIRS = list(itertools.permutations(("enum", "reinforce", "mvd"), 2))
QUICK = {
    ("straight", "enum", "mvd"),
    ("plate", "mvd", "enum"),
    ("plate-mixed", "enum", "reinforce"),
    ("plate-mixed", "reinforce", "enum"),
    ("nested-plate", "reinforce", "enum"),
    ("nested-scan", "enum", "reinforce"),
    ("nested-scan", "mvd", "enum"),
    ("plate-inside-scan", "enum", "mvd"),
    ("event", "reinforce", "enum"),
    ("cond", "enum", "mvd"),
    ("cond", "reinforce", "enum"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "upstream", "downstream"),
    [
        pytest.param(
            c, *p, marks=() if (c, *p) in QUICK else pytest.mark.slow
        )  # slow: the other pairs
        for c in TWO_SITES
        for p in PAIRS
    ],
)
def test_two_discrete_strategies_in_one_program(context, upstream, downstream):
    program = CONTEXTS[context]
    strategies = dict.fromkeys(program.shapes, downstream) | {"x": upstream}
    if context == "cond":
        strategies["v"] = upstream
    check(program.raw("bernoulli"), PARAMS, program.spec("bernoulli"), strategies)


@pytest.mark.fast("straight-bernoulli/normal-reinforce")
@pytest.mark.parametrize("discrete", ["enum", "reinforce", "mvd"])
@pytest.mark.parametrize(
    ("context", "order"),
    [
        ("straight", "bernoulli/normal"),
        ("straight", "normal/bernoulli"),
        ("plate-mixed", "bernoulli/normal"),
        ("plate-mixed", "normal/bernoulli"),
        ("cond", "bernoulli/normal"),
        pytest.param("plate", "normal/bernoulli", marks=pytest.mark.slow),  # slow: more of the same
        pytest.param("nested-scan", "normal/bernoulli", marks=pytest.mark.slow),
        pytest.param("nested-scan", "bernoulli/normal", marks=pytest.mark.slow),
        pytest.param("plate-inside-scan", "normal/bernoulli", marks=pytest.mark.slow),
        pytest.param("nested-plate", "bernoulli/normal", marks=pytest.mark.slow),
        pytest.param("event", "bernoulli/normal", marks=pytest.mark.slow),
    ],
)
def test_a_discrete_and_a_reparameterised_site_in_one_program(context, order, discrete):
    program = CONTEXTS[context]
    # "nested-scan" with Normal sites inside branches by their histories: fewer nodes keep the table small.
    spec = program.spec(order, 2)
    strategies = {}
    for name, site in spec.items():
        strategies[name] = discrete if site.num_values else "reparam"
    check(program.raw(order), PARAMS, spec, strategies)


def four_strategies(params, noise):
    """Continuous, discrete and continuous again; one strategy each."""
    x = ppl.sample("x", normal(params["m"], jnp.exp(params["s"]), of(noise, "x")))
    b = ppl.sample("b", bernoulli(sigmoid(params["a"] + x), of(noise, "b")))
    k = ppl.sample("k", categorical(params["l"] * (1 + b), of(noise, "k")))
    c = ppl.sample("c", bernoulli(sigmoid(params["a"] - 0.5 * k + 0.3 * x), of(noise, "c")))
    y = ppl.sample("y", normal(params["m"] * k - c, 0.7, of(noise, "y")))
    return (y - 0.3) ** 2 * (1 + b) + params["a"] * k * x + c * b


FOUR = {
    "m": jnp.array(0.2),
    "s": jnp.array(-0.8),
    "a": jnp.array(0.4),
    "l": jnp.array([0.1, -0.4, 0.5]),
}
FOUR_SPEC = {"x": nodes(3), "b": bits(), "k": digits(3), "c": bits(), "y": nodes(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", list(itertools.permutations(("enum", "reinforce", "mvd"))), ids="-".join
)
def test_four_strategies_in_one_program(order):
    strategies = dict(zip("bkc", order, strict=True)) | {"x": "reparam", "y": "reparam"}
    check(four_strategies, FOUR, FOUR_SPEC, strategies)


def chain_with_noise(params, noise):
    """A discrete state and a continuous one feed each other through the carry."""

    def step(carry, x):
        k = ppl.sample(
            "k", bernoulli(sigmoid(params["a"] + 0.6 * carry), None if x is None else x["k"])
        )
        z = ppl.sample(
            "z", normal(params["m"] * k + 0.4 * carry, 0.5, None if x is None else x["z"])
        )
        return z + 0.3 * k, (z - k) ** 2

    carry, costs = ppl.scan(step, params["m"], steps(noise, "k", "z"), 3)
    return costs.sum() + carry**2


@pytest.mark.slow
@pytest.mark.parametrize("discrete", ["enum", "reinforce", "mvd"])
def test_discrete_state_in_a_scan_feeds_the_carry(discrete):
    params = {"a": jnp.array(0.2), "m": jnp.array(0.5)}
    check(
        chain_with_noise, params, {"k": bits(3), "z": nodes(2, 3)}, {"k": discrete, "z": "reparam"}
    )


@pytest.mark.fast("cumsum-reinforce")
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
@pytest.mark.parametrize(
    "cost",
    [
        lambda z, p: z.sum() ** 2,
        lambda z, p: jnp.log(1.5 + (z * ROWS).sum()),
        lambda z, p: jnp.max(z * p["r"]) + z.prod(),
        lambda z, p: jnp.sum(z[1:] * z[:-1] * p["r"][1:]),
        lambda z, p: jnp.sum(jnp.cumsum(z) ** 2 * p["r"]),
        lambda z, p: jnp.sum((z - z[::-1]) ** 2 * p["r"]),
        lambda z, p: z @ jnp.outer(p["r"], ROWS) @ z,
        lambda z, p: jax.nn.logsumexp(z * p["r"]) + jnp.sort(z)[1] + z[0],
        lambda z, p: jnp.sum(z.reshape(3, 1) * ROWS) + (z[None] * z[:, None] * p["r"]).sum(),
        lambda z, p: jnp.roll(z, 1) @ z + jnp.take(z, jnp.array([2, 0])) @ ROWS[:2],
    ],
    ids="square log max neighbours cumsum reversed quadratic logsumexp outer roll".split(),
)
def test_rows_that_meet_in_a_cost_share_no_lanes(strategy, cost):
    def fn(params, noise):
        with ppl.plate("rows", 3):
            z = ppl.sample("z", bernoulli(sigmoid(params["r"]), of(noise, "z"))) * 1.0
        return cost(z, params)

    check(fn, {"r": PARAMS["r"]}, {"z": bits(3)}, {"z": strategy})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
def test_rows_that_separate_in_many_ways(strategy):
    """Costs row by row through reshapes, transposes, stacks, dot products and nested reductions."""

    def fn(params, noise):
        with ppl.plate("cols", 2, dim=-2), ppl.plate("rows", 3, dim=-1):
            z = (
                ppl.sample(
                    "z",
                    bernoulli(sigmoid(params["r"] * jnp.array([[1.0], [-0.5]])), of(noise, "z")),
                )
                * 1.0
            )
        pairs = jnp.stack([z, 1 - z], -1) @ jnp.array([1.0, 2.0])
        total = jnp.sum(pairs.T * params["r"][:, None]) - 2 * jnp.mean(z.reshape(-1) ** 2)
        total += jnp.concatenate([z * ROWS, z]).sum() / (1 + params["r"][0] ** 2)
        total += (
            jnp.einsum("cr,cr->", z, z * params["r"]) + jnp.where(z > 0.5, params["r"], 0.3).sum()
        )
        return total + jnp.sum(z, 0).sum() + jnp.trapezoid(z, axis=1).sum()

    check(fn, {"r": PARAMS["r"]}, {"z": bits(2, 3)}, {"z": strategy})


BROADCASTS = {
    "outer": ((2, 1), lambda z, u: z + u),
    "outer-product": ((2, 1), lambda z, u: z * u),
    "inner": ((3,), lambda z, u: z * u + z),
    "scalar": ((), lambda z, u: z * u - u),
    "ones": ((1, 1), lambda z, u: (z - u) ** 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(n, s, marks=[] if i % 3 == j else pytest.mark.slow)
        for i, n in enumerate(BROADCASTS)
        for j, s in enumerate(["enum", "reinforce", "mvd"])
    ],
)  # slow: the other pairs
def test_sites_of_different_plates_meet_by_broadcasting(name, strategy):
    """An axis of size one that broadcasts against a plate is not that plate."""
    shape, combine = BROADCASTS[name]

    def fn(params, noise):
        logits = jnp.broadcast_to(params["u"], shape)
        with ppl.plate("cols", 2, dim=-2) if shape == (2, 1) else ppl.plate("one", 1, dim=-2):
            if shape == (2, 1) or shape == (1, 1):
                u = ppl.sample("u", bernoulli(sigmoid(logits), of(noise, "u"))) * 1.0
        if shape == (3,):
            with ppl.plate("rows", 3, dim=-1):
                u = ppl.sample("u", bernoulli(sigmoid(logits), of(noise, "u"))) * 1.0
        if shape == ():
            u = ppl.sample("u", bernoulli(sigmoid(logits), of(noise, "u"))) * 1.0
        with ppl.plate("cols", 2, dim=-2), ppl.plate("rows", 3, dim=-1):
            z = (
                ppl.sample(
                    "z",
                    bernoulli(sigmoid(params["r"] + 0.5 * u) * jnp.ones((2, 3)), of(noise, "z")),
                )
                * 1.0
            )
        return jnp.sum(combine(z, u) * params["r"]) + (u**2).sum() * params["u"] + z[0].sum()

    check(
        fn,
        {"r": PARAMS["r"], "u": jnp.array(0.3)},
        {"u": bits(*shape), "z": bits(2, 3)},
        {"u": strategy, "z": "reinforce"},
    )


@pytest.mark.fast("plate-mvd")
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
@pytest.mark.parametrize("event", [0, 1], ids=["plate", "event"])
def test_elements_that_meet_in_a_joint_density(strategy, event):
    """A downstream distribution over a vector couples the rows: MultivariateNormal observed."""

    def model(noise):
        with ppl.plate("rows", 3):
            z = ppl.sample("z", bernoulli(0.4 * jnp.ones(3), of(noise, "z"))) * 1.0
        cov = jnp.eye(3) + 0.5
        ppl.sample("y", dist.MultivariateNormal(z * ppl.param("w", jnp.ones(3)), cov), obs=ROWS)

    def guide(noise):
        fn = bernoulli(sigmoid(ppl.param("r", PARAMS["r"])), of(noise, "z"))
        if event:
            # Same values, elements declared as an event.
            ppl.sample("z", fn.to_event(1))
        else:
            with ppl.plate("rows", 3):
                ppl.sample("z", fn)

    check_elbo(model, guide, {"z": bits(3)}, {"z": strategy})


@pytest.mark.slow  # a long compilation
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
def test_branch_of_a_site_that_is_taken_half_of_the_time(strategy):
    """Different sites, plates and a scan in the branches; the tail is not linear."""

    def fn(params, noise):
        k = ppl.sample("k", bernoulli(0.5, of(noise, "k")))

        def rows():
            with ppl.plate("rows", 2):
                z = ppl.sample("z", bernoulli(sigmoid(params["r"][:2]), of(noise, "z")))
            return z.sum() * params["a"]

        def walk():
            def step(carry, x):
                s = ppl.sample(
                    "s",
                    bernoulli(sigmoid(params["b"] + 0.5 * carry), None if x is None else x["s"]),
                )
                return carry + s, s * 0.5

            carry, ys = ppl.scan(step, 0.0, steps(noise, "s"), 2)
            return carry * 0.4 + ys.sum()

        value = ppl.cond(k == 1, rows, walk)
        return (value - 0.3) ** 2 + params["a"] * k

    params = {name: PARAMS[name] for name in "abr"}
    spec = {"k": bits(), "z": bits(2), "s": bits(2)}
    for first in ("enum", "reinforce"):
        check(fn, params, spec, {"k": first, "z": strategy, "s": strategy})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
def test_cond_inside_a_scan_and_a_scan_inside_a_plate(strategy):
    def fn(params, noise):
        def step(carry, x):
            b = ppl.sample(
                "b", bernoulli(sigmoid(params["a"] + 0.5 * carry), None if x is None else x["b"])
            )

            def yes():
                return (
                    0.5
                    * ppl.sample(
                        "z", bernoulli(sigmoid(params["b"]), None if x is None else x["z"])
                    )
                    + carry
                )

            value = ppl.cond(b == 1, yes, lambda: params["b"] * carry)
            return value, (value - 0.3) ** 2

        carry, costs = ppl.scan(step, params["a"], steps(noise, "b", "z"), 2)
        return costs.sum() + carry

    params = {name: PARAMS[name] for name in "ab"}
    check(fn, params, {"b": bits(2), "z": bits(2)}, {"b": strategy, "z": strategy})
    check(fn, params, {"b": bits(2), "z": bits(2)}, {"b": "enum", "z": strategy})


@pytest.mark.fast("number")
@pytest.mark.parametrize(
    "strategy",
    ["enum", "reinforce", "mvd", ppl.Reinforce(0.4)],
    ids=["enum", "reinforce", "mvd", "number"],
)
def test_two_draws_of_one_guide(strategy):
    """Independent draws with scores of their own: E[sign(w1 - w2) ...] couples them."""

    @inference.objective
    def contrast(model, guide, noise):
        weights = []
        for i in range(2):
            q = ppl.draw(guide, {"z": noise["z"][i]})
            weights.append(ppl.score(model, q, {"z": noise["z"][i]}).log_density - q.log_density)
        return 0.3 * (weights[0] - weights[1]) ** 2 + weights[0] * jnp.tanh(weights[1])

    def model(noise):
        z = ppl.sample("z", bernoulli(0.3, of(noise, "z")))
        ppl.sample("y", dist.Normal(z * ppl.param("w", 1.2), 1.0), obs=0.7)

    def guide(noise):
        ppl.sample("z", bernoulli(sigmoid(ppl.param("q", 0.2)), of(noise, "z")))

    def reference(model, guide):
        return lambda params, noise: contrast(model, guide).fn(
            model.bind(params), guide.bind(params), noise
        )

    check_elbo(model, guide, {"z": bits(2)}, {"z": strategy}, contrast, reference)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
def test_masked_rows_of_model_and_guide(strategy):
    """A mask removes log-densities, not draws: masked rows still reach what is downstream."""
    mask = jnp.array([True, False, True])

    def model(noise):
        with ppl.plate("rows", 3), numpyro.handlers.mask(mask=mask):
            z = ppl.sample("z", bernoulli(0.3 * jnp.ones(3), of(noise, "z")))
        ppl.sample("y", dist.Normal(z.sum() * ppl.param("w", 0.7), 1.0), obs=0.7)

    def guide(noise):
        with ppl.plate("rows", 3), numpyro.handlers.mask(mask=mask):
            ppl.sample("z", bernoulli(sigmoid(ppl.param("r", PARAMS["r"])), of(noise, "z")))

    check_elbo(model, guide, {"z": bits(3)}, {"z": strategy})


@pytest.mark.fast("guide-reinforce")
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
@pytest.mark.parametrize("proposed", [False, True], ids=["prior", "guide"])
def test_missing_cells_of_an_observation(strategy, proposed):
    """obs_mask: missing cells are latent, drawn from their prior or from the guide, and reach what is downstream."""
    seen = jnp.array([True, False, False])
    data = jnp.array([1.0, np.nan, np.nan])

    def model(noise):
        with ppl.plate("rows", 3):
            probs = sigmoid(ppl.param("p", jnp.array([0.1, 0.5, -0.4])))
            cells = of(noise, "x_unobserved")
            x = ppl.sample("x", bernoulli(probs, cells), obs=data, obs_mask=seen)
        ppl.sample("y", dist.Normal((x * ROWS).sum() * ppl.param("w", 1.3), 1.0), obs=0.7)

    def guide(noise):
        if proposed:
            with ppl.plate("rows", 3), numpyro.handlers.mask(mask=~seen):
                ppl.sample(
                    "x_unobserved",
                    bernoulli(sigmoid(ppl.param("r", PARAMS["r"])), of(noise, "x_unobserved")),
                )

    check_elbo(model, guide, {"x_unobserved": bits(3)}, {"x_unobserved": strategy})


@pytest.mark.fast("reinforce")
@pytest.mark.parametrize(
    "strategy",
    ["enum", "reinforce", "mvd", ppl.Reinforce(0.5)],
    ids=["enum", "reinforce", "mvd", "number"],
)
def test_minibatches_average_to_the_full_gradient(strategy):
    """All six minibatches of two of four rows, each with its exact mean, average to the exact full gradient."""
    data = jnp.array([0.4, -0.3, 0.8, 1.1])

    def model(x, noise):
        g = ppl.sample("g", bernoulli(0.4, of(noise, "g")))
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample(
                "z",
                bernoulli(
                    sigmoid(0.5 * g - ppl.param("w", 0.3)) * jnp.ones(x.shape), of(noise, "z")
                ),
            )
            ppl.sample("x", dist.Normal(z + 0.5 * g, 1.0), obs=x)

    def guide(x, noise):
        g = ppl.sample("g", bernoulli(sigmoid(ppl.param("b", -0.2)), of(noise, "g")))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("z", bernoulli(sigmoid(ppl.param("a", 0.8) * x - 0.4 * g), of(noise, "z")))

    def bound(model, guide):
        return inference.elbo(model, guide, strategies={"g": "reinforce", "z": strategy})

    full = ppl.model(lambda noise: model(data, noise)), ppl.model(lambda noise: guide(data, noise))
    params = bound(*full).init(jax.random.key(0), {"g": jnp.array(0.5), "z": jnp.full(4, 0.5)})
    truth = exact(reference_elbo(*full), params, {"g": bits(), "z": bits(4)})
    part = bound(model, guide).with_plate_sizes({"rows": 4})
    parts = []
    for rows in itertools.combinations(range(4), 2):
        own = dataclasses.replace(truth, cdfs={"g": truth.cdfs["g"], "z": truth.cdfs["z"][:, rows]})
        spec, enumerated = {"g": bits(), "z": bits(2)}, ["z"] if strategy == "enum" else []
        parts.append(
            moments(part, params, spec, own, enumerated=enumerated, args=(data[jnp.array(rows)],))
        )
    mean = jax.tree.map(lambda *x: np.mean(x, 0), *[m.grads for m in parts])
    np.testing.assert_allclose(np.mean([m.value for m in parts]), truth.value, rtol=2e-5)
    for have, want in zip(jax.tree.leaves(mean), jax.tree.leaves(truth.grads), strict=True):
        np.testing.assert_allclose(have, want, rtol=5e-5, atol=5e-5)


@pytest.mark.fast("row")
@pytest.mark.parametrize("baseline", ["upstream", "row", "carry"])
def test_a_baseline_array_computed_before_the_draw(baseline):
    """A baseline at the site may depend on everything upstream, parameters too; it has no gradient of its own."""

    def rows(params, noise):
        with ppl.plate("rows", 3):
            a = ppl.sample("a", bernoulli(sigmoid(params["r"]), of(noise, "a"))) * 1.0
            b = 2 * a + params["r"] if baseline == "row" else a.sum() * params["a"]
            z = ppl.sample(
                "z", bernoulli(sigmoid(params["r"] - a), of(noise, "z")), strategy=ppl.Reinforce(b)
            )
        return jnp.sum((z + a - ROWS) ** 2) + z.prod()

    def walk(params, noise):
        def step(carry, x):
            strategy = ppl.Reinforce(3 * carry + params["a"])
            z = ppl.sample(
                "z",
                bernoulli(sigmoid(params["a"] + carry), None if x is None else x["z"]),
                strategy=strategy,
            )
            return 0.5 * carry + z, (z - carry) ** 2

        carry, costs = ppl.scan(step, params["a"], steps(noise, "z"), 3)
        return costs.sum() + carry

    params = {name: PARAMS[name] for name in "ar"}
    if baseline == "carry":
        check(walk, {"a": params["a"]}, {"z": bits(3)}, {})
    else:
        check(rows, params, {"a": bits(3), "z": bits(3)}, {"a": "reinforce"})


OWN_SCORES = {
    "times a parameter": lambda q, other, z, w: w * q + z.sum(),
    "times the draw": lambda q, other, z, w: q * z.sum(),
    "squared": lambda q, other, z, w: q**2 + 0.5 * q,
    "twice": lambda q, other, z, w: 2 * q - q / w,
    "of another program": lambda q, other, z, w: other * w - q,
    "another program's alone": lambda q, other, z, w: 3 * other,
    "difference": lambda q, other, z, w: jnp.exp(other - q),
}


@pytest.mark.fast("times the draw-reinforce")
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(n, s, marks=[] if i % 3 == j else pytest.mark.slow)
        for i, n in enumerate(OWN_SCORES)
        for j, s in enumerate(["enum", "reinforce", "mvd"])
    ],
)  # slow: the other pairs
def test_log_densities_in_the_cost(name, strategy):
    """A site's own log-prob has a derivative of mean zero only where it stands alone; another program's keeps its own."""

    @inference.objective
    def cost(model, guide, noise):
        q = ppl.draw(guide, noise)
        return OWN_SCORES[name](
            q.log_density,
            ppl.score(model, q, noise).log_density,
            q.choices["z"],
            ppl.draw(guide, {}).retval,
        )

    def guide(noise):
        w = ppl.param("w", 1.3)
        if not noise:
            return w
        g = ppl.sample("g", bernoulli(sigmoid(ppl.param("g", 0.4)), of(noise, "g")))
        with ppl.plate("rows", 2):
            ppl.sample("z", bernoulli(sigmoid(ppl.param("r", PARAMS["r"][:2]) + g), of(noise, "z")))
        return w

    def model(noise):
        # It shares the guide's parameters.
        g = ppl.sample("g", bernoulli(sigmoid(-ppl.param("g", 0.4)), of(noise, "g")))
        with ppl.plate("rows", 2):
            ppl.sample(
                "z", bernoulli(sigmoid(ppl.param("r", PARAMS["r"][:2]) * (1 - g)), of(noise, "z"))
            )

    def reference(model, guide):
        return lambda params, noise: cost(model, guide).fn(
            model.bind(params), guide.bind(params), noise
        )

    for g in ("reinforce", strategy):
        check_elbo(
            model, guide, {"g": bits(), "z": bits(2)}, {"g": g, "z": strategy}, cost, reference
        )


@pytest.mark.fast("reinforce")
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
def test_own_log_densities_in_a_scan(strategy):
    """Log q of a chain, weighted step by step and alone."""

    def fn(params, noise):
        def chain():
            def step(carry, x):
                z = ppl.sample(
                    "z", bernoulli(sigmoid(params["a"] + carry), None if x is None else x["z"])
                )
                return 0.5 * carry + z, None

            ppl.scan(step, params["b"], steps(noise, "z"), 3)

        log_q = ppl.draw(ppl.model(chain)).log_probs["z"]
        return jnp.sum(log_q) * params["w"] + jnp.sum(log_q * ROWS) + log_q[1] - log_q.sum()

    params = {name: PARAMS[name] for name in "abw"}
    check(fn, params, {"z": bits(3)}, {"z": strategy})
