"""Generative flow networks: sampling objects in proportion to a reward, action by action.

A trajectory s_0 -> ... -> s_n = x builds an object. The forward policy P_F is a guide program over a `ppl.scan`; R(x) P_B(path |
x), with the backward policy P_B, is a model, whose evidence is Z = sum_x R(x). The log-weight of the one against the other,
step by step, with a learned flow as look-ahead, is one process u_0, ..., u_n (`Process`), and every balance loss is a function of
its differences. The same programs go to `inference.smc`, `elbo` and `iwelbo`.

    env = gflownet.Hypergrid(4, 8)
    net = gflownet.programs(env, flow="total", backward="learned", key=key)
    loss = gflownet.balance(net, gflownet.trajectory_balance())
    fit = inference.fit(loss, {"policy": optax.adam(1e-3), "log_z": optax.adam(0.1)}, (), num_steps=2000, key=key)
    table = gflownet.tabulate(env)
    gflownet.total_variation(table.law(net, fit.params), table.target)

`ObjectSampler(env).fit()` does all of this with defaults, judges itself from both sides, samples, scores, and goes into a file.
A new environment is a subclass of `Environment` with eight short methods. Rewards that depend on an argument are those of
`Conditional`, and `net.given(argument)` is the GFlowNet of one argument.

Reference: Bengio et al. 2021, arXiv:2106.04399, and 2023, arXiv:2111.09266; the view taken here: Malkin et al. 2023,
arXiv:2210.00580.
"""

from ._balance import Balance as Balance, Replay as Replay, balance as balance
from ._diffusion_sampler import (
    DiffusionSampler as DiffusionSampler,
    diffusion_sampler as diffusion_sampler,
)
from ._gflownet import GFlowNet as GFlowNet
from ._losses import (
    Loss as Loss,
    detailed_balance as detailed_balance,
    log_variance as log_variance,
    subtrajectory_balance as subtrajectory_balance,
    trajectory_balance as trajectory_balance,
)
from ._metrics import (
    Best as Best,
    best as best,
    jensen_shannon as jensen_shannon,
    rank_correlation as rank_correlation,
    total_variation as total_variation,
)
from ._object_sampler import Drawn as Drawn, ObjectSampler as ObjectSampler
from ._process import Process as Process, TrajectoryBatch as TrajectoryBatch
from ._programs import programs as programs
from ._rollout import rollout as rollout
from ._table import Table as Table, tabulate as tabulate
from .environments import (
    Bits as Bits,
    Conditional as Conditional,
    Environment as Environment,
    Forest as Forest,
    Fragments as Fragments,
    Hypergrid as Hypergrid,
    Phylogenies as Phylogenies,
    Position as Position,
    Sets as Sets,
    Strings as Strings,
    Structures as Structures,
    Writing as Writing,
    bge_scores as bge_scores,
    check as check,
)

__all__ = [
    "Balance",
    "Replay",
    "balance",
    "diffusion_sampler",
    "GFlowNet",
    "Loss",
    "detailed_balance",
    "log_variance",
    "subtrajectory_balance",
    "trajectory_balance",
    "Best",
    "best",
    "jensen_shannon",
    "rank_correlation",
    "total_variation",
    "Drawn",
    "ObjectSampler",
    "programs",
    "rollout",
    "Table",
    "tabulate",
    "Bits",
    "Conditional",
    "Environment",
    "Fragments",
    "Hypergrid",
    "Phylogenies",
    "Sets",
    "Strings",
    "Structures",
    "Writing",
    "bge_scores",
    "check",
]
