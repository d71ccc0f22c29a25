"""Motion in a new domain: invariant and specific causes, and adapting the specific one alone.

What it shows: paths whose past x and future y have two causes, z with one law everywhere and s with a law of its own in each
domain e. A path's domain is not told: `ppl.eliminate` sums it out. A new domain is a component that nothing has used so far,
asked for by an intervention, and what is left as it was is left out of the gradient:

    everywhere = ppl.eliminate(model, "e")
    elsewhere = ppl.intervene(model, {"e": NEW})

The guide of training sees the future through the model's own factor, q(z, s | x, y) ~ q(z | x) q(s | x) p(y | z, s):

    guide = ppl.normalize(told, proposal=untold, num_particles=8, strategy="enum")
    bound = inference.elbo(everywhere, guide)

which is the published objective log q(y | x) + E[log p(x | z, s) p(s) p(z) / (q(s | x) q(z | x))], with weights in place of its
exponentials and clamps: a lower bound on log p(x, y) with any number of particles. A future is predicted by the guide,
q(y | x), as published, or by the model, p(y | x): the same draws, weighted by p(x, z, s) / q(z, s | x). Under the first a new law
of s changes nothing as long as the guide stays as it is; under the second it does.

Data: simulated paths of 8 and 8 steps: speed and turning rate (z), and a swerve that sets in at the end of the past (s), of mean
-0.8, 0 and 0.8 m in the three domains to train on. The new domain's is 1.8 m. Rates and numbers of steps of adaptation are
chosen for each row and number of paths in another one, of mean -1.8 m.

Source: Shirahmad Gale Bagi et al. 2023 (ICML, generative causal representation learning): adapting to a few batches goes better
than by models without causes, the more so where the specific part alone is adapted. Their pedestrians are other data.

    python examples/structure/domain_adaptation.py [--smoke] [--seeds 5] [--out domain_adaptation_output] [--record]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import xarray as xr
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from lapilli import inference, ppl

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _record import parsed, record_figure

PAST, FUTURE, BATCH, HIDDEN = 8, 8, 32, 32
KNOWN, VALIDATION, TEST = (-0.8, 0.0, 0.8), -1.8, 1.8
NEW = len(KNOWN)


class Sizes(NamedTuple):
    """Of a run."""

    num_paths: int = 400  # of each domain
    num_steps: int = 4000
    few: tuple[int, ...] = (5, 10, 20, 50)  # paths to adapt to
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    num_adapting: int = 200  # steps
    num_draws: int = 200


SMOKE = Sizes(64, 30, (5,), (1e-2,), 5, 20)


class Paths(NamedTuple):
    """Past and future, [paths, 16] each, in metres, x and y of a step side by side; the causes, [paths, 3]."""

    x: Any
    y: Any
    causes: np.ndarray


def simulate(num: int, swerve: float, rng: np.random.Generator) -> Paths:
    """Paths that start at the origin along the first axis."""
    speed = rng.normal(0.5, 0.1, num)
    turn = rng.normal(0.0, 0.03, num)
    s = rng.normal(swerve, 0.3, num)
    time = np.arange(1, PAST + FUTURE + 1)
    heading = turn[:, None] * time
    aside = s[:, None] / (1 + np.exp(-(time - PAST + 1) / 1.5))
    steps = speed[:, None, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    path = np.cumsum(steps, 1) + aside[..., None] * np.stack(
        [-np.sin(heading), np.cos(heading)], -1
    )
    path = (path + rng.normal(0, 0.05, path.shape)).reshape(num, -1).astype(np.float32)
    causes = np.stack([speed, turn, s], 1)
    return Paths(path[:, : 2 * PAST], path[:, 2 * PAST :], causes)


class Programs(NamedTuple):
    """Of one path, x and y [16] each.

    Attributes:
        model: e -> s, z free of e, (z, s) -> past x and future y; e takes no value NEW unless it is set.
        untold: the guide q(z | x) q(s | x), which returns z and s.
        told: ... with the factor p(y | z, s); returns the future's mean.
        regression: the future from the past, without causes; returns its mean.
    """

    model: ppl.Program
    untold: ppl.Program
    told: ppl.Program
    regression: ppl.Program


def networks(key: jax.Array) -> dict[str, eqx.nn.MLP]:
    sizes = {
        "past": (3, 2 * PAST),
        "future": (3, 2 * FUTURE),
        "encoder_z": (2 * PAST, 4),
        "encoder_s": (2 * PAST, 2),
        "regression": (2 * PAST, 2 * FUTURE),
    }
    return {
        name: eqx.nn.MLP(*size, HIDDEN, 2, jax.nn.silu, key=k)
        for (name, size), k in zip(sizes.items(), jax.random.split(key, len(sizes)), strict=True)
    }


def make_programs(nets: dict[str, eqx.nn.MLP]) -> Programs:
    def path_law(name: str, inputs: Any) -> dist.Distribution:
        noise = ppl.param(f"{name} noise", jnp.array(0.5), constraint=dist.constraints.positive)
        return dist.Normal(ppl.module(name, nets[name])(inputs), noise).to_event(1)

    @ppl.model
    def model(x: Any, y: Any) -> None:
        place = ppl.param("place", jnp.array([*np.linspace(-2, 2, NEW), 0.0]))
        log_width = ppl.param("log_width", jnp.full(NEW + 1, -1.0))
        e = ppl.sample("e", dist.Categorical(logits=jnp.zeros(NEW)))
        s = ppl.sample("s", dist.Normal(place[e], jnp.exp(log_width[e])))
        z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        causes = jnp.append(z, s)
        ppl.sample("x", path_law("past", causes), obs=x)
        ppl.sample("y", path_law("future", causes), obs=y)

    @ppl.model
    def untold(x: Any, y: Any) -> Any:
        at, log_width = jnp.split(ppl.module("encoder_z", nets["encoder_z"])(x), 2)
        z = ppl.sample("z", dist.Normal(at, jnp.exp(log_width - 1.0)).to_event(1))
        at, log_width = ppl.module("encoder_s", nets["encoder_s"])(x)
        return jnp.append(z, ppl.sample("s", dist.Normal(at, jnp.exp(log_width - 1.0))))

    @ppl.model
    def told(x: Any, y: Any) -> Any:
        law = path_law("future", untold(x, y))
        ppl.sample("y", law, obs=y)
        return law.mean

    @ppl.model
    def regression(x: Any, y: Any) -> Any:
        law = path_law("regression", x)
        ppl.sample("y", law, obs=y)
        return law.mean

    return Programs(model, untold, told, regression)


def causal_bound(joint: Any, seen: Any, proposal: Any, num_particles: int = 8) -> Any:
    """The published objective for one path, as a bound on log p(x, y).

    Args:
        joint: program of the path, p(z, s) p(x, y | z, s).
        seen: the guide with the factor p(y | z, s).
        proposal: the guide, q(z, s | x).
        num_particles: that are proposed and resampled.
    """
    guide = ppl.normalize(seen, proposal=proposal, num_particles=num_particles, strategy="enum")
    return inference.elbo(joint, guide)


NOTHING = ppl.model(lambda x, y: None)
ALL, LAW, ENCODER = ("*",), ("place", "log_width"), ("encoder_s",)


class Row(NamedTuple):
    """A way to adapt and to predict.

    Attributes:
        joint: program of z, s, past and future.
        seen: the guide with the factor p(y | z, s), which returns the future's mean.
        proposal: the guide.
        moved: the parameters that move; none for a model as it was trained.
        is_weighted: whether draws of the guide weigh p(x, z, s) / q(z, s | x), or all the same.
    """

    joint: Any
    seen: Any
    proposal: Any
    moved: tuple[str, ...]
    is_weighted: bool = False

    @property
    def bound(self) -> Any:
        if self.proposal is NOTHING:
            return inference.elbo(self.joint, self.proposal)
        return causal_bound(self.joint, self.seen, self.proposal)


def make_rows(programs: Programs) -> dict[str, Row]:
    causal = programs.told, programs.untold
    known = ppl.eliminate(programs.model, "e"), *causal
    new = ppl.intervene(programs.model, {"e": NEW}), *causal
    plain = programs.regression, programs.regression, NOTHING
    return {
        "regression, nothing": Row(*plain, ()),
        "regression, all": Row(*plain, ALL),
        "by the guide, nothing": Row(*known, ()),
        "by the guide, law and encoder of s": Row(*new, LAW + ENCODER),
        "by the guide, all": Row(*new, ALL),
        "by the model, nothing": Row(*known, (), True),
        "by the model, law of s": Row(*new, LAW, True),
        "by the model, law and encoder of s": Row(*new, LAW + ENCODER, True),
        "by the model, all": Row(*new, ALL, True),
    }


def trainer(bound: Any) -> Callable[..., Any]:
    """`(params, moves, x, y, num, rate, num_steps, key) -> params`: Adam on batches of the first `num` paths.

    `moves` has 1 for each parameter that moves and 0 for a frozen one: numbers, so that all ways to adapt compile once.
    """

    def mean(params: Any, x: Any, y: Any, keys: Any) -> Any:
        of_one = lambda key, x, y: bound.value(ppl.Params(params), key, x, y)
        return -jax.vmap(of_one)(keys, x, y).mean()

    @jax.jit
    def run(
        params: Any, moves: Any, x: Any, y: Any, num: Any, rate: Any, num_steps: Any, key: Any
    ) -> Any:
        adam = optax.adam(lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps)))

        def step(i: Any, carry: Any) -> Any:
            params, state = carry
            batch_key, draw_key = jax.random.split(jax.random.fold_in(key, i))
            batch = jax.random.randint(batch_key, (BATCH,), 0, num)
            keys = jax.random.split(draw_key, BATCH)
            grads = jax.grad(mean)(params, x[batch], y[batch], keys)
            updates, state = adam.update(grads, state)
            held = {
                name: jax.tree.map(lambda u, m=moves[name]: m * u, update)
                for name, update in updates.items()
            }
            return optax.apply_updates(params, held), state

        return jax.lax.fori_loop(0, num_steps, step, (params, adam.init(params)))[0]

    return lambda params, moved, *rest: run(
        params, {n: float(moved == ALL or n in moved) for n in params}, *rest
    )


class Score(NamedTuple):
    """Of predictions: mean and last distance of the mean path from the true one, in metres; nats per path."""

    ade: float
    fde: float
    nats: float


def predictor(row: Row, num_draws: int) -> Callable[..., Any]:
    """`(params, x, y, key) -> mean future [paths, 16], log-density of y [paths]` of what a row draws."""

    def of_one(params: Any, x: Any, y: Any, key: Any) -> Any:
        joint, seen, proposal = (
            program.bind(params) for program in (row.joint, row.seen, row.proposal)
        )

        def particle(key: Any) -> Any:
            trace = seen.trace(proposal.simulate(key, x, y).choices, x, y)
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


def score(predict: Callable[..., Any], params: Any, paths: Paths, key: Any) -> Score:
    mean, nats = predict(params, paths.x, paths.y, key)
    away = np.linalg.norm(np.reshape(mean - paths.y, (len(paths.y), FUTURE, 2)), axis=-1)
    return Score(float(away.mean()), float(away[:, -1].mean()), float(nats.mean()))


def correlation(untold: ppl.Program, params: Any, paths: Paths) -> tuple[float, float]:
    """Of the guide's means with the true causes: absolute, best matching of all three, and that of s alone."""
    guide, keys = untold.bind(ppl.Params(params)), jax.random.split(jax.random.key(0), 50)
    mean = lambda x: jax.vmap(lambda k: guide.simulate(k, x, x).retval)(keys).mean(0)
    found = np.abs(np.corrcoef(np.asarray(jax.vmap(mean)(paths.x)).T, paths.causes.T)[:3, 3:])
    return float(found[linear_sum_assignment(-found)].mean()), float(found[2, 2])


