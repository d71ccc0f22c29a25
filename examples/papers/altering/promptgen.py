"""Controlling a generator by its codes: a VAE of digits that has one class ten times too often, and two tilts of it.

What it shows: without touching the network, the law of its codes is tilted: by moments (all classes alike: `match_moments`, the
nearest law with equal shares, gamma the least of a convex dual), by a classifier (one class), and by both, a tilt of a tilt.
Draws by a spline flow that is fitted to the tilt once and then costs a pass a draw, the same with weights towards the tilt (as
many draws, resampled), and by tempered particles, which cost a run.
What classes the images have is told by the classifier that controls, and by another of other images.

Source: Wu et al. 2022, arXiv:2209.06970 (PromptGen; invertible networks in the space of codes). Data: scikit-learn's digits.

Expected: one class at .95 or more by all; KL of the classes from even ones below 1e-3 by particles and the flow's draws weighted,
not by the flow as fitted; its draws cost a twenty-fifth. Figures: docs/_data/figures, altering/promptgen. Run time: four minutes.

    python examples/papers/altering/promptgen.py [--smoke] [--label 5] [--out promptgen_output] [--record]
"""

import time
from typing import Any, NamedTuple

import _altered_digits as altered
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _altered_digits import SIZE, Classifier, Rows, load, log_classes

from lapilli import inference, ppl
from lapilli.inference.particles import moves, resampling
from lapilli.models import flows

CODE, OFTEN = 8, 1  # size of a code; the class that is too frequent


class Config(NamedTuple):
    num_vae: int = 3000
    num_flow: int = 1200
    num_codes: int = 100_000  # of the dual: their KL from even shares is some 9 / (2 ESS)
    strength: float = 10.0  # of the classifier in the reward of one class: of 2, 5, 10, 20 the least with .95 of it, on seed 10
    num_samples: int = 10_000


