"""Losses against divergences, by enumeration of all trajectories in float64: nothing here is random.

Malkin et al. 2023 (arXiv:2210.00580), Zimmermann et al. 2022; Pan et al. 2023 (arXiv:2302.01687) for forward-looking flows.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _gflownet import ENERGIES, SIZE, Tabular, exact, grid, parameters, sets, slow

from lapilli import inference
from lapilli.models import gflownet

stop = jax.lax.stop_gradient


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["grid", slow("sets")])
def make(request):
    return {"sets": sets, "grid": grid}[request.param]


def enumerated(net):
    """All trajectories; log P_F and log P_B of whole trajectories and log R as functions of the parameters; log Z."""
    table, actions = exact(net)

    def numbers(params):
        process = along(net, params, actions)
        return process.log_pf.sum(1), process.log_pb.sum(1), process.log_reward[:, -1]

    return table, actions, numbers


def along(net, params, actions):
    return jax.jit(net.log_weight_process)(params, actions)


def close(one, two, tolerance=1e-10):
    for name in ("policy", "flow", "log_z"):
        if name in one:
            for a, b in zip(*(jax.tree.leaves(x[name]) for x in (one, two)), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_policies_are_laws_of_trajectories(make):
    net = make("total")
    table, actions, numbers = enumerated(net)
    log_pf, log_pb, log_reward = jax.jit(numbers)(parameters(net))
    np.testing.assert_allclose(jnp.exp(log_pf).sum(), 1.0, rtol=1e-12)
    # P_B is a law of the trajectories to each object, so that their weights sum to Z.
    np.testing.assert_allclose(jnp.exp(log_reward + log_pb).sum(), np.exp(table.log_z), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("log_z", [slow(0.0), 1.3, slow(7.0)])
def test_on_policy_trajectory_balance_is_the_reverse_kl(make, log_z):
    """grad_F E[TB] = 2 grad_F KL(P_F || P_B R / Z), whatever log Z."""
    net = make("total", backward="uniform")
    _, actions, numbers = enumerated(net)
    params = parameters(net, log_z)

    def divergence(params):
        log_pf, log_pb, log_reward = numbers(params)
        return 2 * jnp.sum(jnp.exp(log_pf) * (log_pf - log_pb - log_reward))

    def loss(params):
        process = along(net, params, actions)
        weights = stop(jnp.exp(process.log_pf.sum(1)))
        return jnp.sum(weights * (process.u[:, -1] - process.u[:, 0]) ** 2)

    one, two = jax.jit(jax.grad(loss))(params), jax.jit(jax.grad(divergence))(params)
    close({"policy": one["policy"]}, two)


@pytest.mark.slow
def test_backward_trajectory_balance_is_the_kl_of_the_backward_policy(make):
    """Trajectories from R / Z and P_B: grad_B E[TB] = 2 grad_B KL(P_B R / Z || P_F)."""
    net = make("total")
    table, actions, numbers = enumerated(net)
    params = parameters(net)

    def law(params):
        log_pf, log_pb, log_reward = numbers(params)
        return log_reward + log_pb - table.log_z, log_pf

    def divergence(params):
        log_pb, log_pf = law(params)
        return 2 * jnp.sum(jnp.exp(log_pb) * (log_pb - stop(log_pf)))

    def loss(params):
        process = along(net, params, actions)
        process = process._replace(log_pf=stop(process.log_pf))
        return jnp.sum(stop(jnp.exp(law(params)[0])) * process.increments.sum(1) ** 2)

    one, two = jax.jit(jax.grad(loss))(params), jax.jit(jax.grad(divergence))(params)
    close({"policy": one["policy"]}, two)


@pytest.mark.slow
def test_linex_is_the_forward_kl(make):
    """At the true log Z, grad_F E_F[exp(u_n - u_0) - (u_n - u_0) - 1] = grad_F KL(P_B R / Z || P_F)."""
    net = make("total", backward="uniform")
    table, actions, numbers = enumerated(net)
    params = parameters(net, table.log_z)
    g = gflownet._losses.as_shape("linex")

    def loss(params):
        process = along(net, params, actions)
        return jnp.sum(stop(jnp.exp(process.log_pf.sum(1))) * g(process.increments.sum(1)))

    def divergence(params):
        log_pf, log_pb, log_reward = numbers(params)
        return -jnp.sum(jnp.exp(stop(log_reward + log_pb) - table.log_z) * log_pf)

    close(
        {"policy": jax.jit(jax.grad(loss))(params)["policy"]}, jax.jit(jax.grad(divergence))(params)
    )


@pytest.mark.slow
def test_log_variance_is_the_score_function_with_leave_one_out_baseline(make):
    """For every batch: grad = 2/B sum_i (l_i - mean of the others) grad log P_F(path_i), up to P_B."""
    net = make("total", backward="uniform")
    _, actions, _ = enumerated(net)
    params, batch = parameters(net), actions[jnp.array([0, 7, 11, 7])]
    loss = gflownet.log_variance()

    def reinforce(params):
        process = along(net, params, batch)
        cost = -stop(process.log_weight)
        baseline = (cost.sum() - cost) / (len(cost) - 1)
        return 2 * jnp.mean((cost - baseline) * process.log_pf.sum(1))

    one = jax.jit(jax.grad(lambda p: loss(net.log_weight_process(p, batch))))(params)
    close({"policy": one["policy"]}, jax.jit(jax.grad(reinforce))(params))


@pytest.mark.slow
def test_log_variance_is_trajectory_balance_at_the_batch_mean():
    net = grid("total", "uniform")
    _, actions, _ = enumerated(net)
    batch = actions[jnp.array([0, 7, 11, 3])]
    process = along(net, parameters(net), batch)
    mean = process.log_weight.mean()
    process = process._replace(log_flow=process.log_flow.at[:, 0].set(mean))
    got = gflownet.log_variance()(process)
    np.testing.assert_allclose(got, gflownet.trajectory_balance()(process) * 4 / 3, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("forward_looking", [slow(False), True])
def test_residuals_of_sub_trajectories_are_differences_of_one_process(make, forward_looking):
    net = make(forward_looking=forward_looking)
    table, actions, _ = enumerated(net)
    process = along(net, parameters(net), actions)
    log_f, u = np.asarray(process.log_f), np.asarray(process.u)
    for row, n in enumerate(np.asarray(process.length)):
        for i, j in itertools.combinations(range(n + 1), 2):
            want = log_f[row, j] + process.log_pb[row, i + 1 : j + 1].sum()
            want -= log_f[row, i] + process.log_pf[row, i:j].sum()
            np.testing.assert_allclose(u[row, j] - u[row, i], want, atol=1e-12)
        np.testing.assert_allclose(log_f[row, n], process.log_reward[row, -1], rtol=1e-12)


@pytest.mark.slow
def test_sub_trajectory_balance_is_the_weighted_sum_over_all_pairs():
    net = grid(forward_looking=True)
    _, actions, _ = enumerated(net)
    process = along(net, parameters(net), actions)
    process = jax.tree.map(np.asarray, process)
    for decay in (0.5, 1.0, 1.9):
        want = []
        for u, n in zip(np.asarray(process.u), process.length, strict=True):
            pairs = list(itertools.combinations(range(n + 1), 2))
            weights = np.array([decay ** (j - i) for i, j in pairs])
            squares = np.array([float(u[j] - u[i]) ** 2 for i, j in pairs])
            want.append((weights * squares).sum() / weights.sum())
        got = gflownet.subtrajectory_balance(decay)(process)
        np.testing.assert_allclose(got, np.mean(want), rtol=1e-12)


@pytest.mark.slow
def test_sub_trajectory_balance_has_trajectory_and_detailed_balance_as_limits():
    net = grid(forward_looking=True)
    process = along(net, parameters(net), exact(net)[1])
    got = gflownet.subtrajectory_balance(1e9)(process)
    np.testing.assert_allclose(got, gflownet.trajectory_balance()(process), rtol=1e-6)
    # Detailed balance of each trajectory: the mean over its own steps.
    mean = (jnp.where(process.is_step, process.increments**2, 0).sum(1) / process.length).mean()
    np.testing.assert_allclose(gflownet.subtrajectory_balance(1e-9)(process), mean, rtol=1e-6)


@pytest.mark.slow
def test_flow_matching_is_detailed_balance_of_edge_flows(make):
    """u_{t+1} - u_t = log[R or outflow](s_{t+1}) - log inflow(s_{t+1}), whatever the step that led there."""
    net = make("edges", "uniform")
    table, actions, _ = enumerated(net)
    params = parameters(net)
    process = along(net, params, actions)
    edges = np.asarray(
        jax.vmap(net.modules(params).policy)(jax.vmap(net.env.observe)(table.states))
    )
    flow = np.exp(edges[table.parents, table.actions])
    inflow, outflow = np.zeros(len(table.levels)), np.zeros(len(table.levels))
    np.add.at(inflow, table.children, flow)
    np.add.at(outflow, table.parents, flow)
    outflow[table.objects] += np.exp(table.log_reward)
    number = {tuple(np.ravel(s)): i for i, s in enumerate(table.states)}
    increments = np.asarray(process.increments)
    batch = jax.jit(lambda a: net.retrace(net.modules(params), a))(actions)
    for row, n in enumerate(np.asarray(process.length) - net.env.stops):
        for t in range(n):
            child = number[tuple(np.ravel(batch.positions.state[row, t + 1]))]
            want = np.log(outflow[child] / inflow[child])
            np.testing.assert_allclose(increments[row, t], want, atol=1e-10)
    np.testing.assert_allclose(increments[~np.asarray(process.is_step)], 0, atol=1e-12)


@pytest.mark.slow
def test_modified_detailed_balance_is_the_forward_looking_one_with_the_flow_eliminated():
    net = grid("stop", "uniform", forward_looking=True)
    _, actions, _ = enumerated(net)
    params = parameters(net)
    process = along(net, params, actions)
    batch = jax.jit(lambda a: net.retrace(net.modules(params), a))(actions)
    stops = jax.vmap(jax.vmap(jax.jit(lambda p: net.heads(net.modules(params), p, 0).log_pf[-1])))(
        batch.positions
    )
    log_reward = jax.vmap(jax.vmap(net.env.log_reward))(batch.positions.state)
    # Deleu et al. 2022, eq. 10, with the sign of a log-weight.
    want = jnp.diff(log_reward, axis=1) + process.log_pb[:, 1:] - process.log_pf[:, :-1]
    want += stops[:, :-1] - stops[:, 1:]
    is_edge = jnp.arange(net.env.length) < process.length[:, None] - 1
    np.testing.assert_allclose(jnp.where(is_edge, process.increments - want, 0), 0, atol=1e-10)
    at_stop = process.increments[jnp.arange(len(actions)), process.length - 1]
    np.testing.assert_allclose(at_stop, 0, atol=1e-12)


def solved():
    """The set environment with its exact solution in the tables, forward-looking, P_B uniform."""
    env = gflownet.Sets(ENERGIES, SIZE)
    states = np.arange(32)[:, None] >> np.arange(5) & 1
    flows, policies = np.zeros((32, 1)), np.zeros((32, 5))
    for s in np.flatnonzero(states.sum(1) <= SIZE):
        flows[s], policies[s] = env.solution(states[s])
    policies = np.where(np.isfinite(policies), policies, 0.0)
    options = {"forward_looking": True, "policy": Tabular(jnp.asarray(policies), 2)}
    flow = Tabular(jnp.asarray(flows), 2)
    return gflownet.programs(env, flow_network=flow, key=jax.random.key(0), **options)


@pytest.mark.slow
def test_the_closed_form_has_no_residual_and_samples_the_target():
    net = solved()
    params = parameters(net)
    table, actions, _ = enumerated(net)
    process = along(net, params, actions)
    np.testing.assert_allclose(process.increments, 0, atol=1e-12)
    np.testing.assert_allclose(net.log_z(params), net.env.log_z(), rtol=1e-12)
    np.testing.assert_allclose(table.log_z, net.env.log_z(), rtol=1e-12)
    np.testing.assert_allclose(table.law(net, params), table.target, rtol=1e-10)
    inclusion = table.target @ np.asarray(table.states)[table.objects]
    np.testing.assert_allclose(net.env.inclusion(), inclusion, rtol=1e-10)


@pytest.mark.slow
def test_a_free_flow_at_the_end_is_zero_loss_for_any_policy():
    """Why the flow of an object is pinned: F := visits and the P_B they induce have no residual, and the policy is arbitrary."""
    net = sets(forward_looking=True)
    params, env = parameters(net), net.env
    table, actions, _ = enumerated(net)
    log_pf = table.log_pf(net, params)
    visits = table.visits(log_pf)
    edges = visits[table.parents] * np.exp(log_pf[table.parents, table.actions])
    codes = np.asarray(table.states) @ (1 << np.arange(5))
    forward = np.asarray(params["policy"].rows)[:, :5]
    induced, flows = np.zeros((32, 5)), np.zeros((32, 1))
    induced[codes[table.children], table.actions] = np.log(edges)
    flows[codes, 0] = np.log(visits) - jax.vmap(env.log_reward)(table.states)
    free = dict(params)
    free["policy"] = Tabular(jnp.asarray(np.hstack([forward, induced])), 2)
    free["flow"] = Tabular(jnp.asarray(flows), 2)
    process = along(net, free, actions)
    final = flows[codes[table.objects], 0]
    at_end = {
        tuple(s): f for s, f in zip(np.asarray(table.states)[table.objects], final, strict=True)
    }
    last = jax.jit(lambda a: net.retrace(net.modules(free), a))(actions).positions.state[:, -1]
    ends = jnp.array([at_end[tuple(np.asarray(s))] for s in last])
    steps = process.log_f.at[:, -1].add(ends)  # what the published code balances
    residual = jnp.diff(steps, axis=1) + process.log_pb[:, 1:] - process.log_pf[:, :-1]
    np.testing.assert_allclose(residual, 0, atol=1e-12)
    assert gflownet.total_variation(table.law(net, free), table.target) > 0.2
    assert gflownet.detailed_balance()(process) > 0.1


@pytest.mark.slow
def test_the_bound_under_enumeration_has_the_gradient_of_trajectory_balance():
    """`inference.elbo` of the programs is -KL + log Z, its gradient in P_F -1/2 that of on-policy trajectory balance."""
    net = sets("total", "uniform")
    table, actions, numbers = enumerated(net)
    params = parameters(net)
    bound = inference.elbo(net.target, net.forward, strategies="enum")
    value, grads = bound.value_and_grad(params, jax.random.key(0))
    log_pf, log_pb, log_reward = jax.jit(numbers)(params)
    want = jnp.sum(jnp.exp(log_pf) * (log_reward + log_pb - log_pf))
    np.testing.assert_allclose(value, want, rtol=1e-10)

    def loss(params):
        process = along(net, params, actions)
        return jnp.sum(stop(jnp.exp(process.log_pf.sum(1))) * process.increments.sum(1) ** 2)

    twice = jax.tree.map(lambda g: -2 * g, grads["policy"])
    close({"policy": twice}, jax.jit(jax.grad(loss))(params))
