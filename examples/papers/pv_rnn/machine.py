"""How much randomness should a recurrent network own? A probabilistic machine, learned at five settings of one weight.

What it shows: ten strings of 24 symbols from a machine with three states, one of which branches (s1 -0-> s2; s2 -0-> s3 with
probability 0.3, -1-> s1 with 0.7; s3 -1-> s1), are learned by a PV-RNN (Ahmadi and Tani 2019, arXiv:1811.01339). Its meta-prior
w weighs the divergence between posterior and prior of the latents against the fit. It is a site weight of the objective, no other
number changes: all values of w and all seeds are trained in one vectorised loop. Then, for each network:

- what the latents hold (KL per step) and how well the posterior fits the training strings;
- free generation: KL between the exact law of 12-symbol strings and that of 20,000 generated symbols (1e-5 for strings not met),
  the mass on strings that the machine cannot make, and the step at which regenerated training strings leave their targets;
- one-step prediction on new strings, by error regression (data enter through gradients on the latents' vectors only) and by
  a particle filter on the same network. Two past symbols suffice to predict as well as can be, so that no method can be below the
  machine's entropy rate, 0.26559 nats per symbol, by more than chance: a prediction that saw its target would;
- the largest Lyapunov exponent of the network without its noise.

Published (abstract): high w, deterministic chaos imitates the randomness of the data; low w, a random process; intermediate w is
best.

Expected after 20,000 steps: the information in the latents falls with w, by 0.029 nats per step and e-fold; strings are generated
best at an intermediate w, 0.01, where both predictors are within 0.1 nats of the machine itself; exponents rise with w from
negative ones to about zero, and some networks are chaotic. Some with w >= 0.1 predict badly. Figures: docs/_data/figures,
pv_rnn/machine.

Run time: 4 minutes on 2 CPU cores.

    python examples/papers/pv_rnn/machine.py [--smoke] [--steps 20000] [--seeds 5] [--out pv_rnn_machine_output] [--record]
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from lapilli import inference
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import Categorical, ErrorRegression, Layer, Network

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import interval
from _record import parsed, record_figure

# Probability of symbol and next state given the state: [state, symbol, next state].
MACHINE = np.zeros((3, 2, 3))
MACHINE[0, 0, 1], MACHINE[1, 0, 2], MACHINE[1, 1, 0], MACHINE[2, 1, 0] = 1.0, 0.3, 0.7, 1.0
STATIONARY = np.array([1.0, 1.0, 0.3]) / 2.3
RATE = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / 2.3  # entropy rate, nats per symbol
LENGTH = 12  # of the strings that are compared


class Config(NamedTuple):
    """Sizes of the experiment."""

    weights: tuple[float, ...] = (0.001, 0.01, 0.1, 0.3, 1.0)
    num_seeds: int = 5
    num_steps: int = 20_000
    num_generated: int = 20_000
    num_tests: int = 8
    test_length: int = 60
    window: int = 10
    num_iterations: int = 60
    num_particles: int = 100
    lyapunov_steps: int = 3000


SMOKE = Config((0.01, 0.3), 2, 30, 500, 2, 14, 4, 3, 20, 200)
SEQUENCES, STEPS, WARM_UP = 10, 24, 10


def strings(
    rng: np.random.Generator, num_rows: int, length: int, machine: np.ndarray = MACHINE
) -> np.ndarray:
    """Symbols of the machine from its stationary law, [num_rows, length, 1]."""
    symbols = np.zeros((num_rows, length, 1), np.int32)
    for row in symbols:
        state = rng.choice(3, p=STATIONARY)
        for t in range(length):
            symbol, state = divmod(rng.choice(machine[state].size, p=machine[state].ravel()), 3)
            row[t] = symbol
    return symbols


def law_of_strings(n: int, machine: np.ndarray = MACHINE) -> np.ndarray:
    """Probability of each string of n symbols, [symbols^n]."""
    forward = STATIONARY[None]
    for _ in range(n):
        forward = np.einsum("ks,sat->kat", forward, machine).reshape(-1, 3)
    return forward.sum(1)


def bound_of(network: Network, num_steps: int) -> inference.Objective:
    """The objective of the machine's strings, still without weights."""
    model, guide = pv_rnn.programs(network, num_sequences=SEQUENCES, num_steps=num_steps)
    return inference.elbo(model, guide, kl="analytic", check_jumps=False)


