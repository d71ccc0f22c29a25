"""Paths in a new domain: invariant and specific causes, and adapting the specific one alone.

What it shows: paths whose past x and future y have two causes, z with one law everywhere and s with a law of its own in each
domain e. The domain of a path to train on is summed out, or told; or its causes are told, too. A new domain is a component
that nothing has used so far, set by an intervention:

    everywhere = ppl.eliminate(model, "e")
    elsewhere = ppl.intervene(model, {"e": NEW})

The guide of training sees the future through the model's own factor, q(z, s | x, y) ~ q(z | x) q(s | x) p(y | z, s):

    given_both = ppl.normalize(seeing, proposal=guide, num_particles=8, strategy="enum")
    bound = inference.elbo(everywhere, given_both)

which is the published objective log q(y | x) + E[log p(x | z, s) p(s) p(z) / (q(s | x) q(z | x))], with weights in place of its
exponentials and clamps: a lower bound on log p(x, y) with any number of particles. Futures are predicted by the guide, q(y | x),
as published, or by the model, p(y | x): the same draws, weighted by p(x, z, s) / q(z, s | x). The law of s has no say in the
first, as long as the guide stays what it is.

To few paths of a new domain are adapted the law of s, alone or with the encoder of s, or all parameters; beside them a
regression of future on past, all of it. Rates are chosen for each row and number of paths in another new domain, on two seeds.

Data: simulated paths of 8 and 8 steps: speed and turning rate (z), and a swerve that sets in at the end of the past (s), of mean
-0.8, 0 and 0.8 m in the three domains to train on, 1.8 m in the new one, and -1.8 m in that for rates.

Source: Shirahmad Gale Bagi et al. 2023 (ICML, generative causal representation learning): adapting to a few batches goes better
than by models without causes, the more so where the specific part alone is adapted. Their pedestrians are other data. Expected
before the run: with few paths, adapting s alone is no worse than adapting all.

Expected, five seeds, mean distance from the true path in metres, after 0 / 5 / 10 / 50 paths of the new domain:

    regression, all                       0.43 / 0.34 / 0.25 / 0.21
    domains summed out, s, by guide       0.47 / 0.46 / 0.44 / 0.43
    domains summed out, all, by guide     0.47 / 0.28 / 0.23 / 0.21
    domains told, s, by guide             0.48 / 0.41 / 0.38 / 0.36
    domains told, all, by guide           0.48 / 0.28 / 0.24 / 0.21
    causes told, s, by guide              0.50 / 0.54 / 0.51 / 0.50
    causes told, all, by guide            0.50 / 0.39 / 0.35 / 0.22
    causes told, law of s, by model       0.36 / 0.32 / 0.31 / 0.30

That s alone suffices does not show: adapting it is worse than adapting all with any number of paths, by 0.19 +- 0.09 m (95 %,
paired) after 5 where domains are summed out, by 0.13 +- 0.08 m where they are told. One reason is that s is not the swerve: its
correlation with it is 0.17 where domains are summed out, and 0.62 where they are told, which place a mixture but do not turn its
axes. It is not the only one: where causes are told, networks that have seen swerves to 1.5 m go wrong about larger ones. There
the law of s alone is worth 0.05 +- 0.01 m, and by the model only. That causes help where all is adapted shows after 5 paths,
0.07 +- 0.06 m and 18 +- 7 nats better than the regression, whose errors are independent; after 10 and 50 in nats only. The
lowest rate was chosen in 32 of 48 cases: validation asks for little adaptation. Run time: four minutes of processor time.

    python examples/papers/structure/domain_adaptation.py [--smoke] [--seeds 5] [--out domain_adaptation_output] [--record]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _domain_programs as domains
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from scipy.optimize import linear_sum_assignment

from lapilli import ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import interval
from _record import parsed, record_figure

BATCH = 32
KNOWN, VALIDATION, TEST = (-0.8, 0.0, 0.8), -1.8, 1.8  # swerves


class Sizes(NamedTuple):
    """Of a run."""

    num_paths: int = 400  # of each domain
    num_steps: int = 16_000
    few: tuple[int, ...] = (5, 10, 50)  # paths to adapt to
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    num_adapting: int = 200  # steps
    num_draws: int = 200


SMOKE = Sizes(64, 30, (5,), (1e-2,), 5, 20)


def trainer(bound: Any) -> Callable[..., Any]:
    """`(params, moved, data, num, rate, num_steps, key) -> params`: Adam on batches of the first `num` paths.

    What is not moved is frozen by a factor 0 on its updates, so that all ways to adapt are compiled once.
    """

    def mean(params: Any, data: Any, keys: Any) -> Any:
        of_one = lambda key, row: bound.value(ppl.Params(params), key, *row)
        return -jax.vmap(of_one)(keys, data).mean()

    @jax.jit
    def run(
        params: Any, moves: Any, data: Any, num: Any, rate: Any, num_steps: Any, key: Any
    ) -> Any:
        adam = optax.adam(lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps)))

        def step(i: Any, carry: Any) -> Any:
            params, state = carry
            batch_key, draw_key = jax.random.split(jax.random.fold_in(key, i))
            batch = jax.random.randint(batch_key, (BATCH,), 0, num)
            keys = jax.random.split(draw_key, BATCH)
            grads = jax.grad(mean)(params, jax.tree.map(lambda a: a[batch], data), keys)
            updates, state = adam.update(grads, state)
            held = {
                name: jax.tree.map(lambda u, m=moves[name]: m * u, update)
                for name, update in updates.items()
            }
            return optax.apply_updates(params, held), state

        return jax.lax.fori_loop(0, num_steps, step, (params, adam.init(params)))[0]

    return lambda params, moved, *rest: run(
        params, {n: float(moved == domains.ALL or n in moved) for n in params}, *rest
    )


class Score(NamedTuple):
    """Of predictions: mean and last distance of the mean path from the true one, in metres; nats per path."""

    ade: float
    fde: float
    nats: float


def predictor(row: domains.Row, num_draws: int) -> Callable[..., Any]:
    """`(params, x, y, key) -> mean future [paths, 16], log-density of y [paths]` of what a row draws."""

    def of_one(params: Any, x: Any, y: Any, key: Any) -> Any:
        joint, seeing, guide = (
            program.bind(params) for program in (row.joint, row.seeing, row.guide)
        )

        def particle(key: Any) -> Any:
            trace = seeing.trace(guide.simulate(key, x, y).choices, x, y)
            # The factor p(y | z, s) stands in both: what is left is p(x, z, s) / q(z, s | x).
            full = joint.log_density(trace.choices, x, y) if row.is_weighted else trace.log_density
            return trace.retval, trace.log_probs["y"].sum(), full - trace.log_density

        mean, nats, log_weights = jax.vmap(particle)(jax.random.split(key, num_draws))
        log_weights = jax.nn.log_softmax(log_weights)
        return jnp.exp(log_weights) @ mean, jax.nn.logsumexp(log_weights + nats)

    @jax.jit
    def run(params: Any, x: Any, y: Any, key: Any) -> Any:
        of_row = lambda x, y, key: of_one(ppl.Params(params), x, y, key)
        return jax.lax.map(
            lambda one: of_row(*one), (x, y, jax.random.split(key, len(x))), batch_size=50
        )

    return run


def score(predict: Callable[..., Any], params: Any, paths: domains.Paths, key: Any) -> Score:
    mean, nats = predict(params, paths.x, paths.y, key)
    away = np.linalg.norm(np.reshape(mean - paths.y, (len(paths.y), domains.FUTURE, 2)), axis=-1)
    return Score(float(away.mean()), float(away[:, -1].mean()), float(nats.mean()))


def correlation(guide: ppl.Program, params: Any, paths: domains.Paths) -> tuple[float, float]:
    """Of the guide's means with the true causes: absolute, best matching of all three, and that of s alone."""
    bound, keys = guide.bind(ppl.Params(params)), jax.random.split(jax.random.key(0), 50)
    mean = lambda x: jax.vmap(lambda k: bound.simulate(k, x, x).retval)(keys).mean(0)
    found = np.abs(np.corrcoef(np.asarray(jax.vmap(mean)(paths.x)).T, paths.causes.T)[:3, 3:])
    return float(found[linear_sum_assignment(-found)].mean()), float(found[2, 2])


