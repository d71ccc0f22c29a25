"""Diffusions with the marginals of a flow: draws, and their density, estimated without bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ...ppl._checks import check_counts
from ...ppl._types import Key
from ._matching import Field, VectorField
from ._tokens import jump


def diffuse(
    field: Field, key: Key, start: Float[Array, " points *shape"], *, noise: float, num_steps: int
) -> Float[Array, " points *shape"]:
    """Points at t = 1 of the diffusion dx = (b + noise s) dt + sqrt(2 noise) dW from draws of x_0, by Euler steps.

    Of a path of tokens, rows at t = 1 of the Markov chain with the field's rates; what is left passes in the last step.

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

    Validity: exact as num_steps grows. For tokens from noise `diffusion.token_law` has exact steps and a density.

    Reference: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, theorem 2.6 and corollary 2.10.
    """
    check_counts("diffuse", num_steps=num_steps)
    drift, dt = _drift("diffuse", field, noise), 1 / num_steps
    if field.log_probs is not None:
        return jump(drift, key, start, num_steps)

    def step(x: Array, n: Array) -> tuple[Array, None]:
        x = x + dt * jax.vmap(lambda x: drift(n * dt, x))(x)
        if noise:
            z = jax.random.normal(jax.random.fold_in(key, n), x.shape)
            x = x + jnp.sqrt(2 * noise * dt) * z
        return x, None

    return jax.lax.scan(step, jnp.asarray(start, float), jnp.arange(num_steps))[0]


def diffusion_log_density(
    field: Field, start: dist.Distribution, x: Float[Array, " points *shape"], key: Key, *, noise: float, num_steps: int,
    num_paths: int = 1,
) -> Float[Array, " points"]:  # fmt: skip
    """Logarithms of unbiased estimates of the density of points under the law of `diffuse`.

        p(x) = E[exp(-int div b_F(t, Y_t) dt) start(Y_0)],   dY = b_F dt + sqrt(2 noise) dW run back from Y_1 = x,

    b_F = b + noise s. Paths are drawn from the reversed diffusion, with b - noise s in place of b_F, and weighted by the ratio of
    the two: where b and s are exact, all weights tend to p(x) as the steps grow short. (On the way they are p(x) / p_t(Y_t), and
    to resample by them would look for improbable places.)

    Args:
        field: velocity b and score s.
        start: law of x_0, for one point.
        x: the points, at t = 1.
        key: PRNG key.
        noise: at least 0; at 0 all paths of a point are one.
        num_steps: Euler steps.
        num_paths: paths, over which the mean of the weights is taken.

    Raises:
        ValueError: negative noise, or noise and a field without a score; a start of another shape than a point.

    Validity: exp of it is unbiased, at any number of paths, for any b and s, up to the error of the Euler steps, which is of the
        order of 1 / num_steps.

    Reference: Albergo, Boffi and Vanden-Eijnden 2023, arXiv:2303.08797, theorem 2.23; its paths by Girsanov's theorem.
    """
    check_counts("diffusion_log_density", num_steps=num_steps, num_paths=num_paths)
    drift, dt = _drift("diffusion_log_density", field, noise), 1 / num_steps
    x = jnp.asarray(x, float)
    shape = x.shape[1:]
    if (start.batch_shape, start.event_shape) != ((), shape):
        raise ValueError(
            f"diffusion_log_density: start has batch shape {start.batch_shape} and event shape {start.event_shape}, and a point "
            f"{shape}: each coordinate would have a density of its own. Give the law of one point, with "
            f".to_event({len(shape)})."
        )

    def step(carry: tuple[Array, Array, Key], n: Array) -> tuple[tuple[Array, Array, Key], None]:
        old, total, key = carry
        t = 1 - n * dt
        moved = drift(t, old)
        divergence = jnp.trace(
            jax.jacfwd(lambda x: drift(t, x.reshape(shape)).ravel())(old.ravel())
        )
        total, new = total - dt * divergence, old - dt * moved
        if noise:
            score = field.score(t, old) if field.score else jnp.zeros(shape)
            z = jax.random.normal(jax.random.fold_in(key, n), shape)
            shift, scale = 2 * noise * dt * score, jnp.sqrt(2 * noise * dt)
            new = new + shift + scale * z
            # Log of Normal(new; old - dt b_F) over Normal(new; old - dt b_F + shift), both with this scale.
            total = total - jnp.sum(shift * (0.5 * shift + scale * z)) / scale**2
        return (new, total, key), None

    def weight(x: Array, key: Key) -> Array:
        (last, total, _), _ = jax.lax.scan(step, (x, jnp.zeros(()), key), jnp.arange(num_steps))
        return total + start.log_prob(last)

    keys = jax.random.split(key, (len(x), num_paths))
    logs = jax.vmap(jax.vmap(weight, (None, 0)))(x, keys)
    return jax.nn.logsumexp(logs, 1) - jnp.log(num_paths)


def _drift(name: str, field: Field, noise: float) -> VectorField:
    if noise < 0:
        raise ValueError(f"{name}: noise must be >= 0, got {noise}. Give 0 for the flow, or more.")
    if not noise:
        return field.velocity
    score = field.score
    if score is None:
        raise ValueError(
            f"{name}: noise {noise} needs the score of the marginals, and this field has none. Learn it along a path with noise "
            "(paths.linear(noise=1.0)), or set noise=0."
        )
    return lambda t, x: field.velocity(t, x) + noise * score(t, x)
