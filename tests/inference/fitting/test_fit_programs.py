"""fit of the library's own objectives: programs, plates, modules, states."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl
from lapilli.inference.fitting.training._nonfinite import NonFiniteError

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
EXACT_LOC, EXACT_SCALE = X.sum() / 13, 13**-0.5


@ppl.model
def model(x):
    mu = ppl.sample("mu", dist.Normal(0, 1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mu, 1), obs=x)
    ppl.deterministic("double", 2 * mu)


@ppl.model
def guide(x):
    loc = ppl.param("loc", jnp.zeros(()))
    scale = ppl.param("scale", jnp.ones(()), constraint=dist.constraints.positive)
    ppl.sample("mu", dist.Normal(loc, scale))


def run(objective, args=(X,), optimizer=None, **options):
    options = {"num_steps": 20, "key": jax.random.key(0), "progress": False} | options
    return inference.fit(objective, optimizer or optax.adam(1e-2), args, **options)


@pytest.mark.fast("full")
@pytest.mark.parametrize("subsample", [None, {"rows": 4}], ids=["full", "minibatches"])
def test_elbo_reaches_the_exact_posterior(subsample):
    schedule = optax.cosine_decay_schedule(0.05, 1500)
    result = run(
        inference.elbo(model, guide),
        optimizer=optax.adam(schedule),
        num_steps=1500,
        subsample=subsample,
        average=0.99,
    )
    fitted = ppl.constrain(result.params)
    assert abs(fitted["loc"] - EXACT_LOC) < 0.2 * EXACT_SCALE
    assert abs(fitted["scale"] / EXACT_SCALE - 1) < 0.2
    draws = result.posterior(jax.random.key(1), 500)
    assert draws.choices["mu"].shape == (500,) and draws.log_weights.std() < 0.5
    new = result.predict(jax.random.key(1), X[:5], num_samples=7)
    assert {name: array.shape for name, array in new.items()} == {"x": (7, 5), "double": (7,)}


def likelihood():
    """An objective without latents, hence without noise."""

    @ppl.model
    def model(x):
        loc = ppl.param("loc", jnp.ones(()))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(loc, 1), obs=x)

    return inference.elbo(model, ppl.model(lambda x: None))


def test_minibatch_values_average_to_the_full_value():
    still = optax.sgd(0.0)
    part = run(likelihood(), optimizer=still, num_steps=3, subsample={"rows": 4})
    full = run(likelihood(), optimizer=still, num_steps=1)
    assert np.ptp(part.history["value"]) > 1
    np.testing.assert_allclose(part.history["value"].mean(), full.history["value"][0], rtol=1e-6)


def test_batches_equal_the_scaled_objective():
    options = {"optimizer": optax.sgd(0.0), "num_steps": 3}
    batches = [(X[:4],), (X[4:8],), (X[8:],)]
    part = run(likelihood(), batches, plate_sizes={"rows": 12}, **options)
    full = run(likelihood(), **options)
    np.testing.assert_allclose(part.history["value"].mean(), full.history["value"][0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"nothing says how many rows.*\{'rows': 4\}"):
        run(likelihood(), batches)


@pytest.mark.slow
def test_resume_is_exact_with_seeds_and_minibatches(tmp_path):
    options = {"num_seeds": 2, "subsample": {"rows": 5}, "average": "polyak"}
    straight = run(inference.elbo(model, guide), **options)
    path = tmp_path / "run.ckpt"
    run(inference.elbo(model, guide), num_steps=7, checkpoint=path, **options)
    resumed = run(inference.elbo(model, guide), checkpoint=path, **options)
    np.testing.assert_array_equal(straight.history["value"], resumed.history["value"])
    for name in ("loc", "scale"):
        np.testing.assert_array_equal(straight.params[name], resumed.params[name])


@pytest.mark.slow
def test_a_moving_average_baseline_is_resumed_exactly(tmp_path):
    strategies = {"mu": ppl.Reinforce(baseline=ppl.strategies.MovingAverage())}
    make = lambda: inference.elbo(model, guide, strategies=strategies)
    straight, path = run(make()), tmp_path / "run.ckpt"
    assert jax.tree.leaves(straight.state)
    run(make(), num_steps=7, checkpoint=path)
    resumed = run(make(), checkpoint=path)
    np.testing.assert_array_equal(straight.history["value"], resumed.history["value"])
    for one, two in zip(*map(jax.tree.leaves, (straight.state, resumed.state)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Out-of-support")  # NumPyro's, from the first, uncompiled call
def test_the_bad_site_of_a_program_is_named():
    @ppl.model
    def broken(x):
        mu = ppl.sample("mu", dist.Normal(0, 1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(mu, 1), obs=jnp.log(x))

    bad = np.array([1.0, 2.0, -1.0], np.float32)
    with pytest.raises(
        NonFiniteError, match="step 0: site 'model.x' broke first.*1 of 3 non-finite"
    ) as caught:
        run(inference.elbo(broken, guide), (bad,))
    assert caught.value.site == "model.x"


def test_a_local_parameter_is_refused_with_minibatches():
    @ppl.model
    def local_model(x):
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0, 1))
            ppl.sample("x", dist.Normal(z, 1), obs=x)

    @ppl.model
    def local_guide(x):
        loc = ppl.param("loc", jnp.zeros(x.shape[0]))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("z", dist.Normal(loc, 1))

    with pytest.raises(ValueError, match="one entry per row of the data: 'loc'"):
        run(inference.elbo(local_model, local_guide), subsample={"rows": 4})


@pytest.mark.slow
def test_modules_are_groups_of_parameters():
    @ppl.model
    def vae(x):
        net = ppl.module("decoder", eqx.nn.MLP(1, 2, 4, 1, key=jax.random.key(0)))
        with ppl.plate("rows", x.shape[0]):
            z = ppl.sample("z", dist.Normal(0, 1).expand([1]).to_event(1))
            ppl.sample("x", dist.Normal(jax.vmap(net)(z), 1).to_event(1), obs=x)

    @ppl.model
    def encoder(x):
        net = ppl.module("encoder", eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(1)))
        with ppl.plate("rows", x.shape[0]):
            loc, log_scale = jnp.split(jax.vmap(net)(x), 2, axis=-1)
            ppl.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    data = np.stack([X, -X], 1)
    objective = inference.elbo(vae, encoder)
    start = objective.init(jax.random.key(0), data)
    groups = {"decoder": "frozen", "enc*": optax.adam(1e-2)}
    result = run(objective, (data,), groups, params=start, subsample={"rows": 4})
    same = lambda name: all(
        np.array_equal(a, b)
        for a, b in zip(*(jax.tree.leaves(p[name]) for p in (start, result.params)), strict=True)
    )
    assert same("decoder") and not same("encoder")
    assert result.predict(jax.random.key(1), data[:3], num_samples=5)["x"].shape == (5, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [None, 2], ids=["single", "seeds"])
def test_an_autoguide_is_a_guide(num_seeds):
    result = run(inference.elbo(model, AutoNormal(model)), num_seeds=num_seeds, num_steps=5)
    draws = result.best().posterior(jax.random.key(1), 3)
    assert draws.choices["mu"].shape == (3,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_the_first_of_two_bad_sites_is_named():
    @ppl.model
    def broken(x):
        bad = jnp.log(ppl.param("s", jnp.zeros(())) - 1)
        mu = ppl.sample("mu", dist.Normal(0, bad))
        ppl.sample("also_bad", dist.Normal(mu + bad, 1), obs=x)

    with pytest.raises(NonFiniteError, match="site 'model.mu' broke first"):
        run(inference.elbo(broken, guide), (np.float32(1),))
