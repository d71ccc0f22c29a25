"""Draws that count as constants: for objectives whose samples come from a fixed program (wake, sleep, VarGrad, ...)."""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._types import Message
from ...ppl.traces import COMMON, running_engine, strategies_met

stop = jax.lax.stop_gradient


class CommonNoise(Messenger):
    """Scored again, a program draws its missing cells from the same noise: one draw, as a function of other parameters.

    Args:
        name: the objective, for messages.
        proposed: sites that the guide draws.

    Attributes:
        names: sites that were drawn so.
    """

    def __init__(self, name: str, proposed: Collection[str]) -> None:
        super().__init__()
        self.name, self.proposed = name, proposed
        self.names: set[str] = set()
        self.depth = _depth()

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] in self.proposed:
            return
        if msg["infer"].get("imputed"):
            if _depth() != self.depth:
                raise ValueError(
                    f"Site '{msg['name']}': {self.name} scores the model twice at one draw of the missing cells, and a cell "
                    "that is drawn inside ppl.scan, ppl.cond or ppl.particles is drawn anew. Propose it in the guide, or use "
                    "gradient='full'."
                )
            msg["infer"] = {**msg["infer"], COMMON: True}
            self.names.add(msg["name"])


def _depth() -> int:
    """How many regions are open in the engine."""
    return len(running_engine().frames)


class Constant(ppl.strategies.Strategy):
    """No gradient passes through the draw or its law. For programs without parameters only, see `ppl.detached`."""

    name = "constant"

    def refuse(self, distribution: dist.Distribution) -> str | None:
        """Every distribution can be drawn from."""
        return None

    def surrogate(self, local: PyTree, downstream: object) -> jax.Array:
        return jnp.zeros(())


CONSTANT = {"*": Constant()}


def sites_met() -> set[str]:
    """Addresses of the latent sites drawn so far in this particle."""
    return set(strategies_met())


def refuse_new_draws(name: str, before: set[str], known: Collection[str] = ()) -> None:
    """Refuse draws that scoring a program has made since `before`: their law moves with parameters that have a gradient.

    `known` are names of sites that the objective accounts for.
    """
    new = sorted(a for a in sites_met() - before if a.split("#")[0] not in known)
    if new:
        raise ValueError(
            f"{name}: the site(s) {new} are drawn while a program is scored (missing cells that nothing proposes, "
            "auxiliary sites of an estimated density), and their law would go without its gradient. Propose them "
            "in the guide, or use elbo or iwelbo."
        )


def refuse_estimated(name: str, program: ppl.Program, why: str) -> None:
    """Refuse a guide whose density is estimated."""
    if isinstance(program, ppl.densities.StochasticProgram):
        raise TypeError(
            f"{name}: the density of {program!r} is estimated, {why}. Use the objective without this option."
        )
