"""Comparison by scale: radially averaged log power, and images without their low frequencies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._compat import ArrayLike
from .._figure import empty_figure
from ._estimate import Estimate
from ._inputs import check_held_out, groups, images as checked, jackknife_error

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_GROUPS = 20


@dataclasses.dataclass(frozen=True)
class SpectralGap:
    """See `spectral_gap`; printing it is a line for each of the two numbers.

    Attributes:
        frequency: of the rings, cycles per pixel, up to 1/2.
        gap: log power of generated images less that of real ones, nats.
        standard_error: of the gap, by a jackknife.
        mean_absolute: mean of the gap's absolute value over rings; above 0 by noise alone, see its floor.
        top_octave: mean of the gap over rings above 1/4.
    """

    frequency: Float[np.ndarray, " rings"]
    gap: Float[np.ndarray, " rings"]
    standard_error: Float[np.ndarray, " rings"]
    mean_absolute: Estimate
    top_octave: Estimate

    def __repr__(self) -> str:
        return f"{self.mean_absolute!r}\n{self.top_octave!r}"

    def to_xarray(self) -> xarray.Dataset:
        """`gap` and `standard_error` along "frequency"."""
        import xarray

        data = {
            "gap": ("frequency", self.gap),
            "standard_error": ("frequency", self.standard_error),
        }
        return xarray.Dataset(data, coords={"frequency": self.frequency})

    def plot(self) -> Figure:
        """The gap with two standard errors over the frequency."""
        figure = empty_figure((6.0, 3.5))
        axis = figure.subplots()
        low, high = (self.gap + sign * 2 * self.standard_error for sign in (-1, 1))
        axis.fill_between(self.frequency, low, high, color="C0", alpha=0.3, lw=0)
        axis.plot(self.frequency, self.gap, "-o", color="C0", ms=3)
        axis.axhline(0.0, color="0.4", ls=":", lw=1)
        axis.set_xlabel("cycles per pixel")
        axis.set_ylabel("log power, generated less real")
        return figure


@checked_call
def spectral_gap(
    real: Float[ArrayLike, "n h w"],
    generated: Float[ArrayLike, "m h w"],
    *,
    held_out: Float[ArrayLike, "m h w"] | None = None,
) -> SpectralGap:
    """Gap of log power between generated and real images, averaged over rings of equal frequency.

        g(f) = mean over wave vectors k of the ring [log E|F_generated(k)|^2 - log E|F_real(k)|^2]

    Args:
        real: n images.
        generated: m images of the same size.
        held_out: real images for the floor, as many as `generated`.

    Returns:
        A `SpectralGap`, in nats. Rings are one over the shorter side wide; corners beyond 1/2 are left out.

    Raises:
        ValueError: what no images are; fewer than 20 of them; a wave vector without power.

    Validity: the logarithm of a mean over n images is too low by var / (2 n mean^2), which is added; the rest is of order
    1 / n^2. Images are taken as periodic: the step between opposite edges has power of its own, in both samples. Power says
    nothing of phases: white noise of the right spectrum passes.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 8, 8))
        >>> round(spectral_gap(x, 2 * x).top_octave.value, 6)  # log 4: amplitudes by 2, everywhere
        1.386294
    """
    label = "spectral_gap"
    x, y, *other = checked(label, real=real, generated=generated, held_out=held_out)
    made = _gap(label, x, y)
    if other:
        check_held_out(label, x, y, other[0])
        floor = _gap(label, x, other[0])
        numbers = {
            name: dataclasses.replace(getattr(made, name), floor=getattr(floor, name))
            for name in ("mean_absolute", "top_octave")
        }
        made = dataclasses.replace(made, **numbers)
    return made


@checked_call
def high_pass(images: Float[ArrayLike, "n h w"], cutoff: float) -> Float[np.ndarray, "n h w"]:
    """Images without frequencies below a cutoff, e.g. for a Frechet distance of details.

    Args:
        images: n of them, taken as periodic.
        cutoff: cycles per pixel, between 0 and 1/2.

    Raises:
        ValueError: what no images are, or another cutoff.
    """
    (x,) = checked("high_pass", images=images)
    if not 0 < cutoff < 0.5:
        raise ValueError(
            f"high_pass: cutoff is {cutoff!r} cycles per pixel. Give one between 0 and 0.5, e.g. 0.25 for the top octave."
        )
    kept = _frequencies(*x.shape[1:]) >= cutoff
    return np.fft.ifft2(np.fft.fft2(x) * kept).real


def _frequencies(h: int, w: int) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])


def _gap(label: str, x: np.ndarray, y: np.ndarray) -> SpectralGap:
    h, w = x.shape[1:]
    ring = np.rint(_frequencies(h, w) * min(h, w)).astype(int)
    last = min(h, w) // 2
    top = np.arange(1, last + 1) > last / 2
    powers = [_power(label, name, part) for name, part in (("real", x), ("generated", y))]

    def rings(left_out: int | None) -> np.ndarray:
        one, two = (_log_mean(power, left_out) for power in powers)
        sums = np.bincount(ring.ravel(), (two - one).ravel())
        return (sums / np.bincount(ring.ravel()))[1 : last + 1]

    gap = rings(None)
    without = np.array([rings(g) for g in range(_GROUPS)])
    sizes = (len(x), len(y))
    absolute = Estimate(
        float(np.abs(gap).mean()), float(jackknife_error(np.abs(without).mean(1))),
        name="mean absolute spectral gap", sizes=sizes,
    )  # fmt: skip
    highest = Estimate(
        float(gap[top].mean()), float(jackknife_error(without[:, top].mean(1))),
        exact=0.0, name="spectral gap of the top octave", sizes=sizes,
    )  # fmt: skip
    frequency = np.arange(1, last + 1) / min(h, w)
    return SpectralGap(frequency, gap, np.asarray(jackknife_error(without)), absolute, highest)


def _power(label: str, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each group of images their number, the sum of the power and of its square, by wave vector."""
    group = groups(len(x), _GROUPS)
    terms = []
    for g in range(_GROUPS):
        power = np.abs(np.fft.fft2(x[group == g])) ** 2
        terms.append((len(power), power.sum(0), (power**2).sum(0)))
    counts, sums, squares = (np.array(t) for t in zip(*terms, strict=True))
    total = sums.sum(0)
    empty = total <= 1e-20 * total.max()
    empty[0, 0] = False  # the mean belongs to no ring
    if len(x) < _GROUPS or empty.any():
        raise ValueError(
            f"{label}: {name} has {len(x)} images and {int(empty.sum())} wave vectors without power, whose logarithm is not "
            f"finite. Give {_GROUPS} images or more, that were not filtered or made larger."
        )
    return counts, sums, squares


def _log_mean(power: tuple[np.ndarray, np.ndarray, np.ndarray], left_out: int | None) -> np.ndarray:
    """Logarithm of the mean power by wave vector, less its bias."""
    kept = np.arange(_GROUPS) != (-1 if left_out is None else left_out)
    counts, sums, squares = (term[kept].sum(0) for term in power)
    mean = np.maximum(sums / counts, np.finfo(float).tiny)
    variance = np.maximum(squares / counts - mean**2, 0.0) * counts / max(counts - 1, 1)
    return np.log(mean) + variance / (2 * counts * mean**2)
