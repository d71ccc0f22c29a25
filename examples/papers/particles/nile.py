"""Did the Nile change in 1899, or does it always drift? Three models of one series, compared by their evidence.

What it shows: the annual flow of the Nile at Aswan, 1871 to 1970 (10^8 m^3; Cobb 1978; shipped with statsmodels), under three
programs: one level for all years, a level that jumps now and then, and a level that drifts. Each program is an ordinary model.
`inference.smc` runs the two with a scan as particle filters, `inference.tempered_smc` brings the first from prior to posterior,
and all return the evidence p(data). Here it is known exactly as well: by the Kalman filter (constant, drift) and by a recursion
over the year of the last jump (jumps; Adams and MacKay 2007, arXiv:0710.3742), each integrated over the one unknown scale on a
grid. The same is done with 40 of the 100 years hidden (Durbin and Koopman 2012, section 2.7): a hidden year is `obs_mask=False`,
and nothing else changes.

Published: Cobb (1978, Biometrika 65) and nearly all after him find one change, at 1898/1899, the year in which the first dam at
Aswan was begun.

Expected: every log evidence within 4 standard errors of the exact one. All years prefer jumps to drift by 2.6 nats, and both to
one level by about 20; with 40 years hidden jumps and drift are equal. The change is at 1899. Run time: one minute on 2 CPU cores.

    python examples/papers/particles/nile.py [--smoke] [--seed 0] [--out nile_output] [--record]
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
import numpyro.distributions as dist
from scipy.special import logsumexp
from statsmodels.datasets import nile

from lapilli import inference, ppl

CENTRE, WIDTH = 1000.0, 300.0  # prior of a level
NOISE = dist.LogNormal(np.log(150.0), 0.3)  # prior of the year-to-year scale
HAZARD = 0.02  # a jump in 50 years
DRIFT = 40.0  # scale of the yearly change of a drifting level


@ppl.model
def constant(flow):
    level = ppl.sample("level", dist.Normal(CENTRE, WIDTH))
    noise = ppl.sample("noise", NOISE)
    with ppl.plate("years", len(flow)):
        ppl.sample("flow", dist.Normal(level, noise), obs=flow)


@ppl.model
def jumps(flow, seen):
    noise = ppl.sample("noise", NOISE)
    hazard = jnp.full(len(flow), HAZARD).at[0].set(1.0)

    def year(level, data):
        flow, seen, hazard = data
        jump = ppl.sample("jump", dist.Bernoulli(hazard))
        fresh = ppl.sample("fresh", dist.Normal(CENTRE, WIDTH))
        level = jnp.where(jump == 1, fresh, level)
        ppl.sample("flow", dist.Normal(level, noise), obs=flow, obs_mask=seen)
        return level, level

    ppl.deterministic("level", ppl.scan(year, CENTRE, (flow, seen, hazard))[1])


@ppl.model
def drift(flow, seen):
    noise = ppl.sample("noise", NOISE)
    change = jnp.full(len(flow), DRIFT).at[0].set(WIDTH)

    def year(level, data):
        flow, seen, change = data
        level = ppl.sample("level", dist.Normal(level, change))
        ppl.sample("flow", dist.Normal(level, noise), obs=flow, obs_mask=seen)
        return level, None

    ppl.scan(year, CENTRE, (flow, seen, change))


# Exact answers: [grid of noise] each, then integrated over the prior of the noise.

GRID = np.exp(np.linspace(np.log(60.0), np.log(400.0), 400))


def over_noise(log_likelihood: np.ndarray) -> float:
    """Log int p(noise) p(data | noise) d noise, by the trapezoid rule in log noise."""
    log_prior = np.asarray(NOISE.log_prob(GRID), float) + np.log(GRID)
    width = np.log(GRID[1] / GRID[0])
    return float(logsumexp(log_prior + log_likelihood) + np.log(width))


def normal_log_prob(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def kalman(flow: np.ndarray, seen: np.ndarray, change: np.ndarray) -> tuple[float, np.ndarray]:
    """Log evidence of a level that moves by N(0, change_t^2), and the smoothed level [years]."""
    mean, variance, total = np.full(GRID.size, CENTRE), np.zeros(GRID.size), np.zeros(GRID.size)
    means, variances, predicted = [], [], []
    for y, is_seen, scale in zip(flow, seen, change, strict=True):
        variance = variance + scale**2
        predicted.append((mean, variance))
        if is_seen:
            total += normal_log_prob(y, mean, variance + GRID**2)
            gain = variance / (variance + GRID**2)
            mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        means.append(mean)
        variances.append(variance)
    smooth = [means[-1]]
    for t in reversed(range(len(flow) - 1)):
        ahead, spread = predicted[t + 1]
        smooth.append(means[t] + variances[t] / spread * (smooth[-1] - ahead))
    return over_noise(total), posterior_of_noise(total) @ np.array(smooth[::-1]).T


def run_lengths(flow: np.ndarray, seen: np.ndarray) -> tuple[float, np.ndarray]:
    """Log evidence of the jump model, and the probability that each year begins a new level [years].

    The recursion runs over the year in which the present level began; levels are integrated out by conjugacy.
    """
    num_years = len(flow)
    starts = np.full((num_years, GRID.size), -np.inf)  # log p(data so far, level began in year s)
    mean = np.full((num_years, GRID.size), CENTRE)
    variance = np.full((num_years, GRID.size), WIDTH**2)
    history = []
    for t, (y, is_seen) in enumerate(zip(flow, seen, strict=True)):
        if t == 0:
            starts[0] = 0.0
        else:
            starts[t] = logsumexp(starts[:t], axis=0) + np.log(HAZARD)
            starts[:t] += np.log1p(-HAZARD)
        if is_seen:
            now = slice(0, t + 1)
            starts[now] += normal_log_prob(y, mean[now], variance[now] + GRID**2)
            gain = variance[now] / (variance[now] + GRID**2)
            mean[now] += gain * (y - mean[now])
            variance[now] *= 1 - gain
        history.append(starts.copy())
    total = logsumexp(starts, axis=0)
    # Backwards: the level of year t began in year s; before it the same question holds for year s - 1.
    began = np.zeros((num_years, GRID.size))
    ends = np.zeros((num_years, GRID.size))  # probability that a level ends in year t
    ends[-1] = 1.0
    for t in reversed(range(num_years)):
        share = np.exp(history[t] - logsumexp(history[t], axis=0)) * ends[t]
        began += share
        ends[:t] += share[1 : t + 1]
    return over_noise(total), began @ posterior_of_noise(total)


def posterior_of_noise(log_likelihood: np.ndarray) -> np.ndarray:
    log_posterior = np.asarray(NOISE.log_prob(GRID), float) + np.log(GRID) + log_likelihood
    return np.exp(log_posterior - logsumexp(log_posterior))


def exact(flow: np.ndarray, seen: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    still, moving = np.zeros(len(flow)), np.full(len(flow), DRIFT)
    still[0] = moving[0] = WIDTH
    return {
        "constant": kalman(flow, seen, still),
        "jumps": run_lengths(flow, seen),
        "drift": kalman(flow, seen, moving),
    }


# Particles.


class Config(NamedTuple):
    """Sizes of a run: particles of a filter, of a filter that keeps paths, of a tempered run; independent runs of each."""

    num_particles: int = 20_000
    num_paths: int = 20_000
    num_tempered: int = 2_000
    num_runs: int = 50


class Evidence(NamedTuple):
    """Estimates of one log evidence, nats: that of the mean of Z over the runs, its standard error, the spread of one run."""

    value: float
    error: float
    spread: float
    exact: float
    seconds: float


def evidence(log_evidences: np.ndarray, exact: float, seconds: float) -> Evidence:
    """Z itself is estimated without bias, so that runs are averaged before the logarithm."""
    ratios = np.exp(log_evidences - log_evidences.max())
    error = ratios.std(ddof=1) / ratios.mean() / np.sqrt(ratios.size)
    value = log_evidences.max() + np.log(ratios.mean())
    return Evidence(float(value), float(error), float(log_evidences.std(ddof=1)), exact, seconds)


def runs_of(name: str, flow: jax.Array, seen: jax.Array, config: Config, key: jax.Array):
    """A function from a key to one estimate of the log evidence."""
    if name == "constant":
        years = flow[np.asarray(seen)]
        options = {"num_particles": config.num_tempered}
        # Temperatures and steps are tuned in a run of their own; with them fixed the evidence is unbiased.
        pilot = inference.tempered_smc(constant, key, years, **options)
        run = functools.partial(inference.tempered_smc, constant, frozen=pilot, **options)
        return lambda key: run(key, years).log_evidence
    options = {"num_particles": config.num_particles, "history": "none"}
    program = {"jumps": jumps, "drift": drift}[name]
    return lambda key: inference.smc(program, key, flow, seen, **options).log_evidence


def run(config: Config, key: jax.Array) -> dict[str, dict[str, Evidence]]:
    """Evidence of every model, with all years and with some hidden."""
    flow, _ = series()
    results: dict[str, dict[str, Evidence]] = {}
    for i, (years, seen) in enumerate(SEEN.items()):
        answers = exact(flow, seen)
        results[years] = {}
        for j, name in enumerate(answers):
            start = time.perf_counter()
            pilot_key, runs_key = jax.random.split(jax.random.fold_in(key, 10 * i + j))
            once = runs_of(name, jnp.asarray(flow), jnp.asarray(seen), config, pilot_key)
            keys = jax.random.split(runs_key, config.num_runs)
            values = np.asarray(jax.jit(lambda keys, f=once: jax.lax.map(f, keys))(keys), float)
            seconds = time.perf_counter() - start
            results[years][name] = evidence(values, answers[name][0], seconds)
    return results


def series() -> tuple[np.ndarray, np.ndarray]:
    """Flow and year."""
    data = nile.load_pandas().data
    return data.volume.to_numpy(float), data.year.to_numpy(int)


def _hidden() -> np.ndarray:
    years = np.arange(1871, 1971)
    return (1891 <= years) & (years <= 1910) | (1931 <= years) & (years <= 1950)


SEEN = {"all 100 years": np.ones(100, bool), "40 years hidden": ~_hidden()}


def paths(config: Config, key: jax.Array):
    """One run of each filter that keeps its paths; the jump model's levels and the weighted frequency of a jump in each year."""
    flow, _ = series()
    data = (jnp.asarray(flow), jnp.ones(len(flow), bool))
    options = {"num_particles": config.num_paths}
    drifting = inference.smc(drift, jax.random.fold_in(key, 0), *data, **options)
    jumping = inference.smc(jumps, jax.random.fold_in(key, 1), *data, **options)
    levels = jax.vmap(lambda choices: jumps.predict(key, choices, *data)["level"])
    chance = jumping.mean(lambda choices: choices["jump"])
    return drifting, jumping, np.asarray(levels(jumping.particles)), np.asarray(chance)


