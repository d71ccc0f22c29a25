"""The numbers of an event, each of its kind and on its scale, as rows of them show."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

type Kind = Literal["real", "whole", "few"]
_FEW = 20  # values from the least to the largest that are learned one by one
_CLEAR = 0.1  # nats that another scale must gain
_LEAST_SD = 1e-12  # of a column that never moves


class Scaling(NamedTuple):
    """Kinds and scales of the numbers of an event, [d] each.

    A number is z = (t(x) - mean) / scale, t being x, the root of x + 1/2 (whole numbers from 0 on), or log(x + offset) (positive
    numbers, and whole ones from 0 on with offset 1).

    Attributes:
        is_root, is_log: which t.
        offset: of the logarithm.
        mean, scale: of t.
        low: the least value of a whole number, or of few values; -inf where there is none.
    """

    is_root: np.ndarray
    is_log: np.ndarray
    offset: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray

    def scaled(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The scaled z of x; of a positive number that is not positive, of the smallest."""
        tiny = jnp.finfo(x.dtype).tiny
        log = jnp.log(jnp.maximum(jnp.where(self.is_log, x + self.offset, 1.0), tiny))
        root = jnp.sqrt(jnp.maximum(jnp.where(self.is_root, x + 0.5, 1.0), tiny))
        t = jnp.where(self.is_log, log, jnp.where(self.is_root, root, x))
        return (t - self.mean) / self.scale

    def value(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The inverse."""
        t = z * self.scale + self.mean
        root = jnp.maximum(t, 0.0) ** 2 - 0.5
        exp = jnp.exp(jnp.where(self.is_log, t, 0.0)) - self.offset
        return jnp.where(self.is_log, exp, jnp.where(self.is_root, root, t))

    def log_slope(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Log dz/dx."""
        tiny = jnp.finfo(x.dtype).tiny
        log = -jnp.log(jnp.maximum(jnp.where(self.is_log, x + self.offset, 1.0), tiny))
        half = jnp.maximum(jnp.where(self.is_root, x + 0.5, 1.0), tiny)
        root = -jnp.log(2.0) - 0.5 * jnp.log(half)
        t = jnp.where(self.is_log, log, jnp.where(self.is_root, root, 0.0))
        return t - jnp.log(self.scale)


def columns_of(
    rows: Float[np.ndarray, "N d"], context: Float[np.ndarray, "N c"]
) -> tuple[Scaling, tuple[Kind, ...], int]:
    """Scales, kinds and the most values of a column with few, of rows and of what their law is given.

    The scale is that on which the Normal of least squares has the largest density, unless the gain is small.
    """
    rows = np.asarray(rows, float)
    found, kinds, most = [], [], 0
    for x in rows.T:
        low, high = x.min(), x.max()
        if is_whole(x) and high - low < _FEW:
            start = min(low, 0.0) if high < _FEW else low
            kinds.append("few")
            most = max(most, int(high - start) + 1)
            sd = x.std()
            found.append((False, False, 0.0, x.mean(), sd if sd > _LEAST_SD else 1.0, start))
            continue
        whole = is_whole(x)
        kinds.append("whole" if whole else "real")
        offset = 1.0 if whole else 0.0
        t, jacobian = {"as it is": x}, {"as it is": 0.0}
        if whole and low >= 0:
            t["root"], jacobian["root"] = (x + 0.5) ** 0.5, -np.log(2 * (x + 0.5) ** 0.5).mean()
        if low + offset > 0:
            t["log"], jacobian["log"] = np.log(x + offset), -np.log(x + offset).mean()
        gains = {
            n: jacobian[n] - np.log(_left(context, t[n])) - _CLEAR * (n != "as it is") for n in t
        }
        best = max(gains, key=lambda n: gains[n])
        end = 0.0 if whole and low >= 0 else -np.inf
        found.append((best == "root", best == "log", offset, t[best].mean(), t[best].std(), end))
    parts = [np.array(x) for x in zip(*found, strict=True)]
    single = (x.astype(np.float32) if x.dtype != bool else x for x in parts)
    return Scaling(*single), tuple(kinds), most


def is_whole(x: np.ndarray) -> bool:
    """Whether all numbers are whole ones."""
    return bool((x == np.round(x)).all())


def _left(context: np.ndarray, t: np.ndarray) -> float:
    """Standard deviation of what a line in the context leaves, in units of t."""
    design = np.column_stack([np.clip(context, -5.0, 5.0), np.ones(len(t))])
    left = t - design @ np.linalg.lstsq(design, t, rcond=None)[0]
    return float(left.std()) + 1e-6 * float(t.std())
