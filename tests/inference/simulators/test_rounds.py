"""Rounds at one observation against a conjugate posterior: what regions hold, whose draws rows are, where rounds end."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import kstest, norm, truncnorm

from lapilli import inference, ppl
from lapilli.inference.simulators import ReferenceTable, reference_table
from lapilli.inference.simulators._region import TruncatedPrior, misses

KEY = jax.random.key(0)
NOISE = 0.1
SLOPE, SD = 1 / (1 + NOISE**2), NOISE / (1 + NOISE**2) ** 0.5  # of the posterior N(SLOPE x, SD^2)
DATA = {"x": jnp.asarray(1.2)}


def model(x):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(m, NOISE), obs=x)


@ppl.model
def exact(x):
    ppl.sample("m", dist.Normal(SLOPE * x, SD))


@ppl.model
def linear(x):
    line = ppl.param("line", jnp.array([0.9, 0.1]))
    scale = ppl.param("scale", 0.2, constraint=dist.constraints.positive)
    ppl.sample("m", dist.Normal(line[0] * x + line[1], scale))


@ppl.model
def narrow(x):
    scale = ppl.param("scale", 0.02, constraint=dist.constraints.interval(0.01, 0.03))
    ppl.sample("m", dist.Normal(SLOPE * x, scale))


@pytest.fixture(scope="module")
def table():
    return reference_table(model, (0.0,), num_simulations=1_000, key=KEY)


@pytest.fixture(scope="module")
def found(table):
    return inference.amortise(
        table, guide=linear, at=DATA, num_rounds=2, tolerance=0.0, num_steps=1_000, progress=False
    )


def half_width(region):
    """Of the interval that one cut by a Normal of standard deviation SD is, in these."""
    [(_, threshold)] = region.cuts
    return (2 * (norm.logpdf(0.0) - np.log(SD) - threshold)) ** 0.5


def interval(region):
    place, width = SLOPE * float(region.data["x"]), half_width(region) * SD
    return place - width, place + width


def mass_outside(region):
    return 2 * norm.sf(half_width(region))


@pytest.mark.parametrize("seed", range(3))
def test_a_region_lacks_no_more_than_epsilon(seed):
    """Half of it on average; more than all of it in 3 of 100, and not of these."""
    region = TruncatedPrior(DATA).cut(exact, 1e-3, jax.random.key(seed))
    assert 1e-4 < mass_outside(region) < 1e-3


@pytest.mark.slow(reason="a thousand observations")
def test_regions_of_a_thousand_observations_lack_no_more_than_epsilon():
    x = np.asarray(model_data(1_000))
    lost = [
        mass_outside(TruncatedPrior({"x": jnp.asarray(v)}).cut(exact, 1e-3, jax.random.key(i)))
        for i, v in enumerate(x)
    ]
    # A Gamma law of 5 over the number of draws: above epsilon, twice its mean, in 2.9%, with a standard error of .53%.
    assert np.mean(lost) == pytest.approx(5e-4, rel=0.07)
    assert np.mean(np.array(lost) > 1e-3) < 0.029 + 4.5 * 0.0053


def model_data(num):
    return reference_table(model, (0.0,), num_simulations=num, key=KEY).data["x"]


def test_rows_of_all_rounds_are_draws_of_the_prior_in_the_region(table):
    """Of the truncated Normal; and those outside, which a region without its filter keeps, are seen."""
    region = TruncatedPrior(DATA).cut(exact, 1e-3, KEY)
    drawn, share = region.prior_draws(table.model, table.args, jax.random.key(1), 1_000)
    low, high = interval(region)
    inside = norm.cdf(high) - norm.cdf(low)
    assert share == pytest.approx(inside, abs=4.5 * (inside / 20_000) ** 0.5)
    assert drawn is not None
    more = table.within(region, drawn, jax.random.key(2))
    assert more.num_simulations == 1_000 + round(float(region.holds(table.parameters).sum()))
    law = truncnorm(low, high).cdf
    assert kstest(more.parameters["m"], law).pvalue > 1e-4
    noise = (more.data["x"] - more.parameters["m"]) / NOISE
    assert kstest(noise, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise, more.parameters["m"])[0, 1]) < 4.5 / len(noise) ** 0.5
    unfiltered = np.concatenate([table.parameters["m"], drawn["m"]])
    assert kstest(unfiltered, law).pvalue < 1e-4


def test_the_posterior_in_rounds_is_the_conjugate_one(found):
    draws = found.draws(KEY, {"x": 1.2}, 2_000)["m"]
    assert draws.mean() == pytest.approx(SLOPE * 1.2, abs=0.15 * SD)
    assert draws.std() == pytest.approx(SD, rel=0.1)
    rounds = found.rounds.rounds
    assert [r.num_simulations for r in rounds] == [1_000, 2_000]
    assert rounds[0].share == 1.0 and 0.02 < rounds[1].share < 0.3
    assert np.isnan(rounds[0].change) and 0 <= rounds[1].change < 0.1
    assert "no more were asked for" in repr(found) and "region" in repr(found.table)


def test_weighted_draws_of_rounds_have_the_exact_evidence(found):
    posterior = found.posterior(KEY, 1.2, num_samples=1_000)
    worth = inference.diagnostics.importance_diagnostics(posterior.log_weights)
    exact = norm.logpdf(1.2, 0.0, (1 + NOISE**2) ** 0.5)
    assert worth.k_hat < 0.7 and worth.ess > 800
    assert worth.log_evidence == pytest.approx(exact, abs=5 * worth.log_evidence_std_error + 1e-3)


def test_rounds_end_where_the_posterior_stands_still(table):
    found = inference.amortise(
        table, guide=linear, at=DATA, num_rounds=9, tolerance=5.0, num_steps=20, progress=False
    )
    assert len(found.rounds.rounds) == 2 and "moved by less than 5 nats" in found.rounds.ended


def test_a_posterior_that_is_too_narrow_cuts_nothing_off(table):
    found = inference.amortise(table, guide=narrow, at=DATA, num_steps=20, progress=False)
    assert len(found.rounds.rounds) == 1 and "tails too light" in found.rounds.ended
    assert found.table is table
    held = table.rows("held out")
    missed, pairs, most = misses(exact, *held, KEY)
    assert (
        missed <= most < 0.1 * pairs and misses(narrow.bind({"scale": 0.0}), *held, KEY)[0] > most
    )


def test_a_region_that_is_too_small_ends_rounds(table, monkeypatch):
    from lapilli.inference.simulators import _region

    monkeypatch.setattr(_region, "_PILOT", 50)
    monkeypatch.setattr(_region, "_MOST_PILOTS", 2)
    found = inference.amortise(table, guide=linear, at=DATA, num_steps=20, progress=False)
    assert len(found.rounds.rounds) == 1 and "too little to draw from" in found.rounds.ended


def test_what_is_known_at_one_observation_is_not_used_at_others(found, table, tmp_path):
    with pytest.raises(ValueError, match="data of \\['x'\\] are others"):
        found.draws(KEY, {"x": 0.0})
    with pytest.raises(ValueError, match="are wrong for other data"):
        inference.amortise(found.table, progress=False)
    with pytest.raises(ValueError, match="ratio to the evidence of the whole prior"):
        inference.ratio(found.table, progress=False)
    with pytest.raises(ValueError, match="cut to where one posterior can be"):
        found.table.save(tmp_path / "rows.npz")


def test_rounds_that_cannot_be_are_refused(table):
    with pytest.raises(ValueError, match="epsilon is 1e-09"):
        inference.amortise(table, at=DATA, epsilon=1e-9)
    with pytest.raises(ValueError, match="tolerance -1"):
        inference.amortise(table, at=DATA, tolerance=-1.0)
    rows = ReferenceTable(table.model, table.args, table.parameters, table.data, table.failed)
    with pytest.raises(ValueError, match="nothing is known to make others"):
        inference.amortise(rows, at=DATA)
