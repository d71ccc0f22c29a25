"""Score factors meet only what is downstream: element by element in plates, later steps only in scans.

Most tests compare estimates, not moments: on every outcome of the noise the engine's estimate equals the
Rao-Blackwellised estimator written out by hand. Variances are exact sums over outcomes. Sampled comparisons bootstrap the
ratio of variances and require the whole 99.9% interval on the claimed side.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _oracles import (
    bernoulli,
    bits,
    estimates,
    exact,
    flat,
    moments,
    nodes,
    normal,
    of,
    on_rows,
    outcomes,
    reference_elbo,
    steps,
)
from numpyro.infer import TraceGraph_ELBO

from _stats import assert_same_mean, bootstrap_ratio
from lapilli import inference, ppl

sigmoid = jax.nn.sigmoid
Y = jnp.array([0.4, -0.3, 0.8])


def draws(u, p):
    """The Bernoulli draw of uniform u, and its score in the logit."""
    z = (u > 1 - p) * 1.0
    return z, z - p


def compare(fn, params, spec, by_hand, strategies="reinforce"):
    """Estimates on all outcomes against `by_hand(params, noise) -> grads`."""
    truth = exact(fn, params, spec)
    rows, weights = outcomes(spec, truth)
    _, got = on_rows(ppl.expectation(fn, strategies=strategies), params, rows)
    want = jax.vmap(lambda noise: by_hand(params, noise))(rows)
    for name in params:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-5, err_msg=name)
        mean = np.tensordot(weights, np.asarray(want[name], float), 1)
        np.testing.assert_allclose(
            mean, truth.grads[name], rtol=1e-4, atol=1e-5
        )  # the hand-written one is right


def test_a_constant_in_the_cost_adds_no_variance():
    """X + 100, x ~ N(m, 1): the estimate is x (x - m); its variance is m^2 + 2 (sd 1.5 at m = 1/2).

    With the constant the sd would be 100.1, which is what GenJAX 1.0.14 gives.
    """

    def fn(m, noise):
        return ppl.sample("x", normal(m, 1.0, of(noise, "x"))) + 100.0

    m, spec = jnp.array(0.5), {"x": nodes(5)}
    got = moments(ppl.expectation(fn, strategies="reinforce"), m, spec, exact(fn, m, spec))
    np.testing.assert_allclose(got.grads, 1.0, rtol=1e-5)
    np.testing.assert_allclose(got.variances, 0.5**2 + 2, rtol=1e-4)


@pytest.mark.parametrize(
    "offset", [lambda m: m * 30.0, lambda m: jnp.exp(m) + 40.0], ids=["parameter", "function"]
)
def test_a_parameter_in_the_cost_adds_no_variance(offset):
    def fn(m, noise):
        return 2 * (ppl.sample("x", normal(m, 1.0, of(noise, "x"))) + offset(m)) / 2

    m, spec = jnp.array(0.5), {"x": nodes(5)}
    got = moments(ppl.expectation(fn, strategies="reinforce"), m, spec, exact(fn, m, spec))
    np.testing.assert_allclose(got.grads, 1 + float(jax.grad(offset)(m)), rtol=1e-5)
    np.testing.assert_allclose(got.variances, 0.5**2 + 2, rtol=1e-3)


@pytest.mark.slow
def test_rows_of_a_plate_meet_their_own_costs():
    def fn(p, noise):
        with ppl.plate("rows", 3):
            a = ppl.sample("a", bernoulli(sigmoid(p["r"]), of(noise, "a")))
            b = ppl.sample("b", bernoulli(sigmoid(p["w"] + a), of(noise, "b")))
        return jnp.sum((a - Y) ** 2) + p["t"] * jnp.sum(b) + 10.0

    def by_hand(p, noise):
        a, score_a = draws(noise["a"], sigmoid(p["r"]))
        b, score_b = draws(noise["b"], sigmoid(p["w"] + a))
        return {
            "r": score_a * ((a - Y) ** 2 + p["t"] * b),
            "w": jnp.sum(score_b * p["t"] * b),
            "t": b.sum(),
        }

    params = {"r": jnp.array([0.2, -0.6, 0.5]), "w": jnp.array(-0.4), "t": jnp.array(3.0)}
    compare(fn, params, {"a": bits(3), "b": bits(3)}, by_hand)


def test_the_variance_of_a_plate_is_the_sum_of_its_rows():
    """Var = sum_n Var(c_n s_n), and not Var(sum_n c_n sum_n s_n)."""

    def fn(w, noise):
        with ppl.plate("rows", 3):
            a = ppl.sample("a", bernoulli(sigmoid(w), of(noise, "a") if noise else None))
        return jnp.sum((a - Y + 2) ** 2)

    w, spec = jnp.array(0.3), {"a": bits(3)}
    got = moments(ppl.expectation(fn, strategies="reinforce"), w, spec, exact(fn, w, spec))
    q = 1 / (1 + np.exp(-0.3))
    estimate = lambda a, y: (a - y + 2) ** 2 * (a - q)  # noqa: E731
    one, zero = estimate(1.0, np.asarray(Y)), estimate(0.0, np.asarray(Y))
    rows = q * one**2 + (1 - q) * zero**2 - (q * one + (1 - q) * zero) ** 2
    np.testing.assert_allclose(got.variances, rows.sum(), rtol=1e-5)


@pytest.mark.slow
def test_nested_plates_and_a_global_site():
    """A global site meets everything below it, a group its rows, a row itself."""

    def fn(p, noise):
        g = ppl.sample("g", bernoulli(sigmoid(p["g"]), of(noise, "g")))
        groups, rows = ppl.plate("groups", 2, dim=-2), ppl.plate("rows", 2, dim=-1)
        with groups:
            a = ppl.sample("a", bernoulli(sigmoid(p["a"] + g) * jnp.ones((2, 1)), of(noise, "a")))
            with rows:
                b = ppl.sample(
                    "b", bernoulli(sigmoid(p["b"] - a) * jnp.ones((2, 2)), of(noise, "b"))
                )
        return g * 5.0 + jnp.sum((a + 1) ** 2) + jnp.sum((b - a - Y[:2]) ** 2) + p["g"] * 7.0

    def by_hand(p, noise):
        g, score_g = draws(noise["g"], sigmoid(p["g"]))
        a, score_a = draws(noise["a"], sigmoid(p["a"] + g))
        b, score_b = draws(noise["b"], sigmoid(p["b"] - a))
        group, row = (a + 1) ** 2, (b - a - Y[:2]) ** 2
        below = group + row.sum(1, keepdims=True)
        return {
            "g": score_g * (5 * g + below.sum()) + 7.0,
            "a": jnp.sum(score_a * below),
            "b": jnp.sum(score_b * row),
        }

    params = {"g": jnp.array(0.3), "a": jnp.array(-0.2), "b": jnp.array(0.6)}
    compare(fn, params, {"g": bits(), "a": bits(2, 1), "b": bits(2, 2)}, by_hand)


@pytest.mark.slow
def test_steps_of_a_scan_meet_later_costs():
    """The chain's site meets the costs from its step on; a leaf site meets its own step's cost only."""
    costs_at = jnp.array([0.9, -0.2, 0.4])

    def fn(p, noise):
        def step(before, x):
            y, x = x
            z = ppl.sample("z", bernoulli(sigmoid(p["w"] + before), x["z"]))
            e = ppl.sample("e", bernoulli(sigmoid(p["e"] * z), x["e"]))
            return z * 1.0, (z - y + 1) ** 2 + 2.0 * e

        last, costs = ppl.scan(step, 0.5, (costs_at, steps(noise, "z", "e")))
        return costs.sum() + 3.0 * last

    def by_hand(p, noise):
        before, g_w, g_e, scores, costs = 0.5, 0.0, 0.0, [], []
        for t in range(3):
            z, score = draws(noise["z"][t], sigmoid(p["w"] + before))
            q = sigmoid(p["e"] * z)
            e, score_e = draws(noise["e"][t], q)
            g_e += score_e * z * 2.0 * e
            scores.append(score)
            costs.append((z - costs_at[t] + 1) ** 2 + 2.0 * e)
            before = z
        for t in range(3):
            g_w += scores[t] * (sum(costs[t:]) + 3.0 * before)
        return {"w": g_w, "e": g_e}

    # The leaf's cost arrives with the chain's in one array, so it meets all costs of its step.
    def by_hand_in_one_array(p, noise):
        out = by_hand(p, noise)
        before, g_e = 0.5, 0.0
        for t in range(3):
            z, _ = draws(noise["z"][t], sigmoid(p["w"] + before))
            e, score_e = draws(noise["e"][t], sigmoid(p["e"] * z))
            g_e += score_e * z * ((z - costs_at[t] + 1) ** 2 + 2.0 * e)
            before = z
        return out | {"e": g_e}

    params = {"w": jnp.array(0.3), "e": jnp.array(0.8)}
    compare(fn, params, {"z": bits(3), "e": bits(3)}, by_hand_in_one_array)

    def split(p, noise):
        """The same with two arrays of costs: now the leaf meets its own."""

        def step(before, x):
            y, x = x
            z = ppl.sample("z", bernoulli(sigmoid(p["w"] + before), x["z"]))
            e = ppl.sample("e", bernoulli(sigmoid(p["e"] * z), x["e"]))
            return z * 1.0, ((z - y + 1) ** 2, 2.0 * e)

        last, (chain, leaf) = ppl.scan(step, 0.5, (costs_at, steps(noise, "z", "e")))
        return chain.sum() + leaf.sum() + 3.0 * last

    compare(split, params, {"z": bits(3), "e": bits(3)}, by_hand)


@pytest.mark.slow
def test_a_plate_around_a_scan_separates_rows_and_steps():
    def fn(p, noise):
        with ppl.plate("rows", 2):

            def step(before, x):
                z = ppl.sample("z", bernoulli(sigmoid(p["w"] + before), x["z"]))
                return z * 1.0, (z + 1) ** 2 * Y[:2]

            _, costs = ppl.scan(step, jnp.zeros(2), steps(noise, "z"))
        return costs.sum()

    def by_hand(p, noise):
        before, scores, costs = jnp.zeros(2), [], []
        for t in range(3):
            z, score = draws(noise["z"][t], sigmoid(p["w"] + before))
            scores.append(score)
            costs.append((z + 1) ** 2 * Y[:2])
            before = z
        return {"w": sum(jnp.sum(scores[t] * sum(costs[t:])) for t in range(3))}

    compare(fn, {"w": jnp.array(0.3)}, {"z": bits(3, 2)}, by_hand)


@pytest.mark.slow
def test_the_elbo_of_a_plate_separates_its_rows():
    """The signal of a row is its own log p - log q, the global site's is everything."""

    def model(noise):
        g = ppl.sample("g", bernoulli(0.4, of(noise, "g")))
        with ppl.plate("rows", 3):
            z = ppl.sample("z", bernoulli(sigmoid(g - 0.5) * jnp.ones(3), of(noise, "z")))
            ppl.sample("x", dist.Normal(z, 1.0), obs=Y)

    def guide(noise):
        g = ppl.sample("g", bernoulli(sigmoid(ppl.param("a", 0.3)), of(noise, "g")))
        with ppl.plate("rows", 3):
            ppl.sample("z", bernoulli(sigmoid(ppl.param("b", -0.2) * Y + g), of(noise, "z")))

    objective = inference.elbo(ppl.model(model), ppl.model(guide), strategies="reinforce")
    params, spec = {"a": jnp.array(0.3), "b": jnp.array(-0.2)}, {"g": bits(), "z": bits(3)}
    truth = exact(reference_elbo(ppl.model(model), ppl.model(guide)), params, spec)
    rows, _ = outcomes(spec, truth)
    _, got = on_rows(objective, params, rows)

    def log(p, z):
        return z * jnp.log(p) + (1 - z) * jnp.log1p(-p)

    def by_hand(noise):
        qg = sigmoid(params["a"])
        g, score_g = draws(noise["g"], qg)
        qz = sigmoid(params["b"] * Y + g)
        z, score_z = draws(noise["z"], qz)
        row = log(sigmoid(g - 0.5), z) - 0.5 * (Y - z) ** 2 - 0.5 * jnp.log(2 * jnp.pi) - log(qz, z)
        # The derivative of -log q itself has mean zero and is left out.
        return {
            "a": score_g * (log(0.4, g) - log(qg, g) + row.sum()),
            "b": jnp.sum(score_z * Y * row),
        }

    want = jax.vmap(by_hand)(rows)
    for name in params:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-5, err_msg=name)


