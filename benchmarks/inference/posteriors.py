"""Is a posterior right that nobody here wrote, with nothing chosen, and is it said where it is not?

Question: 23 posteriors of posteriordb, programs from `_posteriordb`, single precision, each with several keys, each run in a
process of its own. Columns: `infer`, the same with a fit before its chains, and with a flow in their place; `fit` (a model
alone), `nuts` and `tempered` (`tempered_smc`, of ten minutes at most) of `lapilli.inference`;
NumPyro's NUTS (1,000 + 1,000, four vectorised chains) and AutoNormal (Adam 0.01, 10,000 steps); BlackJAX's Pathfinder of one path
and of several (20, resampled). The others' programs have discrete sites summed out by `ppl.eliminate`, and start uniformly on
(-2, 2), NumPyro's rule.

A posterior is wrong if a mean is off by more than 0.3 standard deviations of the reference, or a standard deviation by a
factor outside of 0.7 to 1.43. It is warned of if something says so: a warning of lapilli, R-hat above 1.01 or a divergence of
NumPyro's NUTS, a k-hat above 0.7 of the resampled Pathfinder; AutoNormal and one path say nothing. Seconds are of the
processor, compilation included, imports not.

    python benchmarks/inference/posteriors.py [--columns infer fit ...] [--names NAME ...] [--keys 3] [--to FILE] [--record]
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NUM_DRAWS, MOST_SECONDS = 4000, 600.0
MEAN_OFF, SD_RATIO = 0.3, 1.43
OURS = ("infer", "fit", "nuts", "tempered", "infer, fit first", "infer, flow")
PEERS = ("NumPyro NUTS", "NumPyro AutoNormal", "BlackJAX Pathfinder", "BlackJAX multi-path")


class Found(NamedTuple):
    """Draws of the sites, [S, ...] each, their weights (None: equal), what was said against them, and gradients of chains."""

    choices: Mapping[str, Any]
    weights: np.ndarray | None = None
    said: tuple[str, ...] = ()
    gradients: int = 0


def by_infer(
    posterior: Any, args: dict[str, Any], key: Any, methods: tuple[str, ...] | None = None
) -> Found:
    from lapilli import inference

    infer = functools.partial(inference.infer, progress=False)
    infer = infer if methods is None else functools.partial(infer, methods=methods)
    draws = infer(posterior.model, args=args, key=key)
    return Found(draws.choices, gradients=sum(a.gradients for a in draws.certificate.attempts))


def by_fit_first(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    return by_infer(posterior, args, key, ("eliminate", "fit", "nuts"))


def by_flow(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    return by_infer(posterior, args, key, ("eliminate", "flow"))


def by_fit(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    import jax

    from lapilli import inference

    fit = inference.fit(posterior.model, args=args, key=key, progress=False)
    return Found(fit.posterior(jax.random.fold_in(key, 1), NUM_DRAWS).choices)


def by_nuts(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    from lapilli import inference

    return Found(inference.nuts(summed(posterior), args=args, key=key, progress=False).choices)


def by_tempered(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    from lapilli import inference

    run = inference.tempered_smc(summed(posterior), key, *args.values(), max_seconds=MOST_SECONDS)
    weights = np.exp(np.asarray(run.log_weights, float))
    return Found(run.particles, weights / weights.sum())


def by_numpyro_nuts(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    from numpyro.diagnostics import split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    chains = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(NUTS(summed(posterior)), num_warmup=1000, num_samples=1000, **chains)
    mcmc.run(key, **args)
    grouped = mcmc.get_samples(group_by_chain=True).values()
    r_hat = max(float(np.max(split_gelman_rubin(np.asarray(x)))) for x in grouped)
    divergent = int(mcmc.get_extra_fields()["diverging"].sum())
    said = [] if r_hat <= 1.01 else [f"R-hat {r_hat:.2f}"]
    said += [f"{divergent} divergences"] if divergent else []
    return Found(mcmc.get_samples(), said=tuple(said))


def by_numpyro_autonormal(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    model = summed(posterior)
    guide = AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    params = svi.run(key, 10_000, progress_bar=False, **args).params
    draws = guide.sample_posterior(
        jax.random.fold_in(key, 1), params, sample_shape=(NUM_DRAWS,), **args
    )
    return Found(draws)


def by_blackjax_pathfinder(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    import blackjax
    import jax

    density, starts, values = unconstrained(posterior, args, key, 1)
    start = jax.tree.map(lambda x: x[0], starts)
    state, _ = jax.jit(lambda k: blackjax.vi.pathfinder.approximate(k, density, start))(key)
    draws, _ = blackjax.vi.pathfinder.sample(jax.random.fold_in(key, 1), state, NUM_DRAWS)
    return Found(values(draws))


def by_blackjax_multipath(posterior: Any, args: dict[str, Any], key: Any) -> Found:
    import jax
    from blackjax.vi import multipathfinder

    density, starts, values = unconstrained(posterior, args, key, 20)
    run = jax.jit(lambda k: multipathfinder.multi_approximate(k, density, starts))
    state, _ = run(key)
    log_weights, k_hat = multipathfinder.psis_weights(state)
    draws = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state.samples)
    weights = np.exp(np.asarray(log_weights, float))
    said = () if float(k_hat) <= 0.7 else (f"k-hat {float(k_hat):.2f}",)
    return Found(values(draws), weights / weights.sum(), said)


COLUMNS: dict[str, Callable[[Any, dict[str, Any], Any], Found]] = {
    "infer": by_infer,
    "infer, fit first": by_fit_first,
    "infer, flow": by_flow,
    "fit": by_fit,
    "nuts": by_nuts,
    "tempered": by_tempered,
    "NumPyro NUTS": by_numpyro_nuts,
    "NumPyro AutoNormal": by_numpyro_autonormal,
    "BlackJAX Pathfinder": by_blackjax_pathfinder,
    "BlackJAX multi-path": by_blackjax_multipath,
}


def summed(posterior: Any) -> Any:
    """The program without its discrete sites."""
    from lapilli import ppl

    sites = list(posterior.discrete)
    return ppl.eliminate(posterior.model, sites) if sites else posterior.model


def unconstrained(
    posterior: Any, args: dict[str, Any], key: Any, num: int
) -> tuple[Callable[[Any], Any], Any, Callable[[Any], Any]]:
    """The log-density on the unconstrained scale, starting points [num, ...], and the way back for draws."""
    import jax
    from numpyro.infer.util import initialize_model

    model = initialize_model(jax.random.split(key, num), summed(posterior), model_kwargs=args)
    return (
        lambda z: -model.potential_fn(z),
        model.param_info.z,
        jax.jit(jax.vmap(model.postprocess_fn)),
    )


def compared(found: Found, posterior: Any) -> dict[str, Any]:
    """The worst error of a mean, in standard deviations, the extreme ratios of standard deviations, and whether it is wrong."""
    draws = posterior.parameters({n: np.asarray(x) for n, x in found.choices.items()})
    off, ratios, names = [], [], []
    for name, (mean, sd) in posterior.reference().items():
        x = np.asarray(draws[name], float)
        weights = np.full(len(x), 1 / len(x)) if found.weights is None else found.weights
        own = np.tensordot(weights, x, 1)
        spread = np.sqrt(np.tensordot(weights, (x - own) ** 2, 1))
        if own.shape != mean.shape:
            raise ValueError(f"{name} has shape {own.shape}, in the reference {mean.shape}.")
        off += np.ravel(np.abs(own - mean) / sd).tolist()
        ratios += np.ravel(spread / sd).tolist()
        names += [name] * mean.size
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    low, high = min(ratios), max(ratios)
    is_right = off[worst] <= MEAN_OFF and low >= 1 / SD_RATIO and high <= SD_RATIO
    return {"off": off[worst], "at": names[worst], "low": low, "high": high, "right": is_right}


def run_one(name: str, column: str, key: int) -> dict[str, Any]:
    """One row of the results."""
    import jax
    from _posteriordb import POSTERIORS

    posterior = POSTERIORS[name]
    args = posterior.args()
    row: dict[str, Any] = {"name": name, "column": column, "key": key}
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = COLUMNS[column](posterior, args, jax.random.key(key))
            row |= {"seconds": time.process_time() - start, **compared(found, posterior)}
            row |= {"gradients": found.gradients} if found.gradients else {}
            said = list(found.said)
        except Exception as err:  # a row of its own
            row |= {"seconds": time.process_time() - start, "error": f"{type(err).__name__}: {err}"}
            said = []
    if column in OURS:
        said += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return row | {"said": [" ".join(text.split())[:300] for text in said]}


def in_process(name: str, column: str, key: int) -> dict[str, Any]:
    """`run_one` in a process of its own, where nothing has been compiled."""
    command = [sys.executable, __file__, "--one", name, column, str(key)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        told = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        return {"name": name, "column": column, "key": key, "error": told[0], "said": []}
    return json.loads(lines[-1])


def verdict(row: dict[str, Any]) -> str:
    """Right or wrong, silent or warned; or an error."""
    if "error" in row:
        return "error"
    kind = "right" if row["right"] else "wrong"
    return f"{kind}, {'warned' if row['said'] else 'silent'}"


VERDICTS = ("right, silent", "right, warned", "wrong, warned", "wrong, silent", "error")


def show(row: dict[str, Any]) -> None:
    """One line."""
    head = f"{row['name'][:34]:<35}{row['column']:<20}{row['key']:>2}  {verdict(row):<14}"
    if "error" in row:
        print(head, row["error"][:120], flush=True)
        return
    figures = (
        f"off {row['off']:8.3g} sd ({row['at']}), sd ratio {row['low']:.2f} to {row['high']:.2f}"
    )
    said = f"; {row['said'][0][:90]}" if row["said"] else ""
    print(f"{head}{figures}, {row['seconds']:.1f} s{said}", flush=True)


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Counts of verdicts and median processor seconds, by column."""
    found = {}
    for column in COLUMNS:
        own = [row for row in rows if row["column"] == column]
        if own:
            told = [verdict(row) for row in own]
            found[column] = {v: told.count(v) for v in VERDICTS} | {
                "runs": len(own),
                "seconds": float(np.median([row.get("seconds", np.nan) for row in own])),
            }
    return found


