"""Three drawn patterns chained by a probabilistic machine, learned by two layers: where does a network keep its doubt?

What it shows: a pen draws closed curves of twelve points, a circle A, an eight B and a petal C, with a shaky hand. Which
curve comes next is decided by a machine: after A comes B with probability 0.3, then C, or else C at once; after C comes A.
So all is certain but one choice in every two or three curves, at the first point after A. A PV-RNN (Ahmadi and Tani 2019,
arXiv:1811.01339) of a fast and a slow layer learns from 24 drawings at four settings of the meta-prior w, with vectors for each
drawing and step as its guide. Then, for each network:

- free generation of 1,500 points, read by the most probable path of a hidden Markov model of curves and points (a discrete chain,
  summed out by max-product): share of points that belong to a whole curve, KL of three-curve strings from the exact law, mass on
  impossible strings;
- the information in the latents (KL per step, by layer) at the choice and elsewhere, and the prior's scale there;
- prediction one step ahead on new drawings, by error regression and by a particle filter, beside the machine itself: a hidden
  Markov model of 48 states, summed out exactly. Nothing can beat it but by chance.

Published (abstract of the first version): as w grows the latents' scale goes to zero at every step, as it falls the scale grows,
with drawn patterns and a two-level hierarchy as with symbols.

Expected: with w the free drawings grow cleaner, and strings right. The scale of the fast prior falls from 0.20 to 0.04 at w = 1,
as published, and not further. At w = 1 the fast latents are silent but for the choices. The slow ones hardly speak at any w.
Particles predict within 0.15 nats of the machine from w = 1 on, error regression within 0.6. Figures: docs/_data/figures,
pv_rnn/patterns.

Run time: 4 minutes on 2 CPU cores.

    python examples/papers/pv_rnn/patterns.py [--smoke] [--seed 0] [--out pv_rnn_patterns_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import xarray
from _predictors import ascend
from machine import STATIONARY, interval, law_of_strings, strings

from lapilli import inference, ppl
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import ErrorRegression, Gaussian, Layer, Network

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

CURVES, POINTS, NOISE = "ABC", 12, 0.07
LAYERS = (Layer(24, 2, 2.0), Layer(12, 1, 8.0))
# Probability of curve and next state given the state: [state, curve, next state].
MACHINE = np.zeros((3, 3, 3))
MACHINE[0, 0, 1], MACHINE[1, 1, 2], MACHINE[1, 2, 0], MACHINE[2, 2, 0] = 1.0, 0.3, 0.7, 1.0
WARM_UP = 12


class Config(NamedTuple):
    """Sizes of the experiment."""

    weights: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    num_seeds: int = 3
    num_drawings: int = 24
    num_curves: int = 8
    num_steps: int = 8000
    batch_size: int = 8
    num_generated: int = 1500
    num_tests: int = 8
    window: int = 12
    num_iterations: int = 30
    num_particles: int = 200


SMOKE = Config((0.1, 1.0), 2, 4, 3, 20, 2, 100, 2, 3, 2, 10)


def curves() -> np.ndarray:
    """Points of the three curves from and to the origin, [curves, POINTS, 2]."""
    u = 2 * np.pi * np.arange(1, POINTS + 1) / POINTS
    circle = 0.7 * np.stack([np.sin(u), 1 - np.cos(u)], -1)
    eight = 0.7 * np.stack([np.sin(2 * u), -1.2 * np.sin(u)], -1)
    petal = [-np.sin(u) + 0.4 * np.sin(2 * u), -0.7 * (1 - np.cos(u)) + 0.3 * np.sin(3 * u)]
    return np.stack([circle, eight, 0.9 * np.stack(petal, -1)])


def drawings(rng: np.random.Generator, num_rows: int, num_curves: int) -> tuple[Any, np.ndarray]:
    """Points [num_rows, num_curves * POINTS, 2] and the curves they are of [num_rows, num_curves]."""
    labels = strings(rng, num_rows, num_curves, MACHINE)[..., 0]
    exact = curves()[labels].reshape(num_rows, -1, 2)
    return jnp.asarray(exact + NOISE * rng.normal(size=exact.shape), float), labels


def chain(machine: np.ndarray, slip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A hidden Markov model of points: transitions and start over (state, curve, point), and the curve of each.

    `slip` is the probability of a jump to anywhere.
    """
    states = [(s, c) for s in range(len(machine)) for c in range(3) if machine[s, c].any()]
    size = len(states) * POINTS
    moves, start = np.zeros((size, size)), np.zeros(size)
    for i, (s, c) in enumerate(states):
        for p in range(POINTS - 1):
            moves[i * POINTS + p, i * POINTS + p + 1] = 1
        following = machine[s, c] / machine[s, c].sum()
        for j, (t, d) in enumerate(states):
            moves[(i + 1) * POINTS - 1, j * POINTS] = following[t] * machine[t, d].sum()
            stationary = STATIONARY if len(machine) == 3 else np.ones(1)
            start[j * POINTS] = stationary[t] * machine[t, d].sum()
    start = start / start.sum() if slip == 0 else np.full(size, 1 / size)
    return (1 - slip) * moves + slip / size, start, np.array([c for _, c in states])


