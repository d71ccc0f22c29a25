"""Translation between two data sets without pairs: thin digits to thick ones, by flows and by a Schrödinger bridge.

What it shows: half of the digits stay as they are, the other half are thickened, and no digit is seen both ways. A flow from the
one set to the other is learned with ends that are paired at random, by optimal transport of batches, or as the Schrödinger
bridge, by iterated Markovian fitting, which is a diffusion. What a held-out thin digit becomes is compared with the same digit
thickened, which nobody was shown: squared distance of the pixels, beside that of the digit left as it is; the share whose class a
classifier of thick digits still finds; and whether the translated ones have the law of thick digits (sliced Wasserstein).

Data: scikit-learn's digits; thickening is a grey dilation by a cross, after each image was doubled in size, and halved again.
Source: translation as one of the tasks of generative models, Pinaya et al. 2023, arXiv:2307.15208 (on volumes; no figures are
comparable); Shi et al. 2023, arXiv:2303.16852 (bridges by iterated Markovian fitting, there of letters to digits).

Expected: docs/_data/figures, diffusion/translation. Run time: five minutes on 2 CPU cores.

    python examples/papers/diffusion/translation.py [--smoke] [--seed 0] [--seeds 3] [--out translation_output] [--record]
"""

from pathlib import Path
from typing import Any, NamedTuple

import _digit_models as digit_models
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _over_seeds import Row, over_seeds
from scipy import ndimage
from sklearn.neural_network import MLPClassifier

from lapilli import inference
from lapilli.inference import evaluation
from lapilli.models import diffusion, paths

NOISE = 0.5


class Config(NamedTuple):
    num_training_steps: int = 4_000
    num_rounds: int = 4
    width: int = 192
    num_steps: int = 50


class Pair(eqx.Module):
    """E[u | x_t] and E[z | x_t], two networks."""

    u: diffusion.MLP
    z: diffusion.MLP
    num_classes: int = eqx.field(static=True, default=0)

    def __call__(self, x: jax.Array, t: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
        return self.u(x, 2 * t - 1, context), self.z(x, 2 * t - 1, context)


def thickened(x: np.ndarray) -> np.ndarray:
    """Digits [n, 64] whose strokes are one half of a pixel wider on each side."""
    large = np.kron(x.reshape(-1, 8, 8), np.ones((2, 2)))
    cross = ndimage.generate_binary_structure(2, 1)[None]
    wide = ndimage.grey_dilation(large, footprint=cross)
    return wide.reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64).astype(np.float32)


def flows(
    config: Config, thin: np.ndarray, thick: np.ndarray, key: jax.Array
) -> dict[str, tuple[paths.Field, float]]:
    """Fields by name, and the noise of their diffusion."""
    keys = jax.random.split(key, 4)
    found = {}
    steps = config.num_training_steps
    for name, coupling in {
        "random pairs": paths.independent,
        "optimal transport": paths.transport,
    }.items():
        network = diffusion.MLP((64,), width=config.width, key=keys[0])
        matching = paths.flow_matching(
            network, paths.linear(), thin, coupling=coupling, batch_size=64
        )
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
        fit = inference.fit(
            matching, optimizer, (thick,), num_steps=steps, key=keys[1], average=0.999, progress=False
        )  # fmt: skip
        found[name] = paths.from_network(network, paths.linear(), params=fit.params), 0.0
    networks = Pair(*(diffusion.MLP((64,), width=config.width, key=k) for k in keys[:2]))
    field = paths.bridge(
        networks, thin, thick, keys[2], noise=NOISE, optimizer=optax.adam(5e-4), num_rounds=config.num_rounds,
        num_training_steps=steps // 2, batch_size=64, num_steps=config.num_steps,
    )  # fmt: skip
    return found | {"bridge": (field, NOISE**2 / 2)}


def run(config: Config, seed: int) -> tuple[Row, Any]:
    x, labels = digit_models.load()
    order = np.random.default_rng(seed).permutation(len(x))
    one, other, held, judged = np.array_split(order, [700, 1400, 1600])
    thick = thickened(x)
    judge = MLPClassifier((64,), max_iter=600, random_state=seed, alpha=1e-2)
    judge.fit(thick[np.concatenate([one, other])], labels[np.concatenate([one, other])])
    key = jax.random.key(seed)
    rows: Row = {}
    images = {"thin": x[held], "thick": thick[held]}

    def told(name: str, made: np.ndarray) -> None:
        rows[f"{name}: squared distance to the digit thickened"] = float(
            np.mean((made - thick[held]) ** 2)
        )
        rows[f"{name}: class kept"] = float(np.mean(judge.predict(made) == labels[held]))
        law = evaluation.sliced_wasserstein(thick[judged], made, key, num_directions=200)
        rows[f"{name}: distance to other thick digits"] = law.value

    for name, made in {"left as it is": x[held], "thickened": thick[held]}.items():
        told(name, made)
    for name, (field, noise) in flows(
        config, jnp.asarray(x[one]), jnp.asarray(thick[other]), key
    ).items():
        draw = lambda v, f=field, e=noise: paths.diffuse(
            f, key, v, noise=e, num_steps=config.num_steps
        )
        images[name] = np.asarray(jax.jit(draw)(jnp.asarray(x[held])))
        told(name, images[name])
    return rows, images


def draw(images: dict[str, np.ndarray], out: Path) -> None:
    import matplotlib.pyplot as plt

    frame = lambda image: np.pad(image.reshape(8, 8), 1, constant_values=-1)
    stripes = [np.concatenate([frame(i) for i in x[:12]], 1) for x in images.values()]
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.imshow(np.concatenate(stripes), cmap="gray_r", vmin=-1, vmax=2)
    axis.set(xticks=[], yticks=5 + 10 * np.arange(len(images)), yticklabels=list(images))
    figure.savefig(out / "translation.png", dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    over_seeds(
        "translation", run, Config(), Config(200, 2, 48, 20), draw=draw, arguments=arguments,
        what="Thin digits translated to thick ones without pairs, 200 held out", measures=["models/paths"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
