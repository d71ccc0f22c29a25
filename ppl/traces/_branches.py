"""One site name in both branches of `ppl.cond`: what must agree, so that it is one site whichever branch is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..jaxprs import union
from ._sites import Region, SiteInfo


def check_infos(
    infos: tuple[Mapping[str, SiteInfo], Mapping[str, SiteInfo]],
    numbers: tuple[dict[str, PyTree], dict[str, PyTree]],
) -> None:
    """Refuse statements that agree in their name only: the site's description and arrays leave the branches as one.

    Args:
        infos: descriptions by address in both branches.
        numbers: shapes of the arrays that were recorded.

    Raises:
        ValueError: naming the site and the difference.
    """
    for name in infos[0].keys() & infos[1].keys():
        a, b = infos[0][name], infos[1][name]
        for what in (
            "kind",
            "batch_shape",
            "event_shape",
            "dims",
            "scale",
            "is_auxiliary",
            "is_imputed",
        ):
            one, other = getattr(a, what), getattr(b, what)
            if one != other:
                raise _differs(
                    name,
                    f"with {what} {one!r} ({a.distribution})",
                    f"with {other!r} ({b.distribution})",
                )
        if [r.kind for r in a.regions] != [r.kind for r in b.regions] or _axes(a) != _axes(b):
            raise _differs(name, f"within {_words(a.regions)}", f"within {_words(b.regions)}")
        # What one branch records leaves the cond in the places of what the other does: equal shapes and types.
        one, other = (_arrays(n.get(name)) for n in numbers)
        if one != other:
            raise _differs(name, f"with numbers {one}", f"with {other}")


def shared_regions(
    one: Mapping[str, SiteInfo], other: Mapping[str, SiteInfo]
) -> dict[str, tuple[Region, ...]]:
    """Site of both branches -> the regions around it, that of the cond first."""
    # Of a region that is shorter in one branch the rest of the other one's steps belong to no shared site.
    least = lambda a, b: a if a.size <= b.size else b
    return {
        n: (Region("cond", None, 2), *map(least, one[n].regions, other[n].regions))
        for n in one.keys() & other.keys()
    }


def _axes(info: SiteInfo) -> list[Region]:
    return [r for r in info.regions if r.axis is not None]


def joined(a: Any, b: Any) -> Any:
    """The site of the engine that stands in both branches as `a` and as `b`.

    Raises:
        ValueError: another distribution class, shape, strategy or set of enumerated values.
    """
    alike = ("distribution", "shape", "num_values", "fixed", "regions")
    same = all(getattr(a, what) == getattr(b, what) for what in alike)
    if not same or _chosen(a.strategy) != _chosen(b.strategy):
        raise _differs(
            a.address,
            f"as {a.distribution}{a.shape} under '{a.strategy.name}'",
            f"as {b.distribution}{b.shape} under '{b.strategy.name}'",
        )
    if a.support is not None and not np.array_equal(a.support, b.support):
        raise _differs(
            a.address,
            f"with the values {_values(a.support)}",
            f"with {_values(b.support)}, and strategy '{a.strategy.name}' sums over one set of values",
        )
    # What is claimed of the joint site is what holds in either branch: the weaker statement, the wider range.
    return dataclasses.replace(
        b,
        is_unbounded=a.is_unbounded and b.is_unbounded,
        unknown_support=a.unknown_support or b.unknown_support,
        bounds=a.bounds if a.bounds == b.bounds else None,
        range=union([a.range, b.range]),
        is_reparameterisable=a.is_reparameterisable and b.is_reparameterisable,
    )


def _differs(name: str, one: str, other: str) -> ValueError:
    return ValueError(
        f"Site '{name}' stands in both branches of a ppl.cond {one} and {other}. One name is one site: give both the same "
        "distribution class, shape, support and strategy, or use two names."
    )


def _chosen(strategy: Any) -> Any:
    return type(strategy), strategy.name, getattr(strategy, "allow_jumps", False)


def _arrays(numbers: PyTree) -> list[str]:
    numbers = {name: x for name, x in (numbers or {}).items() if name != "reach"}
    leaves = jax.tree_util.tree_leaves_with_path(numbers)
    return [f"{jax.tree_util.keystr(p)}{x.dtype}{list(x.shape)}" for p, x in leaves]


def _words(regions: Any) -> str:
    return ", ".join(f"{r.kind} of size {r.size}" for r in regions) or "no other region"


def _values(support: object) -> str:
    return np.array2string(np.asarray(support), threshold=6)
