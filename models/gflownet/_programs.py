"""How a GFlowNet is made: which flow, which backward policy, which networks, and what does not go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import equinox as eqx
import jax
from jaxtyping import Array

from ._gflownet import Backward, Flow, GFlowNet
from .environments import _environment as walks
from .environments._environment import Environment


def programs(
    env: Environment,
    *,
    flow: Flow = "network",
    backward: Backward = "uniform",
    prior: Callable[[Array], Array] | None = None,
    forward_looking: bool = False,
    policy: Any = None,
    flow_network: object = None,
    num_hidden: int = 256,
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
        backward: P_B "uniform" over parents, or "learned"; "prior": there is no P_B, the target is prior(path) R(x).
        prior: for backward="prior", a fixed policy from features to the logits of all actions (equinox module or function).
        forward_looking: log F(s) = log R(s) + learned part: rewards of incomplete objects count as they come. The learned
            part is pinned at 0 where an object is complete; without that, any policy has zero loss.
        policy: an equinox module from features to outputs; None: a perceptron.
        flow_network: for flow="network", an equinox module from features to [1]; None: a perceptron.
        num_hidden: width of the two hidden layers of the perceptrons.
        activation: their activation.
        key: PRNG key of the initial values.

    Raises:
        ValueError: what `check` finds wrong with the environment; forward-looking flows where incomplete objects have no reward;
            a choice of flow that does not go with the others; a policy with the wrong number of outputs.

    Reference: Bengio et al. 2021, arXiv:2106.04399 (flow matching); Malkin et al. 2022, arXiv:2201.13259; Pan et al. 2023,
    arXiv:2302.01687 (forward-looking); Deleu et al. 2022, arXiv:2202.13903 (modified detailed balance); Venkatraman et al. 2024,
    arXiv:2405.20971 (relative trajectory balance).
    """
    _check_choices(env, flow, backward, forward_looking, flow_network, prior)
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
        features.shape[0], size, num_hidden, 2, activation=activation, key=key
    )
    policy = perceptron(num_outputs, policy_key) if policy is None else policy
    found = jax.eval_shape(policy, features).shape
    if prior is not None and jax.eval_shape(prior, features).shape != (env.num_choices,):
        raise ValueError(
            f"programs: prior returns shape {jax.eval_shape(prior, features).shape}, expected ({env.num_choices},), the logits "
            "of all actions."
        )
    if found != (num_outputs,):
        raise ValueError(
            f"programs: policy returns shape {found}, expected ({num_outputs},): {env.num_choices} actions"
            + (f", {env.num_actions} last actions" if backward == "learned" else "")
            + (", one log flow" if flow == "shared" else "")
            + "."
        )
    if flow == "network" and flow_network is None:
        flow_network = perceptron(1, flow_key)
    return GFlowNet(env, policy, flow, flow_network, backward, forward_looking, prior)


def _check_choices(
    env: Environment,
    flow: str,
    backward: str,
    forward_looking: bool,
    flow_network: object,
    prior: object,
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
    if flow == "stop" and not (forward_looking and walks.every_state_is_object(env)):
        where = "some states cannot stop" if env.stops else f"stops is {env.stops}"
        raise ValueError(
            f"programs: flow='stop' is log R(s) - log P_F(stop | s), which needs a stop action in every state ({name}: {where}) "
            f"and forward_looking=True (it is {forward_looking}). Use flow='network'."
        )
    if (backward == "prior") != (prior is not None):
        raise ValueError(
            f"programs: backward={backward!r} and prior={'None' if prior is None else 'a policy'} do not go together. "
            "Give backward='prior' a prior=, a policy from features to the logits of all actions, and leave it out elsewhere."
        )
    if backward == "prior" and flow in ("stop", "edges"):
        raise ValueError(
            f"programs: flow='{flow}' eliminates a flow by a relation that holds for a P_B, not for a prior. Use flow='network', "
            "'shared' or 'total'."
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
