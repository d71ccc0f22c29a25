"""Ten random tables of 12 bits, known up to their constant: are all modes kept, and what are estimates of Z worth?

What it shows: 4,096 independent normal energies, scaled so that the leading state has probability 0.38. No state tells anything
of another, so that a mode is found by looking there, and by nothing else. Three ways to train the same networks:

    own       from its own draws, 2,000 steps, as published (`mam.energy(replay=0)`, Liu et al. 2024, arXiv:2310.12920)
    energy    half of the rows replayed from 1,024 tempered particles (`mam.energy`)
    anneal    from tempered particles, with the heavy states known by heart (`mam.anneal`)

Measures: total variation between the sampler's exact law and the table; share of the table that tempered particles find and the
model does not (`mam.bracket`, `unseen`); processor time; and of "anneal" the mean of Z-hat / Z over runs of 128 particles, with
three standard errors: from the spread of the runs ("own"), from both sides (`EvidenceBracket.standard_error`), and the exact one
of as many independent draws, the root of (sum p^2 / q - 1) / n. Published: nothing on lost modes.

Expected: "own" loses most of the table, and weights and effective sample size do not show it; "energy" keeps the modes, and is
as far off as its networks; "anneal" stays below 0.1. The
spread of the runs is too small an error where rare states with large weights were not drawn, of which both sides tell. These know
of independent draws only: where the marginal network is off, particles that are resampled on the way spread more. The larger one
of the two counts.
Settings are those found on the seeds 100 to 104. Run time: twelve minutes of processor time.
Outputs in `random_tables_output/`: random_tables.nc (the numbers of every table), random_tables.png.

    python examples/papers/mam/random_tables.py [--smoke] [--first 0] [--tables 10] [--out FOLDER] [--record]
"""

import argparse
import functools
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from scipy.special import logsumexp

from lapilli import inference
from lapilli.models import mam

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

LEADING = 0.38  # probability of the leading state


class Config(NamedTuple):
    """Sizes of a run."""

    bits: int = 12
    width: int = 128
    energy_steps: int = 2_000
    steps: int = 600
    num_scored: int = 5_000
    patience: int = 300
    tempered: int = 16_384
    runs: int = 100
    particles: int = 128


SMOKE = Config(5, 16, 20, 20, 100, 10, 400, 20, 32)


class Row(NamedTuple):
    """What was found for one table; times in seconds of processor."""

    tv_own: float
    tv_energy: float
    tv_anneal: float
    unseen_own: float
    unseen_energy: float
    unseen_anneal: float
    ratio_energy: float  # Z-hat / Z
    ratio: float  # the same of anneal
    own: float  # its standard error by the spread of the runs
    both: float  # from both sides
    exact: float
    time_own: float
    time_energy: float
    time_anneal: float


def random_table(bits: int, seed: int) -> np.ndarray:
    """Energies [2] * bits: independent normal draws, at the scale where the leading state has probability `LEADING`."""
    z = np.random.default_rng(seed).normal(size=(2,) * bits)
    low, high = 0.1, 60.0
    for _ in range(80):
        c = (low + high) / 2
        low, high = (c, high) if c * z.max() - logsumexp(c * z) < np.log(LEADING) else (low, c)
    return high * z


def look_up(table: jax.Array, x: jax.Array) -> jax.Array:
    """Log f of one row."""
    return table[tuple(x)]


def law(networks: mam.Networks) -> np.ndarray:
    """Exact probabilities of draws in random order, [2] * bits."""
    return np.exp(mam.sampler_law(networks)[(slice(1, None),) * networks.num_variables])


def evidence(networks, log_target, config, key) -> np.ndarray:
    """Log Z-hat of each run."""
    chain = mam.feynman_kac(mam.MaM(networks), log_target)
    run = lambda key: (
        inference.smc(chain, key, num_particles=config.particles, history="none").log_evidence
    )
    keys = jax.random.split(key, config.runs)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys), float)


