"""Text by a marginalization model: letters in any order, gaps filled from both sides, any part's probability in one pass.

What it shows: a transformer over positions learns to predict any letters of a line from any others; a second one learns what the
chain of predictions says of every partial line. The first then fills gaps with what stands before and after them in view,
the second says in one pass how probable a line, or any part of it, is.

Data: the language reference that every Python carries along for its `help()` (`pydoc_data.topics`, 375,000 letters and spaces
after lower-casing and turning everything else into single spaces: 27 symbols, as in text8). Lines of 32 characters; the last
tenth is for tests. Python 3.13's text was used for the figures below; other versions differ a little.

Source: Liu, Ramadge and Adams 2024, arXiv:2310.12920, table 3, on text8 (100 million characters, lines of 250, 12 blocks of
width 768): 1.529 bits a character by one order and 1.494 by five; Spearman and Pearson of the marginal network 0.937 and 0.945
after thinning to 10 nats, the weakest of its data sets.

Expected, trained in pieces of the sizes below: 2.83 bits a character by one order, 2.75 by five, far fewer than the frequencies
of characters ask for (4.10); more than counts of the four characters before, which know which characters they will be given
(1.96). The marginal network is off by 2.2 nats for a whole line; in groups of redrawn copies Spearman is 0.79 and Pearson 0.85,
after thinning 0.98 and 0.99. Short words come out, longer ones seldom. Run time: three minutes on 2 CPU cores.

    python examples/text.py [--smoke] [--out text_output]
"""

import argparse
import pydoc_data.topics
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from two_stages import Stages, correlations, seconds, train

from lapilli import inference
from lapilli.models import mam

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
GAP = 12


class Config(NamedTuple):
    """Sizes of a run."""

    length: int = 32
    width: int = 64
    depth: int = 1
    reach: int = 5
    stages: Stages = Stages(2_500, 2_000, 3_000, 1_500, 64, 3e-3)
    stride: int = 8  # between the starts of training lines, a divisor of the length
    num_test: int = 200
    num_orders: int = 5
    num_groups: int = 50
    num_draws: int = 6  # fillings of each gap


SMOKE = Config(24, 16, 1, 2, Stages(60, 40, 250, 250, 32, 5e-3), 8, 20, 2, 5, 2)


