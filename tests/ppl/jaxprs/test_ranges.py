"""Ranges of numbers: what is said of a result holds for all values of the sites."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _random_jumps import CONTINUOUS

from lapilli import ppl
from lapilli.ppl.analysis._analyse import analyse
from lapilli.ppl.jaxprs._ranges import POSITIVE, REALS, UNIT, Range, number, union, widened

LAWS = {
    "real": (lambda m: dist.Normal(m, 3.0), np.linspace(-9, 9, 401)),
    "positive": (lambda m: dist.Gamma(jnp.exp(m), 1.0), np.geomspace(1e-4, 50, 401)),
    "unit": (lambda m: dist.Beta(jnp.exp(m), 1.0), np.linspace(1e-4, 1 - 1e-4, 401)),
}
OTHERS = {
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log of 1 + x^2": lambda x: jnp.log(1 + x**2),
    "negative square": lambda x: -(x**2) - 1,
    "odd power": lambda x: (x - 0.5) ** 3,
    "negative power": lambda x: (1 + x**2) ** -2,
    "difference": lambda x: 1 - jax.nn.sigmoid(x),
    "product": lambda x: jax.nn.sigmoid(x) * (jax.nn.sigmoid(-x) - 2),
    "ratio": lambda x: (x**2 - 1) / (2 + jnp.sin(x)),
    "sum": lambda x: (jax.nn.sigmoid(x) * jnp.ones(3)).sum(),
    "running sum": lambda x: jnp.cumsum(jnp.tanh(x) * jnp.ones(3))[2],
    "matrix product": lambda x: jnp.exp(x * jnp.ones(3)) @ jnp.ones(3),
    "clip": lambda x: jnp.clip(x, -0.5, 0.25),
    "max": lambda x: jnp.maximum(x, 0.5),
    "min": lambda x: jnp.minimum(x**2, 0.5),
    "choice": lambda x: jnp.where(x > 1, jnp.exp(-x), 2.0),
    "pad": lambda x: jnp.pad(jnp.exp(x)[None], 1).min(),
    "cast": lambda x: (3 * jax.nn.sigmoid(x)).astype(int) * 1.0,
    "arc": lambda x: jnp.arctan(x) + jnp.arcsin(jnp.tanh(x)),
    "trigonometry": lambda x: jnp.sin(x) * jnp.cos(2 * x),
    "cosh": jnp.cosh,
    "erf": lambda x: jax.scipy.special.erf(x) - jax.scipy.special.erfc(x),
    "root": lambda x: jnp.sqrt(x**2),
    "norm": lambda x: jnp.linalg.norm(x * jnp.ones(3)),
    "loop": lambda x: jax.lax.scan(lambda c, _: (c * jax.nn.sigmoid(x) + 1, None), 0.0, None, 4)[0],
    "while": lambda x: jax.lax.while_loop(lambda c: c < 5, lambda c: 2 * c, 1.0) * jnp.tanh(x),
    "power": lambda x: jnp.power(jnp.exp(x), 0.3),
    "comparison": lambda x: (x > 0.5) * 1.0,
}  # fmt: skip
FUNCTIONS = CONTINUOUS | OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_values_lie_in_their_range(law):
    make, values = LAWS[law]
    said = 0
    for name, fn in FUNCTIONS.items():
        cost = lambda m, fn=fn: jnp.asarray(fn(ppl.sample("z", make(m))), float)
        program = analyse(cost, jnp.asarray(0.3), jax.random.key(0), (), strategies=None)
        low, high, above, below = program.facts[program.result].range
        with jax.enable_x64(True):
            found = np.asarray(jax.vmap(fn)(jnp.asarray(values)), float)
        slack = 1e-6 * (1 + np.abs(found))
        assert (found >= low - slack).all() and (found <= high + slack).all(), name
        assert not above or (found > low - 1e-12).all(), name
        assert not below or (found < high + 1e-12).all(), name
        said += (low, high) != (REALS.low, REALS.high)
    assert said >= 25  # the rule that nothing is known would pass, too


def test_arithmetic_of_ends():
    assert union([number(1.0), UNIT]) == Range(0.0, 1.0, True, False)
    assert widened(UNIT, Range(0.0, 2.0)) == POSITIVE
    assert POSITIVE.is_positive and POSITIVE.negative.is_nonzero and not REALS.is_nonzero
    assert not Range(0.0, 1.0, False).is_nonzero
