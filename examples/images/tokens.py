"""Images as tokens of three kinds, stable and unstable ones, under an autoregressive and an any-order model.

What it shows: 49 tokens of 2 x 2 pixels by k-means of raw patches, by a vector-quantised autoencoder of windows, and by k-means
of features of windows that were trained to be the same in two noisy views (variance, covariance and invariance). On each, a
causal transformer and an any-order model of `models.mam`, whose likelihoods are exact (given an order), and a decoder of grey
levels. So that tokenisers compare in nats an image, whatever their tokens,

    log p(x) >= log p(tokens(x)) + log p(x | tokens(x)).

Printed beside: the share of tokens that noise of standard deviation 0.05 in grey values flips, and the accuracy of a linear
probe of digits on the causal transformer's hidden states, averaged over positions.

Data: MNIST, 14 x 14 pixels in 8 grey levels, 3,000 images to learn from, 500 held-out images. Source: Zhu et al. 2024,
arXiv:2410.12490 (DiGIT: autoregressive models suffer from unstable tokens, masked ones do not; discriminative tokens are
stable), whose figures are Frechet inception distances on ImageNet. Expected before the run: fewer flips and a probe at least 5
points better for invariant features; the rest is open.

Expected: see the page of figures. Run time: three minutes of processor time.

    python examples/images/tokens.py [--smoke] [--seed 0] [--out tokens_output]
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _mnist import GRID, LEVELS, SIDE, SIZE, Split, keep, options, record_figure, split, tiles
from _two_stage import fitted, with_params
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from lapilli import inference, ppl
from lapilli.models import mam

PATCH, NUM_TOKENS = 2, 49
NOISE = 0.05 * 4  # of grey values in [0, 1], in points
fit = functools.partial(fitted, average=0.99)  # few steps, of which the first should not count
KINDS = ("raw patches", "autoencoder", "invariant features")
Tokeniser = Callable[[np.ndarray], np.ndarray]  # points [n, 196] -> tokens [n, 49]


class Config(NamedTuple):
    num_values: int = 32
    feature_steps: int = 400
    causal_steps: int = 600
    order_steps: int = 600
    decoder_steps: int = 600
    width: int = 32
    batch: int = 32
    num_held_out: int = 500


def windows(points: np.ndarray, margin: int) -> np.ndarray:
    """Patches with a margin of pixels around, [n, 49, (2 + 2 margin)^2]; beyond the border it is white."""
    x = np.pad(points.reshape(-1, SIDE, SIDE), ((0, 0), (margin, margin), (margin, margin)), constant_values=GRID[0])  # fmt: skip
    size = PATCH + 2 * margin
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return view[:, ::PATCH, ::PATCH].reshape(len(x), NUM_TOKENS, size * size)


def clustered(features: Callable[[np.ndarray], np.ndarray], points: np.ndarray, num: int, seed: int) -> Tokeniser:  # fmt: skip
    """K-means of features [n, 49, d] of all patches."""
    found = features(points)
    rows = found.reshape(-1, found.shape[-1])
    some = np.random.default_rng(seed).choice(len(rows), min(len(rows), 20_000), replace=False)
    means = KMeans(num, n_init=2, max_iter=50, random_state=seed).fit(rows[some])
    tokens = lambda f: means.predict(np.ascontiguousarray(f.reshape(-1, f.shape[-1]), rows.dtype))
    return lambda points: tokens(features(points)).reshape(-1, NUM_TOKENS)


class Quantised(eqx.Module):
    """Windows to the nearest vector of a book, and back to patches."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    book: jax.Array

    def number(self, window: Any) -> Any:
        """Of the nearest vector."""
        return jnp.argmin(jnp.square(self.encoder(window) - self.book).sum(-1))

    def error(self, window: Any) -> Any:
        """Squared error of the patch in the window's middle, and what ties book and encoder to each other."""
        code = self.encoder(window)
        vector = self.book[self.number(window)]
        through = code + jax.lax.stop_gradient(vector - code)
        patch = window.reshape(2 * PATCH, 2 * PATCH)[1:-1, 1:-1].ravel()
        stay = jax.lax.stop_gradient
        ties = jnp.square(stay(code) - vector).sum() + 0.25 * jnp.square(code - stay(vector)).sum()
        return jnp.square(self.decoder(through) - patch).sum() + ties


