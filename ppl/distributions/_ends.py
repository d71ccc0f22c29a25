"""The ends of an interval, known or computed, and where a monotone map of the line carries them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree
from numpyro.distributions import transforms

from .._compat import inverted, is_concrete

Ends = tuple[ArrayLike, ArrayLike]


def moved_ends(ends: Ends, transform: object) -> tuple[Ends, bool] | None:
    """The ends of the image of an interval under a monotone map of the line, and whether their order is known."""
    inverse = inverted(transform) is not None
    inner = inverted(transform) or transform
    if isinstance(inner, transforms.AffineTransform):
        if same_ends(ends, (-np.inf, np.inf)):
            return ends, True
        low, high = (_affine(e, inner.loc, inner.scale, inverse) for e in ends)
        is_known = is_concrete(inner.scale)
        is_falling = is_known and bool(np.all(np.asarray(inner.scale) < 0))
        is_rising = is_known and bool(np.all(np.asarray(inner.scale) > 0))
        return ((high, low) if is_falling else (low, high)), is_falling or is_rising
    if isinstance(inner, transforms.PowerTransform):
        low, high = (_power(e, 1 / inner.exponent if inverse else inner.exponent) for e in ends)
        return (low, high), False
    maps: dict[type, Any] = {
        transforms.ExpTransform: (jnp.exp, np.exp, jnp.log, np.log),
        transforms.SigmoidTransform: (jax.nn.sigmoid, _sigmoid, jax.scipy.special.logit, _logit),
        transforms.SoftplusTransform: (jax.nn.softplus, _softplus, _inv_softplus_j, _inv_softplus),
    }
    for kind, (f, f_np, inv, inv_np) in maps.items():
        if isinstance(inner, kind):
            traced, known = (inv, inv_np) if inverse else (f, f_np)
            with np.errstate(all="ignore"):
                return tuple(
                    known(np.asarray(e)) if is_concrete(e) else traced(e) for e in ends
                ), True  # type: ignore[return-value]
    return None


def _affine(end: PyTree, loc: PyTree, scale: PyTree, inverse: bool) -> ArrayLike:
    if is_concrete(end) and np.all(np.isinf(end)):
        return end * np.sign(np.asarray(scale)) if is_concrete(scale) else end
    if is_concrete(end) and not inverse and not np.any(end):
        return loc  # whatever the scale
    if is_concrete((end, loc)) and inverse and np.all(np.equal(end, loc)):
        return 0.0
    if is_concrete((end, loc, scale)):
        end, loc, scale = np.asarray(end), np.asarray(loc), np.asarray(scale)
    return (end - loc) / scale if inverse else loc + scale * end


def _power(end: PyTree, exponent: ArrayLike) -> ArrayLike:
    if is_concrete((end, exponent)):
        with np.errstate(all="ignore"):
            return np.power(np.asarray(end, float), exponent)
    if is_concrete(end) and np.all(np.isin(np.asarray(end), (0.0, 1.0, np.inf))):
        return end  # 0, 1 and infinity stay or change places
    return jnp.power(end, exponent)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _logit(x: np.ndarray) -> np.ndarray:
    return np.log(x) - np.log1p(-x)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0.0)


def _inv_softplus(x: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(x), x, x + np.log(-np.expm1(-x)))


def _inv_softplus_j(x: Array) -> Array:
    return x + jnp.log(-jnp.expm1(-x))


def same_ends(a: Ends, b: Ends) -> bool:
    """Whether two intervals are known to end alike."""
    return is_concrete((a, b)) and all(_equal(x, y) for x, y in zip(a, b, strict=True))


def _equal(x: PyTree, y: PyTree) -> bool:
    try:
        return bool(np.all(np.equal(x, y)))
    except ValueError:  # bounds of rows of other numbers
        return False
