"""Arrays by group and site into an xarray.DataTree: names of axes, labels, files."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ... import __version__, ppl

_SAMPLE_DIMS = ("chain", "draw")
_PRIOR = ("prior", "prior_predictive")
_ORDER = [
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "log_likelihood",
    "log_predictive",
    "log_prior",
    *_PRIOR,
    "observed_data",
    "constant_data",
]
Arrays = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Content:
    """What goes into a tree.

    Attributes:
        draws: group -> site -> array [S, *batch, *event] (log-probs without event axes).
        data: group -> site -> array.
        sites: site -> `SiteInfo`, where known.
        cells: site -> boolean array of the cells to keep. Over its batch axes: they end on one axis. Over event axes too: the
            others become NaN.
        attrs: group -> attributes.
        num_chains: the axis S is chains times draws.
        mcmc: a NumPyro MCMC whose statistics ArviZ reads.
    """

    draws: Arrays = dataclasses.field(default_factory=dict)
    data: Arrays = dataclasses.field(default_factory=dict)
    sites: dict[str, ppl.SiteInfo] = dataclasses.field(default_factory=dict)
    cells: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    attrs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    num_chains: int = 1
    mcmc: Any = None


def arviz_base() -> Any:
    """ArviZ's data module (not its plots, which import slowly)."""
    try:
        import arviz_base
    except ImportError as err:
        raise ImportError(
            "to_arviz needs ArviZ, and it is missing: pip install 'arviz>=1.1'."
        ) from err
    return arviz_base


def check_netcdf() -> None:
    """Raise unless a library that writes netCDF groups is installed."""
    if not any(importlib.util.find_spec(name) for name in ("netCDF4", "h5netcdf")):
        raise ImportError(
            "to_arviz: argument 'path' writes netCDF, and neither netCDF4 nor h5netcdf is installed. Install "
            "lapilli[netcdf]; without 'path' the tree stays in memory."
        )


