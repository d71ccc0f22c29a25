"""Draws that count as constants: for objectives whose samples come from a fixed program (wake, sleep, VarGrad, ...)."""

from __future__ import annotations

from typing import Any

import jax
import numpyro.distributions as dist

from .. import ppl

stop = jax.lax.stop_gradient


class Constant(ppl.Strategy):
    """No gradient passes through the draw or its law. For programs without parameters only, see `detached`."""

    name = "constant"

    def refuse(self, distribution: dist.Distribution) -> str | None:
        """Every distribution can be drawn from."""
        return None


CONSTANT = {"*": Constant()}


def detached(program: Any) -> Any:
    """The program at its present parameters, which count as constants."""
    if not program.params:
        return program
    return program.bind(jax.tree.map(stop, program.params))


def sites_met() -> set[str]:
    """Addresses of the latent sites drawn so far in this lane."""
    return set(ppl.strategies_met())


def refuse_new_draws(name: str, before: set[str]) -> None:
    """Refuse draws that scoring a program has made since `before`: their law moves with parameters that have a gradient."""
    new = sorted(sites_met() - before)
    if new:
        raise ValueError(
            f"{name}: the site(s) {new} are drawn while a program is scored (missing cells that nothing proposes, "
            "auxiliary sites of an estimated density), and their law would go without its gradient. Propose them "
            "in the guide, or use elbo or iwelbo."
        )


def refuse_estimated(name: str, program: Any, why: str) -> None:
    """Refuse a guide whose density is estimated."""
    if isinstance(program, ppl.StochasticProgram):
        raise TypeError(
            f"{name}: the density of {program!r} is estimated, {why}. Use the objective without this option."
        )
