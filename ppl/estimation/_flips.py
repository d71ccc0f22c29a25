"""Jumps at the places of decisions (`strategies/_boundary.py`): replays with the site there, and its outcome forced both ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..analysis import flip_groups
from ..evaluation import Forced
from ..strategies import Decision, StrategySite, stop
from ._downstream import Costs
from ._reading import ELEMENT, Dims

Array = jax.Array
Ordering = dict[str, Array]


def jumps(costs: Costs, index: int, local: dict[str, Array | dict[str, PyTree]]) -> Array:
    """R(z*-) - R(z*+), of each element of a decision: [replicates, its dimensions, elements (or 1)]."""
    local = jax.tree.map(stop, local)
    program, site = costs.program, costs.program.sites[index]
    total = jnp.zeros(())
    for joint, members in flip_groups(site, index, program.relations).items():
        decision = site.strategy
        assert isinstance(decision, Decision)
        run = _by_row if decision.is_by_row else _by_element
        total = total + run(costs, index, local, joint, members)
    return total


Replay = Callable[[dict[int, tuple[Forced, Forced]]], Array]


def _replay(
    costs: Costs, index: int, joint: tuple[int, ...], members: list[int], has_dim: bool
) -> Replay:
    """The cost downstream of each element of a decision, given replacements."""
    extra = (ELEMENT,) if has_dim else ()

    def run(forced: dict[int, tuple[Forced, Forced]]) -> Array:
        terms, _ = costs.terms.weighted(forced, members, (), extra)
        terms = {j: stop(t) for j, t in terms.items()}
        if has_dim and not joint:  # one element
            at = {j: len(costs.terms.dims(costs.program.dimensions.kept[j])) for j in terms}
            terms = {j: t.squeeze(at[j]) for j, t in terms.items()}
        return costs.gather(index, terms, joint or None)

    return run


def _both(replay: Callable[[Array], Array], below: Array) -> Array:
    # The estimate needs the cost with the value below the place and above it, all else equal: their difference.
    lower, upper = jax.vmap(replay)(jnp.stack([below, ~below]))
    return lower - upper


def _by_row(
    costs: Costs, index: int, local: dict[str, PyTree], joint: tuple[int, ...], members: list[int]
) -> Array:
    """Every element of the decision is one of the site, and of each peer: all rows at once where they do not meet."""
    site = costs.program.sites[index]
    decision = site.strategy
    assert isinstance(decision, Decision)
    own, place = costs.full(index, local["place"])
    full = lambda x: costs.full(index, x)[1]
    peers = {
        p.index: full(_outcome(local["peers"][p.index], local["place"], is_later=p.index > index))
        for p in decision.peers
    }
    # Without joint axes no term sees two elements: all rows flip in one evaluation.
    mask = None
    if joint:
        # Elements that one term joins are replayed one by one: row r of the mask flips element r alone.
        eye = np.eye(math.prod(site.sizes[i] for i in joint), dtype=bool)
        sizes = [n if i in joint else 1 for i, n in enumerate(site.sizes)]
        mask = jnp.broadcast_to(eye.reshape(-1, *sizes), (len(eye), *site.sizes))
    where = Forced(own, (ELEMENT,) if joint else None)  # type: ignore[arg-type]
    replay = _replay(costs, index, joint, members, has_dim=bool(joint))

    def cost(outcome: Array) -> Array:
        values = {index: outcome, decision.site: place, **peers}
        return replay({i: (Forced(x, mask), where) for i, x in values.items()})

    return _both(cost, full(local["below"]))


def _by_element(
    costs: Costs, index: int, local: PyTree, joint: tuple[int, ...], members: list[int]
) -> Array:
    """Every element of the decision has a replay of its own, in which the element of the site that owns it is at its place."""
    program, site = costs.program, costs.program.sites[index]
    decision = site.strategy
    assert isinstance(decision, Decision)
    own, place = costs.full(index, local["place"])
    flat = lambda x, shape: x.reshape(*x.shape[: x.ndim - len(shape)], -1)
    place = flat(place, site.sizes)  # [own, replays]
    # owner[e]: the element of the deciding site that element e of the decision belongs to.
    owner = np.asarray(decision.owner)
    forced = {decision.site: _at(program.sites[decision.site], place, owner, own)}
    for p in decision.peers:
        shape = program.sites[p.index].sizes
        peer = {
            n: flat(costs.full(p.index, x, own)[1], shape)
            for n, x in local["peers"][p.index].items()
        }
        peer = {n: x[..., None, :] for n, x in peer.items()}
        value = _outcome(peer, place[..., None], is_later=p.index > index)
        forced[p.index] = _masked(value, owner, np.asarray(p.owner), shape, own)
    # Elements of one decision in the same place flip in their order.
    mine = {n: flat(costs.full(index, local[n])[1], site.sizes)[..., None, :] for n in ORDERING}
    number = np.arange(len(owner))
    value = _outcome(mine, place[..., None], is_later=number > number[:, None])
    replay = _replay(costs, index, joint, members, has_dim=True)

    def cost(outcome: Array) -> Array:
        # Replay e: element e takes the outcome on trial, the others what their order says.
        own_value = jnp.where(np.eye(len(owner), dtype=bool), outcome[..., None], value)
        own_forced = _masked(own_value, owner, owner, site.sizes, own)
        return replay({**forced, index: own_forced})

    return _both(cost, mine["below"][..., 0, :])


ORDERING = ("place", "below", "is_flat", "outcome")


def _outcome(peer: Ordering, place: Array, *, is_later: Any) -> Array:
    """The outcome of another comparison while the site is at a place: it flips later, or has flipped.

    One that depends on the site nowhere, or whose place is no number, keeps its outcome.
    """
    is_below = jnp.where(is_later, place <= peer["place"], place < peer["place"])
    value = jnp.where(is_below, peer["below"], ~peer["below"])
    is_fixed = peer["is_flat"] | jnp.isnan(peer["place"])
    return jnp.where(is_fixed, peer["outcome"], value)


def _masked(
    value: Array, owner: np.ndarray, others: np.ndarray, shape: tuple[int, ...], own: Dims
) -> tuple[Forced, Forced]:
    """Values [own dimensions, replays, elements of a site] for the elements with the replay's owner."""
    value = value.reshape(*value.shape[: value.ndim - 1], *shape)
    mask = jnp.asarray(owner[:, None] == others).reshape(len(owner), *shape)
    return Forced(value, mask), Forced((*own, ELEMENT), (ELEMENT,))  # type: ignore[arg-type]


def _at(site: StrategySite, place: Array, owner: np.ndarray, own: Dims) -> tuple[Forced, Forced]:
    count = math.prod(site.sizes)
    value = jnp.broadcast_to(place[..., None], (*place.shape, count))
    return _masked(value, owner, np.arange(count), site.sizes, own)
