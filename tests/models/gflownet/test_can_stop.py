"""States that are no objects: laws, training and refusals where the stop action is not always there."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapilli import inference
from lapilli.models import gflownet


class Even(gflownet.Hypergrid):
    """Points of a grid whose coordinates have an even sum; the others have no reward."""

    rewards_prefixes = False

    def can_stop(self, state):
        return state.sum() % 2 == 0

    def log_reward(self, state):
        return jnp.where(self.can_stop(state), super().log_reward(state), jnp.nan)


ENV = Even(2, 4)


@pytest.mark.slow
def test_states_that_cannot_stop_are_no_objects(key):
    gflownet.check(ENV, key)
    table, whole = gflownet.tabulate(ENV), gflownet.tabulate(gflownet.Hypergrid(2, 4))
    points = np.asarray(table.states)[table.objects]
    assert (points.sum(1) % 2 == 0).all() and len(points) == 8 and len(whole.objects) == 16
    is_even = np.asarray(whole.states)[whole.objects].sum(1) % 2 == 0
    np.testing.assert_allclose(table.log_z, np.log(np.exp(whole.log_reward[is_even]).sum()))
    net = gflownet.programs(ENV, flow="total", key=key)
    params = gflownet.balance(net, gflownet.trajectory_balance()).init(key)
    assert np.isclose(table.law(net, params).sum(), 1, rtol=1e-5)
    ends = [actions[actions < ENV.num_actions] for actions in table.trajectories()]
    assert all(len(actions) % 2 == 0 for actions in ends)


@pytest.mark.slow  # training
@pytest.mark.parametrize(
    ("flow", "loss"),
    [
        ("total", gflownet.trajectory_balance()),
        ("network", gflownet.detailed_balance()),
        ("network", gflownet.subtrajectory_balance()),
        ("edges", gflownet.detailed_balance()),
    ],
)
def test_every_flow_learns_the_law_over_objects(flow, loss, key):
    net = gflownet.programs(ENV, flow=flow, key=key)
    rates = optax.adam(3e-3)
    if flow != "edges":
        rates = {"policy": rates, "[!p]*": optax.adam(3e-2)}
    fit = inference.fit(
        gflownet.balance(net, loss), rates, (), num_steps=2_000, key=key, progress=False
    )
    table = gflownet.tabulate(ENV)
    assert gflownet.total_variation(table.law(net, fit.params), table.target) < 0.02
    assert abs(float(net.log_z(fit.params)) - table.log_z) < 0.05


class Odd(Even):
    def can_stop(self, state):
        return state.sum() % 2 == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda key: gflownet.check(Odd(2, 4), key), r"no legal action after 6 of 6 steps, nor can it stop"),
        (
            lambda key: gflownet.check(type("Grid", (Even,), {"can_stop": lambda self, s: s > 0})(2, 4), key),
            r"can_stop returns bool\[2\], expected one bool",
        ),
        (
            lambda key: gflownet.programs(
                type("Grid", (Even,), {"rewards_prefixes": True})(2, 4), flow="stop", forward_looking=True, key=key
            ),
            "needs a stop action in every state .Grid: some states cannot stop",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(act, message, key):
    with pytest.raises(ValueError, match=message):
        act(key)
