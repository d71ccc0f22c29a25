"""What belongs to the rows of the data: what changes its shape when a program runs, as shapes only, with more rows.

Lengths that happen to be equal say nothing: three groups are no rows, though three new rows be given. So the program is
traced with longer arguments, one row more and twice as many (two more where one more fails: pairs cannot be made of an odd
number). A site, a parameter or a plate *follows* the rows if one of its axes changes, or if its name comes and goes with them:
of "z_0", "z_1", ..., statements of a loop over rows, all do then.

Arguments of one length may be rows of one thing (covariates and group indices) or of two (a table with a row for each group):
axes that can grow alone are rows of things of their own, and those that cannot grow together. Rows are the first axis of an
array, or an integer; where predictions do not follow an array's first axis, a later one that they follow.

Where no run with more rows succeeds, what it met before it failed counts, and for all else the lengths decide, so that what may
belong to rows does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ...ppl._checks import is_integer
from ...ppl._types import Message, ModelFn
from ...ppl.densities import Eliminated
from ...ppl.language import Program
from .._arguments import Arguments, is_array, is_list, leaves_of, simulated

Shapes = Mapping[tuple[str, str], tuple[int, ...]]


class Axis(NamedTuple):
    """An axis of an argument: the number of the leaf, and of its axis; None for an integer."""

    leaf: int
    axis: int | None


class Met(NamedTuple):
    """What a run meets: ("site" | "param" | "plate", name) -> shape; `error` ended it, if there is one.

    Parameters that are networks have no shape here, ("network", name) -> ().
    """

    shapes: Shapes
    error: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """Axes of arguments that are rows of one thing; leaves are numbered as in `leaves_of`.

    Attributes:
        axes: which.
        size: their length.
        follows: ("site" | "param" | "plate", name) -> those of its axes that change with the number of rows.
        longer: arguments with more of these rows at which the program ran, and what it met.
        why: why there are none, and lengths decided; else None.
    """

    axes: tuple[Axis, ...]
    size: int
    follows: Mapping[tuple[str, str], frozenset[int]]
    longer: tuple[tuple[tuple, Met], ...] = ()
    why: str | None = None

    def names(self, kind: str) -> set[str]:
        """The sites, parameters or plates that follow: of `kind`."""
        return {name for k, name in self.follows if k == kind}

    def of(self, run: Callable[[tuple], Met], args: tuple) -> Rows:
        """These rows in another program: which of its inputs follow them."""
        base = run(args)
        if base.error is not None:
            raise base.error
        found = [(longer, run(longer)) for longer, _ in self.longer]
        return _compared(self.axes, self.size, base, found, self.why)


def met(program: PyTree, args: tuple) -> Met:
    """Sites, parameters and plates with their shapes, as far as a run of the program comes."""
    seen: dict[tuple[str, str], tuple[int, ...]] = {}
    if isinstance(program, Eliminated):
        program = program.program  # whose sites are all there

    class _Watch(Messenger):
        def postprocess_message(self, msg: Message) -> None:
            if msg["type"] == "plate":
                seen["plate", msg["name"]] = (msg["args"][0],)
            elif msg["type"] == "param" and isinstance(msg["value"], jax.Array):
                seen["param", msg["name"]] = jnp.shape(msg["value"])
            elif msg["type"] == "param":
                seen["network", msg["name"]] = ()
            elif msg["type"] == "sample" and msg["value"] is not None:
                seen["site", msg["name"]] = jnp.shape(msg["value"])

    def run(*args: PyTree, **kwargs: PyTree) -> PyTree:
        with _Watch():
            return program(*args, **kwargs)

    watched = program
    if type(program) is Program:
        run.__name__ = getattr(program.fn, "__name__", "program")
        watched = Program(run)
    try:
        trace = simulated(watched, args)
    except Exception as err:
        return Met(seen, err)
    # Inside of a scan one step was met; the trace knows them all.
    sites = {n: (*s.batch_shape, *s.event_shape) for n, s in trace.sites.items()}
    unseen = {n for n, s in trace.sites.items() if s.kind == "factor"}
    seen.update({("site", n): s for n, s in sites.items() if n not in unseen})
    return Met({k: s for k, s in seen.items() if k[0] != "site" or k[1] in sites})


def unbound(program: ModelFn) -> ModelFn:
    """The program with the initial values of its parameters, which have the shapes that its arguments ask for."""
    return program.bind({}) if isinstance(program, Program) and program.params else program


def rows_of(
    run: Callable[[tuple], Met],
    args: tuple,
    *,
    targets: Collection[str] = (),
    watched: Collection[str] | None = None,
    size: int | None = None,
) -> list[Rows]:
    """The rows that the arguments have, and what follows them.

    Args:
        run: what a program meets at such arguments.
        args: where.
        targets: sites that are predicted: rows of an array are the first axis that one of these follows, else axis 0.
        watched: names about which is asked; arguments of one length stay one where none of these follows them. Default all.
        size: of arrays with so long a first axis only; default, of all, and of what integers count.
    """
    search = _LongerRuns(run, args, watched)
    if search.base.error is not None:
        raise search.base.error
    leaves = list(enumerate(search.leaves))
    axes = [Axis(i, 0) for i, x in leaves if is_list(x) or is_array(x) and np.ndim(x)]
    if size is None:
        axes += [Axis(i, None) for i, x in leaves if is_integer(x) and x > 0]
    else:
        axes = [axis for axis in axes if search.size_of(axis) == size]
    found = search.rows(axes)
    has_target = lambda rows: bool(rows.names("site") & set(targets))
    for number, leaf in leaves:
        own = [r for r in found if Axis(number, 0) in r.axes]
        if not targets or not own or has_target(own[0]) or not is_array(leaf):
            continue
        for axis in range(1, len(np.shape(leaf))):
            other = search.rows([Axis(number, axis)])
            if has_target(other[0]):
                found = [r for r in found if r is not own[0] or len(r.axes) > 1] + other
                break
    return list({rows.axes: rows for rows in found}.values())


class _LongerRuns:
    """Runs with longer arguments."""

    def __init__(
        self, run: Callable[[tuple], Met], args: tuple, watched: Collection[str] | None
    ) -> None:
        split = Arguments(args)
        shapes = split.join(jax.eval_shape(lambda *arrays: arrays, *split.arrays(args)))
        self.leaves, self.treedef = leaves_of(shapes)
        self.run, self.watched = run, watched
        self.base = run(jax.tree.unflatten(self.treedef, self.leaves))

    def rows(self, axes: Sequence[Axis]) -> list[Rows]:
        by_size: dict[int, list[Axis]] = {}
        for axis in axes:
            by_size.setdefault(self.size_of(axis), []).append(axis)
        return [rows for size, some in by_size.items() for rows in self._parted(size, some)]

    def size_of(self, axis: Axis) -> int:
        leaf = self.leaves[axis.leaf]
        if axis.axis is None:
            return int(leaf)
        return len(leaf) if is_list(leaf) else leaf.shape[axis.axis]

    def _parted(self, size: int, axes: list[Axis]) -> list[Rows]:
        """Axes of one length as rows of one thing, or of several."""
        whole = self._grown(size, axes)
        if len(axes) == 1 and whole.why is None:
            return [whole]
        if whole.why is None and self.watched is not None and not self._is_asked(whole):
            return [whole]
        alone = [self._grown(size, [axis]) for axis in axes] if len(axes) > 1 else []
        free = [rows for rows in alone if rows.why is None]
        linked = [a for a, rows in zip(axes, alone, strict=False) if rows.why is not None]
        if alone and not linked:
            return free
        rest = [self._grown(size, linked)] if free else [whole]
        if rest[0].why is None:
            return [*free, *rest]
        if whole.why is None:
            return [whole]
        for fixed in (
            linked if len(linked) > 2 else ()
        ):  # one that cannot be longer, for reasons of its own
            others = self._grown(size, [a for a in linked if a != fixed])
            if others.why is None:
                return [*free, others, self._grown(size, [fixed])]
        every = [
            Axis(i, k)
            for i, x in enumerate(self.leaves)
            for k in range(np.ndim(x) if is_array(x) else 0)
            if x.shape[k] == size
        ]
        counted = [a for a in axes if a.axis is None]
        if set(every) - set(axes):
            more = self._grown(size, [*every, *counted])
            if more.why is None:
                return [more]
        return [*free, *rest]

    def _is_asked(self, rows: Rows) -> bool:
        return any(name in (self.watched or ()) for _, name in rows.follows)

    def _grown(self, size: int, axes: Sequence[Axis]) -> Rows:
        """The rows, if these axes are what has them."""
        found: list[tuple[tuple, Met]] = []
        for more in (1, 2, size):
            if more != 2 or found[0][1].error is not None:
                args = self._longer(axes, more)
                found.append((args, self.run(args)))
        return _compared(axes, size, self.base, found)

    def _longer(self, axes: Sequence[Axis], more: int) -> tuple:
        leaves = list(self.leaves)
        for number, axis in axes:
            leaf = leaves[number]
            if axis is None:
                leaves[number] = leaf + more
            elif is_list(leaf):
                leaves[number] = [*leaf, *leaf[-1:] * more]
            else:
                shape = (*leaf.shape[:axis], leaf.shape[axis] + more, *leaf.shape[axis + 1 :])
                leaves[number] = jax.ShapeDtypeStruct(shape, leaf.dtype)
        return jax.tree.unflatten(self.treedef, leaves)


def _compared(
    axes: Sequence[Axis],
    size: int,
    base: Met,
    found: Sequence[tuple[tuple, Met]],
    why: str | None = None,
) -> Rows:
    """The rows, from runs with more of them. If none succeeded, an axis as long as they are many follows them."""
    follows: dict[tuple[str, str], frozenset[int]] = {}
    add = lambda key, more: follows.update({key: follows.get(key, frozenset()) | more})
    for _, other in found:
        for key, changed in _changes(base, other).items():
            add(key, changed)
    longer = tuple((args, other) for args, other in found if other.error is None)
    if longer:
        return Rows(tuple(axes), size, follows, longer)
    for key, shape in base.shapes.items():
        if size in shape:
            add(key, frozenset(i for i, n in enumerate(shape) if n == size))
    for error in [other.error for _, other in found][:1]:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return Rows(tuple(axes), size, follows, (), why)


def _changes(base: Met, other: Met) -> dict[tuple[str, str], frozenset[int]]:
    """What has another shape, by axis, or a name of a kind of which there are more or fewer."""
    changed = {}
    for key in base.shapes.keys() & other.shapes.keys():
        one, two = base.shapes[key], other.shapes[key]
        if len(one) != len(two):
            changed[key] = frozenset(range(len(one)))
        elif one != two:
            changed[key] = frozenset(i for i, n in enumerate(one) if n != two[i])
    if other.error is None:
        odd = {_family(key) for key in base.shapes.keys() ^ other.shapes.keys()}
        numbered = {key for key in base.shapes if _family(key) in odd}
        changed |= {key: changed.get(key, frozenset()) for key in numbered}
    return changed


def _family(key: tuple[str, str]) -> tuple[str, str]:
    return key[0], re.sub(r"\d+", "#", key[1])