def generator(config: Config, key: jax.Array) -> Any:
    """The decoder of a VAE of images among which one class is ten times too frequent."""
    x, labels = load()
    shares = np.where(labels == OFTEN, 10.0, 1.0)
    rows = np.random.default_rng(0).choice(len(x), 6000, p=shares / shares.sum())
    keys = jax.random.split(key, 3)
    decoder = eqx.nn.MLP(CODE, SIZE, 128, 2, jax.nn.silu, key=keys[0])
    encoder = eqx.nn.MLP(SIZE, 2 * CODE, 128, 2, jax.nn.silu, key=keys[1])

    def model(x: Any) -> None:
        net, scale = ppl.module("decoder", decoder), ppl.param("log_scale", 0.0)
        with ppl.plate("rows", len(x)):
            z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([CODE]).to_event(1))
            ppl.sample("x", dist.Normal(jax.vmap(net)(z), jnp.exp(scale)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        mean, width = jnp.split(jax.vmap(ppl.module("encoder", encoder))(x), 2, axis=1)
        with ppl.plate("rows", len(x)):
            ppl.sample("z", dist.Normal(mean, jax.nn.softplus(width)).to_event(1))

    fit = inference.fit(
        inference.elbo(model, guide), optax.adam(optax.cosine_decay_schedule(2e-3, config.num_vae)), (jnp.asarray(x[rows]),),
        num_steps=config.num_vae, key=keys[2], subsample={"rows": 128}, progress=False, k_hat="skip",
    )  # fmt: skip
    return altered.with_values(decoder, fit.params["decoder"])


def by_flow(tilt: Any, config: Config, key: jax.Array) -> dict[str, tuple[np.ndarray, float]]:
    """Codes of a flow fitted to the tilt, and seconds a draw; as they are, and resampled by their weights towards the tilt."""
    flow = flows.NeuralSplineFlow(CODE, key=key)
    guide = lambda: ppl.sample("z", ppl.module("flow", flow).law())
    fit = inference.fit(
        inference.elbo(tilt, guide, num_replicates=64), optax.adam(optax.cosine_decay_schedule(2e-3, config.num_flow)),
        num_steps=config.num_flow, key=key, progress=False, k_hat="skip",
    )  # fmt: skip

    def one(key: jax.Array) -> tuple[Any, Any]:
        drawn = fit.guide.simulate(key)
        return drawn.choices["z"], tilt.log_density(drawn.choices) - drawn.log_density

    def weighted(keys: Any) -> Any:
        z, log_weights = jax.vmap(one)(keys)
        return z[resampling.systematic(key, log_weights)]

    keys = jax.random.split(key, config.num_samples)
    plain = jax.vmap(lambda key: one(key)[0])
    return {"flow": timed(plain, keys, config), "flow, weighted": timed(weighted, keys, config)}


def by_particles(tilt: Any, config: Config, key: jax.Array) -> tuple[np.ndarray, float]:
    moved = {"num_moves": 10, "kernel": moves.RandomWalk()}
    run = lambda k: inference.tempered_smc(tilt, k, num_particles=config.num_samples, **moved)
    return timed(lambda key: run(key).particles["z"], key, config)


def timed(run: Any, keys: Any, config: Config) -> tuple[np.ndarray, float]:
    """Codes, and seconds a draw once it is compiled."""
    run = jax.jit(run)
    jax.block_until_ready(run(keys))
    started = time.perf_counter()
    found = jax.block_until_ready(run(keys))
    return np.asarray(found), (time.perf_counter() - started) / config.num_samples


def run(config: Config, label: int, seed: int) -> Rows:
    own, judge = Classifier(seed), Classifier(100 + seed)
    keys = jax.random.split(jax.random.key(seed), 8)
    decoder, classes = generator(config, keys[0]), log_classes(own)
    program = ppl.model(lambda: decoder(ppl.sample("z", dist.Normal(0.0, 1.0).expand([CODE]).to_event(1))))  # fmt: skip
    shares = lambda x: jnp.exp(classes(x))
    even = inference.tilts.match_moments(program, shares, np.full(10, 0.1), keys[1], num_draws=config.num_codes)  # fmt: skip
    one = lambda x: config.strength * classes(x)[label]
    tilts = {
        "even": even.tilt,
        "one class": inference.tilt(program, one),
        "even, then one": inference.tilt(even.tilt, one),
    }
    prior = np.asarray(jax.random.normal(keys[2], (config.num_samples, CODE)))
    laws = {"the generator": (prior, 0.0)}
    for number, (name, tilt) in enumerate(tilts.items()):
        made = by_flow(tilt, config, jax.random.fold_in(keys[3], number))
        laws |= {f"{name}, {way}": found for way, found in made.items()}
        laws[f"{name}, particles"] = by_particles(tilt, config, jax.random.fold_in(keys[4], number))
    rows, images = {}, jax.jit(jax.vmap(decoder))
    for name, (codes, seconds) in laws.items():
        x = np.asarray(images(jnp.asarray(codes)))
        mean = np.asarray(jax.vmap(shares)(jnp.asarray(x)), float).mean(0)
        rows[name] = {
            "KL to even": float((mean * np.log(mean * 10)).sum()), "of the class": float(mean[label]),
            "another judge": float((judge.classes(x) == label).mean()), "too frequent": float(mean[OFTEN]),
            "microseconds a draw": seconds * 1e6, "log10 ESS, dual": float(np.log10(even.ess)),
        }  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = altered.options("promptgen", "Codes of a generator, controlled.", arguments, label=5)
    config = Config(1000, 30, 4000, num_samples=200) if options.smoke else Config()
    altered.told(
        options, "promptgen", lambda seed: run(config, options.label, seed),
        what="codes of a VAE of digits with ones ten times too often: KL of the images' classes from even shares, nats",
        column="KL to even", notes=["of the class", "another judge", "microseconds a draw"], measures=["inference/tilts"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