def report(results: dict[str, dict[str, Evidence]]) -> str:
    """A table: log evidence from particles, its error, and the exact one."""
    lines = []
    for years, rows in results.items():
        lines.append(
            f"{years:<16} {'particles':>10} {'error':>7} {'one run':>8} {'exact':>10} {'z':>6} {'seconds':>8}"
        )
        for name, row in rows.items():
            z = (row.value - row.exact) / row.error
            lines.append(
                f"  {name:<14} {row.value:10.3f} {row.error:7.3f} {row.spread:8.3f} {row.exact:10.3f} {z:6.1f} {row.seconds:8.1f}"
            )
    return "\n".join(lines)


def record(results: dict[str, dict[str, Evidence]], config: Config, seed: int) -> None:
    """The figures of all years, for the page of figures."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from _record import record_figure

    rows = results["all 100 years"]
    record_figure(
        "particles/nile",
        what="log evidence of the Nile under one level / jumps / drift, from particles, nats; spread: standard error of the "
        f"mean of {config.num_runs} runs",
        value={name: row.value for name, row in rows.items()},
        spread={name: row.error for name, row in rows.items()},
        seeds=str(seed),
        claim={name: row.exact for name, row in rows.items()},
        claimed_by="exact",
        time=f"{sum(row.seconds for part in results.values() for row in part.values()):.0f} s",
        measures=["inference/particles"],
    )


def draw(config: Config, key: jax.Array, out: Path) -> str:
    """Figures and netCDF; returns what they show in words."""
    import matplotlib.pyplot as plt

    flow, years = series()
    answers = exact(flow, SEEN["all 100 years"])
    drifting, jumping, levels, chance = paths(config, key)
    figure, axes = plt.subplots(3, 1, figsize=(8, 8), sharex=True, layout="constrained")
    for axis, result, values, title in (
        (axes[0], drifting, np.asarray(drifting.particles["level"]), "a level that drifts"),
        (axes[1], jumping, levels, "a level that jumps"),
    ):
        axis.plot(years, flow, "k.", ms=4)
        inference.particles.plot_fan(
            axis, values, np.exp(np.asarray(result.log_weights, float)), years
        )
        axis.set_ylabel("flow (10$^8$ m$^3$)")
        axis.set_title(title, loc="left")
    axes[0].plot(years, answers["drift"][1], "C1--", lw=1, label="Kalman smoother")
    axes[0].legend(frameon=False, ncols=4)
    axes[2].bar(years[1:], answers["jumps"][1][1:], color="0.8", width=0.9, label="exact")
    axes[2].plot(years[1:], chance[1:], "C0.", label="particles")
    axes[2].set_ylabel("P(new level)")
    axes[2].legend(frameon=False)
    figure.savefig(out / "nile.png", dpi=120)
    inference.particles.plot_smc(drifting, ["level"], times=years).savefig(
        out / "particles.png", dpi=120
    )
    tree = inference.to_arviz(drifting, key=jax.random.fold_in(key, 2), num_samples=1_000)
    tree.to_netcdf(out / "posterior.nc")
    mean = np.asarray(drifting.mean(lambda choices: choices["level"]))
    worst = np.abs(mean - answers["drift"][1]).max()
    at = 1 + chance[1:].argmax()
    return (
        f"change most probable in {years[at]}: {chance[at]:.2f} (exact {answers['jumps'][1][at]:.2f})\n"
        f"mean level against the Kalman smoother: at most {worst:.1f} apart; the flow's own sd is {flow.std():.0f}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evidence of three models of the Nile.")
    parser.add_argument("--smoke", action="store_true", help="few particles, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("nile_output"))
    parser.add_argument("--record", action="store_true", help="write the figures to docs/_data")
    options = parser.parse_args(arguments)
    if options.record and options.smoke:
        parser.error("--record is for the full size, without --smoke")
    config = Config(2_000, 20_000, 200, 20) if options.smoke else Config()
    options.out.mkdir(parents=True, exist_ok=True)
    run_key, draw_key = jax.random.split(jax.random.key(options.seed))
    results = run(config, run_key)
    text = report(results) + "\n" + draw(config, draw_key, options.out)
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    if options.record:
        record(results, config, options.seed)


if __name__ == "__main__":
    main()
