"""How a particle method draws the sites of a program that is differentiated.

A site is drawn *pathwise* where its distribution has a differentiable sampler and no strategy of another kind is asked for:
the value carries the derivative. Any other site is *scored*: its value carries none, and its log-prob enters a score factor
(`resampling/_differentiable.py`), or, without one, a derivative with respect to its parameters is refused.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from ....ppl._types import Message
from ....ppl.densities import refuse_scaled
from ....ppl.distributions import is_masked
from ....ppl.strategies import Boundary, Pathwise, as_strategy, element, has_rsample
from ..population import drawn, floats
from ..resampling import Differentiation

if TYPE_CHECKING:
    from ._traced import TracedProgram

Array = jax.Array
stop = jax.lax.stop_gradient


class SiteDraws:
    """The draws of one program.

    Args:
        gradient: what the run is told about its derivative; without it there is no score factor.

    Attributes:
        scored: names of the scored sites met so far.
        matched: patterns of `strategies` that matched a site.
    """

    def __init__(self, gradient: Differentiation | None) -> None:
        self.has_scores = gradient is not None
        self.strategies: Mapping[str, Any] = {} if gradient is None else gradient.sites
        self.scored: set[str] = set()
        self.matched: set[str] = set()

    def __call__(self, msg: Message, key: Array) -> Array:
        """Draw the value of a sample statement."""
        fn, name = msg["fn"], msg["name"]
        value = fn.sample(key)
        if self._is_pathwise(msg):
            return value
        if self.has_scores:
            if is_masked(fn) and not msg["infer"].get("imputed"):
                raise ValueError(
                    "its log-prob is masked, so that a gradient would miss how parameters move the draw. Leave the site unmasked."
                )
            self.scored.add(name)
            return stop(value)
        law = type(element(fn)[0]).__name__
        return drawn(
            f"Site '{name}': smc draws it from {law} without a pathwise derivative, so that a gradient would miss how "
            "parameters move the draw. Choose gradient='stop_gradient' or gradient='score', which account for it.",
            value,
            floats(fn),
        )

    def _is_pathwise(self, msg: Message) -> bool:
        name, asked = msg["name"], msg["infer"].get("strategy")
        for pattern in (name, *self.strategies):
            if pattern in self.strategies and fnmatch.fnmatchcase(name, pattern):
                self.matched.add(pattern)
                asked = self.strategies[pattern]
                break
        if asked not in (None, "auto"):
            strategy = as_strategy(asked, name)
            if isinstance(strategy, Boundary):
                raise ValueError(
                    f"Site '{name}': smc draws it once, without the replays that strategy '{strategy.name}' needs at jumps. "
                    "Use 'reinforce' with the parameters in the law (the shifted variable compared with a constant), or "
                    "'reparam' where nothing jumps."
                )
            if not isinstance(strategy, Pathwise):
                return False
        return has_rsample(element(msg["fn"])[0])


def check_sites(
    gradient: Differentiation | None,
    draws: Mapping[str, SiteDraws],
    programs: Mapping[str, TracedProgram | None],
) -> None:
    """Tell traced programs their scored sites.

    Raises:
        ValueError: a log-prob is scaled by subsampling; a pattern of strategies matches no site.
    """
    present = {role: program for role, program in programs.items() if program is not None}
    refuse_scaled("smc", *(program.shapes.sites for program in present.values()))
    if gradient is None:
        return
    for role, program in present.items():
        program.scored = set(draws[role].scored)
    unmatched = sorted(set(gradient.sites) - {"*"} - {p for d in draws.values() for p in d.matched})
    if unmatched:
        raise ValueError(
            f"strategies: {unmatched} match no latent site that is drawn. Give names of such sites, or "
            "shell-style wildcards such as 'z*' that match one."
        )
