"""Meshes as users bring them, and as runs over them take them.

A run over a mesh is the program of one device, which JAX's compiler splits: axes of type Auto ask for this. `jax.make_mesh` makes
Explicit ones, which put the split into the types of all values, where a program has to say at each gather what becomes of it.
Programs here do not, so that inside of a run given `mesh=` all axes are Auto: the devices, the names and the split are the
caller's, and so are the numbers; arrays that come out lie on the same devices, along axes of type Auto.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import PyTree

from ..ppl._compat import is_concrete


def with_auto_axes(mesh: Mesh) -> Mesh:
    """The mesh with all of its axes of type Auto."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def untyped(tree: PyTree) -> PyTree:
    """The tree with arrays whose types name a mesh on that mesh with Auto axes; nothing moves."""

    def convert(leaf: PyTree) -> PyTree:
        if not _is_typed(leaf):
            return leaf
        place = leaf.sharding
        return jax.device_put(leaf, NamedSharding(with_auto_axes(place.mesh), place.spec))

    # A tree that needs nothing stays the object that it is.
    return jax.tree.map(convert, tree) if any(map(_is_typed, jax.tree.leaves(tree))) else tree


def _is_typed(leaf: PyTree) -> bool:
    mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
    return is_concrete(leaf) and isinstance(mesh, Mesh) and not set(mesh.axis_types) <= _AUTO


_AUTO = {AxisType.Auto}


def over_auto_axes[**P, R](fn: Callable[P, R]) -> Callable[P, R]:
    """The function, which given `mesh=` runs with Auto axes whatever the mesh's own are, and whichever `jax.set_mesh` has set."""

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        mesh = kwargs.get("mesh")
        if not isinstance(mesh, Mesh):
            return fn(*args, **kwargs)
        with _no_mesh_around(fn.__name__):
            positional, named = untyped((args, {k: v for k, v in kwargs.items() if k != "mesh"}))
            return fn(*positional, **{**named, "mesh": with_auto_axes(mesh)})

    return run


def _no_mesh_around(name: str) -> contextlib.AbstractContextManager[object]:
    """Inside, no mesh is set. Under a transformation of JAX none can be put away, and one with typed axes is refused."""
    around = jax.sharding.get_abstract_mesh()
    if around.empty:
        return contextlib.nullcontext()
    with contextlib.suppress(ValueError):  # which a transformation makes it
        return jax.set_mesh(None)
    if not set(around.axis_types) <= _AUTO:
        kinds = ", ".join(
            f"{n}: {t}" for n, t in zip(around.axis_names, around.axis_types, strict=True)
        )
        raise ValueError(
            f"{name}: mesh= is given under jit, grad or shard_map with a mesh set whose axes are typed ({kinds}), and its values "
            f"have the split in their types. Call {name} outside of these, or set the mesh with "
            "axis_types=(jax.sharding.AxisType.Auto, ...)."
        )
    return contextlib.nullcontext()