def network_of(key: jax.Array) -> Network:
    """One layer of ten units with one latent."""
    return Network([Layer(10, 1, 2.0)], Categorical(2), posterior_from_state=False, key=key)


def train(config: Config, x: jax.Array, keys: jax.Array, ws: jax.Array):
    """Networks and vectors for every pair (key, w), trained side by side; the last values of the objective."""
    template = network_of(jax.random.key(0))
    bound, index = bound_of(template, STEPS), jnp.arange(SEQUENCES)
    bound.plan(bound.init(jax.random.key(0), x, index), x, index)  # every check, once
    optimizer = optax.adam(2e-3)

    def one(key: jax.Array, w: jax.Array):
        start_key, key = jax.random.split(key)
        params = bound.init(start_key, x, index)
        params["network"] = jax.tree.map(jnp.asarray, network_of(start_key))
        weighted = bound.with_site_weights(pv_rnn.site_weights(template, w, num_steps=STEPS))

        def step(carry, t):
            params, state = carry
            value, grads = weighted.value_and_grad(params, jax.random.fold_in(key, t), x, index)
            updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state, params)
            return (optax.apply_updates(params, updates), state), value

        carry, values = jax.lax.scan(
            step, (params, optimizer.init(params)), jnp.arange(config.num_steps)
        )
        return carry[0], values[-100:].mean()

    return jax.jit(jax.vmap(one))(keys, ws)


def measure_latents(params, x: jax.Array, keys: jax.Array) -> dict[str, np.ndarray]:
    """Per step of the training strings: KL of the latents, -log p(x | z), both in nats; the posterior's mean scale."""
    template, index = network_of(jax.random.key(0)), jnp.arange(SEQUENCES)
    bound = bound_of(template, STEPS)

    def one(params, key):
        values = {}
        for name, weights in {"information": {"x": 0.0}, "fit": {"z1": 0.0}}.items():
            part = bound.with_site_weights(weights)
            draws = jax.vmap(lambda k, b=part: b.value(params, k, x, index))(
                jax.random.split(key, 20)
            )
            values[name] = -draws.mean() / (SEQUENCES * STEPS)
        values["scale"] = jnp.exp(params["adaptive"][0][..., 1]).mean()
        return values

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(params, keys))


def measure_generation(
    config: Config, networks, params, x: jax.Array, keys: jax.Array
) -> dict[str, np.ndarray]:
    """Strings of free generation, diverging steps of regeneration, exponents of the skeleton."""
    start, burn_in = 3, 100
    rows = 20

    @jax.jit
    @jax.vmap
    def run(network, vectors, key):
        free_key, target_key, map_key = jax.random.split(key, 3)
        length = config.num_generated // rows
        free = pv_rnn.generate(network, free_key, length, num_rows=rows, burn_in=burn_in)
        again = pv_rnn.regenerate(network, target_key, vectors, start)
        skeleton = pv_rnn.skeleton(network, map_key, num_starts=10, num_steps=config.lyapunov_steps)
        steps = pv_rnn.diverging_step(again[:, start:], x[:, start:]).mean() + start
        return free[..., 0], steps, skeleton.exponents.max(), skeleton.spread.max()

    free, steps, exponents, spread = jax.tree.map(
        np.asarray, run(networks, params["adaptive"], keys)
    )
    law = law_of_strings(LENGTH)
    divergences = [pv_rnn.ngram_divergence(law, symbols, LENGTH) for symbols in free]
    return {
        "string_kl": np.array([d.divergence for d in divergences]),
        "illegal": np.array([d.illegal for d in divergences]),
        "diverging_step": steps,
        "lyapunov": exponents,
        "attractor": spread,
    }


