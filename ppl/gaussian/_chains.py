"""Steps of a chain as affine maps, put together: all their noise in one vector, or the filter in parallel.

A step makes of the numbers x that are handed to it, and of noise u ~ N(0, 1) of its own,

    x' = c + A [x; u],    w = W [x; u] + v,  v ~ N(0, 1) and w seen.

*In parallel* (Sarkka and Garcia-Fernandez 2021, arXiv:1905.13002; with roots Yaghoobi et al. 2022, arXiv:2207.00426): what
is known of x' given x and w, and what w tells of x,

    x' | x, w ~ N(F x + b, C),    p(w | x) in proportion to exp(-|z - Z' x|^2 / 2),

are of the same form for several steps together, so that all prefixes are found in log2 T rounds. C is kept as a root, too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._precision import full_precision
from .beliefs import Belief, ManyNumbers, Noise, Read, compressed, free_solved, lower, solved, times

Array = jax.Array


class NotCollected(Exception):
    """A step is no affine map, with what stands in the way."""


class Affine(NamedTuple):
    """Numbers const + matrix basis, shapes (*rows, m) and (*rows, m, columns)."""

    const: Array
    matrix: Array


class Step(NamedTuple):
    """One step; the columns of its maps are those of x, then those of u.

    Attributes:
        new: x'.
        seen: W, and as const the numbers w.
        read: what is read after all steps.
        asked: sites beside which numbers stand (`beliefs`).
        beside: these numbers.
    """

    new: Affine
    seen: Affine
    read: Affine
    asked: Affine
    beside: Read


def joined(steps: Step, start: Belief) -> tuple[Belief, Affine, Affine]:
    """The belief of x at the start and all noise, given all that is seen; x at the end and what is read, in this basis.

    Args:
        steps: stacked along a leading axis of time.
        start: of x before the first step.
    """
    # The joint basis is [x_0; u_1; ...; u_T], n + T k numbers. The scan writes every number as an affine map of it: step t puts
    # its own noise's columns at n + t k and multiplies the map of x so far by A.
    num_steps, size = steps.new.const.shape[0], steps.new.const.shape[-1]
    own = steps.new.matrix.shape[-1] - size
    columns = size + num_steps * own
    rows = start.mean.shape[:-1]

    def step(x: Affine, now: tuple[Array, Step]) -> tuple[Affine, tuple[Affine, Affine, Affine]]:
        t, maps = now

        def wide(y: Affine) -> Affine:
            blank = jnp.zeros((*y.const.shape, columns), y.matrix.dtype)
            first = (0,) * (blank.ndim - 1)
            noise = jax.lax.dynamic_update_slice(
                blank, y.matrix[..., size:], (*first, size + t * own)
            )
            moved = y.matrix[..., :size]
            with full_precision():
                return Affine(y.const + times(moved, x.const), noise + moved @ x.matrix)

        return wide(maps.new), (wide(maps.seen), wide(maps.read), wide(maps.asked))

    unit = jnp.eye(size, columns, dtype=start.mean.dtype)
    first = Affine(jnp.zeros_like(start.mean), jnp.broadcast_to(unit, (*rows, *unit.shape)))
    # What is seen is seen of x and u: its const is moved to the other side.
    steps = steps._replace(seen=Affine(-steps.seen.const, steps.seen.matrix))
    last, (seen, read, asked) = jax.lax.scan(step, first, (jnp.arange(num_steps), steps))
    belief = start.with_noise(num_steps * own).whole()

    # [T, *rows, m] -> [*rows, T m]: the numbers of all steps beside one another.
    def merged(x: Affine) -> Affine:
        const = jnp.moveaxis(x.const, 0, -2)
        matrix = jnp.moveaxis(x.matrix, 0, -3)
        return Affine(const.reshape(*rows, -1), matrix.reshape(*rows, -1, columns))

    many = merged(asked)
    if many.const.shape[-1]:
        beside = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*rows, -1), steps.beside)
        belief = belief.read(beside, *many)
    # w - W [x; u] = v ~ N(0, 1): all observations of all steps are met at once, whitened already.
    looks = merged(seen)
    if looks.const.shape[-1]:
        ones = Noise(jnp.ones((*looks.const.shape, 1, 1), looks.const.dtype))
        met = ManyNumbers.of(belief.seen(looks.matrix), ones)
        away = -belief.at(looks.const, looks.matrix)
        belief = belief.given(met, looks.matrix, away)
    return belief, last, read


class Element(NamedTuple):
    """Consecutive steps: x' | x, w ~ N(move x + shift, root root'), p(w | x) in proportion to exp(-|seen - look' x|^2 / 2).

    `look`, of shape (*rows, n, n + 1), has a column more than J = look look' needs: [look; seen'] is one root.
    """

    move: Array
    shift: Array
    root: Array
    look: Array
    seen: Array


def filtered(steps: Step, start: Belief) -> Belief:
    """The beliefs of x before the first step, and after each one, given what was seen until then: a leading axis of T + 1."""
    # The first element forgets what is before it: x_0 ~ N(mean, root root') whatever x, and nothing is seen.
    blank = jnp.zeros_like(start.root)
    nothing = jnp.zeros((*start.mean.shape[:-1], start.mean.shape[-1] + 1), start.mean.dtype)
    look = jnp.zeros((*start.mean.shape, nothing.shape[-1]), nothing.dtype)
    prior = Element(blank, start.mean, start.root, look, nothing)
    rest = jax.vmap(_element)(steps)
    elements = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), prior, rest)
    found = _prefixes(elements)
    # Rounding is that of the start in units of its own, which is as much of a scale as it has shrunk.
    shrunk = (start.root**2).sum(-1) / (found.root**2).sum(-1)
    share = jnp.finfo(shrunk.dtype).eps ** 2 * jnp.where(jnp.isfinite(shrunk), shrunk, 0).max(-1)
    added = found.root * jax.lax.stop_gradient(jnp.sqrt(share))[..., None, None]
    with full_precision():
        error = jax.lax.stop_gradient(added @ added.mT)
    return Belief(found.shift, found.root, error, jnp.zeros_like(found.root))


def _prefixes(elements: Element) -> Element:
    """All elements up to each, by Hillis and Steele 1986.

    One loop of log2 T rounds: `jax.lax.associative_scan` does less arithmetic, but every of its 2 log2 T rounds has a program of
    its own, and to compile these takes minutes.
    """
    number = len(elements.shift)
    index = jnp.arange(number)

    # After the round of distance d, element i is the composition of the elements i - 2 d + 1, ..., i (from 0 on).
    def step(x: Element, distance: Array) -> tuple[Element, None]:
        before = jax.tree.map(lambda a: jnp.roll(a, distance, 0), x)
        more = jax.vmap(_after)(before, x)
        has_more = index >= distance
        pick = lambda a, b: jnp.where(has_more.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return jax.tree.map(pick, more, x), None

    num_rounds = (number - 1).bit_length()
    return jax.lax.scan(step, elements, 2 ** jnp.arange(num_rounds))[0]


@full_precision
def _element(step: Step) -> Element:
    """One step, by the root of the precision of u and x with what w tells of them.

    [W_u', 1; W_x', 0; w', 0] -> [U', 0; V', Z; t', z'],    J = Z Z', h = Z z, u | x, w ~ N(U^-1 (t - V x), (U' U)^-1).
    """
    new, seen, size = step.new, step.seen, step.new.const.shape[-1]
    noise, moved = new.matrix[..., size:], new.matrix[..., :size]
    # Transposed, so that rows are coordinates: W_u' [k, m], W_x' [n, m], w' [1, m].
    u, x = seen.matrix[..., size:].mT, seen.matrix[..., :size].mT
    own = u.shape[-2]
    unit = jnp.broadcast_to(jnp.eye(own, dtype=u.dtype), (*u.shape[:-1], own))
    below = jnp.concatenate([x, seen.const[..., None, :]], -2)
    below = jnp.pad(below, [(0, 0)] * (below.ndim - 1) + [(0, own)])
    above = jnp.concatenate([u, unit], -1)
    joint = compressed(jnp.concatenate([above, below], -2), own)
    gain = free_solved(joint[..., :own, :own], noise.mT).mT  # of x' on t - V x
    left = joint[..., own:, :own]
    told = _square(joint[..., own:, own:])
    # x' = c + A_x x + A_u u with u = U^-1 (t - V x) + U^-1 e: F = A_x - G V, b = c + G t, C^1/2 = G for G = A_u U^-1.
    return Element(
        moved - gain @ left[..., :-1, :].mT,
        new.const + times(gain, left[..., -1, :]),
        _square(gain),
        told[..., :-1, :],
        told[..., -1, :],
    )


def _square(root: Array) -> Array:
    """A root with as many columns as rows."""
    size, columns = root.shape[-2:]
    if columns > size:
        return compressed(root)
    return jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, size - columns)])


@full_precision
def _after(first: Element, second: Element) -> Element:
    """Steps, and those after them: Kalman's update of what is known after the first ones by what the others tell.

    With M = C^1/2' Z, 1 + M M' = L L' and 1 + M' M = R R', products stay as large as M, not as its square: the gain is
    C^1/2 L^-T (L^-1 M).
    """
    # y = x after the first steps has the law N(F x + b, C); the second ones tell of it exp(-|z - Z' y|^2 / 2).
    met = first.root.mT @ second.look
    left, right = (_lower_beside_unit(x) for x in (met, met.mT))
    inner = solved(left, first.root.mT, is_lower=True).mT
    gain = inner @ solved(left, met, is_lower=True)
    away = second.seen - times(second.look.mT, first.shift)
    # What the second ones tell of x: z - Z' b - Z' F x is N(0, 1 + M' M), whitened by R; beside it what the first ones tell.
    told = jnp.concatenate([first.move.mT @ second.look, away[..., None, :]], -2)
    told = solved(right, told.mT, is_lower=True).mT
    before = jnp.concatenate([first.look, first.seen[..., None, :]], -2)
    both = compressed(jnp.concatenate([told, before], -1))
    return Element(
        second.move @ (first.move - gain @ (second.look.mT @ first.move)),
        times(second.move, first.shift + times(gain, away)) + second.shift,
        compressed(jnp.concatenate([second.move @ inner, second.root], -1)),
        both[..., :-1, :],
        both[..., -1, :],
    )


def _lower_beside_unit(x: Array) -> Array:
    """The lower triangular L with L L' = 1 + X X'."""
    unit = jnp.broadcast_to(jnp.eye(x.shape[-2], dtype=x.dtype), (*x.shape[:-1], x.shape[-2]))
    return lower(jnp.concatenate([x, unit], -1))
