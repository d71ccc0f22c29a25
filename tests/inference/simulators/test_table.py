"""Simulations in rows: split once, scaled by the training rows, failures counted; plain functions in place of programs."""

import dataclasses
import functools
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _simulators import dies, fails_below_zero, noisy, table_of_slow

from lapilli import inference, ppl
from lapilli.inference.simulators import ReferenceTable, reference_table
from lapilli.inference.simulators._coordinates import StandardCoordinates

KEY = jax.random.key(0)
HELPERS = Path(__file__).parents[2] / "_helpers"


def prior():
    ppl.sample("m", dist.Normal(0.0, 1.0))


def prior_of_two():
    prior()
    ppl.sample("n", dist.Normal(0.0, 1.0))


def model(x):
    ppl.sample("x", dist.Normal(ppl.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def black_box(simulator, num=100, **options):
    options = {"loop": "python", "progress": False, "num_simulations": num, "key": KEY} | options
    return reference_table(prior, simulator=simulator, **options)


def compiled(simulator):
    return reference_table(prior, simulator=simulator, num_simulations=100, key=KEY)


@pytest.fixture(scope="module")
def table():
    return reference_table(model, (0.0,), num_simulations=500, batch_size=300, key=KEY)


def test_rows_are_draws_of_the_joint_law_and_are_split_without_remainder(table):
    parts = np.concatenate(list(table.parts.values()))
    assert sorted(parts) == list(range(500)) and len(set(table.parameters["m"])) == 500
    assert {p: len(r) for p, r in table.parts.items()} == {
        "validation": 50,
        "held out": 50,
        "training": 400,
    }
    # Correlation 1 / sqrt 2, its standard error some 0.022.
    correlation = np.corrcoef(table.parameters["m"], table.data["x"])[0, 1]
    assert correlation == pytest.approx(0.5**0.5, abs=0.1)


def test_coordinates_are_standardised_by_the_training_rows_alone(table):
    of_parameters, of_data = table.coordinates
    parameters, data = table.rows("training")
    for found in (of_parameters.flat(parameters), of_data.flat(data)):
        assert np.allclose(found.mean(0), 0, atol=1e-5) and np.allclose(found.std(0), 1, atol=1e-5)
    assert abs(float(of_data.flat(table.rows("held out")[1]).mean())) > 1e-4


SUPPORTS = {
    "box": (dist.Uniform(-1.0, 3.0), ()),
    "positive": (dist.Gamma(2.0, 1.0), ()),
    "vector of shares": (dist.Beta(2.0, 3.0).expand([2]).to_event(1), (2,)),
    "simplex": (dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), (3,)),
    "ordered": (
        dist.TransformedDistribution(
            dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
        ),
        (3,),
    ),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_laws_live_on_the_support_and_count_every_jacobian(name):
    """A standard Normal of the coordinates, at draws: its density is that of the change of variables by automatic derivatives."""
    prior, shape = SUPPORTS[name]
    rows = np.asarray(prior.sample(KEY, (200,)))
    coordinates = StandardCoordinates.of({"z": rows}, {"z": prior.support})
    law = coordinates.law("z", dist.Normal(jnp.zeros(coordinates.size), 1.0).to_event(1))
    assert law.event_shape == shape and law.batch_shape == ()
    value = jnp.asarray(rows[0])
    assert jax.jit(lambda key: prior.support(law.sample(key, (50,))))(KEY).all()
    u = jax.jit(lambda value: coordinates.part("z", value))(value)
    # Of a simplex the last entry follows from the others.
    free = lambda u: law_value(coordinates, u).reshape(-1)[: coordinates.size]
    _, log_det = np.linalg.slogdet(np.asarray(jax.jit(jax.jacobian(free))(u), float))
    exact = float(dist.Normal(0.0, 1.0).log_prob(u).sum()) - log_det
    assert float(jax.jit(law.log_prob)(value)) == pytest.approx(exact, abs=2e-4)


def law_value(coordinates, u):
    base = dist.Delta(u).to_event(1)
    return coordinates.law("z", base).sample(KEY)


def test_a_compiled_function_is_the_program_that_it_stands_for():
    found = reference_table(
        prior,
        simulator=lambda key, p: p["m"] + jax.random.normal(key),
        num_simulations=400,
        key=KEY,
    )
    assert np.std(found.data["x"] - found.parameters["m"]) == pytest.approx(1.0, abs=0.15)
    assert (
        abs(np.corrcoef(found.data["x"] - found.parameters["m"], found.parameters["m"])[0, 1])
        < 0.25
    )


def test_failures_of_a_black_box_are_counted_and_their_parameters_kept():
    found = black_box(fails_below_zero, 200)
    assert found.num_simulations + found.num_failed == 200 and found.num_failed > 50
    assert (found.parameters["m"] >= 0).all() and (found.failed["m"] < 0).all()
    assert "ZeroDivisionError: below" in repr(found)


def test_numbers_that_are_none_are_counted():
    found = black_box(lambda rng, p: np.nan if p["m"] > 1 else p["m"], 200)
    assert (found.failed["m"] > 1).all() and found.num_failed > 10
    assert "not finite" in repr(found)


@pytest.mark.slow(reason="processes that start afresh")
def test_workers_do_not_change_the_numbers():
    one, other = black_box(noisy), black_box(noisy, num_workers=2)
    assert np.array_equal(one.data["x"], other.data["x"]) and len(set(one.data["x"])) == 100


def test_a_file_has_all_rows_and_belongs_to_its_program(table, tmp_path):
    table.save(tmp_path / "rows.npz")
    again = ReferenceTable.load(tmp_path / "rows.npz", model, (0.0,))
    assert np.array_equal(again.data["x"], table.data["x"])
    assert np.array_equal(again.parts["training"], table.parts["training"])
    with pytest.raises(ValueError, match="ReferenceTable.load: the file holds parameters"):
        ReferenceTable.load(tmp_path / "rows.npz", prior_of_two)
    black = black_box(noisy)
    black.save(tmp_path / "black.npz")
    assert list(ReferenceTable.load(tmp_path / "black.npz", prior).data) == ["x"]


CALLS = []


def counted(rng, parameters):
    """Interrupted in the third batch of twenty."""
    CALLS.append(float(parameters["m"]))
    if len(CALLS) == 57:
        raise KeyboardInterrupt
    return noisy(rng, parameters) if parameters["m"] < 1 else np.nan


def test_batches_on_disk_are_not_simulated_again(tmp_path):
    """A run that is stopped in its third batch goes on there, to the table of a run that was never stopped."""
    CALLS.clear()
    options = {"batch_size": 20, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        black_box(counted, **options)
    assert len(list(tmp_path.iterdir())) == 2
    resumed = black_box(counted, **options)
    assert len(CALLS) == 57 + 60
    whole = black_box(counted)
    assert np.array_equal(resumed.data["x"], whole.data["x"])
    assert np.array_equal(resumed.failed["m"], whole.failed["m"]) and whole.num_failed > 5
    assert "not finite" in repr(resumed)
    assert black_box(counted, 200, **options).num_failed > resumed.num_failed
    assert len(CALLS) == 57 + 60 + 100 + 100  # the first hundred are there


def shifted_by(number):
    return lambda rng, parameters: noisy(rng, parameters) + number


@dataclasses.dataclass
class Shift:
    number: float

    def __call__(self, rng, parameters):
        return noisy(rng, parameters) + self.number


def plus(rng, parameters, number):
    return noisy(rng, parameters) + number


@pytest.mark.parametrize("make", [shifted_by, Shift, lambda n: functools.partial(plus, number=n)])
def test_state_of_a_simulator_is_part_of_it(make, tmp_path):
    """A closure, an object, a partial: of another number, another simulator."""
    one = black_box(make(1.0), folder=tmp_path).data["x"]
    other = black_box(make(3.0), folder=tmp_path).data["x"]
    assert np.allclose(other - one, 2.0)
    assert np.array_equal(black_box(make(1.0), folder=tmp_path).data["x"], one)
    assert len(list(tmp_path.iterdir())) == 2


def test_batches_of_others_are_not_taken(tmp_path):
    """Another simulator, or another key, in the same folder; a file that is damaged is no batch."""
    one = black_box(noisy, 200, folder=tmp_path)
    other = black_box(fails_below_zero, 200, folder=tmp_path)
    assert other.num_failed > 0 and one.num_failed == 0
    again = black_box(fails_below_zero, 200, folder=tmp_path)
    assert again.reason == other.reason and np.array_equal(again.data["x"], other.data["x"])
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    shifted = black_box(noisy, 200, folder=tmp_path, key=jax.random.key(1))
    assert not np.array_equal(shifted.data["x"], one.data["x"])
    with pytest.raises(ValueError, match="is no batch of simulations"):
        black_box(noisy, 200, folder=tmp_path)


@pytest.mark.slow(reason="processes that start afresh")
def test_a_killed_run_goes_on_with_workers(tmp_path):
    """Killed from outside while workers run; the table is that of one process without files."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from _simulators import *\n"
        "if __name__ == '__main__': table_of_slow(sys.argv[1])\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    folder = tmp_path / "batches"
    run = subprocess.Popen([sys.executable, str(script), str(folder), str(HELPERS)])
    try:
        deadline = time.monotonic() + 240
        while len(list(folder.glob("*.npz"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        run.kill()
        run.wait()
    kept = set(folder.glob("*.npz"))
    assert 2 <= len(kept) < 10
    times = {f: f.stat().st_mtime_ns for f in kept}
    resumed = table_of_slow(folder, num_workers=0)
    assert times == {f: f.stat().st_mtime_ns for f in kept}
    assert np.array_equal(resumed.data["x"], table_of_slow(None, 0).data["x"])


@pytest.mark.slow(reason="processes that start afresh")
def test_a_worker_that_dies_is_told():
    with pytest.raises(RuntimeError, match="a worker process has died"):
        black_box(dies, num_workers=1)


def two_places():
    ppl.sample("t", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def test_what_a_simulator_does_to_its_arrays_changes_no_row():
    """It writes into its parameters, and returns one array again and again."""
    kept = np.zeros(2)

    def simulator(rng, parameters):
        parameters["t"] += 100.0
        kept[:] = parameters["t"] + rng.normal(size=2)
        return kept

    run = lambda: reference_table(
        two_places, simulator=simulator, loop="python", num_simulations=100, key=KEY, progress=False
    )
    found, again = run(), run()
    plain = reference_table(
        two_places,
        simulator=lambda key, p: p["t"] + jax.random.normal(key),
        num_simulations=100,
        key=KEY,
        batch_size=100,
    )
    assert np.abs(found.parameters["t"]).max() < 10 and len(np.unique(found.data["x"])) == 200
    noise = found.data["x"] - 100 - found.parameters["t"]
    assert 0.8 < noise.std() < 1.2 and np.array_equal(again.data["x"], found.data["x"])
    assert plain.parameters["t"].shape == found.parameters["t"].shape


@pytest.mark.parametrize("noise", [lambda: np.random.default_rng(0).normal(size=3), lambda: 0.0])
def test_a_compiled_simulator_that_does_not_read_its_key_is_told(noise):
    """Noise of a fixed seed is one constant of all rows: the same program as one without noise."""
    with pytest.warns(
        UserWarning,
        match="nothing that the simulator .* returns depends on its key. If it has noise of a fixed",
    ):
        compiled(lambda key, p: p["m"] + noise())


def test_frames_and_lists_of_numbers_are_data():
    pd = pytest.importorskip("pandas")
    made = lambda rng: rng.normal(size=3)
    frame = black_box(lambda rng, p: pd.DataFrame({"a": made(rng), "b": made(rng)}))
    pair = black_box(lambda rng, p: (p["m"], rng.normal()))
    assert frame.data["x"].shape == (100, 3, 2) and pair.data["x"].shape == (100, 2)
    rows = np.random.default_rng(0).normal(size=100)
    columns = pd.DataFrame({"m": rows, "x": rows + 1})
    for given in ({"m": list(rows)}, {"x": list(rows + 1)}), (columns[["m"]], columns[["x"]]):
        table = ReferenceTable(model, (0.0,), *given, {})
        assert np.array_equal(table.parameters["m"], rows)
    half = ReferenceTable(model, (0.0,), {"m": rows.astype(np.float16)}, {"x": rows}, {})
    assert half.parameters["m"].dtype == np.float32


def with_factor(x):
    model(x)
    ppl.factor("f", 1.0)


def with_cells(x):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("x", dist.Normal(m, 1.0), obs=x, obs_mask=np.array([True, False, True]))


REFUSED = {
    "a factor": (lambda: reference_table(with_factor, (0.0,)), "are factors or have masks"),
    "missing cells": (lambda: reference_table(with_cells, (np.zeros(3),)), "have masks"),
    "nothing latent": (
        lambda: reference_table(lambda x: ppl.sample("x", dist.Normal(0.0, 1.0), obs=x), (0.0,)),
        "no latent site",
    ),
    "nothing observed": (lambda: reference_table(prior), "observes nothing"),
    "observed twice": (lambda: reference_table(model, (0.0,), simulator=noisy), "a simulator makes"),
    "no function": (lambda: reference_table(model, (0.0,), loop="python"), "plain function"),
    "no batches": (lambda: reference_table(model, (0.0,), folder="batches"), "Leave it out, and use"),
    "few": (lambda: reference_table(model, (0.0,), num_simulations=3), "num_simulations"),
    "always raises": (lambda: black_box(lambda rng, p: 1 / 0), "all 100 calls.*ZeroDivisionError"),
    "never a number": (lambda: black_box(lambda rng, p: np.inf), "all 100 simulations failed"),
    "other shapes": (lambda: black_box(lambda rng, p: np.zeros(rng.integers(1, 4))), "of one shape"),
    "nothing": (lambda: black_box(lambda rng, p: None), "returned no number"),
    "no entry": (lambda: black_box(lambda rng, p: np.zeros(0)), "\\['x'\\] empty"),
    "text": (lambda: black_box(lambda rng, p: "a"), "no real number"),
    "complex": (lambda: compiled(lambda key, p: p["m"] + 1j), "no real number"),
    "a name twice": (lambda: black_box(lambda rng, p: dict(p)), "names of parameters and of data"),
    "whole numbers that do not fit": (
        lambda: black_box(lambda rng, p: np.int64(2) ** 33 + rng.integers(99)), "does not fit into int32",
    ),
    "a local function for workers": (
        lambda: black_box(lambda rng, p: p["m"], num_workers=1), "cannot be pickled.*num_workers=0",
    ),
    "NumPy in a compiled loop": (
        lambda: compiled(lambda key, p: np.sin(float(p["m"]))), "JAX traces it.*loop='python'",
    ),
    "a branch in a compiled loop": (lambda: compiled(lambda key, p: p["m"] or 1), "JAX traces it"),
    "a generator in a compiled loop": (
        lambda: compiled(lambda key, p: key.normal() + p["m"]), "has no attribute normal. Pass loop",
    ),
    "noise of NumPy's in a compiled loop": (
        lambda: compiled(lambda key, p: p["m"] + np.random.default_rng().normal()), "would share them",
    ),
    "noise of another generator": (
        lambda: compiled(lambda key, p: p["m"] + np.random.normal()), "would share them",
    ),
    "other names": (
        lambda: ReferenceTable(model, (0.0,), {"mu": np.zeros(99)}, {"x": np.zeros(99)}, {}), "sites by name",
    ),
    "other data": (
        lambda: ReferenceTable(model, (0.0,), {"m": np.zeros(99)}, {"y": np.zeros(99)}, {}), "sites by name",
    ),
    "other shapes of rows": (
        lambda: ReferenceTable(model, (0.0,), {"m": np.zeros((99, 3))}, {"x": np.zeros(99)}, {}), "in their shapes",
    ),
    "rows that are not finite": (
        lambda: ReferenceTable(model, (0.0,), {"m": np.zeros(99)}, {"x": np.full(99, np.nan)}, {}),
        "99 rows are not finite",
    ),
    "rows that single precision makes the same": (
        lambda: ReferenceTable(model, (0.0,), {"m": np.zeros(99)}, {"x": 1e9 + np.linspace(0, 50, 99)}, {}),
        "data 'x'.*float32",
    ),
    "other lengths": (
        lambda: ReferenceTable(ppl.as_program(model), (0.0,), {"m": np.zeros(99)}, {"x": np.zeros(98)}, {}),
        "one number of rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_refused(case):
    run, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        run()


def test_a_function_of_ones_own_error_is_that_error():
    def broken(key, parameters):
        return parameters["rate"]

    with pytest.raises(KeyError, match="rate"):
        compiled(broken)


def test_parameters_beyond_their_prior_are_refused():
    def bounded(x):
        ppl.sample("x", dist.Normal(ppl.sample("m", dist.Uniform(0.0, 1.0)), 1.0), obs=x)

    rows = np.linspace(0.0, 2.0, 100)
    table = ReferenceTable(ppl.as_program(bounded), (0.0,), {"m": rows}, {"x": rows}, {})
    with pytest.raises(ValueError, match="outside of its prior's support in 50 of 100"):
        _ = table.coordinates


@pytest.mark.parametrize("kind", [int, float])
def test_rounded_parameters_of_a_continuous_prior_are_refused(kind):
    rows = np.round(np.random.default_rng(0).normal(size=100)).astype(kind)
    table = ReferenceTable(ppl.as_program(model), (0.0,), {"m": rows}, {"x": rows + 0.5}, {})
    with pytest.raises(
        ValueError, match="takes only \\d values in 60 simulations.*add what rounding took"
    ):
        _ = table.coordinates


def test_entries_that_a_support_fixes_are_no_rounded_parameters():
    """Of a triangular factor the upper triangle is zero in all rows."""

    def factor(x):
        factor = ppl.sample("factor", dist.LKJCholesky(2))
        ppl.sample("x", dist.Normal(factor[1, 0], 1.0), obs=x)

    low = np.random.default_rng(0).uniform(-1, 1, 100).astype(np.float32)
    rows = np.zeros((100, 2, 2), np.float32)
    rows[:, 0, 0], rows[:, 1, 0], rows[:, 1, 1] = 1, low, (1 - low**2) ** 0.5
    table = ReferenceTable(ppl.as_program(factor), (0.0,), {"factor": rows}, {"x": low}, {})
    assert table.coordinates[0].sizes == {"factor": 1}


def test_a_support_that_moves_is_refused():
    def moving(x):
        low = ppl.sample("low", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(ppl.sample("m", dist.Uniform(low, low + 1)), 1.0), obs=x)

    table = reference_table(moving, (0.0,), num_simulations=100)
    with pytest.raises(ValueError, match="support of site 'm' depends on another draw"):
        inference.amortise(table, progress=False)


def test_a_support_that_moves_in_one_draw_of_a_hundred_is_refused():
    """No number of runs that agree shows that a support stands still."""

    def moving(x):
        rare = ppl.sample("rare", dist.Bernoulli(0.01))
        m = ppl.sample("m", dist.Uniform(0.0, 1.0 + rare))
        ppl.sample("x", dist.Normal(m, 1.0), obs=x)

    table = reference_table(moving, (0.0,), num_simulations=100)
    with pytest.raises(ValueError, match="support of site 'm' depends on another draw"):
        table.supports("amortise", ["m"])
    assert set(table.supports("amortise", ["rare"])) == {"rare"}
