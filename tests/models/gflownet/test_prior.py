"""A prior policy in place of the backward one, by enumeration: the target is the posterior of what the prior builds.

Venkatraman et al. 2024, arXiv:2405.20971.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _gflownet import Tabular, exact, grid, parameters, sets, slow

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import gflownet


def posterior(net):
    """Evidence E_p[R], the posterior of objects, and for every state E_p[R | state], by dynamic programming."""
    table, _ = exact(net)
    rows = jax.vmap(lambda s: net.log_prior(gflownet.Position(s, jnp.zeros((), bool))))
    log_prior = np.asarray(rows(jax.tree.map(jnp.asarray, table.states)), float)
    joint = table.law_of(log_prior) * np.exp(table.log_reward)
    ahead = np.zeros(len(table.levels))
    ahead[table.objects] = np.exp(table.log_reward)
    if net.env.stops:
        ahead *= np.exp(log_prior[:, -1])
    step = np.exp(log_prior[table.parents, table.actions])
    for level in range(table.levels.max(), 0, -1):
        edges = table.levels[table.children] == level
        np.add.at(ahead, table.parents[edges], step[edges] * ahead[table.children[edges]])
    return joint.sum(), joint / joint.sum(), ahead, log_prior


@pytest.mark.slow
@pytest.mark.parametrize(("make", "base"), [(grid, 3), slow(sets, 2, id="sets")])
def test_the_twisted_prior_has_no_residual_and_builds_the_posterior(make, base):
    net = make("network", "prior")
    evidence, law, ahead, log_prior = posterior(net)
    table, actions = exact(net)
    codes = (np.asarray(table.states, int) * base ** np.arange(np.shape(table.states)[1])).sum(1)
    policy = np.array(log_prior)
    children = np.full(policy.shape, -np.inf)
    children[table.parents, table.actions] = np.log(ahead[table.children])
    if net.env.stops:
        children[table.objects, -1] = table.log_reward
    policy = np.where(np.isfinite(children), log_prior + children - np.log(ahead)[:, None], 0.0)
    rows, flows = (
        np.zeros((len(net.policy.rows), net.env.num_choices)),
        np.zeros((len(net.policy.rows), 1)),
    )
    rows[codes], flows[codes, 0] = policy, np.log(ahead)
    params = dict(parameters(net))
    params["policy"] = Tabular(jnp.asarray(rows, jnp.float32), base)
    params["flow"] = Tabular(jnp.asarray(flows, jnp.float32), base)
    process = jax.jit(net.log_weight_process)(params, actions)
    np.testing.assert_allclose(process.increments, 0, atol=2e-5)
    np.testing.assert_allclose(net.log_z(params), np.log(evidence), rtol=1e-5)
    np.testing.assert_allclose(table.law(net, params), law, rtol=1e-4)


@pytest.mark.slow  # compiles 4,000 particle runs
def test_particles_estimate_the_evidence_under_the_prior(key):
    """Random policy and flow, |z| < 4.5 over 4,000 runs."""
    net = grid("network", "prior")
    params, evidence = parameters(net), posterior(net)[0]
    forward, target = net.forward.bind(params), net.target.bind(params)

    def run(key):
        options = {"twist": net.twist(params), "num_particles": 8, "history": "none"}
        return inference.smc(target, key, proposal=forward, **options).log_evidence

    estimates = jnp.exp(jax.jit(jax.vmap(run))(jax.random.split(key, 4_000)))
    assert_unbiased(estimates / evidence, 1.0)


def test_there_is_no_way_back():
    with pytest.raises(ValueError, match="prior\\(path\\) R"):
        _ = grid("network", "prior").backward
