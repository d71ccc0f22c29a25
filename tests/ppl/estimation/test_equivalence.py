"""Equal programs give equal estimates: scan = unrolled, plate = repeated sites, vmap = loop, jit = no jit.

The draws are data (`_oracles.py`), so that both programs see the same noise and their estimates can be compared one by
one: value and gradient, on every outcome, to float32 rounding. No randomness, no false alarms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _contexts import CONTEXTS, PARAMS
from _oracles import (
    assert_exact,
    bernoulli,
    bits,
    estimates,
    exact,
    moments,
    nodes,
    normal,
    on_rows,
    outcomes,
    steps,
)

from lapilli import inference, ppl

pytestmark = pytest.mark.one_in(2)

sigmoid = jax.nn.sigmoid
Y = np.array([0.9, -0.2, 0.4], np.float32)
STRATEGIES = {"enum": "enum", "reinforce": "reinforce", "mvd": "mvd", "number": ppl.Reinforce(0.7)}


def assert_equal_estimates(one, other, params, spec, strategies, *, in_the_mean=False):
    """Estimates of two programs on all outcomes of the noise: one by one, or their exact means."""
    truth = exact(one, params, spec)
    expectations = [ppl.expectation(fn, strategies=strategies) for fn in (one, other)]
    if in_the_mean:
        for expectation in expectations:
            assert_exact(moments(expectation, params, spec, truth), truth)
    else:
        rows, _ = outcomes(spec, truth)
        compare(*expectations, params, rows)


def scanned(params, noise):
    def step(carry, x):
        y, x = x
        z = ppl.sample("z", bernoulli(sigmoid(params["a"] + params["w"] * carry), x["z"]))
        v = ppl.sample("v", normal(params["b"] * z + 0.3 * carry, 0.5, x["v"]))
        return 0.5 * carry + z + 0.2 * v, (v - y) ** 2 + z * carry

    carry, costs = ppl.scan(step, params["a"], (Y, steps(noise, "z", "v")))
    return costs, carry


def unrolled(params, noise):
    carry, costs = params["a"], []
    for t in range(3):
        z = ppl.sample(
            f"z{t}", bernoulli(sigmoid(params["a"] + params["w"] * carry), noise["z"][t])
        )
        v = ppl.sample(f"v{t}", normal(params["b"] * z + 0.3 * carry, 0.5, noise["v"][t]))
        costs.append((v - Y[t]) ** 2 + z * carry)
        carry = 0.5 * carry + z + 0.2 * v
    return costs, carry


# The unrolled loop's costs are summed one by one: an array of them would be one cost, in which all steps meet.
RESULTS = {
    "additive": lambda costs, carry: sum_of(costs) + carry,
    "square": lambda costs, carry: (sum_of(costs) + carry) ** 2,
    "weighted": lambda costs, carry: 3 * sum_of(costs) - 2 * carry,
}


def sum_of(costs):
    return sum(costs) if isinstance(costs, list) else costs.sum()


@pytest.mark.slow
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scan_is_the_unrolled_loop(strategy, result):
    """One by one for enum and mvd; score functions in the mean: the loop's carry falls into finer terms than the scan's."""
    params = {name: PARAMS[name] for name in "abw"}
    spec = {"z": bits(3), "v": nodes(2, 3)}
    combine = RESULTS[result]
    assert_equal_estimates(
        lambda p, noise: combine(*scanned(p, noise)),
        lambda p, noise: combine(*unrolled(p, noise)),
        params,
        spec,
        {"z*": STRATEGIES[strategy], "v*": "reparam"},
        in_the_mean=strategy in ("reinforce", "number"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nested_scan_is_the_unrolled_loop(strategy):
    """One by one for enum and mvd; for score functions in the mean, since the steps of an inner scan meet in one cost."""

    def nested(p, noise):
        def outer(carry, x):
            u = ppl.sample("zu", bernoulli(sigmoid(p["a"] + 0.4 * carry), x["zu"]))

            def inner(carry, x):
                v = ppl.sample("zv", bernoulli(sigmoid(p["b"] + 0.5 * carry), x["zv"]))
                return 0.4 * v, v * carry

            carry, ys = ppl.scan(inner, carry + u, {"zv": x["zv"]})
            return carry, ys.sum() + u * p["a"]

        carry, ys = ppl.scan(outer, 0.2, steps(noise, "zu", "zv"))
        return ys.sum() + carry**2

    def loop(p, noise):
        carry, total = 0.2, 0.0
        for t in range(2):
            u = ppl.sample(f"zu{t}", bernoulli(sigmoid(p["a"] + 0.4 * carry), noise["zu"][t]))
            carry, total = carry + u, total + u * p["a"]
            for s in range(2):
                v = ppl.sample(
                    f"zv{t}{s}", bernoulli(sigmoid(p["b"] + 0.5 * carry), noise["zv"][t, s])
                )
                carry, total = 0.4 * v, total + v * carry
        return total + carry**2

    params, spec = {name: PARAMS[name] for name in "ab"}, {"zu": bits(2), "zv": bits(2, 2)}
    in_the_mean = strategy in ("reinforce", "number")
    assert_equal_estimates(
        nested, loop, params, spec, {"z*": STRATEGIES[strategy]}, in_the_mean=in_the_mean
    )


def all_bits(shapes):
    """Uniforms on a grid for every element: (0.1, 0.5, 0.9)."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    grid = np.array([0.1, 0.5, 0.9])[
        np.indices((3,) * sum(sizes.values())).reshape(sum(sizes.values()), -1).T
    ]
    rows, start = {}, 0
    for name, shape in shapes.items():
        rows[name] = jnp.asarray(grid[:, start : start + sizes[name]].reshape(-1, *shape), float)
        start += sizes[name]
    return rows


