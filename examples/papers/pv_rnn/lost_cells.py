"""Predicting motion when sensors fail: train by an encoder, infer by error regression.

What it shows: the motions of motions.py (BasicMotions, six channels: accelerometer and gyroscope along three axes). On unseen
sequences cells are lost: three of the six channels throughout, half of all cells, both sensors along one axis from step 15 on,
all channels for five steps in every fifteen. One to five steps ahead, all channels, are predicted by:

- error regression on the network of a PV-RNN (Ahmadi and Tani 2019, arXiv:1811.01339) that was trained with an encoder: the
  vectors of the last ten steps by gradients on the cells that are seen. Lost cells have no term; nothing is trained for them;
- the same on a network that was trained with vectors for each sequence, as published;
- the encoder itself, which reads zeros where cells are lost; the encoder trained with cells dropped at random, and error
  regression on its network; a particle filter with the encoder as proposal;
- the VRNN of Chung et al. 2015 (arXiv:1506.02216), whose recurrence hears x and z, trained on whole sequences or with cells
  dropped; a GRU that hears x. Both draw what is lost from their own law, and hear it.

Beta (1/4, 1 or 4), the weight decay of the GRU, and the iterations of error regression (10, 20 or 60) are chosen on ten sequences
kept out of training, two under each pattern. Five seeds each; squared errors in units of the training variance of each channel;
every third step is scored. Halves of 95% intervals add the variances over seeds and over sequences (crossed), by t
with four degrees of freedom.

Published: a PV-RNN with error regression predicts the motion of another robot better than a comparable model (a VRNN) without.
The page docs/explain/reproduced.md has what came of it. Run time: a quarter of an hour of processor time.

    python examples/papers/pv_rnn/lost_cells.py [--smoke] [--seed 0] [--out pv_rnn_lost_cells_output]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import _predictors as predictors
import _vrnn
import jax
import jax.numpy as jnp
import numpy as np
import xarray
from _predictors import HORIZON, Config, Fits
from motions import chosen, motions, subset
from scipy import stats

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import draw_intervals
from _record import parsed, record_figure

PATTERNS = ("complete", "3 of 6 channels", "half the cells", "a dead axis", "gaps")
ITERATIONS = (10, 20, 60)
OURS = "error regression on twin"
FULL = Config(num_seeds=5, num_steps=1500, num_filter_particles=32, stride=3, batch_rows=50)
SMOKE = Config(18, 2, 2, (1.0,), (1.0,), 20, 10, 4, 2, 4, 4, 3, 10)


def masks(pattern: str, num_rows: int, num_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Cells that are seen, [rows, steps, channels]."""
    seen = np.ones((num_rows, num_steps, predictors.CHANNELS), bool)
    steps = np.arange(num_steps)
    for row in seen:
        if pattern == "3 of 6 channels":
            row[:, rng.permutation(6)[:3]] = False
        elif pattern == "half the cells":
            row[:] = rng.random(row.shape) < 0.5
        elif pattern == "a dead axis":
            axis = rng.integers(3)
            row[15:, [axis, axis + 3]] = False
        elif pattern == "gaps":
            row[(steps + rng.integers(15)) % 15 < 5] = False
    return seen


def run(config: Config, seed: int) -> xarray.Dataset:
    """Squared errors and -log p, [predictor, pattern, seed, test, n]."""
    data = motions(config)
    keys = iter(jax.random.split(jax.random.key(seed), 40))
    x, length = data.train, config.length
    rng = np.random.default_rng(seed)
    # Validation: every fifth sequence under one pattern. Test: each under all, one pattern after the other.
    held = np.stack(
        [masks(PATTERNS[i % 5], 1, length, rng)[0] for i in range(len(data.validation))]
    )
    seen = np.concatenate([masks(p, len(data.test), length, rng) for p in PATTERNS])
    tests = jnp.tile(data.test, (len(PATTERNS), 1, 1))
    learn = predictors.learn_pv_rnn
    by_encoder, by_regression = predictors.by_encoder, predictors.by_regression
    models = {
        "encoder": (learn(config, x, "encoder", next(keys)), by_encoder),
        "encoder, dropped cells": (learn(config, x, "encoder", next(keys), drops=True), by_encoder),
        "VRNN": (_vrnn.learn_vrnn(config, x, next(keys)), _vrnn.by_vrnn),
        "VRNN, dropped cells": (_vrnn.learn_vrnn(config, x, next(keys), drops=True), _vrnn.by_vrnn),
        "GRU": (predictors.learn_gru(config, x, next(keys)), predictors.by_gru),
        "error regression, trained with vectors": (learn(config, x, "adaptive", next(keys)), by_regression),
    }  # fmt: skip

    def predict(name: str, fits: Fits, method: Any, config: Config = config) -> Any:
        start = time.process_time()
        found = predictors.predict(config, fits, method, tests, next(keys), jnp.asarray(seen))
        print(f"{name}: {time.process_time() - start:.0f} s of processor time", flush=True)
        return found

    def validated(fits: Fits, method: Any, config: Config = config) -> np.ndarray:
        rows = (data.validation, next(keys), jnp.asarray(held))
        return predictors.predict(config, fits, method, *rows)["mse"]

    results, kept = {}, {}
    for name, (fits, method) in models.items():
        index = chosen(config, name, fits.settings, validated(fits, method))
        kept[name] = subset(fits, index)
    errors = {
        n: validated(kept["encoder"], by_regression, config._replace(num_iterations=n)).mean()
        for n in ITERATIONS
    }
    config = config._replace(num_iterations=min(errors, key=errors.__getitem__))
    print(f"iterations: squared error on validation sequences {errors}", flush=True)
    for name, (_, method) in models.items():
        results[name] = predict(name, kept[name], method, config)
    results[OURS] = predict(OURS, kept["encoder"], by_regression, config)
    more = {
        "error regression on twin, dropped cells": ("encoder, dropped cells", by_regression),
        "particles on twin": ("encoder", predictors.by_filter),
    }
    for name, (source, method) in more.items():
        results[name] = predict(name, kept[source], method, config)
    shape = (config.num_seeds, len(PATTERNS), len(data.test), HORIZON)
    dims = ("predictor", "pattern", "seed", "test", "n")
    tables = {
        m: (dims, np.stack([r[m].reshape(shape).swapaxes(0, 1) for r in results.values()]))
        for m in ("mse", "nll")
    }
    coords = {"predictor": list(results), "pattern": list(PATTERNS), "n": np.arange(1, HORIZON + 1)}
    return xarray.Dataset(tables, coords, {"iterations": config.num_iterations})


