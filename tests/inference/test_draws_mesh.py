"""Draws, predictions and chains over devices: the numbers of one device, no word between devices."""

import _draws_on_mesh
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _on_mesh import finished, python

from lapilli import inference
from lapilli.inference import _mapped, _meshes, _processes
from lapilli.inference._mapped import map_keys
from lapilli.inference.posteriors import _infer

MESH = jax.make_mesh((1,), ("devices",))  # Explicit axes
KEY = jax.random.key(0)
DRAWS = {"beta": np.zeros((4, 3), np.float32), "scale": np.ones(4, np.float32)}


def draw(key, each, x):
    return {"z": jax.random.normal(key, (2,)) + each + x}


@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.parametrize("kind", ["typed", "raw"])
def test_mapped_keys_are_those_of_one_device(number, kind):
    key = KEY if kind == "typed" else jax.random.PRNGKey(0)
    each = np.arange(number, dtype=np.float32)
    want = jax.vmap(draw, (0, 0, None))(jax.random.split(KEY, number), each, 1.0)["z"]
    for mesh in (None, _meshes.with_auto_axes(MESH)):
        found = map_keys(draw, key, number, 7, (jnp.ones(()),), each, mesh)
        np.testing.assert_allclose(found["z"], want, rtol=1e-6)


def predicted(**options):
    return inference.predict(
        _draws_on_mesh.model, DRAWS, KEY, _draws_on_mesh.X, num_samples=4, **options
    )


def test_a_set_mesh_changes_nothing():
    want = predicted()
    with jax.set_mesh(MESH):
        found = predicted(mesh=MESH)
    np.testing.assert_array_equal(found["y"], want["y"])


def test_what_is_no_mesh_is_refused():
    with pytest.raises(TypeError, match="predict: 'mesh' must be a jax.sharding.Mesh.*got int"):
        predicted(mesh=8)


def test_chains_on_devices_of_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(_infer, "spans_processes", lambda name, mesh: True)
    with pytest.raises(NotImplementedError, match="devices of several processes, and chains are"):
        inference.infer(_draws_on_mesh.model, (_draws_on_mesh.X, _draws_on_mesh.Y), mesh=MESH)


def test_other_keys_in_another_process_are_refused(monkeypatch):
    monkeypatch.setattr(_mapped, "spans_processes", lambda name, mesh: True)
    other = lambda x: np.stack([np.asarray(x), np.asarray(x) + 1])
    monkeypatch.setattr(_processes.multihost_utils, "process_allgather", other)
    with pytest.raises(ValueError, match="the processes were given different keys or draws"):
        map_keys(draw, KEY, 4, 4, (1.0,), np.zeros(4), _meshes.with_auto_axes(MESH))


@pytest.mark.slow  # some twenty programs are compiled for eight devices
def test_eight_devices_draw_what_one_draws():
    (out,) = finished(python(_draws_on_mesh.__file__))
    told = dict(line.split(": ", 1) for line in out.splitlines())
    assert told.pop("chains") == "the same"
    assert len(told) == 7, told
