"""Carbon dioxide with its gaps filled: a latent-variable model of years, and the bands of the weeks that nobody measured.

What it shows: carbon dioxide in the air at Mauna Loa, weekly from March 1958 to December 2001 (ppm; Keeling and Whorf 2004;
shipped with statsmodels), 59 of 2,284 weeks missing. Nothing is known of trend, season or noise: the record is cut into windows
of one year, less each window's own mean, and a GP-VAE with K = 5 particles (`imputation.programs` without classes, MIWAE's bound)
learns what years look like. To have a truth, blocks of 4 to 12 further weeks are hidden. `impute(..., method="smc")` fills both
kinds of gap. Windows overlap by half, and each week is taken from the one in whose middle it lies.

`co2.py` filters the same record under a state-space model, after least squares has taken trend and season away.

Expected: 90% bands that cover a little more than that; a mean absolute error like that of a straight line through the gap, which
has no bands. Figures: docs/_data/figures, missing_data/co2_gaps. Run time: 50 seconds of processor time.

    python examples/papers/imputation/gaps.py [--smoke] [--seed 0] [--out gaps_output] [--record]
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from statsmodels.datasets import co2

from lapilli import inference
from lapilli.models import imputation

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

YEAR = 52  # weeks of a window
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def hidden_blocks(seen: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Observed weeks to hide: blocks of 4 to 12 weeks until `share` of the record is hidden."""
    hidden = np.zeros(len(seen), bool)
    while (hidden & seen).mean() < share:
        start = rng.integers(len(seen) - 12)
        hidden[start : start + rng.integers(4, 13)] = True
    return hidden & seen