class Machinery(NamedTuple):
    """Compiled once for all seeds: what trains and predicts, by row."""

    programs: Programs
    rows: dict[str, Row]
    train: dict[str, Any]
    predict: dict[str, Any]


def machinery(sizes: Sizes) -> Machinery:
    programs = make_programs(networks(jax.random.key(0)))
    rows = make_rows(programs)
    trainers = {row.joint: trainer(row.bound) for row in rows.values()}
    predictors = {row[:3] + row[4:]: predictor(row, sizes.num_draws) for row in rows.values()}
    train = {name: trainers[row.joint] for name, row in rows.items()}
    predict = {name: predictors[row[:3] + row[4:]] for name, row in rows.items()}
    return Machinery(programs, rows, train, predict)


class Trained(NamedTuple):
    """Of a seed: parameters of the causal model and of the regression, and the paths of all domains."""

    causal: Any
    plain: Any
    known: Paths
    few: dict[float, Paths]
    many: dict[float, Paths]


def trained(seed: int, sizes: Sizes, tools: Machinery) -> Trained:
    rng = np.random.default_rng(seed)
    parts = [simulate(sizes.num_paths, swerve, rng) for swerve in KNOWN]
    known = Paths(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    few = {swerve: simulate(max(sizes.few), swerve, rng) for swerve in (VALIDATION, TEST)}
    many = {swerve: simulate(sizes.num_paths, swerve, rng) for swerve in (VALIDATION, TEST)}
    init_key, *keys = jax.random.split(jax.random.key(seed), 3)
    found = []
    for name, key in zip(("by the guide, nothing", "regression, nothing"), keys, strict=True):
        params = dict(tools.rows[name].bound.init(init_key, known.x[0], known.y[0]))
        nets = networks(jax.random.fold_in(init_key, seed))
        params |= {n: eqx.filter(nets[n], eqx.is_inexact_array) for n in nets if n in params}
        run = tools.train[name]
        found.append(run(params, ALL, known.x, known.y, len(known.x), 3e-3, sizes.num_steps, key))
    return Trained(with_new(found[0]), found[1], known, few, many)


def with_new(params: Any) -> Any:
    """The new domain's law of s begins as the normal with mean and variance of the known ones."""
    place, width = params["place"][:NEW], jnp.exp(params["log_width"][:NEW])
    spread = 0.5 * jnp.log(place.var() + (width**2).mean())
    return params | {
        "place": params["place"].at[NEW].set(place.mean()),
        "log_width": params["log_width"].at[NEW].set(spread),
    }


def adapted(
    name: str, one: Trained, swerve: float, num: int, rate: float, sizes: Sizes, tools: Machinery, seed: int
) -> Score:  # fmt: skip
    """A row's score in a domain, after `num` of its paths."""
    row, few = tools.rows[name], one.few[swerve]
    params = one.plain if row.proposal is NOTHING else one.causal
    fit_key, score_key = jax.random.split(jax.random.key(1000 + seed))
    if row.moved:
        run = tools.train[name]
        params = run(params, row.moved, few.x, few.y, num, rate, sizes.num_adapting, fit_key)
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
    found = np.array([getattr(a, field) - getattr(b, field) for a, b in pairs])
    if len(found) < 2:
        return float(found.mean()), np.inf
    half = student.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    return float(found.mean()), float(half)


COMPARED = [
    ("by the guide, law and encoder of s", "by the guide, all"),
    ("by the model, law and encoder of s", "by the model, all"),
    ("by the model, law of s", "by the model, all"),
    ("by the model, law of s", "by the guide, law and encoder of s"),
    ("by the model, law of s", "regression, all"),
]


def draw(scores: Scores, sizes: Sizes, path: Path) -> None:
    """Paths of the domains; error and log-density by number of paths."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    rng = np.random.default_rng(0)
    for i, swerve in enumerate((*KNOWN, TEST)):
        paths = simulate(8, swerve, rng)
        both = np.concatenate([paths.x, paths.y], 1).reshape(8, -1, 2)
        label = "new domain" if swerve == TEST else f"domain {i + 1}"
        for j, one in enumerate(both):
            axes[0].plot(*one.T, color=f"C{i}", linewidth=0.8, label=None if j else label)
    axes[0].set(xlabel="m", ylabel="m", title="paths")
    axes[0].legend(fontsize=7)
    for axis, field, title in zip(
        axes[1:], ("ade", "nats"), ("mean distance, m", "nats per path"), strict=True
    ):
        for i, name in enumerate(dict.fromkeys(name for name, _ in scores)):
            nums = [n for other, n in scores if other == name]
            means = [np.mean([getattr(s, field) for s in scores[name, n]]) for n in nums]
            if nums != [0]:
                axis.plot(nums, means, "o-", color=f"C{i}", markersize=3, label=name)
            else:
                axis.axhline(means[0], color=f"C{i}", linestyle=":", linewidth=1, label=name)
        axis.set(xscale="log", xlabel="paths of the new domain", title=title)
        axis.set_xticks(sizes.few, [str(n) for n in sizes.few])
    axes[1].legend(fontsize=6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def record(scores: Scores, correlations: np.ndarray, sizes: Sizes) -> None:
    """The errors, and the differences that the claim is about."""
    for field, what, digits in (
        ("ade", "mean distance of the predicted path, m", 3),
        ("nats", "log-density of the future, nats per path", 1),
    ):
        columns = {
            f"{name}{f', {num} paths' if num else ''}": [getattr(s, field) for s in rows]
            for (name, num), rows in scores.items()
            if num in (0, min(sizes.few), max(sizes.few))
        }
        record_figure(
            f"structure/domain_adaptation_{field}",
            what=f"paths in a domain that was not trained on, by what is adapted to few of its paths: {what}; spread: standard "
            "deviation over seeds",
            value={name: np.mean(x) for name, x in columns.items()},
            spread={name: np.std(x, ddof=1) for name, x in columns.items()},
            seeds=len(next(iter(scores.values()))),
            digits=digits,
            note=f"guide's means and true causes: correlation {correlations[:, 0].mean():.2f}, of s alone "
            f"{correlations[:, 1].mean():.2f}" if field == "ade" else None,
            measures=["ppl/densities"],
        )  # fmt: skip
    differences = {
        f"{one} less {other}, {num} paths": difference(scores, one, other, num, "ade")
        for one, other in COMPARED
        for num in (min(sizes.few), max(sizes.few))
    }
    record_figure(
        "structure/domain_adaptation_differences",
        what="paths in a domain that was not trained on, mean distance of the predicted path, m, differences; spread: half of "
        "the 95 % interval over seeds",
        value={name: mean for name, (mean, _) in differences.items()},
        spread={name: half for name, (_, half) in differences.items()},
        seeds=len(next(iter(scores.values()))),
        claim="adapting the specific cause to a few batches beats adapting all",
        claimed_by="Shirahmad Gale Bagi et al. 2023, pedestrians",
        measures=["ppl/densities"],
    )


def main(arguments: list[str] | None = None) -> Scores:
    parser = argparse.ArgumentParser(description="Adapting one cause to a new domain.")
    parser.add_argument("--smoke", action="store_true", help="a size that ends in seconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("domain_adaptation_output"))
    options = parsed(parser, arguments)
    sizes, num_seeds = (SMOKE, 1) if options.smoke else (Sizes(), options.seeds)

    tools, ones, correlations = machinery(sizes), [], []
    for seed in range(num_seeds):
        ones.append(trained(seed, sizes, tools))
        correlations.append(correlation(tools.programs.untold, ones[-1].causal, ones[-1].known))
        print(
            f"seed {seed}: guide's means and true causes, correlation {correlations[-1][0]:.2f}, of s alone "
            f"{correlations[-1][1]:.2f}",
            flush=True,
        )
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
        record(scores, np.array(correlations), sizes)
    return scores


if __name__ == "__main__":
    main()
