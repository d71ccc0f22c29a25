"""Handlers under which a program is traced to be summed (`_listing.py`): one marks the eliminated sites, one gives all others.

Between them they record every statement's log-prob as the program has it, masks and scales included, but for the scale of a
subsample: a row of it stands for several, whose sites are summed out each on their own, so that scale is one of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._compat import mask_of
from .._types import Message
from ..distributions import alarms, unlogged
from ..strategies import Engine, Enum, Reparam, Strategy, element
from ..traces import Noiseless, scales_of
from ._stochastic import Constrained

Array = jax.Array


class Kept(Constrained):
    """Give the sites that are kept, and record log-probs before they are scaled for subsampling.

    Attributes:
        scales: name -> how many rows each row of a subsample stands for.
    """

    def __init__(self, given: Mapping[str, Array]) -> None:
        super().__init__(given)
        self.scales: dict[str, float] = {}

    def numbers_of(self, msg: Message) -> dict[str, PyTree]:
        self.scales[msg["name"]], scale = scales_of(msg, self.plates)
        numbers = super().numbers_of({**msg, "scale": scale})
        if self.depth("cond") and not msg["is_observed"]:
            numbers["active"] = jnp.ones(())  # zero where the branch is not taken
        return numbers


def _density_of(msg: Message, plates: Mapping[str, int], elements: Array) -> Array:
    """The log-probs of a site's elements with what masks and scales make of them, as the program's own density has it."""
    fn, scale = msg["fn"], scales_of(msg, plates)[1]
    if scale is not None:
        scale = jnp.broadcast_to(scale, fn.batch_shape)
        elements = elements * scale.reshape(scale.shape + (1,) * (elements.ndim - scale.ndim))
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = jnp.broadcast_to(jnp.asarray(mask_of(fn), bool), fn.batch_shape)
            behind = len(fn.event_shape) - element(fn)[0].event_dim
            elements = jnp.where(mask.reshape(mask.shape + (1,) * behind), elements, 0.0)
        fn = fn.base_dist
    return elements


def _nothing_of(value: Array, log_prob: Array) -> Array:
    """Zeros that depend on a site's value, element by element: of equal probabilities the log-prob does not, yet is summed."""
    return 0 * value.reshape(*log_prob.shape, -1).sum(-1).astype(log_prob.dtype)


class Lister(Noiseless, Engine):
    """Mark the eliminated sites; everything else has its value already."""

    is_called = "a sum"

    def __init__(self, label: str, names: tuple[str, ...]) -> None:
        super().__init__(jax.random.key(0), dict.fromkeys(names, Enum()))
        self.label, self.names = label, names
        self.missing: list[str] = []

    def visit(self, msg: Message) -> None:
        super().visit(msg)
        if not msg["is_observed"]:
            numbers = self.frame.numbers[msg["name"]]
            log_prob = _density_of(msg, self.plates, numbers["log_prob"])
            if msg["name"] in self.names:
                log_prob = log_prob + _nothing_of(numbers["value"], log_prob)
            moved = unlogged(element(msg["fn"])[0], log_prob.shape)
            numbers.update(log_prob=log_prob, probabilities=moved)
            numbers["alarmed"] = sum(map(alarms, moved), log_prob)
            if "cells" in msg["infer"]:  # of `obs_mask`: the other cells are not the site's
                cells, fn = msg["infer"]["cells"], msg["fn"]
                rank = max(np.ndim(cells), len(fn.batch_shape))
                numbers["active"] = 1.0 * jnp.broadcast_to(cells, fn.shape()[:rank])

    def _choose(self, msg: Message, address: str) -> tuple[Strategy, str]:
        if msg["name"] not in self.names:
            self.missing.append(msg["name"])
            return Reparam(), ""
        base, _ = element(msg["fn"])
        if inner := getattr(base, "eliminated", None):
            raise ValueError(
                f"Site '{address}' stands in {inner}, a program that is eliminated already and called inside of this one, where "
                f"{self.label} cannot see it. Sum all sites out at once: call the program as it was before, and name them all, "
                "ppl.eliminate(program, [...])."
            )
        if (reason := Enum().refuse(base)) is not None:
            raise ValueError(
                f"Site '{address}': {self.label} {reason}. Keep the site as a choice, or estimate the marginal with "
                "ppl.marginal."
            )
        return Enum(), ""
