"""States of other shapes and types than the model's: right where they say the same, else refused before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference import FeynmanKac, particles

KEY = jax.random.key(0)
YS = jnp.array([0.5, -1.0, 0.25])


def walk(ys):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, 1.0))
        return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    ppl.scan(step, 0.0, ys)


def plane(x):
    z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(z.sum(), 1.0), obs=x)


def chain(init, kernel):
    return FeynmanKac(lambda key: init, kernel, lambda x, y, t: jnp.zeros(()), 3)


@pytest.mark.parametrize("is_jit", [False, True])
def test_a_scan_without_steps_has_the_evidence_of_nothing(is_jit):
    run = lambda key: inference.smc(walk, key, jnp.zeros(0), num_particles=10)
    found = (jax.jit(run) if is_jit else run)(KEY)
    assert found.log_evidence == 0 and found.failed_at == -1
    assert found.particles["x"].shape == (10, 0) and jnp.isfinite(found.mean(lambda x: x["a"]))


KERNELS = {
    "shape": (jnp.zeros(2), lambda key, x, t: jnp.zeros(3), r"init are float32\[2\], .* float32\[3\]"),
    "broadcast": (jnp.zeros(()), lambda key, x, t: x + jnp.zeros(1), r"init are float32\[\], .* float32\[1\]"),
    "structure": (jnp.zeros(2), lambda key, x, t: (x,), r"init are float32\[2\], .*\('float32\[2\]',\)"),
    "type": (jnp.zeros((), int), lambda key, x, t: x + 0.5, r"init are int32\[\], .* float32\[\]. Let both"),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_hands_on_what_it_is_given(name):
    init, kernel, message = KERNELS[name]
    with pytest.raises(ValueError, match=f"FeynmanKac: the states of {message}"):
        inference.smc(chain(init, kernel), KEY, num_particles=5)


def test_a_number_of_pythons_is_a_state():
    found = inference.smc(chain(0, lambda key, x, t: x + 0.5), KEY, num_particles=5)
    np.testing.assert_allclose(found.particles, 1.5)


STARTS = {
    "shape": ({"z": jnp.zeros((20, 3))}, r"start of site 'z' has shape \(20, 3\), .* must be \(2,\)"),
    "length 1": ({"z": jnp.zeros((20, 1))}, r"start of site 'z' has shape \(20, 1\), .* must be \(2,\)"),
    "one draw": ({"z": jnp.zeros(2)}, r"start of site 'z' has shape \(2,\)"),
    "alike": ({"z": jnp.ones((20, 2)).at[:, 0].set(jnp.arange(20.0))}, r"\['z'\] are all alike in a coordinate"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_a_start_has_draws_of_its_sites(name):
    """Draws of length 1 were those of another law; of draws that are alike the evidence was -39 nats for -1.6, and warned of."""
    start, message = STARTS[name]
    with pytest.raises(
        ValueError, match=f"tempered_smc: start.*{message}" if name == "alike" else message
    ):
        inference.tempered_smc(plane, KEY, 1.0, num_particles=10, start=start)


def test_whole_numbers_are_a_start():
    whole = jax.random.randint(jax.random.key(1), (200, 2), -2, 3)
    run = lambda start: inference.tempered_smc(
        plane, KEY, 1.0, num_particles=200, start={"z": start}
    )
    one, other = run(whole), run(whole.astype(float))
    assert one.log_evidence == other.log_evidence


NOISY = FeynmanKac(
    jax.random.normal, lambda key, x, t: x + jax.random.normal(key), lambda x, y, t: -0.5 * y**2, 3
)
INITS = {
    "all": (walk, {"a": 1, "x": jnp.arange(3)}, ("a",)),
    "FeynmanKac": (NOISY, jnp.arange(4), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param("all", marks=pytest.mark.slow), "FeynmanKac"])
def test_whole_numbers_are_a_path(name):
    model, init, parameters = INITS[name]
    args = () if name == "FeynmanKac" else (YS,)
    run = lambda init: particles.particle_gibbs(
        model, KEY, *args, init=init, parameters=parameters, num_samples=3, num_particles=4
    )
    one, other = run(init), run(jax.tree.map(lambda x: jnp.asarray(x, float), init))
    for x, y in zip(jax.tree.leaves(one.choices), jax.tree.leaves(other.choices), strict=True):
        np.testing.assert_array_equal(x, y)