def compare(one, other, params, rows):
    got, want = on_rows(one, params, rows), on_rows(other, params, rows)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    assert np.std(np.asarray(want[0])) > 0 or "enum" in str(one.strategies)


PLATE_COSTS = {
    "separate": lambda row, z, v, g: sum_of(row) + g,
    "meeting": lambda row, z, v, g: (sum_of(row) - 0.3) ** 2 + g * sum_of(z),
}


@pytest.mark.slow
@pytest.mark.parametrize("cost", PLATE_COSTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plate_is_repeated_sites(strategy, cost):
    """A plate of three rows below a global site, a second site in each row."""

    def plate(p, noise):
        g = ppl.sample("zg", bernoulli(sigmoid(p["a"]), noise["g"]))
        with ppl.plate("rows", 3):
            z = ppl.sample("z", bernoulli(sigmoid(p["r"] + g), noise["z"]))
            v = ppl.sample("zv", bernoulli(sigmoid(p["b"] - z), noise["v"]))
        return PLATE_COSTS[cost]((v - Y) ** 2 * (1 + z), z, v, g) + p["a"]

    def repeated(p, noise):
        g = ppl.sample("zg", bernoulli(sigmoid(p["a"]), noise["g"]))
        z, v = [], []
        for n in range(3):
            z.append(ppl.sample(f"z{n}", bernoulli(sigmoid(p["r"][n] + g), noise["z"][n])))
            v.append(ppl.sample(f"zv{n}", bernoulli(sigmoid(p["b"] - z[n]), noise["v"][n])))
        row = [(v[n] - Y[n]) ** 2 * (1 + z[n]) for n in range(3)]
        return PLATE_COSTS[cost](row, z, v, g) + p["a"]

    params = {name: PARAMS[name] for name in "abr"}
    strategies = {"z*": STRATEGIES[strategy]}
    one = ppl.expectation(plate, strategies=strategies)
    other = ppl.expectation(repeated, strategies=strategies)
    rows = all_bits({"g": (), "z": (3,), "v": (3,)})
    some = np.random.default_rng(0).permutation(len(rows["g"]))[:200]
    compare(one, other, params, jax.tree.map(lambda x: x[some], rows))


@pytest.mark.slow
def test_a_plate_around_a_scan_is_a_scan_over_a_plate():
    def around(p, noise):
        with ppl.plate("rows", 2):

            def step(c, x):
                z = ppl.sample("z", bernoulli(sigmoid(p["a"] + c), x["z"]))
                return 0.5 * c + z, z * c

            c, ys = ppl.scan(step, jnp.zeros(2), steps(noise, "z"))
        return jnp.sum(ys) + jnp.sum(c**2)

    def inside(p, noise):
        def step(c, x):
            with ppl.plate("rows", 2):
                z = ppl.sample("z", bernoulli(sigmoid(p["a"] + c), x["z"]))
            return 0.5 * c + z, z * c

        c, ys = ppl.scan(step, jnp.zeros(2), steps(noise, "z"))
        return jnp.sum(ys) + jnp.sum(c**2)

    for strategy in ("enum", "reinforce", "mvd"):
        expectations = [ppl.expectation(fn, strategies={"z": strategy}) for fn in (around, inside)]
        compare(*expectations, {"a": PARAMS["a"]}, all_bits({"z": (3, 2)}))


@pytest.mark.slow
def test_cond_is_a_choice_between_two_draws():
    """Branches with one site each against both sites drawn and a choice between values."""

    def branches(p, noise):
        b = ppl.sample("b", bernoulli(sigmoid(p["a"]), noise["b"]), strategy="enum")
        yes = lambda: ppl.sample("z1", bernoulli(sigmoid(p["b"]), noise["z1"])) * 2.0  # noqa: E731
        no = lambda: ppl.sample("z2", bernoulli(sigmoid(p["w"]), noise["z2"])) - 0.5  # noqa: E731
        return (ppl.cond(b == 1, yes, no) - 0.3) ** 2

    def where(p, noise):
        b = ppl.sample("b", bernoulli(sigmoid(p["a"]), noise["b"]), strategy="enum")
        z1 = ppl.sample("z1", bernoulli(sigmoid(p["b"]), noise["z1"])) * 2.0
        z2 = ppl.sample("z2", bernoulli(sigmoid(p["w"]), noise["z2"])) - 0.5
        return (jnp.where(b == 1, z1, z2) - 0.3) ** 2

    params = {name: PARAMS[name] for name in "abw"}
    for strategy in ("enum", "mvd"):  # a score meets the cost of the choice not made, too
        expectations = [
            ppl.expectation(fn, strategies={"z*": strategy}) for fn in (branches, where)
        ]
        compare(*expectations, params, all_bits({"b": (), "z1": (), "z2": ()}))


# Transformations of the estimate.


def mixed(p):
    x = ppl.sample("x", dist.Normal(p["m"], 1.0))
    b = ppl.sample("b", dist.Bernoulli(logits=p["a"] + x))
    with ppl.plate("rows", 3):
        k = ppl.sample("k", dist.Categorical(logits=p["l"] * (1 + b)).expand([3]))
    c, _ = ppl.scan(
        lambda c, _: (c + ppl.sample("s", dist.Bernoulli(logits=p["a"] - c)), None), 0.0, None, 3
    )
    g = ppl.sample("g", dist.Gamma(jnp.exp(p["a"]) + 1, 2.0))
    return (x - b) ** 2 * g + jnp.sum(k * Y) + c * x


MIXED = {"m": jnp.array(0.3), "a": jnp.array(-0.2), "l": jnp.array([0.1, 0.4, -0.3])}
MIXED_STRATEGIES = {"b": "enum", "k": "mvd", "s": "reinforce_loo", "g": "implicit"}


@pytest.fixture(scope="module")
def expectation():
    return ppl.expectation(mixed, strategies=MIXED_STRATEGIES)


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_vmap_over_keys_is_a_loop(expectation, key):
    keys = jax.random.split(key, 8)
    stacked = jax.vmap(lambda k: expectation.value_and_grad(MIXED, k))(keys)
    looped = [expectation.value_and_grad(MIXED, k) for k in keys]
    assert_close(stacked, jax.tree.map(lambda *x: jnp.stack(x), *looped))
    assert np.unique(np.asarray(stacked[0])).size == 8  # every key has its own noise


@pytest.mark.slow
def test_vmap_over_parameters_is_a_loop(expectation, key):
    many = jax.tree.map(lambda x: jnp.stack([x, x + 0.5, -x]), MIXED)
    stacked = jax.vmap(lambda p: expectation.value_and_grad(p, key))(many)
    looped = [
        expectation.value_and_grad(jax.tree.map(lambda x, i=i: x[i], many), key) for i in range(3)
    ]
    assert_close(stacked, jax.tree.map(lambda *x: jnp.stack(x), *looped))


@pytest.mark.slow
def test_jit_is_no_jit(expectation, key):
    plain = expectation.value_and_grad(MIXED, key)
    assert_close(jax.jit(lambda p, k: expectation.value_and_grad(p, k))(MIXED, key), plain)


@pytest.mark.slow  # runs operation by operation
def test_disable_jit_is_jit(key):
    """The debugging switch of JAX: a scan, a branch, a plate run op by op, same numbers."""

    def fn(p):
        c, _ = ppl.scan(
            lambda c, _: (c + ppl.sample("s", dist.Bernoulli(logits=p - c)), None), 0.0, None, 2
        )
        with ppl.plate("rows", 2):
            z = ppl.sample("z", dist.Bernoulli(logits=p + jnp.arange(2.0)))
        return (small(p) + c) ** 2 + jnp.sum(z * p)

    expectation = ppl.expectation(
        fn, strategies={"b": "enum", "s": "mvd", "z": "reinforce", "y": "mvd"}
    )
    plain = expectation.value_and_grad(jnp.array(0.3), key)
    with jax.disable_jit():
        assert_close(expectation.value_and_grad(jnp.array(0.3), key), plain)


@pytest.mark.slow
def test_raw_uint32_keys_are_accepted(expectation, key):
    raw = jax.random.key_data(key)
    assert raw.dtype == jnp.uint32
    assert_close(expectation.value_and_grad(MIXED, raw), expectation.value_and_grad(MIXED, key))
    old = jax.random.PRNGKey(7)
    assert_close(expectation.grad(MIXED, old), expectation.grad(MIXED, jax.random.key(7)))


@pytest.mark.slow
def test_value_grad_and_step_agree(expectation, key):
    """`value` has the same noise, and its derivative under jax.grad is the estimator."""
    value, grads = expectation.value_and_grad(MIXED, key)
    assert_close(expectation.value(MIXED, key), value)
    assert_close(expectation.grad(MIXED, key), grads)
    assert_close(jax.grad(lambda p: expectation.value(p, key))(MIXED), grads)
    state = expectation.init_state(MIXED)
    assert_close(expectation.step(MIXED, state, key)[:2], (value, grads))


@pytest.mark.slow
def test_forward_mode_is_reverse_mode(expectation, key):
    """One direction of jvp against the gradient: the estimator is linear in the tangent."""
    tangent = jax.tree.map(lambda x: jnp.cos(3 * x), MIXED)
    grads = expectation.grad(MIXED, key)
    along = sum(
        jnp.vdot(a, b)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(tangent), strict=True)
    )
    _, got = jax.jvp(lambda p: expectation.value(p, key), (MIXED,), (tangent,))
    _, twice = jax.jvp(
        lambda p: expectation.value(p, key), (MIXED,), (jax.tree.map(lambda x: 2 * x, tangent),)
    )
    assert_close(got, along)
    assert_close(twice, 2 * got)


