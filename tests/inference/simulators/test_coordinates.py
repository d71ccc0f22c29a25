"""The map of boxes: onto the interval, its inverse, its derivative; straight in the middle, a logit at the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.inference.simulators._coordinates import SoftBoxTransform

CASES = [(-1.0, 1.0, 10.0), (0.0, 1.0, 10.0), (-3.0, 5.0, 2.0), (100.0, 100.5, 40.0)]


@pytest.mark.parametrize("low, high, sharpness", CASES)
def test_it_is_a_bijection_with_its_derivative(low, high, sharpness):
    """Points within and beyond the box, against automatic derivatives; the way back as exact as the value allows."""
    with jax.enable_x64(True):
        box = SoftBoxTransform(low, high, sharpness)
        x = jnp.concatenate([jnp.linspace(-1.5, 1.5, 61), jnp.array([-3.0, 3.0])])
        y = box(x)
        assert (np.diff(y[:61]) > 0).all() and ((y >= low) & (y <= high)).all()
        slopes = jax.vmap(jax.grad(box))(x)
        # Values are kept off the ends by rounding, where they do not move.
        seen = np.asarray(slopes) > 1e-8 * (high - low)
        assert np.allclose(box.log_abs_det_jacobian(x, y)[seen], np.log(slopes[seen]), atol=1e-5)
        assert np.allclose(box._inverse(y)[seen], x[seen], atol=1e-4)


def test_it_is_straight_in_the_middle_and_a_logit_without_sharpness():
    box = SoftBoxTransform(-2.0, 4.0, 10.0)
    x = jnp.linspace(-0.6, 0.6, 13)
    assert np.allclose(box(x), 1 + 3 * x, atol=3 * 0.02)
    slopes = jax.vmap(jax.grad(box))(x)
    assert np.allclose(slopes, 3.0, rtol=0.02)
    soft = SoftBoxTransform(-2.0, 4.0, 1e-2)
    y = jnp.array([-1.0, 0.5, 3.0])
    assert np.allclose(soft._inverse(y) * 1e-2, jax.scipy.special.logit((y + 2) / 6), atol=0.02)


def test_ends_are_finite():
    """In single precision: values at the very ends, and draws far beyond them."""
    box = SoftBoxTransform(-10.0, 10.0, 10.0)
    assert np.isfinite(box._inverse(jnp.array([-10.0, 10.0]))).all()
    far = jnp.array([-50.0, 50.0])
    y = box(far)
    assert ((y >= -10) & (y <= 10)).all()
    assert np.isfinite(box.log_abs_det_jacobian(far, y)).all()
