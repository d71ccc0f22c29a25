"""Baselines with fitted coefficients: unbiased for any state, and what the fit is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _contexts import CONTEXTS, PARAMS
from _oracles import assert_exact, assert_mean, bernoulli, bits, exact, moments, of

from lapilli import ppl

sigmoid = jax.nn.sigmoid
STATE = {"gram": jnp.array([[1.0, 0.4], [0.4, 0.8]]), "cross": jnp.array([0.9, -0.3])}


def fixed_state(expectation, params, noise):
    """A state of earlier steps, with coefficients of its own."""
    state = expectation.init_state(params, noise)
    moving = {"mean": jnp.array(0.7), "weight": jnp.array(0.9)}
    return {site: STATE | {"parts": [moving, ()]} if s else s for site, s in state.items()}


@pytest.mark.fast("plate-mixed")
@pytest.mark.parametrize(
    "context",
    ["plate-mixed", "scan"]
    + [pytest.param(c, marks=pytest.mark.slow) for c in ("nested-plate", "cond")],
)  # slow: more contexts
def test_the_mean_is_exact_whatever_the_coefficients(context):
    program = CONTEXTS[context]
    fn, spec = program.raw("bernoulli"), program.spec("bernoulli")
    truth = exact(fn, PARAMS, spec)
    strategies = {"*": ppl.Reinforce(ppl.strategies.CombinedBaseline(("moving-average", 1.0)))}
    expectation = ppl.expectation(fn, strategies=strategies)
    noise = {name: jnp.zeros(site.shape) for name, site in spec.items()}
    state = fixed_state(expectation, PARAMS, noise)
    assert_exact(moments(expectation, PARAMS, spec, truth, state=state), truth)


@pytest.mark.slow
def test_a_lane_keeps_its_weight():
    """Behind an enumerated site every part is weighted by the lane's probability."""
    program = CONTEXTS["straight"]
    fn, spec = program.raw("bernoulli"), program.spec("bernoulli")
    truth = exact(fn, PARAMS, spec)
    strategies = {
        "x": "enum",
        "y": ppl.Reinforce(ppl.strategies.CombinedBaseline(("moving-average", 1.0))),
    }
    expectation = ppl.expectation(fn, strategies=strategies)
    state = fixed_state(expectation, PARAMS, {name: jnp.zeros(()) for name in spec})
    assert_exact(moments(expectation, PARAMS, spec, truth, enumerated=["x"], state=state), truth)


PARTS = (
    "leave-one-out",
    ppl.strategies.MovingAverage(0.5),
    ppl.strategies.Regression(lambda w, x: w * x, jnp.array(0.3), 1.0, optax.sgd(0.1)),
    1.0,
)


@pytest.mark.slow  # a long compilation
@pytest.mark.parametrize(
    "context", ["plate", pytest.param("scan", marks=pytest.mark.slow)]
)  # slow: the second context
def test_four_parts_with_state_and_replicates_are_unbiased(context, key):
    program = CONTEXTS[context]
    fn = program.raw("bernoulli")
    truth = exact(fn, PARAMS, program.spec("bernoulli"))
    expectation = ppl.expectation(
        lambda p: fn(p, None),
        strategies={"*": ppl.Reinforce(ppl.strategies.CombinedBaseline(PARTS))},
    )
    assert_mean(expectation, PARAMS, truth, key, n=20_000, catches=0.3, steps=3)


OFFSETS = jnp.array([4.0, -2.0, 1.0])


def offset(p, noise):
    """Rows with costs around 3 offset + 12: neither part alone is a good baseline."""
    with ppl.plate("rows", 3):
        b = ppl.sample("b", bernoulli(sigmoid(p), of(noise, "b")))
    return jnp.sum((jnp.sqrt(3.0 * OFFSETS + 12.0) + 0.05 * b) ** 2)


def part(inputs):
    return ppl.strategies.Regression(lambda w, x: w * x, jnp.array(1.0), inputs, optax.sgd(0.0))


def variance(baseline, state=None):
    p, spec = jnp.array([0.3, -0.5, 0.2]), {"b": bits(3)}
    strategy = ppl.Reinforce(baseline)
    expectation = ppl.expectation(offset, strategies=strategy)
    if isinstance(baseline, ppl.strategies.CombinedBaseline):
        own = ppl.expectation(lambda p: offset(p, None), strategies=strategy)
        own.plan(p)
        step = lambda s, k: (own.step(p, s, k)[2], None)  # noqa: E731
        keys = jax.random.split(jax.random.key(0), 100)
        state = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(own.init_state(p))
    truth = exact(offset, p, spec)
    got = moments(expectation, p, spec, truth, state=state)
    assert_exact(got, truth)
    return np.asarray(got.variances)


@pytest.mark.slow  # compiles four estimators
def test_fitted_coefficients_beat_every_part():
    """Total variance over the rows: a part alone leaves squares of what it misses of their costs."""
    parts = part(OFFSETS), part(jnp.ones(3))
    combined = variance(ppl.strategies.CombinedBaseline(parts))
    for alone in (
        None,
        *parts,
        ppl.strategies.CombinedBaseline(parts[:1]),
        ppl.strategies.CombinedBaseline(parts[1:]),
    ):
        assert combined.sum() <= 0.1 * variance(alone).sum()


class OfThisStep(ppl.strategies.CombinedBaseline):
    """Coefficients fitted to the very cost that they are subtracted from."""

    def value(self, downstream):
        state = self.update(downstream)
        return super().value(downstream.__class__(**{**vars(downstream), "state": state}))


@pytest.mark.slow
def test_coefficients_of_the_own_step_are_found_out():
    program = CONTEXTS["plate-mixed"]
    fn, spec = program.raw("bernoulli"), program.spec("bernoulli")
    truth = exact(fn, PARAMS, spec)
    baseline = OfThisStep((part(1.0), part(jnp.ones(()) * 0.5)), 0.5)
    got = moments(ppl.expectation(fn, strategies=ppl.Reinforce(baseline)), PARAMS, spec, truth)
    with pytest.raises(AssertionError, match="Mismatch"):
        assert_exact(got, truth)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"CombinedBaseline: decay must lie in \[0, 1\), got 1"):
        ppl.strategies.CombinedBaseline((1.0,), decay=1.0)
    for parts in ((), (None, 1.0)):
        with pytest.raises(ValueError, match="CombinedBaseline: give at least one baseline"):
            ppl.strategies.CombinedBaseline(parts)
    with pytest.raises(ValueError, match="no baseline named 'loo'; choose from"):
        ppl.strategies.CombinedBaseline(("loo",))
