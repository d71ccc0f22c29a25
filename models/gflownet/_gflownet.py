"""A GFlowNet as programs: P_F is a guide, R(x) P_B(path | x) a model, and their log-weight is what all losses balance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from ... import ppl
from . import _environment as walks
from ._environment import EXCLUDED, Environment, Position
from ._process import Batch, Process

Flow = Literal["total", "network", "shared", "stop", "edges"]
Backward = Literal["uniform", "learned"]


class Modules(NamedTuple):
    """What is learned: `policy` and `flow` map features to outputs, `log_z` is a number; None where a model has none."""

    policy: Callable[[Array], Array]
    flow: Callable[[Array], Array] | None
    log_z: Array | None


class Heads(NamedTuple):
    """At one position: log P_F of each action, log P_B of each last action, and the learned part of log F, 0 at the end."""

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

    So `inference.elbo(net.target, net.forward)`, `iwelbo`, `smc(net.target, key, proposal=net.forward)` and all that takes a
    model and a guide apply, with parameters bound or given. Z-hat is unbiased whatever the flow, but where rewards of incomplete
    objects (or a badly learned flow, as `twist`) favour those that lead nowhere, resampling makes its variance huge;
    `policy=inference.never()` is importance sampling, as good as P_F. The upper bound of log Z (EUBO) is the mean of
    `log_weight_process(params, draw_backward(params, key, x)).log_weight` over objects x from R / Z.

    Attributes:
        env: the environment.
        policy: initial policy network.
        flow: which flow is learned, see `programs`.
        flow_network: initial flow network, or None.
        backward_policy: "uniform" or "learned".
        forward_looking: whether log F(s) = log R(s) + learned part.
    """

    env: Environment
    policy: Any
    flow: Flow
    flow_network: Any
    backward_policy: Backward
    forward_looking: bool

    def modules(self, params: Mapping[str, Any]) -> Modules:
        """The networks at these parameters."""

        def at(name: str, module: Any) -> Any:
            return eqx.combine(params[name], eqx.partition(module, eqx.is_inexact_array)[1])

        flow = None if self.flow_network is None else at("flow", self.flow_network)
        log_z = params["log_z"] if self.flow == "total" else None
        return Modules(at("policy", self.policy), flow, log_z)

    def heads(self, modules: Modules, position: Position, t: Array) -> Heads:
        """Policies and flow at one position of number t."""
        env, outputs = self.env, modules.policy(self.env.observe(position.state))
        log_pf = _log_softmax(self._forward_logits(outputs, position), walks.legal(env, position))
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
        if self.flow == "edges":
            actions = jnp.arange(env.num_actions)
            parents = jax.vmap(env.undo, (None, 0))(position.state, actions)
            edges = jax.vmap(lambda s: modules.policy(env.observe(s)))(parents)
            logits = edges[actions, actions]
        elif self.backward_policy == "learned":
            logits = outputs[env.num_choices : env.num_choices + env.num_actions]
        else:
            logits = jnp.zeros(env.num_actions, outputs.dtype)
        return _log_softmax(jnp.pad(logits, (0, env.num_choices - env.num_actions)), mask)

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
        return log_pf, jnp.where(t > 0, heads.log_pb[led], 0.0), heads.log_flow

    def log_weight_process(
        self, params: Mapping[str, Any], actions: Int[Array, "batch steps"]
    ) -> Process:
        """The process along given trajectories, differentiable in the parameters.

        Args:
            params: unconstrained parameters, as from `balance(...).init` or `Fit.params`.
            actions: [batch, T], the stop action repeated to the end.
        """
        return self.process(self.retrace(self.modules(params), actions))

    def retrace(self, modules: Modules, actions: Int[Array, "batch steps"]) -> Batch:
        """Given trajectories with the model's numbers along them."""
        positions = jax.vmap(lambda a: walks.walk(self.env, a))(actions)
        taken, led = neighbours(actions)
        rows = jax.vmap(jax.vmap(lambda *x: self.row(modules, *x)), (0, None, 0, 0))
        numbers = rows(positions, jnp.arange(self.env.length + 1), taken, led)
        return Batch(actions, positions, numbers)

    def process(self, batch: Batch) -> Process:
        """The process of a batch."""
        position, num_positions = batch.positions, self.env.length + 1
        length = jnp.full(len(batch.actions), self.env.length)
        if self.env.stops:
            length = num_positions - position.is_done.sum(1)
        last = jax.tree.map(lambda x: x[:, -1], position.state)
        end = jax.vmap(self.env.log_reward)(last)[:, None]
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
        def forward() -> Any:
            modules = self._declare()

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
        """R(x) P_B(path | x)."""
        env = self.env

        @ppl.model
        def target() -> Any:
            modules, first = self._declare(), walks.start(env)

            def step(carry: tuple[Position, Array], t: Array) -> tuple[Any, None]:
                position, known = carry
                mask = walks.legal(env, position)
                action = ppl.sample("action", dist.CategoricalLogits(_log_softmax(0.0, mask)))
                position = walks.advance(env, position, action)
                log_pb = self.heads(modules, position, t + 1).log_pb[action]
                ppl.factor("backward", log_pb + jnp.log(mask.sum()))
                if self.forward_looking:
                    before, known = known, env.log_reward(position.state)
                    ppl.factor("reward", known - before)
                return (position, known), None

            known = env.log_reward(first.state) if self.forward_looking else jnp.zeros(())
            if self.forward_looking:
                ppl.factor("start", known)
            (last, _), _ = ppl.scan(step, (first, known), jnp.arange(env.length))
            if not self.forward_looking:
                ppl.factor("reward", env.log_reward(last.state))
            return last.state

        return target

    @property
    def backward(self) -> ppl.Program:
        """P_B, a program of the object."""
        env = self.env

        @ppl.model
        def backward(state: Any) -> Any:
            modules = self._declare()

            def step(position: Position, t: Array) -> tuple[Position, None]:
                log_pb = self.heads(modules, position, t).log_pb
                action = ppl.sample("action", dist.CategoricalLogits(log_pb))
                return walks.retreat(env, position, action), None

            times = jnp.arange(env.length, 0, -1)
            first, _ = ppl.scan(step, walks.complete(env, state), times)
            return first.state

        return backward

    def draw_backward(
        self, params: Mapping[str, Any], key: Array, states: Any
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
        self, params: Mapping[str, Any], key: Array, states: Any, *, num_trajectories: int
    ) -> Float[Array, " batch"]:
        """Log of 1/M sum_m P_F(path_m) / P_B(path_m | x), path_m ~ P_B(. | x): its exponential has mean p_T(x).

        The log itself is too small on average, less so with M. p_T is the law of the objects that P_F builds.

        Args:
            params: unconstrained parameters.
            key: PRNG key.
            states: objects, stacked, [batch, ...].
            num_trajectories: M.
        """

        def one(key: Array) -> Array:
            process = self.log_weight_process(params, self.draw_backward(params, key, states))
            return (process.log_pf - process.log_pb).sum(1)

        ratios = jax.lax.map(one, jax.random.split(key, num_trajectories))
        return jax.nn.logsumexp(ratios, axis=0) - jnp.log(num_trajectories)

    def log_z(self, params: Mapping[str, Any]) -> Float[Array, ""]:
        """The model's log Z, log F(s_0)."""
        first = walks.start(self.env)
        log_flow = self.heads(self.modules(params), first, jnp.zeros((), int)).log_flow
        return log_flow + (self.env.log_reward(first.state) if self.forward_looking else 0.0)

    def twist(self, params: Mapping[str, Any]) -> Callable[..., Array]:
        """The learned flow as look-ahead for `inference.smc(net.target, key, proposal=net.forward, twist=net.twist(params))`."""
        modules = self.modules(params)

        def log_psi(carry: tuple[Position, Array], t: Array) -> Array:
            return self.heads(modules, carry[0], t).log_flow

        return log_psi

    def _declare(self) -> Modules:
        """The networks as parameters of the running program."""
        flow = None if self.flow_network is None else ppl.module("flow", self.flow_network)
        log_z = ppl.param("log_z", jnp.zeros(())) if self.flow == "total" else None
        return Modules(ppl.module("policy", self.policy), flow, log_z)


