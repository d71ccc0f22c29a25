"""What is known of an analysed program."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import PyTree

from .._compat import ClosedJaxpr
from ..enumeration import Dimensions
from ..evaluation import Layout
from ..jaxprs import Analysis, Relations, Term
from ..strategies import StrategySite
from ..traces import SiteInfo
from ._rows import RowSuspect


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Where a site's numbers stand in the traced program: atoms of its jaxpr."""

    value: PyTree
    log_prob: Any
    active: Any
    fixed: tuple[Any, ...]
    local: tuple[PyTree, ...]
    local_tree: Any

    @property
    def probabilities(self) -> tuple[PyTree, ...]:
        """Those that may be 0, where the strategy misses such values (`distributions/_null_values.py`)."""
        return jax.tree.unflatten(self.local_tree, self.local)[1]

    @property
    def read(self) -> tuple[PyTree, ...]:
        """The atoms that an estimate may read in dimensions of enumerated sites."""
        return (self.log_prob, self.active, *self.local)


@dataclasses.dataclass(frozen=True)
class Analysed:
    """A traced program with all that the estimator needs.

    Attributes:
        closed: the traced program; its inputs are the leaves of the parameters and the key.
        result: atom of the scalar result.
        terms: additive terms of the result.
        relations: per term, its closed relations to the sites that are not pathwise.
        site_relations: per site index, its closed relations to sites upstream.
        sites: by index.
        numbers: by index.
        scores: terms that are the log-prob of a sampled site at its own draw. Their derivative has mean zero, so it is left out.
        layouts: by index, for enumerated sites with something downstream.
        dimensions: in those of which enumerated sites terms and numbers of sites are evaluated.
        num_replicates: independent runs of the program.
        infos: site descriptions by address, in program order.
        plates: plate sizes.
        rows: rows of plates that may meet, to be tried.
        subsampled: plates that stand for more rows than they run on: name -> (rows they run on, rows they stand for).
        alarmed: eliminated programs that may have a probability of 0 which parameters move.
        is_controlled: the function returns a `Controlled`; the program is that of the coefficient 1.
    """

    closed: ClosedJaxpr
    result: Any
    terms: list[Term]
    relations: list[Relations]
    site_relations: dict[int, Relations]
    sites: dict[int, StrategySite]
    numbers: dict[int, Numbers]
    scores: frozenset[int]
    layouts: dict[int, Layout]
    dimensions: Dimensions
    num_replicates: int
    infos: dict[str, SiteInfo]
    plates: dict[str, int]
    facts: Analysis
    out_dtype: Any
    rows: list[RowSuspect]
    subsampled: dict[str, tuple[int, float]]
    alarmed: set[str]
    is_controlled: bool = False

    @property
    def may_have_null_values(self) -> bool:
        """Whether a parameter may move a probability of 0 that a site's strategy misses (`distributions/_null_values.py`)."""
        return bool(self.alarmed) or any(n.probabilities for n in self.numbers.values())

    @property
    def is_pathwise(self) -> bool:
        """Whether every site is pathwise: the program is then differentiated as it stands."""
        return all(site.strategy.is_pathwise for site in self.sites.values())
