"""Spectra of images convolved with a known kernel; what blurring, rescaling and quantising do."""

import numpy as np
import pytest

from lapilli.inference import evaluation
from lapilli.inference.evaluation._inputs import generator
from lapilli.inference.evaluation._spectra import _frequencies

SIZE = 16


def kernel():
    tap = np.exp(-0.5 * np.arange(-2, 3) ** 2)
    padded = np.zeros((SIZE, SIZE))
    padded[:5, :5] = np.outer(tap, tap) / tap.sum() ** 2
    return np.fft.fft2(padded)


def on_rings(x):
    """Mean over rings, by hand."""
    ring = np.rint(_frequencies(SIZE, SIZE) * SIZE).astype(int)
    return np.array([x[ring == r].mean() for r in range(1, SIZE // 2 + 1)])


def convolved(x):
    return np.fft.ifft2(np.fft.fft2(x) * kernel()).real


def test_a_known_kernel_is_the_gap(seed):
    draws = generator(seed)
    x, y = draws.normal(size=(2, 500, SIZE, SIZE))
    exact = on_rings(np.log(np.abs(kernel()) ** 2))
    same = evaluation.spectral_gap(x, convolved(x))
    np.testing.assert_allclose(same.gap, exact, atol=1e-9)
    found = evaluation.spectral_gap(x, convolved(y))
    assert (np.abs(found.gap - exact) < 4.5 * found.standard_error).all()
    assert (found.standard_error < 0.05).all()
    assert found.top_octave.value == pytest.approx(exact[4:].mean(), abs=0.05)
    assert found.frequency[-1] == 0.5


@pytest.mark.fast("seed0")
def test_spectra_of_different_sizes_have_no_bias(seed):
    """25 against 400 images: a logarithm of a mean without its correction is off by 1/50, 5 errors here."""
    draws, values = generator(seed), []
    for _ in range(200):
        x, y = draws.normal(size=(400, 8, 8)), draws.normal(size=(25, 8, 8))
        values.append(evaluation.spectral_gap(x, y).top_octave.value)
    assert abs(np.mean(values)) < 4.5 * np.std(values) / 200**0.5
    assert np.std(values) / 200**0.5 < 0.005


def test_floors_and_exports_of_spectra(seed):
    draws = generator(seed)
    x, y, other = draws.normal(size=(3, 60, 8, 8))
    found = evaluation.spectral_gap(x, 2 * y, held_out=other)
    assert found.mean_absolute.floor.value < 0.2 < found.mean_absolute.value
    assert found.top_octave.z > 10 and len(repr(found).splitlines()) == 2
    assert found.to_xarray()["gap"].dims == ("frequency",)
    (axis,) = found.plot().axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), found.gap)


def test_high_frequencies_are_kept_alone(seed):
    x = generator(seed).normal(size=(3, 8, 8)) + 5.0
    high = evaluation.high_pass(x, 0.3)
    kept = _frequencies(8, 8) >= 0.3
    np.testing.assert_allclose(np.fft.fft2(high)[:, ~kept], 0, atol=1e-9)
    np.testing.assert_allclose(np.fft.fft2(high)[:, kept], np.fft.fft2(x)[:, kept], rtol=1e-9)


def test_images_on_their_way(seed):
    x = generator(seed).normal(size=(5, 8, 8))
    flat = np.ones((2, 9, 6))
    for change in (lambda x: evaluation.blur(x, 1.0), lambda x: evaluation.rescale(x, 2.0)):
        assert change(x).shape == x.shape and change(x).std() < 0.7 * x.std()
        np.testing.assert_allclose(change(flat), 1.0)
    assert evaluation.rescale(x, 3.0).shape == x.shape
    np.testing.assert_allclose(evaluation.rescale(x, 8.0)[0], x[0].mean(), atol=0.8)
    few = evaluation.quantise(x, 3, low=-1.0, high=1.0)
    assert set(np.unique(few)) == {-1.0, 0.0, 1.0}
    assert np.abs(few - np.clip(x, -1, 1)).max() <= 0.5
