"""What the examples of marginalization models for strings share: networks, baselines, measures, fillings of gaps, figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _two_stages import Stages, compared, correlations, seconds, train_autoregressive

from lapilli.models import mam


class Config(NamedTuple):
    """Sizes of a run."""

    stages: Stages
    width: int = 64
    depth: int = 1
    reach: int = 5
    num_test: int = 200
    num_orders: int = 5
    num_groups: int = 50
    gap: float = 10.0  # nats, to which groups are thinned for the second correlation
    num_draws: int = 6  # shown fillings of each gap

    @property
    def sizes(self) -> dict[str, int]:
        """Those of a transformer."""
        return {"width": self.width, "depth": self.depth, "reach": self.reach}


def train_causal(x: np.ndarray, num_values: int, config: Config, key: jax.Array):
    """The baseline of one order: a transformer of the same size from left to right, for as many steps as the first stage."""
    init_key, fit_key = jax.random.split(key)
    network = mam.CausalTransformer(x.shape[1], num_values, **config.sizes, key=init_key)
    return train_autoregressive(network, x, config.stages, fit_key)


def backoff(x: np.ndarray, test: np.ndarray, num_values: int, context: int, start: int = 0) -> float:  # fmt: skip
    """Log-likelihood of a row in nats by counts given the `context` symbols before; contexts seen less lean on shorter ones.

    p_c = (count + 4 p_{c-1}) / (total + 4), from left to right, p_{-1} uniform. The first `start` symbols of each row are given.
    """
    p = np.full(test.shape, 1 / num_values)
    for c in range(context + 1):
        code = lambda rows, c=c: sum(
            np.pad(rows, ((0, 0), (i, 0)))[:, : rows.shape[1]] * num_values**i for i in range(c + 1)
        )
        seen = code(x)[:, max(c, start) :]
        joint = np.bincount(seen.ravel(), minlength=num_values ** (c + 1)).reshape(-1, num_values)
        index = code(test)
        count, total = joint.ravel()[index], joint.sum(1)[index // num_values]
        p = np.where(np.arange(test.shape[1]) >= c, (count + 4 * p) / (total + 4), p)
    return float(np.log(p[:, start:]).sum(1).mean())


# Measures.


class Result(NamedTuple):
    """Log-likelihoods of test rows in nats by name; bits of a hidden symbol by number of known ones; log-marginals of parts."""

    log_likelihood: dict[str, float]
    by_known: np.ndarray  # [length]
    parts: np.ndarray  # [rows, 3]: l, chain in one order, number of known symbols
    error: float  # mean |l - ensemble| over whole rows, nats
    correlations: dict[str, tuple[float, float]]
    seconds: dict[str, float]


def measure(
    networks: mam.Pair, causal: mam.CausalTransformer, test: np.ndarray, config: Config, key: jax.Array
) -> Result:  # fmt: skip
    """All figures that need no other data."""
    order_key, row_key, draw_key = jax.random.split(key, 3)
    model, size = mam.MaM(networks), test.shape[1]
    orders = mam.UniformOrder(size).sample(order_key, (config.num_orders,))
    ensemble = mam.MaM(networks, density="ensemble", orders=orders)
    each = mam.UniformOrder(size).sample(row_key, (config.num_orders, len(test)))
    steps = np.stack([model.log_steps(test, order) for order in each])  # [orders, rows, steps]
    together = np.asarray(ensemble.log_prob(test))
    marginal = np.asarray(model.log_marginal(test, np.ones(size, bool)))
    known = np.arange(1, size + 1)
    observed = np.argsort(each[0], -1) < known[:, None, None]
    level = np.asarray(model.log_marginal(test, observed))  # [symbols known, rows]
    chain = steps[0].cumsum(-1).T
    return Result(
        log_likelihood={
            "left-to-right transformer": float(jax.vmap(causal.log_prob)(test).mean()),
            "any order, from left to right": float(
                model.log_steps(test, np.arange(size)).sum(1).mean()
            ),
            "any order, one": float(steps.sum(-1).mean()),
            f"any order, {config.num_orders}": float(together.mean()),
            "marginal network": float(marginal.mean()),
        },
        by_known=-steps.mean((0, 1)) / np.log(2),
        parts=np.stack(np.broadcast_arrays(level, chain, known[:, None]), -1).reshape(-1, 3),
        error=float(np.abs(marginal - together).mean()),
        correlations=correlations(ensemble, model, test[: config.num_groups], draw_key, config.gap),
        seconds=seconds(ensemble, model, test[:64]),
    )


def report(result: Result, title: str, units: dict[str, float]) -> str:
    """The table of a run: -log-likelihood in each unit, given what a nat a row is in it."""
    lines = [f"{title:<34}" + "".join(f" {unit:>18}" for unit in units)]
    for name, value in result.log_likelihood.items():
        note = "   (one pass; not normalised exactly)" if name == "marginal network" else ""
        figures = "".join(f" {-value * scale:18.3f}" for scale in units.values())
        lines.append(f"  {name:<32}{figures}{note}")
    size = int(result.parts[:, 2].max())
    lines.append(f"mean |marginal - ensemble|, whole rows: {result.error:.2f} nats")
    error = np.abs(result.parts[:, 0] - result.parts[:, 1])
    lines.append(
        "mean |marginal - chain in one order| by known symbols: "
        + ", ".join(
            f"{n}: {error[result.parts[:, 2] == n].mean():.2f}"
            for n in (size // 8, size // 2, size)
        )
    )
    lines += compared(result.correlations, result.seconds, size, "a row")
    return "\n".join(lines)


# Gaps.


def text_of(row: np.ndarray, symbols: Sequence[str], known: np.ndarray | None = None) -> str:
    """A row as text, "_" for what is not known."""
    known = np.ones(len(row), bool) if known is None else known
    return "".join(symbols[i] if seen else "_" for i, seen in zip(row, known, strict=True))


class Gap(NamedTuple):
    """A row of which a part is hidden."""

    row: np.ndarray
    observed: np.ndarray


def fill(
    model: mam.MaM, gaps: dict[str, Gap], show: Callable[..., str], count: int, key: jax.Array
) -> tuple[str, dict[str, np.ndarray]]:
    """Draws that fill gaps, and how probable each filling is; and the draws by name."""
    lines, found = [], {}
    for i, (name, (row, observed)) in enumerate(gaps.items()):
        draws = model.condition(row, observed).draw(jax.random.fold_in(key, i), (count,))
        value = np.concatenate([row[None], draws.value])
        level = np.asarray(model.log_conditional(value, ~observed, observed))
        chain = np.concatenate([[np.nan], draws.log_prob])
        texts = [show(row, observed), *map(show, value)]
        wide = max(map(len, texts))
        lines.append(f"{name:<24}{texts[0]:<{wide}}   {'marginal':>9} {'chain':>7}   log p, nats")
        for j, (text, a, b) in enumerate(zip(texts[1:], level, chain, strict=True)):
            label = "what was there" if j == 0 else f"draw {j}"
            lines.append(f"  {label:<22}{text:<{wide}}   {a:9.1f} " + (f"{b:7.1f}" if j else ""))
        found[name.replace(" ", "_")] = np.asarray(draws.value)
    return "\n".join(lines), found


# Figures.


def draw(result: Result, per_symbol: float, path: Path) -> None:
    """Bits of a hidden symbol by what is known, beside what other models need; log-marginals of parts against the chain."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    axes[0].plot(result.by_known, marker=".", label="the next one in random order")
    others = [n for n in result.log_likelihood if "order" not in n and "marginal" not in n]
    for name, style in zip(others, (":", "-.", "--", "-"), strict=True):
        bits = -result.log_likelihood[name] * per_symbol
        axes[0].axhline(bits, color="0.5", ls=style, lw=1, label=name)
    axes[0].set(xlabel="symbols known, anywhere in the row", ylabel="bits of a hidden symbol")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    level, chain, known = result.parts.T
    points = axes[1].scatter(chain, level, c=known, s=2, alpha=0.5)
    figure.colorbar(points, ax=axes[1], label="symbols known")
    axes[1].axline((0, 0), slope=1, color="0.4", lw=0.8)
    axes[1].set(xlabel="chain in one order, log p (nats)", ylabel="marginal network, one pass")
    figure.savefig(path, dpi=120)
