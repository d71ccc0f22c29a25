"""Decide where the data of a fit comes from, and refuse what would be scaled wrongly.

A plate that is sliced is declared to the objective with its full size N; run on n rows, the objective multiplies the plate's
terms by N / n. Refused, because no scale would make them right: data sliced without a declaration, a plate that does not
follow the sliced arguments, and a parameter with one entry per row (a minibatch would update other rows' entries).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ....ppl import draw
from ....ppl._checks import is_integer
from ....ppl._types import Key, ModelFn
from ....ppl.densities import Eliminated
from ....ppl.estimation import plate_sizes
from ....ppl.language import Program
from ....ppl.traces import stand_ins
from ..._abstract_objective import AbstractObjective, is_guide_new
from ..._arguments import Arguments, is_array, is_mapped, leaves_of, outcome, shapes, shapes_of
from ..._processes import spans_processes, together
from ...inputs import Met, by_position, rows_of
from ._batches import Batches, is_iterable_of_batches
from ._full import FullData
from ._interface import Source
from ._minibatches import MappedMinibatches, Minibatches
from ._process_local import check_plate, check_spread, spread
from ._row_blocks import RowBlocks


def make_source(
    objective: AbstractObjective,
    args: PyTree,
    subsample: Mapping[str, int] | None,
    plate_sizes: Mapping[str, float] | None,
    mesh: Mesh | None,
    prefetch: int = 0,
    order_key: jax.Array | None = None,
    spread_plate: str | None = None,
) -> tuple[AbstractObjective, Source]:
    """The objective with its plates' full sizes declared, and the source of its arguments.

    `order_key` is that of the order of the rows, of one run; without it files that are mapped into memory are read whole.
    `spread_plate` is the one of which each process has its own rows of a batch.
    """
    if is_iterable_of_batches(args):
        return _from_iterable(objective, args, subsample, plate_sizes, mesh, prefetch, spread_plate)
    if plate_sizes is not None:
        raise ValueError(
            "Argument 'plate_sizes' declares the full sizes behind an iterable of batches; 'args' is one tuple of "
            "arguments. Leave it out; to draw minibatches from the tuple, pass subsample={plate: batch_size}."
        )
    if subsample:
        if not isinstance(subsample, Mapping):
            raise TypeError(
                f"Argument 'subsample' is {subsample!r}, not a dict from plate to batch size. Write e.g. "
                "subsample={'rows': 256}."
            )
        return _from_subsample(objective, args, dict(subsample), mesh, order_key)
    sizes = objective.plate_sizes(*args) if mesh is not None else {}
    return objective, FullData(args, mesh, sizes)


def with_rows_of_all(
    objective: AbstractObjective, args: tuple, plate: str, mesh: Mesh | None
) -> tuple:
    """The arguments with the rows of all processes, of those of this one."""
    check_spread(plate, mesh)
    is_shared = spans_processes("fit", mesh)
    with together(is_shared):
        sizes = dict(objective.plate_sizes(*args))
        check_plate(plate, sizes)
        plate_of = _plates_of(objective, args, {plate: sizes[plate]})
        if plate not in plate_of:
            raise ValueError(
                f"Argument 'args': no array has the rows of plate '{plate}' as its leading axis; shapes: "
                f"{shapes(Arguments(args).arrays(args))}. Pass its data with the rows first, or leave out ProcessLocal."
            )
    if mesh is None or not is_shared:
        return args
    return spread(args, plate, mesh, [p == plate for p in plate_of])


class _ModelAlone(NamedTuple):
    """A model as an objective, as far as plates are looked for."""

    model: ModelFn
    guide: None = None

    def plate_sizes(self, *args: PyTree) -> dict[str, int]:
        return plate_sizes(lambda: draw(self.model, *args))


def row_blocks(
    model: ModelFn, args: PyTree, subsample: Mapping[str, int] | None
) -> RowBlocks | None:
    """Blocks of the rows of a plate whose data are files; None where there is none, or more than one plate is subsampled."""
    if not isinstance(subsample, Mapping) or len(subsample) != 1 or not isinstance(args, tuple):
        return None
    arrays = Arguments(args).arrays(args)
    if not any(map(is_mapped, arrays)):
        return None
    alone: Any = _ModelAlone(model)
    full = _plate_sizes(alone, args)
    _check_subsample(full, arrays, dict(subsample))
    ((name, _),) = subsample.items()
    return RowBlocks(
        args, name, full[name], [p is not None for p in _plates_of(alone, args, {name: full[name]})]
    )


def _plate_sizes(objective: AbstractObjective, args: tuple) -> dict[str, int]:
    """Plates in full with their sizes; no file is read, unless a guide's first call needs the data."""
    if is_guide_new(objective) or not any(map(is_mapped, Arguments(args).arrays(args))):
        return dict(objective.plate_sizes(*args))
    sizes: dict[str, int] = {}
    outcome(lambda *args: sizes.update(objective.plate_sizes(*args)), args)
    return sizes


