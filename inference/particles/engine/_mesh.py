"""Particles over several devices: which values are split, and which are held by all.

Specification. A run over a mesh is the program of one device with sharding constraints, partitioned by JAX: values with a
particle axis are split along it, weights are held by every device. Constraints do not change what a program means, so no part
of the method (resampling above all) is approximated.

Invariant: everything that decides about ancestors (normalised weights, their sums, the scheme's draws) is computed from all
weights by every device in the order of one device. Hence equal weights give equal ancestors, bit for bit; split sums would
round in another order.

Cost: a step gathers one number per particle. Resampling moves states: blocks of K / D particles go from device to device around
a ring, forwards and backwards, as far as the farthest ancestor is from its offspring and no farther (`_ring`). No device
holds more than its own block, the one that visits and its offspring. Schemes that keep ancestors in order need a neighbour or two
where weights are even; at worst, with all others, each block visits every device, as much as gathering them would send.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ....ppl._compat import Tracer
from ..._arguments import Arguments
from ..population import is_key
from ..resampling import take

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

    def take(self, tree: PyTree, index: Array) -> PyTree:
        """The particles `index`, of all, for the places of this run; keys stay where they are."""
        if self.mesh is None or not self.axes:
            return take(tree, index)
        leaves, treedef = jax.tree.flatten(tree)
        moving = _moved(self, [x for x in leaves if not is_key(x)], index)
        rest = iter(moving)
        return jax.tree.unflatten(treedef, [x if is_key(x) else next(rest) for x in leaves])

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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moved(place: Placement, leaves: list[Array], index: Array) -> list[Array]:
    mesh, axes = place.mesh, place.axes
    assert mesh is not None
    num, size = math.prod(mesh.shape[axis] for axis in axes), len(index)
    block = size // num
    # How many devices on an ancestor is from its offspring, by the shorter way: in (-D/2, D/2].
    own, half = jnp.arange(size, dtype=index.dtype) // block, (num - 1) // 2
    way = (own - index // block + half) % num - half
    reach = jnp.maximum(jnp.max(way), 0), jnp.maximum(-jnp.min(way), 0)
    split, whole = PartitionSpec(axes), PartitionSpec()
    others = tuple(axis for axis in mesh.axis_names if axis not in axes)
    run = functools.partial(_ring, axes, others, num)
    specs = [split] * len(leaves)
    return jax.shard_map(
        run, mesh=mesh, in_specs=(specs, split, (whole, whole)), out_specs=specs, check_vma=False
    )(leaves, index, reach)


@_moved.defjvp
def _moved_jvp(place: Placement, primals: PyTree, tangents: PyTree) -> tuple[PyTree, PyTree]:
    leaves, index = primals
    # A gather, which can be transposed as loops of an unknown length cannot.
    pick = lambda t: np.zeros((len(index), *t.shape[1:]), t.dtype) if t.dtype == jax.dtypes.float0 else t[index]  # fmt: skip
    return _moved(place, leaves, index), [pick(t) for t in tangents[0]]


def _ring(
    axes: tuple[str, ...],
    others: tuple[str, ...],
    num: int,
    blocks: list[Array],
    index: Array,
    reach: tuple[Array, Array],
) -> list[Array]:
    """On one of `num` devices: its offspring, by the numbers `index` of their ancestors, from blocks that visit."""
    if others:
        # Runs side by side along these axes (islands) take as many turns: all devices of a mesh meet at each.
        reach = jax.lax.pmax(reach, others)
    own, size = jax.lax.axis_index(axes), len(blocks[0])
    owner, place = index // size, index % size

    def with_those(found: list[Array], visiting: list[Array], source: Array) -> list[Array]:
        is_here = owner == source
        pick = lambda old, x: jnp.where(is_here.reshape(-1, *[1] * (x.ndim - 1)), x[place], old)
        return [pick(old, x) for old, x in zip(found, visiting, strict=True)]

    found = with_those(blocks, blocks, own)
    for direction, distance in zip((1, -1), reach, strict=True):
        pairs = [(device, (device + direction) % num) for device in range(num)]

        def visit(
            loop: tuple[Array, list[Array], list[Array]], pairs: PyTree = pairs, direction: int = direction
        ) -> tuple[Array, list[Array], list[Array]]:  # fmt: skip
            count, visiting, found = loop
            visiting = [jax.lax.ppermute(x, axes, pairs) for x in visiting]
            source = (own - direction * (count + 1)) % num
            return count + 1, visiting, with_those(found, visiting, source)

        start = jnp.zeros((), distance.dtype), blocks, found
        _, _, found = jax.lax.while_loop(lambda loop, d=distance: loop[0] < d, visit, start)
    return found


def follow(
    stacked: PyTree,
    index: jax.Array,
    place: Placement,
    everywhere: Callable[..., PyTree] | None = None,
) -> Array | dict[str, dict[int, Array]]:
    """Paths [particles, steps, ...] from values [steps, particles, ...] and the places to pick, `lineages` [steps, particles].

    `everywhere` makes the values among which a step picks from this run's, [particles, ...] -> [all particles, ...], where these
    are not the same.
    """

    def pick(values: Array, index: Array) -> Array:
        if everywhere is None:
            return place.split(place.take(values, index))
        return place.split(everywhere(values)[index])

    if place.mesh is not None:
        # One step at a time, since blocks of particles, or all, visit each device.
        in_turn = lambda x: jax.lax.map(lambda both: pick(*both), (x, index))
    else:
        in_turn = lambda x: jax.vmap(pick)(x, index)
    return jax.tree.map(lambda x: place.split(jnp.moveaxis(in_turn(x), 0, 1)), stacked)


def as_placement(
    name: str, what: str, size: int, mesh: Mesh | None, mesh_axes: Axes, key: jax.Array
) -> Placement:
    """The placement that splits `size` values called `what` over `mesh_axes`, all axes of the mesh where that is None.

    Raises:
        ValueError: the mesh lacks an axis; the devices do not divide `size`; the key's generator draws other numbers on
            other meshes.
    """
    if mesh is None:
        if mesh_axes is not None:
            raise ValueError(
                f"{name}: mesh_axes={mesh_axes!r} names axes of a mesh, and there is none. Give mesh=, or leave out mesh_axes."
            )
        return ONE_DEVICE
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
    return Placement(mesh, axes)


def check_even(name: str, what: str, size: int, mesh: Mesh, axes: tuple[str, ...]) -> None:
    """Refuse a size that the devices of the mesh axes do not divide."""
    num_devices = math.prod(mesh.shape[axis] for axis in axes)
    if size % num_devices:
        lower = size - size % num_devices
        raise ValueError(
            f"{name}: {size} {what} cannot be split evenly over the {num_devices} devices of mesh axes {axes}. Use "
            f"{lower + num_devices}{f' or {lower}' if lower else ''} {what}, or other mesh_axes."
        )
