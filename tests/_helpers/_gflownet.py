"""A small GFlowNet with one row of outputs for every state, so that everything can be enumerated."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.models import gflownet

ENERGIES, SIZE = np.random.RandomState(0).uniform(-2, 2, 5), 3


def slow(*values, id=None):
    """A variant that compiles a program of its own, for a property that another variant shows too."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


class Tabular(eqx.Module):
    """Outputs by state: the features are digits in the given base."""

    rows: jax.Array
    base: int = eqx.field(static=True)

    def __call__(self, features):
        powers = self.base ** jnp.arange(len(features))
        return self.rows[(features.astype(int) * powers).sum()]


class Digits(gflownet.Hypergrid):
    """The grid, seen as coordinates instead of one-hot."""

    def observe(self, state):
        return state.astype(float)


def tabular(num_states, num_outputs, seed, base=2):
    rows = np.random.RandomState(seed).randn(num_states, num_outputs)
    return Tabular(jnp.asarray(rows, float), base)


def sets(flow="network", backward="learned", forward_looking=False):
    """A GFlowNet over 3 of 5 items with random tables."""
    return _net("sets", flow, backward, forward_looking, jnp.result_type(float))


def grid(flow="network", backward="learned", forward_looking=False):
    """A GFlowNet over a 3 x 3 grid with random tables."""
    return _net("grid", flow, backward, forward_looking, jnp.result_type(float))


@functools.cache
def _env(name, dtype):
    return Digits(2, 3, (0.1, 0.5, 2.0)) if name == "grid" else gflownet.Sets(ENERGIES, SIZE)


@functools.cache
def _net(name, flow, backward, forward_looking, dtype):
    env = _env(name, dtype)
    num_states, base = (9, 3) if name == "grid" else (32, 2)
    num_outputs = env.num_choices + (flow == "shared") + env.num_actions * (backward == "learned")
    return gflownet.GFlowNet(
        env,
        tabular(num_states, num_outputs, 1, base),
        flow,
        tabular(num_states, 1, 2, base) if flow == "network" else None,
        backward,
        forward_looking,
        tabular(num_states, env.num_choices, 3, base) if backward == "prior" else None,
    )


def parameters(net, log_z=0.3):
    """Its initial parameters."""
    params = net.forward.init(jax.random.key(0))
    return {**params, "log_z": jnp.asarray(log_z)} if net.flow == "total" else dict(params)


def exact(net):
    """The table of its environment, and all trajectories."""
    return _exact(net.env, jnp.result_type(float))


@functools.cache
def _exact(env, dtype):
    table = gflownet.tabulate(env)
    return table, jnp.asarray(table.trajectories())
