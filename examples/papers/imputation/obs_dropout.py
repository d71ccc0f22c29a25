"""When does ObsDropout help? Three classifiers, four pairs of missingness in training and at test, with and without it.

What it shows: supnotMIWAE (Kim et al. 2023, arXiv:2308.06738) trains imputation and classification together. A classifier that
can tell observed cells from generated ones may come to rely on the former alone; ObsDropout shows it generated values also
where observed ones stand. Whether there is something to cure depends on what the classifier sees:

- "mask-blind": values only, and generated ones start near Gaussian process regression (`has_skip`). This is the default recipe;
- "with mask": the same, and which cells are observed (`sees_mask`);
- "decay and mask, no skip": the same, missing cells are drawn towards the last value seen (`has_decay`, as in the paper), and
  generated values start from an untrained decoder (`has_skip=False`).

Data: ItalyPowerDemand, 53 training, 14 validation, 1,029 test series of 24 steps. Cells are hidden at random, a share of .5 or .1
in training, of .5, .8 or .1 at test. Rate 0.3 is the paper's; parameters are those with the best NLL on validation series, whose
cells are hidden as in training. Nothing is chosen on test series. Each seed has masks, split and initial values of its own, which
the fits with and without ObsDropout share: differences are paired, with 95% t intervals over seeds. All seeds are trained side by
side.

A last column tells whether the choice between the two can be made beforehand: by the NLL on validation series of which further
cells are hidden, as many as at test; on validation series as they are; or by taking ObsDropout always.

Published: ObsDropout makes generated values informative, predictions more accurate and better calibrated (abstract).

Expected: nothing with the default classifier, which cannot tell generated cells; more accurate with the others where half of the
cells or more are hidden at test (0.04 to 0.11), and better calibrated with the last; nothing where a tenth is hidden in training
and at test. The page docs/explain/reproduced.md has the table. Run time: half an hour of processor time.

    python examples/papers/imputation/obs_dropout.py [--smoke] [--seeds 5] [--data ItalyPowerDemand] [--out obs_dropout_output]
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from protocol import scores

from lapilli import inference
from lapilli.models import imputation

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _intervals import draw_intervals, interval
from _record import parsed, record_figure

DROPOUT = 0.3
ROWS = {
    "mask-blind": {},
    "with mask": {"sees_mask": True},
    "decay and mask, no skip": {"sees_mask": True, "has_decay": True, "has_skip": False},
}
COLUMNS = {".5 -> .5": (0.5, 0.5), ".5 -> .8": (0.5, 0.8), ".1 -> .8": (0.1, 0.8), ".1 -> .1": (0.1, 0.1)}  # fmt: skip
MEASURES = ("accuracy", "nll", "ece", "mae", "valid_nll", "shifted_nll")


class Config(NamedTuple):
    """Sizes of the experiment."""

    data: str = "ItalyPowerDemand"
    num_seeds: int = 5
    num_hidden: int = 32
    num_steps: int = 300
    check_every: int = 50
    batch_size: int = 64
    num_particles: int = 5
    num_draws: int = 50
    num_masks: int = 8
    num_tests: int = 10_000


def tasks(config: Config, rates: tuple[float, float]) -> list[protocol.Problem]:
    """A problem for each seed."""
    name, (rate, test_rate) = config.data, rates
    return [
        protocol.problem(name, "mcar", rate, seed, test_rate=test_rate)
        for seed in range(config.num_seeds)
    ]


def stacked(parts: list[imputation.Series]) -> imputation.Series:
    """Series of several problems, with a leading axis."""
    return jax.tree.map(lambda *a: jnp.stack([jnp.asarray(x) for x in a]), *parts)


def programs(config: Config, row: str, task: protocol.Problem, key: Any) -> imputation.Imputer:
    size = task.truth.shape[-1]
    return imputation.programs(
        size, num_classes=task.num_classes, num_hidden=config.num_hidden, classifier="conv",
        length_scale=3.0, num_latents=max(size, 4), key=key, **ROWS[row],
    )  # fmt: skip


def trained(
    config: Config, row: str, dropout: float, lanes: list[protocol.Problem], keys: jax.Array
) -> Any:
    """Parameters of a fit for each lane, those with the best validation NLL, and that NLL."""
    template = programs(config, row, lanes[0], jax.random.key(0))
    model = imputation.obs_dropout(template.model, dropout)
    num_rows = len(lanes[0].train.values)
    size = min(config.batch_size, num_rows)
    bound = inference.iwelbo(
        model, template.guide, num_particles=config.num_particles, per="rows", check_jumps=False
    ).with_plate_sizes({"rows": num_rows})
    params_0 = bound.init(jax.random.key(0), lanes[0].train)
    bound.plan(params_0, lanes[0].train)  # every check, once
    steps = config.num_steps
    schedule = optax.warmup_cosine_decay_schedule(0, 0.02, max(1, steps // 20), steps)
    labels = {name: "classifier" if name == "classifier" else "others" for name in params_0}
    optimizer = optax.partition(
        {
            "classifier": optax.adamw(schedule, weight_decay=0.1),
            "others": optax.chain(optax.clip_by_global_norm(1e3), optax.adam(schedule)),
        },
        type(params_0)(labels, params_0.constraints),
    )

    def one(key: jax.Array, train: imputation.Series, valid: imputation.Series) -> Any:
        init_key, key = jax.random.split(key)
        imputer = programs(config, row, lanes[0], init_key)
        params = type(params_0)(
            imputer.model.init(init_key, train) | imputer.guide.init(init_key, train),
            params_0.constraints,
        )

        def step(carry: Any, t: jax.Array) -> Any:
            params, state = carry
            rows_key, key_t = jax.random.split(jax.random.fold_in(key, t))
            rows = jax.random.choice(rows_key, num_rows, (size,), replace=False)
            batch = jax.tree.map(lambda a: a[rows], train)
            grads = bound.grad(params, key_t, batch)
            updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state, params)
            return (optax.apply_updates(params, updates), state), None

        def block(carry: Any, number: jax.Array) -> Any:
            *state, best, least = carry
            times = number * config.check_every + jnp.arange(config.check_every)
            state, _ = jax.lax.scan(step, tuple(state), times)
            log_y = log_probs(
                config, template, state[0], valid, jax.random.fold_in(key, config.num_steps)
            )[0]
            nll = -jnp.take_along_axis(log_y, valid.labels[:, None], 1).mean()
            best = jax.tree.map(lambda a, b: jnp.where(nll < least, a, b), state[0], best)
            return (*state, best, jnp.minimum(nll, least)), None

        start = (params, optimizer.init(params), params, jnp.inf)
        carry, _ = jax.lax.scan(block, start, jnp.arange(steps // config.check_every))
        return carry[2:]

    sets = (stacked([task.train for task in lanes]), stacked([task.valid for task in lanes]))
    return jax.jit(jax.vmap(one))(keys, *sets)


def log_probs(
    config: Config, imputer: imputation.Imputer, params: Any, data: imputation.Series, key: Any
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of classes [series, classes] and means of cells, by weighted draws."""
    model, guide = imputer.model.bind(params), imputer.guide.bind(params)
    found = imputation.draws(model, guide, data._replace(labels=None), key, config.num_draws, 1)
    log_weights = jax.nn.log_softmax(found.log_weights[:, 0], 0)
    log_y = jax.nn.log_softmax(found.logits[:, 0])
    mean = (jnp.exp(log_weights)[..., None, None] * found.x_loc).sum(0)
    return jax.nn.logsumexp(log_weights[..., None] + log_y, 0), mean


