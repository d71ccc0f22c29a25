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
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

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
    """The function, which given `mesh=` runs with Auto axes whatever the mesh's own are, and whichever `jax.set_mesh` has set.

    Raises:
        TypeError: `mesh` is no mesh.
    """

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        mesh, name = kwargs.get("mesh"), fn.__name__
        if mesh is None:
            return fn(*args, **kwargs)
        if not isinstance(mesh, Mesh):
            raise TypeError(
                f"{name}: 'mesh' must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('particles',)); got "
                f"{type(mesh).__name__}."
            )
        with _no_mesh_around(name):
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


def over_devices(
    fn: Callable[..., PyTree],
    mesh: Mesh | None,
    in_axes: tuple[int | None, ...],
    out_axes: int | tuple[int, ...],
) -> Callable[..., PyTree]:
    """`fn`, of whose arguments each device takes its own part, without a word to the others; without a mesh, `fn` itself.

    `in_axes` says for each argument which axis of its leaves is split, as for `jax.vmap`; None for what all devices have.
    `out_axes` says it of results.
    """
    if mesh is None:
        return fn
    taken = tuple(_along(mesh, axis) for axis in in_axes)
    is_one = isinstance(out_axes, int)
    made = _along(mesh, out_axes) if is_one else tuple(_along(mesh, axis) for axis in out_axes)
    return jax.shard_map(fn, mesh=mesh, in_specs=taken, out_specs=made, check_vma=False)


def on_mesh(tree: PyTree, mesh: Mesh | None, axis: int | None = None) -> PyTree:
    """The tree's arrays on the devices of the mesh: split along an axis, or held by all of them whole."""
    if mesh is None:
        return tree
    there = NamedSharding(mesh, _along(mesh, axis))
    return jax.tree.map(lambda x: placed(x, there), tree)


def _along(mesh: Mesh, axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, mesh.axis_names)


def placed(array: PyTree, sharding: NamedSharding) -> jax.Array:
    """The array there.

    Over several processes each hands over what its own devices hold, and none waits for another: a thread may do so.
    """
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    is_here = getattr(array, "is_fully_addressable", True)
    if sharding.is_fully_addressable or not is_here:
        return jax.device_put(array, sharding)
    if is_key:
        data = placed(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def at_hand(array: Array) -> PyTree:
    """The array, of which a process that holds only a part gets the rest from the others: all of them have to ask."""
    if getattr(array, "is_fully_addressable", True):
        return jnp.asarray(array)
    return jnp.asarray(multihost_utils.process_allgather(array, tiled=True))
