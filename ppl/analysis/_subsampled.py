"""Plates that stand for more rows than they run on: their rows must not meet.

A plate of N rows that runs on a random subset S of m of them scales the log-probs inside by N / m, and

    E_S[N / m * sum_{i in S} t_i] = sum_i t_i

holds for terms t_i that see row i alone: its latent values, its data, and what lies outside of the plate. A row that sees another
one (the mean over the rows, batch normalisation, a neighbour) sees S instead, and so does a term outside of the plate that
sees rows at all. Both are other numbers than all rows give, and no scale would mend them.

*Rows* of a plate are the sites inside, the indices that it draws, and, where a program does not use the indices, the arguments
with m rows as their leading axis (those that a fit slices). For every term, the log-prob of one site in model or guide:

1. inside of the plate its relation (`jaxprs/_relation.py`) to each of them is aligned, outside there is none: a proof, for any
data.
2. A sum, a product of matrices, a sort over rows is refused.
3. What no relation decides is tried (`checks/_row_probe.py`): the other rows are given new values, data and indices.

The program is traced once more for this, with arguments and indices as inputs, if it subsamples at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._compat import ClosedJaxpr, Literal, own_caches
from ..jaxprs import Analysis, Link, aligned, shape_of
from ..strategies import Engine, StrategySite
from ..traces import TERM, SiteInfo
from ._rows import MIXERS

ARGUMENT = "argument:"


class SiteDensity(NamedTuple):
    """The log-prob of one site: its name, its program, its description, and the atom in the traced program."""

    site: str
    program: str
    info: SiteInfo
    atom: Any

    def axis(self, plate: str) -> int | None:
        """The plate's axis in the atom; None: the site lies outside."""
        if plate not in self.info.dims:
            return None
        return len(shape_of(self.atom)) - len(self.info.dims) + self.info.dims.index(plate)


class Meeting(NamedTuple):
    """A term of which no relation says that it keeps the rows of a plate apart; `link`: to the rows that it may see."""

    term: SiteDensity
    plate: str
    source: int | str
    link: Link

    @property
    def is_certain(self) -> bool:
        """Whether there is nothing to try."""
        return self.link.kind != "mixed" or self.link.why in MIXERS


@dataclasses.dataclass(frozen=True)
class RowProgram:
    """A program traced with its rows as inputs, in this order: parameters, data, indices of plates, key.

    Attributes:
        closed: the traced program.
        num_params: leaves of its parameters.
        num_data: leaves of its data.
        plates: name -> (rows that it runs on, rows that it stands for).
        sites: by index.
        infos: descriptions of sites by address.
        values: by index, atoms of the sites' values.
        terms: log-probs.
        facts: its analysis.
    """

    closed: ClosedJaxpr
    num_params: int
    num_data: int
    plates: Mapping[str, tuple[int, float]]
    sites: Mapping[int, StrategySite]
    infos: Mapping[str, SiteInfo]
    values: Mapping[int, Any]
    terms: list[SiteDensity]
    facts: Analysis

    def rows(self, plate: str) -> list[int]:
        """Numbers of the data that are rows of a plate."""
        if any(_index(plate) in self.facts[t.atom].relations for t in self.terms):
            return []  # it takes its rows itself, by the indices
        variables = self.closed.jaxpr.invars[self.num_params :][: self.num_data]
        size = self.plates[plate][0]
        return [n for n, v in enumerate(variables) if shape_of(v)[:1] == (size,)]


