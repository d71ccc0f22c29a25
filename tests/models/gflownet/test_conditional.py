"""GFlowNets whose reward depends on an argument, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapilli import inference
from lapilli.models import gflownet

ENERGIES = np.array([0.5, -0.5, 0.8, 0.0])
ARGUMENTS = np.array([0.5, 2.0])


def log_reward(state, argument):
    return -argument * (jnp.asarray(ENERGIES) * state).sum()


def sets():
    return gflownet.Conditional(gflownet.Sets(ENERGIES, 2), ARGUMENTS, log_reward)


def make(env, **options):
    options = {"num_hidden": 16, "key": jax.random.key(0)} | options
    return gflownet.programs(env, **options)


def exact(table, argument):
    """R(x | c) / Z(c) and log Z(c), by hand, of the objects of a table."""
    _, inner = table.states
    logs = -argument * (inner[table.objects] * ENERGIES).sum(1)
    log_z = np.logaddexp.reduce(logs)
    return np.exp(logs - log_z), log_z


@pytest.mark.slow
def test_the_programs_of_an_argument_are_the_conditionals_of_the_whole():
    """At random parameters: p(c, x) = p(c) p(x | c)."""
    env = sets()
    net = make(env)
    params = gflownet.balance(net, gflownet.detailed_balance()).init(jax.random.key(1))
    whole = gflownet.tabulate(env)
    joint, numbers = whole.law(net, params), whole.states[0][whole.objects]
    chosen = np.exp(whole.log_pf(net, params)[0, 4:6])
    assert len(whole.objects) == 2 * 6 and np.isclose(joint.sum(), 1, rtol=1e-5)
    laws = []
    for number, argument in enumerate(ARGUMENTS):
        table = gflownet.tabulate(env.at(argument))
        law = table.law(net.given(argument), params)
        order = [inner.tobytes() for inner in table.states[1][table.objects]]
        of_whole = {
            inner.tobytes(): p
            for inner, p, n in zip(whole.states[1][whole.objects], joint, numbers, strict=True)
            if n == number
        }
        np.testing.assert_allclose(
            chosen[number] * law, [of_whole[name] for name in order], rtol=1e-4
        )
        target, log_z = exact(table, argument)
        np.testing.assert_allclose(table.target, target, rtol=1e-5)
        np.testing.assert_allclose(table.log_z, log_z, rtol=1e-5)
        laws.append(law)
    assert np.abs(laws[0] - laws[1]).max() > 1e-4  # the policy reads the argument


@pytest.mark.slow
def test_what_has_no_arguments_is_refused():
    with pytest.raises(ValueError, match="Sets has no arguments. Make the programs over Cond"):
        make(gflownet.Sets(ENERGIES, 2)).given(0.5)
    with pytest.raises(ValueError, match="learns one log Z, that of all arguments"):
        make(sets(), flow="total").given(0.5)
    with pytest.raises(ValueError, match=r"argument has shape \(2,\), and the others \(\)"):
        sets().at([0.5, 1.0])
    with pytest.raises(ValueError, match=r"arguments have shape \(0,\). Give at least one"):
        gflownet.Conditional(gflownet.Sets(ENERGIES, 2), [], log_reward)
    with pytest.raises(ValueError, match=r"log_weights have shape \(3,\) for 2 arguments"):
        gflownet.Conditional(
            gflownet.Sets(ENERGIES, 2), ARGUMENTS, log_reward, log_weights=np.zeros(3)
        )


@pytest.mark.slow  # trains
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_policy_and_log_z_of_each_argument_are_those_of_enumeration(seed):
    env = sets()
    net = make(env, num_hidden=32, key=jax.random.key(seed))
    loss = gflownet.balance(net, gflownet.subtrajectory_balance(), batch_size=32, epsilon=0.1)
    rate = optax.adam(optax.cosine_decay_schedule(5e-3, 3000))
    fit = inference.fit(
        loss, rate, (), num_steps=3000, key=jax.random.key(seed + 3), progress=False
    )
    for argument in ARGUMENTS:
        own, table = net.given(argument), gflownet.tabulate(env.at(argument))
        law, (target, log_z) = table.law(own, fit.params), exact(table, argument)
        assert gflownet.total_variation(law, target) < 0.02
        assert abs(float(own.log_z(fit.params)) - log_z) < 0.05


@pytest.mark.slow  # compiles
def test_objects_of_a_grid_that_stops_have_arguments():
    """The state without an argument is no object."""
    grid = gflownet.Hypergrid(2, 3)
    env = gflownet.Conditional(grid, [[0.3], [1.0]], lambda state, c: c[0] * grid.log_reward(state))
    net = make(env)
    whole, own = gflownet.tabulate(env), gflownet.tabulate(env.at([0.3]))
    assert len(whole.objects) == 2 * 9 and len(own.objects) == 9
    params = gflownet.balance(net, gflownet.detailed_balance()).init(jax.random.key(0))
    assert np.isclose(whole.law(net, params).sum(), 1, rtol=1e-5)
    assert np.isclose(own.law(net.given([0.3]), params).sum(), 1, rtol=1e-5)