def data(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Lines to train on, which overlap, and lines to test on, which do not and come after them."""
    text = " ".join(pydoc_data.topics.topics.values())
    text = re.sub("[^a-z]+", " ", text.lower())
    symbols = np.array([ALPHABET.index(c) for c in text], np.int32)
    cut = 9 * len(symbols) // 10
    lines = lambda part, stride: np.lib.stride_tricks.sliding_window_view(part, config.length)[
        ::stride
    ]
    test = lines(symbols[cut:], config.length)
    some = np.random.default_rng(0).permutation(len(test))[: config.num_test]
    return lines(symbols[:cut], config.stride).copy(), test[some]


def networks(config: Config, key: jax.Array) -> mam.Pair:
    """Two transformers."""
    sizes = {"width": config.width, "depth": config.depth, "reach": config.reach}
    return mam.transformers(config.length, len(ALPHABET), **sizes, key=key)


# Measures.


def backoff(x: np.ndarray, test: np.ndarray, context: int) -> float:
    """Bits a character of counts given the `context` characters before; contexts seen less lean on shorter ones.

    p_c = (count + 4 p_{c-1}) / (total + 4), from left to right, p_{-1} uniform.
    """
    size = len(ALPHABET)
    p = np.full(test.shape, 1 / size)
    for c in range(context + 1):
        code = lambda rows, c=c: sum(
            np.pad(rows, ((0, 0), (i, 0)))[:, : rows.shape[1]] * size**i for i in range(c + 1)
        )
        seen = code(x)[:, c:]
        joint = np.bincount(seen.ravel(), minlength=size ** (c + 1)).reshape(-1, size)
        index = code(test)
        count, total = joint.ravel()[index], joint.sum(1)[index // size]
        p = np.where(np.arange(test.shape[1]) >= c, (count + 4 * p) / (total + 4), p)
    return float(-np.log2(p).mean())


class Result(NamedTuple):
    """Bits a character by name; bits of a hidden character by number of known ones; log-marginals of parts of test lines."""

    bits: dict[str, float]
    by_known: np.ndarray  # [length]
    parts: np.ndarray  # [rows, 3]: l, chain in one order, number of known characters
    error: float  # mean |l - ensemble| over whole lines, nats
    correlations: dict[str, tuple[float, float]]
    seconds: dict[str, float]


def measure(networks: mam.Pair, x: np.ndarray, test: np.ndarray, config: Config, key: jax.Array) -> Result:  # fmt: skip
    """All figures of a run."""
    order_key, draw_key = jax.random.split(key)
    model, size = mam.MaM(networks), config.length
    orders = mam.UniformOrder(size).sample(order_key, (config.num_orders,))
    ensemble = mam.MaM(networks, density="ensemble", orders=orders)
    steps = np.stack([model.log_steps(test, order) for order in orders])  # [orders, rows, steps]
    together = np.asarray(ensemble.log_prob(test))
    marginal = np.asarray(model.log_marginal(test, np.ones(size, bool)))
    once = x[:: size // config.stride]  # lines without overlap: every character counts once
    forwards = np.asarray(model.log_steps(test, np.arange(size)))
    bits = lambda log_p: float(-np.mean(log_p) / np.log(2))
    known = np.arange(1, size + 1)
    ranks = np.argsort(orders[0])
    observed = ranks < known[:, None, None]
    level = np.asarray(model.log_marginal(test, np.broadcast_to(observed, (size, *test.shape))))
    chain = steps[0].cumsum(-1).T
    return Result(
        bits={
            "frequency of characters": backoff(once, test, 0),
            "counts, 2 characters before": backoff(once, test, 2),
            "counts, 4 characters before": backoff(once, test, 4),
            "any order, one": bits(steps),
            f"any order, {config.num_orders}": bits(together / size),
            "from left to right": bits(forwards),
            "marginal network": bits(marginal / size),
        },
        by_known=-steps.mean((0, 1)) / np.log(2),
        parts=np.stack(np.broadcast_arrays(level, chain, known[:, None]), -1).reshape(-1, 3),
        error=float(np.abs(marginal - together).mean()),
        correlations=correlations(ensemble, model, test[: config.num_groups], draw_key, 10.0),
        seconds=seconds(ensemble, model, test[:64]),
    )


def text_of(row: np.ndarray, known: np.ndarray | None = None) -> str:
    """A line as text, "_" for what is not known."""
    known = np.ones(len(row), bool) if known is None else known
    return "".join(ALPHABET[i] if seen else "_" for i, seen in zip(row, known, strict=True))


def fill(model: mam.MaM, test: np.ndarray, config: Config, key: jax.Array) -> tuple[str, dict[str, np.ndarray]]:  # fmt: skip
    """Gaps in some test lines, draws that fill them, and how probable each filling is; and the draws by name."""
    place = np.arange(config.length)
    middle = (place < (config.length - GAP) // 2) | (place >= (config.length + GAP) // 2)
    masks = {
        "a gap": middle,
        "every other character": place % 2 == 0,
        "the end": place < config.length - GAP,
    }
    lines, found = [], {}
    for i, (name, observed) in enumerate(masks.items()):
        row = test[i]
        draws = model.condition(row, observed).draw(jax.random.fold_in(key, i), (config.num_draws,))
        value = np.concatenate([row[None], draws.value])
        level = np.asarray(model.log_conditional(value, ~observed, observed))
        chain = np.concatenate([[np.nan], draws.log_prob])
        lines.append(
            f"{name:<24}{text_of(row, observed)}   {'marginal':>9} {'chain':>7}   log p, nats"
        )
        for j, (v, a, b) in enumerate(zip(value, level, chain, strict=True)):
            label = "the text" if j == 0 else f"draw {j}"
            lines.append(f"  {label:<22}{text_of(v)}   {a:9.1f} " + (f"{b:7.1f}" if j else ""))
        found[name.replace(" ", "_")] = np.asarray(draws.value)
    return "\n".join(lines), found


def report(result: Result, config: Config) -> str:
    """The table of the run."""
    lines = [f"{'test lines':<34} {'bits a character':>16}"]
    for name, value in result.bits.items():
        note = "   (one pass; not normalised exactly)" if name == "marginal network" else ""
        lines.append(f"  {name:<32} {value:16.3f}{note}")
    lines.append(f"mean |marginal - ensemble|, whole lines: {result.error:.2f} nats")
    error = np.abs(result.parts[:, 0] - result.parts[:, 1])
    sizes = (config.length // 8, config.length // 2, config.length)
    lines.append(
        "mean |marginal - chain in one order| by known characters: "
        + ", ".join(f"{n}: {error[result.parts[:, 2] == n].mean():.2f}" for n in sizes)
    )
    for name, (rank, linear) in result.correlations.items():
        lines.append(f"groups of 4, {name:<20} Spearman {rank:.3f}  Pearson {linear:.3f}")
    one, chain, every = (result.seconds[n] for n in ("marginal", "one order", "ensemble"))
    lines.append(
        f"one marginal {1e6 * one:.0f} us a line, a chain of {config.length} passes {chain / one:.0f} times that, all orders "
        f"{every / one:.0f} times"
    )
    return "\n".join(lines)


# Figures.


def draw(result: Result, config: Config, out: Path) -> None:
    """Bits of a hidden character by what is known; log-marginals of parts against the chain."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    axes[0].plot(result.by_known, marker=".", label="the next one in random order")
    counts = [name for name in result.bits if "counts" in name or "frequency" in name]
    for name, style in zip(counts, (":", "--", "-"), strict=True):
        axes[0].axhline(result.bits[name], color="0.5", ls=style, lw=1, label=name)
    axes[0].set(
        xlabel="characters known, anywhere in the line", ylabel="bits of a hidden character"
    )
    axes[0].legend(frameon=False, fontsize=8)
    level, chain, known = result.parts.T
    points = axes[1].scatter(chain, level, c=known, s=2, alpha=0.5)
    figure.colorbar(points, ax=axes[1], label="characters known")
    axes[1].axline((0, 0), slope=1, color="0.4", lw=0.8)
    axes[1].set(xlabel="chain in one order, log p (nats)", ylabel="marginal network, one pass")
    figure.savefig(out / "text.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Text in any order.")
    parser.add_argument("--smoke", action="store_true", help="small networks, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("text_output"))
    options = parser.parse_args(arguments)
    config = SMOKE if options.smoke else Config()
    options.out.mkdir(parents=True, exist_ok=True)
    init_key, train_key, measure_key, fill_key = jax.random.split(jax.random.key(options.seed), 4)

    x, test = data(config)
    start = time.perf_counter()
    trained = train(networks(config, init_key), x, config.stages, train_key)
    took = time.perf_counter() - start
    result = measure(trained, x, test, config, measure_key)
    filled, draws = fill(mam.MaM(trained), test, config, fill_key)
    text = f"trained in {took:.0f} s\n{report(result, config)}\n\n{filled}"
    draw(result, config, options.out)
    tree = inference.to_arviz(draws, dims={name: ["character"] for name in draws})
    tree.to_netcdf(options.out / "text.nc")
    (options.out / "report.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
