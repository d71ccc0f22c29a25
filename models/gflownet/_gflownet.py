"""A GFlowNet as programs: P_F is a guide, R(x) P_B(path | x) a model, and their log-weight is what all losses balance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ParamMap
from .._trained import trained
from ._process import Process, TrajectoryBatch
from .environments import Conditional, _environment as walks
from .environments._environment import EXCLUDED, Environment, Position, log_softmax

Flow = Literal["total", "network", "shared", "stop", "edges"]
Backward = Literal["uniform", "learned", "prior"]


class Modules(NamedTuple):
    """What is learned: `policy` and `flow` map features to outputs, `log_z` is a number; None where a model has none."""

    policy: Callable[[Array], Array]
    flow: Callable[[Array], Array] | None
    log_z: Array | None


class Heads(NamedTuple):
    """At one position: log P_F of each action, log P_B of each last action, and the learned part of log F, 0 at the end.

    With a prior, log P_B is zero here: see `GFlowNet.log_led`.
    """

    log_pf: Float[Array, " choices"]
    log_pb: Float[Array, " choices"]
    log_flow: Float[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class GFlowNet:
    """Forward policy, backward policy, flow and reward over one environment; made by `programs`.

    The programs have one latent site "action", [T], with the stop action repeated once an object is complete:

    - `forward`: P_F(path), a guide; its gradient is the score function's unless strategies say otherwise. Deterministic
      "log_flow" [T], the learned part of log F(s_t). Returns the object.
    - `target`: R(x) P_B(path | x), a model, not normalised: its evidence is Z. Actions are drawn uniformly among legal ones, and
      factors turn that law into P_B: "backward" [T], and "reward", one number for the object; with forward-looking flows one
      for each step, log R(s_{t+1}) - log R(s_t), and "start".
    - `backward`: P_B(path | x) as a program of x that walks back to the start; its "action" is in the order of the walk.

    With a prior policy p (`prior`) in place of P_B, the target is p(path) R(x): the posterior of what p builds under the
    likelihood R, and Z = E_p[R]. The flow is then F(s) = E_p[R(x) | s], and every balance loss holds with p for P_B: trajectory
    balance is relative trajectory balance. There is no `backward`.

    So `inference.elbo(net.target, net.forward)`, `iwelbo`, `smc(net.target, key, proposal=net.forward)` and all that takes a
    model and a guide apply, with parameters bound or given. Z-hat is unbiased whatever the flow, but where rewards of incomplete
    objects (or a badly learned flow, as `twist`) favour those that lead nowhere, resampling makes its variance huge;
    `policy=inference.particles.resampling.never()` is importance sampling, as good as P_F. The upper bound of log Z (EUBO) is
    the mean of `log_weight_process(params, draw_backward(params, key, x)).log_weight` over objects x from R / Z.

    Attributes:
        env: the environment.
        policy: initial policy network.
        flow: which flow is learned, see `programs`.
        flow_network: initial flow network, or None.
        backward_policy: "uniform", "learned" or "prior".
        forward_looking: whether log F(s) = log R(s) + learned part.
        prior: the prior policy, fixed, or None.
    """

    env: Environment
    policy: Any
    flow: Flow
    flow_network: Any
    backward_policy: Backward
    forward_looking: bool
    prior: Callable[[Array], Array] | None = None

    def modules(self, params: ParamMap) -> Modules:
        """The networks at these parameters."""
        flow = None if self.flow_network is None else trained(self.flow_network, params, "flow")
        log_z = params["log_z"] if self.flow == "total" else None
        return Modules(trained(self.policy, params, "policy"), flow, log_z)

    def heads(self, modules: Modules, position: Position, t: Array) -> Heads:
        """Policies and flow at one position of number t."""
        env, outputs = self.env, modules.policy(self.env.observe(position.state))
        log_pf = log_softmax(self._forward_logits(outputs, position), walks.legal(env, position))
        log_pb = self._log_backward(modules, outputs, position)
        # Pinned where the object is complete: otherwise any policy has a flow without residuals.
        is_end = position.is_done | (t >= env.length)
        log_flow = self._log_flow(modules, outputs, position, log_pf, t)
        return Heads(log_pf, log_pb, jnp.where(is_end, 0.0, log_flow))

    def _forward_logits(self, outputs: Array, position: Position) -> Array:
        logits = outputs[: self.env.num_choices]
        if self.flow == "edges" and self.env.stops:
            # The flow of the stop edge is the reward, and nothing is learned of it.
            logits = logits.at[-1].set(self.env.log_reward(position.state))
        return logits

    def _log_backward(self, modules: Modules, outputs: Array, position: Position) -> Array:
        env, mask = self.env, walks.removable(self.env, position)
        if self.prior is not None:
            return jnp.zeros(env.num_choices, outputs.dtype)
        if self.flow == "edges":
            actions = jnp.arange(env.num_actions)
            parents = jax.vmap(env.undo, (None, 0))(position.state, actions)
            edges = jax.vmap(lambda s: modules.policy(env.observe(s)))(parents)
            logits = edges[actions, actions]
        elif self.backward_policy == "learned":
            logits = outputs[env.num_choices : env.num_choices + env.num_actions]
        else:
            logits = jnp.zeros(env.num_actions, outputs.dtype)
        return log_softmax(jnp.pad(logits, (0, env.num_choices - env.num_actions)), mask)

    def _log_flow(
        self, modules: Modules, outputs: Array, position: Position, log_pf: Array, t: Array
    ) -> Array:
        if modules.log_z is not None:
            return jnp.where(t == 0, modules.log_z, 0.0)
        if self.flow == "stop":
            return -log_pf[-1]
        if self.flow == "edges":
            logits = self._forward_logits(outputs, position)
            return jax.nn.logsumexp(jnp.where(walks.legal(self.env, position), logits, EXCLUDED))
        if self.flow == "shared":
            return outputs[-1]
        assert modules.flow is not None
        return modules.flow(self.env.observe(position.state))[0]

    def row(
        self, modules: Modules, position: Position, t: Array, taken: Array, led: Array
    ) -> tuple[Array, Array, Array]:
        """(log_pf, log_pb, log_flow) of a `Process` at one position, where `taken` is the action there, `led` the last one."""
        heads = self.heads(modules, position, t)
        log_pf = jnp.where(t < self.env.length, heads.log_pf[taken], 0.0)
        return log_pf, jnp.where(t > 0, self.log_led(heads, position, led), 0.0), heads.log_flow

    def log_led(self, heads: Heads, position: Position, led: Array) -> Array:
        """Log P_B of the action that led to a position, or what the prior gave it; the prior's stops count in the reward."""
        if self.prior is None:
            return heads.log_pb[led]
        before = walks.retreat(self.env, position, led)
        is_stop = self.env.stops & (led == self.env.num_actions)
        return jnp.where(is_stop, 0.0, self.log_prior(before)[led])

    def log_prior(self, position: Position) -> Array:
        """Log-probs of the prior policy, [choices]."""
        assert self.prior is not None
        logits = jax.lax.stop_gradient(self.prior(self.env.observe(position.state)))
        return log_softmax(logits, walks.legal(self.env, position))

    def log_reward_at_end(self, state: PyTree) -> Array:
        """Log R of a complete object, with the log-probability that a prior stops there."""
        log_reward = self.env.log_reward(state)
        if self.prior is None or not self.env.stops:
            return log_reward
        return log_reward + self.log_prior(Position(state, jnp.zeros((), bool)))[-1]

    def log_weight_process(self, params: ParamMap, actions: Int[Array, "batch steps"]) -> Process:
        """The process along given trajectories, differentiable in the parameters.

        Args:
            params: unconstrained parameters, as from `balance(...).init` or `Fit.params`.
            actions: [batch, T], the stop action repeated to the end.
        """
        return self.process(self.retrace(self.modules(params), actions))

    def retrace(self, modules: Modules, actions: Int[Array, "batch steps"]) -> TrajectoryBatch:
        """Given trajectories with the model's numbers along them."""
        positions = jax.vmap(lambda a: walks.walk(self.env, a))(actions)
        taken, led = neighbours(actions)
        rows = jax.vmap(jax.vmap(lambda *x: self.row(modules, *x)), (0, None, 0, 0))
        numbers = rows(positions, jnp.arange(self.env.length + 1), taken, led)
        return TrajectoryBatch(actions, positions, numbers)

    def process(self, batch: TrajectoryBatch) -> Process:
        """The process of a batch."""
        position, num_positions = batch.positions, self.env.length + 1
        length = jnp.full(len(batch.actions), self.env.length)
        if self.env.stops:
            length = num_positions - position.is_done.sum(1)
        last = jax.tree.map(lambda x: x[:, -1], position.state)
        end = jax.vmap(self.log_reward_at_end)(last)[:, None]
        known = jnp.zeros_like(end)
        if self.forward_looking:
            known = jax.vmap(jax.vmap(self.env.log_reward))(position.state)
        is_open = jnp.arange(num_positions) < length[:, None]
        log_reward = jnp.where(is_open, known, end)
        return Process(*batch.numbers, log_reward, length, jnp.zeros_like(length), length)

    @property
    def forward(self) -> ppl.Program:
        """P_F."""

        @ppl.model
        def forward() -> PyTree:
            modules = self.declare()

            def step(position: Position, t: Array) -> tuple[Position, None]:
                heads = self.heads(modules, position, t)
                ppl.deterministic("log_flow", heads.log_flow)
                action = ppl.sample(
                    "action", dist.CategoricalLogits(heads.log_pf), strategy="reinforce"
                )
                return walks.advance(self.env, position, action), None

            last, _ = ppl.scan(step, walks.start(self.env), jnp.arange(self.env.length))
            return last.state

        return forward

    @property
    def target(self) -> ppl.Program:
        """R(x) P_B(path | x), or R(x) p(path) for a prior policy p."""
        return target_of(self)

    @property
    def backward(self) -> ppl.Program:
        """P_B, a program of the object.

        Raises:
            ValueError: a prior policy takes its place, which is no law of the way back.
        """
        if self.prior is not None:
            raise ValueError(
                "GFlowNet.backward: the target is prior(path) R(x), and the law of the path given x is not at hand. Use "
                "backward='uniform' or 'learned', or draw from `forward`."
            )
        env = self.env

        @ppl.model
        def backward(state: PyTree) -> PyTree:
            modules = self.declare()

            def step(position: Position, t: Array) -> tuple[Position, None]:
                log_pb = self.heads(modules, position, t).log_pb
                action = ppl.sample("action", dist.CategoricalLogits(log_pb))
                return walks.retreat(env, position, action), None

            times = jnp.arange(env.length, 0, -1)
            first, _ = ppl.scan(step, walks.complete(env, state), times)
            return first.state

        return backward

    def draw_backward(
        self, params: ParamMap, key: Array, states: PyTree
    ) -> Int[Array, "batch steps"]:
        """Trajectories to given objects from P_B, one each, as actions in forward order."""
        program = self.backward.bind(params)
        keys = jax.random.split(key, len(jax.tree.leaves(states)[0]))
        draw = lambda key, state: program.simulate(key, state).choices["action"]
        actions = jax.vmap(draw)(keys, states)[:, ::-1]
        if not self.env.stops:
            return actions
        # Padding met at the start of the graph belongs behind the end of the trajectory.
        num_pads = (jnp.cumsum(actions != self.env.num_actions, 1) == 0).sum(1)
        num_pads = jnp.minimum(num_pads, self.env.length - 1)
        return jax.vmap(lambda a, n: jnp.roll(a, -n))(actions, num_pads)

    def estimate_log_prob(
        self, params: ParamMap, key: Array, states: PyTree, *, num_trajectories: int
    ) -> Float[Array, " batch"]:
        """Log of 1/M sum_m P_F(path_m) / P_B(path_m | x), path_m ~ P_B(. | x): its exponential has mean p_T(x).

        The log itself is too small on average, less so with M. p_T is the law of the objects that P_F builds.

        Args:
            params: unconstrained parameters.
            key: PRNG key.
            states: objects, stacked, [batch, ...].
            num_trajectories: M.

        Returns:
            Nats, [batch]; -inf for a state that is no object: no trajectory from the start ends there.

        Raises:
            ValueError: states of other shapes than the environment's, without or with other leading axes.
        """
        check_counts("GFlowNet.estimate_log_prob", num_trajectories=num_trajectories)
        first, given = walks.start(self.env).state, jax.tree.map(jnp.asarray, states)
        expected = jax.tree.map(jnp.shape, first)
        if jax.tree.map(lambda x: jnp.shape(x)[1:], given) != expected or any(
            jnp.ndim(x) == 0 for x in jax.tree.leaves(given)
        ):
            raise ValueError(
                f"GFlowNet.estimate_log_prob: states have the shapes {jax.tree.map(jnp.shape, given)}, and one state of "
                f"{type(self.env).__name__} {expected}. Give states stacked along one leading axis, state[None] for one."
            )
        own = jax.tree.map(lambda x, like: x.astype(like.dtype), given, first)
        modules = self.modules(params)

        def one(key: Array) -> Array:
            batch = self.retrace(modules, self.draw_backward(params, key, own))
            process = self.process(batch)
            ratio = (process.log_pf - process.log_pb).sum(1)
            # What the way back makes of a state that is no object is no trajectory to it: P_F never builds it.
            is_way = jax.vmap(self._leads_to)(batch.actions, batch.positions, given)
            return jnp.where(is_way, ratio, -jnp.inf)

        ratios = jax.lax.map(one, jax.random.split(key, num_trajectories))
        return jax.nn.logsumexp(ratios, axis=0) - jnp.log(num_trajectories)

    def _leads_to(
        self, actions: Int[Array, " steps"], positions: Position, state: PyTree
    ) -> Bool[Array, ""]:
        """Whether actions are possible at their positions, and the last position is the complete object."""
        before = jax.tree.map(lambda x: x[:-1], positions)
        masks = jax.vmap(lambda position: walks.legal(self.env, position))(before)
        is_legal = jnp.take_along_axis(masks, actions[:, None], 1).all()
        same = jax.tree.map(lambda x, y: (x[-1] == y).all(), positions.state, state)
        is_done = positions.is_done[-1] | (not self.env.stops)
        return is_legal & is_done & jnp.stack(jax.tree.leaves(same)).all()

    def log_z(self, params: ParamMap) -> Float[Array, ""]:
        """The model's log Z, log F(s_0)."""
        first = walks.start(self.env)
        log_flow = self.heads(self.modules(params), first, jnp.zeros((), int)).log_flow
        return log_flow + (self.env.log_reward(first.state) if self.forward_looking else 0.0)

    def given(self, argument: Any) -> GFlowNet:
        """The GFlowNet of one argument of a `Conditional` environment, with the same parameters.

        Its programs build objects under R(x | c), and its `log_z(params)` is the learned log Z(c); where arguments have
        `log_weights`, with the argument's own added, unless flows are forward-looking.

        Args:
            argument: one of those that were trained on, or a new one like them.

        Raises:
            ValueError: the environment has no arguments; only one log Z is learned, that of all arguments; a shape that does not
                fit.
        """
        if not isinstance(self.env, Conditional):
            raise ValueError(
                f"GFlowNet.given: {type(self.env).__name__} has no arguments. Make the programs over Conditional(env, ...)."
            )
        if self.flow == "total":
            raise ValueError(
                "GFlowNet.given: programs(flow='total') learns one log Z, that of all arguments together. Use flow='network', "
                "whose flow reads the argument."
            )
        return dataclasses.replace(self, env=self.env.at(argument))

    def twist(self, params: ParamMap) -> Callable[..., Array]:
        """The learned flow as look-ahead for `inference.smc(net.target, key, proposal=net.forward, twist=net.twist(params))`."""
        modules = self.modules(params)

        def log_psi(carry: tuple[Position, Array], t: Array) -> Array:
            return self.heads(modules, carry[0], t).log_flow

        return log_psi

    def declare(self) -> Modules:
        """The networks as parameters of the running program."""
        flow = None if self.flow_network is None else ppl.module("flow", self.flow_network)
        log_z = ppl.param("log_z", jnp.zeros(())) if self.flow == "total" else None
        return Modules(ppl.module("policy", self.policy), flow, log_z)


