"""The Ising model by a marginalization model: any marginal in one pass, an unbiased Z from few particles.

What it shows: two networks learn a 10 x 10 Ising model on a torus (coupling 0.2, field 0.2) from its energy alone. The marginal
network then answers any partial question in one pass, the conditional network draws in any order and under any evidence,
and both together make a particle sampler whose estimate of Z is unbiased however good or bad they are. Everything is checked
against the transfer matrix: log Z = 78.688056. Exact draws bound log Z from above: were a mode lost, the bound would tell.

Source: Liu, Ramadge and Adams 2024, arXiv:2310.12920, table 4: E[log p - log f] = -77.77 for the marginalization model, -78.17
for a GFlowNet, -78.63 for an autoregressive model in one fixed order (39,200 steps of 512 chains; residual MLPs of width
2048). The best possible value is -log Z = -78.688. Here: 3,000 steps of 96 rows and two layers of 16 channels of convolutions,
which know that the model is the same at every site.

Where the marginal network is asked about states that the law hardly ever visits, it has to have met them. A third of the rows
are chains of the model; half are chains that draw from its conditionals to a power between -3 (field and coupling turned
round: checkerboards) and 3 (all up); a sixth are independent spins of any mean. The optimum is the same whatever the rows are.

The weights are those of one site: training on 30 x 30 sites goes on from them. For that size the paper reports 0.835 bits a
site; if its coupling and field are these, the entropy is 0.7833, 32 nats below, and independent spins have 0.824. Exact draws
of that size, which a test likelihood needs, come from coupling from the past.

Expected: E[log p - log f] within some hundredths of a nat of the best; log-marginals of random partial assignments and of the
named questions within 0.1 nats rms, half a checkerboard (probability 1e-25) included; without tempered chains that one is off by
1.4 nats. On 30 x 30 sites the entropy but for its fourth digit, before training goes on and after: there is nothing left to
learn. Figures: docs/_data/figures, marginalization/ising and ising_30. Run time: six minutes on 2 CPU cores.

    python examples/papers/mam/ising.py [--smoke] [--out ising_output] [--record]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _ising_large import (
    Large,
    blank,
    enlarge,
    independent_bits,
    limits,
    measure_large,
    report_large,
)

from lapilli import inference
from lapilli.models import mam
from lapilli.models.ising import Ising

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure


class Config(NamedTuple):
    """Sizes of a run."""

    size: int = 10
    channels: int = 16
    num_steps: int = 3_000
    num_chains: int = 96
    tempered: float = 1 / 2  # share of chains of other laws, for questions about rare states
    powers: tuple[float, float] = (-3.0, 3.0)
    explore: float = 1 / 6  # share of rows that are no draws, for the same purpose
    num_draws: int = 2_000
    num_particles: int = 256
    num_runs: int = 30
    num_queries: int = 60
    large: int = 30  # side of a larger lattice on which training goes on
    large_steps: int = 300
    large_chains: int = 32
    num_large: int = 128  # draws, of the model and exact ones, by which it is measured


SMOKE = Config(
    4, 8, 60, 32, num_draws=200, num_particles=32, num_runs=4, num_queries=10,
    large=5, large_steps=20, large_chains=8, num_large=20,
)  # fmt: skip


# The model.


def train(lattice: Ising, config: Config, key: jax.Array) -> mam.Pair:
    """Both networks, from the energy alone."""
    init_key, fit_key = jax.random.split(key)
    networks = blank(lattice, config.channels, init_key)
    schedule = optax.cosine_decay_schedule(1e-2, config.num_steps)
    return learn(lattice, networks, config, schedule, config.num_steps, fit_key)


def train_on(lattice: Ising, networks: mam.Pair, config: Config, key: jax.Array) -> mam.Pair:
    """Training of `enlarge`d networks goes on, at a small rate; the chains are long enough not to be drawn anew."""
    schedule = optax.cosine_decay_schedule(3e-4, config.large_steps)
    config = config._replace(num_chains=config.large_chains)
    return learn(lattice, networks, config, schedule, config.large_steps, key, refresh_every=None)


def learn(lattice, networks, config, schedule, num_steps, key, **options) -> mam.Pair:
    """The networks after training towards the lattice's energy."""
    objective = mam.energy(
        networks,
        lattice.log_density,
        num_chains=config.num_chains,
        sources=mam.RowSources(config.tempered, config.powers, config.explore, replay=0.0),
        **options,
    )
    # Lost modes are looked for with exact draws of the lattice (`bracket`).
    options = {"num_steps": num_steps, "key": key, "k_hat": "skip"}
    fit = inference.fit(objective, optax.adam(schedule), (), **options)
    return networks.with_params(fit.params)