def measure_prediction(
    config: Config, networks, tests: jax.Array, ws: jax.Array, keys: jax.Array
) -> dict[str, np.ndarray]:
    """-log p(x_t | past) on new strings after WARM_UP symbols, nats: means [models, methods, strings]."""
    length = tests.shape[1]

    def by_regression(network, w, key, xs):
        er = ErrorRegression(
            network, window=config.window, num_iterations=config.num_iterations, w=w, num_particles=config.num_particles
        )  # fmt: skip
        _, predictions = er.run(er.init(key), xs)
        return pv_rnn.log_score(network, predictions.emitted[:-1, 0], xs[1:])

    def by_particles(network, key, xs):
        model, _ = pv_rnn.programs(network, guide="prior", num_steps=length)
        result = inference.smc(
            model, key, xs[None], jnp.arange(1), num_particles=config.num_particles, history="none"
        )
        return result.increments[-length + 1 :]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
    def run(network, w, key, tests):
        def one(key, xs):
            scores = [by_regression(network, w, key, xs), by_particles(network, key, xs)]
            return -jnp.stack(scores)[:, WARM_UP - 1 :].mean(1)

        return jax.vmap(one)(jax.random.split(key, len(tests)), tests)

    losses = np.asarray(run(networks, ws, keys, tests))  # [models, strings, methods]
    floor = floor_of(np.asarray(tests))
    return {
        "nll_regression": losses[..., 0].mean(1),
        "nll_particles": losses[..., 1].mean(1),
        "excess_regression": (losses[..., 0] - floor).mean(1),
        "excess_particles": (losses[..., 1] - floor).mean(1),
    }


def floor_of(tests: np.ndarray) -> np.ndarray:
    """-log p(x_t | past) of the machine itself on the same symbols, mean after WARM_UP symbols, [strings]."""
    losses = []
    for xs in tests[..., 0]:
        belief, loss = STATIONARY, []
        for symbol in xs:
            joint = belief @ MACHINE[:, symbol]
            loss.append(-np.log(joint.sum()))
            belief = joint / joint.sum()
        losses.append(np.mean(loss[WARM_UP:]))
    return np.array(losses)


def run(config: Config, seed: int) -> xarray.Dataset:
    """All measures, [w, seed]."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(strings(rng, SEQUENCES, STEPS))
    tests = jnp.asarray(strings(rng, config.num_tests, config.test_length))
    grid = (len(config.weights), config.num_seeds)
    ws = jnp.repeat(jnp.asarray(config.weights), config.num_seeds)
    key = jax.random.key(seed)
    keys = jnp.tile(jax.random.split(key, config.num_seeds), len(config.weights))
    start = time.perf_counter()
    params, values = jax.block_until_ready(train(config, x, keys, ws))
    print(f"{len(ws)} networks, {config.num_steps} steps: {time.perf_counter() - start:.0f} s")
    networks = pv_rnn.frozen(params, network_of(key))
    measures = {"objective": np.asarray(values)}
    key_of = lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
    for i, measure in enumerate((
        lambda k: measure_latents(params, x, k),
        lambda k: measure_generation(config, networks, params, x, k),
        lambda k: measure_prediction(config, networks, tests, ws, k),
    )):  # fmt: skip
        start = time.perf_counter()
        measures |= measure(key_of(i))
        print(f"measures {i + 1} of 3: {time.perf_counter() - start:.0f} s", flush=True)
    data = {name: (("w", "seed"), np.reshape(v, grid)) for name, v in measures.items()}
    own = pv_rnn.ngram_divergence(law_of_strings(LENGTH), np.asarray(x)[..., 0], LENGTH)
    attributes = {
        "entropy_rate": RATE,
        "floor_on_test_strings": float(floor_of(np.asarray(tests)).mean()),
        "string_kl_of_training_strings": own.divergence,
        "training_steps": config.num_steps,
    }
    coords = {"w": list(config.weights), "seed": np.arange(config.num_seeds)}
    return xarray.Dataset(data, coords=coords, attrs=attributes)


COLUMNS = {
    "information": "KL/step", "fit": "fit NLL", "scale": "scale of q", "string_kl": f"KL of {LENGTH}-strings",
    "illegal": "illegal", "diverging_step": "diverges at", "nll_regression": "NLL, regression",
    "nll_particles": "NLL, particles", "lyapunov": "Lyapunov", "attractor": "attractor",
}  # fmt: skip


def report(data: xarray.Dataset) -> None:
    print(f"\nmean over {data.sizes['seed']} seeds +- half of a 95% interval")
    print(f"{'w':>6}" + "".join(f"{title:>18}" for title in COLUMNS.values()))
    for w in data.w.values:
        cells = []
        for name in COLUMNS:
            mean, half = interval(data[name].sel(w=w).values)
            cells.append(f"{mean:.3f} +- {half:.3f}")
        print(f"{w:6g}" + "".join(f"{cell:>18}" for cell in cells))
    print(
        f"floor of any one-step prediction: {RATE:.5f} nats; the machine itself on these test strings: "
        f"{data.attrs['floor_on_test_strings']:.5f}"
    )
    for method in ("regression", "particles"):
        mean = data[f"excess_{method}"].mean("seed")
        best = float(mean.w[np.argmin(mean.values)])
        excess, half = interval(data[f"excess_{method}"].sel(w=best).values)
        print(f"{method}: best at w = {best:g}, {excess:.3f} +- {half:.3f} nats above the machine")
    kl = data.string_kl.mean("seed")
    print(
        f"strings: KL is lowest at w = {float(kl.w[np.argmin(kl.values)]):g}, {float(kl.min()):.3f} nats; the training strings "
        f"themselves have {data.attrs['string_kl_of_training_strings']:.3f}"
    )
    slopes = [
        np.polyfit(np.log(data.w.values), data.information.sel(seed=s).values, 1)[0]
        for s in data.seed.values
    ]
    mean, half = interval(np.array(slopes))
    print(f"information in the latents: {mean:+.4f} +- {half:.4f} nats per step and e-fold of w")
    positive = int((data.lyapunov > 0).sum())
    print(
        f"positive exponents: {positive} of {data.lyapunov.size} networks, the largest "
        f"{float(data.lyapunov.max()):+.4f} nats per step"
    )


def record(data: xarray.Dataset) -> None:
    """Log-losses above the machine's, for the page of figures."""
    cells = {
        f"{method}, w = {w:g}": interval(data[f"excess_{method}"].sel(w=w).values)
        for method in ("particles", "regression")
        for w in data.w.values
    }
    kl = {w: interval(data.string_kl.sel(w=w).values) for w in data.w.values}
    record_figure(
        "pv_rnn/machine",
        what=f"PV-RNN on a probabilistic machine (entropy rate {RATE:.5f} nats), {data.lyapunov.size} networks: log-loss "
        "above the machine, by particles and by error regression; spread: half of a 95% interval",
        value={name: mean for name, (mean, _) in cells.items()},
        spread={name: half for name, (_, half) in cells.items()},
        seeds=data.sizes["seed"],
        note="KL of strings that are generated: "
        + "; ".join(f"w = {w:g} {mean:.2f} ± {half:.2f}" for w, (mean, half) in kl.items())
        + f"; positive Lyapunov exponents: {int((data.lyapunov > 0).sum())} networks",
        measures=["models/pv_rnn"],
    )


