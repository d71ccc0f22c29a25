"""Weekly carbon dioxide with its gaps: what a filter knows in a week without air samples, and whether the noise is constant.

What it shows: carbon dioxide in the air at Mauna Loa, weekly from March 1958 to December 2001 (ppm; Keeling and Whorf 2004;
shipped with statsmodels), 59 of 2,284 weeks missing, 18 of them in a row in 1964. A cubic trend and four harmonics that grow with
time, fitted by least squares, are taken away. What is left follows an autoregression seen through noise, under three programs
that differ in the noise: normal, Student's t, and normal with a scale that drifts (stochastic volatility). A missing week is
`obs_mask=False`, nothing else. `inference.smc` runs all three as particle filters. The first is linear and normal: Kalman's
filter gives its evidence and its filtered level exactly, and fits its three numbers (persistence, two scales). The others take
these over and have one number more, tried at a few values.

The figure is a fan chart of the *filtering* distribution: in each week what the data up to that week say (draws of
`inference.smooth` with a fixed lag of 0). It opens in a gap and closes with the first sample after it.

Expected: the log evidence of normal noise within 4 standard errors of Kalman's. Student's t with 5 or 10 degrees of freedom is
ahead of normal noise; a scale that drifts is not: single weeks stick out, not years. Figures: docs/_data/figures, particles/co2.
Run time: one minute on 2 CPU cores.

    python examples/papers/particles/co2.py [--smoke] [--seed 0] [--out co2_output] [--record]
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.optimize import minimize
from statsmodels.datasets import co2

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

WEEKS = 52.1775  # in a year
FREEDOMS = (3.0, 5.0, 10.0)  # of Student's t
DRIFTS = (0.01, 0.03, 0.1)  # of the logarithm of the scale, in a week


class Numbers(NamedTuple):
    """Persistence of the level, scale of its weekly change and of the noise, ppm."""

    persistence: float
    change: float
    noise: float


def next_level(level, numbers, is_first):
    """Stationary in the first week."""
    spread = numbers.change / jnp.sqrt(1 - numbers.persistence**2)
    scale = jnp.where(is_first, spread, numbers.change)
    return ppl.sample("level", dist.Normal(numbers.persistence * level, scale))


@ppl.model
def normal(values, seen, numbers):
    def week(level, data):
        value, is_seen, is_first = data
        level = next_level(level, numbers, is_first)
        ppl.sample("value", dist.Normal(level, numbers.noise), obs=value, obs_mask=is_seen)
        return level, None

    ppl.scan(week, 0.0, (values, seen, jnp.arange(len(values)) == 0))


@ppl.model
def student(values, seen, numbers, freedom):
    scale = numbers.noise * jnp.sqrt((freedom - 2) / freedom)  # the same variance

    def week(level, data):
        value, is_seen, is_first = data
        level = next_level(level, numbers, is_first)
        ppl.sample("value", dist.StudentT(freedom, level, scale), obs=value, obs_mask=is_seen)
        return level, None

    ppl.scan(week, 0.0, (values, seen, jnp.arange(len(values)) == 0))


@ppl.model
def volatile(values, seen, numbers, drift):
    def week(carry, data):
        level, log_scale = carry
        value, is_seen, is_first = data
        level = next_level(level, numbers, is_first)
        change = jnp.where(is_first, 0.3, drift)
        log_scale = ppl.sample("log_scale", dist.Normal(log_scale, change))
        noise = dist.Normal(level, jnp.exp(log_scale))
        ppl.sample("value", noise, obs=value, obs_mask=is_seen)
        return (level, log_scale), None

    start = (0.0, jnp.log(numbers.noise))
    ppl.scan(week, start, (values, seen, jnp.arange(len(values)) == 0))


# Data, and the exact answer for normal noise.


class Series(NamedTuple):
    """Years [weeks], what is left of the data (0 where missing), which weeks are seen, and what was taken away; ppm."""

    years: np.ndarray
    values: np.ndarray
    seen: np.ndarray
    pattern: np.ndarray


def series(num_weeks: int | None = None) -> Series:
    """The record less trend and season, which are fitted to all of it."""
    frame = co2.load_pandas().data
    raw = frame.co2.to_numpy(float)
    weeks = np.arange(len(raw))
    time = (weeks - weeks.mean()) / weeks.std()
    columns = [time**k for k in range(4)]
    for k in range(1, 5):
        wave = np.exp(2j * np.pi * k * weeks / WEEKS)
        columns += [part * time**j for part in (wave.real, wave.imag) for j in (0, 1)]
    design, seen = np.stack(columns, 1), ~np.isnan(raw)
    pattern = design @ np.linalg.lstsq(design[seen], raw[seen], rcond=None)[0]
    cut = slice(None, num_weeks)
    first = frame.index[0]
    years = first.year + (first.dayofyear - 1) / 365.25 + weeks / WEEKS
    return Series(years[cut], np.where(seen, raw - pattern, 0.0)[cut], seen[cut], pattern[cut])


def kalman(data: Series, numbers: Numbers) -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence of normal noise (nats), filtered means and standard deviations of the level (ppm)."""
    mean, var, total, means, stds = 0.0, 0.0, 0.0, [], []
    change = numbers.change**2 / (1 - numbers.persistence**2)
    for value, is_seen in zip(data.values, data.seen, strict=True):
        mean, var = numbers.persistence * mean, numbers.persistence**2 * var + change
        change = numbers.change**2
        if is_seen:
            sum_ = var + numbers.noise**2
            total -= 0.5 * (np.log(2 * np.pi * sum_) + (value - mean) ** 2 / sum_)
            mean, var = mean + var / sum_ * (value - mean), var * numbers.noise**2 / sum_
        means.append(mean)
        stds.append(var**0.5)
    return total, np.array(means), np.array(stds)


