"""Inputs of an expectation: parameters and arguments, what is known of their values, and what a traced program depends on."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from .._compat import Tracer, is_concrete
from .._types import Args
from ..traces import strong

Array = jax.Array


def as_arrays(params: PyTree) -> PyTree:
    """Parameters as arrays of floating-point type.

    Raises:
        TypeError: a leaf is not a floating-point number or array.
    """

    def leaf(path: tuple[PyTree, ...], x: ArrayLike) -> Array:
        try:
            array = strong(x)
        except TypeError as err:
            raise TypeError(
                f"Parameter '{jax.tree_util.keystr(path)}' is a {type(x).__name__}; parameters are real arrays. "
                "Pass an array or a number, or leave it out of the parameters."
            ) from err
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"Parameter '{jax.tree_util.keystr(path)}' has dtype {array.dtype}; parameters are real "
                "floating-point arrays. Convert it, e.g. by jnp.asarray(x, float)."
            )
        return array

    return jax.tree_util.tree_map_with_path(leaf, params)


def check_arguments(args: Args, known: dict[int, tuple[PyTree, PyTree]]) -> None:
    """Refuse arguments that compiled programs cannot tell apart: neither arrays nor hashable, or changed where they are.

    Args:
        args: of a program.
        known: objects that are told by identity, with the fields that they had; this call's are added.

    Raises:
        TypeError: naming the argument that has no hash.
        ValueError: naming the one whose fields have changed since.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            continue
        name = f"Argument {path[0].idx} of the program, args{jax.tree_util.keystr(path)}, is of type {type(leaf).__name__}, "
        try:
            hash(leaf)
        except TypeError:
            raise TypeError(
                f"{name}which is neither an array nor hashable, so that nobody can tell when a compiled step still serves it. "
                "Bind it beforehand, functools.partial(program, options=...), or pass its fields, or a dict or frozen dataclass "
                "of them."
            ) from None
        if type(leaf).__hash__ is not object.__hash__ or not hasattr(leaf, "__dict__"):
            continue
        _, before = known.setdefault(id(leaf), (leaf, _fields(leaf)))
        now = _fields(leaf)
        if changed := [n for n in {**before, **now} if not _is_same(before.get(n), now.get(n))]:
            raise ValueError(
                f"{name}and its fields {sorted(changed)} have changed since a step was compiled with it, which would go on with "
                "the old ones. Pass another object, or what changes as an array."
            )


def _fields(x: Array) -> dict[str, PyTree]:
    """The fields of an object; containers among them as they are now."""
    kept = lambda v: copy.copy(v) if isinstance(v, dict | list | set) else v
    return {name: kept(value) for name, value in vars(x).items()}


def _is_same(a: object, b: object) -> bool:
    is_plain = isinstance(a, str | int | float | complex | tuple | dict | list | set | None)
    try:
        return a is b or is_plain and bool(a == b)
    except ValueError:  # arrays in a container, which are told one by one
        leaves = jax.tree.leaves(a), jax.tree.leaves(b)
        return len(leaves[0]) == len(leaves[1]) and all(map(lambda x, y: x is y, *leaves))


def behind_tangents(x: object) -> Any:
    """The value of a tracer, where it is known: a number under nothing but `jax.grad`."""
    if not isinstance(x, Tracer) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    value = jax.lax.stop_gradient(x)
    return value if isinstance(value, Tracer) else np.asarray(value, x.dtype)


def as_number(x: Array) -> Any:
    return np.asarray(x, jnp.result_type(x)) if isinstance(x, int | float) else x


def shape_of_input(x: object) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x


def abstract(x: PyTree) -> jax.ShapeDtypeStruct:
    """The shape of an input; floating-point numbers in the precision that is in force."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if dtype in (jnp.float32, jnp.bfloat16, jnp.float16) and jax.config.jax_enable_x64:
        dtype = np.dtype(np.float64)
    return jax.ShapeDtypeStruct(x.shape, dtype)


def as_wide(leaves: list[PyTree]) -> list[PyTree]:
    """Floating-point arrays in float64."""
    return [
        np.asarray(x, np.float64)
        if getattr(x, "dtype", None) in (np.float32, jnp.bfloat16, np.float16)
        else x
        for x in leaves
    ]


def is_array(x: PyTree) -> bool:
    """Whether an argument is an array of numbers, which another call may replace by others."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_)


def concrete(x: PyTree, example: Array | None = None) -> PyTree:
    """`x` itself where its value is known; else the example's first rows; else small random numbers."""
    if is_concrete(x):
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), x.shape) if x.shape else jax.random.key(0)
    if (
        example is not None
        and getattr(example, "ndim", None) == x.ndim
        and all(n <= m for n, m in zip(x.shape, example.shape, strict=True))
    ):
        return np.asarray(example)[tuple(slice(n) for n in x.shape)]
    rng = np.random.default_rng(0)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim < 2:  # legal for most constraints
        return np.asarray(rng.uniform(0.2, 0.8, size=x.shape), x.dtype)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return np.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
    return np.asarray(rng.integers(0, 2, size=x.shape), x.dtype)


def concrete_tree(tree: PyTree, example: PyTree = None) -> PyTree:
    """`concrete` leaf by leaf; `example` is a tree of the same structure, or None."""
    leaves, structure = jax.tree.flatten(tree)
    examples, other = jax.tree.flatten(example)
    if other != structure:
        examples = [None] * len(leaves)
    return jax.tree.unflatten(
        structure,
        [
            concrete(x, e) if hasattr(x, "dtype") else x
            for x, e in zip(leaves, examples, strict=True)
        ],
    )


def fingerprint(leaves: list[PyTree]) -> int:
    """A number that tells other data apart."""
    return hash(tuple((np.shape(x), np.asarray(x).tobytes()) for x in leaves))


def signature_of(tree: PyTree) -> PyTree:
    """Structure, shapes and dtypes of a tree, and what else is in it: what a traced program depends on."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (jnp.shape(x), str(x.dtype)) if hasattr(x, "dtype") else (type(x), x) for x in leaves
    )
