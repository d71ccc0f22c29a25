"""What later statements tell of earlier sites, found on the way back through the program by reverse differentiation.

A belief is x = mean + root u with coordinates u ~ N(0, 1) (`_belief.py`), and every statement turns them:

    u = shift + matrix u' + rest e,    e ~ N(0, 1) of its own,

u' the coordinates afterwards. So whatever is known of u' at last is known of u before, without a covariance inverted or
subtracted: a smoother with square roots. `Smoothed` stands beside a belief for this law. It is made of zeros on the way forth;
its cotangent is defined to be the law: from N(0, 1) at the end of the program (`ended`), through each turn (`turned`), to the
sites, which read theirs off as the derivative in a number beside them (`read`). Reverse differentiation does nothing but to
call these rules in turn, through scans of any depth: each `Smoothed` is handed to one of them only, so that no two
cotangents are added.

The rounding of the turns is counted as if it were noise of the precision's relative size: what of a scale, and how far of a
mean, it may have made.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..._precision import full_precision
from ._meetings import MAX_AWAY, MAX_ERROR
from ._roots import compressed, times

Array = jax.Array


class Substitution(NamedTuple):
    """How coordinates are made of later ones: u = shift + matrix u' + rest e.

    Attributes:
        shift: shape (*rows, k).
        matrix: shape (*rows, k, k').
        rest: shape (*rows, k, j); None: nothing is lost.
        rounding: squares of the errors that rounding has made in the matrix, of its shape; None: none.
    """

    shift: Array
    matrix: Array
    rest: Array | None = None
    rounding: Array | None = None


class Smoothed(NamedTuple):
    """Stands for the law of a belief's coordinates given everything, N(mean, root root'), or for one draw of them, `mean`.

    Attributes:
        mean: shape (*rows, k).
        root: shape (*rows, k, k).
        error: squares of the errors that rounding makes in its rows, shape (*rows, k).
        away: squares of those that it makes in the mean, shape (*rows, k).
        key: data of a PRNG key for draws; None: the mean is asked for.
    """

    mean: Array
    root: Array
    error: Array
    away: Array
    key: Array | None

    def turned(self, turn: Substitution) -> Smoothed:
        """That of the later coordinates."""
        noise, key = None, self.key
        if key is not None and turn.rest is not None:
            now, later = jax.random.split(_wrapped(key))
            shape, dtype = turn.rest.shape, turn.rest.dtype
            noise, key = (
                jax.random.normal(now, (*shape[:-2], shape[-1]), dtype),
                jax.random.key_data(later),
            )
        return Smoothed(*_turned(self[:4], turn, noise), key)

    def read(self, beside: Read, mean: Array, seen: Array) -> Smoothed:
        """This law, read by numbers mean + seen u: their law is the derivative in what stands beside them."""
        return Smoothed(*_read(self[:4], beside, mean, seen), self.key)

    def ended(self) -> Array:
        """0, whose derivative is that nothing comes after."""
        noise = None
        if self.key is not None:
            key = _wrapped(self.key)
            noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return _ended(self[:4], noise)


class Read(NamedTuple):
    """Numbers beside those of a site, shape (*rows, m); their derivatives are the site's mean (or a draw) and its scales."""

    mean: Array
    scale: Array


def _wrapped(data: Array) -> Array:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


class SmoothingRequest(NamedTuple):
    """What is asked for of the sites given everything: their means and scales, or one joint draw.

    Attributes:
        key: of the draw; None: none is.
    """

    key: Array | None = None

    def start(self, rows: tuple[int, ...]) -> Smoothed:
        """What stands beside a belief of nothing."""
        key = None if self.key is None else jax.random.bits(self.key, (2,), jnp.uint32)
        none = jnp.zeros((*rows, 0))
        return Smoothed(none, jnp.zeros((*rows, 0, 0)), none, none, key)


def _square(root: Array) -> Array:
    """A root with as many columns as rows."""
    size, columns = root.shape[-2:]
    if columns > size:
        return compressed(root)
    return jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, size - columns)])


Law = tuple[Array, Array, Array, Array]  # mean, root, error, away of a `Smoothed`


def _blank(turn: Substitution, like: Law) -> Law:
    """Zeros in the shapes of the later law."""
    rows, size = like[0].shape[:-1], turn.matrix.shape[-1]
    blank = lambda *shape: jnp.zeros((*rows, *shape), like[0].dtype)
    return blank(size), blank(size, size), blank(size), blank(size)


@jax.custom_vjp
def _turned(law: Law, turn: Substitution, noise: Array | None) -> Law:
    return _blank(turn, law)


@full_precision
def _turned_back(saved: tuple[Substitution, Array | None], later: Law) -> tuple[Law, None, None]:
    # "Back" is reverse mode's: from the law of u' to that of u = shift + matrix u' + rest e.
    (shift, matrix, rest, rounding), noise = saved
    mean, root, error, away = later
    away = times(matrix**2, away) + (jnp.finfo(shift.dtype).eps * shift) ** 2
    if rounding is not None:
        away = away + times(rounding, mean**2)
    mean = shift + times(matrix, mean)
    if noise is not None and rest is not None:
        mean = mean + times(rest, noise)
    # cov u = matrix root root' matrix' + rest rest': the two roots side by side, compressed to a square.
    parts = [matrix @ root] if rest is None else [matrix @ root, rest]
    root = _square(jnp.concatenate(parts, -1))
    error = times(matrix**2, error)
    if rounding is not None:
        error = error + times(rounding, (later[1] ** 2).sum(-1))
    return (mean, root, error, away), None, None


_turned.defvjp(lambda law, turn, noise: (_blank(turn, law), (turn, noise)), _turned_back)


@jax.custom_vjp
def _read(law: Law, beside: Read, mean: Array, seen: Array) -> Law:
    return law


@full_precision
def _read_back(saved: tuple[Array, ...], law: Law) -> tuple[Law, Read, None, None]:
    """What the numbers are told; NaN where rounding may have made more than a hundredth of a scale, or moved a mean by a tenth.

    The mean may be off by its own last digits, whatever its scale.
    """
    mean, seen = saved
    coordinates, root, error, away = law
    # x = mean + seen u, u ~ N(coordinates, root root'): mean + seen coordinates, and the lengths of the rows of seen root.
    scale = jnp.sqrt(((seen @ root) ** 2).sum(-1))
    mean = mean + times(seen, coordinates)
    least = jnp.maximum(MAX_AWAY * scale, 4 * jnp.finfo(mean.dtype).eps * jnp.abs(mean))
    is_known = times(seen**2, error) <= (MAX_ERROR * scale) ** 2
    is_known &= times(seen**2, away) <= least**2
    told = (jnp.where(is_known, x, jnp.nan) for x in (mean, scale))
    return law, Read(*told), None, None


_read.defvjp(lambda law, beside, mean, seen: (law, (mean, seen)), _read_back)


@jax.custom_vjp
def _ended(law: Law, noise: Array | None) -> Array:
    return jnp.zeros(())


def _ended_back(saved: tuple[Law, Array | None], _: Array) -> tuple[Law, None]:
    (mean, root, error, away), noise = saved
    # Nothing comes after: u' ~ N(0, 1), or a draw of it.
    unit = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
    return (mean if noise is None else noise, unit, error, away), None


_ended.defvjp(lambda law, noise: (jnp.zeros(()), (law, noise)), _ended_back)
