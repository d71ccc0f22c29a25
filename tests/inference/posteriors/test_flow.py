"""The flow of `infer(methods=[..., "flow"])`: its volume is that of its map, and it follows what no Normal does."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.posteriors.chains._sampler import Frame
from lapilli.inference.posteriors.weighted._flow import _flow, _initial, _placed

KEY = jax.random.key(0)


@pytest.mark.parametrize("dimension", [1, 5])
def test_the_volume_of_a_flow_is_that_of_its_map(dimension):
    """Log |du / dt| beside the determinant of the Jacobian, at random parameters; the identity where nothing was trained."""
    rng = np.random.default_rng(dimension)
    halves = [rng.permutation(dimension) < (dimension + k) // 2 for k in range(4)]
    begun = _initial(KEY, halves, dimension)
    t = jnp.array(rng.normal(size=dimension))
    v, log_volume = jax.jit(lambda t: _flow(begun, halves, t))(t)
    np.testing.assert_allclose(v, t, atol=1e-6)
    np.testing.assert_allclose(log_volume, 0.0, atol=1e-6)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), begun)
    root = np.tril(rng.normal(size=(dimension, dimension)))
    for factor in (root, np.abs(np.diag(root))):
        frame = Frame(rng.normal(size=dimension), factor)

        def place(t, frame=frame):
            v, log_volume = _flow(params, halves, t)
            u, log_scale = _placed(frame, v)
            return u, log_volume + log_scale

        jacobian, own = jax.jit(jax.jacfwd(place, has_aux=True))(t)
        np.testing.assert_allclose(
            own, np.linalg.slogdet(np.asarray(jacobian, float))[1], rtol=1e-4
        )


@pytest.mark.slow
def test_a_funnel_is_certified_by_a_flow_and_not_by_the_fit():
    def funnel(y):
        v = ppl.sample("v", dist.Normal(0.0, 1.0))
        x = ppl.sample("x", dist.Normal(0.0, jnp.exp(v)).expand([2]).to_event(1))
        ppl.sample("y", dist.Normal(0.0 * x[0], 1.0), obs=y)

    draws = inference.infer(funnel, args=(0.3,), methods=("flow",), progress=False)
    certificate = draws.certificate
    assert [a.method for a in certificate.attempts] == ["fit", "flow"]
    assert certificate.is_certified and certificate.method == "flow"
    v = draws.choices["v"]
    errors = 4.5 / certificate.seen["ess"] ** 0.5
    assert abs(v.mean()) < errors and abs(v.std() - 1) < errors
