"""Markov chains of enumerated sites are summed by a forward recursion: exact, and linear in the number of steps.

Oracles: brute force over all paths (`_oracles.exact`), and a forward recursion written in NumPy. Costs are counted in the
jaxpr, not timed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
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

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.ppl.enumeration._forward import windows
from lapilli.ppl.evaluation._split import Chain, Layout

pytestmark = pytest.mark.one_in(2)

sigmoid = jax.nn.sigmoid
KEY = jax.random.key(0)
X = np.array([0.9, -0.2, 0.4, 0.1, -0.6], np.float32)
PARAMS = {"a": jnp.float32(0.4), "b": jnp.float32(-0.7)}


def check(fn, spec, strategies, *, plan=None, params=PARAMS, enumerated=("z",)):
    """The estimate's exact mean over all other noise equals value and gradient by brute force."""
    expectation = ppl.expectation(fn, strategies=strategies)
    truth = exact(fn, params, spec)
    noise = {name: jnp.full(site.shape, 0.5) for name, site in spec.items()}
    if plan is not None:
        assert expectation.plan(params, noise)["z"].evaluations == plan
    assert_exact(moments(expectation, params, spec, truth, enumerated=enumerated), truth)


def cost_of_chain(p, z, before, x):
    """A cost of two neighbouring states that differs for every pair and step."""
    return jnp.sin(1.3 * z + 0.7 * before * p["b"] + x) + 0.2 * z * before


Z0 = jnp.array(0)


def chain(p, noise, z0=Z0, x=X, after=lambda costs: costs.sum()):
    def step(z, inputs):
        x, noise = inputs
        law = categorical(jnp.arange(3.0) * p["a"] * (1 + z) + x, of(noise, "z"))
        new = ppl.sample("z", law)
        return new, cost_of_chain(p, new, z, x)

    return after(ppl.scan(step, z0, (x, steps(noise, "z")))[1])


@pytest.mark.slow
def test_a_chain_is_summed_exactly_in_quadratic_lanes():
    check(chain, {"z": digits(3, 5)}, "enum", plan="forward recursion, 9 states x 5 steps")


@pytest.mark.slow  # one compilation a length
@pytest.mark.parametrize("length", [1, 2, 4])
def test_chains_of_every_length_agree_with_brute_force(length):
    check(lambda p, n: chain(p, n, x=X[:length]), {"z": digits(3, length)}, "enum")


def hmm(size):
    """A model with transitions and emissions, and a guide that looks at the data; both with parameters in the step."""

    def model(noise):
        w = ppl.param("w", jnp.linspace(-1.0, 1.0, size * size).reshape(size, size))
        m = ppl.param("m", jnp.linspace(-1.0, 2.0, size))

        def step(z, inputs):
            x, noise = inputs
            z = ppl.sample("z", categorical(w[z], of(noise, "z")))
            ppl.sample("x", dist.Normal(m[z], 0.7), obs=x)
            return z, None

        ppl.scan(step, 0, (X, steps(noise, "z")))

    def guide(noise):
        w = ppl.param("u", jnp.linspace(0.5, -1.0, size * size).reshape(size, size))
        v = ppl.param("v", jnp.linspace(-0.3, 1.0, size))

        def step(z, inputs):
            x, noise = inputs
            z = ppl.sample("z", categorical(w[z] + x * v, of(noise, "z")))
            return z, None

        ppl.scan(step, 0, (X, steps(noise, "z")))

    return ppl.model(model), ppl.model(guide)


@pytest.mark.slow
def test_the_elbo_of_a_hidden_markov_model_is_exact():
    model, guide = hmm(3)
    noise = {"z": jnp.full(5, 0.5)}
    objective = inference.elbo(model, guide, strategies="enum")
    params = objective.init(KEY, noise)
    truth = exact(reference_elbo(model, guide), params, {"z": digits(3, 5)})
    value, grads = objective.value_and_grad(params, KEY, noise)
    np.testing.assert_allclose(value, truth.value, rtol=2e-5)
    jax.tree.map(
        lambda have, want: np.testing.assert_allclose(have, want, atol=2e-5), grads, truth.grads
    )
    assert "forward recursion" in objective.plan(params, noise)["z"].evaluations