def programs(
    env: Environment,
    *,
    flow: Flow = "network",
    backward: Backward = "uniform",
    forward_looking: bool = False,
    policy: Any = None,
    flow_network: Any = None,
    num_hidden: int = 256,
    depth: int = 2,
    activation: Callable[[Array], Array] = jax.nn.relu,
    key: Array,
) -> GFlowNet:
    """A GFlowNet over an environment, with freshly initialised networks.

    Parameters: "policy" (features -> logits of all actions, then of all last actions if P_B is learned, then log F if it is
    shared), "flow" (features -> log F) or "log_z".

    Args:
        env: the environment; checked on random trajectories.
        flow: what is learned of log F:
            "network", a network of its own; "shared", one more output of the policy;
            "total", log Z alone (trajectory balance, log-variance);
            "stop", log F(s) = log R(s) - log P_F(stop | s), which eliminates the flow (modified detailed balance; needs
            forward-looking flows and an environment that stops);
            "edges": the policy's outputs are log flows of edges, P_F and P_B what they induce, so that detailed balance is
            flow matching; costs a network call for every parent.
        backward: P_B "uniform" over parents, or "learned".
        forward_looking: log F(s) = log R(s) + learned part: rewards of incomplete objects count as they come. The learned
            part is pinned at 0 where an object is complete; without that, any policy has zero loss.
        policy: an equinox module from features to outputs; None: a perceptron.
        flow_network: for flow="network", an equinox module from features to [1]; None: a perceptron.
        num_hidden: width of the perceptrons.
        depth: number of hidden layers.
        activation: their activation.
        key: PRNG key of the initial values.

    Raises:
        ValueError: what `check` finds wrong with the environment; forward-looking flows where incomplete objects have no reward;
            a choice of flow that does not go with the others; a policy with the wrong number of outputs.

    Reference: Bengio et al. 2021, arXiv:2106.04399 (flow matching); Malkin et al. 2022, arXiv:2201.13259; Pan et al. 2023,
    arXiv:2302.01687 (forward-looking); Deleu et al. 2022, arXiv:2202.13903 (modified detailed balance).
    """
    _check_choices(env, flow, backward, forward_looking, flow_network)
    policy_key, flow_key, check_key = jax.random.split(key, 3)
    walks.check(env, check_key)
    features = jax.eval_shape(lambda: env.observe(walks.start(env).state))
    if len(features.shape) != 1 and (policy is None or flow == "network" and flow_network is None):
        raise ValueError(
            f"{type(env).__name__}.observe returns shape {features.shape}, and the default networks take a vector. Flatten it, "
            "or pass policy= (and flow_network=)."
        )
    num_outputs = env.num_choices + (flow == "shared")
    num_outputs += env.num_actions if backward == "learned" else 0
    perceptron = lambda size, key: eqx.nn.MLP(
        features.shape[0], size, num_hidden, depth, activation=activation, key=key
    )
    policy = perceptron(num_outputs, policy_key) if policy is None else policy
    found = jax.eval_shape(policy, features).shape
    if found != (num_outputs,):
        raise ValueError(
            f"programs: policy returns shape {found}, expected ({num_outputs},): {env.num_choices} actions"
            + (f", {env.num_actions} last actions" if backward == "learned" else "")
            + (", one log flow" if flow == "shared" else "")
            + "."
        )
    if flow == "network" and flow_network is None:
        flow_network = perceptron(1, flow_key)
    return GFlowNet(env, policy, flow, flow_network, backward, forward_looking)


