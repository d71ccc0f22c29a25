"""A linear mixed-effects model of investment by firm: Laplace sites against NUTS.

What it shows: `local_laplace` outside of deep learning. The coefficients of each firm are a local site, their population a
normal-inverse-Wishart site. Given population and noise a firm's coefficients have an exact posterior in closed form; so a guide
needs parameters for population and noise only, and no more of them for more firms. Two guides:

    mean field    q(phi) q(noise) prod_i q(theta_i | noise), from the expected natural parameters of q(phi) (parent="phi")
    conditional   q(phi) q(noise) prod_i p(theta_i | phi, noise, data), the exact posterior at each draw (no parent)

Data: Grunfeld's 11 US firms, 1935 to 1954 (Grunfeld 1958; shipped with statsmodels): investment, market value and capital, in
logarithms, value and capital centred.

Expected: means of the firms' coefficients within a sixth of a posterior standard deviation of those of NUTS under both guides;
standard deviations like NUTS's under the conditional guide, and smaller under mean field, which is too sure of the population as
well (0.170 for 0.209 in the intercept). Figures: docs/_data/figures, few_shot/mixed_effects. Run time: one minute on 2 CPU cores.

    python examples/papers/variational/mixed_effects.py [--smoke] [--out mixed_effects_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS
from statsmodels.datasets import grunfeld

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

NAMES = ("intercept", "log value", "log capital")
# Weak: a population mean with standard deviation 3 around this, in units of the population's own spread.
CENTRE = np.array([4.0, 0.5, 0.5])
SPREAD = np.array([1.0, 0.5, 0.5])


def load():
    """Covariates [firms, years, 3], log investment [firms, years], names of the firms."""
    table = grunfeld.load_pandas().data.sort_values(["firm", "year"])
    firms = table["firm"].unique()
    shape = len(firms), -1
    logs = [np.log(table[name].to_numpy()).reshape(shape) for name in ("value", "capital")]
    x = np.stack([np.ones_like(logs[0]), *(log - log.mean() for log in logs)], -1)
    return x, np.log(table["invest"].to_numpy()).reshape(shape), firms


def niw(loc, mean_precision, scale_tril, df):
    return ppl.distributions.NormalInverseWishart(loc, mean_precision, scale_tril, df)


@ppl.model
def model(x, y):
    phi = ppl.sample("phi", niw(CENTRE, 0.1, np.diag(np.sqrt(2) * SPREAD), 6.0))
    noise = ppl.sample("noise", dist.LogNormal(-1.0, 1.0))
    with ppl.plate("firms", x.shape[0], dim=-2):
        theta = ppl.sample("theta", ppl.distributions.NormalInverseWishart.conditional(phi))
        with ppl.plate("years", x.shape[1], dim=-1):
            ppl.sample("investment", dist.Normal((x * theta).sum(-1), noise), obs=y)
    ppl.deterministic("population", phi[:, 0])


@ppl.model
def shared(x, y):
    """The guide of population and noise."""
    constraints = dist.constraints
    positive = {"constraint": constraints.positive}
    law = niw(
        ppl.param("loc", jnp.asarray(CENTRE)),
        ppl.param("mean_precision", 5.0, **positive),
        ppl.param(
            "scale_tril", jnp.diag(2.0 * jnp.asarray(SPREAD)), constraint=constraints.lower_cholesky
        ),
        ppl.param("df", 10.0, constraint=constraints.greater_than(2.0)),
    )
    ppl.sample("phi", law)
    ppl.sample(
        "noise",
        dist.LogNormal(ppl.param("log_noise", -1.0), ppl.param("log_noise_scale", 0.1, **positive)),
    )


def guides():
    at = {"site": "theta", "inner": inference.local.Newton(1)}  # exact: normal and linear
    return {
        "mean field": inference.local_laplace(model, shared, parent="phi", **at),
        "conditional": inference.local_laplace(model, shared, **at),
    }


def fit_guide(guide, data, num_steps):
    bound = inference.elbo(model, guide, kl="analytic", num_replicates=4)
    rate = optax.cosine_decay_schedule(0.03, num_steps)
    return inference.fit(
        bound, optax.adam(rate), data, num_steps=num_steps, key=jax.random.key(0), progress=False
    )


def summary(draws):
    """Mean and standard deviation of the population's mean, of the firms' coefficients and of the noise."""
    values = {
        "population": draws["phi"][..., 0],
        "theta": draws["theta"][:, :, 0],
        "noise": draws["noise"],
    }
    return {name: (v.mean(0), v.std(0)) for name, v in values.items()}


def run(num_steps, num_draws, num_warmup):
    """Summaries by method, bounds (nats) and the fits, on the 11 firms."""
    x, y, firms = load()
    data = jnp.asarray(x), jnp.asarray(y)
    mcmc = MCMC(NUTS(model), num_warmup=num_warmup, num_samples=num_draws, progress_bar=False)
    began = time.perf_counter()
    mcmc.run(jax.random.key(1), *data)
    summaries = {"NUTS": summary(jax.tree.map(np.asarray, mcmc.get_samples()))}
    seconds, bounds, fits = {"NUTS": time.perf_counter() - began}, {}, {}
    for name, guide in guides().items():
        began = time.perf_counter()
        fits[name] = fit_guide(guide, data, num_steps)
        seconds[name] = time.perf_counter() - began
        posterior = fits[name].posterior(jax.random.key(2), num_draws)
        summaries[name] = summary(posterior.choices)
        log_weights = posterior.log_weights.astype(float)
        bounds[name] = log_weights.mean(), np.logaddexp.reduce(log_weights) - np.log(num_draws)
    return summaries, bounds, seconds, fits, mcmc, firms


def report(summaries, bounds, seconds):
    print(f"{'':14}" + "".join(f"{name:>22}" for name in summaries))
    for i, name in enumerate((*NAMES, "noise")):
        cells = [
            s["noise"] if i == 3 else [moment[i] for moment in s["population"]]
            for s in summaries.values()
        ]
        print(f"{name:14}" + "".join(f"{mean:13.3f} +- {sd:5.3f}" for mean, sd in cells))
    print(f"{'seconds':14}" + "".join(f"{seconds[name]:22.0f}" for name in summaries))
    for name, (bound, evidence) in bounds.items():
        shift, ratio = beside_nuts(summaries, name)
        print(
            f"{name}: bound {bound:.2f} nats, log evidence by its weights {evidence:.2f}; firms' coefficients: largest shift "
            f"of a mean {shift.max():.2f} sd, sd over NUTS's {ratio.min():.2f} to {ratio.max():.2f}"
        )


def beside_nuts(summaries, name):
    """Shifts of the means of the firms' coefficients in units of NUTS's standard deviations, and ratios to these."""
    mean, sd = summaries[name]["theta"]
    exact_mean, exact_sd = summaries["NUTS"]["theta"]
    return np.abs(mean - exact_mean) / exact_sd, sd / exact_sd


def record(summaries, bounds):
    """How far firms' coefficients are from NUTS's, for the page of figures."""
    value = {}
    for name in bounds:
        shift, ratio = beside_nuts(summaries, name)
        parts = {
            "largest shift": shift.max(),
            "least ratio": ratio.min(),
            "largest ratio": ratio.max(),
        }
        value |= {f"{name}, {part}": number for part, number in parts.items()}
    record_figure(
        "few_shot/mixed_effects",
        what="mixed-effects model of 11 firms: largest shift of the mean of a firm's coefficient from NUTS's, in its standard "
        "deviations, and ratios of standard deviations to NUTS's",
        value=value,
        claim={name: float("ratio" in name) for name in value},
        claimed_by="NUTS",
        note="; ".join(
            f"bound of the {n} guide {b:.1f}, log evidence by its weights {e:.1f} nats"
            for n, (b, e) in bounds.items()
        ),
        digits=2,
        measures=["inference/local", "ppl/distributions"],
    )


def draw(summaries, firms, path):
    """Coefficients of every firm, mean and 90 % interval, by method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4), sharey=True, layout="constrained")
    for number, (name, s) in enumerate(summaries.items()):
        mean, sd = s["theta"]
        for i, axis in enumerate(axes):
            rows = np.arange(len(firms)) + 0.22 * (number - 1)
            axis.errorbar(mean[:, i], rows, xerr=1.64 * sd[:, i], fmt="o", ms=3, label=name)
            axis.axvline(s["population"][0][i], color=f"C{number}", lw=0.8, ls="--")
            axis.set_title(NAMES[i])
            axis.set_xlabel("coefficient: mean, 90 %; dashed: population", fontsize=9)
    axes[0].set_yticks(np.arange(len(firms)), firms)
    axes[0].legend(fontsize=8)
    wide = {
        name: np.mean(s["theta"][1] / summaries["NUTS"]["theta"][1])
        for name, s in summaries.items()
    }
    figure.suptitle(
        f"Investment of 11 firms: beside those of NUTS, a firm's intervals are\n{wide['conditional']:.2f} times as wide under "
        f"the conditional guide, {wide['mean field']:.2f} times under mean field"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="A linear mixed-effects model of investment.")
    parser.add_argument("--smoke", action="store_true", help="a small run that finishes in seconds")
    parser.add_argument("--out", type=Path, default=Path("mixed_effects_output"))
    options = parsed(parser, arguments)
    sizes = (200, 200, 100) if options.smoke else (1500, 1500, 500)
    summaries, bounds, seconds, fits, mcmc, firms = run(*sizes)
    report(summaries, bounds, seconds)
    draw(summaries, firms, options.out / "firms.png")
    coords = {"firms": list(firms)}
    inference.to_arviz(
        fits["conditional"],
        key=jax.random.key(3),
        num_samples=sizes[1],
        coords=coords,
        path=options.out / "conditional.nc",
    )
    inference.to_arviz(mcmc, path=options.out / "nuts.nc")
    if options.record:
        record(summaries, bounds)
    return summaries, bounds


if __name__ == "__main__":
    main()
