"""What is communicated, read off programs compiled for eight devices: collectives of a step, their bytes, memory of a device."""

import json

import _counted
import pytest
from _collectives import collectives, has_host_transfers, sizes
from _on_mesh import finished, python

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


@pytest.mark.slow  # some twenty programs are compiled
def test_what_eight_devices_say_to_each_other():
    (out,) = finished(python(_counted.__file__, 1, 4, 8))
    rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
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
    _the_cost_model_holds(rows)
    state = _counted.ROWS * 16 * 4
    for name, one in (("smc on 8", rows["smc on 1"]), ("smc with paths on 8", rows["smc with paths on 1"])):  # fmt: skip
        row = rows[name]
        assert max(row["bytes"]["all-gather"]) == _counted.ROWS * 4, row  # weights, and no states
        assert max(row["bytes"]["collective-permute"]) == state / 8, row
        assert max(row["bytes"]["all-reduce"]) <= 8, row
        assert row["temporary"] < 0.3 * one["temporary"], (row, one)


def _the_cost_model_holds(rows):
    """What the page on devices says of any number of them: of operations a + b / D, of bytes the formulas."""
    num_params, state = _counted.DIM, 4 * _counted.DIM
    for name, tolerance in (("fit", 0.001), ("smc", 0.05)):
        one, four, eight = (rows[f"{name} on {d}"]["operations"] for d in (1, 4, 8))
        falls = (one - eight) * 8 / 7
        assert abs(one - falls + falls / 4 - four) < tolerance * four
        # As many rows or particles on each device: what is done on one, and that on all weights.
        stays = rows[f"share of {name}"]["operations"] + (one - falls if name == "smc" else 0)
        assert eight < 1.05 * stays
    for d in (4, 8):
        told = {name: rows[f"{name} on {d}"]["bytes"] for name in ("fit", "minibatches", "smc")}
        assert told["fit"] == {"all-reduce": [4 * (num_params + 1)]}
        assert told["minibatches"]["all-reduce"][:2] == [
            4 * _counted.BATCH * (num_params + 1),
            4 * (num_params + 1),
        ]
        assert set(told["smc"]["all-gather"]) == {4 * _counted.ROWS}
        assert set(told["smc"]["collective-permute"]) == {state * _counted.ROWS // d}