class Machinery(NamedTuple):
    """Compiled once for all seeds: what trains, by the way of training, and what adapts and predicts, by row."""

    programs: domains.Programs
    rows: dict[str, domains.Row]
    train: dict[str, Any]
    adapt: dict[str, Any]
    predict: dict[str, Any]


def machinery(sizes: Sizes) -> Machinery:
    programs = domains.make_programs(domains.networks(jax.random.key(0)))
    rows = domains.make_rows(programs)
    guides = programs.seeing, programs.guide
    train = {
        domains.TOLD: domains.Row(domains.TOLD, programs.model, *guides, domains.ALL).bound,
        domains.SUMMED: rows[f"{domains.SUMMED}: nothing, by guide"].bound,
        domains.CAUSES: domains.supervised(programs.model, programs.guide),
        domains.PLAIN: rows[f"{domains.PLAIN}: all"].bound,
    }
    joints = {row.joint: row for row in rows.values() if row.moved}
    trainers = {joint: trainer(row.bound) for joint, row in joints.items()}
    # Predictions by the guide take nothing from the joint program.
    kinds = {name: (row.is_weighted and row.joint, row.guide) for name, row in rows.items()}
    predictors = {kinds[name]: predictor(row, sizes.num_draws) for name, row in rows.items()}
    return Machinery(
        programs,
        rows,
        {name: trainer(bound) for name, bound in train.items()},
        {name: trainers[row.joint] for name, row in rows.items() if row.moved},
        {name: predictors[kind] for name, kind in kinds.items()},
    )