@pytest.mark.slow
def test_rows_that_separate_share_the_lanes_of_their_chains():
    def fn(p, noise):
        def step(z, inputs):
            x, noise = inputs
            with ppl.plate("rows", 2):
                law = bernoulli(sigmoid(p["a"] * z + x * jnp.array([1.0, -1.0])), of(noise, "z"))
                new = ppl.sample("z", law)
            return new, cost_of_chain(p, new, z, x)

        return ppl.scan(step, jnp.array([0, 1]), (X[:3], steps(noise, "z")))[1].sum()

    check(fn, {"z": bits(3, 2)}, "enum", plan="forward recursion, 4 states x 3 steps")


@pytest.mark.slow  # compiles twice
def test_a_plate_around_the_scan_has_one_chain_a_row():
    def fn(p, noise):
        def step(z, inputs):
            x, noise = inputs
            new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z + x), of(noise, "z")))
            return new, cost_of_chain(p, new, z, x)

        with ppl.plate("rows", 2):
            return ppl.scan(step, jnp.zeros(2, int), (X[:3], steps(noise, "z")))[1].sum()

    check(fn, {"z": bits(3, 2)}, "enum", plan="forward recursion, 4 states x 3 steps")


@pytest.mark.slow
def test_rows_that_meet_within_a_step_are_one_state():
    def fn(p, noise):
        def step(z, inputs):
            x, noise = inputs
            with ppl.plate("rows", 2):
                new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z.sum() + x), of(noise, "z")))
            return new, cost_of_chain(p, new[0] * new[1], z.sum(), x)

        return ppl.scan(step, jnp.array([0, 1]), (X[:3], steps(noise, "z")))[1].sum()

    check(fn, {"z": bits(3, 2)}, "enum")
    plan = ppl.expectation(fn, strategies="enum").plan(PARAMS, {"z": jnp.full((3, 2), 0.5)})
    assert plan["z"].evaluations.startswith("forward recursion, 16 states x 3 steps (elements meet")


