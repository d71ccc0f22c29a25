"""What later statements tell of earlier sites, found on the way back through the program by reverse differentiation.

A belief is x = mean + root u with coordinates u ~ N(0, 1) (`_belief.py`), and every statement turns them:

    u = shift + matrix u' + rest e,    e ~ N(0, 1) of its own,

u' the coordinates afterwards. So whatever is known of u' at last is known of u before, without a covariance inverted or
subtracted: a smoother with square roots. `Smoothed` stands beside a belief for this law. It is made of zeros on the way forth;
its cotangent is defined to be the law: from N(0, 1) at the end of the program (`ended`), through each turn (`turned`), to the
sites, which read theirs off as the derivative in a number beside them (`read`). Reverse differentiation does nothing but to
call these rules in turn, through scans of any depth: each `Smoothed` is handed to one of them only, so that no two
cotangents are added.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._precision import full_precision
from ._roots import compressed, times

Array = jax.Array


class Turn(NamedTuple):
    """How coordinates are made of later ones: u = shift + matrix u' + rest e.

    Attributes:
        shift: shape (*rows, k).
        matrix: shape (*rows, k, k').
        rest: shape (*rows, k, j); None: nothing is lost.
    """

    shift: Array
    matrix: Array
    rest: Array | None = None


class Smoothed(NamedTuple):
    """Stands for the law of a belief's coordinates given everything, N(mean, root root'), or for one draw of them, `mean`.

    Attributes:
        mean: shape (*rows, k).
        root: shape (*rows, k, k); None: it is not asked for.
        key: data of a PRNG key for draws; None: the mean is asked for.
    """

    mean: Array
    root: Array | None
    key: Array | None

    def of(self, size: int) -> Smoothed:
        """Of so many coordinates."""
        rows, dtype = self.mean.shape[:-1], self.mean.dtype
        root = None if self.root is None else jnp.zeros((*rows, size, size), dtype)
        return Smoothed(jnp.zeros((*rows, size), dtype), root, self.key)

    def turned(self, turn: Turn) -> Smoothed:
        """That of the later coordinates."""
        noise, key = None, self.key
        if key is not None and turn.rest is not None:
            now, later = jax.random.split(jax.random.wrap_key_data(key))
            shape, dtype = turn.rest.shape, turn.rest.dtype
            noise, key = (
                jax.random.normal(now, (*shape[:-2], shape[-1]), dtype),
                jax.random.key_data(later),
            )
        mean, root = _turned((self.mean, self.root), turn, noise)
        return Smoothed(mean, root, key)

    def read(self, beside: Read, mean: Array, seen: Array) -> Smoothed:
        """The same, read by numbers mean + seen u: their law is the derivative in what stands beside them."""
        law = _read((self.mean, self.root), beside, mean, seen)
        return Smoothed(*law, self.key)

    def ended(self) -> Array:
        """0, whose derivative is that nothing comes after."""
        noise = None
        if self.key is not None:
            key = jax.random.wrap_key_data(self.key)
            noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return _ended((self.mean, self.root), noise)


class Read(NamedTuple):
    """Numbers beside those of a site, shape (*rows, m); their derivatives are the site's mean (or a draw) and its scales."""

    mean: Array
    scale: Array | None


class Smoothing(NamedTuple):
    """What is asked for of the sites given everything: their means, and scales beside them, or one joint draw.

    Attributes:
        has_scales: whether scales are.
        key: of the draw; None: none is.
    """

    has_scales: bool = False
    key: Array | None = None

    def start(self, rows: tuple[int, ...]) -> Smoothed:
        """What stands beside a belief of nothing."""
        root = jnp.zeros((*rows, 0, 0)) if self.has_scales else None
        key = None if self.key is None else jax.random.key_data(self.key)
        return Smoothed(jnp.zeros((*rows, 0)), root, key)


def _square(root: Array) -> Array:
    """A root with as many columns as rows."""
    size, columns = root.shape[-2:]
    if columns > size:
        return compressed(root)
    return jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, size - columns)])


Law = tuple[Array, Array | None]


def _blank(turn: Turn, like: Law) -> Law:
    """Zeros in the shapes of the later law."""
    rows, size = like[0].shape[:-1], turn.matrix.shape[-1]
    root = None if like[1] is None else jnp.zeros((*rows, size, size), like[1].dtype)
    return jnp.zeros((*rows, size), like[0].dtype), root


@jax.custom_vjp
def _turned(law: Law, turn: Turn, noise: Array | None) -> Law:
    return _blank(turn, law)


@full_precision
def _turned_back(saved: tuple[Turn, Array | None], later: Law) -> tuple[Law, None, None]:
    (shift, matrix, rest), noise = saved
    mean, root = later
    mean = shift + times(matrix, mean)
    if noise is not None and rest is not None:
        mean = mean + times(rest, noise)
    if root is not None:
        parts = [matrix @ root] if rest is None else [matrix @ root, rest]
        root = _square(jnp.concatenate(parts, -1))
    return (mean, root), None, None


_turned.defvjp(lambda law, turn, noise: (_blank(turn, law), (turn, noise)), _turned_back)


@jax.custom_vjp
def _read(law: Law, beside: Read, mean: Array, seen: Array) -> Law:
    return law


@full_precision
def _read_back(saved: tuple[Array, Array], law: Law) -> tuple[Law, Read, None, None]:
    mean, seen = saved
    found = mean + times(seen, law[0])
    scale = None if law[1] is None else scales_of(seen, law[1])
    return law, Read(found, scale), None, None


_read.defvjp(lambda law, beside, mean, seen: (law, (mean, seen)), _read_back)


@full_precision
def scales_of(seen: Array, root: Array) -> Array:
    """The standard deviations of seen u for u ~ N(., root root')."""
    return jnp.sqrt(((seen @ root) ** 2).sum(-1))


@jax.custom_vjp
def _ended(law: Law, noise: Array | None) -> Array:
    return jnp.zeros(())


def _ended_back(saved: tuple[Law, Array | None], _: Any) -> tuple[Law, None]:
    (mean, root), noise = saved
    unit = (
        None
        if root is None
        else jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
    )
    return (mean if noise is None else noise, unit), None


_ended.defvjp(lambda law, noise: (jnp.zeros(()), (law, noise)), _ended_back)