class Trained(NamedTuple):
    """Of a seed: parameters by the way of training, and the paths of all domains."""

    params: dict[str, Any]
    known: domains.Paths
    few: dict[float, domains.Paths]
    many: dict[float, domains.Paths]


def trained(seed: int, sizes: Sizes, tools: Machinery) -> Trained:
    rng = np.random.default_rng(seed)
    parts = [domains.simulate(sizes.num_paths, swerve, rng, e) for e, swerve in enumerate(KNOWN)]
    known = domains.Paths(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    few = {swerve: domains.simulate(max(sizes.few), swerve, rng) for swerve in (VALIDATION, TEST)}
    many = {
        swerve: domains.simulate(sizes.num_paths // 2, swerve, rng) for swerve in (VALIDATION, TEST)
    }
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    nets = domains.networks(init_key)
    params = {}
    for name, run in tools.train.items():
        told = {domains.TOLD: (known.e,), domains.CAUSES: (known.e, standard(known.causes))}.get(
            name, ()
        )
        data = known.x, known.y, *told
        row = tools.rows[f"{name}: all" if name == domains.PLAIN else f"{name}: all, by guide"]
        first = dict(row.bound.init(init_key, known.x[0], known.y[0]))
        first |= {n: eqx.filter(nets[n], eqx.is_inexact_array) for n in nets if n in first}
        found = run(first, domains.ALL, data, len(known.x), 3e-3, sizes.num_steps, fit_key)
        params[name] = found if name == domains.PLAIN else with_new(found)
    return Trained(params, known, few, many)


def standard(causes: np.ndarray) -> dict[str, np.ndarray]:
    """True causes, as sites: z with mean 0 and variance 1, s in metres."""
    z = (causes[:, :2] - np.array([domains.SPEED[0], domains.TURN[0]])) / np.array(
        [domains.SPEED[1], domains.TURN[1]]
    )
    return {"z": z.astype(np.float32), "s": causes[:, 2].astype(np.float32)}


def with_new(params: Any) -> Any:
    """The new domain's law of s begins as the normal with mean and variance of the known ones."""
    place, width = params["place"][: domains.NEW], jnp.exp(params["log_width"][: domains.NEW])
    spread = 0.5 * jnp.log(place.var() + (width**2).mean())
    return params | {
        "place": params["place"].at[domains.NEW].set(place.mean()),
        "log_width": params["log_width"].at[domains.NEW].set(spread),
    }


def adapted(
    name: str, one: Trained, swerve: float, num: int, rate: float, sizes: Sizes, tools: Machinery, seed: int
) -> Score:  # fmt: skip
    """A row's score in a domain, after `num` of its paths."""
    row, few = tools.rows[name], one.few[swerve]
    params = one.params[row.trained]
    fit_key, score_key = jax.random.split(jax.random.key(1000 + seed))
    if row.moved:
        data = few.x, few.y
        params = tools.adapt[name](params, row.moved, data, num, rate, sizes.num_adapting, fit_key)
    return score(tools.predict[name], params, one.many[swerve], score_key)


def chosen(ones: list[Trained], sizes: Sizes, tools: Machinery) -> dict[tuple[str, int], float]:
    """For each row and number of paths the rate with the best log-density in the validation domain."""
    best = {}
    for name, row in tools.rows.items():
        for num in sizes.few if row.moved else ():
            nats = [
                np.mean(
                    [
                        adapted(name, one, VALIDATION, num, rate, sizes, tools, seed).nats
                        for seed, one in enumerate(ones)
                    ]
                )
                for rate in sizes.rates
            ]
            best[name, num] = sizes.rates[int(np.argmax(nats))]
    return best


Scores = dict[tuple[str, int], list[Score]]


def table_of(scores: Scores) -> list[str]:
    """Means and standard errors over seeds, a line each."""
    lines = [f"    {'':38}{'paths':>6}" + "".join(f"{h:>18}" for h in ("ADE, m", "FDE, m", "nats"))]
    for (name, num), rows in scores.items():
        error = np.std(rows, 0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.full(3, np.nan)
        cells = "".join(
            f"{f'{m:.{d}f} +- {e:.{d}f}':>18}"
            for m, e, d in zip(np.mean(rows, 0), error, (3, 3, 1), strict=True)
        )
        lines.append(f"    {name:38}{num or '':>6}{cells}")
    return lines


def difference(scores: Scores, one: str, other: str, num: int, field: str) -> tuple[float, float]:
    """Mean of one less other over seeds, and half the width of its 95 % interval."""
    pairs = zip(scores[one, num], scores[other, num], strict=True)
    return interval(np.array([getattr(a, field) - getattr(b, field) for a, b in pairs]))


COMPARED = [
    pair
    for name in domains.CAUSAL
    for pair in (
        (f"{name}: s, by guide", f"{name}: all, by guide"),
        (f"{name}: s, by model", f"{name}: all, by model"),
        (f"{name}: law of s, by model", f"{name}: all, by model"),
        (f"{name}: s, by guide", f"{domains.PLAIN}: all"),
    )
]


def draw(scores: Scores, sizes: Sizes, path: Path) -> None:
    """Paths of the domains; error by number of paths, for each way to train."""
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    rng = np.random.default_rng(0)
    for i, swerve in enumerate((*KNOWN, TEST)):
        paths = domains.simulate(8, swerve, rng)
        both = np.concatenate([paths.x, paths.y], 1).reshape(8, -1, 2)
        label = "new domain" if swerve == TEST else f"domain {i + 1}"
        for j, one in enumerate(both):
            axes[0].plot(*one.T, color=f"C{i}", linewidth=0.8, label=None if j else label)
    axes[0].set(xlabel="m", ylabel="m", title="paths")
    axes[0].legend(fontsize=7)
    for axis, source in zip(axes[1:], domains.CAUSAL, strict=True):
        names = dict.fromkeys(n for n, _ in scores if n.startswith((source, domains.PLAIN)))
        for i, name in enumerate(names):
            nums = [num for other, num in scores if other == name]
            means = [np.mean([s.ade for s in scores[name, num]]) for num in nums]
            label = name.removeprefix(f"{source}: ")
            if nums == [0]:
                axis.axhline(means[0], color=f"C{i}", linestyle=":", linewidth=1, label=label)
            else:
                axis.plot(nums, means, "o-", color=f"C{i}", markersize=3, label=label)
        axis.set(xscale="log", ylim=(0, None), xlabel="paths of the new domain", title=source)
        axis.set_xticks(sizes.few, [str(n) for n in sizes.few])
        axis.minorticks_off()
    axes[1].set_ylabel("mean distance, m")
    lines = axes[-1].get_legend_handles_labels()
    figure.legend(*lines, loc="outside right center", fontsize=8, title="what is adapted")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(scores: Scores, correlations: dict[str, np.ndarray], sizes: Sizes) -> None:
    """The errors, and the differences that the claim is about."""
    num_seeds, ends = len(next(iter(scores.values()))), (min(sizes.few), max(sizes.few))
    middle = sizes.few[len(sizes.few) // 2]
    told = "; ".join(
        f"{name} {found[:, 0].mean():.2f}, s alone {found[:, 1].mean():.2f}"
        for name, found in correlations.items()
    )
    for field, what, digits in (
        ("ade", "mean distance of the predicted path, m", 3),
        ("nats", "log-density of the future, nats per path", 1),
    ):
        columns = {
            name: [getattr(s, field) for s in rows]
            for (name, num), rows in scores.items()
            if num in (0, middle)
        }
        record_figure(
            f"structure/domain_adaptation_{field}",
            what=f"paths in a domain that was not trained on, by what is adapted to {middle} of its paths: {what}; spread: "
            "standard deviation over seeds",
            value={name: np.mean(x) for name, x in columns.items()},
            spread={name: np.std(x, ddof=1) for name, x in columns.items()},
            seeds=num_seeds,
            digits=digits,
            note=f"correlation of the guide's means with the true causes: {told}",
            measures=["examples/papers/structure/_domain_programs.py", "ppl/densities"],
        )
    differences = {
        f"{one} less {other}, {num} paths": difference(scores, one, other, num, "ade")
        for one, other in COMPARED
        for num in ends
    }
    record_figure(
        "structure/domain_adaptation_differences",
        what="paths in a domain that was not trained on, mean distance of the predicted path, m, differences; spread: half of "
        "the 95 % interval over seeds, paired",
        value={name: mean for name, (mean, _) in differences.items()},
        spread={name: half for name, (_, half) in differences.items()},
        seeds=num_seeds,
        claim="adapting the specific cause to a few batches beats models without causes",
        claimed_by="Shirahmad Gale Bagi et al. 2023, pedestrians",
        measures=["examples/papers/structure/_domain_programs.py", "ppl/densities"],
    )


def main(arguments: list[str] | None = None) -> Scores:
    parser = argparse.ArgumentParser(description="Adapting one cause to a new domain.")
    parser.add_argument("--smoke", action="store_true", help="a size that ends in seconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("domain_adaptation_output"))
    options = parsed(parser, arguments)
    sizes, num_seeds = (SMOKE, 1) if options.smoke else (Sizes(), options.seeds)

    tools, ones = machinery(sizes), []
    for seed in range(num_seeds):
        ones.append(trained(seed, sizes, tools))
        print(f"seed {seed} trained", flush=True)
    correlations = {
        name: np.array([correlation(tools.programs.guide, o.params[name], o.known) for o in ones])
        for name in domains.CAUSAL
    }
    for name, found in correlations.items():
        print(f"{name}: correlation with the true causes, best matching, and of s alone:")
        print(np.array_str(found.T, precision=2), flush=True)
    rates = chosen(ones[:2], sizes, tools)
    print("rates by validation:", {f"{n}, {num}": r for (n, num), r in rates.items()}, flush=True)
    scores: Scores = {}
    for name, row in tools.rows.items():
        for num in sizes.few if row.moved else (0,):
            scores[name, num] = [
                adapted(name, one, TEST, num, rates.get((name, num), 0.0), sizes, tools, seed)
                for seed, one in enumerate(ones)
            ]
    print("\n".join(table_of(scores)))
    for one, other in COMPARED:
        for num in sizes.few:
            ade, half = difference(scores, one, other, num, "ade")
            nats, about = difference(scores, one, other, num, "nats")
            print(
                f"{one} less {other}, {num} paths: {ade:.3f} +- {half:.3f} m, {nats:.1f} +- {about:.1f} nats (95 %, paired)"
            )
    draw(scores, sizes, options.out / "domain_adaptation.png")
    xr.Dataset(
        {
            field: (
                ("row", "seed"),
                [[getattr(s, field) for s in rows] for rows in scores.values()],
            )
            for field in Score._fields
        },
        {"row": [f"{name}, {num}" for name, num in scores], "seed": range(num_seeds)},
    ).to_netcdf(options.out / "domain_adaptation.nc")
    if options.record:
        record(scores, correlations, sizes)
    return scores


if __name__ == "__main__":
    main()
