"""Text by a marginalization model: letters in any order, gaps filled from both sides, any part's probability in one pass.

What it shows: a transformer over positions learns to predict any letters of a line from any others; a second one learns what the
chain of predictions says of every partial line. The first then fills gaps with what stands before and after them in view,
the second says in one pass how probable a line, or any part of it, is.

Data: the language reference that every Python carries along for its `help()` (`pydoc_data.topics`, 375,000 letters and spaces
after lower-casing and turning everything else into single spaces: 27 symbols, as in text8). Lines of 32 characters; the last
tenth is for tests. Python 3.13's text was used for the figures below; other versions differ a little.

Source: Liu, Ramadge and Adams 2024, arXiv:2310.12920, table 3, on text8 (100 million characters, lines of 250, 12 blocks of
width 768): 1.529 bits a character by one order and 1.494 by five; Spearman and Pearson of the marginal network 0.937 and 0.945
after thinning to 10 nats, the weakest of its data sets.

Expected, trained in pieces of the sizes below: far fewer bits a character than the frequencies of characters ask for, and fewer
by five orders than by one; more than counts of the four characters before and a transformer of the same size from left to right,
which know which characters they will be given. The marginal network is off by some nats for a whole line. Short words come out,
longer ones seldom. Figures: docs/_data/figures, marginalization/text. Run time: four minutes on 2 CPU cores.

    python examples/papers/mam/text.py [--smoke] [--out text_output] [--record]
"""

import argparse
import pydoc_data.topics
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np
from _sequences import Config, Gap, backoff, draw, fill, measure, report, text_of, train_causal
from _two_stages import Stages, in_words, leave, train

from lapilli.models import mam

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LENGTH, STRIDE = 32, 8  # of a line; between the starts of lines to train on
HIDDEN = 12

FULL = Config(Stages(2_500, 2_000, 3_000, 1_500, 64, 3e-3))
SMOKE = Config(Stages(60, 40, 250, 250, 32, 5e-3), 16, 1, 2, 20, 2, 5, num_draws=2)


def data(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Lines to train on, which overlap, and lines to test on, which do not and come after them."""
    text = " ".join(pydoc_data.topics.topics.values())
    text = re.sub("[^a-z]+", " ", text.lower())
    symbols = np.array([ALPHABET.index(c) for c in text], np.int32)
    cut = 9 * len(symbols) // 10
    windows = np.lib.stride_tricks.sliding_window_view
    test = windows(symbols[cut:], LENGTH)[::LENGTH]
    some = np.random.default_rng(0).permutation(len(test))[: config.num_test]
    return windows(symbols[:cut], LENGTH)[::STRIDE].copy(), test[some]


def counts(x: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Log-likelihoods of a line by counts, nats."""
    once = x[:: LENGTH // STRIDE]  # lines without overlap: every character counts once
    names = {0: "frequency of characters"} | {c: f"counts, {c} characters before" for c in (2, 4)}
    return {name: backoff(once, test, len(ALPHABET), c) for c, name in names.items()}


def gaps(test: np.ndarray) -> dict[str, Gap]:
    """Some test lines, each with a part hidden."""
    place = np.arange(LENGTH)
    border = (LENGTH - HIDDEN) // 2
    observed = {
        "a gap": (place < border) | (place >= LENGTH - border),
        "every other character": place % 2 == 0,
        "the end": place < LENGTH - HIDDEN,
    }
    return {name: Gap(row, mask) for (name, mask), row in zip(observed.items(), test, strict=False)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Text in any order.")
    parser.add_argument("--smoke", action="store_true", help="small networks, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("text_output"))
    options = parsed(parser, arguments)
    config = SMOKE if options.smoke else FULL
    keys = jax.random.split(jax.random.key(options.seed), 5)
    init_key, train_key, measure_key, fill_key, causal_key = keys

    x, test = data(config)
    start = time.perf_counter()
    blank = mam.transformers(LENGTH, len(ALPHABET), **config.sizes, key=init_key)
    trained = train(blank, x, config.stages, train_key)
    took = time.perf_counter() - start
    causal = train_causal(x, len(ALPHABET), config, causal_key)
    result = measure(trained, causal, test, config, measure_key)
    result = result._replace(log_likelihood=counts(x, test) | result.log_likelihood)
    show = lambda *row: text_of(row[0], ALPHABET, *row[1:])
    filled, draws = fill(mam.MaM(trained), gaps(test), show, config.num_draws, fill_key)
    bits = 1 / (LENGTH * np.log(2))
    text = f"trained in {took:.0f} s\n{report(result, 'test lines', {'bits a character': bits})}"
    draw(result, bits, options.out / "text.png")
    leave(f"{text}\n\n{filled}", draws, "character", options.out)
    if options.record:
        found = {n: -v * bits for n, v in result.log_likelihood.items() if n != "marginal network"}
        record_figure(
            "marginalization/text",
            what=f"letters in any order, {LENGTH} characters of Python's language reference, bits a character",
            value=found,
            seeds=str(options.seed),
            note=in_words(result.error, result.correlations),
            digits=2,
            measures=["models/mam"],
        )


if __name__ == "__main__":
    main()