def hidden_markov(machine: np.ndarray, slip: float, scale: float) -> tuple[Any, np.ndarray]:
    """The points of one drawing as a program whose chain is summed out, and the curve of each of its states."""
    moves, start, curve_of = chain(machine, slip)
    # A move that cannot be has log-probability -100: finite, so that the recursion needs no special case.
    probs = np.concatenate([start[None], moves])
    logits = jnp.asarray(np.log(np.maximum(probs, np.exp(-100.0))), float)
    means = jnp.asarray(curves()[curve_of].reshape(-1, 2), float)

    @ppl.model
    def points(x: jax.Array) -> None:
        def step(row: Any, x: jax.Array) -> Any:
            z = ppl.sample("z", dist.CategoricalLogits(logits[row]))
            ppl.sample("x", dist.Normal(means[z], scale).to_event(1), obs=x)
            return z + 1, None

        ppl.scan(step, 0, x)

    return ppl.eliminate(points, ["z"]), curve_of


def exact_loss(tests: jax.Array) -> np.ndarray:
    """-log p(x_t | past) of the machine itself, mean after the warm-up, [tests] (nats per step)."""
    program, _ = hidden_markov(MACHINE, 0.0, NOISE)
    log_p = jax.jit(jax.vmap(lambda x: program.log_density({}, x)))
    num_steps = tests.shape[1] - WARM_UP
    return np.asarray(log_p(tests[:, :WARM_UP]) - log_p(tests), float) / num_steps