@pytest.mark.slow  # a long compilation
def test_scan_over_optimiser_steps_is_a_loop(key):
    """A training loop inside lax.scan, baselines as carry, equals the Python loop."""
    expectation = ppl.expectation(
        mixed, strategies=MIXED_STRATEGIES | {"s": ppl.Reinforce("moving-average")}
    )

    def update(carry, k):
        params, state = carry
        value, grads, state = expectation.step(params, state, k)
        return (jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), state), value

    keys = jax.random.split(key, 4)
    start = (MIXED, expectation.init_state(MIXED))
    scanned, values = jax.lax.scan(update, start, keys)
    carry, looped = start, []
    for k in keys:
        carry, value = update(carry, k)
        looped.append(value)
    assert_close(values, jnp.stack(looped))
    assert_close(scanned, carry)


def test_one_trace_per_shape(key):
    """The second call with the same shapes runs no Python of the program."""
    calls = []

    def fn(p):
        calls.append(1)
        return ppl.sample("z", dist.Bernoulli(logits=p), strategy="mvd") * p

    expectation = ppl.expectation(fn)
    expectation.value_and_grad(0.3, key)
    first = len(calls)
    for i in range(3):
        expectation.value_and_grad(0.3 + i, jax.random.fold_in(key, i))
    assert len(calls) == first


