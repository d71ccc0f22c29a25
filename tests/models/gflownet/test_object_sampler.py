"""Fit, sample, score and keep: against the exact law of a small grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli.inference.diagnostics import EvidenceBracket
from lapilli.models import gflownet
from lapilli.models.gflownet._object_sampler import _judged, _log_mean, _spread

GRID = gflownet.Hypergrid(2, 6, rewards=(0.1, 0.5, 2.0))
SIZES = {"num_hidden": 32, "num_steps": 800, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def table():
    return gflownet.tabulate(GRID)


@pytest.fixture(scope="module")
def sampler():
    return gflownet.ObjectSampler(GRID, **SIZES, patience=300).fit()


@pytest.mark.slow  # trains two networks
def test_objects_are_drawn_in_proportion_to_their_reward(sampler, table):
    """Exact law of the policy within 0.05 of R / Z, 36 objects; all estimates of log Z on their sides."""
    law = table.law(sampler._net, sampler._params)
    assert gflownet.total_variation(law, table.target) < 0.05
    lower, upper = sampler.bracket_.lower, sampler.bracket_.upper
    error = lambda x: 4.5 * x.std(ddof=1) / len(x) ** 0.5
    assert lower.mean() - error(lower) < table.log_z < upper.mean() + error(upper)
    assert abs(sampler.log_z_ - table.log_z) < 4.5 * sampler.bracket_.standard_error(1_000)
    assert sampler.runs_.shape == (2,) and sampler.n_iter_ == len(sampler.validation_) * 100
    drawn = sampler.sample(20_000, random_state=1)
    places = np.asarray(table.states)[table.objects]
    is_place = (drawn.objects[:, None] == places).all(-1)
    assert_unbiased(is_place, law)
    assert_unbiased(np.exp(drawn.log_weight), np.exp(table.log_z))
    np.testing.assert_allclose(drawn.log_reward, is_place @ table.log_reward, rtol=1e-5)


@pytest.mark.slow
def test_scores_are_the_probabilities_of_the_policy(sampler, table):
    """256 ways back: the relative error of each probability is a few per cent, and 36 of them average."""
    objects = np.asarray(table.states)[table.objects]
    ratio = np.exp(sampler.score_samples(objects, 256)) / table.law(sampler._net, sampler._params)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std(ddof=1) / len(ratio) ** 0.5 + 1e-3
    assert np.abs(ratio - 1).max() < 0.5
    np.testing.assert_allclose(sampler.score(objects), sampler.score_samples(objects).mean())


@pytest.mark.slow
def test_a_file_belongs_to_its_environment(sampler, tmp_path):
    path = tmp_path / "sampler.npz"
    sampler.save(path)
    other = gflownet.ObjectSampler.load(path, GRID)
    for one, two in zip(sampler.sample(20), other.sample(20), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(other.bracket_.upper, sampler.bracket_.upper)
    assert other.validation_ == sampler.validation_ and other.log_z_ == sampler.log_z_
    with pytest.raises(ValueError, match="trained on another environment.*log-weights of ten"):
        gflownet.ObjectSampler.load(path, gflownet.Hypergrid(2, 6))
    with pytest.raises(ValueError, match="its networks have other shapes"):
        gflownet.ObjectSampler.load(path, gflownet.Hypergrid(2, 5))


@pytest.mark.slow  # compiles
def test_runs_judge_each_other(table, key):
    """A run that stops at once, with weights all alike, beside an untrained one: it misses all but one object."""
    net = gflownet.programs(GRID, flow="total", num_hidden=8, key=key)
    params = dict(net.forward.init(key))
    stops = jax.tree.map(lambda x: x, params)
    last = stops["policy"].layers[-1]
    bias = last.bias.at[-1].add(20.0)
    stops["policy"] = jax.tree.map(lambda x: bias if x is last.bias else x, stops["policy"])
    both = jax.tree.map(lambda *x: jnp.stack(x), stops, params)
    lower, upper, log_z = jax.jit(lambda p: _judged(net, p, key, 2_000))(both)
    own, given = np.asarray(lower[0]), np.asarray(upper[0])
    assert own.std() < 1e-3
    share, error = EvidenceBracket(own, given, 1, "draws").unseen
    assert abs(share - (1 - table.target[0])) < 0.05 + 4.5 * error
    # The mixture's estimate; its weights are at most twice those of the untrained run.
    spread = np.exp(np.asarray(lower[1]) - table.log_z).std() * 2
    assert abs(np.exp(float(log_z) - table.log_z) - 1) < 4.5 * spread / 2_000**0.5
    assert int(jnp.argmax(_log_mean(lower))) == 1
    spread = np.sqrt((np.var(lower[1]) + np.var(upper[1])) / 2)
    np.testing.assert_allclose(_spread((lower, upper, log_z)), spread, rtol=1e-4)


def test_what_is_impossible_is_refused():
    with pytest.raises(ValueError, match="num_runs must be an integer >= 2, got 1"):
        gflownet.ObjectSampler(GRID, num_runs=1)
    with pytest.raises(ValueError, match="random_state must be an integer >= 0, got None"):
        gflownet.ObjectSampler(GRID, random_state=None)
    for option in ({"loss": "square"}, {"explore": 2.0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match="loss must be one of.*explore must lie in.*positive"):
            gflownet.ObjectSampler(GRID, **option)
    with pytest.raises(ValueError, match=r"ObjectSampler.sample: nothing is fitted yet. Call fit"):
        gflownet.ObjectSampler(GRID).sample(3)
