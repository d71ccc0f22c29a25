"""What an expectation will do, told before it does it."""

from __future__ import annotations

import dataclasses
import math

from jaxtyping import PyTree

from .._show import shown
from .._table import table
from ..enumeration import mixing
from ..strategies import Decision
from ._analysed import Analysed
from ._flip_groups import num_flips
from ._half_cut import half_cut
from ._replay import replay_axes


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """One site's estimator.

    Attributes:
        site: address.
        distribution: class name.
        shape: shape of the site's elements, outermost axis first.
        event_shape: shape of one element's draw.
        strategy: name of the strategy.
        why: how it was chosen.
        evaluations: evaluations of what lies downstream, in words.
        is_biased: whether the estimator is biased.
    """

    site: str
    distribution: str
    shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    strategy: str
    why: str
    evaluations: str
    is_biased: bool


@shown
@dataclasses.dataclass(frozen=True)
class Plan:
    """The estimators of all sites; `print(plan)` shows a table, and so does a notebook.

    Attributes:
        sites: in program order.
        num_replicates: independent runs of the program in one estimate.
        num_terms: additive terms into which the result was split (0 when every site is pathwise: nothing to
            split).
        label: what is estimated, if it has a name.
        search: what the check of jumps suspected, and how long the search took.
        cut: draws that a `stop_gradient` of the function holds fixed in one factor of a product and not in another, in words;
            which derivative is meant cannot be seen, and it is taken at its word.
    """

    sites: tuple[SitePlan, ...]
    num_replicates: int
    num_terms: int
    label: str = ""
    search: str = ""
    cut: str = ""

    def __getitem__(self, site: str) -> SitePlan:
        for plan in self.sites:
            if plan.site == site:
                return plan
        raise KeyError(
            f"The plan has no latent site '{site}'. Name one of {[p.site for p in self.sites]}."
        )

    def _facts(self) -> dict[str, PyTree]:
        return {
            "of": self.label or None,
            "strategies": {p.site: _strategy(p) for p in self.sites},
            "num_replicates": self.num_replicates,
            "num_terms": self.num_terms,
            "jumps": self.search or None,
            "stop_gradient": self.cut or None,
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        has_events = any(p.event_shape for p in self.sites)
        event = lambda text: (text,) if has_events else ()
        head = ("site", "distribution", "shape", *event("event"))
        rows: list[tuple[str, ...]] = [(*head, "strategy", "evaluations downstream", "why")]
        for p in self.sites:
            row = (p.site, p.distribution, str(p.shape), *event(str(p.event_shape)))
            rows.append((*row, _strategy(p), p.evaluations, p.why))
        return [rows]

    def __str__(self) -> str:
        footer = f"{self.num_replicates} run(s) per estimate, {self.num_terms} additive terms"
        footer += f"\njumps: {self.search}" if self.search else ""
        footer += f"\nstop_gradient: {self.cut}" if self.cut else ""
        title = f"{self.label}\n" if self.label else ""
        return title + table(*self._tables()) + "\n" + footer


def _strategy(site: SitePlan) -> str:
    return site.strategy + (" (biased)" if site.is_biased else "")


def plan_of(program: Analysed, num_params: int) -> Plan:
    """The plan of an analysed program, whose first `num_params` inputs are parameters."""
    rows = []
    for index, site in program.sites.items():
        uses = [r[index] for r in program.relations if index in r]
        strategy = site.strategy
        if strategy.is_pathwise:
            cost = "1"
        elif not uses:
            cost = "0 (nothing downstream)"
        elif strategy.is_enumerated:
            layout = program.layouts[index]
            cost = f"{layout.size}"
            if layout.axis is not None:
                cost = f"forward recursion, {layout.size} states x {site.sizes[layout.axis]} steps"
                if layout.lag != 1:
                    cost += f" (memory of {layout.lag} steps)"
            if layout.joint:
                what = "weights multiply" if strategy.is_weighted else "elements meet"
                cost += f" ({what}: {layout.why_joint})"
        elif isinstance(strategy, Decision):
            cost = strategy.cost(None, num_flips(site, index, program.relations))
        else:
            together = "replay_together" in strategy.calls and "replay" not in strategy.calls
            axes = tuple(
                i
                for i in replay_axes(site, index, program.site_relations, together=together)
                if any(u[i].kind != "aligned" for u in uses) and site.sizes[i] > 1
            )
            elements = math.prod(site.sizes[i] for i in axes)
            cost = strategy.cost(site.num_values, elements)
            if axes and elements > 1 and cost != "1":
                cost += f" (elements meet: {mixing(uses, axes)})"
        rows.append(
            SitePlan(
                site.address,
                site.distribution,
                site.sizes,
                site.event_shape,
                strategy.name,
                site.why,
                cost,
                strategy.is_biased,
            )
        )
    return Plan(
        tuple(rows), program.num_replicates, len(program.terms), cut=_cut(program, num_params)
    )


def _cut(program: Analysed, num_params: int) -> str:
    """See `Plan.cut`."""
    found = half_cut(program.closed.jaxpr, num_params)
    if not found:
        return ""
    names = ", ".join(dict.fromkeys(f"'{program.sites[i].name}'" for i in sorted(found)))
    places = ", ".join(dict.fromkeys(line for lines in found.values() for line in lines))
    return (
        f"taken at its word. {places} cuts a number computed from draws of {names}, and they still move in what it is multiplied "
        "by. Draws that are to be fixed come from ppl.draw(ppl.detached(guide), ...)"
    )