def _check_subsample(
    full: Mapping[str, int], arrays: list[PyTree], subsample: Mapping[str, int]
) -> None:
    """Refuse plates that are not there, and sizes of batches that are impossible."""
    problems = _unknown(subsample, full)
    leading = [array.shape[0] for array in arrays if array.ndim]
    for name, size in full.items():
        if name not in subsample:
            continue
        batch = subsample[name]
        if not is_integer(batch) or not 1 <= batch <= size:
            problems.append(
                f"plate '{name}' has {size} rows, so a batch size of {batch!r} is impossible; choose 1 to {size}"
            )
        if size not in leading:
            problems.append(
                f"plate '{name}' has size {size}, but no argument has a leading axis of that length (argument shapes: "
                f"{shapes(arrays)}); pass the plate's data with the rows as leading axis"
            )
    if problems:
        raise ValueError("Argument 'subsample': " + ";\n".join(problems) + ".")


def _from_subsample(
    objective: AbstractObjective, args: tuple, subsample: dict[str, int], mesh: Mesh | None, order_key: Key | None
):  # fmt: skip
    full = _plate_sizes(objective, args)
    arrays = Arguments(args).arrays(args)
    _check_subsample(full, arrays, subsample)
    named = {name: size for name, size in full.items() if name in subsample}
    subsample = {name: int(batch) for name, batch in subsample.items()}
    plate_of = _plates_of(objective, args, named)
    if order_key is not None and any(map(is_mapped, arrays)):
        source: Minibatches = MappedMinibatches(order_key, args, subsample, full, mesh, plate_of)
    else:
        source = Minibatches(args, subsample, full, mesh, plate_of)
    first = source.first()
    _check_plates_follow(objective.plate_sizes(*first), full, subsample)
    _check_no_local_parameters(objective, args, first)
    return objective.with_plate_sizes(named), source


def _plates_of(
    objective: AbstractObjective, args: tuple, sizes: Mapping[str, int]
) -> list[str | None]:
    """For each array of the arguments the plate with whose rows it is cut; `sizes` are those of the plates in full.

    An array as long as a plate is not cut if it can be longer by itself: the program looks up in it what the data name. Unless
    it is matched to the rows by position.
    """
    run, arrays = (lambda args: _met(objective, args)), Arguments(args).arrays(args)
    with_axes = [i for i, x in enumerate(leaves_of(args)[0]) if is_array(x) and x.ndim]
    leaf_of = dict(zip([i for i, x in enumerate(arrays) if x.ndim], with_axes, strict=True))
    found: list[str | None] = [None] * len(arrays)
    for name, size in sizes.items():
        long = [i for i, x in enumerate(arrays) if x.ndim and x.shape[0] == size]
        cut = long
        if len(long) > 1:
            rows = rows_of(run, args, size=size)
            own = [r for r in rows if ("plate", name) in r.follows]
            own = [r for r in own if r.longer] or own
            leaves = {axis.leaf for r in own for axis in r.axes if axis.axis == 0}
            cut = [i for i in long if leaf_of[i] in leaves] or long
            if len(own) == 1 and own[0].longer:
                counting = [r for r in rows if r.longer and r.names("plate")]
                counted = {axis.leaf for r in counting for axis in r.axes}
                others = [i for i in long if leaf_of[i] not in counted]
                cut = cut + _lined_up(objective, args, own[0].longer[0][0], others)
        for i in cut:
            if found[i] is not None:
                raise ValueError(
                    f"Argument 'subsample': plates '{found[i]}' and '{name}' both have size {size}, and nothing tells with which "
                    f"of them an argument of shape {shapes([arrays[i]])[0]} goes. Subsample one of them, or pass an iterable of "
                    "batches with plate_sizes."
                )
            found[i] = name
    return found


