"""Results know what their draws were made for: new data are read by its names, and another past is no past of theirs."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

from lapilli import inference, ppl
from lapilli.inference import particles
from lapilli.inference.posteriors import Certificate, Draws

KEY = jax.random.key(0)
FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 2)), columns=["u", "v"])
TURNED = pd.DataFrame({"v": [1.0, 0.0], "u": [0.0, 1.0]})
Y = 3.0 * FRAME["u"].to_numpy() - 2.0 * FRAME["v"].to_numpy()


@ppl.model
def line(x, y=None):
    slopes = ppl.sample("slopes", dist.Normal(jnp.array([3.0, -2.0]), 0.01).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ slopes, 0.1), obs=y)


def guide(x, y=None):
    at = ppl.param("at", jnp.array([3.0, -2.0]))
    ppl.sample("slopes", dist.Normal(at, 0.0099).to_event(1))


@functools.cache
def posterior(**kwargs):
    fit = inference.fit(
        inference.elbo(line, guide),
        optax.sgd(0.0),
        (FRAME, Y),
        num_steps=1,
        key=KEY,
        progress=False,
    )
    return fit.posterior(KEY, 200, **kwargs)


RESULTS = {
    "posterior": posterior,
    "smc": lambda: inference.smc(line, KEY, x=FRAME, y=Y, num_particles=100),
    "islands": lambda: particles.islands(line, KEY, FRAME, Y, num_islands=2, num_particles=50),
    "tempered": lambda: inference.tempered_smc(line, KEY, FRAME, Y, num_particles=100),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "posterior" else pytest.param(n, marks=pytest.mark.slow) for n in RESULTS],
)
@pytest.mark.filterwarnings("ignore:.*not to be trusted")
def test_columns_keep_their_names_in_predictions_from_any_result(name):
    ahead = inference.predict(line, RESULTS[name](), KEY, TURNED, num_samples=100)
    np.testing.assert_allclose(ahead["y"].mean(0), [-2.0, 3.0], atol=0.1)


def test_columns_keep_their_names_on_the_way_to_arviz():
    tree = lambda x: inference.to_arviz(
        posterior(), model=line, args=(x, Y), resample="none", groups=["log_likelihood"]
    )
    same, turned = (
        tree(FRAME)["log_likelihood"]["y"],
        tree(FRAME[["v", "u"]])["log_likelihood"]["y"],
    )
    np.testing.assert_allclose(turned, same, rtol=1e-5)


def walk(y):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, 0.7))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


def learned(y):
    drift = ppl.sample("drift", dist.LogNormal(0.0, 0.3))

    def step(z, y):
        z = ppl.sample("z", dist.Normal(z, drift))
        ppl.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


SERIES = np.array([0.4, 1.1, 0.3, 1.9, 1.2])
FILTERS = {
    "smc": (walk, functools.partial(inference.smc, num_particles=50)),
    "islands": (walk, functools.partial(particles.islands, num_islands=2, num_particles=20)),
    "gibbs": (walk, functools.partial(particles.particle_gibbs, num_samples=4, num_particles=5)),
    "pmmh": (
        learned,
        functools.partial(
            particles.pmmh, parameters=["drift"], num_particles=20, num_samples=4, num_warmup=2
        ),
    ),
    "smc2": (
        learned,
        functools.partial(
            particles.smc2, parameters=["drift"], num_parameter_particles=20, num_particles=20
        ),
    ),
}


@pytest.mark.parametrize(
    "name", [n if n == "smc" else pytest.param(n, marks=pytest.mark.slow) for n in FILTERS]
)
def test_states_of_one_series_are_none_of_another(name):
    model, run = FILTERS[name]
    result = run(model, KEY, SERIES)
    ahead = functools.partial(inference.predict, model, result, KEY, num_samples=4)
    assert ahead(SERIES)["y"].shape == (4, 5)
    assert ahead(np.append(SERIES, np.nan))["y"].shape == (4, 6)
    with pytest.raises(ValueError, match=r"argument 'y' .* are not those of the fit: states"):
        ahead(SERIES + 3.0)
    with pytest.raises(ValueError, match="first 5 rows of argument 'y'"):
        ahead(np.append(SERIES + 3.0, np.nan))


def test_what_compiled_code_returns_says_that_it_does_not_know():
    result = jax.jit(lambda y: inference.smc(walk, KEY, y, num_particles=50))(SERIES)
    assert result.made_for is None
    with pytest.raises(ValueError, match=r"\['z'\] belong to rows.*nothing tells.*keep='\*'"):
        inference.predict(walk, result, KEY, SERIES + 3.0)
    ahead = inference.predict(walk, result, KEY, np.append(SERIES, np.nan), keep="*", num_samples=4)
    assert ahead["y"].shape == (4, 6)


def test_results_are_trees_of_their_numbers_and_come_back_from_pickles():
    found = posterior()
    assert len(jax.tree.leaves(found)) == 2
    assert jax.tree.map(np.asarray, found).made_for is None
    again = pickle.loads(pickle.dumps(found))
    assert again.made_for.labels == {"Argument 'x'": ("u", "v")}
    np.testing.assert_array_equal(again.made_for.args[1], found.made_for.args[1])


@pytest.mark.filterwarnings("ignore:.*not to be trusted")
def test_particles_of_rows_are_those_of_their_rows_in_arviz():
    def rows(x):
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    run = inference.smc(rows, KEY, SERIES, num_particles=50)
    tree = inference.to_arviz(run, model=rows, key=KEY, num_samples=10, groups=["observed_data"])
    np.testing.assert_allclose(tree["observed_data"]["x"], SERIES, rtol=1e-6)
    with pytest.raises(ValueError, match="belong to the rows that the draws were made for"):
        inference.to_arviz(run, model=rows, key=KEY, args=(SERIES + 1.0,))


def test_what_a_result_keeps_is_its_own():
    """A buffer that is written into afterwards: its new rows looked like the old ones, and had their draws."""

    def rows(x, y=None):
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(z + x, 1.0), obs=y)

    x, y, z = np.zeros(3, np.float32), np.zeros(3, np.float32), np.full((4, 3), 9.0, np.float32)
    made = Draws({"z": z}, Certificate("exact", True, (), {}), 1, {}, ppl.as_program(rows), (x, y))
    run = inference.smc(rows, KEY, x, y, num_particles=50)
    view = x[:]
    view[:] = 100.0
    for result, is_seen in ((made, True), (run, False)):
        kept = result.args if is_seen else result.made_for.args
        np.testing.assert_array_equal(kept[0], np.zeros(3))
        ahead = inference.predict(rows, result, KEY, x, num_samples=4)
        assert set(ahead) == {"z", "y"}  # other rows, with states of their own