def fitted(data: Series) -> Numbers:
    """The numbers of largest exact likelihood."""
    of = lambda u: Numbers(float(np.tanh(u[0])), float(np.exp(u[1])), float(np.exp(u[2])))
    start = [np.arctanh(0.95), np.log(0.2), np.log(0.3)]
    return of(minimize(lambda u: -kalman(data, of(u))[0], start, method="Nelder-Mead").x)


# Particles.


class Config(NamedTuple):
    """Particles of a filter, independent runs of each, particles and draws behind the figure, weeks (all of them for None)."""

    num_particles: int = 2_000
    num_runs: int = 20
    num_drawn: int = 2_000
    num_weeks: int | None = None


class Evidence(NamedTuple):
    """Log of the mean of Z over the runs, its standard error, the spread of one run; nats."""

    value: float
    error: float
    spread: float


def evidence(program: Any, args: tuple, config: Config, key: jax.Array) -> Evidence:
    """Z is estimated without bias, so that runs are averaged before the logarithm."""
    run = lambda key: (
        inference.smc(
            program, key, *args, num_particles=config.num_particles, history="none"
        ).log_evidence
    )
    keys = jax.random.split(key, config.num_runs)
    log_z = np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys), float)
    ratios = np.exp(log_z - log_z.max())
    error = ratios.std(ddof=1) / ratios.mean() / np.sqrt(len(ratios))
    return Evidence(
        float(log_z.max() + np.log(ratios.mean())), float(error), float(log_z.std(ddof=1))
    )


def run(config: Config, key: jax.Array) -> dict[str, Any]:
    """The numbers, Kalman's evidence, and the estimates for each noise."""
    data = series(config.num_weeks)
    numbers = fitted(data)
    given = (jnp.asarray(data.values, jnp.float32), jnp.asarray(data.seen), numbers)
    cases = {"normal": (normal, given)}
    cases |= {f"Student's t, {f:g}": (student, (*given, f)) for f in FREEDOMS}
    cases |= {f"drifting scale, {d:g}": (volatile, (*given, d)) for d in DRIFTS}
    found = {
        name: evidence(program, args, config, jax.random.fold_in(key, i))
        for i, (name, (program, args)) in enumerate(cases.items())
    }
    return {
        "data": data, "numbers": numbers, "given": given, "exact": kalman(data, numbers), "found": found,
    }  # fmt: skip


def filtered(program: Any, args: tuple, config: Config, key: jax.Array) -> dict[str, np.ndarray]:
    """Draws from the filtering distribution of each week, site -> [draws, weeks]."""
    result = inference.smooth(
        program, key, *args, num_particles=config.num_drawn, method=inference.particles.FixedLag(0)
    )
    return {name: np.asarray(x) for name, x in result.paths.items() if np.ndim(x) == 2}


def report(results: dict[str, Any]) -> str:
    exact, found, numbers = results["exact"][0], results["found"], results["numbers"]
    z = (found["normal"].value - exact) / found["normal"].error
    lines = [
        f"{results['data'].seen.sum()} of {len(results['data'].seen)} weeks seen; persistence {numbers.persistence:.3f}, "
        f"change {numbers.change:.3f} ppm, noise {numbers.noise:.3f} ppm",
        f"{'noise':<22} {'log evidence':>12} {'error':>7} {'one run':>8} {'against normal':>15}",
        f"{'normal, Kalman':<22} {exact:12.3f}",
    ]
    for name, row in found.items():
        lines.append(
            f"{name:<22} {row.value:12.3f} {row.error:7.3f} {row.spread:8.3f} {row.value - exact:15.3f}"
        )
    best = max(found.values())
    near = [
        name for name, row in found.items() if best.value - row.value < 4 * (best.error + row.error)
    ]
    lines.append(f"normal noise: z = {z:.1f} against Kalman")
    lines.append(f"highest evidence, not told apart by its error: {'; '.join(near)}")
    return "\n".join(lines)