def further_hidden(
    config: Config, data: imputation.Series, rate: float, test_rate: float, seed: int
) -> imputation.Series:
    """Copies of series of which so many more cells are hidden at random that a share of `test_rate` is."""
    rng = np.random.default_rng([seed, 3])
    rows = np.tile(np.arange(len(data.values)), config.num_masks)
    copies = data.rows(rows)
    share = (1 - test_rate) / (1 - rate)
    return copies.hidden(rng.random(copies.values.shape) < share)


def run(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Each measure by "row | column | with or without", [seeds]."""
    found: dict[str, dict[str, np.ndarray]] = {}
    by_column = {title: tasks(config, rates) for title, rates in COLUMNS.items()}
    rates = list(dict.fromkeys(rate for rate, _ in COLUMNS.values()))
    first = {rate: next(t for t, pair in COLUMNS.items() if pair[0] == rate) for rate in rates}
    lanes = [task for rate in rates for task in by_column[first[rate]]]
    keys = jnp.tile(jax.random.split(jax.random.key(1), config.num_seeds), len(rates))
    for row in ROWS:
        imputer = programs(config, row, lanes[0], jax.random.key(0))
        predict = jax.jit(functools.partial(log_probs, config, imputer))
        for title, dropout in (("without", 0.0), ("with", DROPOUT)):
            start = time.process_time()
            params, valid_nll = trained(config, row, dropout, lanes, keys)
            for column, (rate, test_rate) in COLUMNS.items():
                values = []
                for seed, task in enumerate(by_column[column]):
                    lane = rates.index(rate) * config.num_seeds + seed
                    own = jax.tree.map(lambda a, lane=lane: a[lane], params)
                    row_scores = scored(config, task, seed, (rate, test_rate), predict, own)
                    values.append(row_scores | {"valid_nll": float(valid_nll[lane])})
                found[f"{row} | {column} | {title}"] = {
                    m: np.array([v[m] for v in values]) for m in MEASURES
                }
            print(
                f"{row}, {title}: {time.process_time() - start:.0f} s of processor time", flush=True
            )
    return found


def scored(
    config: Config, task: protocol.Problem, seed: int, rates: tuple[float, float], predict: Any, params: Any
) -> dict[str, float]:  # fmt: skip
    """Scores of the test series, and the NLL of validation series of which as many cells are hidden."""
    test = task.test.rows(slice(0, config.num_tests))
    held = further_hidden(config, task.valid, *rates, seed)
    both = protocol.joined(test, held)  # one shape
    log_y, mean = (np.asarray(a, float) for a in predict(params, both, jax.random.key(seed)))
    probs = np.exp(log_y)
    probs /= probs.sum(-1, keepdims=True)
    size = len(test.values)
    cells = imputation.cell_scores(
        task.truth[:size], task.hidden[:size], task.units.undo(mean[:size])
    )
    classes = scores.classification(probs[:size], np.asarray(test.labels))
    return classes | cells | {"shifted_nll": scores.nll(probs[size:], np.asarray(held.labels))}


def differences(found: Any, measure: str) -> dict[str, tuple[float, float]]:
    """With ObsDropout minus without, by "row, column"."""
    return {
        f"{row}, {column}": interval(
            found[f"{row} | {column} | with"][measure]
            - found[f"{row} | {column} | without"][measure]
        )
        for row in ROWS
        for column in COLUMNS
    }


def against_default(found: Any, measure: str) -> dict[str, tuple[float, float]]:
    """Mask-blind minus each other classifier, all with ObsDropout, by "row, column"."""
    default, *others = ROWS
    return {
        f"{row}, {column}": interval(
            found[f"{default} | {column} | with"][measure]
            - found[f"{row} | {column} | with"][measure]
        )
        for row in others
        for column in COLUMNS
    }


def foretold(found: Any) -> dict[str, tuple[int, int, int]]:
    """Seeds in which the better NLL is had by choice on further hidden validation series, on the usual ones, by "with" always."""
    counts = {}
    for row in ROWS:
        for column in COLUMNS:
            less, more = (found[f"{row} | {column} | {w}"] for w in ("without", "with"))
            truth = more["nll"] < less["nll"]
            further, usual = (
                int(((more[m] < less[m]) == truth).sum()) for m in ("shifted_nll", "valid_nll")
            )
            counts[f"{row}, {column}"] = (further, usual, int(truth.sum()))
    return counts


def report(config: Config, found: Any) -> str:
    lines = [
        f"{config.data}, {config.num_seeds} seeds; means without / with ObsDropout, and the paired difference with half of its "
        "95% interval; seeds in which the better NLL is had by a choice on validation series hidden as at test / as in training "
        "/ by ObsDropout always",
        f"{'':<36}" + "".join(f"{m:>34}" for m in ("accuracy", "nll", "ece", "mae"))
        + "   foretold",
    ]  # fmt: skip
    by_measure = {m: differences(found, m) for m in ("accuracy", "nll", "ece", "mae")}
    counts = foretold(found)
    for row in ROWS:
        for column in COLUMNS:
            line, key = f"{row}, {column}".ljust(36), f"{row}, {column}"
            for measure, gaps in by_measure.items():
                levels = [
                    found[f"{row} | {column} | {w}"][measure].mean() for w in ("without", "with")
                ]
                mean, half = gaps[key]
                line += f"{levels[0]:.3f} / {levels[1]:.3f}, {mean:+.3f} +- {half:.3f}".rjust(34)
            lines.append(line + "   {} / {} / {}".format(*counts[key]) + f" of {config.num_seeds}")
    return "\n".join(lines)


def record(config: Config, found: Any) -> None:
    """Figures for docs/_data."""
    where = f"{config.data}, training and test rate of cells hidden at random"
    common: dict[str, Any] = {
        "seeds": config.num_seeds, "time": "half an hour of processor time",
        "measures": ["models/imputation", "examples/papers/imputation/protocol"],
    }  # fmt: skip
    for measure, title in (("accuracy", "accuracy"), ("nll", "NLL"), ("ece", "calibration error")):
        gaps = differences(found, measure)
        record_figure(
            f"missing_data/obs_dropout_{measure}",
            what=f"ObsDropout minus none, {title}, paired, halves of 95% intervals; {where}",
            value={k: v[0] for k, v in gaps.items()},
            spread={k: v[1] for k, v in gaps.items()},
            note="the paper: with ObsDropout more accurate and better calibrated",
            **common,
        )
    levels = {
        f"{key.replace(' | ', ', ')}, {m}": value[m].mean()
        for key, value in found.items()
        for m in ("accuracy", "nll")
    }
    record_figure(
        "missing_data/obs_dropout_levels",
        what=f"means without and with ObsDropout, accuracy and NLL; {where}",
        value=levels, **common,
    )  # fmt: skip
    gaps = against_default(found, "nll")
    record_figure(
        "missing_data/obs_dropout_default",
        what=f"NLL of the mask-blind classifier minus others, all with ObsDropout, paired, halves of 95% intervals; {where}",
        value={k: v[0] for k, v in gaps.items()}, spread={k: v[1] for k, v in gaps.items()}, **common,
    )  # fmt: skip
    votes = np.array(list(foretold(found).values())).sum(0)
    num = len(ROWS) * len(COLUMNS) * config.num_seeds
    record_figure(
        "missing_data/obs_dropout_foretold",
        what=f"cases of {num} in which the better test NLL, with or without ObsDropout, is had by a choice on validation series "
        "hidden as at test / hidden as in training / by ObsDropout always",
        value=" / ".join(map(str, votes)), **common,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    parser = argparse.ArgumentParser(description="Where ObsDropout helps, and where it costs.")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="ItalyPowerDemand")
    parser.add_argument("--out", type=Path, default=Path("obs_dropout_output"))
    options = parsed(parser, arguments)
    config = Config(options.data, options.seeds)
    if options.smoke:
        config = Config(options.data, 2, 8, 4, 2, 20, 2, 4, 2, 100)
    found = run(config)
    plain = {k: {m: a.tolist() for m, a in v.items()} for k, v in found.items()}
    (options.out / "scores.json").write_text(json.dumps(plain, indent=1))
    text = report(config, found)
    print(text)
    (options.out / "report.txt").write_text(text + "\n")
    titles = {"accuracy": "accuracy", "nll": "NLL, nats", "ece": "calibration error"}
    panels = {f"{title}, with less without": differences(found, m) for m, title in titles.items()}
    draw_intervals(panels, options.out / "obs_dropout.png")
    if options.record:
        record(config, found)
    return found


if __name__ == "__main__":
    main()