def _lined_up(
    objective: AbstractObjective, args: tuple, longer: tuple, numbers: list[int]
) -> list[int]:
    """The numbers of those arrays that the programs match to rows by position."""
    programs = [p for p in (objective.model, objective.guide) if p is not None]
    if not (programs and numbers and all(isinstance(p, Program) for p in programs)):
        return numbers
    programs = [p.program if isinstance(p, Eliminated) else p for p in programs]
    split = Arguments(args)
    before, after = split.arrays(shapes_of(args)), split.arrays(longer)
    rest = lambda arrays: [x for i, x in enumerate(arrays) if i not in numbers]

    def run(asked: list[Array], key: Key, others: list[Array]) -> list[dict[str, Array]]:
        own, other = iter(asked), iter(others)
        arrays = [next(own) if i in numbers else next(other) for i in range(len(before))]
        with stand_ins():
            return [p.simulate(key, *split.join(arrays)).log_probs for p in programs]

    asked = [before[i] for i in numbers]
    found = by_position(run, asked, jax.random.key(0), rest(before), rest(after))
    return [i for i, is_found in zip(numbers, found, strict=True) if is_found]


def _met(objective: AbstractObjective, args: tuple) -> Met:
    """Plates and parameters of an objective, as shapes."""
    sizes: dict[str, int] = {}
    run = lambda *args: sizes.update(objective.plate_sizes(*args))
    try:
        outcome(run, args)
    except Exception as err:
        return Met({}, err)
    return Met({("plate", name): (size,) for name, size in sizes.items()})


def _check_plates_follow(seen: Mapping[str, int], full: Mapping, subsample: Mapping) -> None:
    expected = {**full, **subsample}
    wrong = {name: size for name, size in seen.items() if size != expected.get(name)}
    if wrong:
        name, size = next(iter(wrong.items()))
        raise ValueError(
            f"Argument 'subsample': with sliced arguments plate '{name}' has size {size}, but {expected.get(name)} was "
            f"expected (plates in full: {dict(full)}; subsample: {dict(subsample)}). Take the plate's size from the sliced "
            f"argument, as in ppl.plate('{name}', x.shape[0]), and let no other plate depend on it."
        )


