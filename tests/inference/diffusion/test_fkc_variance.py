"""The variance of the weights of annealed Gaussians: Riccati equations, and what particles find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lapilli import inference
from lapilli.models import diffusion

V0, BETA_0, BETA_1 = 0.3, 0.1, 20.0
ZETAS = ("0", "b^-1/2", "1", "1.5", "2", "3", "4")
# Share of the particles that the weights are worth, one dimension, without resampling; None: infinite variance.
TABLE = {
    0.5: (0.085, 0.306, 0.211, 0.327, 0.442, 0.626, 0.745),
    1.2: (None, 0.125, 0.447, 0.811, 0.900, 0.957, 0.976),
    1.5: (None, None, None, 0.184, 0.533, 0.792, 0.883),
    2.0: (None, None, None, None, 0.089, 0.471, 0.679),
    3.0: (None, None, None, None, 2e-5, 0.114, 0.341),
    10.0: (None, None, None, None, None, 3e-7, 1e-3),
}


def noise_scale(name, beta):
    return beta**-0.5 if name == "b^-1/2" else float(name)


def log_moment(k, beta, zeta):
    """Log of E[weight^k], by E[weight^k | x] = exp(A + P x^2) and the equations of A and P, forward in time."""

    def rates(t, y):
        g2 = BETA_0 + (BETA_1 - BETA_0) * t
        alpha2 = np.exp(-BETA_0 * t - (BETA_1 - BETA_0) * t**2 / 2)
        v = alpha2 * V0 + 1 - alpha2
        rate = g2 / 2 - g2 * (1 + zeta**2) * beta / (2 * v)
        p = y[1]
        slope = k * beta * (beta - 1) * g2 / (2 * v**2) + 2 * rate * p + 2 * zeta**2 * g2 * p**2
        return [-k * (beta - 1) * g2 / 2 + zeta**2 * g2 * p, slope]

    blow_up = lambda t, y: y[1] - 1e6
    blow_up.terminal = True
    done = solve_ivp(rates, (0, 1), [0, 0], method="LSODA", rtol=1e-9, atol=1e-12, events=blow_up)
    alpha2 = np.exp(-(BETA_0 + BETA_1) / 2)
    rest = 1 - 2 * done.y[1, -1] * (alpha2 * V0 + 1 - alpha2) / beta
    return np.inf if done.t[-1] < 1 or rest <= 0 else done.y[0, -1] - 0.5 * np.log(rest)


def share(beta, zeta):
    return np.exp(2 * log_moment(1, beta, zeta) - log_moment(2, beta, zeta))


@pytest.mark.slow_for("10.0", "2.0")
@pytest.mark.parametrize("beta", TABLE)
def test_riccati_equations_give_the_table(beta):
    """To the last printed digit, give or take one; where the second moment is infinite they blow up."""
    for name, want in zip(ZETAS, TABLE[beta], strict=True):
        got = share(beta, noise_scale(name, beta))
        if want is None:
            assert got == 0, name
        else:
            digit = 1e-3 if want > 2e-3 else 10 ** np.floor(np.log10(want))
            assert abs(got - want) <= 1.01 * digit, (name, got)


NOISING = diffusion.VP(BETA_0, BETA_1)
MODEL = diffusion.gaussian_mixture(NOISING, [1.0], [0.0], V0)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def found(key, beta, zeta, num_particles):
    """The share from particles, with Euler weights: their ess is that of the exact rate."""
    model = inference.diffusion.fkc(
        MODEL, np.linspace(1.0, 0.0, 2001), exponents=beta, zeta=zeta, weights="euler"
    )
    result = inference.smc(
        model,
        key,
        num_particles=num_particles,
        policy=inference.particles.resampling.never(),
        history="none",
    )
    return result.ess[-1] / num_particles


# Where the fourth moment is finite and small; elsewhere the empirical share has no variance to speak of.
CHECKED = [(0.5, "1"), (0.5, "2"), (1.2, "1.5"), (1.2, "3"), (1.5, "3"), (2.0, "3"), (2.0, "4")]


@pytest.mark.slow  # 50,000 particles, 2,000 steps, seven times
def test_particles_find_the_table(key):
    for beta, name in CHECKED:
        zeta = noise_scale(name, beta)
        np.testing.assert_allclose(
            found(key, beta, zeta, 50_000), share(beta, zeta), rtol=0.05, err_msg=f"{beta} {name}"
        )


@pytest.mark.slow  # 5,000 particles, 400 steps, 20 runs for each noise scale
def test_the_bound_of_the_warning_separates_right_from_wrong(key):
    """Annealed to 3: log Z of runs above the bound is right, below it wrong while the ess looks well."""
    exact = -1.5 * np.log(2 * np.pi * V0) + 0.5 * np.log(2 * np.pi * V0 / 3)

    def run(key, zeta):
        model = inference.diffusion.fkc(MODEL, np.linspace(1.0, 0.0, 401), exponents=3.0, zeta=zeta)
        result = inference.smc(model, key, num_particles=5000, history="none")
        return result.log_evidence - exact, result.ess.min() / 5000

    errors = {}
    for name, zeta in {"below": 0.6, "auto": "auto"}.items():
        with np.testing.suppress_warnings() as quiet:
            quiet.filter(UserWarning)
            runs = jax.jit(lambda keys, z=zeta: jax.lax.map(lambda k: run(k, z), keys))
            errors[name], ess = runs(jax.random.split(key, 20))
        assert jnp.min(ess) > 0.2, name
    assert np.abs(np.mean(errors["auto"])) < 0.02 and np.std(errors["auto"]) < 0.05
    assert np.abs(np.mean(errors["below"])) > 0.2
