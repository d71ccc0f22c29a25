"""A fit in one, two and four processes of four devices in all; a script, since processes join before anything runs.

    python tests/_helpers/_on_hosts.py PORT RANK PROCESSES MODE FOLDER

`start` runs it in every process. `batches` prints each run's values, to the bit; `refusals` and `fails` what each process says;
`save` and `resume` leave a checkpoint and go on from it, `parts` and `resume_parts` of parameters in parts.
"""

import os
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _on_mesh import free_port, python
from jax.experimental import multihost_utils

from lapilli import inference, ppl
from lapilli.inference.fitting import ProcessLocal

DEVICES, STEPS = 4, 10
ROWS = np.arange(1, 17, dtype=np.float32)
SIZES = {1: [16], 2: [5, 11], 4: [1, 6, 2, 7]}  # of the files of the processes


def start(mode, num_processes, folder=""):
    """What each process prints, and how it ended."""
    processes = started(mode, num_processes, folder)
    return [(p.communicate(timeout=500)[0], p.returncode) for p in processes]


def started(mode, num_processes, folder=""):
    """The processes."""
    port, options = free_port(), {"devices": DEVICES // num_processes, "stderr": subprocess.STDOUT}
    return [
        python(__file__, port, rank, num_processes, mode, folder, **options)
        for rank in range(num_processes)
    ]


def exact():
    """An objective whose values say which rows a step saw in which places: sums of whole numbers, the same in any order."""
    from _fit_fakes import (
        Objective,  # computes when it is imported, and processes have to meet before
    )

    class Exact(Objective):
        def step(self, params, state, key, x):
            _, grads, state = super().step(params, state, key, x)
            return (x * (1 + jnp.arange(len(x)))).sum(), grads, state

        def with_plate_sizes(self, sizes):
            return Exact(sizes)

    return Exact()


class Loader:
    """Batches of four rows without end, of which process p of P has its part; it says where it stands."""

    def __init__(self, rank, num, fails_at=None, stops_at=None):
        self.rank, self.num, self.at, self.fails_at, self.stops_at = rank, num, 0, fails_at, stops_at  # fmt: skip

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == self.fails_at:
            raise OSError("the disk is gone")
        if self.at == self.stops_at:
            raise StopIteration
        rows = ROWS[np.random.default_rng(self.at).permutation(16)[:4]]
        self.at += 1
        size = 4 // self.num
        return (rows[self.rank * size : (self.rank + 1) * size],)

    def get_state(self):
        return {"at": self.at, "rank": self.rank}

    def set_state(self, state):
        assert state["rank"] == self.rank, "another process's state"
        self.at = state["at"]


@ppl.model
def model(x, group):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mu + group.sum(), 10.0), obs=x)


def guide(x, group):
    ppl.sample("mu", dist.Normal(ppl.param("loc", 0.0), 1.0))


def fit(objective, args, **options):
    options = {"num_steps": STEPS, "key": jax.random.key(0), "progress": False} | options
    return inference.fit(objective, optax.adam(0.1), args, mesh=MESH, **options)


def own_rows(rank, num):
    begin = np.cumsum([0, *SIZES[num]])
    return ROWS[begin[rank] : begin[rank + 1]]


def batches(rank, num, folder):
    """Runs whose batches do not depend on the number of processes."""
    path = f"{folder}/rows{rank}of{num}.npy"
    np.save(path, ROWS)
    mapped = np.load(path, mmap_mode="r")
    local = ProcessLocal((own_rows(rank, num),), plate="rows")
    few, many = {"subsample": {"rows": 4}}, {"plate_sizes": {"rows": 16}}
    runs = {
        "arrays": ((ROWS,), few),
        "files": (local, few),
        "whole": (local, {}),
        "mapped": ((mapped,), few),
        "loader": (ProcessLocal(Loader(rank, num), "rows"), many),
        "tied loader": (ProcessLocal(Loader(rank, num), "rows"), many | {"prefetch": 0}),
        "seeds": (local, few | {"num_seeds": 2}),
    }
    for name, (args, options) in runs.items():
        result = fit(exact(), args, **options)
        print(f"{name}: {np.asarray(result.history['value']).tolist()}", flush=True)
    program = ProcessLocal((own_rows(rank, num), np.ones(3, np.float32)), plate="rows")
    for name, options in (("program", few), ("program whole", {})):
        result = fit(inference.elbo(model, guide), program, **options)
        print(f"about {name}: {float(result.params['loc'])!r}", flush=True)


