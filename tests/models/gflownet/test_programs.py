"""The programs of a GFlowNet: their densities are the log-weight process, and particles and bounds take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _gflownet import exact, grid, parameters, sets, slow

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import gflownet

MAKERS = {"sets": sets, "grid": grid}
CASES = [
    ("sets", "network", "learned", True),
    ("sets", "total", "uniform", False),
    ("grid", "shared", "learned", False),
    ("grid", "stop", "uniform", True),
    ("grid", "edges", "uniform", False),
    ("grid", "network", "prior", True),
    ("sets", "shared", "prior", False),
]
ALL = [case if i == 2 else slow(case, id="-".join(map(str, case))) for i, case in enumerate(CASES)]


def make(case):
    name, *options = case
    return MAKERS[name](*options)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_densities_of_the_programs_are_the_log_weight_process(case):
    net = make(case)
    params, (_, actions) = parameters(net), exact(net)
    process = jax.jit(net.log_weight_process)(params, actions)
    forward, target = net.forward.bind(params), net.target.bind(params)
    log_q = jax.vmap(lambda a: forward.log_density({"action": a}))(actions)
    log_p = jax.vmap(lambda a: target.log_density({"action": a}))(actions)
    np.testing.assert_allclose(log_q, process.log_pf.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_p - log_q, process.log_weight, rtol=1e-5, atol=1e-5)
    flows = jax.vmap(lambda a: forward.trace({"action": a}).deterministic["log_flow"])(actions)
    np.testing.assert_allclose(flows, process.log_flow[:, :-1], rtol=1e-5, atol=1e-5)
    at_end = process.log_flow[jnp.arange(len(actions)), process.length]
    np.testing.assert_array_equal(at_end, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", [slow(CASES[0]), CASES[2]], ids=str)
def test_the_backward_program_is_the_backward_policy(case, key):
    """Draws to one object: frequencies against P_B; z < 4.5 for each trajectory."""
    net = make(case)
    params, actions = parameters(net), exact(net)[1]
    process = jax.jit(net.log_weight_process)(params, actions)
    batch = jax.jit(lambda a: net.retrace(net.modules(params), a))(actions)
    last = jax.tree.map(lambda x: np.asarray(x[:, -1]), batch.positions.state)
    own = (last == last[3]).all(-1)
    states = jnp.broadcast_to(last[3], (20_000, *last[3].shape))
    drawn = np.asarray(jax.jit(net.draw_backward)(params, key, states))
    shares = (drawn[:, None] == np.asarray(actions)[own]).all(-1)
    assert shares.sum() == len(drawn)
    assert_unbiased(shares, np.exp(process.log_pb.sum(1)[own]))


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_rollout_leaves_the_numbers_of_its_trajectories(case, key):
    net = make(case)
    params = parameters(net)

    def both(params, key):
        batch = gflownet.rollout(net, net.modules(params), key, 6, 0.3, 2.0)
        return net.process(batch), net.log_weight_process(params, batch.actions)

    for one, two in zip(*jax.jit(both)(params, key), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_probability_of_an_object_is_estimated_without_bias(key):
    """E[exp] = p_T(x) for each of the 10 sets, at M = 2; |z| < 4.5 over 4,000 estimates of each."""
    net = sets("total", "learned")
    params, (table, _) = parameters(net), exact(net)
    states = jnp.asarray(np.asarray(table.states)[table.objects])
    one = lambda key: net.estimate_log_prob(params, key, states, num_trajectories=2)
    estimates = jnp.exp(jax.jit(jax.vmap(one))(jax.random.split(key, 4_000)))
    assert_unbiased(estimates, table.law(net, params))


@pytest.mark.slow
def test_rollouts_follow_the_forward_policy(key):
    """Objects of 20,000 trajectories against p_T by dynamic programming; exploring ones against the mixture."""
    net = grid("total", "uniform")
    params = parameters(net)
    table = gflownet.tabulate(net.env)
    log_pf = table.log_pf(net, params)
    legal = np.where(log_pf > -1e20, 0.0, -np.inf)
    uniform = legal - np.logaddexp.reduce(legal, 1, keepdims=True)
    tempered = log_pf / 2 - np.logaddexp.reduce(log_pf / 2, 1, keepdims=True)
    mixed = np.logaddexp(np.log(0.7) + tempered, np.log(0.3) + uniform)
    for epsilon, temperature, law in ((0.0, 1.0, log_pf), (0.3, 2.0, mixed)):
        draw = lambda *x: gflownet.rollout(net, net.modules(params), key, 20_000, *x)
        last = np.asarray(jax.jit(draw)(epsilon, temperature).positions.state[:, -1])
        shares = (last[:, None] == np.asarray(table.states)[table.objects]).all(-1)
        assert_unbiased(shares, table.law_of(law))


@pytest.mark.slow
@pytest.mark.parametrize("with_twist", [slow(False), True])
@pytest.mark.parametrize("case", [CASES[0], slow(CASES[2])], ids=str)
def test_particles_estimate_z_without_bias(case, with_twist, key):
    """E[Z-hat] = Z for random policies, flows and P_B, resampling included, |z| < 4.5 over 4,000 runs."""
    net = make(case)
    params, (table, _) = parameters(net), exact(net)
    forward, target = net.forward.bind(params), net.target.bind(params)
    options = {"twist": net.twist(params)} if with_twist else {}

    def run(key):
        options_ = {"proposal": forward, "num_particles": 8, "history": "none", **options}
        return inference.smc(target, key, **options_).log_evidence

    estimates = jnp.exp(jax.jit(jax.vmap(run))(jax.random.split(key, 4_000)) - table.log_z)
    assert_unbiased(estimates, 1.0)


@pytest.mark.slow
def test_importance_weights_have_mean_z(key):
    net = sets("total", "learned")
    params, (table, _) = parameters(net), exact(net)
    draw = lambda key: net.process(gflownet.rollout(net, net.modules(params), key, 20_000))
    assert_unbiased(jnp.exp(jax.jit(draw)(key).log_weight - table.log_z), 1.0)


@pytest.mark.slow  # compiles two bounds; the one under enumeration is with the identities
def test_bounds_take_the_programs(key):
    """ELBO <= IWELBO <= log Z, each the mean that enumeration gives."""
    net = sets("total", "learned")
    params, (table, actions) = parameters(net), exact(net)
    process = jax.jit(net.log_weight_process)(params, actions)
    law, weight = np.exp(process.log_pf.sum(1)), np.asarray(process.log_weight)
    bound = inference.elbo(net.target, net.forward, strategies="reinforce")
    values = jax.vmap(lambda k: bound.value(params, k))(jax.random.split(key, 10_000))
    assert_unbiased(values, law @ weight)
    pairs = inference.iwelbo(net.target, net.forward, num_particles=2, strategies="reinforce")
    values = jax.vmap(lambda k: pairs.value(params, k))(jax.random.split(key, 10_000))
    two = np.logaddexp(weight[:, None], weight) - np.log(2)
    assert_unbiased(values, law @ two @ law)
    assert law @ weight < law @ two @ law < table.log_z


@pytest.mark.slow
def test_backward_trajectories_of_exact_objects_give_an_upper_bound(key):
    """EUBO: the mean of log w over x from R / Z and paths from P_B, |z| < 4.5; above log Z as the ELBO is below."""
    net = sets("total", "learned")
    params, (table, actions) = parameters(net), exact(net)
    process = jax.jit(net.log_weight_process)(params, actions)
    weight = np.asarray(process.log_weight, float)
    law = np.exp(weight + np.asarray(process.log_pf.sum(1)) - table.log_z)
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-5)
    drawn = np.random.default_rng(0).choice(len(table.objects), 20_000, p=table.target)
    states = jnp.asarray(np.asarray(table.states)[table.objects[drawn]])
    walk = lambda key: net.log_weight_process(params, net.draw_backward(params, key, states))
    assert_unbiased(jax.jit(walk)(key).log_weight, law @ weight)
    assert law @ weight > table.log_z > np.exp(process.log_pf.sum(1)) @ weight


@pytest.mark.parametrize("forward_looking", [True, slow(False)])
def test_prefix_factors_telescope_to_the_reward(forward_looking):
    net = sets("network", "uniform", forward_looking)
    actions = exact(net)[1][:4]
    target = net.target.bind(parameters(net))

    def factors(actions):
        found = target.trace({"action": actions})
        parts = [found.log_probs[n].sum() for n in ("start", "reward") if n in found.log_probs]
        return sum(parts), net.env.log_reward(found.retval)

    total, log_reward = jax.jit(jax.vmap(factors))(actions)
    np.testing.assert_allclose(total, log_reward, rtol=1e-5, atol=1e-6)


OBJECTIVES = {
    "wake_phi": lambda log_w, log_q, shares: -(shares * log_q).sum(-1),
    "forward_kl": lambda log_w, log_q, shares: (
        (shares * log_w).sum(-1) - (jax.nn.logsumexp(log_w, -1) - jnp.log(2.0))
    ),
    "rws": lambda log_w, log_q, shares: jax.nn.logsumexp(log_w, -1) - jnp.log(2.0),
}


@pytest.mark.slow  # compiles three objectives
@pytest.mark.parametrize("name", OBJECTIVES)
def test_forward_divergences_take_the_programs(name, key):
    """Two particles: value and gradient in P_F are the means over all pairs of trajectories; |z| < 4.5 over 10,000 draws."""
    net = sets("total", "uniform")
    params, (_, actions) = parameters(net), exact(net)

    def over_pairs(params):
        """Expectation of the value, and of -sum_k v_k log q(z_k), whose gradient is the objective's up to sign."""
        process = net.log_weight_process(params, actions)
        log_q = process.log_pf.sum(1)
        pairs = lambda x: jnp.stack(jnp.broadcast_arrays(x[:, None], x[None]), -1)
        log_w, held = pairs(process.log_weight), jax.lax.stop_gradient(pairs(log_q))
        shares = jax.lax.stop_gradient(jax.nn.softmax(log_w))
        law = jnp.exp(held.sum(-1))
        value = (law * OBJECTIVES[name](log_w, held, shares)).sum()
        return -(law[..., None] * shares * pairs(log_q)).sum(), value

    (_, value), grads = jax.jit(jax.value_and_grad(over_pairs, has_aux=True))(params)
    objective = getattr(inference, name)(net.target, net.forward, num_particles=2)
    estimate = lambda key: objective.value_and_grad(params, key)
    values, estimates = jax.jit(jax.vmap(estimate))(jax.random.split(key, 10_000))
    assert_unbiased(values, value)
    sign = -1 if name == "rws" else 1  # maximised
    legal = np.asarray(grads["policy"].rows) != 0
    assert_unbiased(estimates["policy"].rows[:, legal], sign * grads["policy"].rows[legal])


def test_a_state_that_is_no_object_has_probability_zero(key):
    """Of 5 items 3: two, four and none are no objects, whatever a way back makes of them."""
    net = sets("total", "uniform")
    states = np.arange(5) < np.array([[3], [4], [2], [0]])
    estimate = lambda states: net.estimate_log_prob(
        parameters(net), key, states, num_trajectories=4
    )
    found = np.asarray(estimate(states))
    assert np.isfinite(found[0]) and (found[1:] == -np.inf).all()
    np.testing.assert_array_equal(estimate(states.astype(int)), found)
    with pytest.raises(ValueError, match=r"states have the shapes \(5,\), and one state of Sets"):
        estimate(states[0])