def autoencoder(points: np.ndarray, config: Config, key: jax.Array) -> Tokeniser:
    """Tokens of a vector-quantised autoencoder, whose book begins as codes of random windows."""
    keys, seen = jax.random.split(key, 4), windows(points, 1)
    mlp = lambda a, b, key: eqx.nn.MLP(a, b, 64, 1, jax.nn.silu, key=key)
    encoder = mlp(16, 8, keys[0])
    rows = seen.reshape(-1, 16)
    some = rows[np.random.default_rng(0).choice(len(rows), config.num_values, replace=False)]
    start = Quantised(encoder, mlp(8, PATCH**2, keys[1]), jax.vmap(encoder)(jnp.asarray(some)))

    @ppl.model
    def model(x: Any) -> None:
        net = ppl.module("net", start)
        with ppl.plate("rows", x.shape[0]):
            ppl.factor("patches", -jax.vmap(jax.vmap(net.error))(x).sum(1))

    objective = inference.elbo(model, ppl.model(lambda x: None))
    params = fit(objective, (jnp.asarray(seen),), config.feature_steps, keys[2], 64)
    net = with_params(start, params["net"])
    number = eqx.filter_jit(lambda net, x: jax.vmap(jax.vmap(net.number))(x))
    return lambda points: np.asarray(number(net, jnp.asarray(windows(points, 1))))


