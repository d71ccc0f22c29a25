"""A law of digits that is known: a Gaussian mixture of principal components, three Gaussians a class; and a network of it.

Posteriors and squares of the mixture are mixtures again, so that what is sampled from it can be compared with exact draws. The
network learns from draws of the mixture, as many as it likes: its errors are those of learning, not of too few images.
"""

import functools
from typing import Any, NamedTuple

import _digit_models as digit_models
import jax
import numpy as np
from _digit_models import CLASSES, VP
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from lapilli.models import diffusion

SIDE = 8


class Mixture(NamedTuple):
    """The law of the coordinates z; an image is mean + axes z.

    Attributes:
        weights: [components].
        means: [components, axes].
        variances: [components, axes].
        mean: [pixels].
        axes: [pixels, axes].
        held_out: coordinates of images that were not fitted, [images, axes].
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    held_out: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """Of the components."""
        return np.repeat(np.arange(CLASSES), len(self.weights) // CLASSES)

    def model(self) -> Any:
        """The diffusion model with exact scores and densities."""
        return diffusion.gaussian_mixture(VP, self.weights, self.means, self.variances)

    def draws(self, num: int, rng: np.random.Generator, label: int | None = None) -> np.ndarray:
        """Exact, [num, axes], of all classes or of one."""
        weights = self.weights * (True if label is None else self.classes == label)
        k = rng.choice(len(weights), num, p=weights / weights.sum())
        return rng.normal(self.means[k], np.sqrt(self.variances[k]))

    def log_parts(self, z: np.ndarray) -> np.ndarray:
        """Log of weight times density of each component, [*any, components]."""
        square = (z[..., None, :] - self.means) ** 2 / self.variances
        return np.log(self.weights) - 0.5 * (square + np.log(2 * np.pi * self.variances)).sum(-1)

    def shares(self, z: np.ndarray) -> np.ndarray:
        """How much of the points belongs to each component, [components]."""
        logs = self.log_parts(z)
        return np.exp(logs - logsumexp(logs, axis=1, keepdims=True)).mean(0)

    def images(self, z: np.ndarray) -> np.ndarray:
        """[*any, 8, 8]."""
        return (self.mean + z @ self.axes.T).reshape(*np.shape(z)[:-1], SIDE, SIDE)


@functools.cache
def fitted(per_class: int, num_axes: int) -> Mixture:
    """To 1,500 images."""
    x, labels = digit_models.load()
    order = np.random.default_rng(0).permutation(len(x))
    train, rest = order[:1500], order[1500:]
    pca = PCA(num_axes, random_state=0).fit(x[train])
    scale = pca.transform(x[train]).std()
    z = pca.transform(x) / scale
    fits = [
        GaussianMixture(per_class, covariance_type="diag", random_state=0, reg_covar=0.02).fit(
            z[train][labels[train] == c]
        )
        for c in range(CLASSES)
    ]
    join = lambda name: np.concatenate([getattr(f, name) for f in fits])
    return Mixture(
        join("weights_") / CLASSES, join("means_"), join("covariances_"), pca.mean_, pca.components_.T * scale, z[rest]
    )  # fmt: skip


def learned(mixture: Mixture, key: jax.Array, *, width: int, num_steps: int) -> Any:
    """The diffusion model of a network trained on 50,000 draws."""
    z = mixture.draws(50_000, np.random.default_rng(1)).astype(np.float32)
    return digit_models.train(z, None, key, num_classes=0, width=width, num_steps=num_steps)()
