"""Patches of random scale and place: which points they see, and a loss of patches that is a loss of the whole.

What it shows: a generator of functions on [0, 1] is trained on patches: scale s = s0 + (1 - s0) Beta(1, b), offset uniform on
[0, 1 - s], points within the patch. A point u lies in a patch of scale s with probability
c(u | s) = (min(u, 1 - s) - max(0, u - s)) / (1 - s), which is no constant: ends are seen least. The mean loss over patches is
that of another law of points, and what is fitted by it is another function; with weights s / c(u | s) it is the mean over [0, 1],
for every s and b, so that b can be annealed without a bias. The price:
the square of 1 / c is not integrable at the ends, so that errors fall a little slower than the root of the number of patches.

Source: Skorokhodov, Tulyakov, Wang and Wonka 2022, "EpiGRAF: Rethinking training of 3D GANs", arXiv:2206.10535: patches of an
annealed Beta law train as well as whole images. Here the law of patches alone; the claim on images was not tested.
Run time: seconds.

    python examples/papers/adversarial/epigraf.py [--smoke] [--seeds 0 1 2] [--record]
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

LEAST, POINTS = 0.2, 16
truth = lambda u: jnp.exp(2 * u)  # its mean is (e^2 - 1) / 2


def coverage(u, s):
    """Probability that a patch of scale s has the point u."""
    return (jnp.minimum(u, 1 - s) - jnp.maximum(0.0, u - s)) / (1 - s)


def patches(b, size=64):
    """Points [patches, points] and weights under which their mean is that over [0, 1]."""
    with ppl.plate("patches", size):
        s = LEAST + (1 - LEAST) * ppl.sample("scale", dist.Beta(1.0, b))
        offset = (1 - s) * ppl.sample("offset", dist.Uniform(0.0, 1.0))
        inside = ppl.sample("inside", dist.Uniform(0.0, 1.0).expand([POINTS]).to_event(1))
    u = offset[:, None] + s[:, None] * inside
    return u, s[:, None] / coverage(u, s[:, None])


def means(b, size, key):
    """Of the function over points of patches, plain and weighted, with standard errors over patches."""
    u, weights = jax.jit(lambda key: ppl.as_program(patches).simulate(key, b, size).retval)(key)
    each = [np.asarray((truth(u) * w).mean(1), float) for w in (jnp.ones_like(u), weights)]
    return [(x.mean(), x.std() / size**0.5) for x in each]


def fitted(b, is_weighted, num_steps, seed):
    """The line of least squares over points of patches, at the average of the iterates."""

    @inference.objective(direction="min")
    def squares(program, guide, b):
        u, weights = ppl.draw(ppl.detached(program), b).retval
        line = ppl.param("line", jnp.zeros(2))
        return ((weights if is_weighted else 1.0) * (line[0] + line[1] * u - truth(u)) ** 2).mean()

    fit = inference.fit(
        squares(patches), optax.adam(optax.cosine_decay_schedule(0.05, num_steps)), (b,), num_steps=num_steps,
        average=0.999, key=jax.random.key(seed), progress=False,
    )  # fmt: skip
    return np.asarray(fit.params["line"])


def main():
    parser = argparse.ArgumentParser(description="What patches of random scale and place see.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true")
    options = parsed(parser)
    size, num_steps = (2_000, 50) if options.smoke else (200_000, 20_000)
    seeds = options.seeds[:1] if options.smoke else options.seeds
    u = np.linspace(0, 1, 100_001)
    exact = np.polynomial.polynomial.polyfit(u, np.asarray(truth(u), float), 1)
    whole = (np.e**2 - 1) / 2
    print(f"mean over [0, 1] {whole:.4f}, line of least squares {exact[0]:.3f} + {exact[1]:.3f} u")
    value = {"the whole": f"mean {whole:.4f}, line {exact[0]:.3f} + {exact[1]:.3f} u"}
    for b in (1.0, 4.0):
        found = np.array([means(b, size, jax.random.key(seed)) for seed in seeds])
        for is_weighted, name in enumerate(("plain", "weighted")):
            each, errors = found[:, is_weighted].T
            error = np.sqrt((errors**2).sum()) / len(seeds)
            lines = np.array([fitted(b, is_weighted, num_steps, seed) for seed in seeds])
            line = " + ".join(f"{x.mean():.3f} ({x.min():.3f} to {x.max():.3f})" for x in lines.T)
            text = f"mean {each.mean():.4f} +- {error:.4f}, line {line} u"
            print(f"b = {b:g}, {name:<9} {text}", flush=True)
            value[f"b = {b:g}, {name}"] = text
    if options.record:
        record_figure(
            "adversarial/epigraf",
            what="a function's mean (standard error) and its line of least squares (least and largest), by points of patches",
            value=value, seeds=", ".join(map(str, seeds)), measures=["inference/objectives"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
