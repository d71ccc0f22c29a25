"""Two-stage maximum likelihood of marginalization models, and what the examples of it measure alike."""

import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import pearsonr, spearmanr

from lapilli import inference
from lapilli.models import mam


class Stages(NamedTuple):
    """Sizes of both stages."""

    num_conditional: int  # steps of the first
    num_marginal: int  # steps of the second
    num_scored: int  # rows of data that the chain scores for the second stage
    num_drawn: int  # its own draws that it scores
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.0  # weight decay, in the first stage only: the second has draws without end against overfitting


def fit(objective, args, num_steps: int, stages: Stages, key: jax.Array) -> inference.Fit:
    """Adam with weight decay, the rate falling to zero along a cosine."""
    schedule = optax.cosine_decay_schedule(stages.rate, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=stages.decay)
    return inference.fit(
        objective, optimizer, args, num_steps=num_steps, key=key, subsample={"rows": stages.batch}
    )


def train(networks: mam.Pair, x: np.ndarray, stages: Stages, key: jax.Array) -> mam.Pair:
    """The conditional network from data; the marginal one from what the chain says of data and of draws, along one order each."""
    first_key, score_key, second_key = jax.random.split(key, 3)
    first = fit(
        mam.any_order(networks), (jnp.asarray(x),), stages.num_conditional, stages, first_key
    )
    networks = networks.with_params(first.params).with_warm_marginal()
    scored = score(networks, x, stages, score_key)
    free = stages._replace(decay=0.0)
    second = fit(mam.regress(networks), scored, stages.num_marginal, free, second_key)
    return networks.with_params(second.params)


def train_autoregressive(network, x: np.ndarray, stages: Stages, key: jax.Array):
    """A network of one order, with steps and optimiser of the first stage."""
    objective = mam.autoregressive(network)
    found = fit(objective, (jnp.asarray(x),), stages.num_conditional, stages, key)
    return eqx.combine(found.params["network"], eqx.partition(network, eqx.is_inexact_array)[1])


def score(networks: mam.Pair, x: np.ndarray, stages: Stages, key: jax.Array) -> tuple:
    """Rows, an order for each, and the chain's log-conditionals along it: some of the data, then draws."""
    model, size = mam.MaM(networks), 250
    row_key, order_key, draw_key = jax.random.split(key, 3)
    chosen = jax.random.choice(
        row_key, len(x), (stages.num_scored,), replace=stages.num_scored > len(x)
    )
    data = jnp.asarray(x)[chosen]
    draws = [model.draw(k, (size,)) for k in jax.random.split(draw_key, stages.num_drawn // size)]
    orders = mam.UniformOrder(x.shape[1]).sample(order_key, (len(data),))
    rows = jnp.concatenate([data, *(d.value for d in draws)])
    orders = jnp.concatenate([orders, *(d.order for d in draws)])
    steps = [
        model.log_steps(rows[i : i + size], orders[i : i + size]) for i in range(0, len(rows), size)
    ]
    return rows, orders, jnp.concatenate(steps)


def correlations(
    ensemble: mam.MaM, model: mam.MaM, x: np.ndarray, key: jax.Array, gap: float
) -> dict[str, tuple[float, float]]:
    """Mean Spearman and Pearson between l and the ensemble in groups of a row and copies with 1/8, 1/2 and 7/8 redrawn.

    The released code of the paper thins each group until its log-likelihoods are more than `gap` nats apart, which flatters both:
    given with and without.
    """
    groups = [x]
    for i, share in enumerate((0.125, 0.5, 0.875)):
        mask_key, draw_key = jax.random.split(jax.random.fold_in(key, i))
        kept = jax.random.uniform(mask_key, x.shape) > share
        groups.append(model.condition(x, kept).sample(draw_key))
    groups = np.stack(groups, 1)
    log_p = np.asarray(ensemble.log_prob(groups))
    level = np.asarray(model.log_marginal(groups, np.ones(x.shape[1], bool)))
    found = {"all": [], f"thinned by {gap:g} nats": []}
    for a, b in zip(log_p, level, strict=True):
        for name, keep in zip(found, (np.arange(len(a)), thinned(a, gap)), strict=True):
            if len(keep) > 1 and np.ptp(a[keep]) > 0 and np.ptp(b[keep]) > 0:
                scores = spearmanr(a[keep], b[keep]).statistic, pearsonr(a[keep], b[keep]).statistic
                found[name].append((len(keep), *scores))
    mean = lambda rows: tuple(np.average(np.array(rows)[:, 1:], 0, np.array(rows)[:, 0]))
    return {name: mean(rows) if rows else (np.nan, np.nan) for name, rows in found.items()}


def thinned(log_p: np.ndarray, gap: float) -> np.ndarray:
    """Indices of values that are more than `gap` apart, from the smallest up."""
    keep: list[int] = []
    for i in np.argsort(log_p):
        if not keep or log_p[i] - log_p[keep[-1]] > gap:
            keep.append(int(i))
    return np.array(keep)


def seconds(ensemble: mam.MaM, model: mam.MaM, x: np.ndarray) -> dict[str, float]:
    """Processor time of a log-likelihood per row, all rows in one batch; best of three."""
    everything, order = np.ones(x.shape[1], bool), ensemble.orders[0]
    found = {}
    for name, fn in {
        "marginal": lambda x: model.log_marginal(x, everything),
        "one order": lambda x: model.with_order(order).log_prob(x),
        "ensemble": lambda x: ensemble.log_prob(x),
    }.items():
        run = jax.jit(fn)
        jax.block_until_ready(run(x))
        times = []
        for _ in range(3):
            start = time.process_time()
            jax.block_until_ready(run(x))
            times.append(time.process_time() - start)
        found[name] = min(times) / len(x)
    return found


def compared(
    correlations: dict[str, tuple[float, float]],
    seconds: dict[str, float],
    num_passes: int,
    row: str,
) -> list[str]:
    """The lines of a report on the marginal network beside the ensemble: correlations and times."""
    one, chain, every = (seconds[name] for name in ("marginal", "one order", "ensemble"))
    return [
        f"groups of 4, {name:<20} Spearman {rank:.3f}  Pearson {linear:.3f}"
        for name, (rank, linear) in correlations.items()
    ] + [
        f"one marginal {1e6 * one:.1f} us {row}, a chain of {num_passes} passes {chain / one:.0f} times that, all orders "
        f"{every / one:.0f} times"
    ]


def in_words(error: float, correlations: dict[str, tuple[float, float]]) -> str:
    """How far the marginal network is from the ensemble, as a record's note says it."""
    ranks = "; ".join(f"{name} {rank:.2f}" for name, (rank, _) in correlations.items())
    return f"error of the one-pass log-likelihood of a whole row {error:.1f} nats, Spearman in groups of redrawn copies: {ranks}"


def leave(text: str, draws: dict[str, np.ndarray], place: str, out: Path) -> None:
    """Prints a report and leaves it and the draws [draws, places] in a folder."""
    draws = {name.replace(" ", "_"): value for name, value in draws.items()}
    tree = inference.to_arviz(draws, dims={name: [place] for name in draws})
    tree.to_netcdf(out / "draws.nc")
    (out / "report.txt").write_text(text + "\n")
    print(text)
