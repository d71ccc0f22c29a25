"""Training: trajectories, a balance loss, and its gradient, as an objective of `inference.fit`.

The sampling law is held fixed: `grad` is the derivative of the loss at the trajectories drawn, not of its expectation along the
law that draws them. No importance weights are needed, since the loss is zero at the same place whatever explores.

The gradient is taken in two parts, because trajectories are padded and networks are dear. A loss is a function of three numbers
for each position, L(l_1, ..., l_N), so that dL = sum_i (dL / dl_i) dl_i: first the cotangents dL / dl_i from numbers that the
rollout has left, then the rows' derivatives, real positions only, `rows_per_chunk` at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ... import inference, ppl
from ...ppl._types import Args
from ._gflownet import GFlowNet, neighbours
from ._losses import Loss
from ._process import Numbers, Process, TrajectoryBatch
from ._rollout import rollout
from .environments import _environment as walks

Schedule = float | Callable[[Array], Any]


class Replay(NamedTuple):
    """Trajectories seen before, learned from again.

    Attributes:
        capacity: how many of the newest trajectories are kept.
        num_trajectories: how many are replayed in a step, drawn with replacement.
        log_reward_power: b, they are drawn in proportion to R^b; 0 is uniform.
        backward: replay the objects, on fresh trajectories from P_B, instead of the trajectories themselves.
    """

    capacity: int = 1000
    num_trajectories: int = 16
    log_reward_power: float = 0.0
    backward: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Balance(inference.AbstractObjective):
    """An objective for `inference.fit(objective, optimizer, (), ...)`; made by `balance`.

    Its state is a dict: "step", and with replay "actions" [capacity, T], "log_reward" [capacity], "count".
    """

    net: GFlowNet
    loss: Loss
    batch_size: int
    epsilon: Schedule
    temperature: Schedule
    replay: Replay | None
    num_consecutive: int | None
    log_z_start: float | Literal["estimate"]
    rows_per_chunk: int
    direction: Literal["min"] = "min"

    @property
    def name(self) -> str:
        """That of the loss."""
        return self.loss.name

    @property
    def model(self) -> ppl.Program:
        """R(x) P_B(path | x)."""
        return self.net.target

    @property
    def guide(self) -> ppl.Program:
        """P_F."""
        return self.net.forward

    def init(self, key: Array, *args: PyTree) -> ppl.Params:
        """Initial parameters."""
        self._refuse(args)
        params = self.guide.init(key)
        if self.net.flow == "total":
            start: PyTree = self.log_z_start
            if start == "estimate":
                batch = rollout(self.net, self.net.modules(params), key, 16 * self.batch_size)
                log_weight = self.net.process(batch).log_weight
                start = jax.nn.logsumexp(log_weight) - jnp.log(len(log_weight))
            params["log_z"] = jnp.asarray(start, params["log_z"].dtype)
        return params

    def init_state(self, params: PyTree, key: Array, *args: PyTree) -> dict[str, Array]:
        """Counters, and an empty memory."""
        state = {"step": jnp.int32(0)}
        if self.replay is not None:
            size = self.replay.capacity
            state["actions"] = jnp.zeros((size, self.net.env.length), jnp.int32)
            state["log_reward"] = jnp.full(size, -jnp.inf, self._number_type(params))
            state["count"] = jnp.int32(0)
        return state

    def step(
        self, params: PyTree, state: PyTree, key: Array, *args: PyTree
    ) -> tuple[Array, PyTree, dict[str, Array]]:
        """Loss at fresh (and replayed) trajectories, its gradient, the next state."""
        self._refuse(args)
        batch, state, cut_key = self._collect(params, state, key)
        value, grads = self.value_and_grad_at(params, batch, cut_key)
        return value, grads, state

    def value_and_grad_at(
        self, params: PyTree, batch: TrajectoryBatch, key: Array
    ) -> tuple[Array, PyTree]:
        """Loss and gradient at a batch whose numbers are those of `params`; `key` cuts incomplete trajectories."""
        process = self._cut(self.net.process(batch), key)

        def loss(numbers: Numbers) -> Array:
            log_pf, log_pb, log_flow = numbers
            return self.loss(process._replace(log_pf=log_pf, log_pb=log_pb, log_flow=log_flow))

        value, cotangents = jax.value_and_grad(loss)(batch.numbers)
        return value, self._pull_back(params, batch, cotangents)

    def site_report(self, params: PyTree, key: Array, *args: PyTree) -> dict[str, dict[str, Array]]:
        """The parts of the process, for `fit` to say which of them is not finite."""
        process = self.net.process(
            rollout(self.net, self.net.modules(params), key, self.batch_size)
        )
        names = ("log_reward", "log_flow", "log_pf", "log_pb")
        return {n: {"log_prob": getattr(process, n), "value": getattr(process, n)} for n in names}

    def _collect(
        self, params: PyTree, state: PyTree, key: Array
    ) -> tuple[TrajectoryBatch, PyTree, Array]:
        """The trajectories of a step, the next state, and a key that is left."""
        draw_key, replay_key, cut_key = jax.random.split(key, 3)
        modules = self.net.modules(params)
        at: Any = lambda schedule: schedule(state["step"]) if callable(schedule) else schedule
        batch = rollout(
            self.net, modules, draw_key, self.batch_size, at(self.epsilon), at(self.temperature)
        )
        state = {**state, "step": state["step"] + 1}
        if self.replay is None:
            return batch, state, cut_key
        state = self._remember(state, batch)
        again = self.net.retrace(modules, self._recall(params, state, replay_key))
        batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, again)
        return batch, state, cut_key

    def _remember(self, state: dict[str, Array], batch: TrajectoryBatch) -> dict[str, Array]:
        assert self.replay is not None
        where = (state["count"] + jnp.arange(self.batch_size)) % self.replay.capacity
        log_reward = self.net.process(batch).log_reward[:, -1]
        return {
            **state,
            "actions": state["actions"].at[where].set(batch.actions),
            "log_reward": state["log_reward"].at[where].set(log_reward),
            "count": state["count"] + self.batch_size,
        }

    def _recall(self, params: PyTree, state: dict[str, Array], key: Array) -> Array:
        assert self.replay is not None
        pick_key, walk_key = jax.random.split(key)
        is_there = jnp.arange(self.replay.capacity) < state["count"]
        logits = jnp.where(is_there, self.replay.log_reward_power * state["log_reward"], -jnp.inf)
        picked = jax.random.categorical(pick_key, logits, shape=(self.replay.num_trajectories,))
        actions = state["actions"][picked]
        if not self.replay.backward:
            return actions
        last = jax.vmap(lambda a: walks.walk(self.net.env, a))(actions)
        states = jax.tree.map(lambda x: x[:, -1], last.state)
        return self.net.draw_backward(params, walk_key, states)

    def _cut(self, process: Process, key: Array) -> Process:
        if self.num_consecutive is None:
            return process
        spare = jnp.maximum(process.length - self.num_consecutive, 0)
        first = jax.random.randint(key, spare.shape, 0, spare + 1)
        last = jnp.minimum(first + self.num_consecutive, process.length)
        return process._replace(first=first, last=last)

    def _pull_back(self, params: PyTree, batch: TrajectoryBatch, cotangents: Numbers) -> Any:
        """Sum over rows of cotangent times derivative."""
        net, num_positions = self.net, self.net.env.length + 1
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        times = jnp.broadcast_to(jnp.arange(num_positions), batch.positions.is_done.shape)
        rows = jax.tree.map(flat, (batch.positions, times, *neighbours(batch.actions)))
        cotangents = jax.tree.map(flat, cotangents)
        # Complete objects have nothing to learn but P_B; a loss of parts leaves most rows out.
        is_row = ~rows[0].is_done
        if self.num_consecutive is not None:
            is_row &= jnp.stack([c != 0 for c in cotangents]).any(0)
        if net.backward_policy != "learned" and net.flow != "edges":
            is_row &= rows[1] < net.env.length

        def pull(chosen: PyTree, cotangents: Numbers) -> PyTree:
            numbers = lambda p: jax.vmap(lambda *x: net.row(net.modules(p), *x))(*chosen)
            return jax.vjp(numbers, params)[1](cotangents)[0]

        size, total = self.rows_per_chunk, len(is_row)
        if size >= total:
            return pull(rows, cotangents)
        num_rows = is_row.sum()
        order = jnp.pad(jnp.argsort(~is_row, stable=True), (0, -total % size))

        def add(loop: PyTree) -> PyTree:
            begin, grads = loop
            chosen = jax.lax.dynamic_slice(order, (begin,), (size,))
            is_new = begin + jnp.arange(size) < num_rows
            take = lambda x: x[chosen]
            parts = jax.tree.map(lambda c: jnp.where(is_new, take(c), 0.0), cotangents)
            new = pull(jax.tree.map(take, rows), parts)
            return begin + size, jax.tree.map(jnp.add, grads, new)

        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.while_loop(lambda loop: loop[0] < num_rows, add, (jnp.int32(0), zero))[1]

    def _number_type(self, params: PyTree) -> Any:
        return jnp.result_type(*jax.tree.leaves(params))

    def _refuse(self, args: Args) -> None:
        if args:
            raise TypeError(
                f"{self.name}: a GFlowNet takes no arguments, got {len(args)}; what the reward depends on belongs to its "
                "environment. Pass args=() to fit."
            )


def balance(
    net: GFlowNet,
    loss: Loss,
    *,
    batch_size: int = 16,
    epsilon: Schedule = 0.0,
    temperature: Schedule = 1.0,
    replay: Replay | None = None,
    num_consecutive: int | None = None,
    log_z_start: float | Literal["estimate"] = "estimate",
    rows_per_chunk: int = 128,
) -> Balance:
    """A balance loss of a GFlowNet as an objective for `inference.fit` (minimised).

    Args:
        net: the GFlowNet.
        loss: the loss, `trajectory_balance()`, `detailed_balance()`, ..., or a `Loss` of your own.
        batch_size: fresh trajectories in a step.
        epsilon: probability that an action is drawn uniformly; or a schedule, a function of the step's number.
        temperature: fresh trajectories follow P_F^(1 / temperature); or a schedule.
        replay: trajectories to learn from again.
        num_consecutive: learn only from so many consecutive steps of a trajectory, at a uniform place: incomplete trajectories.
        log_z_start: initial log Z; "estimate": from the weights of 16 batches.
        rows_per_chunk: positions whose gradient is taken at once; more on an accelerator.

    Raises:
        ValueError: a loss that reads flows which the net does not learn, or whole trajectories where only parts are seen; sizes
            that are impossible.

    Validity: value and gradient are those of the loss at the trajectories drawn; the gradient does not pass through the law that
    draws them, and no importance weights are needed: the loss is zero if and only if the process is constant along every
    trajectory that is drawn with positive probability, and then p_T = R / Z if all are. On policy the gradient of trajectory
    balance and of log-variance in P_F is twice that of KL(P_F || R P_B / Z), whatever log Z; of `shape="linex"` at the true
    log Z, that of the opposite KL. Trajectories from a memory (`replay`) come from policies of the past.

    Example:
        >>> import jax, optax
        >>> from lapilli import inference
        >>> from lapilli.models import gflownet
        >>> env = gflownet.Sets([0.5, -0.5, 0.2, 0.0], size=2)
        >>> net = gflownet.programs(env, forward_looking=True, num_hidden=8, key=jax.random.key(0))
        >>> loss = gflownet.balance(net, gflownet.detailed_balance(), batch_size=4)
        >>> fit = inference.fit(loss, optax.adam(1e-2), (), num_steps=5, key=jax.random.key(1), progress=False)
        >>> fit.history["value"].shape
        (5,)
    """
    problems = []
    if loss.needs_flow and net.flow == "total":
        problems.append(
            f"{loss.name} reads log F between start and end, but programs(flow='total') learns log Z alone. Use flow='network', "
            "or trajectory_balance()"
        )
    if loss.needs_whole and num_consecutive is not None:
        problems.append(
            f"{loss.name} compares the two ends of a trajectory, and num_consecutive={num_consecutive} shows it a part. Use "
            "detailed_balance() or subtrajectory_balance(), or whole trajectories"
        )
    if num_consecutive is not None and num_consecutive < 1:
        problems.append(f"num_consecutive must be at least 1, got {num_consecutive}")
    if batch_size < loss.least_batch:
        problems.append(
            f"{loss.name} needs a batch_size of at least {loss.least_batch}, got {batch_size}"
        )
    if rows_per_chunk < 1:
        problems.append(f"rows_per_chunk must be at least 1, got {rows_per_chunk}")
    if replay is not None and (replay.capacity < batch_size or replay.num_trajectories < 1):
        problems.append(
            f"replay needs a capacity of at least a batch ({batch_size}) and num_trajectories >= 1, got {replay}"
        )
    if replay is not None and replay.backward and net.prior is not None:
        problems.append(
            "replay.backward walks back from objects by P_B, and programs(backward='prior') has none. Use Replay(backward=False)"
        )
    for what, schedule, ok in (
        ("epsilon", epsilon, lambda x: 0 <= x <= 1),
        ("temperature", temperature, lambda x: x > 0),
    ):
        if not callable(schedule) and not ok(schedule):
            problems.append(f"{what} is {schedule}, out of its range")
    if problems:
        raise ValueError("balance: " + ";\n".join(problems) + ".")
    return Balance(
        net, loss, batch_size, epsilon, temperature, replay, num_consecutive, log_z_start, rows_per_chunk
    )  # fmt: skip
