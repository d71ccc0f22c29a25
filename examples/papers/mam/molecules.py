"""Molecules by a marginalization model: tokens of SMILES in any order, fragments completed on both sides.

What it shows: what `text.py` does with letters, on strings that have a grammar: brackets and rings close. A draw in any order
has to leave room for what closes later, or opens earlier; a fragment anywhere in a molecule can be kept, and the rest drawn
around it.

Data: the molecules of the MOSES benchmark (Polykovskiy et al. 2020, arXiv:1811.12823), which ship inside the wheel of `molsets`
(MIT licence). Only its two files are read; what the package depends on is not needed, and does not install everywhere:

    pip install --no-deps molsets

The first 200,000 molecules of the training split, and 200 of the test split. A token is an atom, a bond, a bracket or a ring
number; rows are filled with blanks to the length of the longest.

Source: Liu, Ramadge and Adams 2024, arXiv:2310.12920, table 2: 0.655 bits a place in any order and 0.652 by five, for 57 places
of characters, 25.9 and 25.8 nats a molecule (12 blocks of width 768, up to 200 epochs of 1.4 million molecules); Spearman and
Pearson of the marginal network 0.998 and 0.995 after thinning to 2 nats.

Expected, trained for minutes, nats a molecule: in any order about what counts of the four tokens before need, and far more than a
transformer of the same size and as many steps from left to right: to know the ring numbers and brackets of one order is easier.
Few draws are well formed in any order, more where a gap is filled; three in four of the left-to-right transformer's. Figures:
docs/_data/figures, marginalization/molecules. Run time: twenty minutes of processor time.

    python examples/papers/mam/molecules.py [--smoke] [--out molecules_output] [--record]
"""

import argparse
import csv
import gzip
import importlib.metadata
import itertools
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _sequences import Config, Gap, backoff, draw, fill, measure, report, text_of, train_causal
from _two_stages import Stages, in_words, leave, train

from lapilli.models import mam

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

TOKEN = re.compile(r"\[[^]]*\]|Br|Cl|.")
BLANK = " "
FRAGMENT = 12  # tokens that are kept, or hidden
NUM_TRAIN, NUM_DRAWN = 200_000, 1_000

FULL = Config(Stages(5_000, 2_000, 3_000, 1_500, 64, 3e-3), depth=2, gap=2.0)
SMOKE = Config(Stages(60, 40, 250, 250, 32, 5e-3), 16, 1, 2, 20, 2, 5, 2.0, 2)


# Data.


def read(part: str, count: int) -> list[str]:
    """The first SMILES of a part of MOSES, "train" or "test".

    Raises:
        ImportError: molsets is not installed.
    """
    try:
        package = importlib.metadata.distribution("molsets")
    except importlib.metadata.PackageNotFoundError as err:
        raise ImportError(
            "molecules.py reads the molecules of MOSES from the package molsets, which is not installed: "
            "pip install --no-deps molsets (its own dependencies are not needed)."
        ) from err
    path = Path(str(package.locate_file(f"moses/dataset/data/{part}.csv.gz")))
    with gzip.open(path, "rt", encoding="ascii") as file:
        return [row["SMILES"] for row in itertools.islice(csv.DictReader(file), count)]


class Molecules(NamedTuple):
    """Molecules as rows of numbers of tokens, 0 for the blanks after the end."""

    train: np.ndarray
    test: np.ndarray
    symbols: tuple[str, ...]


def encode(train: list[str], test: list[str]) -> Molecules:
    """Rows of equal length; the tokens are those of both parts."""
    split = [[TOKEN.findall(smiles) for smiles in part] for part in (train, test)]
    size = max(len(tokens) for part in split for tokens in part)
    known = {token for part in split for tokens in part for token in tokens}
    symbols = (BLANK, *sorted(known))
    number = {token: i for i, token in enumerate(symbols)}
    rows = [
        np.array([[number[t] for t in tokens] + [0] * (size - len(tokens)) for tokens in part], np.int32)
        for part in split
    ]  # fmt: skip
    return Molecules(*rows, symbols)


def counts(molecules: Molecules) -> dict[str, float]:
    """Log-likelihoods of a molecule by counts, nats; where a molecule begins is given."""
    start = len(molecules.symbols)
    found = {}
    for context in (0, 2, 4):
        rows = [np.pad(x, ((0, 0), (context, 0)), constant_values=start) for x in molecules[:2]]
        name = f"counts, {context} tokens before" if context else "frequency of tokens"
        found[name] = backoff(*rows, start + 1, context, context)
    return found


# Grammar.