def windows(values: np.ndarray, seen: np.ndarray) -> tuple[imputation.Series, np.ndarray]:
    """Windows that start every half year, less the mean of their observed weeks, and these means."""
    starts = np.arange(0, len(values) - YEAR + 1, YEAR // 2)
    rows = starts[:, None] + np.arange(YEAR)
    observed = seen[rows]
    means = np.array([values[r][o].mean() for r, o in zip(rows, observed, strict=True)])
    cells = np.where(observed, values[rows] - means[:, None], np.nan)
    return imputation.series(cells[..., None]), means


def middles(num_weeks: int) -> tuple[np.ndarray, np.ndarray]:
    """Window and place in it of each week: where it is farthest from an end."""
    last = (num_weeks - YEAR) // (YEAR // 2)
    week = np.arange(num_weeks)
    window = np.clip((week - YEAR // 4) // (YEAR // 2), 0, last)
    place = week - window * (YEAR // 2)
    return window[place < YEAR], place[place < YEAR]


def train(data: imputation.Series, num_steps: int, key: jax.Array) -> imputation.Imputer:
    """Model and guide with their parameters, from K = 5 particles."""
    init_key, fit_key = jax.random.split(key)
    imputer = imputation.programs(
        1, num_latents=3, length_scale=8.0, num_hidden=24, encoder="conv", key=init_key
    )
    bound = inference.iwelbo(*imputer, num_particles=5, per="rows")
    schedule = optax.cosine_decay_schedule(1e-2, num_steps)
    fit = inference.fit(
        bound, optax.chain(optax.clip_by_global_norm(1e3), optax.adam(schedule)), (data,),
        num_steps=num_steps, key=fit_key, subsample={"rows": min(32, len(data.values))}, progress=False,
    )  # fmt: skip
    return imputation.Imputer(fit.model, fit.guide)


def run(config: argparse.Namespace) -> dict:
    """The record in ppm, what is hidden, and bands and scores of the imputation."""
    record = co2.load_pandas().data
    raw = record.co2.to_numpy(float)[: 520 if config.smoke else None]
    seen = ~np.isnan(raw)
    hidden = hidden_blocks(seen, 0.1, np.random.default_rng(config.seed))
    kept = seen & ~hidden
    data, means = windows(raw, kept)
    units = imputation.standardise(data)
    keys = jax.random.split(jax.random.key(config.seed))
    own = units.apply(data)
    imputer = train(own, config.steps, keys[0])
    found = imputation.impute(
        *imputer, own, keys[1], num_particles=50 if config.smoke else 500,
        method=imputation.OverTime(imputation.memory("conv")), batch_size=16,
    )  # fmt: skip
    window, place = middles(len(raw))
    ppm = lambda x: (units.undo(x)[..., 0] + means[:, None])[..., window, place]
    weeks = np.arange(len(window))
    bands, mean = ppm(found.quantiles(LEVELS)), ppm(found.mean)
    truth, score = raw[: len(weeks)], hidden[: len(weeks)]
    line = np.interp(np.arange(len(raw)), np.flatnonzero(kept), raw[kept])[: len(weeks)]
    rows = np.arange(len(means))[:, None] * (YEAR // 2) + np.arange(YEAR)
    cells = (
        np.where(seen, raw, 0.0)[rows] - means[:, None]
    )  # where nothing was measured the score is not read
    crps = found.crps(((cells - units.mean) / units.scale)[..., None]) * units.scale
    crps = crps[..., 0][window, place]
    ours = imputation.cell_scores(truth, score, mean, crps=crps, low=bands[0], high=bands[-1])
    table = {"GP-VAE": ours, "interpolation": imputation.cell_scores(truth, score, line)}
    first = record.index[0]
    years = first.year + (first.dayofyear - 1) / 365.25 + weeks / 52.1775
    return {
        "years": years, "raw": truth, "hidden": score, "gap": ~seen[: len(weeks)], "bands": bands, "mean": mean,
        "scores": table, "ess": found.ess, "found": found, "data": own,
    }  # fmt: skip


def report(results: dict) -> str:
    gap, hidden = results["gap"], results["hidden"]
    lines = [
        f"{(~gap).sum()} of {len(gap)} weeks measured, {hidden.sum()} of them hidden; errors in ppm",
        f"{'':<14} {'mae':>7} {'rmse':>7} {'crps':>7} {'coverage of 90%':>16} {'width':>7}",
    ]
    for name, row in results["scores"].items():
        found = [f"{row[c]:7.3f}" if c in row else " " * 7 for c in ("mae", "rmse", "crps")]
        bands = f"{row['coverage']:16.3f} {row['width']:7.3f}" if "coverage" in row else ""
        lines.append(f"{name:<14} {' '.join(found)} {bands}")
    width = results["bands"][-1] - results["bands"][0]
    lines.append(
        f"width of the 90% bands where nothing was measured: {width[gap].mean():.3f} ppm; effective sample size "
        f"{results['ess'].mean():.0f} at the first step"
    )
    return "\n".join(lines)


def record(results: dict, seed: int) -> None:
    """Coverage and errors, for the page of figures."""
    gap, hidden = results["gap"], results["hidden"]
    record_figure(
        "missing_data/co2_gaps",
        what=f"{hidden.sum()} weeks of CO2 hidden in blocks, beside {gap.sum()} natural gaps: coverage of 90% bands; mean "
        "absolute error and CRPS, ppm",
        value={
            f"{name}, {title}": row[measure]
            for name, row in results["scores"].items()
            for measure, title in (("coverage", "coverage"), ("mae", "error"), ("crps", "CRPS"))
            if measure in row
        },
        seeds=str(seed),
        measures=["models/imputation"],
    )


def draw(results: dict, out: Path) -> None:
    import matplotlib.pyplot as plt

    years, raw, bands, mean = (results[name] for name in ("years", "raw", "bands", "mean"))
    hidden, gap = results["hidden"], results["gap"]
    spans = [(1963.6, 1965.0)] if years[-1] > 1965 else []
    worst = np.abs(np.where(hidden, raw - mean, 0.0)).argmax()
    spans += [(years[worst] - 0.7, years[worst] + 0.7), (years[0], years[0] + 1.4)]
    figure, axes = plt.subplots(len(spans), 1, figsize=(9, 2.9 * len(spans)), layout="constrained")
    titles = ["the longest natural gap", "the largest error", "the first year"][-len(spans) :]
    for axis, (low, high), title in zip(axes, spans, titles, strict=True):
        near = (years >= low) & (years <= high)
        for first, last, alpha in ((0, 4, 0.2), (1, 3, 0.35)):
            axis.fill_between(
                years[near], bands[first][near], bands[last][near], color="C0", alpha=alpha, lw=0
            )
        axis.plot(years[near], mean[near], color="C0", lw=1)
        shown = near & ~hidden & ~gap
        axis.plot(years[shown], raw[shown], "k.", ms=4, label="measured")
        axis.plot(
            years[near & hidden],
            raw[near & hidden],
            "o",
            mfc="none",
            mec="C3",
            ms=4,
            label="hidden",
        )
        for year in years[near & gap]:
            axis.axvspan(year - 0.01, year + 0.01, color="0.9", lw=0, zorder=-1)
        axis.set_ylabel("CO$_2$ (ppm)")
        axis.set_title(title, loc="left")
        axis.margins(x=0)
    axes[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    axes[-1].set_xlabel("mean, 50% and 90% bands; grey: weeks without a measurement")
    figure.savefig(out / "gaps.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Carbon dioxide with its gaps filled.")
    parser.add_argument("--smoke", action="store_true", help="ten years, few steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("gaps_output"))
    config = parsed(parser, arguments)
    config.steps = config.steps or (40 if config.smoke else 600)
    results = run(config)
    text = report(results)
    print(text)
    (config.out / "report.txt").write_text(text + "\n")
    (config.out / "metrics.json").write_text(json.dumps(results["scores"], indent=1))
    imputation.to_arviz(
        results["found"],
        results["data"],
        jax.random.key(config.seed),
        path=config.out / "imputed.nc",
    )
    draw(results, config.out)
    if config.record:
        record(results, config.seed)


if __name__ == "__main__":
    main()
