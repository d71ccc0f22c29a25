"""Few steps of denoising: reverse kernels with many modes, learned by a critic or by a bound.

What it shows: 25 narrow Normals are noised in T steps. For few steps the reverse kernel p(x_t-1 | x_t) has many modes, as no
Normal has. Three kernels of one net G, x0 = G(x_t, z, t), then the exact Normal q(x_t-1 | x_t, x0): "critic", a critic of pairs
(x_t-1, x_t, t) against those of the data (denoising diffusion GAN); "bound", the same program with z a latent site that a guide
proposes (importance-weighted, eight draws): no critic, and a bound of log p(x0) in nats; "normal", without z.

Source: Xiao, Kreis and Vahdat 2022, arXiv:2112.07804: four steps cover all modes, one step (a plain GAN) does not. Expected
before it was run: "normal" below 50 % of draws within three standard deviations of a mode at T = 4, both others above 90 %;
T = 1 misses modes. Run time: ten minutes on 2 CPU cores.

    python examples/papers/adversarial/ddgan.py [--smoke] [--seeds 0 1 2] [--steps 4000] [--lengths 1 4] [--record]
"""

import argparse
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _denoising import LAST, PLACES, ROWS, SD, Noise, pairs
from _record import parsed, record_figure

CODES = 4


class Net(eqx.Module):
    """Of points and a step, as one-hot vector."""

    layers: eqx.nn.MLP
    num_steps: int = eqx.field(static=True)

    def __init__(self, num_in, num_out, num_steps, key):
        self.num_steps = num_steps
        self.layers = eqx.nn.MLP(num_in + num_steps, num_out, 128, 3, jax.nn.silu, key=key)

    def __call__(self, *seen):
        *points, t = seen
        return self.layers(jnp.concatenate([*points, jax.nn.one_hot(t - 1, self.num_steps)]))


def learned(kind, noise, seed, num_steps):
    """The trained generator, from x_t, z and t to x0, and its objective's fit."""
    keys = jax.random.split(jax.random.key(seed), 4)
    size = 0 if kind == "normal" else CODES
    net = Net(2 + size, 2, noise.num_steps, keys[0])
    codes = dist.Normal(jnp.zeros(size), 1.0).to_event(1)

    def kernel(before, x, t):
        with ppl.plate("rows", len(x)):
            z = ppl.sample("z", codes) if size else jnp.zeros((len(x), 0))
            law = dist.Normal(
                *noise.backward(x, jax.vmap(ppl.module("generator", net))(x, z, t), t)
            )
            return ppl.sample("before", law.to_event(1), obs=before)

    def proposal(before, x, t):
        with ppl.plate("rows", len(x)):
            out = jax.vmap(ppl.module("proposal", Net(4, 2 * CODES, noise.num_steps, keys[1])))(before, x, t)  # fmt: skip
            ppl.sample("z", dist.Normal(out[:, :CODES], jnp.exp(out[:, CODES:])).to_event(1))

    rows = lambda: pairs(noise, ppl.rng_key("rows"))
    rate = optax.cosine_decay_schedule(1e-3, num_steps)
    options = {"key": keys[3], "average": 0.999, "progress": False}
    if kind == "critic":
        made = lambda: (lambda b, x, t: (kernel(None, x, t), x, t))(*rows())
        critic = Net(4, "scalar", noise.num_steps, keys[2])
        game = inference.adversarial(rows, made, critic, divergence="non_saturating", penalty=0.05)
        fit = inference.fit(game, optax.adam(rate, b1=0.5), num_steps=2 * num_steps, **options)
        return eqx.combine(fit.params["generator"], net), None
    guide = proposal if size else (lambda *args: None)
    bound = inference.iwelbo(kernel, guide, num_particles=8, per="rows") if size else inference.elbo(kernel, guide)  # fmt: skip
    batches = (pairs(noise, jax.random.fold_in(keys[2], i)) for i in range(num_steps))
    fit = inference.fit(
        bound, optax.adam(rate), batches, num_steps=num_steps, plate_sizes={}, **options
    )
    fresh = [
        bound.value(fit.params, keys[1], *pairs(noise, jax.random.key(900 + i))) for i in range(40)
    ]
    return eqx.combine(fit.params["generator"], net), noise.nats(float(np.mean(fresh)) / ROWS)


def judged(net, noise, key, size=10_000):
    """Modes with at least 20 of 10,000 draws within three standard deviations, and the share of all draws that are."""
    codes = net.layers.in_size - 2 - noise.num_steps
    first, key = jax.random.split(key)
    x = jax.random.normal(first, (size, 2))
    for step in range(noise.num_steps, 0, -1):
        z_key, noise_key, key = jax.random.split(key, 3)
        t = jnp.full(size, step)
        x0 = jax.vmap(net)(x, jax.random.normal(z_key, (size, codes)), t)
        mean, sd = noise.backward(x, x0, t)
        x = mean + sd * jax.random.normal(noise_key, (size, 2))
    apart = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(PLACES), axis=-1)
    near = apart.min(1) < 3 * np.hypot(SD, LAST)
    return int((np.bincount(apart.argmin(1)[near], minlength=25) >= 20).sum()), float(near.mean())


def main():
    parser = argparse.ArgumentParser(description="Reverse kernels with many modes.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4_000, help="of each player")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 4], help="T")
    parser.add_argument("--smoke", action="store_true")
    options = parsed(parser)
    if options.smoke:
        options.seeds, options.steps, options.lengths = [0], 40, [2]
    exact = -np.log(25) - np.log(2 * np.pi * np.e * SD**2)
    print(
        f"{'T':<4}{'kernel':<9}{'modes of 25':<16}{'within 3 sd':<26}bound of log p(x0), nats; {exact:.3f} of the data"
    )
    value = {}
    for length in options.lengths:
        noise = Noise(length)
        for kind in ("normal", "bound", "critic"):
            runs = [learned(kind, noise, seed, options.steps) for seed in options.seeds]
            found = [judged(net, noise, jax.random.key(7)) for net, _ in runs]
            modes, near = zip(*found, strict=True)
            nats = "" if kind == "critic" else ", ".join(f"{x:.3f}" for _, x in runs)
            shares = ", ".join(f"{x:.3f}" for x in near)
            print(
                f"{length:<4}{kind:<9}{', '.join(map(str, modes)):<16}{shares:<26}{nats}",
                flush=True,
            )
            value[f"T {length}, {kind}"] = f"{np.mean(modes):.1f} modes, {np.mean(near):.3f} near"
    if options.record:
        record_figure(
            "adversarial/ddgan", what="modes of 25 found, share of draws within three sd, means over seeds",
            value=value, claim="T = 4: 25 modes", claimed_by="arXiv:2112.07804",
            seeds=", ".join(map(str, options.seeds)), measures=["inference/objectives", "inference/fitting"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