def run(config: Config, seed: int) -> Row:
    """One table."""
    table = random_table(config.bits, seed)
    log_z = logsumexp(table)
    p = np.exp(table - log_z)
    log_target = functools.partial(look_up, jnp.asarray(table))
    start = mam.residual_mlps(config.bits, 2, width=config.width, key=jax.random.key(seed))

    def trained(replay: float | None) -> tuple[mam.Pair, float]:
        """By `mam.energy`; and seconds."""
        began = time.process_time()
        rate = optax.cosine_decay_schedule(3e-3, config.energy_steps)
        fit = inference.fit(
            mam.energy(start, log_target, sources=mam.RowSources(replay=replay)), optax.adam(rate), (), k_hat="skip",
            num_steps=config.energy_steps, key=jax.random.key(seed + 1000), progress=False,
        )  # fmt: skip
        return start.with_params(fit.params), time.process_time() - began

    own, time_own = trained(0.0)
    energy, time_energy = trained(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is measured below
        began = time.process_time()
        anneal = mam.anneal(
            start, log_target, jax.random.key(seed + 2000),
            num_particles=config.tempered, num_steps=config.steps, num_scored=config.num_scored,
            num_draws=config.num_scored, patience=config.patience,
        )  # fmt: skip
        time_anneal = time.process_time() - began
        both = functools.partial(mam.bracket, log_target=log_target, rows=anneal.rows[1])
        unseen = [both(mam.MaM(n), key=jax.random.key(5)).unseen[0] for n in (own, energy)]
        after = both(mam.MaM(anneal.networks), key=jax.random.key(6), num_rows=config.tempered)

    ratio, of_energy = (
        np.exp(evidence(networks, log_target, config, jax.random.key(4)) - log_z)
        for networks in (anneal.networks, energy)
    )
    number = config.runs * config.particles
    q = law(anneal.networks)
    distance = lambda q: 0.5 * np.abs(p - q).sum()
    return Row(
        distance(law(own)), distance(law(energy)), distance(q), *unseen, after.unseen[0],
        of_energy.mean(), ratio.mean(), ratio.std(ddof=1) / np.sqrt(config.runs),
        after.standard_error(number), np.sqrt(((p**2 / q).sum() - 1) / number),
        time_own, time_energy, time_anneal,
    )  # fmt: skip


HEAD = (
    "seed   TV own, energy, anneal   unseen own, energy, anneal   Z-hat / Z of energy, anneal   errors: own, both sides, exact   "
    "seconds own, energy, anneal"
)


def line(seed: int, row: Row) -> str:
    return (
        f"{seed:4}   {row.tv_own:6.3f}  {row.tv_energy:6.3f}  {row.tv_anneal:6.3f}   {row.unseen_own:10.2f}  "
        f"{row.unseen_energy:6.3f}  {row.unseen_anneal:6.3f}   {row.ratio_energy:19.3f}  {row.ratio:6.4f}   "
        f"{row.own:11.4f}  {row.both:10.4f}  {row.exact:5.4f}   "
        f"{row.time_own:11.1f}  {row.time_energy:6.1f}  {row.time_anneal:6.1f}"
    )


def summary(rows: list[Row]) -> dict[str, float]:
    """The figures of all tables together."""
    found = Row(*np.array(rows).T)
    off = np.abs(found.ratio - 1)
    return {
        "tables": len(rows),
        "TV of own draws, least": found.tv_own.min(),
        "TV of energy, mean": found.tv_energy.mean(),
        "TV of energy, largest": found.tv_energy.max(),
        "TV of anneal, mean": found.tv_anneal.mean(),
        "TV of anneal, largest": found.tv_anneal.max(),
        "unseen by own draws, mean": found.unseen_own.mean(),
        "unseen by energy, mean": found.unseen_energy.mean(),
        "Z-hat / Z of energy, least": found.ratio_energy.min(),
        "|Z-hat / Z - 1|, largest": off.max(),
        "in own errors, largest": (off / found.own).max(),
        "in errors, largest": (off / np.maximum(found.own, found.both)).max(),
        "time over that of energy, median": np.median(found.time_anneal / found.time_energy),
        "time over that of energy, largest": (found.time_anneal / found.time_energy).max(),
    }


# Figures.


def dataset(rows: list[Row], first: int) -> xr.Dataset:
    """The numbers by seed of the table."""
    columns = {
        name: ("seed", np.array(x))
        for name, x in zip(Row._fields, zip(*rows, strict=True), strict=True)
    }
    return xr.Dataset(columns, {"seed": first + np.arange(len(rows))})


def draw(found: xr.Dataset, out: Path) -> None:
    """What is lost of each table, and what its Z is estimated to be."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = {"own": "own draws", "energy": "half replayed", "anneal": "tempered particles"}
    for (name, label), marker in zip(names.items(), "s^o", strict=True):
        left.plot(found["seed"], found[f"tv_{name}"], marker, label=label)
    left.set(xlabel="table", ylabel="total variation", xticks=found["seed"], ylim=(0, 1))
    left.legend(frameon=False)

    errors = np.maximum(found["own"], found["both"])
    right.plot(found["seed"], found["ratio_energy"], "^C1", label="half replayed")
    right.errorbar(
        found["seed"], found["ratio"], 2 * errors, fmt="oC2", label="tempered particles, 2 errors"
    )
    right.axhline(1, color="0.6", lw=0.8)
    right.set(xlabel="table", ylabel="estimated / exact Z", xticks=found["seed"])
    right.legend(frameon=False)
    figure.savefig(out / "random_tables.png", dpi=120)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description="Random tables of 12 bits, learned from energies.")
    parser.add_argument("--smoke", action="store_true", help="two tables of 5 bits, few steps")
    parser.add_argument("--first", type=int, default=0, help="seed of the first table")
    parser.add_argument("--tables", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("random_tables_output"))
    options = parsed(parser, arguments)
    config, count = (SMOKE, 2) if options.smoke else (Config(), options.tables)
    print(HEAD)
    rows = []
    for seed in range(options.first, options.first + count):
        rows.append(run(config, seed))
        print(line(seed, rows[-1]), flush=True)
    for name, value in summary(rows).items():
        print(f"{name:36}{value:8.3f}")
    found = dataset(rows, options.first)
    found.to_netcdf(options.out / "random_tables.nc")
    draw(found, options.out)
    if options.record:
        record_figure(
            "marginalization/random_tables",
            what="random tables of 12 bits learned from their energies: total variation of the sampler, share of the table that "
            "the model hardly ever draws, Z-hat / Z of 12,800 particles in standard errors (own: by the spread of 100 runs; "
            "else this or that from both sides, the larger one), processor time of anneal over that of energy",
            value=summary(rows),
            seeds=f"{options.first} to {options.first + count - 1}",
            measures=["models/mam", "inference/diagnostics/_evidence_bracket.py"],
        )
    return rows


if __name__ == "__main__":
    main()
