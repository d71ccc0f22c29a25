"""What error regression knows, takes in and returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ...ppl._compat import is_concrete
from ._network import Categorical, Gaussian, State
from ._programs import Table


class Stream(eqx.Module):
    """What error regression knows after some observations: arrays only, to be saved and resumed.

    Attributes:
        key: data of the PRNG key of the whole stream, of which step t uses its own part.
        num_seen: number of steps so far, of which something was seen or not.
        adaptive: vectors of the window's steps, [W, 2 Z] by layer, the latest last.
        x: observations of the window, [W, size]; zero in cells that are not seen.
        seen: which cells are, boolean [W, size].
        edge: state before the window, [D] by layer.
        after_first: state after the window's first step.
        last: state after its last step.
    """

    key: Array
    num_seen: Int[Array, ""]
    adaptive: Table
    x: Array
    seen: Bool[Array, "window size"]
    edge: State
    after_first: State
    last: State


class Forecast(eqx.Module):
    """Laws of the next observations and of those in the window; see `log_score`, `mean`, `interval`.

    Attributes:
        emitted: [horizon, K, out]: row n - 1 for x_{t+n}, given x up to t.
        window: [W, K, out], for the window's own observations, by q ("postdiction").
        value: the objective at the window's vectors before the last optimiser step (nats); -inf without any.
        is_ready: whether the window has been inferred; false only while a window that does not grow is not yet full.
    """

    emitted: Float[Array, "horizon particles out"]
    window: Float[Array, "window particles out"]
    value: Float[Array, ""]
    is_ready: Bool[Array, ""]


class RegressionWindow(NamedTuple):
    """What the statements of a window read besides weights and vectors.

    Attributes:
        x: observations, [W, size].
        seen: which cells are, boolean [W, size].
        edge: state before the window, [D] by layer.
        is_first: which step is the sequence's first one, [W].
        is_valid: which steps are part of the sequence, [W].
        w: meta-prior, [2, layers]: of the sequence's first step, of the others.
    """

    x: Array
    seen: Bool[Array, "window size"]
    edge: State
    is_first: Bool[Array, " window"]
    is_valid: Bool[Array, " window"]
    w: Float[Array, "2 layers"]


def checked_cells(
    output: Gaussian | Categorical, x: ArrayLike, seen: Any, ndim: int
) -> tuple[Array, Array]:
    """Observations of an output, zero where they are not seen, and the cells that are.

    Seen values that the output does not have and that are not known yet are NaN, see `is_lost`.

    Raises:
        ValueError: a shape that does not fit; a cell that counts as seen and is not finite, or no symbol of the output.
    """
    size = output.size
    shape = jnp.shape(x)
    if len(shape) != ndim or shape[-1] != size:
        axes = "[size]" if ndim == 1 else "[steps, size]"
        raise ValueError(
            f"ErrorRegression: observations have shape {shape}; {axes} with size {size} is needed."
        )
    array = jnp if isinstance(seen, jax.Array) else np
    cells = np.ones(shape, bool) if seen is None else array.asarray(seen, bool)
    if cells.shape not in (shape, shape[:-1]):
        raise ValueError(
            f"ErrorRegression: argument 'seen' has shape {cells.shape}; give one entry for each cell, {shape}, or for each "
            f"step, {shape[:-1]}."
        )
    cells = cells if cells.shape == shape else array.broadcast_to(cells[..., None], shape)
    if is_concrete((x, cells)):
        values = jnp.asarray(x)
        _refuse(output, np.asarray(x), np.asarray(cells))
    else:
        values = jnp.where(_is_value(output, jnp.asarray(x)), x, jnp.nan)
    return jnp.where(cells, values, 0), jnp.asarray(cells)


def _is_value(output: Gaussian | Categorical, x: Array) -> Bool[Array, "*shape"]:
    """Whether each number is one that the output can have."""
    if isinstance(output, Categorical):
        return jnp.isin(x, jnp.arange(output.num_classes))
    return jnp.isfinite(x)


def _refuse(output: Gaussian | Categorical, x: np.ndarray, cells: np.ndarray) -> None:
    wrong = np.argwhere(cells & ~np.isfinite(x))
    if len(wrong):
        raise ValueError(
            f"ErrorRegression: {len(wrong)} cells that count as seen are not finite, the first at {wrong[0].tolist()}. "
            "Say which cells are seen, e.g. seen=~np.isnan(x); the others are left out."
        )
    wrong = np.argwhere(cells & ~np.asarray(_is_value(output, jnp.asarray(x))))
    if len(wrong) and isinstance(output, Categorical):
        raise ValueError(
            f"ErrorRegression: {len(wrong)} seen cells are no symbols of 0 to {output.num_classes - 1}, the first at "
            f"{wrong[0].tolist()}; each would be read as another one. Code the symbols so."
        )


def is_lost(x: Array) -> Bool[Array, ""]:
    """Whether `checked_cells` has found values that are none: all that follows is NaN then."""
    return jnp.isnan(x).any() if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros((), bool)
