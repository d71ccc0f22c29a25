"""A mixture of normal laws whose assignments are summed out, fitted on minibatches: against expectation-maximisation.

What it shows: logits, means and scales of K components are global sites, the component of each row a local discrete one.
`ppl.eliminate` sums the rows' components out exactly, row by row, so that the guide has global sites only; `fit` subsamples the
plate of rows and scales its terms:

    marginal = ppl.eliminate(mixture, "component")
    bound = inference.elbo(marginal, guide)
    inference.fit(bound, optimizer, (x,), subsample={"rows": 256}, num_seeds=4, ...)

The components of new rows come back from `marginal.posterior_probs`, their draws from `marginal.posterior`.

Data: the 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, in their first 12 principal components, scaled by
one number; 1,297 rows to train on, 500 held out. Beside it, on the same rows: scikit-learn's GaussianMixture (maximum likelihood
by EM) and BayesianGaussianMixture (coordinate ascent on a mean-field bound, whose guide has the assignments too). All start from
k-means, have diagonal covariances and take the best of four starts by their own criterion.

Expected: held-out log density some hundredths of a nat per row above EM, within two standard errors of it, whether on all rows or
on minibatches; BayesianGaussianMixture with its default priors lies below both. Figures: docs/_data/figures,
gradients/digit_mixture. EM takes a second, the fits half a minute on minibatches and up to three on all rows. Run time: about 4
minutes on 2 busy CPU cores.

    python examples/papers/variational/mixture.py [--smoke] [--seed 0] [--out mixture_output] [--record]
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro.distributions import constraints
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

NUM_STARTS = 4
BATCH = 256
STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def make_programs(
    num_components: int, num_features: int
) -> tuple[ppl.densities.Eliminated, ppl.Program]:
    """The mixture with components summed out, and a mean-field guide over its global sites."""
    shape = (num_components, num_features)

    @ppl.model
    def mixture(x):
        logits = ppl.sample("logits", dist.Normal(0.0, 1.0).expand(shape[:1]).to_event(1))
        means = ppl.sample("means", dist.Normal(0.0, 1.5).expand(shape).to_event(2))
        scales = ppl.sample("scales", dist.LogNormal(-0.7, 0.7).expand(shape).to_event(2))
        with ppl.plate("rows", x.shape[0]):
            k = ppl.sample("component", dist.Categorical(logits=logits))
            ppl.sample("x", dist.Normal(means[k], scales[k]).to_event(1), obs=x)

    @ppl.model
    def guide(x):
        def loc_and_scale(name, loc, shape):
            scale = ppl.param(
                f"{name}_scale", jnp.full(shape, 0.05), constraint=constraints.positive
            )
            return ppl.param(f"{name}_loc", jnp.full(shape, loc)), scale

        ppl.sample("logits", dist.Normal(*loc_and_scale("logits", 0.0, shape[:1])).to_event(1))
        ppl.sample("means", dist.Normal(*loc_and_scale("means", 0.0, shape)).to_event(2))
        ppl.sample("scales", dist.LogNormal(*loc_and_scale("scales", -0.7, shape)).to_event(2))

    return ppl.eliminate(mixture, "component"), guide


class Data(NamedTuple):
    """Features of the rows, and how to see them as images."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    to_images: Any


def load_data(num_features: int) -> Data:
    digits, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    test, train = np.split(order, [500])
    pca = PCA(num_features, random_state=0).fit(digits[train])
    scale = pca.transform(digits[train])[:, 0].std()
    features = (pca.transform(digits) / scale).astype(np.float32)
    to_images = lambda rows: pca.inverse_transform(np.asarray(rows) * scale)
    return Data(features[train], features[test], labels[test], to_images)


class Found(NamedTuple):
    """Held-out log densities [rows] in nats, and seconds."""

    log_density: np.ndarray
    seconds: float
    fit: Any = None