def keys_of(rows: list[dict[str, Any]]) -> str:
    """The keys of the columns, those with equal keys together: "0, 1, 2; of BlackJAX Pathfinder 0"."""
    by_keys: dict[tuple[int, ...], list[str]] = {}
    for column in COLUMNS:
        keys = tuple(sorted({row["key"] for row in rows if row["column"] == column}))
        if keys:
            by_keys.setdefault(keys, []).append(column)
    most = max(by_keys, key=len)
    fewer = [(k, columns) for k, columns in by_keys.items() if k != most]
    told = [f"of {', '.join(columns)} {', '.join(map(str, k))}" for k, columns in fewer]
    return "; ".join([", ".join(map(str, most)), *told])


def record(found: dict[str, dict[str, float]], names: int, rows: list[dict[str, Any]]) -> None:
    """The figures, for the page of figures: of columns with a run for each posterior."""
    texts = {
        column: " / ".join(str(int(row[v])) for v in VERDICTS)
        + f" of {int(row['runs'])}; {row['seconds']:.1f} s"
        for column, row in found.items()
        if row["runs"] >= names
    }
    sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
    from _record import record_figure

    record_figure(
        "posteriors/posteriordb",
        what=f"{names} posteriors of posteriordb, nothing chosen: right in silence / right and warned of / wrong and warned of / "
        "wrong in silence / error, of so many runs, and median processor seconds",
        value={column: told for column, told in texts.items() if column in OURS},
        claim=", ".join(f"{column} {told}" for column, told in texts.items() if column in PEERS),
        seeds=keys_of(rows),
        time=f"{sum(row.get('seconds', 0.0) for row in rows) / 60:.0f} minutes of processor time",
        measures=["inference", "benchmarks/inference/_posteriordb"],
        packages=["blackjax"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Posteriors of posteriordb by many ways.")
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--names", nargs="+", help="default: all")
    parser.add_argument("--keys", type=int, default=3)
    parser.add_argument(
        "--to", help="file of rows, which are added to; those it has are not run again"
    )
    parser.add_argument("--record", action="store_true", help="write the figures to docs/_data")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, column, key = options.one
        print(json.dumps(run_one(name, column, int(key))))
        return
    from _posteriordb import POSTERIORS

    names = options.names or list(POSTERIORS)
    rows: list[dict[str, Any]] = []
    if options.to and Path(options.to).exists():
        rows = [json.loads(line) for line in Path(options.to).read_text().splitlines()]
    known = {(row["name"], row["column"], row["key"]) for row in rows}
    for name in names:
        for key in range(options.keys):
            for column in options.columns:
                if (name, column, key) in known:
                    continue
                row = in_process(name, column, key)
                rows.append(row)
                show(row)
                if options.to:
                    with open(options.to, "a") as file:
                        file.write(json.dumps(row) + "\n")
    found = summary(rows)
    print(f"{'':<22}" + "".join(f"{v:>15}" for v in (*VERDICTS, "runs", "seconds")))
    for column, row in found.items():
        cells = "".join(f"{row[v]:>15.0f}" for v in (*VERDICTS, "runs"))
        print(f"{column:<22}{cells}{row['seconds']:>15.1f}")
    if options.record:
        record(found, len(names), rows)


if __name__ == "__main__":
    main()
