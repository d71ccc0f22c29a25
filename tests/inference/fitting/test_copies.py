"""Large arrays in memory are held once while a fit runs, and files that are mapped into it never whole."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.fitting.data import _row_blocks

NUM = 120_000
SMALL = 2**19  # bytes


def model(x, y):
    w = ppl.sample("w", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", len(x)):
        ppl.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM, 3))
    return x, (0.5 * x[:, 0] + rng.normal(size=NUM)).astype(np.float32)


def large_bytes():
    """Of large arrays that are alive, those that share their memory counted once."""
    found = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays() if x.nbytes > SMALL}
    return sum(found.values())


def fitted(args, subsample):
    before, seen = large_bytes(), []
    result = inference.fit(
        model, args=args, subsample=subsample, num_steps=20, progress=False, k_hat="skip",
        callbacks=[lambda info: seen.append(large_bytes() - before)],
    )  # fmt: skip
    return result, max(seen)


@pytest.fixture(scope="module")
def by_minibatches(data):
    return fitted(data, {"rows": 50})


@pytest.mark.slow_for("all")
@pytest.mark.parametrize("kind", ["all", "minibatches"])
def test_data_in_memory_are_held_once(data, kind, request):
    """Single precision of all: 4 bytes a number. A second copy of either array would be seen."""
    x, y = data
    result, held = (
        fitted(data, None) if kind == "all" else request.getfixturevalue("by_minibatches")
    )
    assert held <= 4 * (x.size + y.size)
    assert result.args[0] is x and result.args[1] is y  # as they were given


@pytest.mark.slow(reason="a file of some size")
def test_files_that_are_mapped_are_met_in_blocks_and_their_fit_is_that_of_memory(
    data, by_minibatches, tmp_path, monkeypatch
):
    """Two blocks, start and judgement of all rows, and never more alive than a block and what a device call reads."""
    x, y = data
    file = np.memmap(tmp_path / "x", np.float64, "w+", shape=x.shape)
    file[:] = x
    file.flush()
    file = np.memmap(tmp_path / "x", np.float64, "r", shape=x.shape)
    expected, _ = by_minibatches
    monkeypatch.setattr(_row_blocks, "BLOCK_BYTES", 8 * x.size)
    found, held = fitted((file, y), {"rows": 50})
    assert held < 4 * x.size + 4 * y.size  # y itself is in memory
    start, other = (r.objective.guide.fn.starts.best for r in (found, expected))
    np.testing.assert_allclose(start.center, other.center, atol=1e-5)
    np.testing.assert_allclose(start.factor, other.factor, rtol=1e-3)
    assert start.elbo == pytest.approx(other.elbo, abs=0.1)
    u = start.center + start.factor[0] * np.linspace(-3, 3, 7)[:, None]
    values = [r.objective.guide.fn.landscape.values(u) for r in (found, expected)]
    np.testing.assert_allclose(values[0], values[1], atol=0.1)
    np.testing.assert_allclose(found.history["value"], expected.history["value"], rtol=1e-3)