def _from_iterable(
    objective: AbstractObjective,
    iterable: Iterable[PyTree],
    subsample: Mapping[str, int] | None,
    plate_sizes: Mapping[str, float] | None,
    mesh: Mesh | None,
    prefetch: int,
    spread_plate: str | None,
):
    if subsample:
        raise ValueError(
            "Argument 'subsample' draws minibatches from a tuple of arrays, but 'args' already yields batches. Pass "
            f"plate_sizes={{plate: full_size}} for the plates {sorted(subsample)} instead."
        )
    if spread_plate is not None:
        check_spread(spread_plate, mesh)
    with together(spans_processes("fit", mesh)):
        source = Batches(iterable, prefetch)
        first = source.first()
        seen = own = dict(objective.plate_sizes(*first))
        plates: list[str | None] = []
        if spread_plate is not None:
            check_plate(spread_plate, seen)
            plates = _plates_of(objective, first, {spread_plate: seen[spread_plate]})
    if spread_plate is not None and mesh is not None:
        source.set_spread(mesh, [p == spread_plate for p in plates])
        first = source.first()  # with the rows of all processes, which send them each time
        seen = dict(objective.plate_sizes(*first))
    if plate_sizes is None:
        raise ValueError(
            f"Argument 'args' yields batches, and nothing says how many rows they were taken from. Plates with their sizes "
            f"in the first batch: {seen}. Pass plate_sizes={{plate: full_size}} for every plate that a batch holds only in "
            "part, or plate_sizes={} if each batch is all the data there is."
        )
    problems = _unknown(plate_sizes, seen)
    problems += [
        f"plate '{name}' has {seen[name]} rows in the first batch, more than its full size {size}; give the number of all rows"
        for name, size in plate_sizes.items()
        if name in seen and size < seen[name]
    ]
    if problems:
        raise ValueError("Argument 'plate_sizes': " + ";\n".join(problems) + ".")
    sizes = [seen[name] for name in plate_sizes]
    source.set_plates(
        [own[name] for name in plate_sizes],
        lambda args: _check_fewer_rows(seen, dict(objective.plate_sizes(*args)), plate_sizes),
    )
    for longer in _longer(objective, first, {name: seen[name] for name in plate_sizes}):
        _check_no_local_parameters(objective, first, longer)
    if mesh is not None and spread_plate is None:
        source.set_sharding(mesh, sizes or seen.values())
    return (objective.with_plate_sizes(dict(plate_sizes)) if plate_sizes else objective), source


def _check_fewer_rows(
    seen: Mapping[str, int], now: Mapping[str, int], declared: Collection[str]
) -> None:
    changed = [name for name in seen if now.get(name) != seen[name]]
    if len(changed) != 1 or changed[0] not in declared or set(now) != set(seen):
        raise ValueError(
            f"Argument 'args': with the rows of a smaller batch the plates have the sizes {dict(now)}, and {dict(seen)} with "
            "those of the first. One plate of 'plate_sizes' must follow the batch, as in ppl.plate('rows', x.shape[0]), and no "
            "other. Or let the loader drop its last batch (drop_last=True)."
        )


def _longer(objective: AbstractObjective, args: tuple, sizes: Mapping[str, int]) -> list[tuple]:
    """Arguments with more rows of the plates of these sizes, one or as few as can be, to see which parameters follow."""
    found = []
    for name, size in sizes.items():
        rows = rows_of(lambda args: _met(objective, args), args, size=size)
        found += [r.longer[0][0] for r in rows if ("plate", name) in r.follows and r.longer]
    return found


def _check_no_local_parameters(
    objective: AbstractObjective, args: tuple, other_args: tuple
) -> None:
    """Refuse parameters whose shape depends on the number of rows (abstract evaluation only)."""
    one, other = (_abstract_params(objective, a) for a in (args, other_args))
    local = [
        f"'{name}' ({shapes(jax.tree.leaves(one[name]))} against {shapes(jax.tree.leaves(other[name]))})"
        for name in one
        if name not in other
        or shapes(jax.tree.leaves(one[name])) != shapes(jax.tree.leaves(other[name]))
    ]
    if local:
        raise ValueError(
            f"These parameters have one entry per row of the data: {', '.join(local)}. A minibatch would update the entries "
            "of other rows. Compute them from the row instead (an amortised guide), or fit on the full data."
        )


def _abstract_params(objective: AbstractObjective, args: tuple) -> PyTree:
    split = Arguments(args)
    init = lambda key, arrays: objective.init(key, *split.join(arrays))
    return jax.eval_shape(init, jax.random.key(0), split.arrays(args))


def _unknown(named: Collection[str], plates: Mapping[str, int]) -> list[str]:
    return [
        f"there is no plate '{name}'; the plates and their sizes are {dict(plates)}"
        for name in named
        if name not in plates
    ]
