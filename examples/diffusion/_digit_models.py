"""What the scripts on digits share: images, a network that learns them, an independent judge, options and files.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels, scaled to mean 0 and variance 1 over all pixels.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from lapilli import inference
from lapilli.models import diffusion

VP = diffusion.VP()
CLASSES, SIZE = 10, 64


@functools.cache
def load() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 64] and labels."""
    x, labels = load_digits(return_X_y=True)
    return ((x - x.mean()) / x.std()).astype(np.float32), labels


def train(
    x: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_classes: int,
    width: int,
    num_steps: int,
    noising: Any = VP,
    noise: Any = None,
    depth: int = 3,
) -> Callable[..., Any]:
    """A function of the label, none for all images, that returns a diffusion model; of averaged parameters."""
    shape = x.shape[1:]
    network = diffusion.MLP(shape, num_classes=num_classes, width=width, depth=depth, key=key)
    fit = inference.fit(
        diffusion.score_matching(network, noising, drop_context=0.15, noise=noise),
        optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)),
        (jnp.asarray(x), None if labels is None else jnp.asarray(labels)),
        num_steps=num_steps, key=key, subsample={"rows": 128}, average=0.999,
    )  # fmt: skip
    return functools.partial(
        diffusion.from_network, network, noising, shape, params=fit.params, noise=noise
    )


class Judge:
    """A classifier that saw the real images only; its hidden layer gives the features of a Frechet distance."""

    def __init__(self, seed: int) -> None:
        x, labels = load()
        kept, held = np.split(np.random.default_rng(seed).permutation(len(x)), [len(x) - 400])
        self.net = MLPClassifier((64,), max_iter=400, random_state=seed, alpha=1e-2)
        self.net.fit(x[kept], labels[kept])
        self.accuracy = float(self.net.score(x[held], labels[held]))
        self.real = self.features(x)

    def features(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.net.coefs_[0] + self.net.intercepts_[0], 0)

    def classes(self, x: np.ndarray) -> np.ndarray:
        """Of images [*any, 64]."""
        return self.net.predict(x.reshape(-1, SIZE)).reshape(x.shape[:-1])

    def frechet(self, x: np.ndarray) -> float:
        """|m - m'|^2 + tr(S + S' - 2 (S S')^1/2) of the features of images [*any, 64] and of all real ones."""
        a, b = self.features(x.reshape(-1, SIZE)), self.real
        one, other = np.cov(a.T), np.cov(b.T)
        values, vectors = np.linalg.eigh(one)
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        # S S' has the eigenvalues of S^1/2 S' S^1/2, which is symmetric.
        common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
        means = ((a.mean(0) - b.mean(0)) ** 2).sum()
        return float(means + np.trace(one + other) - 2 * common)


def options(description: str, name: str, smoke: str) -> argparse.Namespace:
    """The options of a script; the folder `out` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    parser.add_argument("--record", action="store_true", help="write the page of figures' record")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    return chosen


def record_figure(*args: Any, **kwargs: Any) -> None:
    """See `examples/_record.py`."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from _record import record_figure

    record_figure(*args, **kwargs)


def keep(out: Path, text: str, metrics: dict, draws: dict[str, np.ndarray]) -> None:
    """Print the report; write report.txt, metrics.json and draws [draws, ...] by name as draws.nc."""
    print(text)
    (out / "report.txt").write_text(text + "\n")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    named = {name.replace(" ", "_"): np.asarray(x)[None] for name, x in draws.items()}
    tree = arviz.from_dict({"posterior": named}, sample_dims=["chain", "draw"])
    tree.to_netcdf(out / "draws.nc")