def build_tree(
    base: Any, content: Content, coords: Mapping[str, PyTree], dims: Mapping[str, Sequence[str]]
) -> Any:
    """The `xarray.DataTree` of `content`."""
    import xarray

    content = _plain(content)
    names = _axis_names(content, {legal(site): axes for site, axes in dims.items()})
    labels = _labels(content, names, coords)
    tree = {}
    if content.mcmc is not None:
        read = base.from_numpyro(content.mcmc, coords=labels, dims={}, pred_dims={})
        tree = {
            group: read[group].to_dataset()
            for group in ("posterior", "sample_stats")
            if group in read.children
        }

    def dataset(arrays: dict[str, np.ndarray], sample_dims: Sequence[str]) -> Any:
        axes = {n: names.get(n, [])[: a.ndim - len(sample_dims)] for n, a in arrays.items()}
        options = {"sample_dims": list(sample_dims), "coords": labels, "check_conventions": False}
        return base.dict_to_dataset(arrays, dims=axes, **options)

    for group, arrays in content.draws.items():
        chains = 1 if group in _PRIOR else content.num_chains
        split = {n: a.reshape(chains, len(a) // chains, *a.shape[1:]) for n, a in arrays.items()}
        tree |= {group: dataset(split, _SAMPLE_DIMS)} if arrays else {}
    tree |= {group: dataset(arrays, ()) for group, arrays in content.data.items() if arrays}
    for group, data in tree.items():
        if "inference_library" not in data.attrs:
            data.attrs |= {"inference_library": "lapilli", "inference_library_version": __version__}
        data.attrs |= content.attrs.get(group, {})
    return xarray.DataTree.from_dict(
        {group: tree[group] for group in sorted(tree, key=_ORDER.index)}
    )


def _plain(content: Content) -> Content:
    """Arrays that ArviZ and netCDF can hold, under names that they can hold, cells that count on one axis."""

    def convert(arrays: dict[str, np.ndarray], leading: int) -> dict[str, np.ndarray]:
        plain = {}
        for name, array in arrays.items():
            array = np.asarray(array)
            if name in content.cells:
                array = _own_cells(array, content.cells[name], leading, content.sites[name])
            if array.dtype == bool:
                array = array.astype(int)
            elif array.dtype.itemsize == 2 and array.dtype.kind not in "iu":  # float16, bfloat16
                array = array.astype(np.float32)
            if legal(name) in plain:
                raise ValueError(
                    f"Site '{name}': its name is '{legal(name)}' in the tree, and so is another site's. "
                    "Rename one of them."
                )
            plain[legal(name)] = array
        return plain

    return dataclasses.replace(
        content,
        draws={group: convert(arrays, 1) for group, arrays in content.draws.items()},
        data={group: convert(arrays, 0) for group, arrays in content.data.items()},
        sites={legal(name): info for name, info in content.sites.items()},
        cells={
            legal(name): cells
            for name, cells in content.cells.items()
            if cells.ndim == len(content.sites[name].dims)
        },
    )


def _own_cells(
    array: np.ndarray, cells: np.ndarray, leading: int, info: ppl.SiteInfo
) -> np.ndarray:
    """The cells that count: on one axis where whole events do, else with NaN in the others (log-probs stay as they are)."""
    if cells.ndim == len(info.dims):
        array = array.reshape(*array.shape[:leading], -1, *array.shape[leading + cells.ndim :])
        return array.compress(cells.ravel(), axis=leading)
    if array.ndim == leading + cells.ndim and array.dtype.kind == "f":
        return np.where(cells, array, np.nan)
    return array


def legal(name: str) -> str:
    """The name without the slash of NumPyro's scopes, which xarray reserves for paths."""
    return name.replace("/", ".")


def _shapes(content: Content) -> dict[str, tuple[int, ...]]:
    """Variable -> shape of one draw, the longest that a group has (log-probs lack the event axes)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for leading, groups in ((1, content.draws), (0, content.data)):
        for group, arrays in groups.items():
            for name, array in arrays.items() if group != "sample_stats" else ():
                shape = array.shape[leading:]
                shapes[name] = max(shapes.get(name, ()), shape, key=len)
    return shapes


def _axis_names(content: Content, dims: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Variable -> one name per axis of a draw."""
    shapes = _shapes(content)
    unknown = sorted(set(dims) - set(shapes))
    if unknown:
        raise ValueError(
            f"to_arviz: argument 'dims' names {unknown}, but the variables are {sorted(shapes)}. Correct the names."
        )
    if taken := sorted({*_SAMPLE_DIMS, "sample"} & set(shapes)):
        raise ValueError(
            f"to_arviz: the variables {taken} (shapes of a draw {[shapes[name] for name in taken]}) have the names of sample "
            "axes, whose coordinates would take their place in the tree: their draws would be lost. Rename these sites."
        )
    known = {name: _known_names(name, shape, content) for name, shape in shapes.items()}
    lengths = defaultdict(set)
    for name, axes in known.items():
        for axis, size in zip(axes, shapes[name], strict=False):
            lengths[axis].add(size)
    names = {}
    for name, axes in known.items():
        # Two scans both have an axis "time"; where its lengths differ, each site gets an axis of its own.
        axes = [f"{name}_{axis}" if axis and len(lengths[axis]) > 1 else axis for axis in axes]
        names[name] = _filled(name, _given(name, axes, dims[name]) if name in dims else axes)
    _check_axes(names, shapes)
    return names


def _known_names(name: str, shape: tuple[int, ...], content: Content) -> list[str | None]:
    """A name or None per axis, event axes included where the groups hold log-probs only."""
    info = content.sites.get(name)
    axes = [] if info is None else [None if axis is None else legal(axis) for axis in info.dims]
    if name in content.cells:
        axes = [f"{name}_cell"]
    rank = len(shape) if info is None else len(axes) + len(info.event_shape)
    return axes + [None] * (rank - len(axes))


def _given(name: str, axes: list[str | None], given: Sequence[str]) -> list[str | None]:
    given = [legal(axis) for axis in given]
    if len(given) == len(axes):
        return [*given]
    if len(given) != axes.count(None):
        named = [axis for axis in axes if axis]
        rest = f", or the {axes.count(None)} without a name" if named else ""
        remedy = f"Name all{rest}." if axes else "Leave it out: it is a number."
        raise ValueError(
            f"Site '{name}': argument 'dims' gives {len(given)} names, {given}, for {len(axes)} axes, of which {named or 'none'} "
            f"have one already. {remedy}"
        )
    rest = iter(given)
    return [next(rest) if axis is None else axis for axis in axes]


def _filled(name: str, axes: list[str | None]) -> list[str]:
    numbers = iter(range(len(axes)))
    return [f"{name}_dim_{next(numbers)}" if axis is None else axis for axis in axes]


def _check_axes(names: dict[str, list[str]], shapes: dict[str, tuple[int, ...]]) -> None:
    lengths: dict[str, dict[str, int]] = defaultdict(dict)
    for name, axes in names.items():
        if len(set(axes)) < len(axes):
            raise ValueError(
                f"Site '{name}': two of its axes have the same name, {axes}. Give it other names by "
                f"dims={{'{name}': [...]}}."
            )
        for axis, size in zip(axes, shapes[name], strict=False):
            lengths[axis][name] = size
    for axis, sites in lengths.items():
        site = next(iter(sites))
        remedy = f"Rename the plate, or the axis by dims={{'{site}': [...]}}."
        if axis in names or axis in _SAMPLE_DIMS:
            raise ValueError(
                f"Site '{site}': its axis '{axis}' has the name of a variable or of a sample axis. {remedy}"
            )
        if len(set(sites.values())) > 1:
            raise ValueError(
                f"Sites {list(sites)}: axis '{axis}' has the lengths {list(sites.values())}. {remedy}"
            )


def _labels(
    content: Content, names: dict[str, list[str]], coords: Mapping[str, list[int]]
) -> dict[str, PyTree]:
    """Axis name -> labels, checked; the cells of masked sites are numbered by their place in the whole."""
    shapes = _shapes(content)
    sizes = {
        axis: size
        for name, axes in names.items()
        for axis, size in zip(axes, shapes[name], strict=False)
    }
    labels: dict[str, Any] = {
        f"{name}_cell": np.flatnonzero(cells) for name, cells in content.cells.items()
    }
    for axis, values in coords.items():
        axis, values = legal(axis), list(values)
        if axis not in sizes:
            raise ValueError(
                f"to_arviz: argument 'coords' names the axis '{axis}', but the axes are {sizes}. Correct the name."
            )
        if len(values) != sizes[axis]:
            raise ValueError(
                f"to_arviz: argument 'coords' has {len(values)} labels for axis '{axis}' of length "
                f"{sizes[axis]}. Give one per element."
            )
        labels[axis] = values
    return labels