def invariant(points: np.ndarray, config: Config, seed: int, key: jax.Array) -> Tokeniser:
    """Tokens of features that two noisy views of a window share (VICReg, arXiv:2105.04906).

    A loss of the batch, not a sum over its rows, so that no program with a plate stands for it.
    """
    keys, seen = jax.random.split(key, 2), windows(points, 2)
    net = eqx.nn.MLP(seen.shape[-1], 16, 64, 2, jax.nn.silu, key=keys[0])
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, config.feature_steps))
    rows = jnp.asarray(seen.reshape(-1, seen.shape[-1]))

    def loss(net: Any, x: Any, key: Any) -> Any:
        noise_key, factor_key = jax.random.split(key)
        factor = 1 + 0.2 * jax.random.normal(factor_key, (2, len(x), 1))
        noise = 2 * NOISE * jax.random.normal(noise_key, (2, *x.shape))
        a, b = jax.vmap(jax.vmap(net))(factor * (x - GRID[0]) + GRID[0] + noise)
        apart = lambda z: jnp.maximum(0.0, 1 - jnp.sqrt(z.var(0) + 1e-4)).mean()
        mixed = lambda z: jnp.square(jnp.cov(z.T) * (1 - jnp.eye(z.shape[1]))).sum() / z.shape[1]
        return 25 * jnp.square(a - b).mean() + 25 * (apart(a) + apart(b)) + mixed(a) + mixed(b)

    @eqx.filter_jit
    def trained(net: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            arrays, state = carry
            row_key, view_key = jax.random.split(key)
            x = rows[jax.random.randint(row_key, (1_024,), 0, len(rows))]
            of = lambda arrays: loss(eqx.combine(arrays, static), x, view_key)
            change, state = optimizer.update(jax.grad(of)(arrays), state)
            return (optax.apply_updates(arrays, change), state), None

        arrays, static = eqx.partition(net, eqx.is_inexact_array)
        steps = jax.random.split(keys[1], config.feature_steps)
        (arrays, _), _ = jax.lax.scan(step, (arrays, optimizer.init(arrays)), steps)
        return eqx.combine(arrays, static)

    net = trained(net)
    run = eqx.filter_jit(lambda net, x: jax.vmap(jax.vmap(net))(x))
    features = lambda points: np.asarray(run(net, jnp.asarray(windows(points, 2))))
    return clustered(features, points, config.num_values, seed)


class Decoder(eqx.Module):
    """Logits of levels [196, 8] of tokens [49]."""

    first: eqx.nn.Embedding
    rest: eqx.nn.MLP

    def __init__(self, num_values: int, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.first = eqx.nn.Embedding(num_values, 8, key=keys[0])
        self.rest = eqx.nn.MLP(8 * NUM_TOKENS, SIZE * LEVELS, 192, 1, jax.nn.silu, key=keys[1])

    def __call__(self, tokens: Any) -> Any:
        return self.rest(jax.vmap(self.first)(tokens).ravel()).reshape(SIZE, LEVELS)


def decoded(tokens: np.ndarray, levels: np.ndarray, config: Config, key: jax.Array) -> Decoder:
    """A decoder, by maximum likelihood of levels given tokens."""
    keys = jax.random.split(key)
    start = Decoder(config.num_values, keys[0])

    @ppl.model
    def model(tokens: Any, x: Any) -> None:
        net = ppl.module("net", start)
        with ppl.plate("rows", x.shape[0]):
            logits = jax.vmap(net)(tokens)
            ppl.sample("x", dist.CategoricalLogits(logits).to_event(1), obs=x)

    objective = inference.elbo(model, ppl.model(lambda tokens, x: None))
    args = jnp.asarray(tokens), jnp.asarray(levels)
    return with_params(start, fit(objective, args, config.decoder_steps, keys[1], 128)["net"])


def measured(tokeniser: Tokeniser, data: Split, config: Config, seed: int) -> tuple[dict, np.ndarray]:  # fmt: skip
    """Figures of one tokeniser, and images decoded from drawn tokens."""
    keys = jax.random.split(jax.random.key(seed), 8)
    test = data.held_out[: config.num_held_out]
    train_tokens, tokens = tokeniser(GRID[data.train]), tokeniser(GRID[test])
    noise = np.random.default_rng(seed).normal(size=test.shape).astype(np.float32)
    flips = (tokeniser(GRID[test] + NOISE * noise) != tokens).mean()
    num, shape = config.num_values, {"width": config.width, "depth": 2, "num_heads": 4}

    causal = mam.CausalTransformer(NUM_TOKENS, num, **shape, reach=7, key=keys[0])
    args = (jnp.asarray(train_tokens),)
    params = fit(mam.autoregressive(causal), args, config.causal_steps, keys[1], config.batch)
    causal = with_params(causal, params["network"])
    scores = eqx.filter_jit(lambda n, x: jax.lax.map(n.log_prob, x, batch_size=50))
    log_causal = np.asarray(scores(causal, jnp.asarray(tokens)))
    pair = mam.transformers(NUM_TOKENS, num, **shape, reach=7, key=keys[2])
    params = fit(mam.any_order(pair), args, config.order_steps, keys[3], config.batch)
    ordered = mam.MaM(pair.with_params(params))
    some = min(len(tokens), 200)  # 49 passes each
    orders = mam.UniformOrder(NUM_TOKENS).sample(keys[4], (some,))
    log_any = np.asarray(ordered.log_steps(jnp.asarray(tokens[:some]), orders).sum(-1))

    decoder = decoded(train_tokens, data.train, config, keys[5])
    logits = jax.vmap(decoder)(jnp.asarray(tokens))
    pixels = np.asarray(dist.CategoricalLogits(logits).to_event(1).log_prob(jnp.asarray(test)))
    hidden = eqx.tree_at(lambda n: n.trunk.last, causal, eqx.nn.Identity())
    states = eqx.filter_jit(lambda n, x: jax.lax.map(lambda x: n.logits(x).mean(0), x, batch_size=50))  # fmt: skip
    probe = LogisticRegression(max_iter=2_000)
    probe.fit(np.asarray(states(hidden, jnp.asarray(train_tokens))), data.train_labels)
    accuracy = probe.score(np.asarray(states(hidden, jnp.asarray(tokens))), data.held_out_labels[: len(tokens)])  # fmt: skip
    drawn = jax.vmap(causal.sample)(jax.random.split(keys[6], 24))
    images = np.asarray(jnp.argmax(jax.vmap(decoder)(drawn), -1))
    paired = log_causal[:some] - log_any
    row = {
        "flips": float(flips),
        "probe": float(accuracy),
        "tokens, causal": float(log_causal.mean()),
        "tokens, any order": float(log_any.mean()),
        "causal - any order": float(paired.mean()),
        "its error": float(paired.std(ddof=1) / some**0.5),
        "pixels given tokens": float(pixels.mean()),
        "image, causal": float((log_causal + pixels).mean()),
        "image, any order": float((log_any + pixels[:some]).mean()),
    }
    return row, images


def report(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"{'one seed; nats an image held out':<34}" + "".join(f"{k:>21}" for k in rows)]
    lines += [f"{c:<34}" + "".join(f"{row[c]:>21.3f}" for row in rows.values()) for c in columns]
    raw, features = (rows[KINDS[i]] for i in (0, 2))
    by_flips = sorted(rows.values(), key=lambda row: row["flips"])
    gaps = ", ".join(f"{row['causal - any order']:+.1f}" for row in by_flips)
    lines += [
        "",
        "expected: fewer flips of invariant features than of raw patches; found "
        f"{features['flips']:.3f} against {raw['flips']:.3f}",
        f"expected: probe at least 5 points better; found {100 * (features['probe'] - raw['probe']):+.1f}",
        "claim: unstable tokens hurt autoregressive models, and not masked ones: causal less any order, from the most stable "
        f"to the least: {gaps}",
    ]
    return "\n".join(lines)


def draw(rows: dict[str, dict[str, float]], images: dict[str, np.ndarray], path: Path) -> None:
    """Decoded draws of the causal models, and likelihoods by stability."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2.6), layout="constrained", width_ratios=(2.4, 1))  # fmt: skip
    picture = np.concatenate([tiles(x) for x in images.values()])
    left.imshow(picture, cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    left.set(xticks=[])
    left.set_yticks(8 + 16 * np.arange(len(images)), list(images))
    for name, marker in (("causal", "o"), ("any order", "s")):
        values = [(row["flips"], row[f"image, {name}"]) for row in rows.values()]
        right.plot(*zip(*sorted(values), strict=True), marker=marker, label=name)
    right.set(xlabel="share of tokens that flip", ylabel="bound, nats an image")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(rows: dict[str, dict[str, float]], seed: int) -> None:
    """The figures, for the page of figures."""
    for name, what, note in (
        ("flips", "share of tokens that noise of 0.05 in grey values flips", "claim: fewer, invariant"),
        ("probe", "accuracy of a linear probe on the causal transformer's hidden states", "claim: 5 points more, invariant"),
        ("causal - any order", "log p(tokens), causal less any-order transformer, nats an image", "claim: falls with flips"),
        ("image, causal", "bound on log p(image), tokens by the causal transformer, nats", None),
    ):  # fmt: skip
        record_figure(
            f"images/tokens_{name.replace(' - ', '_').replace(', ', '_').replace(' ', '_')}",
            what=f"three tokenisers of digits: {what}",
            value={k: row[name] for k, row in rows.items()},
            note=note, digits=3, seeds=str(seed),
            measures=["examples/images/_mnist.py", "models/mam"],
        )  # fmt: skip


def main() -> None:
    chosen = options("Digits as tokens.", "tokens", "small networks, few steps")
    config = Config()
    if chosen.smoke:
        config = Config(8, 60, 40, 40, 100, 16, 16, 100)
    data, key = split(), jax.random.key(chosen.seed)
    points = GRID[data.train]
    tokenisers = {
        KINDS[0]: clustered(lambda p: windows(p, 0), points, config.num_values, chosen.seed),
        KINDS[1]: autoencoder(points, config, key),
        KINDS[2]: invariant(points, config, chosen.seed, key),
    }
    rows: dict[str, dict[str, float]] = {}
    images: dict[str, np.ndarray] = {}
    for name, tokeniser in tokenisers.items():
        rows[name], images[name] = measured(tokeniser, data, config, chosen.seed)
    keep(chosen.out, report(rows), rows, images)
    draw(rows, images, chosen.out / "tokens.png")
    if chosen.record:
        record(rows, chosen.seed)


if __name__ == "__main__":
    main()
