"""The resampling schemes by name: a new one is a row of the table, with its conditional version, and the laws that are known."""

from __future__ import annotations

import jax
from jaxtyping import Array, PyTree

from ..population import voided
from . import _conditional as conditional
from ._scheme import Scheme
from ._schemes import (
    birth_death,
    killing,
    killing_law,
    metropolis,
    multinomial,
    multinomial_law,
    rejection,
    residual,
    ssp,
    stratified,
    systematic,
)

RESAMPLERS: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("systematic", systematic, conditional.systematic, True),
        Scheme("stratified", stratified, conditional.stratified, True, "negative"),
        Scheme("multinomial", multinomial, conditional.multinomial, True, "multinomial", multinomial_law),
        Scheme("residual", residual, conditional.residual, True, "negative"),
        Scheme("ssp", ssp, conditional.ssp, True, "negative"),
        Scheme("killing", killing, conditional.killing, True, "negative", killing_law),
        Scheme("birth_death", birth_death, conditional.birth_death, True, "negative"),
        Scheme("rejection", rejection, conditional.multinomial, True, "multinomial", multinomial_law),
        metropolis(),
    )
}  # fmt: skip


def as_scheme(scheme: object) -> Scheme:
    """The scheme of a name in `RESAMPLERS`; a `Scheme` is returned as it is.

    Raises:
        ValueError: no scheme has this name; the message lists the names.
        TypeError: neither a name nor a `Scheme`.
    """
    if isinstance(scheme, Scheme):
        return scheme
    names = ", ".join(repr(name) for name in RESAMPLERS)
    if not isinstance(scheme, str):
        raise TypeError(
            f"A resampling scheme is a name or a Scheme, not {type(scheme).__name__}. Use one of {names}, or "
            "Scheme(name, ancestors, conditional, is_unbiased) for a resampler of your own."
        )
    if scheme not in RESAMPLERS:
        raise ValueError(f"No resampling scheme is called {scheme!r}. Use one of {names}.")
    return RESAMPLERS[scheme]


def equally_weighted(
    key: Array, particles: PyTree, log_weights: Array, failed_at: Array, num: int
) -> PyTree:
    """`num` of the weighted particles, drawn by systematic resampling; void where all were lost (`failed_at` is not -1)."""
    index = as_scheme("systematic").ancestors(key, log_weights, num)
    return voided(jax.tree.map(lambda x: x[index], particles), failed_at >= 0)
