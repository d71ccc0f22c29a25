"""Numbers that an objective takes row by row of a plate, and the proof that rows do not meet.

log mean exp, or any other function, of each row's weight is sound only if the weight of row n depends on the latent values of
row n alone: then the evidence is a product over rows. A plate declares independence and proves nothing; the relations of the
traced program do (`_relation.py`). Rows may share parameters and data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._dependence import Analysis
from ._engine import StrategySite
from ._relation import aligned
from ._running import running_engine
from ._sites import SiteInfo

Array = jax.Array
KIND = "rows"


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


def check_rows(
    infos: Mapping[str, SiteInfo],
    numbers: Mapping[str, Any],
    sites: Mapping[int, StrategySite],
    facts: Analysis,
) -> None:
    """Refuse rows that depend on a latent value of another row, or on one that rows share.

    Args:
        infos: descriptions of sites, and of the rows kept.
        numbers: address -> atoms of the traced program.
        sites: by index.
        facts: the program's analysis.

    Raises:
        ValueError: naming site and plate.
    """
    for address, kept in infos.items():
        if kept.kind != KIND:
            continue
        atom, (plate,) = numbers[address]["rows"], kept.dims
        for index, relation in facts[atom].relations.items():
            if not isinstance(index, int):
                continue
            site = sites[index]
            info = infos[site.address]
            if plate not in info.dims:
                why = f"it lies outside of plate '{plate}' (its axes are {info.dims}), and all rows share it"
            else:
                # Marker's layout: times, lanes, then the value's own axes.
                rank = len(info.batch_shape) + len(info.event_shape)
                link = relation[len(relation) - rank + info.dims.index(plate)]
                if link == aligned(len(atom.aval.shape) - 1):
                    continue
                how = f" ({link.why})" if link.why else ""
                why = f"a row's log-weight depends on its values in other rows of plate '{plate}'{how}"
            raise ValueError(
                f"Site '{site.address}': per='{plate}' takes the weights row by row, but {why}, so that the evidence is no "
                "product over rows and the result would be no bound. Use per='joint', or let each row see its own latent values, "
                "data and parameters only."
            )
