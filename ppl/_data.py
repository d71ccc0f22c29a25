"""Data on the way in: what a user hands over becomes arrays with the same values, or is refused by name.

Input: an argument, an observation or a sample: anything with numbers in it. Output: the same, in types that JAX knows:

    an array of JAX               as it is
    numbers, truth values         NumPy arrays; half precision becomes single, long doubles double; unsigned numbers signed ones,
                                  where they fit; NumPy's matrices arrays, whose products are those of elements
    a series, a frame             arrays of its columns, NaN where a value is missing
    objects that are all numbers  floating-point numbers
    categories                    codes from 0 on
    masked cells, missing codes   `Masked`: cells to be drawn where a statement observes them
    text, other objects           as they are: no data

Invariant: rounding apart, no value changes; what JAX would cut to 32 bits without a word is refused (`_single.py`).

Only NumPy's 64-bit types are looked through; arrays of JAX and of float32 cost nothing.
"""

from __future__ import annotations

import datetime
import decimal
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ._compat import Tracer
from ._single import checked, refuse_overflow

_DATES = (datetime.date, datetime.timedelta, datetime.time, np.datetime64, np.timedelta64)
_ORIGIN = "Subtract an origin and divide by a unit, e.g. (t - t[0]) / np.timedelta64(1, 'D')."


@jax.tree_util.register_pytree_with_keys_class
class Masked:
    """Values of which some are missing, from a masked array or a category; what `ppl.sample(obs=)` takes with a mask.

    Attributes:
        values: of all cells; those of missing ones are never read.
        seen: which cells are there, boolean.
        name: of the argument.
    """

    def __init__(self, values: PyTree, seen: np.ndarray, name: str) -> None:
        self.values, self.seen, self.name = values, seen, name

    def tree_flatten_with_keys(self) -> tuple[PyTree, PyTree]:
        """Children by name, for `jax.tree`."""
        key = jax.tree_util.GetAttrKey
        return [(key("values"), self.values), (key("seen"), self.seen)], self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: Any) -> Masked:
        """The inverse of flattening, for `jax.tree`."""
        values, seen = children
        return cls(values, seen, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the values."""
        return np.shape(self.values)

    @property
    def dtype(self) -> Any:
        """That of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Masked({self.name}, shape {self.shape})"

    def refuse(self, *_: float, **__: PyTree) -> NoReturn:
        """Say that something needs all cells.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{self.name} has missing cells (a masked array, or categories of which some are missing), and is used as numbers, "
            "which would read what stands in them. Observe it, ppl.sample(name, law, obs=...), whose missing cells are drawn; "
            "use what that returns; or fill the cells, or leave the rows out."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__jax_array__":
            return object.__getattribute__(self, name)  # which says that there is none
        return self.refuse()

    __array__ = __getitem__ = __iter__ = __index__ = __bool__ = __float__ = __int__ = refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = refuse
    __pow__ = __rpow__ = __neg__ = __abs__ = __invert__ = refuse
    __lt__ = __le__ = __gt__ = __ge__ = __and__ = __rand__ = __or__ = __ror__ = refuse


def as_data(args: PyTree, name: str = "An argument") -> PyTree:
    """The tree with all that holds numbers as arrays that JAX takes as they are.

    Args:
        args: an argument, or a tree of them.
        name: of the argument, for messages.

    Raises:
        TypeError: there are dates, or columns without numbers in a frame.
        ValueError: values would change: integers that do not fit, numbers that overflow, differences that are rounded away,
            levels of categories that look like codes and have others.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(args)
    leaves = [leaf for _, leaf in paths]
    found = [
        leaf if _is_known(leaf) else _converted(name + jax.tree_util.keystr(path), leaf)
        for path, leaf in paths
    ]
    if all(new is old for new, old in zip(found, leaves, strict=True)):
        return args
    return jax.tree.unflatten(treedef, found)


def as_value(x: PyTree, name: str) -> ArrayLike | None:
    """`as_data` of one value, for which a number of Python's is data, too."""
    is_large = isinstance(x, int) and not -(2**31) <= x < 2**31
    return as_data(np.asarray(x) if is_large else x, name)


def named_data(values: Mapping[str, PyTree], name: str) -> dict[str, ArrayLike]:
    """Arguments by name; `name` has a place for it."""
    return {key: as_data(value, name.format(key)) for key, value in values.items()}


def as_numbers(name: str, x: PyTree) -> np.ndarray:
    """An array in double precision: samples, draws and weights that are computed with on the host.

    Args:
        name: of the argument, with the function that has it.
        x: an array, a frame, a list.

    Raises:
        TypeError: it holds dates, text or complex numbers.
        ValueError: cells are missing; integers lose digits in double precision.
    """
    found = x if _is_known(x) else as_array(name, x)
    if isinstance(found, Masked):
        raise ValueError(
            f"{name} has {int((~found.seen).sum())} missing cells of {found.size}, and is needed whole. Fill them, or leave "
            "those rows out."
        )
    array = as_one_array(name, found)
    if array.dtype.kind == "O" or array.dtype.kind in "mM":
        array = as_array(name, array)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufV" or array.dtype.names:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(
            f"{name} holds {kind}, which is no real number. Pass real numbers: parts of complex ones, codes of text."
        )
    if array.dtype.kind in "iu" and array.size and array.dtype.itemsize == 8:
        _check_digits(name, array)
    return array.astype(np.float64) if array.dtype != np.float64 else array