def refusals(rank, num, folder):
    local = lambda **options: ProcessLocal(Loader(rank, num, **options), "rows")
    many, few = {"plate_sizes": {"rows": 16}}, {"subsample": {"rows": 4}}
    own = np.zeros(4 + rank, np.float32)
    lists = ProcessLocal([(ROWS[:2],)] * (3 + rank), "rows")
    runs = {
        "other data": ((ROWS + rank,), few),
        "other key": ((ROWS,), few | {"key": jax.random.key(rank)}),
        "odd rows": (ProcessLocal((own,), "rows"), few),
        "other kinds": (ProcessLocal((np.zeros((4, 1 + rank), np.float32),), "rows"), few),
        "other batches": (([(ROWS[:4] + rank,)]), many),
        "ends": (local(stops_at=3 + rank), many),
        "starts anew": (lists, many),
        "fails": (local(fails_at=3 if rank else None), many),
        "fails at once": (local(fails_at=0 if rank else None), many),
        "small": (ProcessLocal([(ROWS[: 2 + 2 * rank],)] * 9, "rows"), many),
        "no plate": (ProcessLocal((ROWS,), "columns"), few),
    }
    for name, (args, options) in runs.items():
        try:
            fit(exact(), args, **options)
        except (ValueError, RuntimeError, OSError) as err:
            print(f"{name}: {type(err).__name__} {' '.join(str(err).split())}", flush=True)


class Preempted(Exception):
    pass


def preempt(info):
    if info.step == 7:
        raise Preempted


def save(rank, num, folder):
    """Runs of two kinds of data that end in the middle."""
    for name, result in runs_with_files(rank, num, folder, [preempt]):
        print(f"{name}: {result}", flush=True)


def resume(rank, num, folder):
    for name, result in runs_with_files(rank, num, folder, []):
        print(f"{name}: {np.asarray(result.history['value']).tolist()}", flush=True)
        print(f"about {name}: {float(result.params['loc'])!r}", flush=True)


def runs_with_files(rank, num, folder, callbacks):
    os.makedirs(folder, exist_ok=True)
    local = ProcessLocal((own_rows(rank, num),), plate="rows")
    few, many = {"subsample": {"rows": 4}}, {"plate_sizes": {"rows": 16}}
    loader = ProcessLocal(Loader(rank, num), "rows")
    for name, args, options in (("files", local, few), ("loader", loader, many)):
        try:
            yield name, fit(exact(), args, checkpoint=f"{folder}/{name}", checkpoint_every=3,
                            callbacks=callbacks, callback_every=7, **options)  # fmt: skip
        except Preempted:
            yield name, "preempted"


@ppl.model
def wide(x):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mu.sum(), 10.0), obs=x)


def wide_guide(x):
    ppl.sample("mu", dist.Normal(ppl.param("loc", jnp.zeros(8)), 0.1).to_event(1))


def forever(rank, num, folder, pause=0.05, **options):
    """A run with a checkpoint; it says how far it is."""

    def tell(info):
        print(f"step {info.step}", flush=True)
        time.sleep(pause)

    local = ProcessLocal((own_rows(rank, num),), plate="rows")
    result = fit(
        inference.elbo(wide, wide_guide), local, subsample={"rows": 4}, num_steps=60,
        checkpoint=f"{folder}/run", checkpoint_every=5, callbacks=[tell], callback_every=2,
        **options,
    )  # fmt: skip
    print(f"values: {np.asarray(result.history['value']).tolist()}", flush=True)