def neighbours(actions: Array) -> tuple[Array, Array]:
    """The action taken at each of the T + 1 positions and the one before, [batch, T + 1]; repeated where there is none."""
    ends = lambda before, after: jnp.pad(actions, ((0, 0), (before, after)), mode="edge")
    return ends(0, 1), ends(1, 0)


def _log_softmax(logits: Any, mask: Array) -> Array:
    return jax.nn.log_softmax(jnp.where(mask, logits, EXCLUDED))


def _check_choices(
    env: Environment, flow: str, backward: str, forward_looking: bool, flow_network: Any
) -> None:
    name = type(env).__name__
    for argument, value, kind in (("flow", flow, Flow), ("backward", backward, Backward)):
        if value not in get_args(kind):
            raise ValueError(
                f"programs: {argument} must be one of {list(get_args(kind))}, got {value!r}."
            )
    if forward_looking and not env.rewards_prefixes:
        raise ValueError(
            f"programs: forward_looking=True needs rewards of incomplete objects whose steps add up to log R(x), and {name} "
            "declares rewards_prefixes=False. Give it a log_reward for incomplete objects, or use forward_looking=False."
        )
    if forward_looking and flow in ("total", "edges"):
        raise ValueError(
            f"programs: flow='{flow}' learns no flow of states that a known part could be split from. Use 'network', 'shared' or "
            "'stop', or forward_looking=False (trajectory balance is the same either way)."
        )
    if flow == "stop" and not (forward_looking and env.stops):
        raise ValueError(
            f"programs: flow='stop' is log R(s) - log P_F(stop | s), which needs a stop action in every state ({name}.stops is "
            f"{env.stops}) and forward_looking=True (it is {forward_looking}). Use flow='network'."
        )
    if flow == "edges" and backward == "learned":
        raise ValueError(
            "programs: flow='edges' induces P_B from the flows, so there is none to learn. Use backward='uniform' (which is "
            "then not used), or flow='network'."
        )
    if flow_network is not None and flow != "network":
        raise ValueError(
            f"programs: flow_network is given, but flow='{flow}' does not use it. Choose flow='network'."
        )
