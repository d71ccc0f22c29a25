"""Whether draws of a program have the law that its density has: what simulates data asks before it trusts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from .. import ppl
from ..ppl.densities import Eliminated
from ..ppl.traces import SiteInfo


def altering_factors(sites: Mapping[str, SiteInfo]) -> list[str]:
    """Factors that give a program a density which its draws do not have."""
    return [n for n, s in sites.items() if s.kind == "factor" and s.alters_law]


def draws_of(label: str, found: PyTree) -> dict[str, Any]:
    """What a posterior function returned: latent sites by name.

    Raises:
        TypeError: no mapping.
    """
    if not isinstance(found, Mapping):
        raise TypeError(
            f"{label}: posterior_fn returned {type(found).__name__}, which tells no sites. Let it return a dict from latent "
            "sites to their draws, [draws, *site shape]."
        )
    return dict(found)


def refuse_unlike_draws(label: str, program: ppl.Program, sites: Mapping[str, SiteInfo]) -> None:
    """Refuse factors, scaled log-probs and eliminated sites where a posterior is judged on data that the program draws.

    Raises:
        ValueError: with all such sites; truths and data would be of another law than the posterior is one of.
    """
    if isinstance(program, Eliminated):
        raise ValueError(
            f"{label}: {program!r} draws {list(program.sites)} from their posterior given the arguments, and data after them, so "
            "that truths and data would not be of the model's joint law. Give the program that it was made of, program.program."
        )
    factors = altering_factors(sites)
    scales = {n: s.scale for n, s in sites.items() if s.kind != "deterministic" and s.scale != 1.0}
    if not factors and not scales:
        return
    parts = [f"sites {factors} are factors"] if factors else []
    parts += [f"log-probs are scaled by {scales}"] if scales else []
    raise ValueError(
        f"{label}: {' and '.join(parts)}. They change the density of the model but not the data that it draws, so that the exact "
        "posterior would be judged wrong and a wrong one right. Give a program without them: write a factor as the law of its "
        "site, and use all rows in place of subsampling or handlers.scale."
    )
