"""Relations: which elements of an array depend on which elements of a site.

Terms
- A *source* is a latent site (by index), `PARAMS`, or the address of a random key (`_primitive.mark_key`).
- A *relation* of an array to a source has one `Link` per axis of the source's value. `aligned(a)`: element i
of the array
  along its axis a depends only on element i of the source along this axis. `causal(a)`: only on elements <=
  i; `causal(a, lag)`: only on elements i - lag, ..., i. `mixed`: possibly on all.
  The links of a relation hold together (conjunction). An array with no relation to a source does not depend
  on it.
- An axis is an integer, or `Time(scan)` inside the body of a scan: the current step.

Invariant: every operation only weakens what is not certain, so "aligned" is a proof and "mixed" is not an
accusation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

PARAMS = "params"
MAX_LAG = 3  # a longer memory counts as unlimited


class Time(NamedTuple):
    """The current step of scan number `scan`."""

    scan: int


class Link(NamedTuple):
    """How an array depends on a source along one axis of the source."""

    kind: str
    axis: int | Time | None = None
    why: str = ""
    lag: int | None = 0  # how many elements back it reaches; None: to the first


Relation = tuple[Link, ...]
Relations = dict[int | str, Relation]


def aligned(axis: int | Time) -> Link:
    """Element by element."""
    return Link("aligned", axis)


def causal(axis: int | Time, lag: int | None = None) -> Link:
    """On elements up to its own, at most `lag` back."""
    return Link("causal", axis, lag=lag if lag is not None and lag <= MAX_LAG else None)


def mixed(why: str) -> Link:
    """Possibly on all elements; `why` names the operation that mixed them."""
    return Link("mixed", None, why, None)


def _longest(a: Link, b: Link) -> int | None:
    return None if a.lag is None or b.lag is None else max(a.lag, b.lag)


def join_links(a: Link, b: Link) -> Link:
    """The strongest link that both imply."""
    if a.kind == "mixed" or a == b:
        return a
    if b.kind == "mixed":
        return b
    if a.axis == b.axis:
        return causal(a.axis, _longest(a, b))  # type: ignore[arg-type]
    return mixed("two different axes")


def join(many: Iterable[Relations]) -> Relations:
    """The relations of an array computed from arrays with these relations."""
    out: Relations = {}
    for relations in many:
        for source, relation in relations.items():
            old = out.get(source)
            out[source] = (
                relation
                if old is None
                else tuple(join_links(a, b) for a, b in zip(old, relation, strict=True))
            )
    return out


def move(relations: Relations, axis_of: Callable[[int], int | Time | None], why: str) -> Relations:
    """Rename integer axes; an axis that maps to None is mixed."""

    def link(old: Link) -> Link:
        if not isinstance(old.axis, int):
            return old
        new = axis_of(old.axis)
        if new is None:
            return mixed(why)
        return old._replace(
            axis=new if isinstance(new, Time) else int(new)
        )  # rules may count in NumPy integers

    return {source: tuple(map(link, relation)) for source, relation in relations.items()}


def close_time(
    relations: Relations, scan: int, axis: int | None, *, later: bool = False
) -> Relations:
    """Leave the body of a scan: its Time becomes `axis` (None: mixed); `later`: the value reaches the next step."""

    def link(old: Link) -> Link:
        if old.axis != Time(scan):
            return old
        if later:
            return causal(Time(scan), None if old.lag is None else old.lag + 1)
        return mixed("scan carry") if axis is None else old._replace(axis=axis)

    return {source: tuple(map(link, relation)) for source, relation in relations.items()}


def compose(outer: Relation, inner: Relation) -> Relation:
    """The relation of x to s through r, from x's relation to r (`outer`) and r's relation to s (`inner`)."""

    def link(via: Link) -> Link:
        if via.kind == "mixed":
            return via
        if not isinstance(via.axis, int):
            return mixed("an open scan")
        end = outer[via.axis]
        if end.kind == "mixed" or via.kind == "aligned":
            return end
        lag = None if via.lag is None or end.lag is None else via.lag + end.lag
        return causal(end.axis, lag)  # type: ignore[arg-type]

    return tuple(map(link, inner))
