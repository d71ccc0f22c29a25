"""Attend, infer, repeat: windows, densities and bounds against sums by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy.ndimage import map_coordinates
from scipy.stats import bernoulli, norm

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.models import air

SHAPE, STEPS, WHAT = (8, 6), 2, 3
X = np.random.default_rng(0).random((3, 48)).astype(np.float32)


def make():
    return air.programs(
        SHAPE, num_steps=STEPS, more_prob=0.3, window=4.0, num_cells=3, num_what=WHAT, num_hidden=4, key=jax.random.key(1)
    )  # fmt: skip


def choices(more):
    rng = np.random.default_rng(1)
    drawn = {}
    for t in range(STEPS):
        drawn[f"more_{t + 1}"] = np.asarray(more)[:, t]
        drawn[f"where_{t + 1}"] = rng.normal(size=(3, 3)).astype(np.float32)
        drawn[f"what_{t + 1}"] = rng.normal(size=(3, WHAT)).astype(np.float32)
    return drawn


MORE = [[0, 1], [1, 0], [1, 1]]  # counts 0, 1, 2


@pytest.fixture(scope="module")
def frame():
    return air.Geometry(SHAPE, 3, 4.0, 0.1)


def test_read_interpolates_linearly(frame):
    where = np.array([[0.5, 0.2, -0.3], [-1.0, 1.5, 0.0], [0.0, -2.5, 0.1]], np.float32)
    window = frame.window(where)
    for n in range(3):
        side, row, column = (float(w[n]) for w in window)
        cells = (
            (np.arange(3) + 0.5) / 3 * side - side / 2 - 0.5
        )  # map_coordinates counts from pixel centres
        grid = np.meshgrid(row + cells, column + cells, indexing="ij")
        expected = map_coordinates(X[n].reshape(SHAPE), grid, order=1, mode="grid-constant")
        np.testing.assert_allclose(
            frame.read(X[n : n + 1], where[n : n + 1])[0].reshape(3, 3), expected, atol=1e-5
        )


def test_write_is_where_read_looks(frame):
    """A patch that varies linearly is read back from the middle cell."""
    patch = np.arange(9, dtype=np.float32)[None] / 9
    where = np.array([[0.3, -0.2, 0.1]], np.float32)
    back = frame.read(frame.write(patch, where), where)
    np.testing.assert_allclose(back[0, 4], patch[0, 4], atol=1e-5)
    size = float(frame.window(where).size[0])
    np.testing.assert_allclose(frame.write(np.ones((1, 9)), where).sum(), size**2, rtol=0.05)


@pytest.mark.slow  # seconds of compilation
def test_objects_beyond_the_count_have_no_density():
    model, guide = make()
    for program in (model, guide):
        trace = program.bind(program.init(jax.random.key(0), X)).trace(choices(MORE), X)
        np.testing.assert_array_equal(trace.deterministic["count"], [0, 1, 2])
        log_probs = {name: np.asarray(v) for name, v in trace.log_probs.items()}
        for t, name in ((1, "where_1"), (1, "what_1"), (2, "where_2"), (2, "what_2")):
            np.testing.assert_array_equal(log_probs[name] == 0, np.arange(3) < t)
        np.testing.assert_array_equal(log_probs["more_2"] == 0, [True, False, False])


@pytest.mark.slow
def test_density_of_the_model_equals_the_formula():
    model, _ = make()
    params = model.init(jax.random.key(0), X)
    drawn = choices(MORE)
    trace = model.bind(params).trace(drawn, X)
    canvas = np.asarray(trace.deterministic["canvas"])
    np.testing.assert_array_equal(canvas[0], 0.0)
    for n, count in enumerate((0, 1, 2)):
        total = bernoulli.logpmf([1] * count + [0] * (count < STEPS), 0.3).sum()
        for t in range(1, count + 1):
            total += norm.logpdf(drawn[f"where_{t}"][n]).sum()
            total += norm.logpdf(drawn[f"what_{t}"][n]).sum()
        total += norm.logpdf(X[n], canvas[n], 0.3).sum()
        found = sum(np.asarray(v)[n] for v in trace.log_probs.values())
        np.testing.assert_allclose(found, total, rtol=1e-5)


class AtMean(ppl.strategies.Strategy):
    """The mean of the law instead of a draw: a bound without noise of its own."""

    name = "at_mean"
    kind = "pathwise"

    def refuse(self, distribution):
        return None

    def draw(self, fn, key):
        return fn.mean


def bound_by_hand(programs, params):
    """Sum over all values of "more", everything else at its mean, which does not depend on them."""
    model, guide = (p.bind(params) for p in programs)

    def at_mean(msg):
        if msg["type"] == "sample":
            return jnp.ones(3, int) if msg["name"][:4] == "more" else msg["fn"].mean

    run = handlers.substitute(handlers.seed(guide, jax.random.key(0)), substitute_fn=at_mean)
    sites = handlers.trace(run).get_trace(X)
    drawn = {n: s["value"] for n, s in sites.items() if s["type"] == "sample"}
    probs = [jax.nn.sigmoid(sites[f"more_{t}"]["fn"].base_dist.logits) for t in (1, 2)]
    total = 0.0
    for more in itertools.product((0, 1), repeat=STEPS):
        weight = math.prod(p if m else 1 - p for p, m in zip(probs, more, strict=True))
        drawn |= {f"more_{t + 1}": jnp.full(3, m) for t, m in enumerate(more)}
        p, q = (sum(x.trace(drawn, X).log_probs.values()) for x in (model, guide))
        total += (weight * (p - q)).sum()
    return total


@pytest.mark.slow  # compiles the bound twice
def test_enumeration_is_the_sum_over_counts(key):
    programs = make()
    bound = inference.elbo(
        *programs, strategies={"more_*": "enum", "where_*": AtMean(), "what_*": AtMean()}
    )
    params = bound.init(jax.random.key(0), X)
    value, grads = bound.value_and_grad(params, key, X)
    expected, expected_grads = jax.value_and_grad(lambda p: bound_by_hand(programs, p))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, two in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # compiles the bound for each
@pytest.mark.parametrize("strategy", ["mvd", "reinforce_loo", "disarm"])
def test_estimators_agree_with_enumeration(strategy, key):
    """Other sites at their means, so that enumeration is exact; 4000 estimates, |z| < 4.5 per coordinate."""
    programs = make()
    others = {"where_*": AtMean(), "what_*": AtMean()}
    exact = inference.elbo(*programs, strategies={"more_*": "enum"} | others)
    params = exact.init(jax.random.key(0), X)
    expected, expected_grads = exact.value_and_grad(params, key, X)
    bound = inference.elbo(*programs, strategies={"more_*": strategy} | others)
    estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, X)))
    values, grads = estimate(jax.random.split(key, 4000))
    assert_unbiased(values, expected)
    for one, two in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        assert_unbiased(one, two)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="more_prob.*1.5.*noise"):
        air.programs(more_prob=1.5, key=jax.random.key(0))
    with pytest.raises(ValueError, match="num_steps=0"):
        air.programs(num_steps=0, key=jax.random.key(0))