def run(data: Data, num_components: int, batch: int | None, num_steps: int, key: Any) -> Found:
    """Fit from `NUM_STARTS` starts, keep the best bound, and average densities over draws of the guide."""
    start = time.perf_counter()
    marginal, guide = make_programs(num_components, data.train.shape[1])
    bound = inference.elbo(marginal, guide)
    params = bound.init(key, data.train)
    starts = [
        {**params, "means_loc": jnp.asarray(centres(data.train, num_components, seed))}
        for seed in range(NUM_STARTS)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    fit = inference.fit(
        bound,
        optax.adam(optax.cosine_decay_schedule(0.02, num_steps, alpha=0.02)),
        (data.train,),
        num_steps=num_steps,
        subsample=None if batch is None else {"rows": batch},
        key=key,
        num_seeds=NUM_STARTS,
        params=stacked,
        progress=False,
    ).best()
    return Found(predictive(fit, data.test, key), time.perf_counter() - start, fit)


def centres(x: np.ndarray, num_components: int, seed: int) -> np.ndarray:
    return KMeans(num_components, n_init=1, random_state=seed).fit(x).cluster_centers_


def predictive(fit: inference.Fit, x: np.ndarray, key: Any, num_draws: int = 200) -> np.ndarray:
    """Log of the mean over draws of p(x_n | logits, means, scales), [rows]."""

    def one(key: Any) -> Any:
        drawn = fit.guide.simulate(key, x)
        return row_log_density(fit.model, drawn.choices, x)

    draws = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, num_draws))
    return logsumexp(np.asarray(draws, float), axis=0) - np.log(num_draws)


def row_log_density(marginal: ppl.densities.Eliminated, choices: dict, x: np.ndarray) -> Any:
    """Log p(x_n | global sites), components summed out, [rows]."""
    trace = marginal.trace(choices, x)
    [rows] = [trace.log_probs[n] for n in trace.log_probs if n not in choices]
    return rows


def sklearn_fits(data: Data, num_components: int) -> dict[str, Found]:
    found = {}
    for make in (GaussianMixture, BayesianGaussianMixture):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fits = [
                make(
                    n_components=num_components,
                    covariance_type="diag",
                    max_iter=500,
                    random_state=seed,
                ).fit(data.train)
                for seed in range(NUM_STARTS)
            ]
        best = max(fits, key=lambda f: f.lower_bound_)
        found[make.__name__] = Found(best.score_samples(data.test), time.perf_counter() - start)
    return found


def report(table: dict[int, dict[str, Found]]) -> str:
    lines = [
        f"{'components':>10}  {'method':<26} {'held out':>9} {'minus EM':>9} {'+-':>6} {'seconds':>8}"
    ]
    for size, row in table.items():
        for name, found in row.items():
            gain, error = beside_em(row, name)
            lines.append(
                f"{size:>10}  {name:<26} {found.log_density.mean():9.3f} {gain:+9.3f} {error:6.3f} {found.seconds:8.1f}"
            )
    lines.append(
        "held out: log density, nats per row. minus EM: mean of paired differences and its standard error."
    )
    return "\n".join(lines)


def beside_em(row: dict[str, Found], name: str) -> tuple[float, float]:
    """Mean of the paired differences to scikit-learn's EM over held-out rows, nats, and its standard error."""
    gain = row[name].log_density - row["GaussianMixture"].log_density
    return float(gain.mean()), float(gain.std() / len(gain) ** 0.5)


def record(table: dict[int, dict[str, Found]], seed: int) -> None:
    """Gains over EM, for the page of figures."""
    gains = {
        f"{name}, {size} components": beside_em(row, name)
        for size, row in table.items()
        for name in row
        if name != "GaussianMixture"
    }
    record_figure(
        "gradients/digit_mixture",
        what="Gaussian mixture of digits with enumeration, held-out log density less that of scikit-learn's EM, nats per row; "
        "spread: standard error over rows, paired",
        value={name: gain for name, (gain, _) in gains.items()},
        spread={name: error for name, (_, error) in gains.items()},
        seeds=str(seed),
        measures=["ppl"],
        packages=["scikit-learn"],
    )


