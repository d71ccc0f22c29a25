"""Modules of Flax NNX: the parameters of a program, state and random numbers that stay in a run, the fits of equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

nnx = pytest.importorskip("flax.nnx")

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 6)[:, None]
Y = jnp.sin(2.0 * X[:, 0])


class Net(nnx.Module):
    """All that has state: batch statistics, dropout, a list of layers."""

    def __init__(self, rate=0.0, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(1, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.0, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)])

    def __call__(self, x):
        hidden = self.dropout(jnp.tanh(self.norm(self.first(x))))
        for layer in self.rest:
            hidden = layer(hidden)
        return hidden[..., 0]


def regression(net, is_training=True):
    def model(x, y=None):
        copy = ppl.module("net", net)
        copy.set_attributes(deterministic=not is_training, use_running_average=not is_training)
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(copy(x), 0.5), obs=y)

    return model


def nothing(x, y=None):
    """No latent sites."""


def state(module):
    return jax.tree.map(jax.random.key_data, jax.tree.leaves(nnx.state(module, nnx.RngKey))), [
        np.asarray(v) for v in jax.tree.leaves(nnx.state(module, nnx.Not(nnx.RngKey)))
    ]


def test_a_run_leaves_the_module_as_it_was():
    net = Net(rate=0.5)
    before = state(net)
    objective = inference.elbo(regression(net), nothing)
    objective.value(objective.init(KEY, X, Y), KEY, X, Y)
    jax.tree.map(np.testing.assert_array_equal, before, state(net))


def test_only_params_are_learned_and_the_density_is_the_modules():
    net = Net()
    program = ppl.as_program(regression(net)).bind(
        params := ppl.as_program(regression(net)).init(KEY, X, Y)
    )
    assert set(params["net"]) == {"first", "norm", "rest"} and set(params["net"]["norm"]) == {
        "scale",
        "bias",
    }
    want = dist.Normal(Net()(X), 0.5).log_prob(Y).sum()
    np.testing.assert_allclose(program.log_density({}, X, Y), want, rtol=1e-5)


def test_gradients_are_those_of_the_module():
    net = Net()
    objective = inference.elbo(regression(net), nothing)
    params = objective.init(KEY, X, Y)
    loss = lambda net: dist.Normal(net(X), 0.5).log_prob(Y).sum()
    want = nnx.to_pure_dict(nnx.grad(loss)(Net()))
    found = objective.grad(params, KEY, X, Y)["net"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, want)


def test_dropout_is_fresh_for_each_key_and_the_same_for_one():
    objective = inference.elbo(regression(Net(rate=0.5)), nothing)
    params = objective.init(KEY, X, Y)
    values = np.array([objective.value(params, jax.random.key(k), X, Y) for k in (1, 1, 2, 3)])
    assert values[0] == values[1] and len(set(values[1:])) == 3


def test_dropout_keeps_the_share_that_it_says():
    net = nnx.Dropout(0.3, rngs=nnx.Rngs(0))
    program = ppl.model(lambda: ppl.module("net", net)(jnp.ones(50)))
    kept = (
        jax.jit(jax.vmap(lambda key: program.simulate(key).retval))(jax.random.split(KEY, 400)) > 0
    )
    # 20,000 independent flips; 4.5 standard errors, one false alarm in 150,000.
    assert abs(kept.mean() - 0.7) < 4.5 * (0.21 / kept.size) ** 0.5


def test_streams_and_calls_have_keys_of_their_own():
    def program():
        net = ppl.module("net", nnx.List([nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2)]))
        return jnp.stack([layer(jnp.ones(64)) for layer in (*net, *net)])

    masks = np.asarray(ppl.model(program).simulate(KEY).retval)
    assert len({mask.tobytes() for mask in masks}) == 4


def test_dropout_without_noise_needs_a_key():
    program = ppl.as_program(regression(Net(rate=0.5)))
    program = program.bind(program.init(KEY, X, Y))
    with pytest.raises(
        RuntimeError, match=r"rng_key\('net.dropout.rngs:1'\) needs a running program"
    ):
        program.log_density({}, X, Y)
    still = ppl.as_program(regression(Net(rate=0.5), is_training=False)).bind(program.params)
    assert np.isfinite(still.log_density({}, X, Y))


def test_split_and_forked_streams_follow_the_run():
    class Forked(nnx.Module):
        def __init__(self):
            self.rngs = nnx.Rngs(noise=0)

        def __call__(self):
            return jax.vmap(lambda r: r.normal())(
                self.rngs.noise.split(3)
            ), self.rngs.noise.fork().normal()

    program = ppl.model(lambda: ppl.module("net", Forked())())
    one, two = (program.simulate(jax.random.key(k)).retval for k in (0, 1))
    values = [*np.ravel(one[0]), one[1], *np.ravel(two[0]), two[1]]
    assert len(set(map(float, values))) == 8


def test_each_seed_starts_from_weights_of_its_own():
    def model(x, y=None):
        net = ppl.module("net", nnx.Linear(1, 1, rngs=nnx.Rngs(ppl.rng_key("init"))))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(net(x)[:, 0], 0.5), obs=y)

    objective = inference.elbo(model, nothing)
    one, two = (objective.init(jax.random.key(k), X, Y)["net"]["kernel"] for k in (0, 1))
    assert one != two


def test_batch_normalisation_of_minibatches_is_refused():
    with pytest.raises(ValueError, match="row whose log-prob depends on other rows of array 1"):
        inference.fit(
            inference.elbo(regression(Net()), nothing),
            optax.adam(0.01),
            (X, Y),
            num_steps=1,
            subsample={"rows": 3},
            progress=False,
        )


@pytest.mark.slow  # two fits are compiled
def test_a_fit_is_that_of_equinox_and_saves_and_predicts(tmp_path):
    flat = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    same = eqx.nn.Linear(1, 1, key=KEY)
    same = eqx.tree_at(lambda n: (n.weight, n.bias), same, (flat.kernel[...].T, flat.bias[...]))

    def model_of(net, call):
        def model(x, y=None):
            out = call(ppl.module("net", net), x)
            with ppl.plate("rows", x.shape[0]):
                ppl.sample("y", dist.Normal(out[:, 0], 0.5), obs=y)

        return model

    fits = [
        inference.fit(
            inference.elbo(model_of(*net), nothing),
            optax.adam(0.05),
            (X, Y),
            num_steps=50,
            progress=False,
        )
        for net in ((flat, lambda n, x: n(x)), (same, lambda n, x: jax.vmap(n)(x)))
    ]
    one, two = fits[0].params["net"], fits[1].params["net"]
    np.testing.assert_allclose(one["kernel"], two.weight.T, rtol=1e-5)
    fits[0].save(tmp_path / "fit")
    model = model_of(flat, lambda n, x: n(x))
    back = inference.Fit.load(tmp_path / "fit", inference.elbo(model, nothing))
    draws = [f.predict(KEY, X, num_samples=5)["y"] for f in (fits[0], back)]
    np.testing.assert_array_equal(*draws)
    nnx.update(flat, one)
    np.testing.assert_allclose(flat.kernel[...], one["kernel"])


def test_a_module_passed_as_an_argument():
    def model(net, x, y=None):
        out = ppl.module("net", net)(x)
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(out, 0.5), obs=y)

    net = Net()
    objective = inference.elbo(model, lambda net, x, y=None: None)
    params = objective.init(KEY, net, X, Y)
    want = dist.Normal(Net()(X), 0.5).log_prob(Y).sum()
    np.testing.assert_allclose(objective.value(params, KEY, net, X, Y), want, rtol=1e-5)


def test_a_class_and_a_module_of_linen_are_refused():
    with pytest.raises(TypeError, match="'net' is the class Linear without"):
        ppl.model(lambda: ppl.module("net", nnx.Linear)).simulate(KEY)
    linen = pytest.importorskip("flax.linen")
    with pytest.raises(TypeError, match="'net' is a Dense of flax.*one of linen by flax_module"):
        ppl.model(lambda: ppl.module("net", linen.Dense(2))).simulate(KEY)


def test_outside_of_a_program_it_is_the_module():
    net = Net()
    assert ppl.module("net", net) is net


def test_under_numpyros_own_inference():
    net = Net()
    with numpyro.handlers.seed(rng_seed=0):
        trace = numpyro.handlers.trace(ppl.model(regression(net))).get_trace(X, Y)
    assert set(trace) == {"net", "rows", "y"}