def _check_digits(name: str, array: np.ndarray) -> None:
    low, high = int(array.min()), int(array.max())
    if max(-low, high) > 2**53 and len(np.unique(array)) > len(np.unique(array.astype(float))):
        raise ValueError(
            f"{name} holds {array.dtype} from {low} to {high}, of which double precision makes different ones the same. Subtract "
            "an origin first."
        )


def as_one_array(name: str, leaf: PyTree) -> np.ndarray:
    """A leaf of data as one array.

    Raises:
        ValueError: the parts have different shapes.
    """
    try:
        return np.asarray(leaf)
    except ValueError as error:
        raise ValueError(
            f"{name} is no array: its parts have different shapes. Pad them to one, or pass them one by one."
        ) from error


def _is_known(leaf: ArrayLike) -> bool:
    if isinstance(leaf, jax.Array | Tracer | jax.ShapeDtypeStruct | Masked):
        return True
    return not hasattr(leaf, "__array__") and not _is_sparse(leaf)


def _is_sparse(leaf: object) -> bool:
    """Whether it is a matrix of SciPy's that is kept by its entries."""
    return hasattr(leaf, "tocsr") and hasattr(leaf, "toarray")


def _converted(name: str, leaf: PyTree) -> PyTree:
    found = as_array(name, leaf, checked)
    if isinstance(found, Masked):
        return Masked(checked(name, found.values, found.seen), found.seen, name)
    return checked(name, found) if isinstance(found, np.ndarray | np.generic) else found


# Kinds


def as_array(name: str, leaf: PyTree, check: Callable[..., PyTree] = lambda _, x: x) -> PyTree:
    """A leaf of data as a NumPy array of numbers, `Masked`, or the leaf itself, if there are no numbers in it.

    Args:
        name: for messages.
        leaf: what holds the numbers.
        check: what is to be said of the values of a frame's columns, by name.
    """
    if _is_sparse(leaf):
        raise TypeError(
            f"{name} is a sparse matrix ({type(leaf).__name__}), with which programs do not compute. Pass x.toarray()."
        )
    if isinstance(leaf, np.ma.MaskedArray):
        values, missing = leaf.data, np.ma.getmaskarray(leaf)
        values = as_array(name, values)
        return Masked(values, ~missing, name) if missing.any() else values
    if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy") and np.ndim(leaf) == 2:
        return _of_frame(name, leaf, check)
    if (codes := _codes(leaf)) is not None:
        _check_levels(name, leaf)
        seen = codes >= 0
        # Missing cells have a code that is one, in case they are looked up before they are left out.
        return codes if seen.all() else Masked(np.where(seen, codes, 0), seen, name)
    kind = getattr(getattr(leaf, "dtype", None), "kind", None)
    if kind in ("m", "M"):
        _refuse_dates(name, leaf)
    array = as_one_array(name, leaf)
    if array.dtype.kind in "mM":
        _refuse_dates(name, leaf)
    if array.dtype.kind == "O":
        return _of_objects(name, leaf, array)
    if array.dtype.kind in "US":
        return leaf
    return _of_numbers(name, leaf, array)


def _of_numbers(name: str, leaf: ArrayLike, array: np.ndarray) -> ArrayLike:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "V":
        if array.dtype.names or not jnp.issubdtype(array.dtype, jnp.number):
            raise TypeError(
                f"{name} is a structured array with the fields {list(array.dtype.names or [])}. Pass its fields one by one, e.g. "
                "{name: x[name] for name in x.dtype.names}."
            )
        is_float = jnp.issubdtype(array.dtype, jnp.floating)  # those of eight bits and bfloat16
        return array.astype(np.float32 if is_float else np.int32)
    if kind == "f" and size < 4:
        return array.astype(np.float32)
    if kind == "f" and size > 8 or kind == "c" and size > 16:
        with np.errstate(over="ignore"):
            double = array.astype(np.float64 if kind == "f" else np.complex128)
        if (lost := np.isinf(double) & ~np.isinf(array)).any():
            refuse_overflow(name, array, array[lost][0] if array.ndim else array, "float64")
        return double
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    most = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64)).max
    if kind == "u" and size >= 4 and (not array.size or array.max() <= most):
        return array.astype(np.int64)  # unsigned ones wrap at 0: 3 - 5 would be 4294967294
    is_plain = isinstance(leaf, np.ndarray | np.generic) and not isinstance(leaf, np.matrix)
    return leaf if is_plain else array.view(np.ndarray)


