"""A variational autoencoder of digits, its likelihood, and new rows read by the same network.

What it shows: two equinox networks declared by `ppl.module`, minibatches by the name of a plate, a loss on validation images
that ends the run, and log p(x) of held-out images by importance weights, with k-hat to say whether they can be trusted.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels, black or white.
Expected: log p(x) near -17 nats an image, pixels apart near -25; k-hat is too large in a third of the images.
Run time: a quarter of a minute on 2 CPU cores.

    python examples/vae.py [--smoke] [--out vae.png]
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from sklearn.datasets import load_digits

from lapilli import inference, ppl

CODE, HIDDEN = 12, 128
READ, WRITE = jax.random.split(jax.random.key(0))


def load() -> list[np.ndarray]:
    """Images of ones and zeros: to train on, to stop by, to judge by."""
    pixels = (load_digits().data > 7).astype(np.float32)
    return np.split(pixels[np.random.default_rng(0).permutation(len(pixels))], [1197, 1497])


@ppl.model
def model(x):
    network = ppl.module("decoder", eqx.nn.MLP(CODE, 64, HIDDEN, 2, key=WRITE))
    with ppl.plate("images", x.shape[0]):
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([CODE]).to_event(1))
        logits = ppl.deterministic("logits", jax.vmap(network)(z))
        ppl.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@ppl.model
def guide(x):
    network = ppl.module("encoder", eqx.nn.MLP(64, 2 * CODE, HIDDEN, 2, key=READ))
    with ppl.plate("images", x.shape[0]):
        loc, log_scale = jnp.split(jax.vmap(network)(x), 2, axis=-1)
        ppl.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def solve(train: np.ndarray, valid: np.ndarray, num_steps: int) -> tuple[inference.Fit, list]:
    """The fit at the parameters that were best for the validation images, and the losses by step."""
    several = inference.elbo(model, guide, num_replicates=10)
    loss = jax.jit(lambda params, key: -several.value(params, key, valid) / len(valid))
    best = inference.fitting.KeepBest(loss, jax.random.key(1), patience=1500)
    fit = inference.fit(
        inference.elbo(model, guide), optax.adam(1e-3), (train,), num_steps=num_steps,
        subsample={"images": 64}, key=jax.random.key(2), callbacks=[best], callback_every=250,
        progress=False,
    )  # fmt: skip
    return fit.with_params(best.params), best.losses


def log_likelihood(fit: inference.Fit, x: np.ndarray, num_draws: int) -> tuple[np.ndarray, float]:
    """Evidence log p(x) by image, nats, from importance weights; the share of images whose weights have too heavy a tail."""
    objective = inference.elbo(model, guide)
    one = lambda key, image: objective.value(fit.params, key, image[None])
    draws = lambda key: jax.vmap(one)(jax.random.split(key, len(x)), x)
    keys = jax.random.split(jax.random.key(3), num_draws)
    weights = np.asarray(jax.jit(lambda keys: jax.lax.map(draws, keys))(keys), float).T
    worth = [inference.diagnostics.importance_diagnostics(w) for w in weights]
    heavy = np.mean([w.k_hat > w.k_threshold for w in worth])
    return np.array([float(w.log_evidence) for w in worth]), float(heavy)


def draw(images, again, losses, out: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(*np.array(losses).T, "o-", ms=3)
    left.set(xlabel="step", ylabel="nats an image", title="Loss on validation images")
    framed = np.pad(
        np.stack([images, again]).reshape(2, -1, 8, 8), [(0, 0), (0, 0), (0, 1), (0, 1)]
    )
    right.imshow(framed.swapaxes(1, 2).reshape(18, -1), cmap="gray_r")
    right.set(xticks=[], yticks=[4, 13], title="Held-out digits, read and written again")
    right.set_yticklabels(["held out", "again"])
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(smoke: bool = False, out: Path = Path("vae.png")) -> dict[str, float]:
    train, valid, test = load()
    fit, losses = solve(train, valid, 250 if smoke else 15_000)
    test = test[:10] if smoke else test
    image, heavy = log_likelihood(fit, test, 50 if smoke else 500)
    share = train.mean(0) * 0.98 + 0.01
    alone = np.log(np.where(test == 1, share, 1 - share)).sum(1)
    print(f"log p(x) {image.mean():.2f} nats an image, pixels apart {alone.mean():.2f}")
    print(f"k-hat too large in {heavy:.0%} of the images, whose log p(x) is somewhat too low")
    logits = fit.predict(jax.random.key(4), test[:10], num_samples=100)["logits"]
    draw(test[:10], (1 / (1 + np.exp(-logits))).mean(0), losses, out)
    return {"image": float(image.mean()), "alone": float(alone.mean())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A variational autoencoder of digits.")
    parser.add_argument("--smoke", action="store_true", help="few steps and images")
    parser.add_argument("--out", type=Path, default=Path("vae.png"), help="the picture")
    main(**vars(parser.parse_args()))
