"""A change that rounding makes is no jump: where numbers cancel nothing is refused, and jumps beside them are found."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _random_jumps import Composition, jumps_found
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl
from lapilli.ppl.checks._rounded import copies, evaluate_rounded

pytestmark = pytest.mark.filterwarnings("ignore:Out-of-support values")
CAUGHT = jnp.asarray(np.random.default_rng(0).random((20, 3)) < 0.4, int)
LEVELS = jnp.asarray(np.random.default_rng(1).integers(0, 3, 20))
X = jnp.asarray(np.random.default_rng(2).normal(size=20), jnp.float32)


def recapture(jump):
    """Detection probabilities with Uniform priors, and a logit of theirs."""
    p = ppl.sample("p", dist.Uniform(0.0, 1.0).expand([3]).to_event(1))
    with ppl.plate("animals", len(CAUGHT)):
        e = ppl.sample("e", dist.Normal(0.0, 1.0))
        logits = jnp.log(p) - jnp.log1p(-p) + e[..., None] + jump(p)
        ppl.sample("y", dist.Bernoulli(jax.nn.sigmoid(logits)).to_event(1), obs=CAUGHT)


def ordinal(jump):
    """Probabilities that are differences of neighbouring levels."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    law = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    cuts = ppl.sample("cuts", dist.TransformedDistribution(law, ordered))
    with ppl.plate("rows", len(X)):
        ppl.sample("y", dist.OrderedLogistic(slope * X + jump(slope), cuts), obs=LEVELS)


NONE = lambda x: 0.0
# Small beside what they are added to, each found by another operation.
SMALL = {
    "comparison": lambda x: jnp.where(x > 0.4, 0.05, 0.0),
    "whole numbers": lambda x: 0.05 * jnp.floor(3 * x),
    "cast": lambda x: 0.05 * (3 * x).astype(int),
    "count": lambda x: 0.05 * jnp.floor(jnp.sum((x > 0.4) * 1.0) / 1.0),
}


def bound_of(model, jump):
    program = lambda: model(jump)
    return inference.elbo(program, AutoNormal(program))


def checked(bound):
    bound.plan(bound.init(jax.random.key(0)))


@pytest.mark.fast("ordinal")
@pytest.mark.parametrize("model", [recapture, ordinal], ids=lambda m: m.__name__)
def test_a_cancellation_is_no_jump(model):
    checked(bound_of(model, NONE))


@pytest.mark.fast("count-ordinal")
@pytest.mark.parametrize("model", [recapture, ordinal], ids=lambda m: m.__name__)
@pytest.mark.parametrize("jump", SMALL)
def test_a_small_jump_beside_a_cancellation_is_found(jump, model):
    with pytest.raises(ValueError, match=r"jumps by.*check_jumps=False"):
        checked(bound_of(model, SMALL[jump]))


@pytest.mark.parametrize(
    ("seed", "num"),
    [(0, 1), *(pytest.param(s, 8, marks=pytest.mark.slow) for s in range(1, 80))],
)  # slow: 79 compilations of programs of 16 compositions
def test_compositions_with_cancellations(seed, num):
    """2 programs here, 1,264 with the slow ones: no jump is missed, and what is continuous passes."""
    rng = np.random.default_rng(seed)
    jumps = [True, False] * num
    compositions = [Composition(rng, is_jump, cancels=True) for is_jump in jumps]
    found = jumps_found(compositions)
    wrong = [f.name for f, x, y in zip(compositions, found, jumps, strict=True) if x != y]
    assert not wrong


def rounding_of(fn, *inputs):
    """The numbers of a function in double precision, and by how much they move with the rounding of its operations."""
    with jax.enable_x64(True):
        inputs = [np.float64(x) for x in inputs]
        closed = jax.make_jaxpr(fn)(*inputs)
        run = lambda copy: evaluate_rounded(closed, inputs, {}, copy=copy)[0]
        found = np.asarray(jax.lax.map(run, copies(float)))
        np.testing.assert_allclose(found[0], jax.jit(fn)(*inputs), rtol=1e-15)
    return np.abs(found[1:] - found[0]).max(0)


def test_what_is_exact_does_not_move():
    """Counts, indicators, what is cut off or chosen, halves and differences of short numbers."""
    exact = lambda x: jnp.stack(
        [
            jnp.sum((jnp.stack([x, -x, x + 1]) > 0) * 1.0) / 2,
            jnp.where(x > 0, 1.0, 0.0) * 3.0 - 1.0,
            jnp.clip(x, -0.25, 0.25),
            jnp.dot((jnp.stack([x, -x]) > 0) * 1.0, jnp.array([2.0, 3.0])),
            0.0 * x,
            jnp.cumsum(jnp.ones(3) * (x > 0))[2],
            jnp.round(7 * x),
        ]
    )
    assert not rounding_of(exact, 1 / 3).any()


def test_what_cancels_moves():
    """Each by more than a thousandth part, a sum of sure numbers by 1e-14 of it."""
    lost = lambda x: jnp.stack(
        [
            jnp.log(jax.nn.sigmoid(100 * x) - jax.nn.sigmoid(99 * x)),
            jnp.log1p(-jax.nn.sigmoid(100 * x)),
            (1 - jnp.cos(1e-7 * x)) / (1e-7 * x) ** 2,
        ]
    )
    assert (rounding_of(lost, 1 / 3) > 1e-4).all()
    assert rounding_of(lambda x: jnp.exp(-3000 * x), 1 / 3) > 0  # 0 for want of smaller numbers
    sure = lambda x: jnp.exp(x) + jnp.log(x) + jnp.sum(jnp.stack([x, 2 * x]) ** 2)
    assert 0 < rounding_of(sure, 1 / 3) < 1e-13


def test_loops_and_branches_are_rounded_inside():
    def steps(x):
        def body(s):
            return s[0] + 1, jnp.sin(s[1]) * 1.1

        _, y = jax.lax.while_loop(lambda s: s[0] < 3, body, (0, x))
        y, _ = jax.lax.scan(lambda c, d: (jnp.tanh(c + d), None), y, jnp.ones(2) / 3)
        y = jax.lax.cond(y > 0, lambda y: jnp.exp(y), lambda y: -y, y)
        return jax.jit(jax.nn.softplus)(y)

    assert 1e-16 < rounding_of(steps, 1 / 3) < 1e-13
