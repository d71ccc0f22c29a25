"""Broken on purpose: for each family of estimators, one that drops a term or doubles a scale fails the tests of this folder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _contexts import CONTEXTS, PARAMS
from _oracles import Exact, assert_exact, assert_mean, exact, moments

from lapilli import ppl
from lapilli.ppl.strategies._reinforce import Baseline

stop = jax.lax.stop_gradient


class NoScore(ppl.Reinforce):
    """Drops the score term."""

    def surrogate(self, local, downstream):
        return jnp.zeros(())


class DoubledScore(ppl.Reinforce):
    def surrogate(self, local, downstream):
        return 2 * super().surrogate(local, downstream)


class OwnCost(Baseline):
    """A baseline that depends on the site's own draw."""

    def value(self, downstream):
        return 0.5 * downstream.cost


class WithItself(ppl.strategies.LeaveOneOut):
    """The mean over all replicates, the element's own among them."""

    def value(self, downstream):
        return downstream.cost.mean(0, keepdims=True)


class NoLanes(ppl.Reinforce):
    """Baseline subtracted without the probability of the enumeration lane: not symmetric."""

    def surrogate(self, local, downstream):
        signal = downstream.cost * (1 + 0.2 * (downstream.weight < 0.999)) - 0.0
        score = local["log_prob"]
        return stop(signal) * (score - stop(score))


class HalfMVD(ppl.MVD):
    """Drops x-."""

    def surrogate(self, local, downstream):
        total = jnp.zeros(())
        for theta, c, plus, _ in local:
            total = total + (theta - stop(theta)) * stop(c * downstream.replay(plus))
        return total


class ScaledMVD(ppl.MVD):
    def surrogate(self, local, downstream):
        return 1.1 * super().surrogate(local, downstream)


EXACT = {
    "no score": NoScore(),
    "doubled score": DoubledScore(),
    "baseline of the own cost": ppl.Reinforce(OwnCost()),
    "weak derivative without x-": HalfMVD(),
    "scaled weak derivative": ScaledMVD(),
}


@pytest.mark.fast("no score-plate-mixed")
@pytest.mark.parametrize(
    ("name", "context"),
    [
        pytest.param(n, c, marks=[] if i % 3 == j else pytest.mark.slow)
        for i, n in enumerate(EXACT)
        for j, c in enumerate(["plate-mixed", "scan", "cond"])
    ],
)  # slow: the other pairs
def test_exact_tests_find_a_broken_estimator(name, context):
    program = CONTEXTS[context]
    fn, spec = program.raw("bernoulli"), program.spec("bernoulli")
    truth = exact(fn, PARAMS, spec)
    got = moments(ppl.expectation(fn, strategies={"*": EXACT[name]}), PARAMS, spec, truth)
    with pytest.raises(AssertionError, match="Mismatch"):
        assert_exact(got, truth)


def test_exact_tests_find_a_lane_weighted_wrongly():
    program = CONTEXTS["straight"]
    fn, spec = program.raw("bernoulli"), program.spec("bernoulli")
    truth = exact(fn, PARAMS, spec)
    expectation = ppl.expectation(fn, strategies={"x": "enum", "y": NoLanes()})
    with pytest.raises(AssertionError, match="Mismatch"):
        assert_exact(moments(expectation, PARAMS, spec, truth, enumerated=["x"]), truth)


class Detached(dist.BernoulliProbs):
    """Its density has no derivative in the parameter: enumeration then misses the weights' derivative."""

    def log_prob(self, value):
        return stop(super().log_prob(value))


def test_exact_tests_find_weights_without_derivative(key):
    expectation = ppl.expectation(
        lambda p: ppl.sample("b", Detached(p)) * 2.0 + p, strategies="enum"
    )
    with pytest.raises(AssertionError, match="constant but different"):
        assert_mean(expectation, jnp.array(0.3), Exact(0.9, np.array(3.0), {}), key, n=1000)


class DetachedReparam(ppl.Reparam):
    def draw(self, fn, key):
        return stop(fn.sample(key))


@dataclasses.dataclass(frozen=True)
class HalfImplicit(ppl.Implicit):
    """Loses half of the derivative."""

    def draw(self, fn, key):
        x = fn.sample(key)
        return 0.5 * x + 0.5 * stop(x)


SAMPLED = {
    "leave-one-out with itself": (
        lambda p: ppl.sample("x", dist.Bernoulli(p)) * 2.0, ppl.Reinforce(WithItself(2)), 0.3, 0.6, 2.0,
    ),
    "detached reparameterisation": (lambda m: ppl.sample("x", dist.Normal(m, 1.0)) ** 2, DetachedReparam(), 0.5, 1.25, 1.0),
    "half an implicit gradient": (lambda a: ppl.sample("x", dist.Gamma(a, 2.0)), HalfImplicit(), 1.5, 0.75, 0.5),
    "weak derivative of a Normal, scaled": (lambda m: ppl.sample("x", dist.Normal(m, 1.0)), ScaledMVD(), 0.5, 0.5, 1.0),
}  # fmt: skip


@pytest.mark.fast("detached reparameterisation")
@pytest.mark.parametrize("name", SAMPLED)
def test_z_tests_find_a_broken_estimator(name, key):
    fn, strategy, at, value, grad = SAMPLED[name]
    expectation = ppl.expectation(fn, strategies={"x": strategy})
    with pytest.raises(AssertionError, match="limit 4.5|constant but different"):
        assert_mean(expectation, jnp.float32(at), Exact(value, np.array(grad), {}), key, n=40_000)


@pytest.mark.slow
def test_a_strategy_of_ones_own_is_served_in_every_context():
    """The same subclasses, unbroken: 25 lines suffice, and the engine serves them in plates, scans and branches."""

    class Mine(ppl.strategies.Strategy):
        """Score function with a constant baseline."""

        name = "mine"

        def refuse(self, distribution):
            return None

        def local(self, draw):
            return draw.log_prob

        def surrogate(self, local, downstream):
            return stop(downstream.cost - 0.7 * downstream.weight) * (local - stop(local))

    for context in ("plate-mixed", "scan", "cond", "nested-plate"):
        program = CONTEXTS[context]
        fn, spec = program.raw("bernoulli"), program.spec("bernoulli")
        truth = exact(fn, PARAMS, spec)
        assert_exact(
            moments(ppl.expectation(fn, strategies={"*": Mine()}), PARAMS, spec, truth), truth
        )