def finish(rank, num, folder):
    forever(rank, num, folder, pause=0.0)


def forever_parts(rank, num, folder):
    forever(rank, num, folder, shardings={"loc": "rows"})


def finish_parts(rank, num, folder):
    forever(rank, num, folder, pause=0.0, shardings={"loc": "rows"})


def crash(info):
    raise OSError("no place for the picture")


@ppl.model
def net(x, y):
    network = ppl.module("net", eqx.nn.MLP(8, 1, 16, 2, key=jax.random.key(1)))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(jax.vmap(network)(x)[:, 0], 1.0), obs=y)


def nothing(x, y):
    """No latent sites."""


NET_X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


def split_fit(folder="", **options):
    """A run whose parameters lie on the devices of all processes, and the averages of whose iterates do."""
    options = {"subsample": {"rows": 4}, "average": "polyak"} | options
    if folder:
        options |= {"checkpoint": folder, "checkpoint_every": 3}
    bound = inference.elbo(wide, wide_guide)
    return fit(bound, (ROWS,), shardings={"loc": "rows"}, **options)


def told(name, result):
    """Values, and parameters whole."""
    loc = result.params["loc"]
    assert loc.addressable_shards[0].data.shape == (8 // DEVICES,), loc.sharding
    whole = multihost_utils.process_allgather(loc, tiled=True)
    for mesh in (None, MESH):
        draws = result.posterior(jax.random.key(1), 12, mesh=mesh).log_weights
        print(
            f"{'weights' if mesh is None else 'split weights'} of {name}: {draws.tolist()}",
            flush=True,
        )
    assert "loc" in str(result)
    for label, found in (("values", result.history["value"]), ("loc", whole)):
        print(f"{label} of {name}: {np.asarray(found).tolist()}", flush=True)


def parts(rank, num, folder):
    """Parameters in parts, on devices of all processes; a checkpoint is left of a run that ends in the middle."""
    told("minibatches", split_fit())
    told("all rows", split_fit(subsample=None))
    network = fit(inference.elbo(net, nothing), (NET_X, NET_X.sum(1)), shardings={"net": "rows"})
    weight = network.params["net"].layers[1].weight
    assert weight.addressable_shards[0].data.size == weight.size // DEVICES
    print(f"about network: {np.asarray(network.history['value']).tolist()}", flush=True)
    os.makedirs(folder, exist_ok=True)
    try:
        network.save(f"{folder}/network.npz")
    except ValueError as err:
        print(f"saving: {err}", flush=True)
    gather = lambda params: multihost_utils.process_allgather(params, tiled=True)
    network.with_params(gather(network.params)).save(f"{folder}/whole.npz")
    try:
        split_fit(f"{folder}/parts", callbacks=[preempt], callback_every=7)
    except Preempted:
        print("preempted: yes", flush=True)


def resume_parts(rank, num, folder):
    told("minibatches", split_fit(f"{folder}/parts"))


def fails(rank, num, folder):
    """A callback that fails in one process."""
    try:
        fit(
            exact(),
            (ROWS,),
            subsample={"rows": 4},
            callback_every=2,
            callbacks=[crash] if rank else [preempt],
        )
    except (OSError, RuntimeError) as err:
        print(f"callback: {type(err).__name__} {err}", flush=True)


if __name__ == "__main__":
    port, rank, num, mode, folder = sys.argv[1:]
    rank, num = int(rank), int(num)
    if num > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes=num, process_id=rank)
    assert jax.device_count() == DEVICES
    MESH = jax.make_mesh((DEVICES,), ("rows",))
    modes = (
        batches,
        refusals,
        save,
        resume,
        forever,
        finish,
        forever_parts,
        finish_parts,
        parts,
        resume_parts,
        fails,
    )
    {fn.__name__: fn for fn in modes}[mode](rank, num, folder)