@pytest.mark.slow
def test_a_memory_of_two_steps_takes_cubic_lanes():
    def fn(p, noise):
        def step(carry, inputs):
            (z, older), (x, noise) = carry, inputs
            new = ppl.sample(
                "z", bernoulli(sigmoid(p["a"] * z - 2 * p["b"] * older + x), of(noise, "z"))
            )
            return (new, z), cost_of_chain(p, new, z + 2 * older, x)

        return ppl.scan(step, (0, 1), (X, steps(noise, "z")))[1].sum()

    check(
        fn, {"z": bits(5)}, "enum", plan="forward recursion, 8 states x 5 steps (memory of 2 steps)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, pytest.param(2, marks=pytest.mark.slow)])  # compiles twice
def test_a_memory_longer_than_time_takes_no_states(length):
    """Rows that meet, 27 states, and a memory of three steps: in a scan of one 27 states, not 27^4, in one of two 27^2."""

    def fn(p, noise):
        def step(carry, inputs):
            x, noise = inputs
            with ppl.plate("rows", 3):
                logits = jnp.outer(p["a"] * (1 + carry[0].sum() + carry[2]) + x, jnp.arange(3.0))
                new = ppl.sample("z", categorical(logits, of(noise, "z")))
            return (*carry[1:], new), cost_of_chain(p, new @ jnp.arange(3), carry[1].sum(), x)

        zero = jnp.zeros(3, int)
        return ppl.scan(step, (zero, zero + 1, zero), (X[:length], steps(noise, "z")))[1].sum()

    check(fn, {"z": digits(3, length, 3)}, "enum")


@pytest.mark.slow
def test_independent_steps_whose_neighbours_meet_in_a_cost_are_a_chain():
    def fn(p, noise):
        def step(z, inputs):
            x, noise = inputs
            new = ppl.sample("z", bernoulli(sigmoid(p["a"] + x), of(noise, "z")))
            return new, cost_of_chain(p, new, z, x)

        return ppl.scan(step, 0, (X, steps(noise, "z")))[1].sum()

    check(fn, {"z": bits(5)}, "enum", plan="forward recursion, 4 states x 5 steps")


@pytest.mark.slow_for("two states")
@pytest.mark.parametrize(
    "begins",
    [
        (0, 2),
        pytest.param((2, 2), marks=pytest.mark.slow),  # one compilation each
        pytest.param((Z0, 2), marks=pytest.mark.slow),
        pytest.param((-1, 1), marks=pytest.mark.slow),
    ],
    ids=["two states", "one state", "a state and an array", "no state"],
)
def test_densities_of_a_chain_may_begin_in_different_states(begins):
    """Those of a draw and of a cost; a state known ahead is told from others, and from what is no state."""

    def fn(p, noise):
        def first(z, inputs):
            x, noise = inputs
            law = categorical(jnp.arange(3.0) * p["a"] * (1 + z) + x, of(noise, "z"))
            return (z := ppl.sample("z", law)), z

        def second(before, inputs):
            z, x = inputs
            return z, cost_of_chain(p, z, before, x)

        _, z = ppl.scan(first, begins[0], (X[:3], steps(noise, "z")))
        return ppl.scan(second, begins[1], (z, X[:3]))[1].sum()

    check(fn, {"z": digits(3, 3)}, "enum", plan="forward recursion, 9 states x 3 steps")


@pytest.mark.slow
def test_coupled_chains_share_one_recursion():
    def fn(p, noise):
        def step(carry, inputs):
            (z, y), (x, noise) = carry, inputs
            new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z - y + x), of(noise, "z")))
            other = ppl.sample("y", bernoulli(sigmoid(p["b"] * y + new - z), of(noise, "y")))
            return (new, other), (cost_of_chain(p, new, z, x), cost_of_chain(p, other, new, x))

        _, (c, d) = ppl.scan(step, (0, 0), (X[:4], steps(noise, "z", "y")))
        return c.sum() - 0.5 * d.sum()

    check(fn, {"z": bits(4), "y": bits(4)}, "enum", enumerated=("z", "y"))


@pytest.mark.slow  # compiles long
def test_a_chain_read_by_a_later_scan_and_by_enumerated_emissions():
    """z_t in one scan, y_t given z_t (enumerated too) in another, and a cost of both."""

    def fn(p, noise):
        def first(z, inputs):
            x, noise = inputs
            new = ppl.sample("z", bernoulli(sigmoid(p["a"] * (z + 1) + x), of(noise, "z")))
            return new, new

        def second(before, inputs):
            z, noise = inputs
            y = ppl.sample("y", bernoulli(sigmoid(p["b"] + z - 0.3 * before), of(noise, "y")))
            return z, cost_of_chain(p, y, z + before, 0.3)

        _, zs = ppl.scan(first, 0, (X[:4], steps(noise, "z")))
        return ppl.scan(second, 0, (zs, steps(noise, "y")))[1].sum()

    check(fn, {"z": bits(4), "y": bits(4)}, "enum", enumerated=("z", "y"))


@pytest.mark.slow  # compiles twice
def test_the_state_before_the_first_step_may_be_a_site():
    def fn(p, noise):
        z0 = ppl.sample("z0", bernoulli(sigmoid(p["b"]), of(noise, "z0")))
        return chain(p, noise, z0, X[:3])

    spec = {"z0": bits(), "z": digits(3, 3)}
    check(fn, spec, "enum", enumerated=("z0", "z"), plan="forward recursion, 9 states x 3 steps")


