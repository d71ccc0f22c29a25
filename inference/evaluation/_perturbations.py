"""What becomes of images on their way: blurred, made small and large again, in few levels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike
from ._inputs import images as checked


@checked_call
def blur(images: Float[ArrayLike, "n h w"], width: float) -> Float[np.ndarray, "n h w"]:
    """Images convolved with a Gaussian; beyond the edge the last pixel goes on.

    Args:
        images: n of them.
        width: standard deviation, in pixels.

    Raises:
        ValueError: what no images are, or a width that is not positive.
    """
    from scipy.ndimage import gaussian_filter

    (x,) = checked("blur", images=images)
    _positive("blur", "width", width, 0.0)
    if width > (side := max(x.shape[1:])):
        raise ValueError(
            f"blur: width is {width!r} pixels, and the images have {side}. Give a smaller number; all pixels are nearly equal "
            "from half of that on."
        )
    return gaussian_filter(x, (0, width, width), mode="nearest")


@checked_call
def rescale(images: Float[ArrayLike, "n h w"], factor: float) -> Float[np.ndarray, "n h w"]:
    """Images made smaller by a factor and as large again, linearly between pixels.

    Args:
        images: n of them.
        factor: of the sides, above 1.

    Raises:
        ValueError: what no images are, or a factor that is not above 1.
    """
    from scipy.ndimage import zoom

    (x,) = checked("rescale", images=images)
    _positive("rescale", "factor", factor, 1.0)
    size = np.array(x.shape[1:])
    small = np.maximum(np.rint(size / factor), 1)
    down = zoom(x, (1, *small / size), order=1, mode="nearest", grid_mode=True)
    return np.asarray(zoom(down, (1, *size / small), order=1, mode="nearest", grid_mode=True))


@checked_call
def quantise(
    images: Float[ArrayLike, "n h w"], levels: int, *, low: float, high: float
) -> Float[np.ndarray, "n h w"]:
    """Images with the nearest of equidistant values; those outside are cut off.

    Args:
        images: n of them.
        levels: number of values, at least 2.
        low: the least; the same for real and generated images, else they are told apart by it.
        high: the largest.

    Raises:
        ValueError: what no images are, fewer than 2 levels, or an empty range.

    Example:
        >>> quantise(np.linspace(0, 1, 32).reshape(2, 4, 4), 2, low=0.0, high=1.0).mean().item()
        0.5
    """
    (x,) = checked("quantise", images=images)
    check_counts("quantise", 2, levels=levels)
    _positive("quantise", "high", high, low)
    step = (high - low) / (levels - 1)
    level: np.ndarray = np.rint((np.clip(x, low, high) - low) / step)
    return low + step * level


def _positive(label: str, name: str, value: float, least: float) -> None:
    if not least < value < np.inf:
        raise ValueError(f"{label}: {name} is {value!r}. Give a finite number above {least}.")
