"""What is communicated, read off programs compiled for eight devices: collectives of a step, their bytes, memory of a device."""

import json
import subprocess
import sys
from pathlib import Path

import _counted
import pytest
from _collectives import collectives, has_host_transfers, sizes
from _on_mesh import environment

TEXT = """
  %all-gather-start.1 = f32[4096]{0} all-gather-start(%x), channel_id=2
  %done = f32[4096]{0} all-gather-done(%all-gather-start.1)
  %pair = (f32[16]{0}, f32[]) all-reduce(%a, %b), channel_id=1
  %p = f32[512,16]{1,0} collective-permute(%s), channel_id=3
"""


def test_collectives_are_counted_and_weighed():
    assert collectives(TEXT) == {"all-gather": 1, "all-reduce": 1, "collective-permute": 1}
    assert sizes(TEXT, "all-reduce") == [68]
    assert sizes(TEXT, "collective-permute") == [512 * 16 * 4]
    assert not has_host_transfers(TEXT)
    assert has_host_transfers('custom-call(), custom_call_target="xla_python_cpu_callback"')


@pytest.mark.slow  # ten programs are compiled
def test_what_eight_devices_say_to_each_other():
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(_counted.__file__))],
        env=environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert not any(row["host"] for row in rows.values())
    data, batch = (n * (_counted.DIM + 1) * 4 for n in (_counted.ROWS, _counted.BATCH))
    for name in ("fit", "minibatches", "odd rows"):
        row = rows[f"{name} on 8"]
        assert row["arguments"] < 1.05 * data / 8 + 50_000, row
        assert set(row["collectives"]) <= {"all-reduce", "all-gather"}, row
        # Numbers of the rows of a batch.
        assert sum(row["bytes"].get("all-gather", [])) <= 2 * 4 * _counted.BATCH, row
        # A minibatch is handed over whole, gradients and the value beside it; nothing of the size of the data.
        assert sum(row["bytes"]["all-reduce"]) < (1.1 * batch if name != "fit" else 0) + 1000, row
    state = _counted.ROWS * 16 * 4
    for name, one in (("smc on 8", rows["smc on 1"]), ("smc with paths on 8", rows["smc with paths on 1"])):  # fmt: skip
        row = rows[name]
        assert max(row["bytes"]["all-gather"]) == _counted.ROWS * 4, row  # weights, and no states
        assert max(row["bytes"]["collective-permute"]) == state / 8, row
        assert max(row["bytes"]["all-reduce"]) <= 8, row
        assert row["temporary"] < 0.3 * one["temporary"], (row, one)