def crossed(values: np.ndarray) -> tuple[float, float]:
    """Mean of [seeds, tests] and half of its 95% interval: variances over seeds and over tests are added."""
    variance = sum(values.mean(1 - a).var(ddof=1) / values.shape[a] for a in (0, 1))
    half = stats.t.ppf(0.975, min(values.shape) - 1) * np.sqrt(variance)
    return float(values.mean()), float(half)


def gaps(data: xarray.Dataset, measure: str, n: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Error regression on the twin minus each other predictor, by predictor and pattern."""
    table = data[measure].sel(n=n).transpose("predictor", "pattern", "seed", "test")
    ours = table.sel(predictor=OURS).values
    return {
        str(p): {
            q: crossed(ours[i] - table.sel(predictor=p).values[i]) for i, q in enumerate(PATTERNS)
        }
        for p in table.predictor.values
        if p != OURS
    }


def report(data: xarray.Dataset) -> str:
    lines = [
        f"{data.sizes['test']} unseen sequences, {data.sizes['seed']} seeds; {data.attrs['iterations']} iterations"
    ]
    for measure, n in (("mse", 1), ("mse", 3), ("mse", 5), ("nll", 1)):
        title = "squared error" if measure == "mse" else "-log p"
        lines.append(f"\n{f'{title}, {n} ahead':<42}" + "".join(f"{p:>20}" for p in PATTERNS))
        for p in data.predictor.values:
            means = data[measure].sel(predictor=p, n=n).mean(("seed", "test")).values
            lines.append(f"{p:<42}" + "".join(f"{m:20.3f}" for m in means))
        lines.append(f"{OURS} minus")
        for p, row in gaps(data, measure, n).items():
            cells = [f"{mean:+.3f} +- {half:.3f}" for mean, half in row.values()]
            lines.append(f"  {p:<40}" + "".join(f"{c:>20}" for c in cells))
    return "\n".join(lines)


def record(data: xarray.Dataset) -> None:
    """Figures for docs/_data."""
    common: dict[str, Any] = {
        "seeds": data.sizes["seed"], "time": "a quarter of an hour of processor time",
        "measures": ["examples/papers/pv_rnn/_predictors.py", "examples/papers/pv_rnn/_vrnn.py", "models/pv_rnn"],
    }  # fmt: skip
    where = f"motions with lost cells, {data.sizes['test']} unseen sequences"
    for n in (1, 5):
        found = gaps(data, "mse", n)
        flat = {f"{p}, {q}": v for p, row in found.items() for q, v in row.items()}
        record_figure(
            f"pv_rnn/lost_cells_{n}",
            what=f"{where}: squared error {n} ahead of error regression on a network trained with an encoder, minus that of each "
            "other, halves of 95% intervals",
            value={k: v[0] for k, v in flat.items()}, spread={k: v[1] for k, v in flat.items()},
            note="the paper: error regression ahead of a VRNN", **common,
        )  # fmt: skip
    means = data.mse.sel(n=1).mean(("seed", "test"))
    record_figure(
        "pv_rnn/lost_cells_levels", what=f"{where}: squared error 1 ahead",
        value={f"{p}, {q}": means.sel(predictor=p, pattern=q).item() for p in data.predictor.values for q in PATTERNS},
        **common,
    )  # fmt: skip


def draw(rows: dict[str, dict[str, tuple[float, float]]], path: Path) -> None:
    """Squared errors of error regression less those of each other, by what is lost."""
    panels = {q: {p: row[q] for p, row in rows.items()} for q in PATTERNS}
    draw_intervals(
        panels, path, unit="squared error less its", has_one_scale=True,
        claim="Motion one step ahead: squared error of error regression less that of each other\npredictor, by what is lost "
        "(left of 0: error regression is better; grey: nothing shown)",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> xarray.Dataset:
    parser = argparse.ArgumentParser(description="Online prediction of motion with lost cells.")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pv_rnn_lost_cells_output"))
    options = parsed(parser, arguments)
    data = run(SMOKE if options.smoke else FULL, options.seed)
    data.to_netcdf(options.out / "lost_cells.nc")
    text = report(data)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    rows = gaps(data, "mse", 1)
    draw(rows, options.out / "lost_cells.png")
    if options.record:
        record(data)
    return data


if __name__ == "__main__":
    main()