def draw_figures(table: dict, size: int, data: Data, out: Path) -> None:
    plt.rcParams.update(STYLE)
    sizes, names = list(table), list(next(iter(table.values())))
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for name, color in zip(names, ("#0072B2", "#56B4E9", "#D55E00", "#009E73"), strict=True):
        means = [table[k][name].log_density.mean() for k in sizes]
        axis.plot(sizes, means, marker="o", color=color, label=name)
    axis.set(
        xscale="log", xlabel="components", ylabel="held-out log density, nats per row", xticks=sizes
    )
    axis.set_xticks(sizes, [str(k) for k in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    axis.set_title("Digits in 12 principal components")
    figure.savefig(out / "held_out.png", dpi=150)
    plt.close(figure)

    fit = table[size]["lapilli, minibatches"].fit
    choices = fit.guide.simulate(jax.random.key(1), data.test).choices
    probs = np.asarray(fit.model.posterior_probs(choices, data.test)["component"])
    order = np.argsort(-np.asarray(choices["logits"]))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(1, 1.25))
    palette = plt.get_cmap("tab10").colors
    for digit in range(10):
        rows = data.test[data.labels == digit]
        axes[0].scatter(*rows[:, :2].T, s=9, color=palette[digit], label=str(digit), linewidths=0)
    angle = np.linspace(0, 2 * np.pi, 60)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    for k in order:
        centre, radius = (np.asarray(choices[n][k, :2])[:, None] for n in ("means", "scales"))
        axes[0].plot(*(centre + radius * circle), color="black", lw=0.8)
    axes[0].set(xlabel="first component", ylabel="second component")
    axes[0].set_title("Held-out rows by digit; one draw of the guide")
    axes[0].legend(frameon=False, ncols=2, fontsize=7, markerscale=2)
    shown = order[:20]
    share = np.stack([probs[data.labels == digit].mean(0)[shown] for digit in range(10)])
    shade = axes[1].imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(shade, ax=axes[1], pad=0.02)
    axes[1].set(yticks=range(10), ylabel="digit (never seen)", xticks=[])
    axes[1].set_title("Posterior probability of each component, by digit")
    images = data.to_images(np.asarray(choices["means"])[shown])
    for i, image in enumerate(images):
        inset = axes[1].inset_axes((i - 0.45, 9.7, 0.9, 0.9), transform=axes[1].transData)
        inset.imshow(image.reshape(8, 8), cmap="gray_r")
        inset.axis("off")
    figure.savefig(out / "components.png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[int, dict[str, Found]]:
    config = parse(arguments)
    data = load_data(config.features)
    key = jax.random.key(config.seed)
    table = {}
    for size in config.components:
        table[size] = {
            "lapilli, all rows": run(data, size, None, config.steps, key),
            "lapilli, minibatches": run(data, size, BATCH, config.steps, key),
            **sklearn_fits(data, size),
        }
        print(f"{size} components: done", flush=True)
    text = report(table)
    print(f"\n{text}")
    (config.out / "report.txt").write_text(text + "\n")
    shown = config.components[min(1, len(config.components) - 1)]
    inference.to_arviz(
        table[shown]["lapilli, minibatches"].fit,
        key=jax.random.key(4),
        num_samples=200,
        args=(data.test,),
        groups=["log_likelihood", "observed_data"],
        path=config.out / "posterior.nc",
    )
    draw_figures(table, shown, data, config.out)
    if config.record:
        record(table, config.seed)
    return table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A mixture with its assignments summed out.")
    parser.add_argument("--smoke", action="store_true", help="one small mixture, few steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mixture_output"))
    config = parsed(parser, arguments)
    config.components = [5] if config.smoke else [10, 40]
    config.features, config.steps = (4, 300) if config.smoke else (12, 1200)
    return config


if __name__ == "__main__":
    main()
