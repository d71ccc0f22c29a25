"""Which regression? Four models of one data set, compared by evidence; the same programs under NUTS.

What it shows: the diabetes data (442 patients, disease progression after a year; Efron et al. 2004; in scikit-learn) under linear
regressions with three or ten standardised covariates and Normal or Student-t noise. `inference.tempered_smc` takes each program
from prior to posterior and returns its evidence; temperatures and step sizes come from a pilot run, so that the evidence of the
runs after it is unbiased. For Normal noise the evidence is known: the coefficients integrate out in closed form, the noise scale
on a grid. The same programs run under NumPyro's NUTS, and the two posteriors are compared coefficient by coefficient.

Expected: evidences within 4 standard errors of the exact ones. Three covariates and ten are about equally good: seven
coefficients cost as much as they explain; Student-t noise is worse, the data have no heavy tails. Posterior means of both methods
are equal within 4 standard errors. Figures: docs/_data/figures, particles/regressions. Run time: about two minutes on 2 CPU
cores.

    python examples/papers/particles/regressions.py [--smoke] [--seed 0] [--out regressions_output] [--record]
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from scipy.special import logsumexp
from sklearn.datasets import load_diabetes

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

SLOPE = 0.5  # prior scale of a coefficient, in standard deviations of the response
NOISE = dist.LogNormal(0.0, 0.5)
FEW = ("bmi", "bp", "s5")


def regression(x, y, *, noise_law):
    coefficients = ppl.sample("slope", dist.Normal(0.0, SLOPE).expand([x.shape[1]]).to_event(1))
    noise = ppl.sample("noise", NOISE)
    with ppl.plate("patients", x.shape[0]):
        ppl.sample("y", noise_law(x @ coefficients, noise), obs=y)


normal = ppl.model(functools.partial(regression, noise_law=dist.Normal))
student = ppl.model(functools.partial(regression, noise_law=functools.partial(dist.StudentT, 4.0)))


MEANINGS = {
    "bmi": "body mass index",
    "bp": "blood pressure",
    "s1": "s1, total cholesterol",
    "s2": "s2, LDL",
    "s3": "s3, HDL",
    "s4": "s4, cholesterol / HDL",
    "s5": "s5, log triglycerides",
    "s6": "s6, blood sugar",
}


class Case(NamedTuple):
    """A program and the names of its covariates."""

    program: ppl.Program
    covariates: tuple[str, ...]


def data() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Standardised covariates by name, and the response."""
    table = load_diabetes()
    scale = lambda x: (x - x.mean(0)) / x.std(0)
    columns = scale(table.data).T
    return dict(zip(table.feature_names, columns, strict=True)), scale(table.target)


ALL = tuple(load_diabetes().feature_names)
CASES = {
    "Normal, 3 covariates": Case(normal, FEW),
    "Normal, 10 covariates": Case(normal, ALL),
    "Student, 3 covariates": Case(student, FEW),
    "Student, 10 covariates": Case(student, ALL),
}


def exact_evidence(x: np.ndarray, y: np.ndarray) -> float:
    """Log p(y) under Normal noise: y ~ N(0, SLOPE^2 x x' + noise^2 I), in the eigenbasis of x x', over a grid of noise."""
    values, vectors = np.linalg.eigh(SLOPE**2 * x @ x.T)
    rotated = (vectors.T @ y) ** 2
    grid = np.exp(np.linspace(np.log(0.4), np.log(1.5), 1_000))
    variance = values + grid[:, None] ** 2
    log_likelihood = -0.5 * (rotated / variance + np.log(2 * np.pi * variance)).sum(1)
    log_prior = np.asarray(NOISE.log_prob(grid), float) + np.log(grid)
    return float(logsumexp(log_likelihood + log_prior) + np.log(np.log(grid[1] / grid[0])))


class Config(NamedTuple):
    """Sizes of a run: particles, independent runs; draws of NUTS after as many of warmup."""

    num_particles: int = 1_000
    num_runs: int = 20
    num_draws: int = 2_000


class Result(NamedTuple):
    """Log evidence (nats) with its standard error and the exact value, if known; largest z of posterior means against NUTS."""

    log_evidence: float
    error: float
    exact: float | None
    largest_z: float
    run: inference.TemperedResult


