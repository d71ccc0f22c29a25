"""The values of a program's variables in the lanes that they need.

Input: items, each a list of variables and the lanes in which they are wanted. Items share sweeps: one evaluation serves all items
whose lanes it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from ..analysis import Analysed
from ..enumeration import ELEMENT, REPLICATE
from ..evaluation import Apply, Forced, Invariants, is_on, lanes_at, optimised
from ._sweep import Sweep

Array = jax.Array
Lanes = tuple[int, ...]
Item = tuple[Lanes, list[Any]]
# Site -> (replacement, the same tree holding each part's lanes as a tuple).
Replaced = Mapping[int, tuple[Forced, Forced]]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Evaluate an analysed program.

    Attributes:
        program: the analysed program.
        inputs: leaves of the parameters.
        key: random key; several for replicates.
        replicates: the lane of replicates, if there is one.
        invariants: what several evaluations share; None where replicates differ in it.
    """

    program: Analysed
    inputs: Sequence[Any]
    key: Array
    replicates: Lanes
    invariants: Invariants | None

    def read(
        self, items: Mapping[Any, Item], forced: Replaced, extra: Lanes
    ) -> dict[Any, list[Any]]:
        """The values of each item's atoms in the item's lanes (and the extra ones), some of them split."""
        values: dict[Any, list[Any]] = {}
        for group in _maximal(lanes for lanes, _ in items.values()):
            members = _within(group, items, values)
            # By id: literals are not hashable.
            atoms = {id(atom): atom for _, wanted in members.values() for atom in wanted}
            swept = self._run(self._sweep(group + extra, forced), list(atoms.values()))
            found = dict(zip(atoms, swept, strict=True))
            for name, (lanes, wanted) in members.items():
                shown = group + extra, lanes + extra
                values[name] = [_kept(found[id(a)], *shown) for a in wanted]
        return values

    def evaluate(self, lanes: Lanes, read: list[Any]) -> list[Any]:
        """The values of variables in all lanes, outermost first."""
        return self._run(self._sweep(lanes, {}), read)

    def size(self, lane: int, forced: Replaced) -> int:
        """The number of lanes."""
        if lane == REPLICATE:
            return self.program.num_replicates
        if lane == ELEMENT:
            return next(f.mask.shape[0] for f, where in forced.values() if where.mask == (ELEMENT,))  # type: ignore[union-attr]
        return self.program.layouts[lane].size

    def _sweep(self, lanes: Lanes, forced: Replaced) -> Sweep:
        """A sweep of all lanes; enumerated sites among them take all their values.

        A replaced site with a lane that is not among `lanes` is left alone: nothing that is read depends on it.
        """
        program = self.program
        sizes = {lane: self.size(lane, forced) for lane in lanes if lane < 0}
        sweep = Sweep(program.sites, program.layouts, lanes, sizes)
        for i in lanes:
            if i >= 0 and not program.sites[i].strategy.is_weighted:
                sweep.enumerate(i)
        for i, (given, where) in forced.items():
            if set(where.value) <= set(lanes):  # type: ignore[arg-type]
                sweep.force(i, given, where.value, where.mask or ())  # type: ignore[arg-type]
        if is_on("rows"):
            sweep.put_rows_first()
        return sweep

    def _run(self, sweep: Sweep, read: list[Any]) -> list[Any]:
        given = self.invariants.around(sweep.values, read) if self.invariants else {}

        def base(key: Array, values: Any, apply: Apply) -> list[Any]:
            closed, inputs = self.program.closed, [*self.inputs, key]
            return optimised(closed, inputs, values, read, given, apply)

        return sweep.run(base, self.key, self.replicates)


def _within(group: Lanes, items: Mapping[Any, Item], values: Mapping[Any, Any]) -> dict[Any, Item]:
    """The items without values whose lanes are in a group."""
    return {
        name: item
        for name, item in items.items()
        if name not in values and set(item[0]) <= set(group)
    }


def _kept(x: Any, group: Lanes, lanes: Lanes) -> Any:
    """Without lanes on which an array does not depend (any one serves)."""
    return lanes_at([slice(None) if a in lanes else 0 for a in group], x)


def _maximal(sets: Iterable[Lanes]) -> list[Lanes]:
    """The lane tuples that are contained in no other."""
    distinct = sorted(set(sets), key=len, reverse=True)
    return [a for i, a in enumerate(distinct) if not any(set(a) < set(b) for b in distinct[:i])]
