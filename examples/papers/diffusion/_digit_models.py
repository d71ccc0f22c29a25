"""What the scripts on digits share: images, a network that learns them, an independent classifier, options and files.

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
from lapilli.inference import evaluation
from lapilli.models import diffusion

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure as record_figure

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
    num_classes: int = 0,
    encoder: Any = None,
    width: int,
    num_steps: int,
    noising: Any = VP,
    noise: Any = None,
    depth: int = 3,
) -> Callable[..., Any]:
    """A function of the label, none for all images, that returns a diffusion model; of averaged parameters.

    With an encoder in place of classes, of what it reads.
    """
    shape = x.shape[1:]
    network = diffusion.MLP(
        shape, num_classes=num_classes, encoder=encoder, width=width, depth=depth, key=key
    )
    fit = inference.fit(
        diffusion.score_matching(network, noising, drop_context=0.15, noise=noise),
        optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)),
        (jnp.asarray(x), None if labels is None else jnp.asarray(labels)),
        num_steps=num_steps, key=key, subsample={"rows": 128}, average=0.999,
    )  # fmt: skip
    return functools.partial(
        diffusion.from_network, network, noising, shape, params=fit.params, noise=noise
    )


class Classifier:
    """A classifier of digits, trained on a third of the real images; the other two are what samples are compared with.

    Attributes:
        accuracy: on the second third.
        real: the second third, which distances are taken from, [599, 64].
        held_out: the third, whose distance from the second is the floor.
    """

    def __init__(self, seed: int, hidden: int = 32) -> None:
        x, labels = load()
        train, real, held_out = np.split(np.random.default_rng(seed).permutation(len(x)), 3)
        self.net = MLPClassifier((hidden,), max_iter=800, random_state=seed, alpha=1e-2)
        self.net.fit(x[train], labels[train])
        self.accuracy = float(self.net.score(x[real], labels[real]))
        self.real, self.held_out = x[real], x[held_out]
        self.held_out_labels = labels[held_out]

    def features(self, x: np.ndarray) -> np.ndarray:
        """The hidden layer."""
        return np.maximum(x @ self.net.coefs_[0] + self.net.intercepts_[0], 0)

    def classes(self, x: np.ndarray) -> np.ndarray:
        """Of images [*any, 64]."""
        return self.net.predict(x.reshape(-1, SIZE)).reshape(x.shape[:-1])

    def frechet(self, x: np.ndarray) -> evaluation.Estimate:
        """Frechet distance of the hidden layer, of as many of the images [*any, 64] as there are real ones, at random."""
        x = np.random.default_rng(0).permutation(x.reshape(-1, SIZE))[: len(self.real)]
        return evaluation.frechet_distance(
            self.real,
            x,
            jax.random.key(0),
            features=self.features,
            held_out=self.held_out[: len(x)],
        )


def cells(distance: evaluation.Estimate) -> dict[str, float]:
    """What is kept of a distance: corrected, its error, and as it is without correction."""
    return {
        "Frechet": distance.value,
        "error": distance.standard_error,
        "Frechet plain": distance.details["plain"],
    }


def options(description: str, name: str, smoke: str) -> argparse.Namespace:
    """The options of a script; the folder `out` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(f"{name}_output"))
    return parsed(parser)


def keep(out: Path, text: str, metrics: dict, draws: dict[str, np.ndarray]) -> None:
    """Print the report; write report.txt, metrics.json and draws [draws, ...] by name as draws.nc."""
    print(text)
    (out / "report.txt").write_text(text + "\n")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    named = {name.replace(" ", "_"): np.asarray(x)[None] for name, x in draws.items()}
    tree = arviz.from_dict({"posterior": named}, sample_dims=["chain", "draw"])
    tree.to_netcdf(out / "draws.nc")
