"""Sub-words by the likelihood of text, all segmentations summed out: against greedy merging of pairs.

What it shows: the probability of a text is a sum over the ways to cut it into tokens,

    p(text) = sum over segmentations of prod_i p(token_i),

2^(T - 1) of them for T characters. A chain over characters whose state is how many characters of the token are still to come
makes a program of it, and `ppl.eliminate` sums it in time T L, tokens of at most L characters:

    text = ppl.eliminate(segmented, "left")
    log_density, counts = jax.value_and_grad(lambda w: text.log_density({}, ids, w))(log_probs)

The gradient with respect to log p(token) is how often the token is expected: expectation-maximisation divides by the sum. Tokens
whose absence would cost least are dropped until the vocabulary has the size wanted. `text.posterior` draws segmentations.

Data: the language reference that every Python carries along for its `help()` (`pydoc_data.topics`), lower-cased, 27 symbols, in
lines of 64 characters; the last tenth is held out. Beside it, with vocabularies of the same size: byte pairs merged greedily by
count (Gage 1994; Sennrich et al. 2016), with the frequencies of the tokens that its own segmentation gives, and the byte pairs'
vocabulary under this program.

Source: Kudo 2018 (sub-word regularisation, the unigram model), whose likelihood and way to drop tokens these are. No figure is
claimed there for nats per character.

Expected: small vocabularies are better chosen by likelihood, one of 1,000 tokens is not, and summing over segmentations is worth
0.01 to 0.03 nats per character by itself. The likelihood falls at no step of a size. Figures: docs/_data/figures,
structure/subwords. Run time: four minutes of one core.

    python examples/papers/structure/subwords.py [--smoke] [--out subwords_output] [--record]
"""

import argparse
import pydoc_data.topics
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import xarray as xr

from lapilli import ppl

sys.path.append(str(Path(__file__).resolve().parents[2]))
from _record import parsed, record_figure

LENGTH, LONGEST = 64, 8


class Sizes(NamedTuple):
    """Of a run."""

    vocabularies: tuple[int, ...] = (100, 300, 1000)
    num_lines: int | None = None
    first: int = 6000  # tokens to begin with
    steps: int = 4  # of expectation-maximisation at each size, twice as many at the last


SMOKE = Sizes((40, 60), 60, 120, 2)


@ppl.model
def segmented(ids, log_probs):
    """A text, cut into tokens.

    Args:
        ids: token that begins at a character and has n + 1 characters, [characters, LONGEST]; -1: it is none.
        log_probs: of the tokens, nats.
    """
    scores = jnp.where(ids >= 0, log_probs[ids], -jnp.inf)
    longest = ids.shape[1]

    def step(left, data):
        score, is_last = data
        goes_on = jax.nn.one_hot(left - 1, longest)
        begins = jnp.full(longest, 1 / longest)
        new = ppl.sample("left", dist.Categorical(probs=jnp.where(left > 0, goes_on, begins)))
        ppl.factor("token", jnp.where(left > 0, 0.0, score[new] + jnp.log(longest)))
        ppl.factor("end", jnp.where(is_last & (new > 0), -jnp.inf, 0.0))
        return new, None

    ppl.scan(step, 0, (scores, jnp.arange(len(ids)) == len(ids) - 1))


TEXT = ppl.eliminate(segmented, "left")


@jax.jit
def expected(ids, log_probs):
    """Log-likelihood of lines in nats, and how often each token is expected."""
    total = lambda w: jax.vmap(lambda line: TEXT.log_density({}, line, w))(ids).sum()
    return jax.value_and_grad(total)(log_probs)


def ids_of(lines: list[str], tokens: list[str]) -> np.ndarray:
    """Tokens by where they begin and how long they are, [lines, LENGTH, LONGEST]."""
    index = {token: i for i, token in enumerate(tokens)}
    return np.array(
        [
            [
                [
                    index.get(line[t : t + n], -1) if t + n <= len(line) else -1
                    for n in range(1, LONGEST + 1)
                ]
                for t in range(len(line))
            ]
            for line in lines
        ],
        np.int32,
    )


def in_batches(
    lines: list[str], tokens: list[str], log_probs: np.ndarray
) -> tuple[float, np.ndarray]:
    """`expected` of all lines, some hundred at a time."""
    size = min(500, len(lines))
    total, counts = 0.0, np.zeros(len(tokens))
    for start in range(0, len(lines) - size + 1, size):
        value, found = expected(
            ids_of(lines[start : start + size], tokens), jnp.asarray(log_probs, jnp.float32)
        )
        total, counts = total + float(value), counts + np.asarray(found, float)
    return total, counts