def test_a_site_without_anything_downstream_has_no_gradient():
    def fn(p, noise):
        ppl.sample("idle", bernoulli(sigmoid(p["a"]), of(noise, "idle")))
        return ppl.sample("z", bernoulli(sigmoid(p["b"]), of(noise, "z"))) * 9.0

    params, spec = {"a": jnp.array(0.3), "b": jnp.array(0.1)}, {"idle": bits(), "z": bits()}
    for strategy in ("reinforce", "mvd", "enum"):
        strategies = {"idle": strategy, "z": "reinforce"}
        enumerated = ["idle"] if strategy == "enum" else []
        got = moments(
            ppl.expectation(fn, strategies=strategies),
            params,
            spec,
            exact(fn, params, spec),
            enumerated=enumerated,
        )
        assert abs(got.grads["a"]) < 1e-6 and got.variances["a"] < 1e-10


def test_weak_derivatives_of_separate_rows_are_exact():
    """Row by row, a Bernoulli MVD is the exact derivative: no variance is left, whatever the other rows do."""

    def fn(p, noise):
        with ppl.plate("rows", 3):
            z = ppl.sample("z", bernoulli(sigmoid(p), of(noise, "z")))
        return jnp.sum((z - Y) ** 2 * 3.0)

    p, spec = jnp.array([0.2, -0.6, 0.5]), {"z": bits(3)}
    got = moments(ppl.expectation(fn, strategies="mvd"), p, spec, exact(fn, p, spec))
    np.testing.assert_allclose(got.variances, 0, atol=1e-10)


