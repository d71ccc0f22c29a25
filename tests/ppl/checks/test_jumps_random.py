"""The check of jumps on random compositions of which it is known whether they jump: none is missed, what is continuous passes.

Each site of one expectation goes through a composition of its own, so that one compilation serves many.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _random_jumps import CONTINUOUS, JUMPING, Composition, jumps_found

from lapilli import ppl
from lapilli.ppl.checks import suspects_of

# Densities outside of their support are among the pieces.
pytestmark = pytest.mark.filterwarnings("ignore:Out-of-support values")
NUM_SITES = 20
PARAM = jnp.float32(0.3)


def batch(seed, jumps):
    rng = np.random.default_rng(seed)
    return [Composition(rng, jumps) for _ in range(NUM_SITES)]


@pytest.mark.slow
@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(s, marks=pytest.mark.slow) for s in range(5, 50))]
)  # slow: 45 x 2 compilations
def test_compositions(seed, jumps):
    """2 x 100 programs here, 2 x 1,000 with the slow ones."""
    compositions = batch(seed, jumps)
    found = jumps_found(compositions)
    wrong = [f.name for f, is_found in zip(compositions, found, strict=True) if is_found != jumps]
    assert not wrong


@pytest.mark.slow  # compiles every piece
def test_the_pieces_are_what_they_are_said_to_be():
    """Jumps at 0 stay on finer grids; what is continuous changes ever less."""
    with jax.enable_x64(True):
        for name, fn in JUMPING.items():
            sides = [np.asarray(fn(jnp.asarray(s))) for s in (-1e-9, 1e-9)]
            assert abs(sides[1] - sides[0]) > 0.1, name
        for name, fn in CONTINUOUS.items():
            steps = []
            for num_points in (4001, 40_001):
                y = np.asarray(jax.vmap(fn)(jnp.linspace(-6.0, 6.0, num_points)))
                steps.append(np.abs(np.diff(y)).max())
            assert steps[1] < 0.2 * steps[0], name


def threshold(piece, kind):
    """A cost that jumps where noise that is kept meets a parameter."""

    def cost(m):
        if kind == "key":
            z = jax.random.normal(ppl.rng_key("noise"))
        else:
            z = ppl.sample("z", dist.Normal(0.0, 1.0), strategy=kind)
        return JUMPING[piece](z - m) + m

    return cost


@pytest.mark.fast("exp(-inf)-mvd")
@pytest.mark.parametrize("kind", ["reparam", "reinforce", "mvd", "key"])
@pytest.mark.parametrize("piece", ["step", "angle", "exp(-inf)", "inverse, squashed"])
def test_parameters_that_move_a_jump_are_refused(piece, kind):
    with pytest.raises(ValueError, match="as a function of the parameters"):
        ppl.expectation(threshold(piece, kind)).plan(0.3)


@pytest.mark.parametrize("strategy", ["reinforce", "mvd"])
def test_a_jump_that_stands_still_passes_under_scores(strategy):
    """All kinds of jumps at once: nothing has to be searched."""
    pieces = [f for name, f in JUMPING.items() if "custom" not in name]

    def cost(m):
        z = ppl.sample("z", dist.Normal(m, 1.0), strategy=strategy)
        return sum(f(z) for f in pieces)

    assert not suspects_of(ppl.expectation(cost).ready(PARAM))


@pytest.mark.slow
def test_continuous_functions_of_kept_noise_and_parameters_pass():
    fs = [f for name, f in CONTINUOUS.items() if name != "guarded logarithm"]

    def cost(m):
        z = ppl.sample("z", dist.Normal(0.0, 1.0), strategy="reinforce")
        return sum(f(z - m) for f in fs)

    ppl.expectation(cost).plan(0.3)
