"""How much of its start a chain remembers, and what is refused where it does."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.diffusion import Diffusion
from lapilli.models import diffusion

KEY = jax.random.key(0)
VP = diffusion.VP()
PRIOR = diffusion.gaussian_mixture(VP, [1.0], [[0.0]], 1.0)
SHORT, LONG = np.linspace(0.4, 0.05, 6), VP.log_snr_times(12)
A = 0.8


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, None])
def test_it_is_the_correlation_of_paths(eta):
    num, rho = 20_000, diffusion.memory(VP, SHORT, eta=eta)
    if eta is None:
        path = jax.vmap(lambda k: chain(SHORT).simulate(k).choices["x_path"][:, 0])
        start, *_, end = np.asarray(path(jax.random.split(KEY, num))).T
    else:
        start = VP.std(SHORT[0]) * jax.random.normal(KEY, (num, 1))
        end = diffusion.ddim(PRIOR, jax.random.key(1), SHORT, num_samples=num, eta=eta, start=start)
    found = np.corrcoef(np.ravel(start), np.ravel(end))[0, 1]
    assert abs(found - rho) < 4.5 * (1 - rho**2) / num**0.5 + 1e-5


def test_long_grids_are_memoryless_with_noise_and_never_without():
    assert diffusion.memory(VP, LONG) < 0.01
    assert diffusion.memory(VP, LONG, eta=0.0) > 0.99999
    rhos = [diffusion.memory(VP, np.linspace(t, 0.05, 6)) for t in (0.3, 0.5, 0.7, 1.0)]
    assert rhos == sorted(rhos, reverse=True)
    assert diffusion.memory(VP, SHORT, data_variance=4.0) > diffusion.memory(VP, SHORT)
    with pytest.raises(ValueError, match="data_variance must be positive, got 0"):
        diffusion.memory(VP, LONG, data_variance=0.0)
    with pytest.raises(ValueError, match="memory"):
        diffusion.memory(VP, LONG[::-1])


def chain(times, shift=None):
    """The chain of the prior; with a shift of the denoised point, as fine-tuning would make it."""

    def program():
        if shift is None:
            return diffusion.reverse_chain("x", PRIOR, times)
        more = ppl.param("more", jnp.asarray(shift))
        score = lambda x, t: PRIOR.score(x, t) + VP.alpha(t) * more
        return diffusion.reverse_chain("x", Diffusion(VP, score, (1,)), times)

    return ppl.as_program(program)


def noised():
    x = ppl.sample("x", dist.Normal(jnp.full(1, A), 1.0).to_event(1))
    diffusion.noising_chain("x", x, VP, SHORT)


OBJECTIVES = {
    "elbo": lambda p, q: inference.elbo(p, q),
    "log_variance": lambda p, q: inference.log_variance(p, q, num_particles=2),
    "log_variance, draws of the model": lambda p, q: inference.log_variance(p, q, num_particles=2, proposal=p.base),
    "forward_kl": lambda p, q: inference.forward_kl(p, q, num_particles=2),
    "forward_kl, draws of the model": lambda p, q: inference.forward_kl(p, q, num_particles=2, proposal=p.base),
}  # fmt: skip


@pytest.mark.slow_for("log_variance, draws of the model")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_a_chain_that_remembers_its_start_is_refused(name):
    reward = lambda x: A * x[0]
    short = OBJECTIVES[name](inference.tilt(chain(SHORT), reward), chain(SHORT, 0.0))
    with pytest.raises(
        ValueError,
        match=r"site 'x_path': .* remembers it \(correlation rho = 0\.\d+\).* variance of a\^2 rho\^2 = 0\.\d+",
    ):
        short.init(KEY)


def test_training_a_chain_that_forgets_its_start_is_not_refused():
    long = inference.elbo(inference.tilt(chain(LONG), lambda x: A * x[0]), chain(LONG, 0.0))
    assert np.isfinite(long.value(long.init(KEY), KEY))


def test_a_guide_that_draws_the_end_is_not_refused():
    objective = inference.elbo(inference.tilt(chain(SHORT), lambda x: A * x[0]), noised)
    assert np.isfinite(objective.value({}, KEY))


def test_particles_of_a_chain_that_remembers_are_not_refused():
    made = inference.tilt(chain(SHORT), lambda x: A * x[0])
    run = inference.smc(made, KEY, num_particles=2000)
    assert abs(run.mean(lambda x: x["x"][0]) - A) < 0.15