def small(p):
    b = ppl.sample("b", dist.Bernoulli(logits=p))
    return ppl.cond(b == 1, lambda: ppl.sample("y", dist.Bernoulli(logits=p)) * p, lambda: p) ** 2


@pytest.mark.slow  # the leak checker collects garbage after every trace
def test_no_tracer_leaks(key):
    with jax.checking_leaks():
        expectation = ppl.expectation(small, strategies={"b": "enum", "y": "mvd"})
        jax.jit(lambda k: expectation.value_and_grad(jnp.array(0.3), k))(key)


@pytest.mark.fast("()-enum")
@pytest.mark.parametrize("strategy", ["enum", "reinforce", "mvd"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)], ids=str)
def test_shapes_at_the_edge(strategy, shape, key):
    """Scalars, plates of one row, and a plate that broadcasts: exact gradient of a sum of squares."""

    def fn(p):
        plates = [ppl.plate(f"p{i}", n, dim=i - len(shape)) for i, n in enumerate(shape)]
        for plate in plates:
            plate.__enter__()
        z = ppl.sample("z", dist.Bernoulli(logits=jnp.broadcast_to(p, shape)))
        for plate in reversed(plates):
            plate.__exit__(None, None, None)
        return jnp.sum((z + 0.5) ** 2)

    _, grads = estimates(ppl.expectation(fn, strategies=strategy), jnp.array(0.3), key, 4000)
    q = float(sigmoid(0.3))
    want = 2.0 * q * (1 - q) * max(1, int(np.prod(shape)))
    error = float(np.std(grads)) / np.sqrt(4000)
    assert abs(float(np.mean(grads)) - want) < 4.5 * error + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("per", ["joint", "plate"])
def test_iwelbo_of_one_particle_is_the_elbo(per, key):
    model, guide = CONTEXTS["rows"].programs("bernoulli")
    programs = [ppl.model(lambda p=p: p(None)) for p in (model, guide)]
    one = inference.iwelbo(*programs, num_particles=1, per=per, strategies="enum")
    elbo = inference.elbo(*programs, strategies="enum")
    params = elbo.init(key)
    assert_close(one.value_and_grad(params, key), elbo.value_and_grad(params, key))


def test_an_undecorated_numpyro_model_is_the_same_program(key):
    import numpyro

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.7)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("q", 0.2)))

    def ours():
        z = ppl.sample("z", dist.Bernoulli(0.4))
        ppl.sample("x", dist.Normal(z, 1.0), obs=0.7)

    plain = inference.elbo(model, guide, strategies={"z": "reinforce"})
    decorated = inference.elbo(ppl.model(ours), ppl.model(guide), strategies={"z": "reinforce"})
    params = plain.init(key)
    assert_close(plain.value_and_grad(params, key), decorated.value_and_grad(params, key))