def _codes(leaf: ArrayLike) -> np.ndarray | None:
    """The codes of pandas' categories, of a series, an index or by themselves; None of anything else."""
    if not hasattr(getattr(leaf, "dtype", None), "categories"):
        return None
    of_series = getattr(leaf, "cat", leaf)
    codes = getattr(of_series, "codes", None)
    return None if codes is None else np.asarray(codes).astype(np.int32)


def _check_levels(name: str, leaf: Any) -> None:
    """Refuse levels that look like codes and have others: truth values or whole numbers from 0 on, permuted or with gaps."""
    levels = leaf.dtype.categories.tolist()
    is_whole = all(isinstance(x, int | float) and float(x).is_integer() for x in levels)
    if not levels or not is_whole or levels == list(range(len(levels))):
        return
    if min(levels) == 0 or all(isinstance(x, bool) for x in levels):
        place = next(i for i, x in enumerate(levels) if x != i)
        raise ValueError(
            f"{name} holds categories whose levels {levels[:6]} look like codes and are none: {levels[place]} has the code "
            f"{place}, and would be read as that. Pass the numbers, x.astype(int) (truth values by x.astype(bool)); or their "
            "places among the levels, x.cat.codes; or, where they are names, x.cat.rename_categories(str)."
        )


def _of_frame(name: str, frame: Any, check: Callable[..., PyTree]) -> np.ndarray:
    """A matrix of the columns, each of which holds numbers."""
    columns = []
    for place, label in enumerate(frame.columns):
        column = frame.iloc[:, place] if hasattr(frame, "iloc") else frame[label]
        if hasattr(getattr(column, "dtype", None), "categories"):
            raise TypeError(
                f"{name}: column {label!r} holds categories, whose codes are no numbers to compute with. Pass it as an argument "
                f"of its own, frame[{label!r}], and use it as an index; or code it, e.g. by pd.get_dummies."
            )
        found = as_array(f"{name}[{label!r}]", column)
        if not isinstance(found, np.ndarray):
            raise TypeError(
                f"{name}: column {label!r} holds {getattr(column, 'dtype', 'objects')}, which are no numbers. Leave it out, or "
                "code it, e.g. .astype('category') in an argument of its own."
            )
        columns.append(check(f"{name}[{label!r}]", found))
    if not columns:
        return np.zeros(np.shape(frame))
    kind = np.result_type(*[c.dtype for c in columns])
    if kind.kind == "f" and any(c.dtype.kind in "iu" for c in columns):
        kind = np.dtype(np.float64)  # whose digits hold all that has passed so far
    return np.stack([c.astype(kind) for c in columns], axis=1)


def _of_objects(name: str, leaf: PyTree, array: np.ndarray) -> Any:
    """Objects that are all numbers, or missing, as floating-point numbers; others are no data."""
    cells = array.ravel().tolist()
    if any(isinstance(x, _DATES) or hasattr(x, "to_timestamp") for x in cells):
        _refuse_dates(name, leaf)
    is_number = lambda x: isinstance(x, numbers.Real | decimal.Decimal | np.bool_)
    if not cells or not all(is_number(x) or _is_missing(x) for x in cells):
        return leaf
    large = next(
        (
            x
            for x in cells
            if is_number(x) and isinstance(x, numbers.Integral) and abs(int(x)) > 2**63
        ),
        None,
    )
    if large is not None:
        refuse_overflow(name, array, large, "int64")
    if all(isinstance(x, bool | np.bool_) for x in cells):
        return array.astype(bool)
    if all(isinstance(x, numbers.Integral) for x in cells):
        return array.astype(np.int64)
    plain = [float("nan") if _is_missing(x) else float(x) for x in cells]  # pyright: ignore[reportArgumentType]
    return np.array(plain).reshape(array.shape)


def _is_missing(x: Array) -> bool:
    return x is None or type(x).__name__ in ("NAType", "NaTType")


def _refuse_dates(name: str, leaf: PyTree) -> NoReturn:
    kind = getattr(leaf, "dtype", None)
    shape = list(np.shape(leaf))
    held = "dates" if kind is None or getattr(kind, "kind", "O") == "O" else str(kind)
    raise TypeError(f"{name} of shape {shape} holds {held}, which is no number. {_ORIGIN}")
