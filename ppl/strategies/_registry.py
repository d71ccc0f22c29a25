"""Strategies by name, and which of them serve a law: the only list of names."""

from __future__ import annotations

from collections.abc import Callable

import numpyro.distributions as dist

from .._calls import did_you_mean
from ..distributions import support_of_law
from ._boundary import Boundary
from ._disarm import ARM, DisARM
from ._enum import Enum
from ._mvd import MVD
from ._pathwise import Implicit, Reparam
from ._reinforce import Reinforce
from ._rejection import RejectionReparam
from ._relax import Rebar
from ._relaxed import GumbelSoftmax, StraightThrough
from ._strategy import Strategy

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "reparam": Reparam,
    "implicit": Implicit,
    "rejection_reparam": RejectionReparam,
    "reinforce": Reinforce,
    "reinforce_loo": lambda: Reinforce("leave-one-out"),
    "enum": Enum,
    "mvd": MVD,
    "disarm": DisARM,
    "arm": ARM,
    "rebar": Rebar,
    "boundary": Boundary,
    "gumbel_softmax": GumbelSoftmax,
    "straight_through": StraightThrough,
}
# `strategies="auto"` takes the first of these that serves a site, for the reason given.
AUTO_SUPPORT = 32
AUTO = {
    "reparam": "differentiable sampler",
    "enum": f"at most {AUTO_SUPPORT} values",
    "mvd": "weak derivative known",
    "reinforce_loo": "general",
}
# What `inference.diagnostics.pilot` tries: unbiased strategies, without "implicit" ("reparam" by another name), "arm" (never
# better than "disarm") and "boundary" (for jumps only).
TRIED = (
    "reparam", "rejection_reparam", "enum", "mvd", "disarm", "reinforce_loo", "rebar", "reinforce",
)  # fmt: skip


def as_strategy(chosen: object, site: str = "*") -> Strategy:
    """A strategy from itself or its name.

    Raises:
        ValueError: unknown name.
        TypeError: neither a Strategy nor a string; a value that is held, and no surrogate.
    """
    if isinstance(chosen, Strategy):
        if not (chosen.is_pathwise or chosen.is_enumerated or chosen.has_surrogate):
            raise TypeError(
                f"Site '{site}': strategy '{chosen.name}' is of kind '{chosen.kind}' and defines no surrogate, so that its "
                "gradient would lack a part. Define `surrogate`, or set kind = 'pathwise' if the value carries the gradient."
            )
        return chosen
    if isinstance(chosen, str):
        if chosen not in STRATEGIES:
            raise ValueError(
                f"Site '{site}': no strategy named '{chosen}'.{did_you_mean(chosen, [*STRATEGIES, 'auto'])} Choose "
                f"from {[*STRATEGIES, 'auto']}."
            )
        return STRATEGIES[chosen]()
    raise TypeError(
        f"Site '{site}': a strategy is a ppl.strategies.Strategy or a name, got {type(chosen).__name__}. Give "
        f"one of {', '.join(sorted(STRATEGIES))}, or an instance such as ppl.Reinforce()."
    )


def advice(name: str, base: dist.Distribution) -> str:
    """What to choose instead, for a message."""
    able = sound(base)
    if able:
        return f"Sound here: choose one of {able}, e.g. strategies={{'{name}': '{able[0]}'}}."
    return (
        f"No strategy is sound here: its support is {support_of_law(base)}. Draw from a law with a fixed support and transform "
        "the draw, or give its parts sites of their own."
    )


def sound(base: dist.Distribution) -> list[str]:
    """Names of the strategies that serve a distribution without bias."""
    able = {name: make() for name, make in STRATEGIES.items()}
    able = {n: s for n, s in able.items() if not s.is_biased and s.refuse(base) is None}
    if support_of_law(base).unknown:  # where scores are refused
        return [n for n, s in able.items() if s.is_pathwise or s.is_enumerated]
    return list(able)
