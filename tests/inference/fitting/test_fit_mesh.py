"""fit over a mesh of two forced host devices gives the numbers of one device, and resumes from its checkpoints.

Parameters, optimiser and state are whole on every device, so that one file written by one process holds all of them.
"""

import jax
import numpy as np
import optax
import pytest
from _fit_fakes import Objective
from _on_mesh import finished, free_port, python

from lapilli.inference.fitting._fit import fit

PROGRAM = """
import jax, numpy as np, optax
from _fit_fakes import Objective
from lapilli.inference.fitting._fit import fit
from lapilli.inference.fitting.data import Minibatches

assert jax.device_count() == 2
X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
MANY = np.linspace(0.5, 3.0, 1000, dtype=np.float32)
options = {"num_steps": 12, "key": jax.random.key(0), "progress": False}
cases = {
    "full": ((X,), {}),
    "minibatches": ((X,), {"subsample": {"rows": 4}}),
    "many rows": ((MANY,), {"subsample": {"rows": 4}}),
    "batches": ([(X[:4],), (X[4:8],), (X[8:],)], {"plate_sizes": {"rows": 12}}),
    "seeds": ((X,), {"subsample": {"rows": 4}, "num_seeds": 2}),
}
for name, (args, extra) in cases.items():
    one = fit(Objective(), optax.adam(1e-2), args, **options, **extra)
    for mesh in (jax.make_mesh((2,), ("data",)), jax.sharding.Mesh(jax.devices(), ("data",))):
        objective = Objective()
        two = fit(objective, optax.adam(1e-2), args, **options, **extra, mesh=mesh)
        assert objective.num_traces == [1], (name, objective.num_traces)
        np.testing.assert_allclose(two.history["value"], one.history["value"], rtol=1e-5)
        for leaf, want in zip(jax.tree.leaves(two.params), jax.tree.leaves(one.params), strict=True):
            np.testing.assert_allclose(leaf, want, rtol=1e-5)
            assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 2
    print("same", name)


both = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 1), ("seeds", "data"))
for mesh in (both, jax.make_mesh((2,), ("seeds",))):
    two = fit(Objective(), optax.adam(1e-2), args, **options, **extra, mesh=mesh)
    np.testing.assert_allclose(two.history["value"], one.history["value"], rtol=1e-5)
    for leaf, want in zip(jax.tree.leaves(two.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(leaf, want, rtol=1e-5)
        assert leaf.addressable_shards[0].data.shape == (1,), leaf.sharding
print("split seeds")
mesh = jax.make_mesh((2,), ("data",))


class Look(Objective):
    def step(self, params, state, key, x):
        shape = x.shape
        jax.debug.inspect_array_sharding(x, callback=lambda s: print("rows", s.shard_shape(shape)))
        return super().step(params, state, key, x)

    def with_plate_sizes(self, sizes):
        return Look(sizes)


fit(Look(), optax.sgd(0.1), (X,), subsample={"rows": 4}, mesh=mesh, **options)
for rows in (12, 13):  # 13 cannot be shared out
    (held,) = Minibatches((np.zeros(rows),), {"rows": 4}, {"rows": rows}, mesh, ["rows"])._data
    print(rows, "rows, held by a device:", *held.sharding.shard_shape(held.shape))
draws = two.best().posterior(jax.random.key(1), 4)
assert draws.log_weights.shape == (4,)
"""


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one():
    (out,) = finished(python("-c", PROGRAM, devices=2))
    for name in ("full", "minibatches", "many rows", "batches", "seeds"):
        assert f"same {name}" in out
    assert "split seeds" in out
    assert "rows (2,)" in out  # each device computed on half of the minibatch
    assert "12 rows, held by a device: 6" in out
    assert "13 rows, held by a device: 7" in out


RESUME = """
import sys, jax, numpy as np, optax
path, port, rank = sys.argv[1:]
if port:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
from _fit_fakes import Objective
from lapilli.inference.fitting._fit import fit

assert jax.device_count() == 2 and jax.local_device_count() == (1 if port else 2)


class Crash(Exception):
    pass


def crash(info):
    if info.step == 13:
        raise Crash


def run(**options):
    return fit(
        Objective(), optax.adam(1e-2), (np.linspace(0.5, 3.0, 12, dtype=np.float32),), subsample={"rows": 4},
        num_steps=20, key=jax.random.key(0), progress=False, checkpoint_every=6, **options,
    )


mesh = jax.make_mesh((2,), ("data",))
straight = run(mesh=mesh)
try:
    run(mesh=mesh, checkpoint=path, callbacks=[crash], callback_every=13)
except Crash:
    resumed = run(mesh=mesh, checkpoint=path)
for a, b in zip(
    *(jax.tree.leaves((f.params, f.last_params, f.state, f.history)) for f in (straight, resumed)), strict=True
):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
print("same", resumed.steps)
"""


def start(*args, devices):
    return python("-c", RESUME, *args, devices=devices)


@pytest.mark.slow
def test_a_checkpoint_of_two_devices_resumes_to_the_bit(tmp_path):
    (out,) = finished(start(tmp_path / "run.ckpt", "", 0, devices=2))
    assert "same 20" in out


@pytest.mark.slow  # two processes compile
def test_a_checkpoint_of_two_processes_resumes_to_the_bit(tmp_path):
    port = free_port()
    for out in finished(
        *(start(tmp_path / "run.ckpt", port, rank, devices=1) for rank in range(2))
    ):
        assert "same 20" in out
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsample": {"rows": 3}}, "cannot be split evenly over 2 devices"),
        ({}, "no argument has as its leading axis a plate that 2 devices divide"),
        (
            {"mesh": "seeds"},
            "its axis 'seeds' splits independent runs over 2 devices, and num_seeds=None",
        ),
        (
            {"mesh": "seeds", "num_seeds": 3},
            "splits independent runs over 2 devices, and num_seeds=3",
        ),
    ],
    ids=["minibatch", "full", "one seed", "odd seeds"],
)
def test_a_batch_that_devices_do_not_divide_is_refused(options, message):
    device = jax.devices()[0]
    options = dict(options)
    mesh = jax.sharding.Mesh(np.array([device, device]), (options.pop("mesh", "data"),))
    with pytest.raises(ValueError, match=message):
        fit(
            Objective(),
            optax.sgd(0.1),
            (np.ones(9, np.float32),),
            num_steps=1,
            key=jax.random.key(0),
            mesh=mesh,
            progress=False,
            **options,
        )
