"""Which variables act on which? The posterior over all graphs of five variables, and a GFlowNet that samples it.

What it shows: 51 American states (50 and the District of Columbia), five standardised variables, linear Gaussian networks. The
posterior P(G | data) over the 29,281 directed acyclic graphs is known by enumeration. A GFlowNet builds graphs edge by edge; its
flow is eliminated by the probability of stopping (modified detailed balance), so that it learns from every single edge. The exact
law of what it builds follows by dynamic programming, and its programs go to `inference.smc` as model and proposal, whose evidence
is unbiased however well it is trained.

Data: statsmodels' statecrime (U.S. Census and Department of Justice, 2009). Scores: BGe, uniform over graphs.
Source: Deleu, Gois, Emezue, Rankawat, Lacoste-Julien, Bauer, Bengio, "Bayesian Structure Learning with Generative Flow Networks",
UAI 2022, arXiv:2202.13903: on five variables edge marginals agree with the exact posterior (correlation above 0.99).

Expected: total variation about a tenth, edge marginals within 0.05, correlation above 0.99. Figures: docs/_data/figures,
gflownets/structure. Run time: about one minute on 2 CPU cores.

    python examples/papers/gflownet/structure.py [--smoke] [--seed 0] [--out structure_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from statsmodels.datasets import statecrime

from lapilli import inference
from lapilli.models import gflownet

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

NAMES = ["murder", "poverty", "single", "hs_grad", "urban"]


class Config(NamedTuple):
    """Sizes of a run."""

    num_variables: int = 5
    num_steps: int = 12_000
    batch_size: int = 32
    num_hidden: int = 128
    num_particles: int = 1_000
    num_runs: int = 20


class Answer(NamedTuple):
    """The exact posterior and the GFlowNet's, graph by graph; log evidence, exact and of each particle run."""

    graphs: np.ndarray
    exact: np.ndarray
    learned: np.ndarray
    log_z: float
    log_evidences: np.ndarray
    fit: inference.Fit
    seconds: float

    def edges(self, law: np.ndarray) -> np.ndarray:
        """P(i -> j) under a law of graphs."""
        return np.tensordot(law, self.graphs, 1)

    def evidence_ratio(self) -> tuple[float, float]:
        """Mean of Z-hat / Z over the particle runs, and its standard error."""
        ratios = np.exp(self.log_evidences - self.log_z)
        return float(ratios.mean()), float(ratios.std(ddof=1) / np.sqrt(len(ratios)))


def scores(num_variables: int) -> np.ndarray:
    """Local scores of the first variables; the rate of murder enters by its logarithm."""
    table = (
        statecrime.load_pandas()
        .data[NAMES[:num_variables]]
        .assign(murder=lambda t: np.log(t.murder))
    )
    x = np.asarray(table, float)
    return gflownet.bge_scores((x - x.mean(0)) / x.std(0))