def plot(data: xarray.Dataset, path: Path) -> None:
    """Four panels over w: information, strings, prediction with its floor, exponents; a dot for each seed."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex=True, constrained_layout=True)
    panels = (
        (("information",), "KL(q || p) per step (nats)", None),
        (("string_kl", "illegal"), f"free generation, {LENGTH}-symbol strings", None),
        (("nll_particles", "nll_regression"), "one-step NLL on new strings (nats)", RATE),
        (("lyapunov",), "largest Lyapunov exponent, noise off", 0.0),
    )
    labels = {
        "string_kl": "KL(exact || generated), nats", "illegal": "mass on impossible strings",
        "nll_particles": "particle filter", "nll_regression": "error regression",
    }  # fmt: skip
    for axis, (names, title, line) in zip(axes.flat, panels, strict=True):
        for i, name in enumerate(names):
            shift = 1.0 + 0.12 * (i - 0.5 * (len(names) - 1))
            colour, values = f"C{i}", data[name]
            for s in data.seed.values:
                axis.plot(data.w * shift, values.sel(seed=s), ".", color=colour, alpha=0.45, ms=6)
            axis.plot(
                data.w * shift, values.mean("seed"), "-", color=colour, label=labels.get(name)
            )
        if line is not None:
            label = "entropy rate" if line else None
            axis.axhline(line, color="0.3", lw=1, ls="--", label=label)
        axis.set(title=title, xscale="log")
        if len(names) > 1:
            axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("meta-prior w")
    figure.suptitle(f"PV-RNN on a probabilistic machine, {data.attrs['training_steps']} steps")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> xarray.Dataset:
    parser = argparse.ArgumentParser(description="A probabilistic machine and the meta-prior.")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--steps", type=int, default=Config().num_steps)
    parser.add_argument("--seeds", type=int, default=Config().num_seeds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pv_rnn_machine_output"))
    options = parsed(parser, arguments)
    config = Config(num_steps=options.steps, num_seeds=options.seeds)
    data = run(SMOKE if options.smoke else config, options.seed)
    report(data)
    data.to_netcdf(options.out / "machine.nc")
    plot(data, options.out / "machine.png")
    if options.record:
        record(data)
    return data


if __name__ == "__main__":
    main()