def is_well_formed(smiles: str) -> bool:
    """Whether brackets and rings close, and bonds and brackets stand where they may; valences are not looked at.

    A string is read from left to right: `last` is the kind of what was read before.
    """
    last, depth, rings = "start", 0, set()
    for token in TOKEN.findall(smiles):
        if token in "()" and last not in ("atom", "ring", ")"):
            return False
        if token == "(":
            depth, last = depth + 1, "("
        elif token == ")":
            depth, last = depth - 1, ")"
        elif token in "-=#:/\\":
            if last in ("start", "bond"):
                return False
            last = "bond"
        elif token.isdigit():
            if last not in ("atom", "ring", "bond"):
                return False
            rings, last = rings ^ {token}, "ring"
        elif token[0].isalpha() or token[0] + token[-1] == "[]":
            last = "atom"
        else:
            return False  # a blank before the end, a bracket that does not close
        if depth < 0:
            return False
    return not depth and not rings and last in ("atom", "ring", ")")


def share(rows: np.ndarray, symbols: tuple[str, ...]) -> str:
    """Share of well-formed rows and its standard error."""
    fine = [is_well_formed(text_of(row, symbols).rstrip()) for row in rows]
    p = float(np.mean(fine))
    return f"{p:.3f} +- {np.sqrt(p * (1 - p) / len(fine)):.3f}"


# Fragments.


def masks(row: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of a molecule, by name: the places of a fragment around its middle, or all others."""
    place, middle = np.arange(len(row)), (row > 0).sum() // 2
    inside = (place >= middle - FRAGMENT // 2) & (place < middle + FRAGMENT // 2)
    return {
        "a gap in the middle": ~inside,
        "the first half": place < middle,
        "a fragment in the middle": inside,
    }


def grammar(
    networks: mam.Pair, causal: mam.CausalTransformer, molecules: Molecules, key: jax.Array
) -> dict[str, str]:
    """Share of draws that are well formed, by how they are drawn."""
    model, symbols, size = mam.MaM(networks), molecules.symbols, molecules.test.shape[1]
    keys = jax.random.split(key, 3)
    rows = {
        "any order": model.sample(keys[0], (NUM_DRAWN,)),
        "the same from left to right": model.with_order(np.arange(size)).sample(keys[1], (NUM_DRAWN,)),
        "left-to-right transformer": jax.vmap(causal.sample)(jax.random.split(keys[2], NUM_DRAWN)),
    }  # fmt: skip
    for i, name in enumerate(masks(molecules.test[0])):
        observed = np.stack([masks(row)[name] for row in molecules.test])
        draw_key = jax.random.fold_in(key, i)
        rows[f"given {name}"] = model.condition(molecules.test, observed).sample(draw_key, (5,))
    return {name: share(np.reshape(x, (-1, size)), symbols) for name, x in rows.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Molecules in any order.")
    parser.add_argument("--smoke", action="store_true", help="small networks, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("molecules_output"))
    options = parsed(parser, arguments)
    config = SMOKE if options.smoke else FULL
    keys = jax.random.split(jax.random.key(options.seed), 6)
    init_key, train_key, measure_key, fill_key, causal_key, grammar_key = keys

    num_train = 5_000 if options.smoke else NUM_TRAIN
    molecules = encode(read("train", num_train), read("test", config.num_test))
    x, test, symbols = molecules
    start = time.perf_counter()
    blank = mam.transformers(x.shape[1], len(symbols), **config.sizes, key=init_key)
    trained = train(blank, x, config.stages, train_key)
    took = time.perf_counter() - start
    causal = train_causal(x, len(symbols), config, causal_key)
    result = measure(trained, causal, test, config, measure_key)
    result = result._replace(log_likelihood=counts(molecules) | result.log_likelihood)
    tokens = float((test > 0).sum(1).mean()) + 1  # the end counts
    units = {"nats a molecule": 1.0, "nats a token": 1 / tokens, "bits a place of 57": 1 / (57 * np.log(2))}  # fmt: skip
    text = f"{x.shape[1]} places, {len(symbols)} symbols; trained in {took:.0f} s\n"
    text += report(result, "test molecules", units)
    shares = grammar(trained, causal, molecules, grammar_key)
    text += "\n\nshare of draws that are well formed\n"
    text += "\n".join(f"  {name:<36} {value}" for name, value in shares.items())
    show = lambda *row: text_of(row[0], symbols, *row[1:]).rstrip()
    gaps = {
        name: Gap(row, masks(row)[name]) for name, row in zip(masks(test[0]), test, strict=False)
    }
    filled, draws = fill(mam.MaM(trained), gaps, show, config.num_draws, fill_key)
    draw(result, 1 / (x.shape[1] * np.log(2)), options.out / "molecules.png")
    leave(f"{text}\n\n{filled}", draws, "token", options.out)
    if options.record:
        record_figure(
            "marginalization/molecules",
            what=f"MOSES molecules as SMILES tokens, {num_train:,} to learn from, test nats a molecule",
            value={n: -v for n, v in result.log_likelihood.items() if n != "marginal network"},
            seeds=str(options.seed),
            claim="any order 25.9, trained for long",
            claimed_by="the paper",
            note=f"{in_words(result.error, result.correlations)}; share of draws that are well formed: "
            + "; ".join(f"{name} {value}" for name, value in shares.items()),
            digits=1,
            measures=["models/mam"],
            packages=["molsets"],
        )


if __name__ == "__main__":
    main()