# Particles without a learned model: sites one after the other, given the neighbours that are there already.


class Partial(NamedTuple):
    value: jax.Array  # spins, 0 where there is none yet
    log_weight: jax.Array


def heat_bath(lattice: Ising) -> inference.FeynmanKac:
    """Intermediate targets are the energies of the sites so far; each site is drawn in the field of its present neighbours."""
    neighbours = jnp.asarray(lattice.neighbours)

    def init(key):
        return Partial(jnp.zeros(lattice.num_sites), jnp.zeros(()))

    def kernel(key, particle, t):
        field = lattice.coupling * particle.value[neighbours[t - 1]].sum() + lattice.field
        spin = jnp.where(jax.random.bernoulli(key, jax.nn.sigmoid(2 * field)), 1.0, -1.0)
        return Partial(particle.value.at[t - 1].set(spin), jnp.logaddexp(field, -field))

    log_potential = lambda before, after, t: jnp.where(t == 0, 0.0, after.log_weight)
    return inference.FeynmanKac(init, kernel, log_potential, lattice.num_sites)


# Measures.


class Result(NamedTuple):
    """What was found; nats unless said otherwise."""

    gap: float  # E[log p(x | order) - log f(x)]
    gap_error: float
    log_z: float  # exact
    entropy: float  # of the sampler, bits per site, and exact
    exact_entropy: float
    questions: dict[str, tuple[float, float]]  # name -> learned, exact
    queries: np.ndarray  # [queries, 3]: learned, exact, observed sites
    residuals: np.ndarray  # mean and standard deviation by step [2, sites]
    particles: dict[str, np.ndarray]  # log Z of independent runs
    seconds: dict[str, float]  # per row: one marginal, one chain
    bracket: (
        inference.diagnostics.EvidenceBracket
    )  # log Z from draws of the model, and from exact ones


