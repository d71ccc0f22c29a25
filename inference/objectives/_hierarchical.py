"""Bounds with a hierarchical guide: the guide's auxiliary choices are marginalised by importance sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from ... import ppl
from ...ppl._types import ModelFn
from ._bounds import elbo, iwelbo
from ._factory import recreated
from ._objective import Objective


@recreated
def hvi(
    model: ModelFn,
    guide: ModelFn,
    *,
    keep: Collection[str],
    reverse: object = None,
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Hierarchical variational bound: E[log p(x, z) - log q(z, a) + log r(a | z)] <= ELBO of the marginal q(z) <= log p(x).

    The same as `elbo(model, ppl.marginal(guide, keep=keep, proposal=reverse))`.

    Args:
        model: program with observations, p(x, z).
        guide: q(z, a), over the model's latent sites z and auxiliary sites a.
        keep: the names of z.
        reverse: r(a | z), a program of `(kept, *args)`; None: the guide's own conditional prior of a.
        strategies: pattern -> gradient strategy, for all sites; see `ppl.expectation`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: the refusals of `ppl.marginal` and `elbo`.

    Validity: value and gradient unbiased for the bound (nats, maximised) in the parameters of model, guide and reverse.
    Reference: Ranganath et al. 2016, arXiv:1511.02386.
    """
    q = ppl.marginal(guide, keep=keep, proposal=reverse)
    bound = elbo(
        model, q, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )
    return _named(bound, "hvi")


@recreated
def iwhvi(
    model: ModelFn,
    guide: ModelFn,
    *,
    keep: Collection[str],
    num_aux_particles: int,
    reverse: object = None,
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """`hvi` with log q(z) bounded by M = `num_aux_particles` auxiliary draws, among them the one that made z.

    E[log p(x, z) - log 1/M sum_i q(z, a_i) / r(a_i | z)], (z, a_1) ~ q, a_2..a_M ~ r; it rises to the ELBO of q(z) with M.

    Args:
        model: see `hvi`.
        guide: see `hvi`.
        keep: see `hvi`.
        num_aux_particles: M.
        reverse: see `hvi`.
        strategies: see `hvi`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Validity: as `hvi`.
    Reference: Sobolev and Vetrov 2019, arXiv:1905.03290.
    """
    q = ppl.marginal(guide, keep=keep, proposal=reverse, num_particles=num_aux_particles)
    bound = elbo(
        model, q, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )
    return _named(bound, "iwhvi")


@recreated
def diwhvi(
    model: ModelFn,
    guide: ModelFn,
    *,
    keep: Collection[str],
    num_particles: int,
    num_aux_particles: int,
    reverse: object = None,
    per: str = "joint",
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Doubly importance-weighted bound: `iwelbo` of K = `num_particles` weights, each with M auxiliary draws as in `iwhvi`.

    E[log 1/K sum_k p(x, z_k) / Z_k], Z_k = 1/M sum_i q(z_k, a_ki) / r(a_ki | z_k). It rises to log p(x) with K, at every M.

    Args:
        model: see `hvi`.
        guide: see `hvi`.
        keep: see `hvi`.
        num_particles: K.
        num_aux_particles: M.
        reverse: see `hvi`.
        per: see `iwelbo`; rows of a plate need M = 1.
        strategies: see `hvi`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Validity: as `hvi`.
    Reference: Sobolev and Vetrov 2019, arXiv:1905.03290.
    """
    q = ppl.marginal(guide, keep=keep, proposal=reverse, num_particles=num_aux_particles)
    bound = iwelbo(
        model,
        q,
        num_particles=num_particles,
        per=per,
        strategies=strategies,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
    )
    return _named(bound, "diwhvi")


def _named(bound: Objective, name: str) -> Objective:
    return dataclasses.replace(bound, name=name)
