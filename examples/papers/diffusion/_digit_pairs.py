"""Two digits side by side, and who stands where: models given (left, right), judged by the pair and its mirror image.

An image is the pixels of the left digit and those of the right one, [128]. Of some unlike classes {a, b} one order is left out of
the training, so that (b, a) is met there and (a, b) is not.
"""

from typing import Any, NamedTuple

import _digit_models as digit_models
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _digit_models import CLASSES, SIZE, VP
from sklearn.linear_model import LogisticRegression

from lapilli.inference.diffusion import Diffusion
from lapilli.models import diffusion

NUM_LEFT_OUT = 15  # of the 45 pairs of unlike classes


class Pairs(NamedTuple):
    """Images [n, 128], pairs (left, right) of classes [n, 2], and whether that order is in the training."""

    x: np.ndarray
    classes: np.ndarray
    is_seen: np.ndarray


class Sets(NamedTuple):
    train: Pairs
    test: Pairs


def make(images: tuple[np.ndarray, ...], num_train: int, num_test: int, seed: int) -> Sets:
    """Pairs of images and labels to train and to test; those to test of unlike classes, each followed by its mirror image."""
    rng = np.random.default_rng(seed)
    unlike = np.stack(np.triu_indices(CLASSES, 1), 1)
    left_out = {tuple(rng.permutation(pair)) for pair in rng.permutation(unlike)[:NUM_LEFT_OUT]}

    def pairs(x: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Pairs:
        classes = labels[rows]
        is_seen = np.array([tuple(c) not in left_out for c in classes])
        return Pairs(x[rows].reshape(-1, 2 * SIZE), classes, is_seen)

    x, labels, test, answers = images
    train = pairs(x, labels, rng.integers(len(x), size=(num_train, 2)))
    rows = rng.integers(len(test), size=(4 * num_test, 2))
    # As many of classes with an order left out as of others: of all pairs a sixth would be.
    has_left_out = np.array([not {(a, b), (b, a)}.isdisjoint(left_out) for a, b in answers[rows]])
    is_unlike = answers[rows[:, 0]] != answers[rows[:, 1]]
    of = lambda mask: rows[is_unlike & mask][: num_test // 4]
    rows = np.concatenate([of(has_left_out), of(~has_left_out)])
    both = np.stack([rows, rows[:, ::-1]], 1).reshape(-1, 2)
    return Sets(Pairs(*(a[train.is_seen] for a in train)), pairs(test, answers, both))


def gaussians(model: Any) -> Any:
    """Models of pairs from exact ones of single digits."""

    def of(pair: jax.Array) -> Diffusion:
        left, right = (model(c) for c in pair)
        score = lambda x, t: jnp.concatenate([left.score(x[:SIZE], t), right.score(x[SIZE:], t)])
        return Diffusion(VP, score, (2 * SIZE,))

    return of


def network(train: Pairs, width: int, num_steps: int, key: jax.Array) -> Any:
    """A network given both classes, each by a number for each value."""
    told = lambda pair: jax.nn.one_hot(pair, CLASSES).reshape(*pair.shape[:-1], -1)
    encoder = eqx.nn.MLP(2 * CLASSES, 32, 64, 1, jax.nn.silu, key=jax.random.fold_in(key, 1))
    model = digit_models.train(
        train.x, told(jnp.asarray(train.classes)), key, encoder=encoder, width=width, num_steps=num_steps
    )  # fmt: skip
    return lambda pair: model(context=told(pair))


def of_two(mirrored: np.ndarray) -> np.ndarray:
    """Whether the first of two scores is larger, [n, 2] -> [n]; half for a tie."""
    return (np.sign(mirrored[:, 0] - mirrored[:, 1]) + 1) / 2


def right(model: Any, test: Pairs, key: jax.Array, **options: Any) -> np.ndarray:
    """Whether a diffusion model prefers the pair to its mirror image, [n]."""
    pair = jnp.asarray(test.classes)
    contexts = jnp.stack([pair, pair[:, ::-1]], 1)
    one = lambda inputs: diffusion.classify(model, inputs[0], *inputs[1:], **options).scores
    run = jax.jit(lambda *inputs: jax.lax.map(one, inputs, batch_size=50))
    return of_two(np.asarray(run(contexts, test.x, jax.random.split(key, len(pair)))))


def right_by_features(train: Pairs, test: Pairs, *, is_pooled: bool) -> np.ndarray:
    """The same of logistic regressions of left and of right, on the mean of both digits, or on all pixels in their places."""
    features = lambda x: x.reshape(-1, 2, SIZE).mean(1) if is_pooled else x
    scores = 0.0
    for place in (0, 1):
        found = LogisticRegression(C=0.01, max_iter=2_000)
        found.fit(features(train.x[:2_000]), train.classes[:2_000, place])
        log_probs = found.predict_log_proba(features(test.x))
        scores = scores + np.take_along_axis(
            log_probs, np.stack([test.classes[:, place], test.classes[:, 1 - place]], 1), 1
        )
    return of_two(np.asarray(scores))
