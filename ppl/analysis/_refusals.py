"""What an analysed program is refused for: strategies that would miss a part of the derivative, by site and remedy."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import PyTree

from .._compat import Jaxpr
from ..enumeration import is_fully_enumerated
from ..jaxprs import PARAMS, Analysis, Relations, other_derivatives, site_p
from ..strategies import GAMMA_FAMILY, Boundary, StrategyError, StrategySite
from ._analysed import Numbers


def check_relaxed(
    sites: dict[int, StrategySite], relations: list[Relations], upstream: dict[int, Relations]
) -> None:
    """Refuse relaxed values where a sampled site lies downstream: its draw jumps as they move."""
    for index, site in sites.items():
        if "slope" not in site.strategy.calls:
            continue
        jumping = [
            other.address
            for i, other in sites.items()
            if index in upstream[i]
            and not other.strategy.is_pathwise
            and other.strategy.kind != "enumerated"
            and any(i in r for r in relations)
        ]
        if jumping:
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy '{site.strategy.name}' differentiates the cost at relaxed values, "
                f"but the sampled site '{jumping[0]}' depends on this one, and its draw would jump. Enumerate "
                f"'{jumping[0]}', or use 'disarm', 'reinforce' or ppl.Relax for '{site.address}', e.g. "
                f"strategies={{'{site.name}': 'reinforce'}}.",
            )


def check_sites(sites: dict[int, StrategySite], table: dict[int, Numbers], facts: Analysis) -> None:
    """Refuse sites whose strategy has no derivative in what `facts` calls a parameter.

    Raises:
        StrategyError: naming site and remedy.
    """
    _check_supports(sites, facts)
    _check_fixed(sites, table, facts)


def _check_supports(sites: dict[int, StrategySite], facts: Analysis) -> None:
    """Refuse scores of sites whose support moves, or may."""
    for index, site in sites.items():
        if site.strategy.is_pathwise or is_fully_enumerated(site):
            continue
        # What the support may move with. A score is blind to the boundary's share of the derivative.
        moved = set(facts.supports[index].relations)
        pathwise = {i for i in moved if isinstance(i, int) and sites[i].strategy.moves_value}
        if not (PARAMS in moved or pathwise or site.unknown_support):
            continue
        if PARAMS in moved:
            what = f"the support of {site.distribution} depends on a parameter"
        elif pathwise:
            what = (
                f"the support of {site.distribution} depends on the reparameterised site "
                f"'{sites[min(pathwise)].address}'"
            )
        else:
            what = (
                f"the support of {site.distribution} cannot be known, since {site.unknown_support}"
            )
        raise StrategyError(
            site.name,
            f"Site '{site.address}': {what}, so strategy '{site.strategy.name}' would miss the boundary's part of the "
            f"gradient. {_fixed_support(site)} (Where the density vanishes at the edge that moves, that part is zero, but nobody "
            "looks: draw such a law, too, from a fixed support, e.g. b of Beta(2, 2), then low + (high - low) * b, which has "
            "the same gradient.)",
        )


def _fixed_support(site: StrategySite) -> str:
    """What to do about a support that moves: only what serves this site."""
    remedies = ["'reparam'"] if site.is_reparameterisable else []
    remedies.append(
        "a fixed support that is transformed afterwards (u of Uniform(0, 1), then low + (high - low) * u)"
        if not site.distribution.startswith("Mixture")
        else "a site for the component and one for the value in each, each with its own strategy"
    )
    if site.unknown_support:
        remedies.append("declare the law's `support` as a set")
    return f"Use {', or '.join(remedies)}."


def check_partly_pathwise(sites: dict[int, StrategySite], jaxpr: Jaxpr) -> None:
    """Refuse derivatives of the program's own where only a part of the estimate would follow them."""
    for index, site in sites.items():
        if not site.strategy.is_partly_pathwise:
            continue
        # Rules of derivatives of the program's own (custom_jvp, straight-through, ...) downstream of the draw.
        starts = lambda eqn, i=index: eqn.primitive is site_p and eqn.params["index"] == i
        if found := sorted(other_derivatives(jaxpr, jaxpr.outvars[:1], starts)):
            rest, remedy = "a score", "'reinforce' (which sees values only)"
            if isinstance(site.strategy, Boundary):
                rest, remedy = (
                    "made of jumps of values",
                    "ppl.Boundary('reinforce') (which sees values only)",
                )
            follows = "'implicit'" if site.distribution in GAMMA_FAMILY else "'reparam'"
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy '{site.strategy.name}' is in part a pathwise derivative and in part {rest}, "
                f"and {found[0]} downstream changes the first part only, so the estimate would be that of neither program. "
                f"Use {follows} (which follows the program's own derivatives) or {remedy}, e.g. "
                f"strategies={{'{site.name}': {follows}}}.",
            )


def _check_fixed(
    sites: dict[int, StrategySite], table: dict[int, Numbers], facts: Analysis
) -> None:
    """Refuse parameters of laws that move and in which the strategy has no derivative."""
    for index, site in sites.items():
        for name, atom in zip(site.fixed, table[index].fixed, strict=True):
            if not _moves(sites, facts[atom].relations):
                continue
            # What has a derivative there: implicit ones for gamma's shape, scores where the support stands still.
            able = ["'implicit'"] if site.distribution in GAMMA_FAMILY else []
            able += [] if _moves(sites, facts.supports[index].relations) else ["'reinforce'"]
            remedy = f"Use {' or '.join(able)}, or keep" if able else "Keep"
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy '{site.strategy.name}' gives no derivative in "
                f"'{name}' of {site.distribution}, which depends on parameters. {remedy} '{name}' constant.",
            )


def _moves(sites: dict[int, StrategySite], sources: Iterable[PyTree]) -> bool:
    """Whether parameters are among the sources, or a site whose value moves with them."""
    return any(
        s == PARAMS or (isinstance(s, int) and sites[s].strategy.moves_value) for s in sources
    )
