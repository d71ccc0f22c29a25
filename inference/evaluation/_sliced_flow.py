"""The gradient of the sliced Wasserstein distance in the points of a sample, and the flow along it."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, PyTree

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike
from ...ppl._show import shown
from ...ppl._types import Key
from ._inputs import generator, rows
from ._sliced import Control, common_steps, corrected, directions, projected, slope


@shown
@dataclasses.dataclass(frozen=True)
class SlicedFlow:
    """See `sliced_wasserstein_flow`.

    Attributes:
        points: the sample at the end, [n, d].
        values: estimates of SW^2 before each step, with the directions of the step.
    """

    points: Float[np.ndarray, "n d"]
    values: Float[np.ndarray, " steps"]


@checked_call
def sliced_wasserstein_gradient(
    points: Float[ArrayLike, "n d"],
    real: Float[ArrayLike, "m d"],
    key: Key,
    *,
    num_directions: int = 10,
    control: Control = "both",
) -> Float[np.ndarray, "n d"]:
    """Gradient of the squared sliced Wasserstein distance in the points of a sample, with control variates.

        grad = mean_l grad W_l - a (mean_l grad G_l - grad E G),  a held fixed

    Args:
        points: n rows, in which the gradient is taken.
        real: m rows.
        key: PRNG key of the directions.
        num_directions: L, as in `sliced_wasserstein`.
        control: as in `sliced_wasserstein`; a is cross-fitted.

    Returns:
        [n, d].

    Raises:
        ValueError: as `sliced_wasserstein`.

    Validity: unbiased over directions, since each half of them is corrected with the other half's a. Where projections tie, it is
    one of the subgradients.
    """
    x, y = _checked("sliced_wasserstein_gradient", points, real, num_directions, control)
    return _gradient(x, y, directions(generator(key), num_directions, x.shape[1]), control)[1]


@checked_call
def sliced_wasserstein_flow(
    start: Float[ArrayLike, "n d"],
    real: Float[ArrayLike, "m d"],
    key: Key,
    *,
    num_steps: int = 500,
    step_size: float = 1.0,
    num_directions: int = 10,
    control: Control = "both",
) -> SlicedFlow:
    """Move points along the gradient of the squared sliced Wasserstein distance: x <- x - step_size n grad SW^2.

    Args:
        start: n rows.
        real: m rows to move to.
        key: PRNG key; each step has directions of its own.
        num_steps: of the flow.
        step_size: in units of 1 / n; with 1 a shift shrinks by 1 - 2 / d a step.
        num_directions: L of each step.
        control: as in `sliced_wasserstein`.

    Returns:
        A `SlicedFlow`.

    Raises:
        ValueError: as `sliced_wasserstein`, or a step that is not positive.

    Validity: a stochastic gradient descent, unbiased in each step; it ends at a distance that falls with the step size and with
    the noise of the directions.
    """
    label = "sliced_wasserstein_flow"
    x, y = _checked(label, start, real, num_directions, control)
    check_counts(label, num_steps=num_steps)
    if not 0 < step_size < np.inf:
        raise ValueError(
            f"{label}: step_size is {step_size!r}. Give a positive number, e.g. 1.0; a larger one than d diverges."
        )
    draws, values = generator(key), []
    for _ in range(num_steps):
        theta = directions(draws, num_directions, x.shape[1])
        value, gradient = _gradient(x, y, theta, control)
        values.append(value)
        x = x - step_size * len(x) * gradient
    return SlicedFlow(x, np.array(values))


def _checked(
    label: str, x: PyTree, y: ArrayLike, num_directions: int, control: Control
) -> list[np.ndarray]:
    check_counts(label, 8 if control == "both" else 4, num_directions=num_directions)
    return rows(label, None, {"points": x, "real": y})


def _gradient(
    x: np.ndarray, y: np.ndarray, theta: np.ndarray, control: Control
) -> tuple[float, np.ndarray]:
    """SW^2 and its gradient in x, [n, d]."""
    n, d = x.shape
    w, g = projected(x, y, theta, control)
    each = np.zeros((len(theta), g.shape[1]))
    if g.shape[1]:
        half = np.arange(len(theta)) % 2 == 1
        each[half], each[~half] = slope(w[~half], g[~half]), slope(w[half], g[half])
    # Sums over the controls with (theta'Delta)^2, and of those with s^2: the weight of each term in direction l.
    by_mean = each.sum(1)
    by_spread = each[:, -1] if control in ("upper", "both") else np.zeros(len(theta))
    delta, centred = x.mean(0) - y.mean(0), x - x.mean(0)
    along = _moves(x @ theta.T, y @ theta.T)  # [n, directions], d W_l / d x_i = along theta_l
    along = along - 2 / n * by_mean * (theta @ delta) - 2 / n * by_spread * (centred @ theta.T)
    gradient = along @ theta / len(theta)
    gradient += 2 / (n * d) * (by_mean.mean() * delta + by_spread.mean() * centred)
    return corrected(w, g, "cross")[0], gradient


def _moves(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Derivative of the transport between columns in each entry of a."""
    order, b = np.argsort(a, 0), np.sort(b, 0)
    ranked = np.take_along_axis(a, order, 0)
    if len(a) == len(b):
        by_rank = 2 / len(a) * (ranked - b)
    else:
        i, j, widths = common_steps(len(a), len(b))
        by_rank = np.zeros_like(a)
        np.add.at(by_rank, i, 2 * widths[:, None] * (ranked[i] - b[j]))
    moves = np.empty_like(a)
    np.put_along_axis(moves, order, by_rank, 0)
    return moves
