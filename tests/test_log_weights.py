"""A log-weight is a number: truth values, which would count as 1 and 0 nats, are refused wherever a user's function gives one."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.diffusion import Diffusion, TokenDiffusion, fkc, fkc_tokens
from lapilli.models import diffusion, gflownet, mam
from lapilli.ppl._checks import log_number

KEY = jax.random.key(0)
NOISING = diffusion.VP(0.1, 8.0)
NORMAL = diffusion.gaussian_mixture(NOISING, [1.0], [0.0], 1.0)
EVEN = TokenDiffusion(
    lambda x, t: jnp.full((2, 2), -jnp.log(2.0)), 2, 2, log_marginal=lambda x, t: x[0] > 0
)
TABLES = mam.MaM(mam.Tables(jnp.zeros((2, 2)) - jnp.log(4.0)))  # fmt: skip
holds = lambda x: x[0] > 0


def factored():
    ppl.factor("wall", ppl.sample("z", dist.Normal(0.0, 1.0)) > 0)


class Walled(gflownet.Hypergrid):
    def log_reward(self, state):
        return state[0] > 0


smc = lambda model: inference.smc(model, KEY, num_particles=4)
steps = lambda potential, transition=None: inference.FeynmanKac(
    jax.random.normal, lambda key, x, t: x, potential, 2, transition
)
ROOMS = {
    "factor": lambda: smc(factored),
    "objective": lambda: inference.elbo(factored, lambda: ppl.sample("z", dist.Normal(0.0, 1.0))).value({}, KEY),
    "potential": lambda: smc(steps(lambda _, x, t: x > 0)),
    "transition": lambda: inference.particles.conditional_smc(
        steps(lambda _, x, t: -x, lambda _, x, t: x > 0), KEY, jnp.zeros(3), num_particles=4, path="ancestor"
    ),
    "density": lambda: fkc(Diffusion(NOISING, NORMAL.score, (), lambda x, t: x > 0), NOISING.times(9)).init(KEY),
    "marginal": lambda: fkc_tokens(EVEN).init(KEY),
    "sampler": lambda: gflownet.diffusion_sampler(holds, 1, num_steps=2, key=KEY),
    "environment": lambda: gflownet.check(Walled(2, 3), KEY),
    "any-order particles": lambda: smc(mam.feynman_kac(TABLES, holds)),
    "any-order moves": lambda: mam.BlockGibbs(TABLES, 1, holds)(KEY, jnp.zeros(2, int)),
    "any-order target": lambda: mam.unnormalised(holds, 2, 2).simulate(KEY),
}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_truth_values_are_no_log_weights(room):
    with pytest.raises(
        TypeError, match=r"a log-weight in nats is wanted, got bool.*jnp.where\(holds"
    ):
        ROOMS[room]()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_numbers_of_every_kind_are(dtype):
    assert log_number("it", jnp.zeros(2, dtype)).dtype == dtype
    assert log_number("it", 1.0) == 1


@pytest.mark.parametrize("value", [None, 1j, True])
def test_other_values_are_none(value):
    with pytest.raises(TypeError, match="it: a log-weight in nats is wanted"):
        log_number("it", value)