def traced_rows(
    fn: Callable[..., PyTree],
    params: PyTree,
    data: list[PyTree],
    plates: Mapping[str, tuple[int, float]],
    key: jax.Array,
    *,
    strategies: Any,
    demoted: Mapping[str, PyTree],
) -> RowProgram:
    """Trace `fn(params, data)` with the indices that plates draw as inputs."""
    record: dict[str, Any] = {}

    def run(params: PyTree, data: list[Array], rows: dict[str, PyTree], key: jax.Array) -> PyTree:
        engine = Engine(key, strategies, demoted, rows=rows)
        with jax.disable_jit(False), own_caches(), engine:
            fn((params, data))
        record.update(sites=engine.frame.sites, infos=engine.frame.infos)
        return engine.frame.numbers

    # The drawn indices are inputs, so that what an equation does with them is seen like any other dependence.
    rows = {p: jax.ShapeDtypeStruct((n,), jnp.arange(1).dtype) for p, (n, _) in plates.items()}
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(params, data, rows, key)
    numbers = jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
    num_params, num_data = len(jax.tree.leaves(params)), len(data)
    # Inputs in order: parameters, data, indices by plate name, key. The middle two are what is asked about.
    sources = {num_params + n: _argument(n) for n in range(num_data)}
    sources |= {num_params + num_data + n: _index(p) for n, p in enumerate(sorted(rows))}
    sites = {s.index: s for s in record["sites"].values()}
    draws = {i: (s.range, s.noise) for i, s in sites.items()}
    flags = [i < num_params for i in range(len(closed.jaxpr.invars))]
    infos = {a: i for a, i in record["infos"].items() if i.kind != TERM}
    # A log-prob that is a constant of the trace sees no rows.
    terms = [
        SiteDensity(i.name, i.distribution, i, numbers[a]["term"])
        for a, i in record["infos"].items()
        if i.kind == TERM and not isinstance(numbers[a]["term"], Literal)
    ]
    return RowProgram(
        closed, num_params, num_data, plates, sites, infos,
        {i: numbers[s.address]["value"] for i, s in sites.items()}, terms, Analysis(closed, flags, draws, sources=sources),
    )  # fmt: skip


def meetings(program: RowProgram) -> list[Meeting]:
    """Terms that are to be tried.

    Raises:
        ValueError: rows of a plate meet, or a term outside sees them.
    """
    found: list[Meeting] = []
    of_data: dict[str, list[list[Meeting]]] = {}
    for plate in program.plates:
        # A row may be seen through values drawn in the plate, through the indices, or through the data.
        inside = [i for i, s in program.sites.items() if plate in program.infos[s.address].dims]
        for source in (*inside, _index(plate)):
            found += _of(program, plate, source)
        for n in program.rows(plate):
            of_data.setdefault(_argument(n), []).append(_of(program, plate, _argument(n)))
    # What may be rows of several plates, all of one size, is those of one.
    for many in of_data.values():
        found += min(many, key=lambda met: (sum(m.is_certain for m in met), len(met)))
    for meeting in found:
        if meeting.is_certain:
            raise population_differs(program, meeting, "")
    return found


def _of(program: RowProgram, plate: str, source: int | str) -> list[Meeting]:
    """Terms that may see rows of a plate that are not theirs."""
    found = []
    for term in program.terms:
        relation = program.facts[term.atom].relations.get(source)
        if relation is None:
            continue
        # Data and indices have rows as their first axis.
        link, axis = relation[0], term.axis(plate)
        if isinstance(source, int):  # marker's layout: times, particles, then the value's own axes
            info = program.infos[program.sites[source].address]
            rank = len(info.batch_shape) + len(info.event_shape)
            link = relation[len(relation) - rank + info.dims.index(plate)]
        # Soundly scaled is a term whose row n along the plate sees row n of the source and no other.
        if axis is None or link != aligned(axis):
            found.append(Meeting(term, plate, source, link))
    return found


def population_differs(program: RowProgram, meeting: Meeting, how: str) -> ValueError:
    """The error for rows that meet; `how` it was found, or "" where a relation shows it."""
    term, plate, source, link = meeting
    rows, full = program.plates[plate]
    if isinstance(source, int):
        what = f"of site '{program.sites[source].address}'"
    elif source == _index(plate):
        what = "that the plate draws (its indices, and what they pick)"
    else:
        what = f"of array {int(source.removeprefix(ARGUMENT)) + 1} among the arguments"
    if term.axis(plate) is None:
        seen = f"lies outside of the plate (its axes are {term.info.dims}) and depends on the rows {what}"
        remedy = "Move it into the plate, if it is a sum over rows; else use all rows"
    else:
        seen = f"has a row whose log-prob depends on other rows {what}"
        remedy = "Let a row see its own values, data and what lies outside of the plate only, or use all rows"
    how = how or (f"operation: {link.why}" if link.why else "")
    extra = (
        f" An array whose leading axis has size {rows} counts as rows; one that is none is closed over, or given another shape."
        if isinstance(source, str) and source.startswith(ARGUMENT)
        else ""
    )
    return ValueError(
        f"Site '{term.site}' of {term.program}: plate '{plate}' runs on {rows} rows that stand for {full:g}, and the site {seen}"
        f"{f' ({how})' if how else ''}. Scaled, value and gradient would be those of another number than all rows give. "
        f"{remedy}.{extra}"
    )


def _index(plate: str) -> str:
    return f"index:{plate}"


def _argument(number: int) -> str:
    return f"{ARGUMENT}{number}"
