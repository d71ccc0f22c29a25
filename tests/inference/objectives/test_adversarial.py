"""Adversarial training: gradients of divergences at the exact ratio by quadrature, and equilibria of normal laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jaxtyping import Array

from lapilli import inference, ppl
from lapilli.inference.objectives._adversarial import first_variation
from lapilli.inference.objectives._f_divergence import GENERATORS

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
NODES, WEIGHTS = jnp.asarray(NODES), jnp.asarray(WEIGHTS / WEIGHTS.sum())
TRUE = (0.6, 0.8)


def log_ratio(x, q):
    law = lambda loc, scale: dist.Normal(loc, scale).log_prob(x)
    return law(*TRUE) - law(*q)


DIVERGENCES = [name for name in GENERATORS if name != "total_variation"]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_generator_descends_the_divergence_where_the_critic_is_the_ratio(name):
    q = jnp.array([0.1, 0.9])
    with jax.enable_x64():
        divergence = lambda q: WEIGHTS @ GENERATORS[name](log_ratio(q[0] + q[1] * NODES, q))
        h = first_variation(name)
        objective = lambda p: WEIGHTS @ h(log_ratio(p[0] + p[1] * NODES, q))
        naive = lambda p: WEIGHTS @ GENERATORS[name](log_ratio(p[0] + p[1] * NODES, q))
        wanted, found, other = (np.asarray(jax.grad(f)(q)) for f in (divergence, objective, naive))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Of log p/q itself, held, only KL(q || p) has this gradient.
    assert np.allclose(other, wanted, rtol=1e-2) == (name == "reverse_kl")


def test_the_usual_loss_descends_a_difference_of_divergences():
    q = jnp.array([0.1, 0.9])
    with jax.enable_x64():
        at = lambda q: log_ratio(q[0] + q[1] * NODES, q)
        difference = lambda q: (
            WEIGHTS @ (GENERATORS["reverse_kl"](at(q)) - 2 * GENERATORS["jensen_shannon"](at(q)))
        )
        h = first_variation("non_saturating")
        objective = lambda p: WEIGHTS @ h(log_ratio(p[0] + p[1] * NODES, q))
        wanted, found = (np.asarray(jax.grad(f)(q)) for f in (difference, objective))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


class Quadratic(eqx.Module):
    """The family of all log-ratios of two normal laws."""

    weights: Array

    def __call__(self, x: Array) -> Array:
        return self.weights @ jnp.stack([jnp.ones(()), x, x**2])


ZERO = Quadratic(jnp.zeros(3))


def real():
    with ppl.plate("rows", 512):
        return ppl.sample("x", dist.Normal(*TRUE))


def generated():
    with ppl.plate("rows", 512):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
    scale = ppl.param("scale", 0.6, constraint=dist.constraints.positive)
    return ppl.param("loc", -0.3) + scale * z


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
def test_the_critic_alone_finds_the_ratio(loss):
    game = inference.adversarial(real, generated, ZERO, loss=loss)
    optimizer = {
        "critic": optax.adam(optax.cosine_decay_schedule(0.1, 1500)),
        "generator": "frozen",
    }
    found = inference.fit(game, optimizer, num_steps=3000, progress=False)
    x = jnp.linspace(-1.2, 1.2, 50)
    gap = jax.vmap(found.params["critic"])(x) - log_ratio(x, (-0.3, 0.6))
    assert np.sqrt(np.mean(gap**2)) < 0.1


@pytest.mark.parametrize("divergence", ["reverse_kl", "non_saturating"])
def test_two_normal_laws_meet(divergence):
    game = inference.adversarial(real, generated, ZERO, divergence=divergence, steps=2)
    optimizer = {
        "critic": optax.adam(0.03),
        "generator": optax.adam(optax.cosine_decay_schedule(0.01, 1500), b1=0.0),
    }
    found = inference.fit(game, optimizer, num_steps=4500, average=0.995, progress=False)
    loc, scale = found.params["loc"], jnp.exp(found.params["scale"])
    np.testing.assert_allclose([loc, scale], TRUE, atol=0.05)
    # No more can be told apart: the bound of the Jensen-Shannon divergence is 0.
    value = game.values(found)["critic"][-500:].mean()
    assert abs(np.log(2) - value / 2) < 0.01


def test_rows_of_tuples_and_the_penalty():
    """Of labelled rows; labels have no gradient. At f = w x the penalty is its weight times w^2 / 2."""

    class Labelled(eqx.Module):
        slope: Array

        def __call__(self, x: Array, label: Array) -> Array:
            return self.slope * x + label

    rows = lambda: (real(), jnp.zeros(512, jnp.int32))
    made = lambda: (generated(), jnp.zeros(512, jnp.int32))
    values = {}
    for penalty in (0.0, 0.3):
        game = inference.adversarial(rows, made, Labelled(jnp.array(2.0)), penalty=penalty)
        params = game.init(jax.random.key(0))
        values[penalty] = game.players["critic"].value(params, jax.random.key(1))
    assert values[0.3] - values[0.0] == pytest.approx(0.3 * 2.0**2 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "total_variation"}, "no slope"),
        ({"divergence": "renyi"}, "unknown"),
        ({"loss": "hinge"}, "must be 'logistic'"),
        ({"penalty": -1.0}, "at least 0"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        inference.adversarial(real, generated, ZERO, **options)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda: jnp.zeros(()), "rows are wanted"),
        (lambda: jnp.zeros((5, 2)), "rows of one kind"),
        (lambda: (jnp.zeros(5), jnp.zeros(4)), "as many"),
    ],
)
def test_rows_are_refused(program, message):
    game = inference.adversarial(program, generated, ZERO)
    with pytest.raises(ValueError, match=message):
        game.init(jax.random.key(0))
