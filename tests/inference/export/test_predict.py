"""Predictions from the draws of any result: what is given is kept, what is new is drawn, scans go on."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoMultivariateNormal

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.array([0.4, 1.1, 0.3, 1.9, 1.2])
DRIFT, NOISE = 0.7, 0.5


def walk(y):
    """Local level: exact forecasts by Kalman."""

    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, DRIFT))
        ppl.sample("y", dist.Normal(z, NOISE), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


def learned(y):
    drift = ppl.sample("drift", dist.LogNormal(jnp.log(DRIFT), 0.3))

    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, drift))
        ppl.sample("y", dist.Normal(z, NOISE), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


def line(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, NOISE), obs=y)


def kalman(ys):
    mean, var = 0.0, 0.0
    for y in np.asarray(ys, float):
        var += DRIFT**2
        gain = var / (var + NOISE**2)
        mean, var = mean + gain * (y - mean), (1 - gain) * var
    return mean, var


LONGER = jnp.append(Y, jnp.full(3, jnp.nan))  # what stands in the steps to come is not read


def test_a_filter_forecasts_as_kalman_does():
    run = inference.smc(walk, KEY, Y, num_particles=20_000)
    ahead = inference.predict(walk, run, KEY, LONGER, num_samples=20_000, batch_size=5000)
    assert {n: x.shape for n, x in ahead.items()} == {"z": (20_000, 8), "y": (20_000, 8)}
    mean, var = kalman(Y)
    for h in (1, 2, 3):
        of_z, of_y = var + h * DRIFT**2, var + h * DRIFT**2 + NOISE**2
        # Draws from particles, themselves draws: twice the variance of the mean.
        assert abs(ahead["z"][:, 4 + h].mean() - mean) < 4 * np.sqrt(2 * of_z / 20_000)
        np.testing.assert_allclose(ahead["z"][:, 4 + h].var(), of_z, rtol=0.06)
        np.testing.assert_allclose(ahead["y"][:, 4 + h].var(), of_y, rtol=0.06)


@pytest.mark.slow
def test_the_steps_that_are_given_are_kept():
    z = jnp.arange(10.0).reshape(2, 5)
    ahead = inference.predict(walk, {"z": z}, KEY, LONGER, num_samples=2)
    np.testing.assert_array_equal(ahead["z"][:, :5], z)
    same = inference.predict(walk, {"z": z}, KEY, Y, num_samples=2)
    assert set(same) == {"y"}
    program = ppl.as_program(walk)
    drawn = program.predict(KEY, {"z": z[0]}, LONGER)
    np.testing.assert_array_equal(drawn["z"][:5], z[0])
    assert np.isfinite(drawn["z"]).all() and drawn["z"].shape == (8,)


def autoregression(y):
    def step(last, y):
        return ppl.sample("y", dist.Normal(0.9 * last, 0.2), obs=y), None

    ppl.scan(step, 0.0, y)


def test_observations_of_seen_steps_lead_on():
    """AR(1) from its last value 5: forecasts 5 * 0.9^h."""
    y = jnp.array([1.0, 3.0, 5.0, jnp.nan, jnp.nan])
    drawn = inference.predict(autoregression, {}, KEY, y, num_samples=4000, num_seen=3)["y"]
    np.testing.assert_array_equal(drawn[:, :3], np.tile(y[:3], (4000, 1)))
    np.testing.assert_allclose(drawn[:, 3:].mean(0), [4.5, 4.05], atol=0.02)
    np.testing.assert_allclose(drawn[:, 4].var(), 0.2**2 * (1 + 0.81), rtol=0.1)


def test_a_latent_path_brings_the_observations_of_its_steps():
    def model(y):
        def step(carry, y):
            z = ppl.sample("z", dist.Normal(carry[0], 1e-3))
            return (z, ppl.sample("y", dist.Normal(z + carry[1], 1e-3), obs=y)), None

        ppl.scan(step, (0.0, 0.0), y)

    y = jnp.array([1.0, 7.0, jnp.nan])
    drawn = inference.predict(model, {"z": jnp.zeros((1, 2))}, KEY, y, num_samples=1)["y"]
    np.testing.assert_allclose(drawn[0], [1.0, 7.0, 7.0], atol=0.02)


def test_nested_scans_go_on_from_what_is_given():
    def nested(x):
        def outer(c, row):
            def inner(c, v):
                return ppl.sample("z", dist.Normal(c, 1.0)), None

            return ppl.scan(inner, c, row)[0], None

        ppl.scan(outer, 0.0, x)

    z = jnp.arange(6.0).reshape(2, 3)
    drawn = ppl.as_program(nested).predict(KEY, {"z": z}, jnp.zeros((4, 3)))["z"]
    np.testing.assert_array_equal(drawn[:2], z)
    assert drawn.shape == (4, 3) and np.abs(drawn[2:] - z[-1, -1]).max() < 10


def test_only_predictions_go_on():
    """Densities and proposals refuse values of a shorter scan, as before."""
    program = ppl.as_program(walk)
    for run in (
        lambda z: program.log_density({"z": z}, LONGER),
        lambda z: program.generate(KEY, {"z": z}, LONGER),
    ):
        with pytest.raises(ValueError, match="'z' stands in scan.*without the leading"):
            run(jnp.zeros(5))
    with pytest.raises(ValueError, match="'z' stands in scan"):
        program.predict(KEY, {"z": jnp.zeros(9)}, LONGER)  # more steps than there are


@pytest.mark.slow
def test_chains_forecast_with_the_parameters_of_their_draws():
    chain = inference.particles.pmmh(
        learned, KEY, Y, parameters=["drift"], num_particles=20, num_samples=30, num_warmup=10
    )
    ahead = inference.predict(learned, chain, KEY, LONGER, num_samples=60)
    assert set(ahead) == {"z", "y"} and ahead["z"].shape == (60, 8)
    np.testing.assert_array_equal(ahead["z"][::2, :5], chain.choices["z"])
    gibbs = inference.particles.particle_gibbs(walk, KEY, Y, num_samples=4, num_particles=5)
    assert inference.predict(walk, gibbs, KEY, LONGER, num_samples=4)["y"].shape == (4, 8)


@pytest.mark.slow
def test_fits_forecast_by_keeping_all():
    def guide(y):
        at, scale = ppl.param("at", jnp.zeros(5)), ppl.param("scale", 0.3 * jnp.ones(5))
        ppl.scan(lambda c, p: (ppl.sample("z", dist.Normal(*p)), None), 0.0, (at, scale))

    import optax

    fit = inference.fit(
        inference.elbo(walk, guide), optax.adam(0.1), (Y,), num_steps=2, key=KEY, progress=False
    )
    ahead = fit.predict(KEY, LONGER, keep="*", num_samples=3)
    assert ahead["z"].shape == ahead["y"].shape == (3, 8)
    np.testing.assert_allclose(ahead["z"][:, :5], 0.1, atol=2)


@pytest.mark.slow
def test_mcmc_and_weighted_draws_predict_new_rows():
    x = jnp.linspace(-1.0, 1.0, 6)
    mcmc = MCMC(NUTS(line), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(KEY, x, 0.7 * x)
    assert inference.predict(line, mcmc, KEY, x[:2], num_samples=10)["y"].shape == (10, 2)
    # All the weight on the draw 3.
    log_weights = np.where(np.arange(50) == 7, 0.0, -1e3)
    slope = np.where(np.arange(50) == 7, 3.0, 0.0)
    weighted = inference.Posterior({"slope": slope}, log_weights)
    with pytest.warns(UserWarning, match=r"k-hat .*50 draws allow at most"):
        drawn = inference.predict(line, weighted, KEY, x=jnp.array([100.0]), num_samples=20)["y"]
    assert (np.abs(drawn - 300.0) < 5).all()


@pytest.mark.slow
def test_a_chain_has_no_draws_for_other_rows_than_its_own():
    def model(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        shifts = ppl.sample("shifts", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        ppl.sample("y", dist.Normal(slope * x + shifts, NOISE).to_event(1), obs=y)

    x = np.linspace(-1.0, 1.0, 6)
    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(KEY, x, 0.7 * x)
    assert set(inference.predict(model, mcmc, KEY, x, num_samples=3)) == {"y"}
    with pytest.raises(ValueError, match=r"\['shifts'\] belong to the rows that the draws"):
        inference.predict(model, mcmc, KEY, x + 1.0, num_samples=3)
    slopes = {"slope": mcmc.get_samples()["slope"]}
    assert set(inference.predict(model, slopes, KEY, x + 1.0, num_samples=3)) == {"shifts", "y"}


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ({"slope": jnp.zeros(3), "other": jnp.zeros(2)}, ValueError, "different numbers of draws"),
        (3.0, TypeError, "'result' is a float"),
        ({"slop": jnp.zeros(3)}, ppl.ChoiceMismatch, "slop"),
    ],
)
def test_results_without_fitting_draws_are_refused(result, error, message):
    with pytest.raises(error, match=message):
        inference.predict(line, result, KEY, jnp.zeros(2))


@pytest.mark.slow
def test_fits_and_chains_without_names_are_sent_elsewhere():
    import optax

    empty = lambda x, y=None: ppl.sample("slope", dist.Normal(ppl.param("m", 0.0), 1.0))
    x = jnp.ones(3)
    fit = inference.fit(
        inference.elbo(line, empty), optax.adam(0.1), (x, x), num_steps=1, key=KEY, progress=False
    )
    with pytest.raises(TypeError, match="fit.predict"):
        inference.predict(line, fit, KEY, x)
    model = inference.FeynmanKac(
        init=lambda key: jax.random.normal(key), kernel=lambda key, x, t: x,
        log_potential=lambda before, x, t: -(x**2), num_steps=2,
    )  # fmt: skip
    run = inference.smc(model, KEY, num_particles=5)
    with pytest.raises(TypeError, match="FeynmanKac have no names"):
        inference.predict(line, run, KEY, x)


def test_values_of_other_sites_say_nothing_of_the_steps_seen():
    """A vector before the scan, rows of a plate and another scan may all be shorter than it."""

    def program(y, w):
        effects = ppl.sample("effects", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with ppl.plate("rows", 4):
            rows = ppl.sample("rows_", dist.Normal(0.0, 1.0))

        def step(name, mean):
            def run(z, y):
                z = ppl.sample(f"z_{name}", dist.Normal(z, DRIFT))
                ppl.sample(name, dist.Normal(z + mean, 0.1), obs=y)
                return z, None

            return run

        ppl.scan(step("y", effects.sum() + rows.sum()), 0.0, y)
        ppl.scan(step("w", 0.0), 0.0, w)

    sizes = {"effects": 3, "rows_": 4, "z_y": 6, "z_w": 2}
    draws = {name: jnp.zeros((100, size)) for name, size in sizes.items()}
    drawn = inference.predict(program, draws, KEY, jnp.full(6, 99.0), jnp.full(2, 99.0))
    assert np.abs(drawn["y"]).max() < 1.0 and np.abs(drawn["w"]).max() < 1.0


def test_observations_in_an_inner_scan_belong_to_the_step_seen():
    def program(y):
        def outer(z, y):
            z = ppl.sample("z", dist.Normal(z, 0.1))
            inner = lambda c, y: (c, ppl.sample("y", dist.Normal(z, 0.1), obs=y))
            ppl.scan(inner, 0.0, y)
            return z, None

        ppl.scan(outer, 0.0, y)

    ahead = inference.predict(program, {"z": jnp.zeros((5, 2))}, KEY, jnp.full((4, 3), 9.0))
    assert (ahead["y"][:, :2] == 9.0).all() and np.abs(ahead["y"][:, 2:]).max() < 3.0


def test_what_tells_of_a_site_to_be_drawn_is_refused():
    """A kept path, an observation that holds, and a factor: forward draws do not hear of them."""
    with pytest.raises(ValueError, match="site 'z' is kept, and its law depends"):
        inference.predict(learned, {"z": jnp.zeros((5, 5))}, KEY, LONGER)

    def regressive(y):
        scale = ppl.sample("scale", dist.HalfNormal(1.0))

        def step(last, y):
            return ppl.sample("y", dist.Normal(0.5 * last, scale), obs=y), None

        ppl.scan(step, 0.0, y)

    with pytest.raises(ValueError, match="'y' depends on a site that would be drawn"):
        inference.predict(regressive, {}, KEY, LONGER, num_seen=5)
    given = {"scale": jnp.ones(5)}
    assert (inference.predict(regressive, given, KEY, LONGER, num_seen=5)["y"][:, :5] == Y).all()

    def pulled(x):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        b = ppl.sample("b", dist.Normal(a, 1.0).expand([3]).to_event(1))
        ppl.factor("pull", -10.0 * ((b - x) ** 2).sum())

    with pytest.raises(ValueError, match="'pull' depends on a site that would be drawn"):
        inference.predict(pulled, {"a": jnp.ones(5)}, KEY, jnp.ones(3))


@pytest.mark.slow
def test_deterministic_and_auxiliary_sites_beside_the_draws():
    """MCMC returns deterministic sites, the posterior of an autoguide its own."""

    def program(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        twice = ppl.deterministic("twice", 2 * slope)
        ppl.sample("y", dist.Normal(twice * x, NOISE).to_event(1), obs=y)

    bound = inference.elbo(program, AutoMultivariateNormal(program))
    fit = inference.fit(bound, args=(Y, Y), num_steps=300, progress=False)
    posterior = fit.posterior(KEY, 100)
    assert set(posterior.choices) == {"slope", "_auto_latent"}
    draws = {"slope": posterior.choices["slope"], "twice": jnp.zeros(100)}
    for result in (posterior, draws):
        drawn = inference.predict(program, result, KEY, jnp.ones(2), num_samples=100)
        assert {n: x.shape for n, x in drawn.items()} == {"twice": (100,), "y": (100, 2)}
    np.testing.assert_array_equal(drawn["twice"], 2 * draws["slope"])


def test_a_scan_goes_on_from_one_number_of_steps():
    def program(y):
        def step(c, y):
            z = ppl.sample("z", dist.Normal(0.0, 1.0)) + ppl.sample("w", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(z, 0.1), obs=y)
            return c, None

        ppl.scan(step, 0.0, y)

    def run(num_z, num_w, **options):
        given = {"z": jnp.zeros((3, num_z)), "w": jnp.zeros((3, num_w))}
        return inference.predict(program, given, KEY, LONGER, **options)

    for sizes, options in (((4, 2), {}), ((4, 4), {"num_seen": 5}), ((4, 4), {"num_seen": 1})):
        with pytest.raises(ValueError, match="different numbers of steps"):
            run(*sizes, **options)
    assert run(4, 4, num_seen=4)["y"].shape == (1000, 8)
    with pytest.raises(ValueError, match="num_seen must be an integer >= 0"):
        run(4, 4, num_seen=-1)


def hidden(y):
    def step(state, y):
        state = ppl.sample("state", dist.Categorical(STAY[state]))
        ppl.sample("y", dist.Normal(3.0 * state, 0.5), obs=y)
        return state, None

    ppl.scan(step, 0, y)


STAY = jnp.array([[0.9, 0.1], [0.3, 0.7]])


@pytest.mark.slow
def test_what_rows_share_and_is_integrated_out_is_not_drawn_from_its_prior():
    """Its posterior is that of the data: draws there, given those that are left, predict new rows."""

    def level(x, y=None):
        mean = ppl.sample("mean", dist.Normal(0.0, 10.0))
        noise = ppl.sample("noise", dist.LogNormal(0.0, 0.1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(mean + x, noise), obs=y)

    x, program = jnp.linspace(0.0, 1.0, 8), ppl.eliminate(level, ["mean"])
    draws = {"noise": jnp.full(500, 0.3)}
    with pytest.raises(ValueError, match=r"\['mean'\] are integrated out and shared.*posterior"):
        inference.predict(program, draws, KEY, x[:3], num_samples=500)
    keys = jax.random.split(KEY, 500)
    posterior = lambda key, choices: program.posterior(key, choices, x, x + 5.0)
    states = jax.vmap(posterior)(keys, draws)
    y = inference.predict(level, {**draws, **states}, KEY, x[:3], num_samples=500)["y"]
    error = 0.3 * (1 + 1 / 8) ** 0.5 / 500**0.5
    assert (np.abs(y.mean(0) - x[:3] - 5.0) < 4.5 * error + 1e-3).all()  # the prior takes off .0006


@pytest.mark.slow(reason="many small programs")
def test_a_chain_whose_states_are_summed_out_is_forecast_by_its_states():
    """States of the seen steps from the exact posterior, the next ones from the chain; the filter by hand is the oracle."""
    y = jnp.array([0.1, 2.7, 3.2, 0.4, 2.6])
    summed, longer = ppl.eliminate(hidden, "state"), jnp.append(y, jnp.zeros(2))
    with pytest.raises(ValueError, match="steps to come included.*program.posterior"):
        inference.predict(summed, {}, KEY, longer, num_samples=3)
    states = summed.posterior(KEY, {}, y, num_samples=4000)
    ahead = inference.predict(summed.program, states, KEY, longer, num_samples=4000)
    law = np.array([1.0, 0.0])
    for value in np.asarray(y, float):
        law = law @ np.asarray(STAY, float) * np.exp(-2.0 * (value - np.array([0.0, 3.0])) ** 2)
        law /= law.sum()
    for h in (1, 2):
        law = law @ np.asarray(STAY, float)
        share = ahead["state"][:, 4 + h].mean()
        assert abs(share - law[1]) < 4 * np.sqrt(law[1] * law[0] / 4000)
        np.testing.assert_allclose(ahead["y"][:, 4 + h].mean(), 3 * law[1], atol=0.12)


def learned_drift(y):
    drift = ppl.sample("drift", dist.Normal(0.0, 1.0))
    step = lambda last, y: (ppl.sample("y", dist.Normal(drift * last, NOISE), obs=y), None)
    ppl.scan(step, 0.0, y)


def test_steps_seen_are_said_where_no_draw_tells_them():
    draws = {"drift": jnp.full(4, 0.9)}
    with pytest.raises(ValueError, match=r"\['y'\] lie in a scan without latent.*Say num_seen="):
        inference.predict(learned_drift, draws, KEY, LONGER, num_samples=4)
    anew = inference.predict(learned_drift, draws, KEY, Y, num_seen=0, num_samples=4)["y"]
    kept = inference.predict(learned_drift, draws, KEY, LONGER, num_seen=5, num_samples=4)["y"]
    assert anew.std(0).min() > 0
    np.testing.assert_array_equal(kept[:, :5], np.broadcast_to(Y, (4, 5)))
    with pytest.raises(ValueError, match="num_seen=2 .*no site of the program lies in a ppl.scan"):
        inference.predict(line, {"slope": jnp.zeros(4)}, KEY, Y, num_seen=2)


@pytest.mark.slow
def test_parameters_without_states_do_not_tell_the_steps_seen():
    draws = {"drift": jnp.full(4, 0.9)}
    with pytest.raises(ValueError, match=r"\['z'\], of which no draws are given.*num_seen=0"):
        inference.predict(learned, draws, KEY, LONGER, num_samples=4)
    anew = inference.predict(learned, draws, KEY, Y, num_seen=0, num_samples=4)
    assert anew["z"].shape == (4, 5)
    given = {**draws, "z": jnp.ones((4, 5))}
    assert inference.predict(learned, given, KEY, LONGER, num_samples=4)["y"].shape == (4, 8)


def test_draws_of_one_series_do_not_stand_for_those_of_another():
    y, longer = np.asarray(Y), np.asarray(LONGER)
    choices = {"drift": np.full(4, 0.9), "z": np.ones((4, 5))}
    draws = inference.Draws(choices, None, 1, {}, ppl.model(learned), (y,))  # pyright: ignore[reportArgumentType]
    assert draws.predict(KEY, y)["y"].shape == (4, 5)
    assert draws.predict(KEY, longer)["y"].shape == (4, 8)
    with pytest.raises(ValueError, match=r"draws of \['z'\] belong to the 5 steps.*'y' of shape"):
        draws.predict(KEY, -y)
    for keep in (None, "*"):
        with pytest.raises(ValueError, match=r"\['z'\] go on from 5 steps.*'y' of shape \(8,\)"):
            inference.predict(learned, draws, KEY, -longer, keep=keep, num_samples=4)
    assert set(draws.predict(KEY, -y, keep="*")) == {"y"}  # said to hold
    assert set(draws.predict(KEY, -longer, keep=["drift"], num_seen=0)) == {"y", "z"}


def test_draws_that_are_read_by_position_are_of_their_own_rows():
    def model(x, g, y=None):
        z = ppl.sample("z", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
        effect = ppl.sample("effect", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
        with ppl.plate("rows", x.shape[0]):
            at = z[jnp.arange(x.shape[0])] + effect[g]
            ppl.sample("y", dist.Normal(x + at, 0.3), obs=y)

    x, g, y = np.zeros(4), np.arange(4), np.ones(4)
    choices = {"z": np.ones((6, 4)), "effect": np.ones((6, 4))}
    draws = inference.Draws(choices, None, 1, {}, ppl.model(model), (x, g, y))  # pyright: ignore[reportArgumentType]
    assert set(draws.predict(KEY, x, g)) == {"y"}
    with pytest.raises(ValueError, match="'z' has as many entries as the fit had rows.*keep="):
        draws.predict(KEY, x + 1.0, g)
    assert set(draws.predict(KEY, x + 1.0, g, keep=["effect"])) == {"y", "z"}


def test_a_switch_that_a_chain_summed_out_is_not_drawn_from_its_prior():
    def model(x, y=None):
        summed = {"enumerate": "parallel"}
        switch = numpyro.sample("switch", dist.Bernoulli(0.5), infer=summed)
        mu = numpyro.sample("mu", dist.Normal(0.0, 0.5))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(x + mu + 5.0 * switch, 1.0), obs=y)

    x = jnp.zeros(6)
    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(KEY, x, x + 5.0)
    with pytest.raises(ValueError, match=r"no draws of \['switch'\], which its kernel summed out"):
        inference.predict(model, mcmc, KEY, jnp.zeros(3), num_samples=5)
    draws = {"mu": mcmc.get_samples()["mu"], "switch": jnp.ones(5)}
    assert set(inference.predict(model, draws, KEY, jnp.zeros(3), num_samples=5)) == {"y"}


def test_weights_that_cannot_be_trusted_are_told_before_they_resample():
    narrow = 0.3 * np.random.default_rng(0).normal(size=200)
    light = inference.Posterior({"slope": narrow}, np.zeros(200))  # warnings are errors here
    inference.predict(line, light, KEY, jnp.zeros(2), num_samples=3)
    heavy = inference.Posterior({"slope": narrow}, 5.0 * narrow / 0.09)
    with pytest.warns(UserWarning, match=r"k-hat .*200 draws allow at most.*infer"):
        inference.predict(line, heavy, KEY, jnp.zeros(2), num_samples=3)


def test_missing_cells_beside_sites_that_are_summed_out_are_masked_instead():
    """A cell that the model would draw is given to nobody; a mask leaves it out of sum and posterior."""

    def groups(y, seen, is_masked):
        loc = ppl.sample("loc", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 5):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            law = dist.Normal(loc + 4.0 * k, 0.1)
            if is_masked:
                ppl.sample("y", law.mask(seen), obs=y)
            else:
                ppl.sample("y", law, obs=y, obs_mask=seen)

    y, seen = jnp.array([4.0, 0.0, 4.0, 0.0, 4.0]), jnp.array([True, True, True, False, False])
    summed = ppl.eliminate(groups, "k")
    draws = {"loc": jnp.zeros(400)}
    with pytest.raises(ValueError, match=r"\['y_unobserved'\], have no values.*law.mask\(seen\)"):
        inference.predict(summed, draws, KEY, y, seen, False, num_samples=400)
    k = inference.predict(summed, draws, KEY, y, seen, True, num_samples=400)["k"]
    np.testing.assert_array_equal(k[:, :3], np.broadcast_to([1, 0, 1], (400, 3)))
    # Without its cell a row has the prior, 0.3: 4.5 standard errors of 400 draws.
    assert (np.abs(k[:, 3:].mean(0) - 0.3) < 4.5 * (0.21 / 400) ** 0.5).all()


def effects(x, y=None):
    z = ppl.sample("z", dist.Normal(jnp.zeros(x.shape[0]), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(x + z, 0.1).to_event(1), obs=y)


def pairs(x, y=None):
    with ppl.plate("pairs", x.shape[0] // 2):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x + jnp.repeat(z, 2), 0.1), obs=y)


def groups(x, y=None, num_groups=3):
    with ppl.plate("groups", num_groups):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x + z.sum(), 0.1), obs=y)


@pytest.mark.parametrize("model", [effects, pairs])
def test_draws_of_rows_need_to_be_said_to_be_of_these(model):
    """As many rows as before may be others: draws of 5 are no draws for them."""
    x = np.zeros(4, np.float32)
    draws = {"z": jnp.full((50, 4 if model is effects else 2), 5.0)}
    with pytest.raises(
        ValueError, match=r"\['z'\] belong to rows .* Pass keep='\*' if they were. Else leave"
    ):
        inference.predict(model, draws, KEY, x + 100)
    same = inference.predict(model, draws, KEY, x, keep="*", num_samples=50)["y"]
    np.testing.assert_allclose(same.mean(), 5.0, atol=0.1)
    other = inference.predict(model, {}, KEY, x + 100, num_samples=500)["y"]
    assert abs(other.mean() - 100) < 0.3


def test_draws_of_groups_are_of_any_rows():
    """By a number of the program, and by one of the arguments."""
    draws = {"z": jnp.full((50, 3), 1.0)}
    for args in ((), (None, 3)):
        found = inference.predict(
            groups, draws, KEY, np.zeros(3, np.float32), *args, num_samples=50
        )
        np.testing.assert_allclose(found["y"].mean(), 3.0, atol=0.1)


def test_cells_that_were_missing_belong_to_data_that_a_prediction_without_data_does_not_have(key):
    """Draws of a posterior with holes predict where neither data nor mask are given: all cells are drawn from their law."""
    y, seen = np.array([3.0, 0.0, 5.0]), np.array([True, False, True])

    def model(y=None, seen=None):
        rate = ppl.sample("rate", dist.Gamma(2.0, 1.0))
        with ppl.plate("rows", 3):
            ppl.sample("y", dist.Poisson(rate), obs=y, obs_mask=seen)

    draws = {"rate": jnp.full(2000, 4.0), "y_unobserved": jnp.full((2000, 3), 99.0)}
    new = inference.predict(model, draws, key, num_samples=2000)["y"]
    assert new.shape == (2000, 3)
    # 6,000 Poisson draws of mean and variance 4
    assert abs(new.mean() - 4) < 5 * 2 / 6000**0.5 and abs(new.var() - 4) < 0.5
    assert set(inference.predict(model, draws, key, y, seen, num_samples=10, keep="*")) >= {"y"}


def test_values_that_tell_of_what_is_drawn_anew_are_refused_where_something_else_is_predicted():
    """`w` of rows whose `y` are 50 and -50 was drawn around 0, since `z` of these rows came from its prior."""

    def model(x, y=None, w=None):
        shift = ppl.sample("shift", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 10.0))
            ppl.sample("y", dist.Normal(z, 0.1), obs=y)
            ppl.sample("w", dist.Normal(z + shift, 0.1), obs=w)

    draws, x, y = {"shift": np.zeros(5)}, jnp.zeros(2), jnp.array([50.0, -50.0])
    ahead = lambda *args: inference.predict(model, draws, KEY, *args, num_samples=5)
    with pytest.raises(ValueError, match=r"\['w'\] are to be predicted from 'z'.*for \['y'\] tell"):
        ahead(x, y)
    # Nothing given, and replicates of all.
    assert set(ahead(x)) == set(ahead(x, y, y)) == {"z", "y", "w"}