def questions(lattice: Ising, model: mam.MaM) -> dict[str, tuple[float, float]]:
    """Some marginals by name: learned and exact."""
    n = lattice.num_columns
    site = np.arange(lattice.num_sites)
    middle = (lattice.num_rows // 2) * n + n // 2
    ones, zeros = np.ones_like(site), np.zeros_like(site)
    checkers = (site // n + site % n + 1) % 2
    cases = {
        "one site +": (ones, site == 0),
        "one site -": (zeros, site == 0),
        "neighbours ++": (ones, site < 2),
        "neighbours +-": (site % 2, site < 2),
        "far apart ++": (ones, (site == 0) | (site == middle)),
        "a row +": (ones, site < n),
        "a row -": (zeros, site < n),
        "half checkers": (checkers, site < n * (lattice.num_rows // 2)),
        "all +": (ones, site >= 0),
    }
    return {
        name: (float(model.log_marginal(x, seen)), lattice.log_marginal(x, seen))
        for name, (x, seen) in cases.items()
    }


def random_queries(lattice: Ising, model: mam.MaM, count: int, seed: int) -> np.ndarray:
    """Marginals of partial assignments of exact draws; between a third and all of the sites are observed."""
    rng = np.random.default_rng(seed)
    x = lattice.sample(rng, count)
    size = rng.integers(lattice.num_sites // 3, lattice.num_sites + 1, count)
    ranks = rng.permuted(np.tile(np.arange(lattice.num_sites), (count, 1)), axis=1)
    observed = ranks < size[:, None]
    exact = [lattice.log_marginal(*row) for row in zip(x, observed, strict=True)]
    return np.stack([np.asarray(model.log_marginal(x, observed)), exact, size], 1)


def seconds_per_row(model: mam.MaM, x: np.ndarray, order: np.ndarray) -> dict[str, float]:
    """One marginal against one chain of all passes, the same rows in one batch; best of three."""
    everything = np.ones(x.shape[1], bool)
    found = {}
    for name, fn in {
        "marginal": lambda x, order: model.log_marginal(x, everything),
        "chain": lambda x, order: model.with_order(order).log_prob(x),
    }.items():
        run = jax.jit(fn)
        jax.block_until_ready(run(x, order))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(run(x, order))
            times.append(time.perf_counter() - start)
        found[name] = min(times) / len(x)
    return found


def measure(lattice: Ising, networks: mam.Pair, config: Config, key: jax.Array):
    """A `Result`, and the draws."""
    model = mam.MaM(networks)
    draw_key, *run_keys = jax.random.split(key, 3)
    draws = model.draw(draw_key, (config.num_draws,))
    gap = np.asarray(draws.log_prob - lattice.log_density(draws.value), float)
    chains = {
        "marginalization model": mam.feynman_kac(model, lattice.log_density),
        "heat bath": heat_bath(lattice),
    }
    particles = {}
    for (name, chain), run_key in zip(chains.items(), run_keys, strict=True):
        run = lambda key, c=chain: (
            inference.smc(c, key, num_particles=config.num_particles, history="none").log_evidence
        )
        keys = jax.random.split(run_key, config.num_runs)
        particles[name] = np.asarray(jax.jit(lambda keys, r=run: jax.lax.map(r, keys))(keys), float)
    some = slice(0, 200)
    exact = lattice.sample(np.random.default_rng(1), config.num_draws // 4)
    bracket = mam.bracket(model, lattice.log_density, exact, run_keys[0])
    residuals = np.asarray(model.consistency_residuals(draws.value[some], draws.order[some]))
    bits = lattice.num_sites * np.log(2)
    result = Result(
        gap=gap.mean(),
        gap_error=gap.std() / np.sqrt(len(gap)),
        log_z=lattice.log_partition(),
        entropy=-float(draws.log_prob.mean()) / bits,
        exact_entropy=lattice.entropy() / bits,
        questions=questions(lattice, model),
        queries=random_queries(lattice, model, config.num_queries, 0),
        residuals=np.stack([residuals.mean(0), residuals.std(0)]),
        particles=particles,
        seconds=seconds_per_row(model, draws.value[:64], draws.order[:64]),
        bracket=bracket,
    )
    return result, draws


def rms(result: Result) -> tuple[float, float]:
    """Error of the named questions, and of the random ones, nats."""
    named = np.array(list(result.questions.values()))
    error = lambda x: float(np.sqrt(((x[:, 0] - x[:, 1]) ** 2).mean()))
    return error(named), error(result.queries)


def log_mean_exp(values: np.ndarray) -> tuple[float, float]:
    """Log of the mean of Z over runs, and its standard error by the delta method."""
    ratios = np.exp(values - values.max())
    error = ratios.std(ddof=1) / ratios.mean() / np.sqrt(len(ratios))
    return float(values.max() + np.log(ratios.mean())), float(error)


def report(result: Result, config: Config) -> str:
    """The table of the run."""
    lines = [
        f"E[log p - log f]   {result.gap:9.3f} +- {result.gap_error:.3f}   exact -log Z {-result.log_z:.3f}   "
        "(10 x 10 in the paper: -77.77)",
        f"bits per site      {result.entropy:9.4f}             exact entropy {result.exact_entropy:.4f}",
        "",
        f"{'log-marginal in one pass':<26} {'learned':>9} {'exact':>9}",
    ]
    lines += [f"  {name:<24} {a:9.3f} {b:9.3f}" for name, (a, b) in result.questions.items()]
    named, random = rms(result)
    lines += [
        f"  rms error {named:.3f} nats, the rarest included; over {len(result.queries)} random partial assignments "
        f"{random:.3f} nats",
        "",
        f"{f'log Z, {config.num_particles} particles':<26} {'mean':>9} {'error':>7} {'one run':>8}   exact {result.log_z:.3f}",
    ]
    for name, values in result.particles.items():
        mean, error = log_mean_exp(values)
        lines.append(f"  {name:<24} {mean:9.3f} {error:7.3f} {values.std(ddof=1):8.3f}")
    bounds = {"lower": result.bracket.lower, "upper": result.bracket.upper}
    shown = ", ".join(
        f"{n} {x.mean():.3f} +- {x.std() / len(x) ** 0.5:.3f}" for n, x in bounds.items()
    )
    lines += [
        f"log Z from the model's draws and from as many exact ones: {shown}",
        f"mass of the law where the model hardly ever draws: {result.bracket.unseen[0]:.3f}",
    ]
    one, chain = result.seconds["marginal"], result.seconds["chain"]
    lines += [
        "",
        f"one marginal {1e6 * one:.0f} us a row, its chain of conditionals {1e6 * chain:.0f} us: {chain / one:.0f} times",
    ]
    return "\n".join(lines)


def record(
    result: Result,
    stages: dict[str, Large],
    lattice: Ising,
    large: Ising,
    config: Config,
    seed: int,
) -> None:
    """What was learned of both lattices, for the page of figures."""
    more = {"seeds": str(seed), "measures": ["models/mam", "models/ising.py"]}
    sides = lambda model: f"{model.num_rows} x {model.num_columns}"
    (named, random), free = rms(result), "E[log p - log f]"
    evidences = {
        f"log Z, {name}": (*log_mean_exp(values), values.std(ddof=1))
        for name, values in result.particles.items()
    }
    record_figure(
        "marginalization/ising",
        what=f"{sides(lattice)} Ising model learned from its energy: {free}; error of log-marginals in one pass, rms; log Z from "
        f"{config.num_particles} particles, mean of {config.num_runs} runs; nats; spread: standard errors",
        value={free: result.gap, "named marginals": named, "random marginals": random}
        | {name: mean for name, (mean, *_) in evidences.items()},
        spread={free: result.gap_error}
        | {name: error for name, (_, error, _) in evidences.items()},
        claim={free: -result.log_z} | dict.fromkeys(evidences, result.log_z),
        claimed_by="exact",
        note="spread of one run: "
        + "; ".join(f"{name} {spread:.3f}" for name, (*_, spread) in evidences.items())
        + f"; the paper's {free} on 10 x 10 sites is -77.77",
        **more,
    )
    log_z, entropy = limits(lattice, large)
    bits = {f"bits, {name}": stage.bits for name, stage in stages.items()}
    gaps = {f"{free}, {name}": stage.gap for name, stage in stages.items()}
    exact = dict.fromkeys(bits, entropy / large.num_sites / np.log(2)) | dict.fromkeys(gaps, -log_z)
    record_figure(
        "marginalization/ising_30",
        what=f"{sides(large)} sites from there on, before and after {config.large_steps} steps of training: bits per site of "
        f"exact draws; {free}, nats; spread: standard errors",
        value={name: value for name, (value, _) in (bits | gaps).items()},
        spread={name: error for name, (_, error) in (bits | gaps).items()},
        claim=exact,
        claimed_by="exact",
        note=f"independent spins {independent_bits(lattice):.3f} bits, the paper 0.835",
        digits=4,
        **more,
    )


# Figures.


def conditional_means(lattice: Ising, model: mam.MaM, key: jax.Array, num_draws: int):
    """E[spin | upper half a checkerboard]: exact, and from draws under this evidence."""
    n = lattice.num_columns
    site = np.arange(lattice.num_sites)
    value, observed = (site // n + site % n + 1) % 2, site < n * (lattice.num_rows // 2)
    given = lattice.log_marginal(value, observed)
    exact = 2.0 * value - 1
    for i in np.flatnonzero(~observed):
        up = np.where(site == i, 1, value)
        exact[i] = 2 * np.exp(lattice.log_marginal(up, observed | (site == i)) - given) - 1
    draws = model.condition(value, observed).sample(key, (num_draws,))
    return exact, 2 * np.asarray(draws).mean(0) - 1


def draw(lattice: Ising, model: mam.MaM, result: Result, draws, config: Config, key, out: Path):
    """The figure."""
    import matplotlib.pyplot as plt

    shape = (lattice.num_rows, lattice.num_columns)
    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    queries = axes[0, 0].scatter(*result.queries[:, [1, 0]].T, c=result.queries[:, 2], s=14)
    figure.colorbar(queries, ax=axes[0, 0], label="observed sites")
    named = np.array(list(result.questions.values()))
    axes[0, 0].plot(named[:, 1], named[:, 0], "r+", ms=9, label="named questions")
    axes[0, 0].axline((0, 0), slope=1, color="0.6", lw=0.8)
    axes[0, 0].set(xlabel="exact log-marginal (nats)", ylabel="one pass of the network")
    axes[0, 0].legend(frameon=False)

    step = np.arange(lattice.num_sites)
    mean, sd = result.residuals
    axes[0, 1].fill_between(step, mean - sd, mean + sd, color="C0", alpha=0.3, lw=0)
    axes[0, 1].plot(step, mean, "C0")
    axes[0, 1].axhline(0, color="0.6", lw=0.8)
    axes[0, 1].set(xlabel="variables drawn so far", ylabel="consistency residual (nats)")

    names = list(result.particles)
    axes[0, 2].violinplot([result.particles[name] for name in names], showmedians=True)
    axes[0, 2].axhline(result.log_z, color="k", ls="--", lw=1, label="exact")
    axes[0, 2].set_xticks([1, 2], ["marginalization\nmodel", "heat bath"])
    axes[0, 2].set_ylabel(f"log Z, one run of {config.num_particles} particles")
    axes[0, 2].legend(frameon=False)

    exact, learned = conditional_means(lattice, model, key, config.num_draws)
    pictures = [
        (draws.value[0], "a draw", "gray_r"),
        (exact, "mean spin given the upper half", "RdBu"),
        (learned, "the same from 2,000 draws", "RdBu"),
    ]
    for axis, (values, title, colors) in zip(axes[1], pictures, strict=True):
        limits = (0, 1) if colors == "gray_r" else (-1, 1)
        picture = axis.imshow(
            np.reshape(values, shape), cmap=colors, vmin=limits[0], vmax=limits[1]
        )
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(picture, ax=axes[1, 2])
    figure.savefig(out / "ising.png", dpi=120)
    return float(np.abs(exact - learned).max())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An Ising model learned from its energy.")
    parser.add_argument("--smoke", action="store_true", help="4 x 4 sites, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("ising_output"))
    options = parsed(parser, arguments)
    config = SMOKE if options.smoke else Config()
    train_key, measure_key, draw_key = jax.random.split(jax.random.key(options.seed), 3)
    large_key, test_key = jax.random.split(jax.random.fold_in(draw_key, 1))

    lattice = Ising(config.size, config.size, coupling=0.2, field=0.2)
    start = time.perf_counter()
    networks = train(lattice, config, train_key)
    seconds = time.perf_counter() - start
    result, draws = measure(lattice, networks, config, measure_key)
    text = f"trained in {seconds:.0f} s\n" + report(result, config)
    worst = draw(lattice, mam.MaM(networks), result, draws, config, draw_key, options.out)
    text += f"\nmean spins given the upper half: at most {worst:.3f} from exact ({config.num_draws} draws)"

    large = Ising(config.large, config.large, lattice.coupling, lattice.field)
    exact = large.sample_from_past(np.random.default_rng(options.seed), config.num_large)
    start = time.perf_counter()
    enlarged = enlarge(networks, large)
    further = train_on(large, enlarged, config, large_key)
    seconds = time.perf_counter() - start
    stages = {
        name: measure_large(lattice, large, pair, exact, test_key)
        for name, pair in {"weights as they are": enlarged, f"trained on, {seconds:.0f} s": further}.items()
    }  # fmt: skip
    text += "\n\n" + report_large(lattice, large, stages)
    tree = inference.to_arviz(
        {"spin": 2 * np.asarray(draws.value) - 1, "order": np.asarray(draws.order)},
        dims={"spin": ["site"], "order": ["step"]},
    )
    tree.to_netcdf(options.out / "draws.nc")
    (options.out / "report.txt").write_text(text + "\n")
    print(text)
    if options.record:
        named = dict(zip(("before", "after"), stages.values(), strict=True))
        record(result, named, lattice, large, config, options.seed)


if __name__ == "__main__":
    main()
