"""Every taker of a reward names every fault of one before it computes anything with it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _tilts import KEY, normal

from lapilli import inference, ppl
from lapilli.models import diffusion

NOISING = diffusion.VP()
MODEL = diffusion.gaussian_mixture(NOISING, [1.0], [0.0], 1.0)
TIMES = NOISING.log_snr_times(4)

COINS = inference.diffusion.TokenDiffusion(lambda x, t: jnp.log(jnp.full((2, 2), 0.5)), 2, 2)


def guide():
    ppl.sample("x", dist.Normal(ppl.param("m", 0.0), 1.0))


def fit(reward):
    inference.fit(inference.elbo(inference.tilt(normal, reward), guide), optax.sgd(0.1), (), num_steps=2, key=KEY)  # fmt: skip


def rising(reward):
    def at(x, t):
        found = reward(x)
        return found if isinstance(found, str) else (1 - t / NOISING.end) * found

    return at


TAKERS = {
    "tilt": lambda r: inference.tilt(normal, r).simulate(KEY),
    "report": lambda r: inference.tilts.report(inference.tilt(normal, r), normal, KEY),
    "fit": fit,
    "smc": lambda r: inference.smc(inference.tilt(normal, r), KEY, num_particles=10),
    "best_of": lambda r: inference.best_of(normal, r, 4).simulate(KEY),
    "zero_order": lambda r: inference.search.zero_order(lambda e: e, r, KEY, jnp.asarray(0.3), num_steps=8),
    "first_order": lambda r: inference.search.first_order(lambda e: e, r, jnp.asarray(0.3), num_steps=8),
    "over_paths": lambda r: inference.search.over_paths(
        lambda k, x, t: x + t * jax.random.normal(k), lambda x, t, s: x, lambda x, s: r(x), KEY, jnp.asarray(0.3),
        (0.2, 0.1), num_copies=4,
    ),
    "fkc": lambda r: inference.diffusion.fkc(MODEL, TIMES, reward=rising(r), weights="euler", zeta=1.5),
    "fk_steering": lambda r: inference.diffusion.fk_steering(MODEL, TIMES, r),
    "twisted_diffusion": lambda r: inference.diffusion.twisted_diffusion(MODEL, TIMES, r),
    "fkc_tokens": lambda r: inference.smc(
        inference.diffusion.fkc_tokens(COINS, reward=lambda x, t: r(x.mean())), KEY, num_particles=4, history="none"
    ),
    "match_moments": lambda r: inference.tilts.match_moments(normal, r, 0.3, KEY),
}  # fmt: skip
FAULTS = {
    "NaN": (lambda x: x + jnp.nan, "NaN|not finite"),
    "infinite everywhere": (lambda x: 0 * x + jnp.inf, "inf|NaN|not finite"),
    "nothing left": (lambda x: 0 * x - jnp.inf, "-inf|infinite|not finite|NaN|gradient"),
    "wrong shape": (lambda x: x * jnp.ones(3), r"\(3,\)"),
    "no number": (lambda x: "good", "no number"),
    "complex": (lambda x: x * 1j, "complex"),
    "NumPy": (lambda x: np.sin(np.asarray(x)), "NumPy"),
}
# What excludes the denoised noise need not exclude what it ends in.
NO_FAULT = {("fk_steering", "nothing left"), ("twisted_diffusion", "nothing left")}
CASES = [(t, f) for t in TAKERS for f in FAULTS if (t, f) not in NO_FAULT]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("taker", "fault"), CASES)
def test_every_fault_is_named_by_every_taker(taker, fault):
    reward, message = FAULTS[fault]
    with pytest.raises((ValueError, TypeError), match=message):
        TAKERS[taker](reward)


@pytest.mark.parametrize("taker", ["fit", "fkc", "first_order"])
@pytest.mark.parametrize("reward", [jnp.round, lambda x: jnp.where(x > 0.3, 1.0, 0.0)])
def test_what_has_no_gradient_is_named_where_one_is_needed(taker, reward):
    with pytest.raises(ValueError, match="jump|discontinu|gradient"):
        TAKERS[taker](reward)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("taker", TAKERS)
def test_a_reward_without_fault_is_taken(taker):
    TAKERS[taker](lambda x: 0.1 * x)


def test_a_reward_that_jumps_is_taken_where_only_its_value_counts():
    steps = lambda x, t: (1 - t / NOISING.end) * jnp.round(x)
    assert inference.diffusion.fkc(MODEL, NOISING.log_snr_times(60), reward=steps).weights == (
        "exact",
    )
    inference.diffusion.fk_steering(MODEL, TIMES, jnp.round)


# What takes a tilt, which tries its reward: one mechanism, so that three faults stand for all.
FITTED = {
    "log_variance": lambda t: inference.log_variance(t, guide, num_particles=2),
    "log_variance, draws of the model": lambda t: inference.log_variance(t, guide, num_particles=2, proposal=normal),
    "forward_kl": lambda t: inference.forward_kl(t, guide, num_particles=2),
    "wake_phi": lambda t: inference.wake_phi(t, guide, num_particles=2),
    "renyi": lambda t: inference.renyi(t, guide, alpha=0.5, num_particles=2),
    "without a guide": lambda t: t,
}  # fmt: skip
TAKERS_OF_TILTS = {
    name: lambda t, of=of: inference.fit(of(t), optax.sgd(0.1), (), num_steps=2, key=KEY, progress=False)
    for name, of in FITTED.items()
} | {
    "tempered_smc": lambda t: inference.tempered_smc(t, KEY, num_particles=10),
    "normalize": lambda t: ppl.normalize(t, proposal=normal, num_particles=2).simulate(KEY),
    "eliminate": lambda t: ppl.eliminate(t, "x").log_density({}),
    "infer": lambda t: inference.infer(t, key=KEY, progress=False),
    "nuts": lambda t: inference.nuts(t, key=KEY, progress=False),
    "tilt of a tilt": lambda t: inference.tilt(t, lambda x: -jnp.square(x)).simulate(KEY),
}  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("fault", ["NaN", "nothing left", "wrong shape"])
@pytest.mark.parametrize("taker", TAKERS_OF_TILTS)
def test_whatever_takes_a_tilt_names_the_reward_first(taker, fault):
    def bad(x):
        return FAULTS[fault][0](x)

    with pytest.raises((ValueError, TypeError), match=r"tilt: reward '.*bad"):
        TAKERS_OF_TILTS[taker](inference.tilt(normal, bad))
