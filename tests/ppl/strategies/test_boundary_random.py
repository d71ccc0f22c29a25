"""The boundary strategy on random programs against quadrature.

Three programs share an expectation, each with parameters of its own: 12 comparisons a seed, and 720 with the slow ones, of
which a correct estimator fails one with probability 0.5%.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _random_boundaries import NUM_PARAMS, RandomProgram

from _stats import assert_unbiased
from lapilli import ppl

NUM_PROGRAMS = 3
NUM_DRAWS = 20_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 60))]
)  # slow: 59 compilations
def test_random_programs(seed):
    rng = np.random.default_rng(seed)
    programs = [RandomProgram(rng, f"p{n}") for n in range(NUM_PROGRAMS)]
    params = rng.normal(size=(NUM_PROGRAMS, NUM_PARAMS)) * 0.5
    strategies = {k: v for program in programs for k, v in program.strategies.items()}
    expectation = ppl.expectation(
        lambda ps: sum(f.cost(p) for f, p in zip(programs, ps, strict=True)), strategies=strategies
    )
    keys = jax.random.split(jax.random.key(seed), NUM_DRAWS)
    point = jnp.asarray(params, jnp.float32)
    found = jax.jit(jax.vmap(lambda key: expectation.grad(point, key)))(keys)
    with jax.enable_x64(True):
        exact = [
            jax.jit(jax.grad(f.exact))(jnp.asarray(p))
            for f, p in zip(programs, params, strict=True)
        ]
    assert_unbiased(found, np.asarray(exact))
