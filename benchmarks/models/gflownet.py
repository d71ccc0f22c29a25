"""How fast do GFlowNets train here, and after how many iterations are they right?

Question: trajectories per second, and iterations to a total variation of 0.1 (exact, by dynamic programming), on the 8^4
hypergrid with R0 = 1e-3, beside torchgfn 2.4.1 and gfnx 0.0.1.

Settings of all three: on policy, batch 16, P_B learned on a shared 2 x 256 perceptron, log F a perceptron of its own, Adam 1e-3,
log Z at 0.1 from 0, lambda 0.9; float32, one thread, one core. The peers' figures were measured once on a quiet machine of the
same kind (torch 2.13.0; jax 0.7.1), one core and batch 16, and are quoted; ours are measured now. On one core the ratios are of
CPU seconds of this process, which a loaded machine inflates somewhat; on several, of wall time. What differs: finished
trajectories are not stepped on once all are finished, and gradients are taken of real positions only, packed; gfnx always pays
for 33 positions. Answer: about twice as fast as gfnx and six to ten times as torchgfn; a second thread halves the speed in
batches of 16 and raises it by half and more in batches of 1,024. Figures: docs/_data/figures, gflownets/gflownet_speed (`--batch
16 1024`).

--explore asks another thing: how soon trajectory balance leaves the plateau of the 20^2 grid (total variation 0.75, one of four
modes found), on policy (gfnx: between 3,250 and 3,500 iterations), with random actions, with a memory of good objects. Answer, of
three seeds: on policy after 2,500, 2,750 and not within 3,000 iterations; with a tenth of random actions after 1,750, 1,750 and
2,250, and at 0.04 after 3,000; the memory never leaves it, since it holds only what was found.

    taskset -c 0 python benchmarks/models/gflownet.py [--losses TB DB SubTB] [--batch 16 1024] [--converge] [--explore]
        [--record]

Without taskset on all cores.
"""

import argparse
import os
import sys
import time
from pathlib import Path

NUM_CORES = len(os.sched_getaffinity(0))
if NUM_CORES == 1:
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from lapilli import inference  # noqa: E402  (the flags come first)
from lapilli.models import gflownet  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import parsed, record_figure  # noqa: E402

# Trajectories a second: (torchgfn, gfnx).
PEERS = {"TB": (708, 3598), "DB": (577, 1970), "SubTB": (487, 2067)}
LOSSES = {
    "TB": (gflownet.trajectory_balance(), "total"),
    "DB": (gflownet.detailed_balance(), "network"),
    "SubTB": (gflownet.subtrajectory_balance(0.9), "network"),
}


EXPLORATION = {
    "on policy": {},
    "epsilon 0.1": {"epsilon": 0.1},
    "replay": {
        "replay": gflownet.Replay(10_000, 8, log_reward_power=0.5, backward=True),
        "batch_size": 8,
    },
}


def make(name: str, batch_size: int = 16, env=None, **options):
    loss, flow = LOSSES[name]
    env = env or gflownet.Hypergrid(4, 8)
    net = gflownet.programs(env, flow=flow, backward="learned", key=jax.random.key(0))
    chunk = 128 if batch_size < 256 else 1024
    objective = gflownet.balance(
        net,
        loss,
        **{"batch_size": batch_size, "log_z_start": 0.0, "rows_per_chunk": chunk, **options},
    )
    rates = {"policy": optax.adam(1e-3)}
    rates |= {"log_z": optax.adam(0.1)} if flow == "total" else {"flow": optax.adam(1e-3)}
    return net, objective, rates