def run(config: Config, key) -> Answer:
    net_key, fit_key, particle_key = jax.random.split(key, 3)
    env = gflownet.Structures(scores(config.num_variables))
    net = gflownet.programs(
        env, flow="stop", forward_looking=True, num_hidden=config.num_hidden, key=net_key
    )
    explore = optax.linear_schedule(1.0, 0.1, config.num_steps // 2)
    loss = gflownet.balance(
        net, gflownet.detailed_balance("huber"), batch_size=config.batch_size, epsilon=explore,
        replay=gflownet.Replay(1_000, config.batch_size),
    )  # fmt: skip
    begin = time.perf_counter()
    rate = optax.cosine_decay_schedule(1e-3, config.num_steps)
    fit = inference.fit(loss, optax.adam(rate), (), num_steps=config.num_steps, key=fit_key)
    seconds = time.perf_counter() - begin
    table = gflownet.tabulate(env)
    # Importance sampling: resampled by the flow of half-built graphs, the good ones among improbable ones would be lost.
    particles = lambda key: inference.smc(
        fit.model, key, proposal=fit.guide, num_particles=config.num_particles, policy=inference.particles.resampling.never(),
        history="none",
    ).log_evidence  # fmt: skip
    log_evidences = jax.jit(jax.vmap(particles))(jax.random.split(particle_key, config.num_runs))
    graphs = np.asarray(table.states)[table.objects]
    return Answer(
        graphs, table.target, table.law(net, fit.params), table.log_z, np.asarray(log_evidences), fit, seconds
    )  # fmt: skip


def report(answer: Answer) -> str:
    exact, learned = answer.edges(answer.exact), answer.edges(answer.learned)
    off = ~np.eye(len(exact), dtype=bool)
    correlation = np.corrcoef(exact[off], learned[off])[0, 1]
    ratio, error = answer.evidence_ratio()
    entropy = np.exp(-np.sum(answer.exact * np.log(answer.exact)))
    lines = [
        f"{len(answer.exact)} graphs, of which the posterior spreads over {entropy:.0f} (exponential of its entropy)",
        f"total variation {gflownet.total_variation(answer.learned, answer.exact):.3f}, "
        f"Jensen-Shannon {gflownet.jensen_shannon(answer.learned, answer.exact):.4f} nats",
        f"edge marginals: largest error {np.abs(exact - learned).max():.3f}, correlation {correlation:.4f}",
        f"particles: Z-hat / Z = {ratio:.3f} +- {error:.3f} over {len(answer.log_evidences)} runs",
        f"training {answer.seconds:.0f} s",
        "most probable edges, exact (learned):",
    ]
    for i, j in sorted(zip(*np.nonzero(off), strict=True), key=lambda e: -exact[e])[:6]:
        lines.append(f"  {NAMES[i]:8} -> {NAMES[j]:8} {exact[i, j]:.2f} ({learned[i, j]:.2f})")
    return "\n".join(lines)


def record(answer: Answer, seed: int) -> None:
    """Distances from the exact posterior, for the page of figures."""
    exact, learned = answer.edges(answer.exact), answer.edges(answer.learned)
    ratio, error = answer.evidence_ratio()
    record_figure(
        "gflownets/structure",
        what=f"posterior over the {len(answer.exact):,} graphs of {len(exact)} variables, GFlowNet against exact; spread: "
        "standard error of the mean of runs",
        value={
            "total variation": gflownet.total_variation(answer.learned, answer.exact),
            "largest edge error": np.abs(exact - learned).max(),
            "evidence ratio": ratio,
        },
        spread={"evidence ratio": error},
        seeds=str(seed),
        claim={"evidence ratio": 1.0},
        claimed_by="exact",
        measures=["models/gflownet"],
    )


def draw(answer: Answer, out: Path) -> None:
    from matplotlib import pyplot as plt

    exact, learned = answer.edges(answer.exact), answer.edges(answer.learned)
    names = NAMES[: len(exact)]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, law, title in zip(axes, (exact, learned), ("exact", "GFlowNet"), strict=False):
        image = axis.imshow(law, vmin=0, vmax=1, cmap="Blues")
        axis.set_xticks(range(len(names)), names, rotation=30)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"P(row -> column), {title}", loc="left")
        for (i, j), value in np.ndenumerate(law):
            if i != j:
                axis.text(
                    j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black"
                )  # fmt: skip
    figure.colorbar(image, ax=axes[:2], shrink=0.8)
    axes[2].loglog(answer.exact, np.maximum(answer.learned, 1e-12), "k.", ms=2, alpha=0.4)
    ends = [answer.exact.max() * 1e-6, answer.exact.max()]
    axes[2].plot(ends, ends, "C1")
    axes[2].set_xlim(ends[0], 2 * ends[1])
    axes[2].set_ylim(ends[0], 2 * ends[1])
    axes[2].set_title("P(graph): GFlowNet against exact", loc="left")
    figure.savefig(out / "structure.png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Posterior over graphs of five variables.")
    parser.add_argument("--smoke", action="store_true", help="three variables, few steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("structure_output"))
    options = parsed(parser, arguments)
    config = Config(3, 150, 16, 32, 200, 5) if options.smoke else Config()
    answer = run(config, jax.random.key(options.seed))
    text = report(answer)
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    draw(answer, options.out)
    tree = inference.to_arviz(answer.fit, key=jax.random.key(1), num_samples=1_000)
    tree.to_netcdf(options.out / "posterior.nc")
    if options.record:
        record(answer, options.seed)


if __name__ == "__main__":
    main()
