"""Samplers and transforms that a user has written: differentiated where their draws do not jump, refused elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.distributions import constraints, transforms

from lapilli import ppl

KEY = jax.random.key(0)


class Two(dist.Distribution):
    """A mixture of N(0, 1) and N(2, 1), which says that its draws may be differentiated."""

    arg_constraints = {"p": constraints.unit_interval}
    support = constraints.real
    reparametrized_params = ["p"]

    def __init__(self, p):
        self.p = p
        super().__init__(jnp.shape(p), ())

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape
        k1, k2 = jax.random.split(key)
        return 2.0 * (jax.random.uniform(k1, shape) < self.p) + jax.random.normal(k2, shape)

    def log_prob(self, value):
        first, second = (dist.Normal(loc, 1.0).log_prob(value) for loc in (2.0, 0.0))
        return jnp.logaddexp(jnp.log(self.p) + first, jnp.log1p(-self.p) + second)


class Moved(dist.Normal):
    """A law with a parameter that it does not declare."""

    def __init__(self, loc):
        self.shift = loc
        super().__init__(0.0, 1.0)

    def sample(self, key, sample_shape=()):
        return self.shift + super().sample(key, sample_shape)

    def log_prob(self, value):
        return super().log_prob(value - self.shift)


class Symmetric(dist.Normal):
    """It compares its noise, but with no parameter."""

    def sample(self, key, sample_shape=()):
        k1, k2 = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        sign = jnp.where(jax.random.uniform(k1, shape) < 0.5, 1.0, -1.0)
        return self.loc + self.scale * sign * jnp.abs(jax.random.normal(k2, shape))


class Piecewise(transforms.Transform):
    domain = constraints.real
    codomain = constraints.real

    def __call__(self, x):
        return jnp.where(x > 0, x + self.gap, x)

    def _inverse(self, y):
        return jnp.where(y > 0, y - self.gap, y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.zeros_like(x)

    def tree_flatten(self):
        return (), ((), {})


class Gap(Piecewise):
    gap = 1.0


class Closed(Piecewise):
    gap = 0.0


def through(transform):
    return lambda t: dist.TransformedDistribution(dist.Normal(t, 1.0), transform)


SMOOTH = {
    "moved": (Moved, lambda z: z**2, lambda t: 2 * t),
    "symmetric": (lambda t: Symmetric(t, 1.0), lambda z: z**2, lambda t: 2 * t),
    "closed": (through(Closed()), lambda z: z**2, lambda t: 2 * t),
}
JUMPING = {
    "mixture": (Two, lambda z: z, lambda t: 2.0),
    "gap": (through(Gap()), lambda z: z, lambda t: 1 + norm.pdf(t)),
}


def expectation_of(law, cost, strategy, **options):
    fn = lambda t: cost(ppl.sample("z", law(t)))
    return ppl.expectation(fn, strategies={"z": strategy}, **options)


def has_exact_mean(expectation, exact, t=0.3):
    found = np.array([expectation.grad(t, k) for k in jax.random.split(KEY, 16)])
    return abs(found.mean() - exact(t)) < 4.5 * found.std() / 4 + 1e-5


@pytest.mark.fast("closed")
@pytest.mark.parametrize("name", SMOOTH)
def test_draws_that_do_not_jump_are_differentiated(name):
    law, cost, exact = SMOOTH[name]
    assert has_exact_mean(expectation_of(law, cost, "reparam", num_replicates=2000), exact)


@pytest.mark.fast("gap")
@pytest.mark.parametrize("name", JUMPING)
def test_draws_that_jump_are_refused(name):
    law, cost, _ = JUMPING[name]
    with pytest.raises(
        ppl.StrategyError, match="Site 'z': the sampler of .* not NumPyro's.*jumps by"
    ):
        expectation_of(law, cost, "reparam").grad(0.3, KEY)
    assert np.isfinite(expectation_of(law, cost, ppl.Reparam(allow_jumps=True)).grad(0.3, KEY))


@pytest.mark.fast("gap-reinforce")
@pytest.mark.parametrize("strategy", ["reinforce", "auto"])
@pytest.mark.parametrize("name", JUMPING)
def test_scores_do_not_differentiate_draws(name, strategy):
    law, cost, exact = JUMPING[name]
    assert has_exact_mean(expectation_of(law, cost, strategy, num_replicates=4000), exact)


def test_a_parameter_that_is_not_declared_moves_the_draw():
    with pytest.raises(ppl.StrategyError, match="Site 'z': the result jumps by 1"):
        expectation_of(Moved, lambda z: jnp.where(z > 0, 1.0, 0.0), "reparam").grad(0.3, KEY)


class Unstopped(ppl.strategies.Strategy):
    """A score function whose draw is reparametrised by mistake."""

    name = "unstopped"

    def refuse(self, distribution):
        return None

    def draw(self, fn, key):
        return fn.sample(key)

    def local(self, draw):
        return draw.log_prob

    def surrogate(self, local, downstream):
        held = jax.lax.stop_gradient
        return held(downstream.cost) * (local - held(local))


def test_a_draw_that_does_not_move_has_no_derivative():
    """E[x^2] for x ~ Normal(t, 1): 2 t; with the sampler's derivative too it would be 4 t."""
    expectation = ppl.expectation(
        lambda t: ppl.sample("x", dist.Normal(t, 1.0), strategy=Unstopped()) ** 2,
        num_replicates=20_000,
    )
    grad = expectation.grad(1.5, jax.random.key(0))
    assert abs(grad - 3.0) < 0.3  # six standard errors


class Moving(ppl.strategies.Strategy):
    """A pathwise strategy that brings no draw of its own."""

    name, kind = "moving", "pathwise"

    def refuse(self, distribution):
        return None


def test_a_draw_that_moves_keeps_the_derivative_of_its_sampler():
    expectation = ppl.expectation(
        lambda t: ppl.sample("x", dist.Normal(t, 1.0), strategy=Moving()) * 3.0
    )
    assert expectation.grad(1.5, jax.random.key(0)) == 3.0