class Fit(NamedTuple):
    """A vocabulary with its probabilities, and the log-likelihood of each step at each size."""

    tokens: list[str]
    log_probs: np.ndarray
    steps: list[list[float]]


def costs(tokens: list[str], log_probs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What a token's absence would cost, nats: its expected number times what its best substitute, other tokens, lacks."""
    known = dict(zip(tokens, log_probs, strict=True))
    found = np.full(len(tokens), np.inf)  # characters stay
    for k, token in enumerate(tokens):
        others = np.full(len(token) + 1, -np.inf)
        others[0] = 0.0
        for end in range(1, len(token) + 1):
            pieces = [
                (start, token[start:end]) for start in range(end) if (start, end) != (0, len(token))
            ]
            others[end] = np.logaddexp.reduce(
                [others[start] + known.get(piece, -np.inf) for start, piece in pieces] or [-np.inf]
            )
        if len(token) > 1:
            found[k] = counts[k] * (log_probs[k] - others[-1])
    return found


def fit(lines: list[str], tokens: list[str], size: int, num_steps: int) -> Fit:
    """Expectation-maximisation; then the tokens that cost least go, a third at a time. Characters stay."""
    counts = np.array([sum(line.count(token) for line in lines[:200]) + 1.0 for token in tokens])
    history = []
    while True:
        history.append([])
        for _ in range(num_steps if len(tokens) > size else 2 * num_steps):
            log_probs = np.log(counts / counts.sum())
            value, counts = in_batches(lines, tokens, log_probs)
            history[-1].append(value)
            counts = np.maximum(counts, 1e-6)
        if len(tokens) <= size:
            return Fit(tokens, log_probs, history)
        keep = max(size, 2 * len(tokens) // 3)
        kept = np.sort(np.argsort(-costs(tokens, log_probs, counts), kind="stable")[:keep])
        tokens, counts = [tokens[i] for i in kept], counts[kept]


def byte_pairs(
    lines: list[str], sizes: tuple[int, ...]
) -> dict[int, tuple[list[str], list[tuple[str, str]]]]:
    """Vocabularies and merges of byte pair encoding, by size."""
    pieces = [list(line) for line in lines]
    tokens = sorted(set("".join(lines)))
    merges: list[tuple[str, str]] = []
    found = {}
    for size in sorted(sizes):
        while len(tokens) < size:
            pairs = Counter(pair for line in pieces for pair in zip(line, line[1:], strict=False))
            best = next(p for p, _ in pairs.most_common() if len(p[0] + p[1]) <= LONGEST)
            merges.append(best)
            tokens.append(best[0] + best[1])
            pieces = [merged(line, best) for line in pieces]
        found[size] = (list(tokens), list(merges))
    return found


def merged(line: list[str], pair: tuple[str, str]) -> list[str]:
    """A line's pieces with a pair made one, from left to right."""
    made, i = [], 0
    while i < len(line):
        if i + 1 < len(line) and (line[i], line[i + 1]) == pair:
            made.append(line[i] + line[i + 1])
            i += 2
        else:
            made.append(line[i])
            i += 1
    return made


def greedy_nats(
    train: list[str], test: list[str], tokens: list[str], merges: list[tuple[str, str]]
) -> float:
    """Nats per character of test lines in byte pairs' own segmentation, tokens by their frequency (one more for each)."""

    def cut(lines: list[str]) -> list[str]:
        pieces = [list(line) for line in lines]
        for pair in merges:
            pieces = [merged(line, pair) for line in pieces]
        return [token for line in pieces for token in line]

    counts = Counter(cut(train))
    total = sum(counts.values()) + len(tokens)
    return -sum(np.log((counts[t] + 1) / total) for t in cut(test)) / sum(map(len, test))


def data(sizes: Sizes) -> tuple[list[str], list[str]]:
    """Lines to train on and lines to test on."""
    text = re.sub("[^a-z]+", " ", " ".join(pydoc_data.topics.topics.values()).lower())
    lines = [text[i : i + LENGTH] for i in range(0, len(text) - LENGTH, LENGTH)]
    cut = 9 * len(lines) // 10
    return lines[:cut][: sizes.num_lines], lines[cut:][: sizes.num_lines and sizes.num_lines // 2]


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description="Sub-words by likelihood.")
    parser.add_argument("--smoke", action="store_true", help="few lines, some seconds")
    parser.add_argument("--out", type=Path, default=Path("subwords_output"))
    options = parsed(parser, arguments)
    sizes = SMOKE if options.smoke else Sizes()

    train, test = data(sizes)
    counts = Counter(
        line[t : t + n]
        for line in train
        for n in range(1, LONGEST + 1)
        for t in range(LENGTH - n + 1)
    )
    letters = sorted(set("".join(train + test)))
    frequent = [t for t, _ in counts.most_common(sizes.first) if len(t) > 1]
    print(
        f"{len(train)} lines of {LENGTH} characters, {len(test)} held out; tokens of at most {LONGEST} characters"
    )
    pairs = byte_pairs(train, sizes.vocabularies)
    rows, tokens, largest = [], letters + frequent, None
    for size in sorted(sizes.vocabularies, reverse=True):
        own = fit(train, tokens, size, sizes.steps)
        tokens = own.tokens
        falls = sum(
            b < a - 1e-5 * abs(a)
            for steps in own.steps
            for a, b in zip(steps, steps[1:], strict=False)
        )
        theirs = fit(train, sorted(pairs[size][0]), size, sizes.steps)
        per_character = lambda found: (
            -in_batches(test, found.tokens, found.log_probs)[0] / scored(test)
        )
        row = {
            "vocabulary": size,
            "byte pairs, greedy": greedy_nats(train, test, *pairs[size]),
            "byte pairs, summed": per_character(theirs),
            "by likelihood, summed": per_character(own),
            "falls": falls,
        }
        rows.append(row)
        largest = own if len(rows) == 1 else largest
        print(
            " | ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            ),
            flush=True,
        )
    assert largest is not None
    for drawn in draws_of(largest, test[0], 4):
        print("  ", drawn)
    save(rows, largest, options.out)
    if options.record:
        record(rows)
    return rows


def record(rows: list[dict[str, float]]) -> None:
    """Nats per character, for the page of figures."""
    kinds = [name for name in rows[0] if name not in ("vocabulary", "falls")]
    record_figure(
        "structure/subwords",
        what="sub-words, all segmentations summed out, held-out nats per character, by number of tokens",
        value={f"{kind}, {row['vocabulary']}": row[kind] for kind in kinds for row in rows[::-1]},
        note=f"steps of expectation-maximisation at which the likelihood falls: {sum(row['falls'] for row in rows)}",
        measures=["ppl/densities", "ppl/enumeration"],
    )


def scored(lines: list[str]) -> int:
    """How many characters `in_batches` scores: whole batches only."""
    size = min(500, len(lines))
    return len(lines) // size * size * LENGTH


def draws_of(found: Fit, line: str, num: int) -> list[str]:
    """Segmentations of a line, drawn from their posterior."""
    ids, log_probs = ids_of([line], found.tokens)[0], jnp.asarray(found.log_probs, jnp.float32)
    left = np.asarray(
        TEXT.posterior(jax.random.key(0), {}, jnp.asarray(ids), log_probs, num_samples=num)["left"]
    )
    return [
        "".join(c + ("|" if n == 0 else "") for c, n in zip(line, row, strict=True)) for row in left
    ]


def save(rows: list[dict[str, float]], found: Fit, out: Path) -> None:
    """Figures and tables: nats per character by size, and the most probable tokens."""
    kinds = [name for name in rows[0] if name not in ("vocabulary", "falls")]
    sizes = [row["vocabulary"] for row in rows]
    values = np.array([[row[kind] for kind in kinds] for row in rows])
    xr.Dataset(
        {
            "nats_per_character": (("vocabulary", "kind"), values),
            "log_prob": ("token", found.log_probs),
        },
        {"vocabulary": sizes, "kind": kinds, "token": found.tokens},
    ).to_netcdf(out / "subwords.nc")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for kind, column in zip(kinds, values.T, strict=True):
        left.plot(sizes, column, "o-", label=kind)
    left.set(xscale="log", xlabel="tokens", ylabel="nats per character, held out")
    left.legend(frameon=False)
    longer = sorted(
        ((p, t) for t, p in zip(found.tokens, found.log_probs, strict=True) if len(t) > 1),
        reverse=True,
    )[:15]
    right.barh([repr(t) for _, t in longer][::-1], [np.exp(p) for p, _ in longer][::-1])
    right.set(xlabel=f"probability, vocabulary of {len(found.tokens)}")
    right.locator_params(axis="x", nbins=5)
    figure.savefig(out / "subwords.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