def run(case: Case, config: Config, key: jax.Array) -> Result:
    """Evidence by tempered SMC, and its posterior beside that of NUTS."""
    columns, y = data()
    x = np.stack([columns[name] for name in case.covariates], axis=1)
    arrays = (jnp.asarray(x), jnp.asarray(y))
    pilot_key, runs_key, nuts_key = jax.random.split(key, 3)
    temper = functools.partial(
        inference.tempered_smc, case.program, num_particles=config.num_particles
    )
    pilot = temper(pilot_key, *arrays)
    keys = jax.random.split(runs_key, config.num_runs)
    runs = jax.jit(lambda keys: jax.lax.map(lambda k: temper(k, *arrays, frozen=pilot), keys))(keys)
    logs = np.asarray(runs.log_evidence, float)
    ratios = np.exp(logs - logs.max())
    error = ratios.std(ddof=1) / ratios.mean() / np.sqrt(ratios.size)
    nuts = MCMC(
        NUTS(case.program),
        num_warmup=config.num_draws,
        num_samples=config.num_draws,
        progress_bar=False,
    )
    nuts.run(nuts_key, *arrays)
    exact = exact_evidence(x, y) if case.program is normal else None
    largest = np.abs(means_apart(runs, nuts.get_samples())).max()
    return Result(float(logs.max() + np.log(ratios.mean())), error, exact, largest, pilot)


def means_apart(runs: inference.TemperedResult, draws: dict) -> np.ndarray:
    """Difference of posterior means over its standard error, one number for each coordinate.

    Errors: from the spread over independent runs of SMC, and from ArviZ's effective sample size of the chain.
    """
    weights = jnp.exp(runs.log_weights)
    apart = []
    for name in ("slope", "noise"):
        of_runs = np.asarray(jnp.einsum("rk,rk...->r...", weights, runs.particles[name]), float)
        chain = np.asarray(draws[name], float)
        ess = np.array([arviz.ess(c[None]) for c in chain.reshape(len(chain), -1).T])
        variance = chain.var(0) / ess.reshape(chain.shape[1:]) + of_runs.var(0, ddof=1) / len(
            of_runs
        )
        apart.append(np.ravel((of_runs.mean(0) - chain.mean(0)) / np.sqrt(variance)))
    return np.concatenate(apart)


def report(results: dict[str, Result]) -> str:
    lines = [
        f"{'model':<24} {'log evidence':>12} {'error':>7} {'exact':>9} {'largest z against NUTS':>23}"
    ]
    for name, result in results.items():
        exact = "-" if result.exact is None else f"{result.exact:.3f}"
        lines.append(
            f"{name:<24} {result.log_evidence:12.3f} {result.error:7.3f} {exact:>9} {result.largest_z:23.1f}"
        )
    return "\n".join(lines)


def record(results: dict[str, Result], config: Config, seed: int) -> None:
    """The evidences, for the page of figures."""
    record_figure(
        "particles/regressions",
        what="log evidence of regressions on the diabetes data by tempered particles, nats; spread: standard error of the mean "
        f"of {config.num_runs} runs",
        value={name: result.log_evidence for name, result in results.items()},
        spread={name: result.error for name, result in results.items()},
        seeds=str(seed),
        claim={name: r.exact for name, r in results.items() if r.exact is not None},
        claimed_by="exact",
        note="largest z of posterior means against NUTS: "
        + "; ".join(f"{name} {result.largest_z:.1f}" for name, result in results.items()),
        measures=["inference/particles"],
    )


def draw(slopes, best: str, path: Path) -> None:
    """The slopes of one regression: median, 50 and 90 % intervals."""
    import matplotlib.pyplot as plt

    names = [MEANINGS.get(name, name) for name in slopes.covariate.values]
    low, lower, median, upper, high = slopes.quantile(
        [0.05, 0.25, 0.5, 0.75, 0.95], ["chain", "draw"]
    ).values
    places = np.arange(len(names))
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(names) + 1.4), layout="constrained")
    axis.axvline(0.0, color="0.6", lw=0.8)
    axis.hlines(places, low, high, color="C0", lw=1, label="90 %")
    axis.hlines(places, lower, upper, color="C0", lw=4, label="50 %")
    axis.plot(median, places, "o", color="white", mec="C0", label="median")
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set_xlabel("slope: change of progression by one standard deviation of each, in its own")
    axis.set_title(
        f"Diabetes after a year, by what was measured\nThe regression with the most evidence: {best}"
    )
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Four regressions compared by their evidence.")
    parser.add_argument("--smoke", action="store_true", help="few particles and draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("regressions_output"))
    options = parsed(parser, arguments)
    config = Config(200, 10, 500) if options.smoke else Config()
    key = jax.random.key(options.seed)
    results = {
        name: run(case, config, jax.random.fold_in(key, i))
        for i, (name, case) in enumerate(CASES.items())
    }
    best = max(results, key=lambda name: results[name].log_evidence)
    tree = inference.to_arviz(
        results[best].run,
        key=key,
        num_samples=1_000,
        dims={"slope": ["covariate"]},
        coords={"covariate": CASES[best].covariates},
    )
    tree.to_netcdf(options.out / "posterior.nc")
    draw(tree.posterior["slope"], best, options.out / "slopes.png")
    text = report(results) + f"\nposterior of '{best}' in posterior.nc and slopes.png"
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    if options.record:
        record(results, config, options.seed)


if __name__ == "__main__":
    main()
