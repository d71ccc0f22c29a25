"""Chains that remember where they began: what training them along their path with a fixed start reaches is no tilt.

With x_0 drawn from a fixed law and x_1 given x_0, the divergence along the path is least at

    p(x_0) p(x_1 | x_0) exp(r(x_1)) / E[exp(r) | x_0],

whose x_1 has the law of the tilt only if E[exp(r) | x_0] is one number: if x_1 does not depend on x_0. For x_1 = rho x_0 +
sqrt(1 - rho^2) e and r = a x_1 the tilt is Normal(a, 1), that optimum Normal(a (1 - rho^2), 1), and the variance of
log E[exp(r) | x_0], which no policy with this start removes from the log-weights, is a^2 rho^2.

Reference: Domingo-Enrich et al. 2024, arXiv:2409.08861 (memoryless noise).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._types import Message
from ...ppl.distributions import base_of

LARGEST = 0.05  # rho, of which 0.25 % of the variance of a linear reward is out of reach


class StartMemory(Messenger):
    """Note the laws of paths that say how much of their start is left at their end (`start_memory`), by site."""

    only_watches = True

    def __init__(self, found: dict[str, float]) -> None:
        super().__init__()
        self.found = found

    def process_message(self, msg: Message) -> None:
        memory = (
            getattr(base_of(msg["fn"]), "start_memory", None) if msg["type"] == "sample" else None
        )
        if memory is not None:
            self.found[msg["name"]] = memory


def check_start(
    tilt: object, trace: ppl.Trace, drawn: Iterable[ppl.Trace], memories: Mapping[str, float]
) -> None:
    """Refuse a guide that draws a path from the same start as the base, where the path's end remembers it.

    Raises:
        ValueError: with the site, the correlation, and what it costs.
    """
    for name, rho in memories.items():
        laws = {t.sites[name].distribution for t in drawn if name in t.sites}
        if rho > LARGEST and trace.sites[name].distribution in laws:
            raise ValueError(
                f"{tilt!r}: site '{name}': the guide begins its path at the same noise as the model, and the path's end "
                f"remembers it (correlation rho = {rho:.3g}): what is learned is p(start) p(end | start) exp(r) / E[exp(r) | "
                f"start], not the tilt. For r = a x it misses the mean by a rho^2 = {rho**2:.2g} a, and leaves a variance of "
                f"a^2 rho^2 = {rho**2:.2g} a^2 in the log-weights. Begin the grid at more noise, where alpha is near 0 "
                "(models.diffusion.memory tells rho), or let the guide draw the end and noise it (noising_chain)."
            )
