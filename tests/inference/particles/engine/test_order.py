"""Resampling in the order of the particles' places: the curve itself, unbiased evidence, less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import GOLDEN as Y, GOLDEN_EVIDENCE as KALMAN, golden_chain, two_scans

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles.resampling import Look
from lapilli.inference.particles.resampling._hilbert import hilbert_index, nearby_order
from lapilli.inference.particles.resampling._registry import RESAMPLERS
from lapilli.inference.particles.resampling._resample import drawn_by


def walk(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.9 * x[0], x[1]))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return (x, 1.0), None

    ppl.scan(step, (0.0, 1.0), ys)


TARGETS = {
    "program": (walk, (Y,), lambda x, t, ys: x[0]),
    "chain": (golden_chain(), (), lambda x, t: x),
}


def evidences(name, key, n, is_ordered=True, **options):
    target, args, order = TARGETS[name]
    options = {
        "history": "none",
        "policy": inference.particles.resampling.every(),
        "num_particles": 64,
    } | options
    options["order"] = order if is_ordered else None
    run = lambda key: inference.smc(target, key, *args, **options).log_evidence
    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, n)))


@pytest.mark.fast("2-1", "4-2")
@pytest.mark.parametrize(("dimension", "num_bits"), [(2, 1), (2, 4), (3, 2), (4, 2)])
def test_the_curve_visits_each_cell_once_and_steps_to_neighbours(dimension, num_bits):
    axes = [np.arange(2**num_bits)] * dimension
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dimension)
    index = np.asarray(hilbert_index(jnp.asarray(cells, jnp.uint32), num_bits))
    np.testing.assert_array_equal(np.sort(index), np.arange(len(cells)))
    steps = np.abs(np.diff(cells[np.argsort(index)], axis=0)).sum(1)
    assert (steps == 1).all()


@pytest.mark.slow
def test_places_are_sorted_whatever_they_are():
    places = jnp.array([[3.0], [jnp.nan], [-1.0], [2.0]])
    np.testing.assert_array_equal(nearby_order(places), [2, 3, 0, 1])
    same = jnp.zeros((4, 2))
    np.testing.assert_array_equal(jnp.sort(nearby_order(same)), jnp.arange(4))
    cloud = jax.random.normal(jax.random.key(0), (2_000, 2))
    # By one coordinate alone the share is about a half.
    gaps = jnp.abs(jnp.diff(cloud[nearby_order(cloud)], axis=0)).sum(1).mean()
    assert gaps < 0.1 * jnp.abs(jnp.diff(cloud, axis=0)).sum(1).mean()


@pytest.mark.parametrize("odd", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_place_without_bound_leaves_the_others_in_order(odd, key):
    """One of 300 at infinity: neighbours stay neighbours."""
    cloud = jax.random.normal(key, (300, 2))
    order = nearby_order(cloud.at[7, 1].set(odd))
    order = order[order != 7]
    gaps = jnp.abs(jnp.diff(cloud[order], axis=0)).sum(1).mean()
    assert gaps < 0.3 * jnp.abs(jnp.diff(cloud, axis=0)).sum(1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("scheme", ["stratified", "systematic", "killing"])
def test_evidence_is_unbiased(name, scheme, key):
    """Sd of Z-hat / Z about 0.2: 4,000 runs find a bias of 2.5%."""
    log_z = evidences(name, key, 4_000, resampling=scheme)
    assert_unbiased(np.exp(log_z - KALMAN), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "share"), [("stratified", 0.02), ("ssp", 0.02), ("systematic", 0.2)]
)
def test_sorted_particles_resample_with_less_error(scheme, share, key):
    """Variance of the offspring's mean place given 256 weighted particles, over 2,000 draws.

    It is of order K^-1 in no order and K^-3 in order; K^-2 with the one shift of systematic resampling.
    """
    place_key, draw_key = jax.random.split(key)
    places = jax.random.normal(place_key, (256, 1))
    choose, log_weights = RESAMPLERS[scheme].ancestors, -((places[:, 0] - 0.5) ** 2)
    keys = jax.random.split(draw_key, 2_000)

    def variance(choose):
        mean = lambda key: places[drawn_by(choose, key, log_weights).ancestors, 0].mean()
        return float(jax.jit(jax.vmap(mean))(keys).var())

    look = Look(None, lambda *_: None)
    sorted_ = look.sorting(choose, jnp.pad(places, ((0, 0), (1, 0))))
    assert variance(sorted_) < share * variance(choose)


def run(key, target=walk, order=lambda x, t, *_: x[0], **options):
    return inference.smc(target, key, Y, num_particles=4, order=order, **options)


ERRORS = {
    "retained": (lambda k: run(k, retained={"x": Y}), "retained path .* Leave out order="),
    "gradient": (lambda k: run(k, gradient="stop_gradient"), "in no order. Leave out order="),
    "scans": (lambda k: run(k, two_scans, order=lambda x, *_: x), "2 top-level scans"),
    "matrix": (lambda k: run(k, order=lambda *_: jnp.zeros((2, 2))), "a number or a vector .* shape .2, 2."),
    "many": (lambda k: run(k, order=lambda *_: jnp.zeros(16)), "order returns 16 coordinates"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call(key)