def test_leave_one_out_at_the_posterior_has_no_variance(key):
    """There the signal is the log evidence, a constant, and the baseline removes it."""
    posterior = (
        0.4 * np.exp(-0.5 * 0.3**2) / (0.4 * np.exp(-0.5 * 0.3**2) + 0.6 * np.exp(-0.5 * 0.7**2))
    )

    def model():
        z = ppl.sample("z", dist.Bernoulli(0.4))
        ppl.sample("x", dist.Normal(z, 1.0), obs=0.7)

    def guide():
        ppl.sample(
            "z", dist.Bernoulli(logits=ppl.param("q", float(np.log(posterior / (1 - posterior)))))
        )

    objective = inference.elbo(model, guide, strategies={"z": "reinforce_loo"}, num_replicates=2)
    values, grads = estimates(objective, objective.init(key), key, 1000)
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    np.testing.assert_allclose(grads["q"], 0, atol=1e-5)


def meeting(p):
    """Costs that do not separate, far from zero."""
    with ppl.plate("rows", 3):
        z = ppl.sample("z", dist.Bernoulli(sigmoid(p)))
    return (jnp.sum(z * Y) + 3.0) ** 2


BASELINES = {
    "leave-one-out": (ppl.Reinforce("leave-one-out"), 0, {"num_replicates": 2}),
    "number": (ppl.Reinforce(10.0), 0, {}),
    "moving-average": (ppl.Reinforce("moving-average"), 3, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_lowers_the_variance(name, key):
    """By more than half here; the plain estimator has the same number of runs."""
    strategy, num_steps, options = BASELINES[name]
    p = jnp.array([0.2, -0.6, 0.5])
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    plain = estimates(
        ppl.expectation(meeting, strategies="reinforce", **options), p, keys[0], 10_000
    )
    based = estimates(
        ppl.expectation(meeting, strategies={"z": strategy}), p, keys[1], 10_000, steps=num_steps
    )
    (a, names), (b, _) = flat(*based), flat(*plain)
    assert_same_mean(a, b, names=names)
    _, high = bootstrap_ratio(a[:, 1:], b[:, 1:])
    assert (high < 0.5).all(), high


@pytest.mark.slow  # two gradients of 1,000 rows on 16,000 keys, and NumPyro's compilation
def test_a_plate_of_1000_rows_is_no_noisier_than_trace_graph_elbo(key):
    """Same model, same guide: var(ours) / var(NumPyro) <= 1, whole 99.9% bootstrap interval below 1.1 (both sum row by row)."""
    x = 0.5 + np.random.default_rng(0).normal(size=1000).astype(np.float32)

    def model():
        with ppl.plate("rows", 1000):
            z = ppl.sample("z", dist.Bernoulli(0.3).expand([1000]))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with ppl.plate("rows", 1000):
            ppl.sample("z", dist.Bernoulli(logits=ppl.param("a", 0.5) * x + ppl.param("b", -0.2)))

    params = {"a": jnp.array(0.5), "b": jnp.array(-0.2)}
    n = 16_000
    ours, _ = flat(*estimates(inference.elbo(model, guide, strategies="reinforce"), params, key, n))
    loss = TraceGraph_ELBO()

    def theirs(k):
        return jax.value_and_grad(lambda p: -loss.loss(k, p, model, guide))(params)

    numpyro, names = flat(
        *jax.jit(lambda keys: jax.lax.map(theirs, keys, batch_size=200))(
            jax.random.split(jax.random.fold_in(key, 1), n)
        )
    )
    assert_same_mean(ours, numpyro, names=names)
    _, high = bootstrap_ratio(ours[:, 1:], numpyro[:, 1:])
    assert (high < 1.1).all(), high
