"""The law of a curve with noise against a quadrature along it, as the noise grows small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from _stats import assert_unbiased
from lapilli.ppl.distributions import Polyline

KNOTS = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.3, 1.5]])


def by_quadrature(x, scale, knots=KNOTS):
    """Gauss and Legendre's nodes of each segment, where its integrand is."""
    u, w = np.polynomial.legendre.leggauss(400)
    logs = []
    for a, b in zip(knots[:-1], knots[1:], strict=True):
        length = np.linalg.norm(b - a)
        place = (x - a) @ (b - a) / length
        beyond = max(-place, place - length)
        reach = min(12 * scale, 60 * scale**2 / beyond) if beyond > 0 else 12 * scale
        low, high = np.clip([place - reach, place + reach], 0, length)
        if low == high:
            low, high = (0, reach) if place < 0 else (length - reach, length)
        t = np.clip(0.5 * (low + high) + 0.5 * (high - low) * u, 0, length)
        points = a + t[:, None] * (b - a) / length
        square = ((x - points) ** 2).sum(1)
        size = len(x)
        log_normal = -0.5 * square / scale**2 - 0.5 * size * np.log(2 * np.pi * scale**2)
        logs.append(logsumexp(log_normal, b=w * 0.5 * (high - low)) - np.log(length))
    return logsumexp(logs) - np.log(len(knots) - 1)


@pytest.mark.parametrize("scale", [0.1, 1e-2, 1e-3, 1e-4])
def test_density_at_every_scale(scale):
    """On the curve, at knots, off it by some of its scale, and beyond its ends: to single precision of x over the scale."""
    near = np.array([[0.5, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.7], [0.65, 1.25]])
    x = np.concatenate(
        [near, near + scale * np.array([0.7, -1.3]), [[-3 * scale, 0.5 * scale]], [[0.5, 0.3]]]
    )
    x = x.astype(np.float32)
    run = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda k, s, x: Polyline(k, s).log_prob(x), (0, 1)), (None, None, 0)
        )
    )
    got, slopes = run(jnp.asarray(KNOTS, jnp.float32), jnp.float32(scale), x)
    want = [by_quadrature(row, scale) for row in np.asarray(x, float)]
    np.testing.assert_allclose(got, want, atol=2e-6 / scale * 3 + 2e-5, rtol=2e-6)
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(slopes))


@pytest.mark.slow(reason="many small programs")
def test_many_knots_leave_no_trace():
    """256 knots on a line: the density along it is flat at scales far below and above the length of a segment."""
    knots = np.stack([np.linspace(0, 1, 256), np.zeros(256)], 1)
    x = jnp.stack([jnp.linspace(0.3, 0.7, 101), jnp.zeros(101)], 1)
    for scale in (1e-4, 1e-2):
        got = Polyline(knots, scale).log_prob(x)
        np.testing.assert_allclose(got, -np.log(scale) - 0.5 * np.log(2 * np.pi), atol=2e-3)


def test_draws_have_the_moments_of_the_law(key):
    x = np.asarray(Polyline(KNOTS, 0.2).sample(key, (20_000,)))
    middle = 0.5 * (KNOTS[1:] + KNOTS[:-1])
    square = middle**2 + (KNOTS[1:] - KNOTS[:-1]) ** 2 / 12
    assert_unbiased(np.concatenate([x, x**2], 1), np.append(middle.mean(0), square.mean(0) + 0.04))


def test_refusal_of_one_point():
    with pytest.raises(ValueError, match="two or more points of one curve"):
        Polyline(jnp.zeros((1, 2)), 0.1)