STRATEGIES = {
    "above, score": {"s": "reinforce"},
    "above, weak derivative": {"s": "mvd"},
    "below, score": {"w": "reinforce"},
    "below, weak derivative": {"w": "mvd"},
    "everywhere": {"s": "mvd", "w": "reinforce"},
}
SLOW = {
    "above, score",
    "above, weak derivative",
    "below, weak derivative",
}  # compile long; "everywhere" has both kinds
CASES = [
    pytest.param(s, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name, s in STRATEGIES.items()
]


@pytest.mark.parametrize("strategies", CASES)
def test_sampled_sites_above_and_below_a_chain_are_unbiased(strategies):
    """The site s moves transitions, draws and costs; w_t is drawn given z_t and enters the step's cost."""

    def fn(p, noise):
        s = ppl.sample("s", bernoulli(sigmoid(p["b"]), of(noise, "s")))

        def step(z, inputs):
            x, noise = inputs
            new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z + 0.3 * s + x), of(noise, "z")))
            w = ppl.sample("w", bernoulli(sigmoid(p["b"] * new + x + s), of(noise, "w")))
            return new, cost_of_chain(p, new + w, z + s, x)

        return ppl.scan(step, 0, (X[:3], steps(noise, "z", "w")))[1].sum()

    chosen = {"z": "enum", "s": "enum", "w": "enum"} | strategies
    enumerated = [name for name, strategy in chosen.items() if strategy == "enum"]
    spec = {"s": bits(), "z": bits(3), "w": bits(3)}
    check(fn, spec, chosen, enumerated=enumerated, plan="forward recursion, 4 states x 3 steps")


@pytest.mark.slow
def test_reparameterised_draws_in_transitions_and_costs_are_unbiased():
    """Polynomial costs, for which the quadrature over the draws is exact; s also moves the transitions."""

    def fn(p, noise):
        s = ppl.sample("s", normal(p["b"], 1.0, of(noise, "s")))

        def step(z, inputs):
            x, noise = inputs
            new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z + 0.3 * s + x), of(noise, "z")))
            w = ppl.sample("w", normal(p["b"] * new + x, 0.5, of(noise, "w")))
            return new, (w - s) ** 2 + new * w * z + 0.5 * (s - 1.0) ** 2

        return ppl.scan(step, 0, (X[:3], steps(noise, "z", "w")))[1].sum()

    check(
        fn,
        {"s": nodes(12), "z": bits(3), "w": nodes(3, 3)},
        {"z": "enum"},
        plan="forward recursion, 4 states x 3 steps",
    )


# What is no chain.


def after_tanh(costs):
    return jnp.tanh(costs.sum())


def feedback(p, noise, x=X):
    """Draws that are carried on beside the chain."""

    def step(carry, inputs):
        (z, u), (x, noise) = carry, inputs
        new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z + x), of(noise, "z")))
        u = 0.5 * u + new
        return (new, u), cost_of_chain(p, u, z, x)

    return ppl.scan(step, (0, 0.0), (x, steps(noise, "z")))[1].sum()


def below_and_above(p, noise, x=X):
    """A sampled bit given z_t, which the next transition looks at."""

    def step(carry, inputs):
        (z, w), (x, noise) = carry, inputs
        new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z + w + x), of(noise, "z")))
        w = ppl.sample("w", bernoulli(sigmoid(p["b"] * new + x), of(noise, "w")))
        return (new, w), cost_of_chain(p, new, z, x)

    return ppl.scan(step, (0, 0), (x, steps(noise, "z", "w")))[1].sum()


def backwards(p, noise, x=X):
    """Every step's cost looks at the last state."""

    def step(z, inputs):
        x, noise = inputs
        new = ppl.sample("z", bernoulli(sigmoid(p["a"] * z + x), of(noise, "z")))
        return new, (new, x)

    last, (z, x) = ppl.scan(step, 0, (x, steps(noise, "z")))
    return cost_of_chain(p, z, last, x).sum()


