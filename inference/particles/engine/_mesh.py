"""Particles over several devices: which values are split, and which are held by all.

Specification. A run over a mesh is the program of one device with sharding constraints, partitioned by JAX: values with a
particle axis are split along it, weights are held by every device. Constraints do not change what a program means, so no part
of the method (resampling above all) is approximated.

Invariant: everything that decides about ancestors (normalised weights, their sums, the scheme's draws) is computed from all
weights by every device in the order of one device. Hence equal weights give equal ancestors, bit for bit; split sums would
round in another order.

Cost: a step gathers one number per particle; resampling gathers the state, one array of it at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ....ppl._compat import Tracer
from ..._arguments import Arguments
from ..population import is_key

Axes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where values with a leading particle axis live; without a mesh the methods return what they get.

    Args:
        mesh: the devices, axes of type Auto.
        axes: mesh axes over which the leading axis is split, all together; none for copies everywhere.
    """

    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()

    def split(self, tree: PyTree) -> PyTree:
        """Leading axes split; keys are left to the partitioner."""
        return self._constrain(tree, PartitionSpec(self.axes))

    def copy(self, tree: PyTree) -> PyTree:
        """The tree with a copy on every device."""
        return self._constrain(tree, PartitionSpec())

    def _constrain(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        put = lambda x: x if is_key(x) else jax.lax.with_sharding_constraint(x, sharding)
        return jax.tree.map(put, tree)

    def compiled(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`fn(*args)` compiled as one program for the mesh; leaves of `args` that are no arrays stay Python's."""
        if self.mesh is None:
            return fn
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def put(x: Array) -> PyTree:
            if isinstance(x, Tracer):
                return x
            if isinstance(x, jax.Array) and x.sharding.device_set == everywhere.device_set:
                return x
            if is_key(x):
                data, generator = put(jax.random.key_data(x)), jax.random.key_impl(x)
                return jax.random.wrap_key_data(data, impl=generator)
            # From the host: JAX then makes sure that all processes have the same value.
            return jax.device_put(np.asarray(x), everywhere)

        def run(*args: PyTree) -> PyTree:
            parts = Arguments(args)
            return jax.jit(lambda arrays: fn(*parts.join(arrays)))(
                [put(x) for x in parts.arrays(args)]
            )

        return run


ONE_DEVICE = Placement()


def follow(
    stacked: PyTree,
    index: jax.Array,
    place: Placement,
    everywhere: Callable[..., PyTree] = lambda x: x,
) -> Array | dict[str, dict[int, Array]]:
    """Paths [particles, steps, ...] from values [steps, particles, ...] and the places to pick, `lineages` [steps, particles].

    `everywhere` makes the values among which a step picks from this run's, [particles, ...] -> [all particles, ...].
    """

    def pick(values: Array, index: Array) -> Array:
        return place.split(everywhere(values)[index])

    if place.mesh is not None:
        # One step at a time, since each device gathers all particles of what it picks from.
        in_turn = lambda x: jax.lax.map(lambda both: pick(*both), (x, index))
    else:
        in_turn = lambda x: jax.vmap(pick)(x, index)
    return jax.tree.map(lambda x: place.split(jnp.moveaxis(in_turn(x), 0, 1)), stacked)


def as_placement(
    name: str, what: str, size: int, mesh: PyTree, mesh_axes: Axes, key: jax.Array
) -> Placement:
    """The placement that splits `size` values called `what` over `mesh_axes`, all axes of the mesh where that is None.

    Raises:
        TypeError: `mesh` is no mesh.
        ValueError: the mesh lacks an axis; the devices do not divide `size`; the key's generator draws other numbers on
            other meshes.
    """
    if mesh is None:
        if mesh_axes is not None:
            raise ValueError(
                f"{name}: mesh_axes={mesh_axes!r} names axes of a mesh, and there is none. Give mesh=, or leave out mesh_axes."
            )
        return ONE_DEVICE
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{name}: 'mesh' must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('particles',)); got "
            f"{type(mesh).__name__}."
        )
    axes = mesh.axis_names if mesh_axes is None else mesh_axes
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    missing = [axis for axis in axes if axis not in mesh.axis_names]
    if missing or len(set(axes)) < len(axes) or not axes:
        raise ValueError(
            f"{name}: mesh_axes={mesh_axes!r} must name different axes of the mesh, which has {tuple(mesh.axis_names)}. "
            "Name one or several of these, or leave out mesh_axes to use all of them."
        )
    check_even(name, what, size, mesh, axes)
    generator = str(jax.random.key_impl(key))
    if generator != "threefry2x32":
        # The bits of hardware generators depend on how they are split.
        raise ValueError(
            f"{name}: the key's generator '{generator}' draws other numbers on a mesh than on one device. Use "
            "jax.random.key(seed, impl='threefry2x32')."
        )
    # Explicitly typed axes would put the sharding into the types of the user's program.
    auto = (AxisType.Auto,) * np.ndim(mesh.devices)
    return Placement(Mesh(mesh.devices, mesh.axis_names, axis_types=auto), axes)


def check_even(name: str, what: str, size: int, mesh: Mesh, axes: tuple[str, ...]) -> None:
    """Refuse a size that the devices of the mesh axes do not divide."""
    num_devices = math.prod(mesh.shape[axis] for axis in axes)
    if size % num_devices:
        lower = size - size % num_devices
        raise ValueError(
            f"{name}: {size} {what} cannot be split evenly over the {num_devices} devices of mesh axes {axes}. Use "
            f"{lower + num_devices}{f' or {lower}' if lower else ''} {what}, or other mesh_axes."
        )