def speed(name: str, batch_size: int) -> float:
    """Trajectories per second."""
    num_steps = 1_000 if batch_size < 256 else 40
    _, objective, rates = make(name, batch_size)
    clock = []
    tick = lambda info: clock.append((info.step, time.process_time(), time.perf_counter()))
    begin = time.perf_counter()
    inference.fit(
        objective, rates, (), num_steps=num_steps, key=jax.random.key(0), progress=False,
        callbacks=[tick], callback_every=num_steps // 4,
    )  # fmt: skip
    first, last = clock[0], clock[-1]
    cpu, wall = ((last[i] - first[i]) / (last[0] - first[0]) for i in (1, 2))
    per_second = batch_size / (cpu if NUM_CORES == 1 else wall)
    torchgfn, gfnx = PEERS[name]
    compile_s = first[2] - begin - wall * first[0]
    print(
        f"{name:6} {batch_size:6} {1e3 * cpu:10.2f} {1e3 * wall:10.2f} {per_second:12.0f} {per_second / torchgfn:9.1f}"
        f" {per_second / gfnx:6.2f} {compile_s:10.1f}",
        flush=True,
    )
    return per_second


def record(found: dict[tuple[str, int], float]) -> None:
    """The speeds, for the page of figures; one record for one core, one for several."""
    record_figure(
        "gflownets/gflownet_speed" + ("_cores" if NUM_CORES > 1 else ""),
        what=f"trajectories per second of {'processor time' if NUM_CORES == 1 else 'time'}, 8^4 hypergrid, {NUM_CORES} "
        f"core{'s' * (NUM_CORES > 1)}",
        value={f"{name}, batch {size}": per_second for (name, size), per_second in found.items()},
        claim={
            f"{name}, batch {size}": float(PEERS[name][1]) for name, size in found if size == 16
        },
        claimed_by="gfnx 0.0.1, one core",
        digits=0,
        measures=["models/gflownet"],
    )


def converge(
    name: str, label: str, env=None, num_seeds=5, num_steps=2_000, threshold=0.1, **options
):
    net, objective, rates = make(name, env=env, **options)
    table, rows = gflownet.tabulate(net.env), []

    def judge(info):
        laws = [
            table.law(net, jax.tree.map(lambda x, s=s: x[s], info.params)) for s in range(num_seeds)
        ]
        rows.append((info.step, [gflownet.total_variation(p, table.target) for p in laws]))

    inference.fit(
        objective, rates, (), num_steps=num_steps, key=jax.random.key(0), num_seeds=num_seeds,
        callbacks=[judge], callback_every=250, progress=False,
    )  # fmt: skip
    steps, distances = (np.array(x) for x in zip(*rows, strict=True))
    reached = [
        float(steps[d < threshold][0]) if (d < threshold).any() else np.inf for d in distances.T
    ]
    print(
        f"{label}: TV < {threshold} after {reached} (median {np.median(reached)}); medians by step:"
    )
    print(
        "      ",
        *(f"{s}: {np.median(d):.3f}" for s, d in zip(steps, distances, strict=True)),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="GFlowNets on the hypergrid.")
    parser.add_argument("--losses", nargs="*", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--batch", type=int, nargs="*", default=[16])
    parser.add_argument("--converge", action="store_true", help="total variation over five seeds")
    parser.add_argument("--explore", action="store_true", help="the plateau of the 20^2 grid")
    options = parsed(parser)
    clock = "CPU s" if NUM_CORES == 1 else "s"
    print(f"jax {jax.__version__}, {NUM_CORES} core(s), load {os.getloadavg()[0]:.1f}, float32")
    print(
        f"{'loss':6} {'batch':>6} {'CPU ms/it':>10} {'wall ms/it':>10} {'traj/' + clock:>12} "
        f"{'torchgfn':>9} {'gfnx':>6} {'compile s':>10}"
    )
    speeds = {(name, size): speed(name, size) for name in options.losses for size in options.batch}
    if options.record:
        record(speeds)
    if options.converge:
        for name in options.losses:
            converge(name, name)
    if options.explore:
        for label, behaviour in EXPLORATION.items():
            env = gflownet.Hypergrid(2, 20)
            converge("TB", label, env, 3, 3_000, 0.7, **behaviour)


if __name__ == "__main__":
    main()