NO_CHAINS = {
    "a function of the sum": (
        lambda p, n, x=X: chain(p, n, x=x, after=after_tanh),
        lambda n: {"z": digits(3, n)},
        "reduce_sum",
    ),
    "carried on": (feedback, lambda n: {"z": bits(n)}, "depends on all earlier steps"),
    "sampled in between": (below_and_above, lambda n: {"z": bits(n), "w": bits(n)}, "meet"),
    "the last state": (backwards, lambda n: {"z": bits(n)}, "scan carry"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NO_CHAINS.values(), ids=NO_CHAINS)
def test_what_is_no_chain_is_enumerated_jointly_up_to_the_limit(case):
    fn, spec, reason = case
    strategies = {"z": "enum", "w": "reinforce"} if "w" in spec(1) else "enum"
    short = ppl.expectation(lambda p, n: fn(p, n, x=X[:3]), strategies=strategies)
    noise = {name: jnp.full(s.shape, 0.5) for name, s in spec(3).items()}
    assert "elements meet" in short.plan(PARAMS, noise)["z"].evaluations
    check(lambda p, n: fn(p, n, x=X[:3]), spec(3), strategies)
    long = ppl.expectation(lambda p, n: fn(p, n, x=jnp.zeros(20)), strategies=strategies)
    noise = {name: jnp.full(s.shape, 0.5) for name, s in spec(20).items()}
    with pytest.raises(
        ValueError, match=rf"Site 'z'.*\^20 states.*no forward recursion.*{reason}.*'mvd'"
    ):
        long.plan(PARAMS, noise)


def test_an_importance_weighted_bound_around_a_chain_is_refused_beyond_the_limit():
    model, guide = hmm(2)
    objective = inference.iwelbo(model, guide, num_particles=4, strategies="enum")
    params = objective.init(KEY, None)  # real samplers: each particle has draws of its own
    with pytest.raises(
        ValueError, match=r"Site 'z'.*2\^20 states.*no forward recursion.*Let the costs separate"
    ):
        objective.plan(params, None)


# Long chains.


def long_hmm(length, size):
    """HMM and guide with all parameters in a dict, and the same bound by a forward recursion in NumPy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=length)
    p = {
        name: rng.normal(size=shape)
        for name, shape in {
            "w": (size, size),
            "m": (size,),
            "u": (size, size),
            "v": (size,),
        }.items()
    }

    def fn(p, x):
        def step(z, x):
            new = ppl.sample("z", dist.CategoricalLogits(p["u"][z] + x * p["v"]))
            log_q = jax.nn.log_softmax(p["u"][z] + x * p["v"])[new]
            log_p = jax.nn.log_softmax(p["w"][z])[new]
            return new, log_p + dist.Normal(p["m"][new], 1.0).log_prob(x) - log_q

        return ppl.scan(step, 0, x)[1].sum()

    def by_hand(p):
        log_softmax = lambda a: a - np.log(np.exp(a).sum(-1, keepdims=True))
        marginal, total = np.eye(size)[0], 0.0
        log_w = log_softmax(p["w"])
        for xt in x:
            log_q = log_softmax(p["u"] + xt * p["v"])
            pair = marginal[:, None] * np.exp(log_q)
            log_x = -0.5 * (xt - p["m"]) ** 2 - 0.5 * np.log(2 * np.pi)
            total += (pair * (log_w + log_x - log_q)).sum()
            marginal = pair.sum(0)
        return total

    return fn, by_hand, p, x


def test_a_chain_of_200_steps_agrees_with_a_forward_recursion():
    fn, by_hand, p, x = long_hmm(200, 8)
    bound = ppl.expectation(fn, strategies="enum")
    params = {name: jnp.asarray(value, jnp.float32) for name, value in p.items()}
    value, grads = bound.value_and_grad(params, KEY, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, by_hand(p), rtol=2e-5)
    for name, index in (("w", (2, 3)), ("m", (5,)), ("u", (0, 1)), ("u", (7, 7)), ("v", (4,))):
        h = np.zeros_like(p[name])
        h[index] = 1e-5
        want = (by_hand({**p, name: p[name] + h}) - by_hand({**p, name: p[name] - h})) / 2e-5
        np.testing.assert_allclose(grads[name][index], want, rtol=2e-4, atol=2e-4)


def inner_jaxprs(eqn):
    return [
        getattr(item, "jaxpr", item)
        for param in eqn.params.values()
        for item in (param if isinstance(param, tuple | list) else (param,))
        if hasattr(getattr(item, "jaxpr", item), "eqns")
    ]


def work(jaxpr):
    """Numbers computed: sizes of all results, those of loops counted once a step."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = inner_jaxprs(eqn)
        if inner:
            total += eqn.params.get("length", 1) * sum(work(j) for j in inner)
        else:
            total += sum(int(np.prod(v.aval.shape)) for v in eqn.outvars)
    return total


def num_equations(jaxpr):
    """Equations, those of inner programs included."""
    return sum(1 + sum(num_equations(j) for j in inner_jaxprs(eqn)) for eqn in jaxpr.eqns)


def traced(expectation, params, *args):
    run = lambda p, key, args: expectation._estimate(p, None, key, args)
    return jax.make_jaxpr(run)(params, KEY, args).jaxpr


def test_the_work_grows_linearly_with_the_number_of_steps():
    """T = 1000 compiles too: the program's size does not depend on T, and the work per step tends to a constant."""
    sizes, works = [], []
    for length in (100, 200, 1000):
        fn, _, p, x = long_hmm(length, 8)
        params = jax.tree.map(jnp.float32, p)
        jaxpr = traced(ppl.expectation(fn, strategies="enum"), params, jnp.asarray(x, jnp.float32))
        works.append(work(jaxpr))
        sizes.append(num_equations(jaxpr))
    assert max(sizes) < 1.02 * min(sizes)
    assert works[1] < 2.01 * works[0] and works[2] < 10.1 * works[0]
    # 64 lanes, each of which normalises rows of 8 logits; some 70 results of this size a step, gradient included.
    assert works[0] / 100 < 64 * 8 * 100


# Sites one after the other, without a scan.


def straight_line(num_sites, strategy, *, chained):
    def fn(t):
        z, total = 0, 0.0
        for i in range(num_sites):
            law = dist.Bernoulli(sigmoid(t * (1 + z) + 0.1 * i))
            new = ppl.sample(f"z{i}", law, strategy=strategy)
            total = total + jnp.sin(new + 2 * z * t + i)
            z = new if chained else z
        return total

    return ppl.expectation(fn)


def by_marginals(num_sites, t, *, chained=True):
    """Value of the program from the marginals of its states."""
    marginal, total = np.array([1.0, 0.0]), 0.0
    for i in range(num_sites):
        z = np.arange(2)[:, None]
        p = 1 / (1 + np.exp(-(t * (1 + z) + 0.1 * i)))
        pair = marginal[:, None] * np.concatenate([1 - p, p], 1)
        total += (pair * np.sin(np.arange(2) + 2 * z * t + i)).sum()
        marginal = pair.sum(0) if chained else marginal
    return total


@pytest.mark.slow
def test_twenty_chained_sites_are_summed_one_by_one():
    bound = straight_line(20, "enum", chained=True)
    value, grad = bound.value_and_grad(0.3, KEY)
    np.testing.assert_allclose(value, by_marginals(20, 0.3), rtol=1e-5)
    want = (by_marginals(20, 0.3 + 1e-5) - by_marginals(20, 0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(grad, want, rtol=1e-4)
    results = [v for eqn in traced(bound, jnp.float32(0.3)).eqns for v in eqn.outvars]
    assert max(int(np.prod(getattr(v.aval, "shape", ()))) for v in results) < 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "chained", "power"),
    [("enum", False, 1), ("enum", True, 1), ("mvd", False, 2), ("mvd", True, 2)],
)
def test_programs_do_not_grow_exponentially_with_the_number_of_sites(strategy, chained, power):
    """Linear under enumeration; at most quadratic for MVD sites, each of which replays what follows."""
    sizes = [
        num_equations(traced(straight_line(n, strategy, chained=chained), jnp.float32(0.3)))
        for n in (5, 10, 20)
    ]
    growth = [b - a for a, b in itertools.pairwise(sizes)]
    assert growth[1] <= 1.05 * 2**power * growth[0]


@pytest.mark.slow  # compiles for long: each of the sites replays what follows
@pytest.mark.parametrize("chained", [False, True])
def test_twenty_mvd_sites_compile_and_are_unbiased(chained, key):
    """20,000 estimates of value and derivative, |z| < 4.5 each: false alarm 1.4e-5; a bias of 0.4 is found."""
    bound = straight_line(20, "mvd", chained=chained)
    estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(0.3, key)))
    value, grad = estimate(jax.random.split(key, 20_000))
    exact = lambda t: by_marginals(20, t, chained=chained)
    assert_unbiased(value, exact(0.3))
    assert_unbiased(grad, (exact(0.3 + 1e-5) - exact(0.3 - 1e-5)) / 2e-5)


