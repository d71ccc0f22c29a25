"""Meshes with Explicit axes, the default of `jax.make_mesh`, and meshes that are set: the numbers of none."""

import ast
import contextlib
from pathlib import Path

import _on_mesh
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _fit_fakes import Objective

from lapilli import inference
from lapilli.inference._meshes import untyped

X = np.linspace(0.5, 3.0, 4, dtype=np.float32)
EXPLICIT = jax.make_mesh((1,), ("rows",))
AUTO = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
AROUND = {
    "none": contextlib.nullcontext,
    "explicit": lambda: jax.set_mesh(EXPLICIT),
    "auto": lambda: jax.set_mesh(AUTO),
}


def fitted(args, **options):
    key = jax.random.key(0)  # made where it is called: under a set mesh its type names this
    return inference.fit(
        Objective(), optax.adam(0.1), args, num_steps=3, key=key, progress=False, **options
    )


@pytest.mark.parametrize("around", AROUND)
def test_a_fit_takes_any_mesh_under_any_other(around):
    want = fitted((X,), subsample={"rows": 2})
    with AROUND[around]():
        data = jax.device_put(X, jax.NamedSharding(EXPLICIT, jax.P("rows")))
        found = fitted((data,), subsample={"rows": 2}, mesh=EXPLICIT)
        before = {"explicit": EXPLICIT, "auto": AUTO}.get(around)
        assert before is None or jax.sharding.get_mesh() == before
    np.testing.assert_array_equal(found.history["value"], want.history["value"])
    for leaf in jax.tree.leaves(found.params):
        assert leaf.sharding.mesh == AUTO


@pytest.mark.slow_for("explicit")
@pytest.mark.parametrize("around", AROUND)
def test_particles_take_any_mesh_under_any_other(around):
    run = lambda key, **mesh: inference.smc(_on_mesh.MODEL, key, num_particles=8, **mesh)
    want = jax.jit(run)(jax.random.key(0))
    with AROUND[around]():
        found = run(jax.random.key(0), mesh=EXPLICIT)
    np.testing.assert_array_equal(found.ancestors, want.ancestors)
    assert found.log_evidence.sharding.mesh == AUTO


def test_values_whose_types_name_the_split_are_refused_under_jit():
    run = jax.jit(lambda key: inference.smc(_on_mesh.MODEL, key, num_particles=8, mesh=EXPLICIT))
    with jax.set_mesh(EXPLICIT), pytest.raises(ValueError, match=r"typed \(rows: .*Explicit\)"):
        run(jax.random.key(0))


def test_a_tree_without_typed_arrays_is_the_same_object():
    tree = {"x": jnp.zeros(2), "model": object()}
    assert untyped(tree) is tree


STARTS = "jnp.", "jax.numpy.", "jax.random.", "jax.devices", "jax.device_put"


def computed_at_import(source):
    """Lines on which a module calls JAX for arrays when it is imported."""
    found = []
    for node in ast.parse(source).body:
        inner = [*ast.walk(node)] if isinstance(node, ast.Assign | ast.AnnAssign) else []
        if not any(isinstance(n, ast.Lambda) for n in inner):
            calls = [n for n in inner if isinstance(n, ast.Call)]
            found += [c.lineno for c in calls if ast.unparse(c.func).startswith(STARTS)]
    return found


def test_an_import_starts_no_device():
    """Processes of one run meet before anything is computed, and after the imports of a script."""
    assert computed_at_import("X = jnp.ones(3)\nF = lambda: jnp.ones(3)") == [1]
    root = Path(inference.__file__).parents[1]
    files = [f for p in ("ppl", "inference", "models") for f in (root / p).rglob("*.py")]
    found = {str(f): lines for f in files if (lines := computed_at_import(f.read_text()))}
    assert not found, found
