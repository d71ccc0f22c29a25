"""Bridges between normals have the entropic coupling's covariance; the way back is that of the field."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapilli.models import paths

SDS = 1.0, 2.0
# Covariance of the entropic coupling by s^2, in closed form (s0^2 s1^2 + s^4 / 4)^(1/2) - s^2 / 2; 2 without noise.
COVARIANCES = {1.0: 1.5616, 2.0: 0.8284}


class Affine(eqx.Module):
    """u = a(t) + b(t) x and z = sqrt(t (1 - t)) (c(t) + d(t) x), polynomials of t."""

    factors: jax.Array

    def __call__(self, x, t, context):
        a, b, c, d = self.factors @ (2 * t - 1) ** jnp.arange(self.factors.shape[1])
        return a + b * x, jnp.sqrt(t * (1 - t)) * (c + d * x)


def normal_rows(key, num, sd):
    """A sample whose moments are nearly exact: quantiles in random order."""
    from scipy.stats import norm

    x = norm.ppf((np.arange(num) + 0.5) / num)
    return sd * jax.random.permutation(key, jnp.asarray(x / x.std(), jnp.float32))[:, None]


@pytest.mark.slow_for("2.0")
@pytest.mark.parametrize("noise", COVARIANCES)
def test_a_bridge_of_normals_has_the_entropic_coupling(noise):
    """Within 2 %: 40,000 pairs, whose covariance has an error of 0.7 % at one standard deviation."""
    keys = jax.random.split(jax.random.key(0), 5)
    x0, x1 = (normal_rows(k, 40_000, sd) for k, sd in zip(keys, SDS, strict=False))
    field = paths.bridge(
        Affine(jnp.zeros((4, 6))), x0, x1, keys[2], noise=noise, optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 400)),
        num_training_steps=400, batch_size=2000,
    )  # fmt: skip
    draw = jax.jit(
        lambda f, k, x: paths.diffuse(f, k, x, noise=noise**2 / 2, num_steps=200), static_argnums=0
    )
    for there, start, sd in ((field, x0, SDS[1]), (field.reversed, x1, SDS[0])):
        end = np.asarray(draw(there, keys[3], start))
        assert abs(end.std() / sd - 1) < 0.02
        covariance = np.mean(np.asarray(start) * end)
        error = np.std(np.asarray(start) * end) / 200
        assert abs(covariance / COVARIANCES[noise] - 1) < 0.02 + 3 * error / COVARIANCES[noise]


def test_refusals(key):
    with pytest.raises(ValueError, match="bridge: noise must be positive"):
        paths.bridge(
            Affine(jnp.zeros((4, 2))), jnp.zeros((4, 1)), jnp.zeros((4, 1)), key, noise=0.0
        )