def read(points: jax.Array) -> tuple[list[np.ndarray], np.ndarray]:
    """What curves free drawings consist of, and the share of points in whole curves, [rows].

    The most probable path of a machine that draws curves at random and may slip; a curve counts if 9 of its 12 points are
    drawn in turn.
    """
    program, _ = hidden_markov(np.full((1, 3, 1), 1 / 3), 0.05, 0.25)
    paths = np.asarray(jax.jit(jax.vmap(lambda x: program.mode({}, x)[0]["z"]))(points))
    found, shares = [], []
    for path in paths:
        breaks = np.flatnonzero((np.diff(path) != 1) | (path[1:] % POINTS == 0)) + 1
        whole = [part for part in np.split(path, breaks) if len(part) >= 9]
        found.append(np.array([part[0] // POINTS for part in whole], int))
        shares.append(sum(map(len, whole)) / len(path))
    return found, np.array(shares)


def train(config: Config, x: jax.Array, keys: jax.Array, ws: jax.Array) -> tuple[Any, Network]:
    """Parameters of every pair (key, w), trained side by side, and their networks."""
    template = Network(LAYERS, Gaussian(2, NOISE), key=keys[0])
    num_rows, length = x.shape[:2]
    programs = pv_rnn.programs(template, num_sequences=num_rows, num_steps=length)
    bound = inference.elbo(*programs, kl="analytic").with_plate_sizes({"sequences": num_rows})
    everything = (x, jnp.arange(num_rows))
    params_0 = bound.init(keys[0], *everything)
    bound.plan(params_0, *everything)  # every check, once
    labels = {name: "local" if name == "adaptive" else "shared" for name in params_0}
    rate = lambda peak: optax.cosine_decay_schedule(peak, config.num_steps)
    shared = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate(3e-3)))
    groups = {"shared": shared, "local": inference.fitting.by_row(optax.adam(2e-2))}
    optimizer = optax.partition(groups, type(params_0)(labels, params_0.constraints))

    def one(key: jax.Array, w: jax.Array) -> Any:
        network_key, key = jax.random.split(key)
        params = bound.init(network_key, *everything)
        network = Network(LAYERS, Gaussian(2, NOISE), key=network_key)
        params["network"] = jax.tree.map(jnp.asarray, network)
        weighted = bound.with_site_weights(pv_rnn.site_weights(network, w, num_steps=length))

        return ascend(weighted.value_and_grad, params, optimizer, config, x, key)[0]

    params = jax.block_until_ready(jax.jit(jax.vmap(one))(keys, ws))
    return params, pv_rnn.frozen(params, template)


def measure_generation(config: Config, networks: Network, keys: jax.Array) -> dict[str, Any]:
    """What free drawings hold; the drawings themselves as "drawn"."""
    draw = lambda network, key: pv_rnn.generate(
        network, key, config.num_generated, burn_in=5 * POINTS
    )[0]
    drawn = jax.jit(jax.vmap(draw))(networks, keys)
    found, shares = read(drawn)
    law = law_of_strings(3, MACHINE)
    nothing = pv_rnn.NGramDivergence(np.nan, np.nan)  # fewer than three curves
    divergences = [
        pv_rnn.ngram_divergence(law, c[None], 3, num_symbols=3) if len(c) >= 3 else nothing
        for c in found
    ]
    return {
        "whole": shares,
        "string_kl": np.array([d.divergence for d in divergences]),
        "illegal": np.array([d.illegal for d in divergences]),
        "drawn": np.asarray(drawn),
    }


def measure_latents(networks: Network, params: Any, labels: np.ndarray, keys: jax.Array) -> Any:
    """KL per step and the prior's mean scale by layer, at the choice (first point after A) and elsewhere."""
    run = jax.jit(jax.vmap(lambda net, vectors, key: pv_rnn.latents(net, key, vectors)))
    found = run(networks, params["adaptive"], keys)
    is_choice = np.zeros((*labels.shape, POINTS), bool)
    is_choice[:, 1:, 0] = labels[:, :-1] == 0
    is_choice = is_choice.reshape(len(labels), -1)
    is_choice[:, 0] = False
    is_other = ~is_choice
    is_other[:, 0] = False  # the first step tells where the drawing begins
    out = {"kl_over_time": np.asarray(sum(kl.sum(-1) for kl in found.kl))}
    for l, (kl, scale) in enumerate(zip(found.kl, found.prior_scale, strict=True)):
        kl, scale = np.asarray(kl).sum(-1), np.asarray(scale).mean(-1)
        for name, where in (("choice", is_choice), ("elsewhere", is_other)):
            out[f"kl{l + 1}_{name}"] = kl[:, where].mean(-1)
            out[f"scale{l + 1}_{name}"] = scale[:, where].mean(-1)
    return out


def measure_prediction(
    config: Config, networks: Network, tests: jax.Array, ws: jax.Array, keys: jax.Array
) -> dict[str, np.ndarray]:
    """-log p(x_t | past) above the machine's own loss (nats per step), means over the drawings."""
    length = tests.shape[1]

    def regression(network: Network, w: jax.Array, key: jax.Array) -> jax.Array:
        er = ErrorRegression(
            network, window=config.window, num_iterations=config.num_iterations, w=w,
            num_particles=config.num_particles,
        )  # fmt: skip

        def one(x: jax.Array, key: jax.Array) -> jax.Array:
            emitted = er.run(er.init(key), x)[1].emitted[WARM_UP - 1 : -1, 0]
            return -pv_rnn.log_score(network, emitted, x[WARM_UP:]).mean()

        return jax.vmap(one)(tests, jax.random.split(key, len(tests))).mean()

    def particles(network: Network, w: jax.Array, key: jax.Array) -> jax.Array:
        model, _ = pv_rnn.programs(network, guide="prior", num_steps=length)

        def one(x: jax.Array, key: jax.Array) -> jax.Array:
            result = inference.smc(
                model, key, x[None], jnp.arange(1), num_particles=config.num_particles, history="none"
            )  # fmt: skip
            return -result.increments[WARM_UP - length :].mean()

        return jax.vmap(one)(tests, jax.random.split(key, len(tests))).mean()

    own, out = exact_loss(tests).mean(), {}
    for method in (regression, particles):
        run = jax.jit(lambda inputs, method=method: jax.lax.map(lambda i: method(*i), inputs))
        out[f"excess_{method.__name__}"] = np.asarray(run((networks, ws, keys)), float) - own
    return out


def run(config: Config, seed: int) -> xarray.Dataset:
    """All measures, [w, seed]."""
    rng = np.random.default_rng(seed)
    x, labels = drawings(rng, config.num_drawings, config.num_curves)
    tests, _ = drawings(rng, config.num_tests, config.num_curves)
    grid = (len(config.weights), config.num_seeds)
    keys = jnp.tile(jax.random.split(jax.random.key(seed), grid[1]), grid[0])
    ws = jnp.repeat(jnp.array(config.weights), grid[1])
    start = time.perf_counter()
    params, networks = train(config, x, keys, ws)
    print(f"{len(keys)} networks trained: {time.perf_counter() - start:.0f} s", flush=True)
    key_of = lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    measures = measure_generation(config, networks, key_of(1))
    measures |= measure_latents(networks, params, labels, key_of(2))
    start = time.perf_counter()
    measures |= measure_prediction(config, networks, tests, ws, key_of(3))
    print(f"predictions: {time.perf_counter() - start:.0f} s", flush=True)
    further = {"drawn": ("t", "axis"), "kl_over_time": ("drawing", "step")}
    tables = {
        name: (("w", "seed", *further.get(name, ())), np.reshape(v, (*grid, *v.shape[1:])))
        for name, v in measures.items()
    }
    tables |= {"x": (("drawing", "step", "axis"), x), "curve": (("drawing", "place"), labels)}
    coords = {"w": list(config.weights), "seed": np.arange(config.num_seeds)}
    return xarray.Dataset(tables, coords=coords)


COLUMNS = {
    "whole": "in whole curves", "string_kl": "KL of 3-strings", "illegal": "illegal",
    "kl1_choice": "KL fast, choice", "kl1_elsewhere": "elsewhere", "kl2_choice": "KL slow, choice",
    "kl2_elsewhere": "elsewhere", "scale1_choice": "scale fast, choice", "scale1_elsewhere": "elsewhere",
    "excess_regression": "loss, regression", "excess_particles": "loss, particles",
}  # fmt: skip


def report(data: xarray.Dataset) -> None:
    print(f"\nmean over {data.sizes['seed']} seeds +- half of a 95% interval; a column for each w")
    print(f"{'':>20}" + "".join(f"{w:>18g}" for w in data.w.values))
    for name, title in COLUMNS.items():
        cells = ["{:.3f} +- {:.3f}".format(*interval(v)) for v in data[name].values]
        print(f"{title:>20}" + "".join(f"{cell:>18}" for cell in cells))
    print("KL in nats per step and layer; losses in nats per step above the machine's own.")
    for layer in (1, 2):
        ratio = (data[f"kl{layer}_choice"] - data[f"kl{layer}_elsewhere"]).values
        words = ["{:+.2f} +- {:.2f}".format(*interval(r)) for r in ratio]
        print(
            f"layer {layer}: more information at the choice than elsewhere, by w: {', '.join(words)} nats"
        )
    scale = data.scale1_elsewhere.mean("seed").values
    trend = "falls" if np.all(np.diff(scale) < 0) else "does not fall"
    print(f"the fast prior's scale {trend} as w grows: {np.round(scale, 3)} (published: it falls)")


def record(data: xarray.Dataset) -> None:
    """Free drawings, for the page of figures."""
    cells = {
        f"{title}, w = {w:g}": interval(data[name].sel(w=w).values)
        for name, title in (("whole", "whole"), ("string_kl", "KL"))
        for w in data.w.values
    }
    choice = {
        w: [data[f"kl1_{where}"].sel(w=w).mean().item() for where in ("choice", "elsewhere")]
        for w in data.w.values
    }
    record_figure(
        "pv_rnn/patterns",
        what="three drawn patterns chained by a machine, free drawing: share of points in whole curves; KL of strings of curves, "
        "nats; spread: half of a 95% interval",
        value={name: mean for name, (mean, _) in cells.items()},
        spread={name: half for name, (_, half) in cells.items()},
        seeds=data.sizes["seed"],
        note="KL of the fast latents at choices and elsewhere, nats: "
        + "; ".join(f"w = {w:g} {here:.2f}, {there:.2f}" for w, (here, there) in choice.items()),
        digits=2,
        measures=["models/pv_rnn"],
    )


def plot(data: xarray.Dataset, path: Path) -> None:
    """A training drawing; a free one for each w; the information in the latents around choices."""
    import matplotlib.pyplot as plt

    num_w = data.sizes["w"]
    figure, axes = plt.subplots(
        2, num_w + 1, figsize=(3.3 * (num_w + 1), 6.2), layout="constrained"
    )
    pens = {"color": "0.6", "lw": 0.6, "marker": ".", "ms": 3, "mfc": "C0", "mec": "C0"}
    axes[0, 0].plot(*data.x.values[:3].reshape(-1, 2).T, **pens)
    axes[0, 0].set_title("drawings to learn from")
    length = data.sizes["step"]
    for i, w in enumerate(data.w.values, 1):
        axes[0, i].plot(*data.drawn.sel(w=w, seed=0).values[: 3 * length].T, **pens)
        axes[0, i].set_title(f"free, w = {w:g}")
        steps = np.arange(1, length)
        axes[1, i].plot(steps, data.kl_over_time.sel(w=w, seed=0).values[0, 1:], lw=1)
        for place, curve in enumerate(data.curve.values[0]):
            axes[1, i].annotate(
                CURVES[curve], ((place + 0.5) * POINTS, 0.93), xycoords=("data", "axes fraction"),
                ha="center",
            )  # fmt: skip
            if place and data.curve.values[0, place - 1] == 0:
                axes[1, i].axvline(place * POINTS, color="C3", lw=0.8, ls="--")
        axes[1, i].set(xlabel="step", title="KL (nats); dashed: choices")
        axes[1, i].set_ylim(0, 1.2 * axes[1, i].get_ylim()[1])
    for axis in axes[0]:
        axis.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-2, 2), xticks=[], yticks=[])
    for name, label in (
        ("excess_regression", "error regression"),
        ("excess_particles", "particles"),
    ):
        values = data[name]
        (line,) = axes[1, 0].plot(data.w, values.mean("seed"), label=label)
        axes[1, 0].plot(data.w, values, ".", color=line.get_color(), alpha=0.5)
    axes[1, 0].set(xscale="log", yscale="log", xlabel="w", title="loss above the machine")
    axes[1, 0].legend(frameon=False)
    for axis in axes[1]:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> xarray.Dataset:
    parser = argparse.ArgumentParser(description="Drawn patterns chained by a machine.")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pv_rnn_patterns_output"))
    options = parsed(parser, arguments)
    data = run(SMOKE if options.smoke else Config(), options.seed)
    report(data)
    data.to_netcdf(options.out / "patterns.nc")
    plot(data, options.out / "patterns.png")
    if options.record:
        record(data)
    return data


if __name__ == "__main__":
    main()
