"""Particles over several devices: the numbers of one device, and refusals."""

import _on_mesh
import jax
import numpy as np
import pytest
from _on_mesh import finished, free_port, python

from lapilli import inference


def start(*args, devices=8):
    return python(_on_mesh.__file__, *args, devices=devices)


@pytest.mark.slow  # seconds of compilation
def test_eight_devices_give_the_numbers_of_one():
    """One process for all: it has to start anew with eight forced devices. Some 20 s, nearly all of them compilation."""
    (out,) = finished(start("quick"))
    for name in ("same feynman-kac", "same program", "same islands", "memory"):
        assert name in out


@pytest.mark.slow  # twenty programs are compiled for eight devices
def test_eight_devices_give_the_numbers_of_one_for_all_options():
    (out,) = finished(start("thorough"))
    assert out.count("same") == 19


@pytest.mark.slow  # two processes compile for four devices each
def test_two_processes_give_the_numbers_of_one_device():
    port = free_port()
    for out in finished(*(start("processes", port, r, devices=4) for r in range(2))):
        assert "same program" in out and "same islands" in out and "same butterfly" in out


def mesh():
    """Two devices, as far as refusals go."""
    device = jax.devices()[0]
    return jax.sharding.Mesh(np.array([[device, device]]), ("rows", "particles"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particles": 5}, ValueError, "5 particles cannot be split evenly over the 2 devices"),
        ({"mesh_axes": "columns"}, ValueError, "must name different axes of the mesh"),
        ({"mesh_axes": ("rows", "rows")}, ValueError, "must name different axes of the mesh"),
        ({"mesh_axes": ()}, ValueError, "must name different axes of the mesh"),
        ({"mesh": 8}, TypeError, "'mesh' must be a jax.sharding.Mesh.*got int"),
        ({"mesh": None, "mesh_axes": "rows"}, ValueError, "names axes of a mesh, and there is none"),
        ({"batch_size": 2}, ValueError, "batch_size=2 runs particles one batch after the other"),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "generator 'rbg' draws other numbers"),
    ],
    ids=["size", "axis", "twice", "no axis", "type", "no mesh", "batches", "generator"],
)  # fmt: skip
def test_refusals(options, error, message):
    given = {"num_particles": 8, "mesh": mesh(), "key": jax.random.key(0)} | options
    with pytest.raises(error, match=message):
        inference.smc(_on_mesh.MODEL, **given)


def test_islands_and_their_particles_must_both_divide():
    run = lambda m, k: inference.particles.islands(
        _on_mesh.MODEL, jax.random.key(0), num_islands=m, num_particles=k, mesh=mesh(), mesh_axes="rows"
    )  # fmt: skip
    with pytest.raises(ValueError, match="islands: 7 particles cannot be split evenly"):
        run(3, 7)
    with pytest.raises(ValueError, match="islands: 3 islands cannot be split evenly"):
        inference.particles.islands(
            _on_mesh.MODEL, jax.random.key(0), num_islands=3, num_particles=8, mesh=mesh()
        )
