"""Conditions of diffusion networks: any tree of arrays, which may be hidden; an encoder of sets.

A network that `takes_context` is called as network(x, level, context) with `Context(value, is_shown)`, or None where it is
hidden for certain. Others see an integer label, `num_classes` for a hidden one, and `NO_LABEL` for what is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ...ppl._compat import is_concrete
from ...ppl._types import Key

# What is known by the run only to be no label; the networks of this package say NaN of it.
NO_LABEL = -1


class Context(NamedTuple):
    """A condition of one point.

    Attributes:
        value: a tree of arrays.
        is_shown: whether the network may see it.
    """

    value: PyTree
    is_shown: Bool[Array, ""]


class SetEncoder(eqx.Module):
    """Vector of a set of vectors, in any order, with members that may be missing: an MLP of the mean of an MLP of each.

        v = after([sum_i m_i each(x_i) / max(1, n), log(1 + n)]),   n = sum_i m_i.

    Called with the members, [members, size], or with a pair (members, mask), the mask true where there is one; what stands in the
    others' place is not read. An empty set has a vector, too.

    Args:
        size: of a member.
        num_out: length of the vector, 32 for the networks of this package.
        width: hidden units.
        key: PRNG key of the initial values.

    Reference: Zaheer et al. 2017, arXiv:1703.06114, theorem 2.
    """

    each: eqx.nn.MLP
    after: eqx.nn.MLP

    def __init__(self, size: int, num_out: int = 32, *, width: int = 64, key: Array) -> None:
        keys = jax.random.split(key)
        self.each = eqx.nn.MLP(size, width, width, 1, jax.nn.silu, key=keys[0])
        self.after = eqx.nn.MLP(width + 1, num_out, width, 1, jax.nn.silu, key=keys[1])

    def __call__(self, members: Any) -> Float[Array, " out"]:
        """The vector of one set."""
        members, mask = members if isinstance(members, tuple) else (members, None)
        mask = jnp.ones(len(members), bool) if mask is None else jnp.asarray(mask, bool)
        # What is missing may be NaN, whose derivative would be, too.
        found = jax.vmap(self.each)(jnp.where(mask[:, None], members, 0.0))
        num = mask.sum()
        mean = jnp.where(mask[:, None], found, 0.0).sum(0) / jnp.maximum(num, 1)
        return self.after(jnp.append(mean, jnp.log1p(num)))


def takes_context(network: object) -> bool:
    """Whether its third argument is a `Context`; that of others is a label."""
    return bool(getattr(network, "takes_context", False))


def num_labels(network: object) -> int:
    """How many labels it takes: its `num_classes`, none where it has no such attribute."""
    return int(getattr(network, "num_classes", 0))


def row_contexts(
    name: str, network: Any, context: PyTree, rows: int, key: Key, drop_context: float
) -> Any:
    """The third argument of a network for all rows, with a leading axis; each hidden with the probability `drop_context`."""
    if is_concrete(drop_context) and not 0 <= drop_context <= 1:
        raise ValueError(
            f"{name}: drop_context is {drop_context}, and is the probability that a row's context is hidden. Give 0 to 1."
        )
    is_hidden = jax.random.uniform(key, (rows,)) < drop_context
    if takes_context(network):
        if context is None:
            return None
        _check_rows(name, context, rows)
        return Context(jax.tree.map(jnp.asarray, context), ~is_hidden)
    if context is None:
        return jnp.full(rows, num_labels(network))
    _check_rows(name, context, rows)
    return jnp.where(is_hidden, num_labels(network), _label(name, network, context))


def one_context(name: str, network: Any, context: PyTree) -> PyTree:
    """The third argument of a network for one known context, or for a hidden one."""
    if takes_context(network):
        shown = lambda: Context(jax.tree.map(jnp.asarray, context), jnp.ones((), bool))
        return None if context is None else shown()
    if context is None:
        return jnp.asarray(num_labels(network))
    return _label(name, network, context)


def shown_or(unknown: Array, encode: Callable[[PyTree], Array], context: Context | None) -> Array:
    """The code of a context, or that of a hidden one."""
    if context is None:
        return unknown
    return jnp.where(context.is_shown, encode(context.value), unknown)


def _label(name: str, network: Any, label: Any) -> Array:
    """Labels from 0 to num_classes - 1, and `NO_LABEL` for others.

    Raises:
        ValueError: the network takes none, or no integers are given, or known ones that are none.
    """
    num = num_labels(network)
    if num == 0:
        raise ValueError(
            f"{name}: a context is given, but the network takes none (num_classes=0). Build it with num_classes= for integer "
            "labels, or with encoder= or context_channels= for arrays."
        )
    leaves = jax.tree.leaves(label)
    is_label = len(leaves) == 1 and jnp.issubdtype(jnp.result_type(leaves[0]), jnp.integer)
    if not is_label or jax.tree.structure(label) != jax.tree.structure(0):
        raise ValueError(
            f"{name}: the network has num_classes={network.num_classes} and takes integer labels, and the context is "
            f"{jax.tree.map(lambda c: (jnp.shape(c), str(jnp.result_type(c))), label)}. Give labels, or build it with encoder=."
        )
    if is_concrete(label):
        known = np.asarray(label)  # which stays so while a program is traced
        least, most = known.min(), known.max()
        if least < 0 or most >= num:
            raise ValueError(
                f"{name}: the network has num_classes={num}, and the context has labels from {least} to {most}. They are 0 to "
                f"{num - 1}; {num} would stand for a hidden one, and the law of all classes. Count from 0, or give the network "
                "more classes."
            )
    return jnp.where((label >= 0) & (label < num), label, NO_LABEL)


def _check_rows(name: str, context: PyTree, rows: int) -> None:
    shapes = [jnp.shape(c) for c in jax.tree.leaves(context)]
    if any(s[:1] != (rows,) for s in shapes):
        raise ValueError(
            f"{name}: each array of the context needs the {rows} rows of x as its leading axis, and their shapes are {shapes}. "
            "Repeat or reshape them."
        )