def neighbours(actions: Array) -> tuple[Array, Array]:
    """The action taken at each of the T + 1 positions and the one before, [batch, T + 1]; repeated where there is none."""
    ends = lambda before, after: jnp.pad(actions, ((0, 0), (before, after)), mode="edge")
    return ends(0, 1), ends(1, 0)


def target_of(net: GFlowNet) -> ppl.Program:
    """R(x) P_B(path | x), with actions drawn uniformly among legal ones and factors; or R(x) p(path), drawn from the prior p."""
    env = net.env

    @ppl.model
    def target() -> PyTree:
        modules, first = net.declare(), walks.start(env)

        def step(carry: tuple[Position, Array], t: Array) -> tuple[PyTree, None]:
            position, known = carry
            mask = walks.legal(env, position)
            law = log_softmax(0.0, mask) if net.prior is None else net.log_prior(position)
            action = ppl.sample("action", dist.CategoricalLogits(law))
            position = walks.advance(env, position, action)
            if net.prior is None:
                log_pb = net.heads(modules, position, t + 1).log_pb[action]
                ppl.factor("backward", log_pb + jnp.log(mask.sum()))
            if net.forward_looking:
                before, known = known, env.log_reward(position.state)
                ppl.factor("reward", known - before)
            return (position, known), None

        known = env.log_reward(first.state) if net.forward_looking else jnp.zeros(())
        if net.forward_looking:
            ppl.factor("start", known)
        (last, _), _ = ppl.scan(step, (first, known), jnp.arange(env.length))
        if not net.forward_looking:
            ppl.factor("reward", env.log_reward(last.state))
        return last.state

    return target
