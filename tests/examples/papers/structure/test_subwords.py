"""Sub-words: the sum over segmentations by brute force, and the script at smoke size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _examples import load_example


def test_all_segmentations_are_summed():
    example = load_example("papers/structure/subwords")
    rng = np.random.default_rng(0)
    line = "".join(rng.choice(list("abc"), 12))
    tokens = sorted({line[t : t + n] for n in (1, 2, 3, 5) for t in range(13 - n)})
    ids = example.ids_of([line], tokens)[0]
    log_probs = np.asarray(
        jax.nn.log_softmax(jnp.asarray(rng.normal(size=len(tokens)))), np.float32
    )
    total, often = -np.inf, np.zeros(len(tokens))
    for cuts in itertools.product((0, 1), repeat=11):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        pieces = [line[a:b] for a, b in zip([0, *ends], [*ends, 12], strict=True)]
        if all(piece in tokens for piece in pieces):
            found = [tokens.index(piece) for piece in pieces]
            weight = log_probs[found].sum()
            total = np.logaddexp(total, weight)
            np.add.at(often, found, np.exp(weight))
    value, counts = example.expected(jnp.asarray(ids)[None], log_probs)
    assert abs(float(value) - total) < 1e-4
    np.testing.assert_allclose(counts, often / np.exp(total), atol=1e-4)


@pytest.mark.slow
def test_the_script_runs_and_its_likelihood_never_falls(tmp_path):
    rows = load_example("papers/structure/subwords").main(["--smoke", "--out", str(tmp_path)])
    assert all(row["falls"] == 0 for row in rows)
    assert all(row["by likelihood, summed"] < row["byte pairs, greedy"] for row in rows)
    assert (tmp_path / "subwords.png").exists() and (tmp_path / "subwords.nc").exists()
