"""Numbers that an objective takes row by row of a plate, and what shows that rows do not meet.

log mean exp, or any other function, of each row's weight is sound only if the weight of row n depends on the latent values of
row n alone: then the evidence is a product over rows. A plate declares independence and proves nothing. The relations of the
traced program do (`jaxprs/_relation.py`); rows may share parameters and data.

1. An aligned relation is a proof. A sum, a product of matrices, a sort over rows is refused.
2. What no relation decides (convolutions whose batch axes are merged, loops, scatters, primitives without a rule) is tried, in
   float64: all rows but some keep their values, and these must not move. `checks/_row_probe.py` does it once per shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..jaxprs import Analysis, Link, aligned
from ..strategies import StrategySite
from ..traces import SiteInfo, running_engine

Array = jax.Array
KIND = "rows"
MIXERS = frozenset(
    """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin dot_general sort rev top_k
    """.split()
)


class RowSuspect(NamedTuple):
    """Rows of which no relation says that they see a site's values in their own row only.

    Attributes:
        rows: atom of the traced program, its last axis the plate's rows.
        index: the site.
        axis: the plate's axis among those of the site's statement.
        plate: its name.
        why: the operation.
    """

    rows: Any
    index: int
    axis: int
    plate: str
    why: str


def keep_rows(rows: Array, plate: str) -> None:
    """Leave the rows' numbers, shape (rows,), in the running engine, to be checked when the program has been traced."""
    engine = running_engine()
    if engine is None or not engine.has_gradients or jnp.ndim(rows) != 1:
        return
    number = 1
    while engine.seen(address := f"rows:{plate}#{number}"):
        number += 1
    engine.frame.infos[address] = SiteInfo(address, KIND, (plate,), rows.shape, (), "")
    engine.frame.numbers[address] = {"rows": rows}


def row_suspects(
    infos: Mapping[str, SiteInfo],
    numbers: Mapping[str, dict[str, PyTree]],
    sites: Mapping[int, StrategySite],
    facts: Analysis,
) -> list[RowSuspect]:
    """Rows that are to be tried.

    Args:
        infos: descriptions of sites, and of the rows kept.
        numbers: address -> atoms of the traced program.
        sites: by index.
        facts: the program's analysis.

    Raises:
        ValueError: rows that share a latent value, or meet in an operation on them; naming site and plate.
    """
    found = []
    for address, kept in infos.items():
        if kept.kind != KIND:
            continue
        atom, plate = numbers[address]["rows"], str(kept.dims[0])
        for index, relation in facts[atom].relations.items():
            if not isinstance(index, int):
                continue
            site, info = sites[index], infos[sites[index].address]
            if plate not in info.dims:
                raise rows_meet(
                    site.address,
                    plate,
                    f"it lies outside of plate '{plate}' (its axes are {info.dims}), and all rows share it",
                )
            # Marker's layout: times, particles, then the value's own axes.
            axis, rank = info.dims.index(plate), len(info.batch_shape) + len(info.event_shape)
            link = relation[len(relation) - rank + axis]
            if link == aligned(len(atom.aval.shape) - 1):
                continue
            if link.kind == "mixed" and link.why not in MIXERS:
                found.append(RowSuspect(atom, index, axis, plate, link.why))
                continue
            raise rows_meet(site.address, plate, _meet(plate, link))
    return found


def _meet(plate: str, link: Link) -> str:
    how = f" ({link.why})" if link.why else ""
    return f"a row's log-weight depends on its values in other rows of plate '{plate}'{how}"


def rows_meet(site: str, plate: str, why: str) -> ValueError:
    """The error for rows that meet."""
    return ValueError(
        f"Site '{site}': per='{plate}' takes the weights row by row, but {why}, so that the evidence is no product over rows and "
        "the result would be no bound. Use per='joint', or let each row see its own latent values, data and parameters only."
    )
