"""Data of several processes: the same batches whatever their number, files of unequal sizes, refusals that all of them hear."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import _on_hosts
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _fit_fakes import Objective
from _on_mesh import environment

from lapilli import inference, ppl
from lapilli.inference import _processes
from lapilli.inference._processes import (
    _sum_of,
    agreed,
    anywhere,
    check_same,
    checksum,
    spans_processes,
)
from lapilli.inference.fitting import ProcessLocal
from lapilli.inference.fitting.data._batches import Batches
from lapilli.inference.fitting.data._process_local import check_spread, spread
from lapilli.inference.fitting.storage import _folder

ROWS = np.arange(1, 17, dtype=np.float32)


def lines(mode, num, folder):
    """What the processes printed, by label; all of them the same. What a library prints beside it may fall into a line."""
    found = []
    for out, code in _on_hosts.start(mode, num, folder):
        assert code == 0, out
        found.append(dict(line.split(": ", 1) for line in out.splitlines() if ": " in line))
    labels = set.intersection(*map(set, found))
    told = [{label: said[label] for label in labels if "[Gloo]" not in label} for said in found]
    assert told[0] and all(said == told[0] for said in told[1:]), found
    return told[0]


@pytest.mark.slow  # seven processes start
def test_batches_are_the_same_in_one_two_and_four_processes(tmp_path):
    """Values are sums of whole numbers with weights by place: equal ones come from the same rows in the same places."""
    one, *others = [lines("batches", num, tmp_path) for num in (1, 2, 4)]
    assert one["arrays"] == one["files"] == one["mapped"]
    assert len(one) == 9
    for name, value in one.items():
        for other in others:
            if name.startswith("about"):
                np.testing.assert_allclose(float(other[name]), float(value), rtol=1e-5)
            else:
                assert other[name] == value, name


@pytest.mark.slow  # seven processes start
def test_two_processes_are_resumed_by_one_and_by_four(tmp_path):
    """To the bit what an uninterrupted run gives: values, and the parameter to rounding of its sums."""
    whole = lines("resume", 1, tmp_path / "none")
    lines("save", 2, tmp_path / "two")
    for num in (1, 2, 4):
        shutil.copytree(tmp_path / "two", tmp_path / str(num))
        found = lines("resume", num, tmp_path / str(num))
        for name, value in whole.items():
            if name.startswith("about"):
                np.testing.assert_allclose(float(found[name]), float(value), rtol=1e-6)
            else:
                assert found[name] == value, (num, name)


@pytest.mark.slow  # two processes start
def test_what_does_not_go_together_is_refused_in_all_processes():
    outputs = _on_hosts.start("refusals", 2)
    assert [code for _, code in outputs] == [0, 0], outputs
    for out, other in ((outputs[0][0], "fails: RuntimeError"), (outputs[1][0], "fails: OSError")):
        for text in (
            "other data: ValueError fit: the processes were given different args",
            "other key: ValueError fit: the processes were given different keys",
            "odd rows: ValueError Argument 'args': the processes have [4, 5] rows",
            "other kinds: ValueError fit: the processes were given different kinds of rows",
            "other batches: ValueError Argument 'args': the processes of the run have data that do",
            "ends: ValueError Argument 'args': the processes of the run have data that do not go",
            "starts anew: ValueError Argument 'args': the processes of the run have data that do",
            "small: ValueError Argument 'args': the first batches of the processes have [2, 4] rows",
            "no plate: ValueError Argument 'args': there is no plate 'columns'",
            other,
        ):
            assert text in out, (text, out)


@pytest.mark.slow  # eleven processes start
@pytest.mark.parametrize(
    ("kind", "others"), [("", (1, 2, 4)), ("_parts", (1, 2))], ids=["file", "folder"]
)
def test_a_process_that_is_killed_costs_the_steps_since_the_last_checkpoint(kind, others, tmp_path):
    """Two processes, both killed between checkpoints; one, two and four go on from the file, one and two from the folder."""
    whole = lines(f"finish{kind}", 1, tmp_path / "none")
    processes = _on_hosts.started(f"forever{kind}", 2, tmp_path / "two")
    for line in processes[1].stdout:
        if line.startswith("step 3"):
            break
    for process in reversed(processes):  # the second one first
        process.kill()
        process.communicate()
    for num in others:
        shutil.copytree(tmp_path / "two", tmp_path / str(num))
        outputs = _on_hosts.start(f"finish{kind}", num, tmp_path / str(num))
        assert [code for _, code in outputs] == [0] * num, outputs
        steps = re.findall(r"step (\d+)", outputs[0][0])
        assert int(steps[0]) > 20  # it did not start anew
        (found,) = re.findall(r"values: \[(.*)\]", outputs[0][0])
        np.testing.assert_allclose(
            np.fromstring(found, sep=","), np.fromstring(whole["values"][1:-1], sep=","), rtol=1e-5
        )


@pytest.mark.slow  # fourteen processes start
def test_parameters_in_parts_lie_on_devices_of_several_processes(tmp_path):
    """The numbers of one process of as many devices; a folder of two goes on in one, two and four, to the bit in two."""
    one, *others = [lines("parts", num, tmp_path / str(num)) for num in (1, 2, 4)]
    assert len(one) == 10
    assert all("lies in parts over several processes" in other["saving"] for other in others)
    numbers = lambda text: np.array(json.loads(text))
    for name, value in one.items():
        for other in others:
            if name != "preempted":
                np.testing.assert_allclose(numbers(other[name]), numbers(value), rtol=1e-5)
    for num in (1, 2, 4):
        shutil.copytree(tmp_path / "2", tmp_path / f"from 2 to {num}")
        found = lines("resume_parts", num, tmp_path / f"from 2 to {num}")
        for name, value in found.items():
            if num == 2:
                assert value == others[0][name]
            np.testing.assert_allclose(numbers(value), numbers(one[name]), rtol=1e-5)


@pytest.mark.slow  # two processes start
def test_a_callback_that_fails_in_one_process_ends_all():
    outputs = _on_hosts.start("fails", 2)
    assert [code for _, code in outputs] == [0, 0], outputs
    assert "callback: OSError no place for the picture" in outputs[1][0]
    assert "callback: RuntimeError fit: the processes [1] failed in a callback" in outputs[0][0]


@pytest.mark.slow  # two processes start
def test_the_script_of_the_page_runs():
    script = Path(__file__).parents[3] / "docs" / "_static" / "two_processes.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank)], env=environment(1), stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, process in enumerate(processes):
        out, _ = process.communicate(timeout=300)
        loc = float(re.findall(rf"process {rank}: loc (\S+), after 500 steps", out)[0])
        assert abs(loc - 1.4) < 0.1


def fit(args, **options):
    settings = {"num_steps": 3, "key": jax.random.key(0), "progress": False} | options
    return inference.fit(Objective(), optax.adam(0.1), args, **settings)


@pytest.mark.parametrize(
    ("args", "options"),
    [((ROWS,), {"subsample": {"rows": 4}}), ([(ROWS[:4],)], {"plate_sizes": {"rows": 16}})],
    ids=["arrays", "batches"],
)
def test_the_rows_of_one_process_are_the_data(args, options):
    mesh = jax.make_mesh((1,), ("rows",))
    want = fit(args, **options)
    for more in ({}, {"mesh": mesh}):
        found = fit(ProcessLocal(args, "rows"), **options, **more)
        np.testing.assert_array_equal(found.history["value"], want.history["value"])


@pytest.mark.slow(reason="processes of their own")
def test_a_folder_of_checkpoints_goes_on_to_the_bit(tmp_path):
    class Stop(Exception):
        pass

    def crash(info):
        if info.step == 7:
            raise Stop

    mesh = jax.make_mesh((1,), ("rows",))
    options = {"subsample": {"rows": 4}, "num_steps": 12, "mesh": mesh, "shardings": {"*": jax.P()}}
    whole = fit((ROWS,), **options, average="polyak")
    files = {"checkpoint": tmp_path / "run", "checkpoint_every": 3}
    with pytest.raises(Stop):
        fit((ROWS,), **options, **files, average="polyak", callbacks=[crash], callback_every=7)
    found = fit((ROWS,), **options, **files, average="polyak")
    left, right = (jax.tree.leaves((f.params, f.last_params, f.state, f.history)) for f in (whole, found))  # fmt: skip
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(ValueError, match="belongs to another run"):
        fit((ROWS + 1,), **options, **files, average="polyak")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, and parameters that are split"):
        fit((ROWS,), **options, checkpoint=tmp_path / "file")


def test_some_steps_are_recorded(tmp_path):
    profile = inference.fitting.Profile(tmp_path / "traces", start=1, num_steps=100)
    fit((ROWS,), num_steps=3, callbacks=[profile], callback_every=1)
    assert list((tmp_path / "traces").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match="give start >= 0 and num_steps >= 1"):
        inference.fitting.Profile(tmp_path, num_steps=0)


def test_refusals_of_one_process():
    with pytest.raises(TypeError, match="plate is 3; give the name of the plate"):
        ProcessLocal((ROWS,), 3)
    with pytest.raises(ValueError, match="there is no plate 'columns', whose rows ProcessLocal"):
        fit(ProcessLocal((ROWS,), "columns"), subsample={"rows": 4})
    with pytest.raises(TypeError, match="rows of each process: guide and objective are chosen"):
        inference.fit(lambda x: None, args=ProcessLocal((ROWS,), "rows"))


def test_a_mesh_of_some_processes_is_refused(monkeypatch):
    other = type("Device", (), {"process_index": 1})()
    mesh = type("Mesh", (), {"devices": np.array([other])})()
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match=r"devices of the processes \[1\], and there are 3"):
        spans_processes("fit", mesh)


class TwoProcesses:
    """A mesh of both, each with two devices."""

    size, axis_names = 4, ("rows",)
    devices = np.array([type("Device", (), {"process_index": i})() for i in (0, 0, 1, 1)])
    local_devices = devices[:2]


def batches_of(*sizes):
    """Batches over two processes, spread along their rows."""
    found = Batches([(ROWS[:size],) for size in sizes])
    found.set_plates((4,), lambda args: None)
    found.set_spread(TwoProcesses, [True])
    return found


def other_seeds():
    check_spread("rows", type("Mesh", (), {"axis_names": ("seeds",)})())


def third_batch():
    found = batches_of(4, 4, 3)
    with found.reading(3, lambda: False):
        found.load(3)


def fails_here():
    """The process that has failed says why itself."""
    with pytest.raises(OSError, match="no place") as error:
        anywhere(lambda: _on_hosts.crash(None), "in a callback", True)
    raise ValueError(str(error.value))


SAME, ONE_MORE, FAILED = lambda x: x, lambda x: x + 1, lambda x: x + (np.arange(len(x)) == 0)


@pytest.mark.parametrize(
    ("other", "call", "message"),
    [
        (ONE_MORE, lambda: check_same("fit", {"key": 1}), "were given different key.*same key, options and data"),
        (lambda x: x + (np.arange(len(x)) == 2), lambda: agreed([3]), "do not go together. process 0: batches at hand 3; "),
        (FAILED, lambda: agreed([3]), r"the processes \[1\] failed to read their data"),
        (SAME, lambda: spread((ROWS[:3],), "rows", TwoProcesses, [True]), r"have \[3, 3\] rows of plate 'rows', 6 in all"),
        (SAME, lambda: check_spread("rows", None), "each of 2 processes has its own rows.*Pass mesh="),
        (SAME, other_seeds, "the mesh's axis 'seeds' would hold them more than once"),
        (SAME, lambda: batches_of(3), r"first batches of the processes have \[3, 3\] rows"),
        (SAME, third_batch, "batch 2 has 3 rows, which cannot be split evenly over the 2 devices of this process"),
        (FAILED, lambda: anywhere(lambda: False, "in a callback", True), r"the processes \[1\] failed in a callback"),
        (FAILED, fails_here, "no place for the picture"),
    ],
)  # fmt: skip
def test_refusals_of_two_processes(other, call, message, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    together = lambda x: np.stack([x, other(np.asarray(x))])
    monkeypatch.setattr(_processes.multihost_utils, "process_allgather", together)
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


def by_columns(x):
    with ppl.plate("columns", x.shape[1]):
        ppl.sample("x", dist.Normal(jnp.zeros((2, 1)), 1.0), obs=x)
    ppl.sample("loc", dist.Normal(0.0, 1.0))


def test_rows_of_each_process_are_the_leading_axis():
    bound = inference.elbo(by_columns, lambda x: ppl.sample("loc", dist.Normal(0.0, 1.0)))
    with pytest.raises(
        ValueError, match="no array has the rows of plate 'columns' as its leading axis"
    ):
        inference.fit(
            bound, optax.adam(0.1), ProcessLocal((np.ones((2, 5)),), "columns"), num_steps=1
        )


def test_orbax_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(
        ImportError, match="need Orbax. Install it with: pip install 'lapilli.sharded.'"
    ):
        _folder._orbax()


def test_a_sum_of_values_sees_a_bit(tmp_path):
    x = np.arange(5.0)
    y = x.copy()
    y[3] = np.nextafter(3.0, 4.0)
    assert checksum([x]) == checksum([x.copy()]) != checksum([y])
    assert checksum([jax.random.key(0)]) != checksum([jax.random.key(1)])
    path = tmp_path / "x.npy"
    np.save(path, x)
    mapped = np.load(path, mmap_mode="r")
    values = [(x, 1), (x, 2), (y, 1), (mapped, 1), ("a", 1), ((x, x), 1)]
    assert len({_sum_of(value) for value in values}) == len(values)