def record(results: dict[str, Any], config: Config, seed: int) -> None:
    """The evidences, for the page of figures."""
    record_figure(
        "particles/co2",
        what="weekly CO2 with 59 gaps, log evidence by kind of noise, from particles, nats; spread: standard error of the mean "
        f"of {config.num_runs} runs",
        value={name: row.value for name, row in results["found"].items()},
        spread={name: row.error for name, row in results["found"].items()},
        seeds=str(seed),
        claim={"normal": results["exact"][0]},
        claimed_by="Kalman",
        measures=["inference/particles"],
    )


def draw(results: dict[str, Any], config: Config, key: jax.Array, out: Path) -> str:
    """The figure; returns how far the filtered level is from Kalman's."""
    import matplotlib.pyplot as plt

    data, (_, mean, std), given = results["data"], results["exact"], results["given"]
    level = filtered(normal, given, config, jax.random.fold_in(key, 0))["level"]
    drift = max(DRIFTS, key=lambda d: results["found"][f"drifting scale, {d:g}"].value)
    scale = filtered(volatile, (*given, drift), config, jax.random.fold_in(key, 1))["log_scale"]
    equal = np.full(len(level), 1 / len(level))
    figure, axes = plt.subplots(3, 1, figsize=(9, 9), layout="constrained")
    years, seen = data.years, data.seen
    near = (years > 1963.4) & (years < 1965.2) if years[-1] > 1966 else np.full(len(years), True)
    inference.particles.plot_fan(axes[0], level[:, near] + data.pattern[near], equal, years[near])
    shown = near & seen
    axes[0].plot(years[shown], (data.values + data.pattern)[shown], "k.", ms=4, label="samples")
    for sign in (-1.96, 1.96):
        label = "Kalman, 95%" if sign > 0 else None
        axes[0].plot(
            years[near], (data.pattern + mean + sign * std)[near], "C1--", lw=0.8, label=label
        )
    axes[0].set_ylabel("CO$_2$ (ppm)")
    axes[0].set_title("each week given the data so far", loc="left")
    inference.particles.plot_fan(axes[1], level, equal, years)
    axes[1].plot(years[seen], data.values[seen], "k.", ms=1, alpha=0.4, label="samples")
    axes[1].set_ylabel("less trend and season (ppm)")
    axes[1].set_title("the same, all weeks", loc="left")
    inference.particles.plot_fan(axes[2], np.exp(scale), equal, years)
    axes[2].axhline(results["numbers"].noise, color="C1", ls="--", lw=0.8, label="constant, fitted")
    axes[2].set_ylabel("scale of the noise (ppm)")
    axes[2].set_ylim(0, None)
    axes[2].set_title(f"a scale that drifts by {drift:g} a week", loc="left")
    for axis in axes:
        low, high = axis.get_xlim()
        for year in years[~seen]:
            if low <= year <= high:
                axis.axvspan(year - 0.5 / WEEKS, year + 0.5 / WEEKS, color="0.9", lw=0, zorder=-1)
        axis.margins(x=0)
        axis.legend(
            loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=5, fontsize="small"
        )
    figure.savefig(out / "co2.png", dpi=120)
    worst = np.abs(level.mean(0) - mean) / std
    return (
        f"filtered level against Kalman: at most {worst.max():.2f} of its standard deviation apart"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Carbon dioxide with gaps, under three kinds of noise."
    )
    parser.add_argument("--smoke", action="store_true", help="three years, few particles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("co2_output"))
    options = parsed(parser, arguments)
    config = Config(300, 5, 300, 160) if options.smoke else Config()
    run_key, draw_key, export_key = jax.random.split(jax.random.key(options.seed), 3)
    results = run(config, run_key)
    text = report(results) + "\n" + draw(results, config, draw_key, options.out)
    last = inference.smc(
        normal, export_key, *results["given"], num_particles=config.num_drawn, history="full"
    )
    tree = inference.to_arviz(last, key=export_key, num_samples=min(500, config.num_drawn))
    tree.to_netcdf(options.out / "posterior.nc")
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    if options.record:
        record(results, config, options.seed)


if __name__ == "__main__":
    main()
