"""Split the arguments of a program into arrays, which are traced, and the rest, which stays Python.

`plate("rows", n)` needs a Python number, and a callable cannot be traced: only leaves that are arrays become inputs of the
compiled training loop. The split is taken once from an example; later tuples of arguments must have the same structure and
the same static leaves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..ppl.language import Keywords, Program, parted
from ..ppl.traces import Trace, stand_ins


def is_array(leaf: PyTree) -> bool:
    """Whether a leaf is numeric data (NumPy, JAX, or anything that converts by `__array__`)."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return True
    if not hasattr(leaf, "__array__"):
        return False
    return np.asarray(leaf).dtype.kind not in "OUS"


def is_mapped(array: object) -> bool:
    """Whether an array is a view of a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


class Arguments:
    """The split of one tuple of arguments.

    Args:
        args: an example, with arrays or anything else as leaves.
    """

    def __init__(self, args: tuple):
        leaves, self.treedef = jax.tree.flatten(args)
        self.is_array = [is_array(leaf) for leaf in leaves]
        self.static = [
            None if array else leaf for leaf, array in zip(leaves, self.is_array, strict=True)
        ]

    def arrays(self, args: tuple) -> list[PyTree]:
        """The array leaves of `args`.

        Raises:
            ValueError: if `args` has another structure or other static leaves than the example.
        """
        leaves, treedef = jax.tree.flatten(args)
        if treedef != self.treedef:
            raise ValueError(
                f"Arguments have the structure {treedef}, but {self.treedef} came before. Pass arguments of one structure."
            )
        static = [
            None if array else leaf for leaf, array in zip(leaves, self.is_array, strict=True)
        ]
        if static != self.static:
            raise ValueError(
                f"Non-array arguments are {static}, but {self.static} came before. Keep them as they are, "
                "or pass what changes as an array."
            )
        return [
            leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
            for leaf, array in zip(leaves, self.is_array, strict=True)
            if array
        ]

    def join(self, arrays: Sequence[PyTree]) -> tuple:
        """The tuple of arguments with `arrays` as its array leaves; the inverse of `arrays`."""
        rest = iter(arrays)
        leaves = [
            next(rest) if array else leaf
            for leaf, array in zip(self.static, self.is_array, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def made_by(what: str, given: PyTree) -> tuple:
    """What a user's function returned as the arguments of a program: a tuple or list of them, or a mapping from their names.

    Raises:
        TypeError: something else, e.g. an array, whose rows would be taken for the arguments; `what` says whose result it is.
    """
    if isinstance(given, Mapping):
        return (Keywords(given),)
    if isinstance(given, tuple | list):
        return tuple(given)
    kind = f"an array of shape {np.shape(given)}" if is_array(given) else type(given).__name__
    raise TypeError(
        f"{what} returned {kind}, and a program is called with a tuple of arguments, or with a dict from their names. Return "
        "(x,) for a single one."
    )


def in_jax(args: tuple) -> tuple:
    """The arguments with their arrays as those of JAX, which traced indices can index: `obs=y[rows]`, rows drawn by a plate."""
    split = Arguments(args)
    arrays = split.arrays(args)
    return split.join([jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in arrays])


def shapes(arrays: list[PyTree]) -> list[str]:
    """Shape and dtype of each array, e.g. `float32[3, 2]`, for messages and comparisons."""
    return [f"{array.dtype}{list(array.shape)}" for array in arrays]


def shapes_of(args: tuple) -> tuple:
    """The arguments with shapes in the place of their arrays."""
    struct = lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))
    return jax.tree.map(lambda x: struct(x) if is_array(x) else x, args)


def outcome(fn: Callable[..., PyTree], args: tuple) -> PyTree:
    """What `fn(*args)` returns, as shapes: its arrays are traced, nothing is computed."""
    split = Arguments(args)
    with stand_ins():
        return jax.eval_shape(lambda arrays: fn(*split.join(arrays)), split.arrays(args))


def simulated(program: Program, args: tuple) -> Trace:
    """The trace of a run of a program, as shapes."""
    return outcome(lambda *args: program.simulate(jax.random.key(0), *args), args)


def leaves_of(args: tuple) -> tuple[list[PyTree], PyTree]:
    """The leaves of the arguments, a list of numbers being one, and their structure."""
    return jax.tree.flatten(args, is_leaf=is_list)


def is_list(x: PyTree) -> bool:
    """Whether it is a list of numbers, or of such lists."""
    return isinstance(x, list) and len(x) > 0 and all(is_list(e) or _is_number(e) for e in x)


def _is_number(x: Array) -> bool:
    return isinstance(x, int | float | np.generic) or is_array(x) and np.ndim(x) == 0


def leaf_names(
    program: object, args: tuple, is_leaf: Callable[..., PyTree] | None = None
) -> list[str]:
    """A name for each leaf of the arguments: of the program's argument, and where in it."""
    positional, _ = parted(args)
    names = [p.name for p in _parameters(program)]
    found = []
    for path, _ in jax.tree_util.tree_flatten_with_path(args, is_leaf)[0]:
        number = path[0].idx
        if number < len(positional):
            head, rest = names[number] if number < len(names) else f"args{number}", path[1:]
        else:
            head, rest = path[1].key, path[2:]
        within = jax.tree_util.keystr(rest, simple=True, separator="/")
        found.append(f"{head}/{within}" if within else head)
    return found


def array_names(program: object, args: tuple) -> list[str]:
    """A name for each array of the arguments, in the order of `Arguments.arrays`."""
    leaves = zip(leaf_names(program, args), jax.tree.leaves(args), strict=True)
    return [name for name, leaf in leaves if is_array(leaf)]


def named_leaves(program: object, args: tuple) -> dict[str, np.ndarray]:
    """The leaves of the arguments by name, in order; a list of numbers is one."""
    return dict(zip(leaf_names(program, args, is_list), leaves_of(args)[0], strict=True))


def _parameters(program: object) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(program).parameters.values())  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):  # a callable of another language, or none
        return []