@pytest.mark.slow
def test_a_site_far_upstream_keeps_its_lanes_where_a_sampled_site_needs_them():
    """A path z -> s -> y; cost of y and z: the score of s meets its costs lane by lane."""

    def fn(p, noise):
        z = ppl.sample("z", bernoulli(sigmoid(p["a"]), of(noise, "z")))
        s = ppl.sample("s", bernoulli(sigmoid(p["b"] * (1 + z)), of(noise, "s")))
        y = ppl.sample("y", bernoulli(sigmoid(p["a"] * s - 0.4), of(noise, "y")))
        v = ppl.sample("v", bernoulli(sigmoid(p["b"] * y + 0.4), of(noise, "v")))
        return jnp.sin(2.0 * v + p["a"]) + jnp.cos(y - z * p["b"])

    spec = {name: bits() for name in "zsyv"}
    for strategy in ("reinforce", "mvd"):
        chosen = {"*": "enum", "s": strategy}
        check(fn, spec, chosen, enumerated=("z", "y", "v"))


@pytest.mark.fast("3")
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_window_probabilities_agree_with_the_joint_distribution(lag):
    """Random transition tables of two states, five steps, two rows; every window of every step."""
    rng = np.random.default_rng(0)
    steps_, lanes = 5, 2 ** (lag + 1)
    q = rng.uniform(0.1, 0.9, size=(steps_, 2, *[2] * lag))  # of z = 1: time, row, window before
    layout = Layout((), lanes, 2, 0, lag)

    def law(t, row, z, before):
        one = q[(t, row, *before)]
        return one if z else 1 - one

    table = np.zeros((lanes, steps_, 2))
    for lane, t, row in itertools.product(range(lanes), range(steps_), range(2)):
        digit = [(lane >> (lag - place)) & 1 for place in range(lag + 1)]
        shown = [digit[(t - back) % (lag + 1)] if t >= back else 0 for back in range(lag, -1, -1)]
        table[lane, t, row] = law(t, row, shown[-1], shown[:-1])
    got = np.asarray(windows(jnp.asarray(table), [Chain(0, layout, 0)], 1))
    want = np.zeros_like(got)
    for path in itertools.product(range(2), repeat=steps_):
        for row in range(2):
            full = [0] * lag + list(path)
            prob = np.prod([law(t, row, path[t], full[t : t + lag]) for t in range(steps_)])
            for t in range(lag, steps_):
                lane = sum(path[t - (t - p) % (lag + 1)] << (lag - p) for p in range(lag + 1))
                want[lane, t, row] += prob
    np.testing.assert_allclose(got[:, lag:], want[:, lag:], rtol=1e-5)
