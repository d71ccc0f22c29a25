"""Low-rank adapters: equal to the network at first, few parameters, a base that nothing moves and nobody copies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.models import adapters

KEY = jax.random.key(0)
NET = eqx.nn.MLP(3, 2, 16, 2, key=KEY)
X = jax.random.normal(jax.random.key(1), (20, 3))


def nnx_net():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 16, rngs=rngs)
            self.rest = nnx.List([nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)])

        def __call__(self, x):
            return self.rest[1](jax.nn.relu(self.rest[0](jax.nn.relu(self.first(x)))))

    return Net(nnx.Rngs(0))


def both(kind):
    return NET if kind == "equinox" else nnx_net()


def values(net):
    return jax.vmap(net)(X)


KINDS = pytest.mark.parametrize("kind", ["equinox", "nnx"])


@KINDS
def test_it_is_the_network_at_first_and_has_few_parameters(kind):
    net = both(kind)
    before = values(net)
    made = adapters.adapt(net, 2, KEY)
    assert (values(made) == before).all() and (values(adapters.without(made)) == before).all()
    assert adapters.num_trained(made) == 2 * (3 + 16 + 16 + 16 + 16 + 2)
    assert adapters.num_trained(net) == 3 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2
    assert adapters.num_trained(made) < adapters.num_trained(net) / 2


@KINDS
def test_a_fit_moves_the_adapters_alone(kind):
    """Towards data of another network; the reference is what it was, bit by bit, and the base is that of the fit."""
    net = both(kind)
    made, before = adapters.adapt(net, 2, KEY), values(net)
    goal = before + jnp.array([1.0, -1.0]) * X[:, :1]

    def model(x, y):
        found = jax.vmap(ppl.module("net", made))(x)
        with ppl.plate("rows", len(x)):
            ppl.sample("y", dist.Normal(found, 0.1).to_event(1), obs=y)

    objective = inference.elbo(model, lambda x, y: None)
    params = objective.init(KEY, X, goal)
    sizes = sum(x.size for x in jax.tree.leaves(params))
    assert sizes == adapters.num_trained(made)
    fit = inference.fit(
        objective, optax.adam(0.02), (X, goal), num_steps=200, key=KEY, params=params,
        progress=False, k_hat="skip",
    )  # fmt: skip
    start, end = (float(objective.value(p, KEY, X, goal)) for p in (params, fit.params))
    assert end > start + 100
    assert (values(net) == before).all() and (values(adapters.without(made)) == before).all()


def test_arrays_are_shared_with_the_reference():
    made = adapters.adapt(NET, 2, KEY)
    assert adapters.without(made) is NET
    layer = adapters.adapt(NET.layers[0], 4, KEY)
    assert adapters.without(layer) is NET.layers[0] and isinstance(layer, adapters.LowRank)
    nnx_made = adapters.adapt(net := nnx_net(), 2, KEY)
    kernel = net.first.kernel.get_value()
    assert nnx_made.first.base.kernel.get_value() is kernel
    assert adapters.without(nnx_made).first.base.kernel.get_value() is kernel


@KINDS
def test_model_and_reference_take_the_memory_of_one_network(kind):
    """Bytes of all arrays that either holds, each counted once: a network and its adapters; a copy would be a second network."""
    net = both(kind)
    made = adapters.adapt(net, 2, KEY)

    def arrays(x):
        if kind == "nnx":
            x = pytest.importorskip("flax.nnx").state(x)
        elif hasattr(x, "network"):
            x = x.network, [layer.held.value for layer in x.layers]
        return {id(a): a.nbytes for a in jax.tree.leaves(x) if eqx.is_array(a)}

    zero = made.held.value if kind == "equinox" else made
    both_of_them = sum((arrays(made) | arrays(zero)).values())
    one = sum(arrays(net).values())
    assert both_of_them == one + 4 * adapters.num_trained(made) < 2 * one


def test_the_layer_is_a_matrix_of_low_rank_more():
    linear = eqx.nn.Linear(5, 4, key=KEY)
    made = adapters.LowRank(linear, 2, key=KEY, scale=0.5)
    made = eqx.tree_at(lambda m: m.up, made, jax.random.normal(KEY, (4, 2)))
    more = 0.5 * np.asarray(made.up, float) @ np.asarray(made.down, float)
    x = jnp.arange(5.0)
    weight = np.asarray(linear.weight, float) + more
    np.testing.assert_allclose(made(x), weight @ np.arange(5.0) + linear.bias, rtol=1e-5)
    assert np.linalg.matrix_rank(more) == 2


def test_what_cannot_be_adapted_is_named():
    with pytest.raises(TypeError, match="has no linear layer"):
        adapters.adapt(eqx.nn.LayerNorm(3), 2, KEY)
    with pytest.raises(TypeError, match="needs an equinox.nn.Linear, got MLP"):
        adapters.LowRank(NET, 2, key=KEY)
    with pytest.raises(ValueError, match="rank must be an integer >= 1, got 0"):
        adapters.adapt(NET, 0, KEY)
    with pytest.raises(TypeError, match="a MLP has no adapters"):
        adapters.without(NET)
    nnx = pytest.importorskip("flax.nnx")
    with pytest.raises(TypeError, match="has no linear layer"):
        adapters.adapt(nnx.LayerNorm(3, rngs=nnx.Rngs(0)), 2, KEY)
    with pytest.raises(TypeError, match="has no adapters"):
        adapters.without(nnx_net())


def test_every_linear_layer_of_nnx_is_adapted_once():
    """Those in plain dictionaries stayed as they were, tied ones came apart, and parameters of other classes were trained."""
    nnx = pytest.importorskip("flax.nnx")
    linear = lambda seed: nnx.Linear(2, 2, rngs=nnx.Rngs(seed))

    class Scale(nnx.Param):
        pass

    class Net(nnx.Module):
        def __init__(self):
            self.first = self.tied = linear(0)
            self.named = nnx.data({"a": linear(1), "more": [linear(2)]})
            self.scale = Scale(jnp.ones(2))

        def __call__(self, x):
            x = self.named["more"][0](self.named["a"](self.first(x)))
            return self.tied(x) * self.scale.get_value()

    net = Net()
    made = adapters.adapt(net, 1, KEY)
    assert adapters.num_trained(made) == 3 * 4 and made.first is made.tied
    np.testing.assert_array_equal(made(X[:, :2]), net(X[:, :2]))
    made.named["a"].up.set_value(jnp.ones((2, 1)))
    assert not np.allclose(made(X[:, :2]), net(X[:, :2]))

    class Pair(nnx.Module):
        def __init__(self):
            self.head, self.pair = linear(0), nnx.data((linear(1), linear(2)))

    with pytest.raises(
        TypeError, match=r"the linear layers at \[\('pair', 0\), \('pair', 1\)\] of a Pair"
    ):
        adapters.adapt(Pair(), 1, KEY)
