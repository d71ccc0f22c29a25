"""Diffusions with the marginals of a flow: draws, and the density as a Feynman-Kac model, whose estimate is unbiased."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ...inference import FeynmanKac
from ...ppl._checks import check_counts
from ...ppl._types import Key
from ._matching import Field, VectorField


def diffuse(
    field: Field, key: Key, start: Float[Array, " points *shape"], *, noise: float, num_steps: int
) -> Float[Array, " points *shape"]:
    """Points at t = 1 of the diffusion dx = (b + noise s) dt + sqrt(2 noise) dW from draws of x_0, by Euler steps.

    With exact b and s its marginals are those of the flow at every noise; noise mends what is wrong with a learned b, as far as
    the learned s is right.

    Args:
        field: velocity b and score s.
        key: PRNG key.
        start: draws of x_0.
        noise: at least 0; at 0 the flow, which needs no score.
        num_steps: Euler steps.

    Raises:
        ValueError: negative noise, or noise and a field without a score.

    Validity: exact as num_steps grows.

    Reference: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, theorem 2.6 and corollary 2.10.
    """
    check_counts("diffuse", num_steps=num_steps)
    drift, dt = _drift("diffuse", field, noise), 1 / num_steps

    def step(x: Array, n: Array) -> tuple[Array, None]:
        z = jax.random.normal(jax.random.fold_in(key, n), x.shape)
        x = x + dt * jax.vmap(lambda x: drift(n * dt, x))(x) + jnp.sqrt(2 * noise * dt) * z
        return x, None

    return jax.lax.scan(step, jnp.asarray(start, float), jnp.arange(num_steps))[0]


def density_model(
    field: Field,
    start: dist.Distribution,
    x: Float[Array, "*shape"],
    *,
    noise: float,
    num_steps: int,
) -> FeynmanKac:
    """The density at t = 1 of the point x as the evidence of a Feynman-Kac model, for `inference.smc`.

        p(x) = E[exp(-int div b_F(t, Y_t) dt) start(Y_0)],   dY = b_F dt + sqrt(2 noise) dW run back from Y_1 = x,

    b_F = b + noise s. `exp(smc(model, key, num_particles=K).log_evidence)` is unbiased for it on the grid of steps at any K.

    Args:
        field: velocity b and score s.
        start: law of x_0, for one point.
        x: the point.
        noise: at least 0; at 0 all paths are one.
        num_steps: Euler steps.

    Raises:
        ValueError: negative noise, or noise and a field without a score.

    Validity: up to the error of the Euler steps, which is of the order of 1 / num_steps; the density of the law of `diffuse`
        where s is the score of its marginals.

    Reference: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, theorem 2.23.
    """
    check_counts("density_model", num_steps=num_steps)
    drift, dt = _drift("density_model", field, noise), 1 / num_steps
    x = jnp.asarray(x, float)

    def kernel(key: Key, state: Array, n: Array) -> Array:
        t = 1 - (n - 1) * dt
        return (
            state
            - dt * drift(t, state)
            + jnp.sqrt(2 * noise * dt) * jax.random.normal(key, x.shape)
        )

    def log_potential(old: Array, new: Array, n: Array) -> Array:
        t = 1 - (n - 1) * dt
        inner = lambda flat: drift(t, flat.reshape(x.shape)).ravel()
        divergence = jnp.trace(jax.jacfwd(inner)(old.ravel()))
        last = jnp.where(n == num_steps, start.log_prob(new), 0.0)
        return jnp.where(n == 0, 0.0, last - dt * divergence)

    return FeynmanKac(lambda key: x, kernel, log_potential, num_steps, has_memory=True)


def _drift(name: str, field: Field, noise: float) -> VectorField:
    if noise < 0:
        raise ValueError(f"{name}: noise must be >= 0, got {noise}.")
    if not noise:
        return field.velocity
    score = field.score
    if score is None:
        raise ValueError(
            f"{name}: noise {noise} needs the score of the marginals, and this field has none. Learn it along a path with noise "
            "(paths.linear(noise=1.0)), or set noise=0."
        )
    return lambda t, x: field.velocity(t, x) + noise * score(t, x)
