"""Batches read ahead by a thread, last batches with fewer rows, and the kinds of numbers that come in."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
from _fit_fakes import Objective, Params
from _on_mesh import environment

from lapilli import inference, ppl
from lapilli.inference.fitting._fit import fit

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
SGD = optax.sgd(1e-3)
PREFETCHES = pytest.mark.parametrize("prefetch", [0, 1, 3])


def run(args, objective=None, optimizer=SGD, **options):
    options = {"num_steps": 6, "key": jax.random.key(0), "progress": False} | options
    return fit(objective or Objective(noisy=False), optimizer, args, **options)


def in_fives(x=X):
    return [(x[i : i + 5],) for i in range(0, len(x), 5)]


class Linear(Objective):
    """Value 3 loc + loc sum(x) over all rows: a gradient that is the same at any loc."""

    def value(self, params, key, x, *rest):
        loc = params["loc"]
        return 3 * loc + self.sizes.get("rows", len(x)) / len(x) * loc * x.sum()

    def with_plate_sizes(self, sizes):
        new = Linear(sizes)
        new.num_traces = self.num_traces
        return new


# Fewer rows


@pytest.mark.parametrize("order", [np.arange(12), np.arange(12)[::-1]], ids=["up", "down"])
def test_over_an_epoch_every_row_counts_the_same_in_any_order(order):
    start = Params(loc=jnp.zeros(()), log_scale=jnp.zeros(()))
    result = run(in_fives(X[order]), Linear(), num_steps=3, plate_sizes={"rows": 12}, params=start)
    # N / n = 12 / 5 steps of the full gradient, prior term included.
    np.testing.assert_allclose(result.params["loc"], 1e-3 * 12 / 5 * (3 + X.sum()), rtol=1e-5)


def test_each_value_is_scaled_by_its_own_rows():
    still = run(in_fives(), optimizer=optax.sgd(0.0), num_steps=3, plate_sizes={"rows": 12})
    for value, (rows,) in zip(still.history["value"], in_fives(), strict=True):
        want = run((rows,), Objective({"rows": 12}, noisy=False), optax.sgd(0.0), num_steps=1)
        np.testing.assert_allclose(value, want.history["value"][0], rtol=1e-6)


def test_two_shapes_are_two_compilations():
    objective = Objective()
    run(in_fives(), objective, num_steps=40, plate_sizes={"rows": 12})
    assert objective.num_traces == [2]


@pytest.mark.parametrize(
    ("batches", "sizes", "message"),
    [
        ([X[:5], X[:3], X[:2]], {"rows": 12}, r"batch 2 has .*\[2\].*an earlier one.*\[3\]"),
        ([X[:5], X[:6]], {"rows": 12}, r"batch 1 has \['float32\[6\]'\].*'plate_sizes'"),
        ([X[:5], X[:3]], {}, r"batch 1 has \['float32\[3\]'\].*drop_last"),
        ([X[:5], X[:0]], {"rows": 12}, r"batch 1 has \['float32\[0\]'\].*drop_last"),
    ],
    ids=["third", "more", "complete", "none"],
)
def test_other_shapes_are_refused(batches, sizes, message):
    with pytest.raises(ValueError, match=message):
        run([(x,) for x in batches], plate_sizes=sizes)


def test_a_plate_that_does_not_follow_a_smaller_batch_is_refused():
    class Stuck(Objective):
        def plate_sizes(self, x, *rest):
            return {"rows": 5}

        def with_plate_sizes(self, sizes):
            return self

    with pytest.raises(
        ValueError, match="with the rows of a smaller batch the plates.*must follow"
    ):
        run(in_fives(), Stuck(), plate_sizes={"rows": 12})


def test_a_posterior_from_batches_of_unequal_size_is_that_of_all_rows():
    # Conjugate: mean 13^-1 sum(x). Steps decay, so that the noise of the order is far below the tolerance.
    schedule = optax.exponential_decay(0.05, 100, 0.7)
    start = Params(loc=jnp.zeros(()), log_scale=jnp.log(13**-0.5))
    settings = {"plate_sizes": {"rows": 12}, "params": start, "num_steps": 3000}
    result = run(in_fives(), optimizer=optax.sgd(schedule), **settings)
    np.testing.assert_allclose(result.params["loc"], X.sum() / 13, atol=2e-3)


# The thread


@PREFETCHES
def test_numbers_do_not_depend_on_reading_ahead(prefetch):
    def slow():
        for number in range(45):
            time.sleep(0.01 if number % 7 == 0 else 0.0)
            yield (X[number % 3 * 4 :][:4],)

    want = run([(X[i : i + 4],) for i in (0, 4, 8)], num_steps=45, plate_sizes={"rows": 12})
    result = run(slow(), num_steps=None, plate_sizes={"rows": 12}, prefetch=prefetch)
    np.testing.assert_array_equal(result.history["value"], want.history["value"])
    assert result.stop_reason == "data"


@PREFETCHES
def test_no_more_is_read_than_there_are_steps(prefetch):
    batches = iter([(X[i : i + 4],) for i in (0, 4, 8)] * 10)
    run(batches, num_steps=20, plate_sizes={"rows": 12}, prefetch=prefetch)
    np.testing.assert_array_equal(next(batches)[0], X[8:])  # number 20


def test_reading_ahead_is_bounded():
    read, ahead = [0], []

    def counted():
        while True:
            read[0] += 1
            yield (X[:4],)

    look = lambda info: ahead.append(read[0] - info.step)
    options = {"callbacks": [look], "callback_every": 10, "num_steps": 1000}
    run(counted(), plate_sizes={"rows": 12}, prefetch=2, **options)
    # One stack in use, two that wait, one in the making.
    assert 64 < max(ahead) <= 4 * 64


@PREFETCHES
def test_errors_travel_and_the_thread_ends(prefetch):
    def broken():
        yield from [(X[:4],)] * 20
        raise OSError("the disk is gone")

    steps = []
    callbacks = {"callbacks": [lambda info: steps.append(info.step)], "callback_every": 1}
    with pytest.raises(OSError, match="the disk is gone") as error:
        run(broken(), num_steps=30, plate_sizes={"rows": 12}, prefetch=prefetch, **callbacks)
    assert error.traceback[-1].name == "broken"
    assert prefetch == 0 or steps[-1] == 20  # what came before it was used
    assert not [t for t in threading.enumerate() if t.name == "lapilli-prefetch"]


@PREFETCHES
def test_ctrl_c_in_a_loader_ends_the_run_as_elsewhere(prefetch):
    def pressed():
        yield from [(X[:4],)] * 20
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="Ctrl-C after step"):
        result = run(pressed(), num_steps=30, plate_sizes={"rows": 12}, prefetch=prefetch)
    assert result.interrupted and (result.steps == 20 or prefetch == 0)


@pytest.mark.slow
def test_ctrl_c_while_a_loader_is_slow():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def slow():
        yield from [(X[:4],)] * 3
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        time.sleep(1.5)
        yield (X[:4],)

    try:
        with pytest.warns(UserWarning, match="Ctrl-C after step"):
            result = run(slow(), num_steps=30, plate_sizes={"rows": 12})
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.interrupted and result.steps <= 3
    assert not [t for t in threading.enumerate() if t.name == "lapilli-prefetch"]


def test_a_loader_that_runs_programs_never_meets_a_step_that_is_traced():
    # NumPyro's stack of handlers is one for all threads: sites of both would mix.
    busy, met = SimpleNamespace(is_tracing=False), []

    class Slow(Objective):
        def step(self, *args):
            busy.is_tracing = True
            time.sleep(0.3)
            busy.is_tracing = False
            return super().step(*args)

        def with_plate_sizes(self, sizes):
            new = Slow(sizes)
            new.num_traces = self.num_traces
            return new

    def simulator():
        for number in range(60):
            with numpyro.handlers.seed(rng_seed=number):
                x = numpyro.sample("x", dist.Normal(jnp.zeros(4), 1.0))
            met.append(busy.is_tracing)
            yield (np.asarray(x),)

    run(simulator(), Slow(), num_steps=60, plate_sizes={"rows": 12})
    assert len(met) == 60 and not any(met)


def test_the_thread_computes_with_the_callers_precision():
    seen = []

    def batches():
        while True:
            seen.append(jnp.asarray(X.astype(np.float64)[:4]).dtype)
            yield (X.astype(np.float64)[:4],)

    with jax.enable_x64(True):
        result = run(batches(), num_steps=20, plate_sizes={"rows": 12})
        assert result.history["value"].dtype == np.float64
    assert set(seen) == {np.dtype(np.float64)}


@pytest.mark.parametrize("prefetch", [-1, 0.5, True], ids=str)
def test_impossible_depths_are_refused(prefetch):
    with pytest.raises((ValueError, TypeError), match="prefetch'? must be an integer"):
        run([(X[:4],)], plate_sizes={"rows": 12}, prefetch=prefetch)


# Kinds of numbers


FRAME = pd.DataFrame({"a": X[:6], "b": X[6:]})
KINDS = {
    "float32": lambda: FRAME.to_numpy(),
    "float64": lambda: FRAME.to_numpy().astype(np.float64),
    "long double": lambda: FRAME.to_numpy().astype(np.longdouble),
    "other byte order": lambda: FRAME.to_numpy().astype(">f8"),
    "frame": lambda: FRAME,
    "nullable frame": lambda: FRAME.astype("Float64"),
    "mixed frame": lambda: FRAME.astype({"a": "Float32", "b": "float64"}),
}


def table(x):
    beta = ppl.sample("beta", dist.Normal(ppl.param("loc", jnp.zeros(2)), 1.0).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(beta, 1.0).to_event(1), obs=x)


def table_guide(x):
    ppl.sample("beta", dist.Normal(ppl.param("mean", jnp.zeros(2)), 0.4).to_event(1))


BOUND = inference.elbo(table, table_guide)


@pytest.mark.slow_for(
    "frame", "float32", "nullable frame", "other byte order", "float64", "long double"
)
@pytest.mark.parametrize("kind", list(KINDS))
def test_all_kinds_of_numbers_give_the_same_fit(kind):
    x = KINDS[kind]()
    settings = {"num_steps": 2, "key": jax.random.key(0), "progress": False}
    want = inference.fit(BOUND, SGD, (KINDS["float32"](),), **settings)
    whole = inference.fit(BOUND, SGD, (x,), **settings)
    streamed = inference.fit(BOUND, SGD, [(x,)], plate_sizes={}, **settings)
    for result in (whole, streamed):
        np.testing.assert_allclose(result.history["value"], want.history["value"], rtol=1e-6)
    assert whole.posterior(jax.random.key(1), 3).log_weights.shape == (3,)
    assert whole.posterior(jax.random.key(1), 3, args=(x,)).log_weights.shape == (3,)


def test_batches_may_mix_precisions():
    mixed = [(X[:4],), (X[4:8].astype(np.float64),), (X[8:],)]
    want = run([(X[i : i + 4],) for i in (0, 4, 8)], plate_sizes={"rows": 12})
    result = run(mixed, plate_sizes={"rows": 12})
    np.testing.assert_array_equal(result.history["value"], want.history["value"])


def test_half_precision_data_are_scored_in_single():
    settings = {"num_steps": 1, "key": jax.random.key(0), "progress": False}
    half = FRAME.to_numpy().astype(np.float16)
    result = inference.fit(BOUND, SGD, (half,), **settings)
    want = inference.fit(BOUND, SGD, (half.astype(np.float32),), **settings)
    np.testing.assert_allclose(result.history["value"], want.history["value"], rtol=1e-6)


def test_times_are_no_numbers():
    times = pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"]))
    with pytest.raises(TypeError, match=r"shape \[2\] holds datetime64.*Subtract an origin"):
        run((times,))


@pytest.mark.slow  # a process of its own
def test_over_a_mesh_a_smaller_batch_is_on_every_device():
    program = """
import jax, numpy as np, optax
from _fit_fakes import Objective
from lapilli.inference.fitting._fit import fit
X = np.linspace(0.5, 3.0, 14, dtype=np.float32)
batches = [(X[i : i + 4],) for i in (0, 4, 8, 12)]
options = {"num_steps": 12, "key": jax.random.key(0), "progress": False, "plate_sizes": {"rows": 14}}
one = fit(Objective(), optax.adam(1e-2), batches, **options)
two = fit(Objective(), optax.adam(1e-2), batches, mesh=jax.make_mesh((2,), ("data",)), **options)
np.testing.assert_allclose(two.history["value"], one.history["value"], rtol=1e-5)
print("equal")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment(2), capture_output=True, text=True
    )
    assert run.stdout == "equal\n", run.stderr
