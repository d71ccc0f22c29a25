"""Weights by rows of a plate are taken only where no row sees another row's latent values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.array([0.4, 1.5, -0.7])
MATRIX = jnp.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.3], [0.1, 0.0, 1.0]])


def observed(couple):
    """A model whose likelihood sees `couple(z)`."""

    def model(y):
        with ppl.plate("rows", y.shape[0]):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(couple(z), 1.0), obs=y)

    return model


def guide(y):
    m = ppl.param("m", 0.3)
    with ppl.plate("rows", y.shape[0]):
        ppl.sample("z", dist.Normal(m * y, 1.0))


def prior_of_a_neighbour(y):
    with ppl.plate("rows", y.shape[0]):
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        z = ppl.sample("z", dist.Normal(jnp.roll(u, 1), 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)


def two(y):
    with ppl.plate("rows", y.shape[0]):
        ppl.sample("u", dist.Normal(0.0, 1.0))
        ppl.sample("z", dist.Normal(y, 1.0))


def aligned_two(y):
    with ppl.plate("rows", y.shape[0]):
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        z = ppl.sample("z", dist.Normal(u, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)


def coupled_guide(y):
    with ppl.plate("rows", y.shape[0]):
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        ppl.sample("z", dist.Normal(y + u.mean(), 1.0))


COUPLED = {
    "reversed": (observed(lambda z: z[::-1]), guide),
    "shuffled": (observed(lambda z: z[jnp.array([1, 2, 0])]), guide),
    "mean": (observed(lambda z: z - z.mean()), guide),
    "matrix": (observed(lambda z: MATRIX @ z), guide),
    "running sum": (observed(jnp.cumsum), guide),
    "neighbour": (observed(lambda z: z + jnp.roll(z, 1)), guide),
    "sorted": (observed(jnp.sort), guide),
    "scattered": (observed(lambda z: jnp.zeros(3).at[jnp.array([1, 2, 0])].set(z)), guide),
    "a loop over rows": (
        observed(
            lambda z: jax.lax.fori_loop(
                0, 3, lambda i, c: c + jax.lax.dynamic_index_in_dim(z, i, keepdims=False), 0 * z
            )
        ),
        guide,
    ),
    "a window over rows": (
        observed(lambda z: jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (2,), (1,), "SAME")),
        guide,
    ),
    "where another row is large": (
        observed(lambda z: jnp.where(jnp.roll(z, 1) > 0, z, 0.0)),
        guide,
    ),
    "infinite where another row is": (
        observed(lambda z: jnp.where(jnp.roll(z, 1) > 0, z, jnp.inf)),
        guide,
    ),
    "prior": (prior_of_a_neighbour, two),
    "guide": (aligned_two, coupled_guide),
}
OBJECTIVES = {
    "iwelbo": lambda p, q, per: inference.iwelbo(p, q, num_particles=2, per=per),
    "dreg": lambda p, q, per: inference.iwelbo(p, q, num_particles=2, per=per, gradient="dreg"),
    "renyi": lambda p, q, per: inference.renyi(p, q, alpha=0.5, num_particles=2, per=per),
    "cubo": lambda p, q, per: inference.cubo(p, q, num_particles=2, per=per),
    "f_divergence": lambda p, q, per: inference.f_divergence(
        p, q, f="chi2", num_particles=2, per=per
    ),
    "forward_kl": lambda p, q, per: inference.forward_kl(p, q, num_particles=2, per=per),
    "wake_theta": lambda p, q, per: inference.wake_theta(p, q, num_particles=2, per=per),
    "rws": lambda p, q, per: inference.rws(p, q, num_particles=2, per=per),
}
REFUSED = "Site '[uz]': per='rows' takes the weights row by row, but a row's log-weight (depends on its|moves by|was not finite)"


@pytest.mark.fast("neighbour", "sorted")
@pytest.mark.parametrize("case", COUPLED)
def test_coupled_rows_are_refused(case):
    bound = OBJECTIVES["iwelbo"](*COUPLED[case], "plate")
    params = bound.init(KEY, Y)
    for value in (bound.value, jax.jit(bound.value)):
        with pytest.raises(ValueError, match=REFUSED):
            value(params, KEY, Y)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_by_rows_refuses_them(name):
    bound = OBJECTIVES[name](*COUPLED["reversed"], "rows")
    with pytest.raises(ValueError, match=REFUSED):
        bound.value({"m": 0.3}, KEY, Y)


def test_a_draw_that_rows_share_is_refused():
    """The evidence of all rows is an integral over u, no product."""

    def shared(y):
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("z", dist.Normal(u, 1.0))

    def model(y):
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("y", dist.Normal(ppl.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    guide = ppl.marginal(shared, keep=["z"])
    bound = inference.iwelbo(model, guide, num_particles=2, per="rows")
    with pytest.raises(ValueError, match="Site 'u': per='rows'.*outside of plate 'rows'.*joint"):
        bound.value({}, KEY, Y)


def test_discrete_rows_and_vimco_too():
    def model(y):
        with ppl.plate("rows", y.shape[0]):
            b = ppl.sample("b", dist.Bernoulli(0.3))
            ppl.sample("y", dist.Normal(1.0 * b[::-1], 1.0), obs=y)

    def coin(y):
        with ppl.plate("rows", y.shape[0]):
            ppl.sample("b", dist.Bernoulli(0.4))

    for bound in (
        inference.iwelbo(model, coin, num_particles=2, per="plate", strategies="reinforce"),
        inference.iwelbo(model, coin, num_particles=2, per="plate", strategies="enum"),
        inference.vimco(
            model, coin, num_particles=2, per="plate", strategies={"*": ppl.Reinforce()}
        ),
    ):
        with pytest.raises(ValueError, match="Site 'b': per='rows' takes the weights row by row"):
            bound.value({}, KEY, Y)


def network(z):
    hidden = jnp.tanh(z[:, None] * jnp.arange(1.0, 4.0) + 0.1)
    return (hidden @ MATRIX).sum(-1)


SEPARATE = {
    "rows": observed(lambda z: z),
    "a network on each row": observed(network),
    "a mapped function": observed(jax.vmap(lambda z: jnp.where(z > 0, z, jnp.sin(z)))),
    "an average of the data": lambda y: observed(lambda z: z + y.mean())(y),
    "a convolution of each row": observed(
        lambda z: jax.vmap(lambda r: jnp.convolve(r, jnp.ones(3), "same").sum())(
            z[:, None] * MATRIX
        )
    ),
    "a loop in each row": observed(
        jax.vmap(
            lambda z: jax.lax.while_loop(
                lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, z)
            )[1]
        )
    ),
    "row after row": observed(lambda z: jnp.stack([jnp.tanh(z[i]) for i in range(len(z))])),
    "broadcast and summed": observed(lambda z: (z[:, None] * MATRIX).sum(1)),
}


@pytest.mark.fast("broadcast and summed")
@pytest.mark.parametrize("case", SEPARATE)
def test_rows_that_share_parameters_and_data_are_taken(case):
    bound = inference.iwelbo(SEPARATE[case], guide, num_particles=2, per="plate", check_jumps=False)
    assert np.isfinite(bound.value({"m": 0.3}, KEY, Y))


@pytest.mark.slow
def test_rows_behind_an_outer_axis_and_in_steps_are_taken():
    def model(y):
        with ppl.plate("rows", y.shape[0], dim=-1), ppl.plate("columns", 2, dim=-2):
            z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            ppl.sample("y", dist.Normal(z.sum(-1), 1.0), obs=jnp.stack([y, y]))

    def own(y):
        with ppl.plate("rows", y.shape[0], dim=-1), ppl.plate("columns", 2, dim=-2):
            ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    bound = inference.iwelbo(model, own, num_particles=2, per="rows")
    assert np.isfinite(bound.value({}, KEY, Y))

    def chain(y):
        def step(carry, _):
            with ppl.plate("rows", y.shape[0]):
                z = ppl.sample("z", dist.Normal(carry, 1.0))
                ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        ppl.scan(step, jnp.zeros(y.shape[0]), None, length=4)

    def steps(y):
        def step(carry, _):
            with ppl.plate("rows", y.shape[0]):
                return ppl.sample("z", dist.Normal(0.5 * carry, 1.0)), None

        ppl.scan(step, jnp.zeros(y.shape[0]), None, length=4)

    bound = inference.iwelbo(chain, steps, num_particles=2, per="rows")
    assert np.isfinite(bound.value({}, KEY, Y))


def test_the_bound_of_all_rows_is_exact_where_rows_are_coupled():
    """What the refusal recommends: log-evidence of two coins that see each other's data, from 4 draws' laws."""

    def model(y):
        with ppl.plate("rows", 2):
            b = ppl.sample("b", dist.Bernoulli(0.05))
            ppl.sample("y", dist.Normal(3.0 * b[::-1], 1.0), obs=y)

    def coin(y):
        with ppl.plate("rows", 2):
            ppl.sample("b", dist.Bernoulli(logits=2.0))

    y = jnp.full(2, 3.0)
    density = lambda b: jax.scipy.stats.norm.pdf(3.0 - 3.0 * b)
    exact = 2 * jnp.log(0.05 * density(1) + 0.95 * density(0))
    bound = inference.iwelbo(model, coin, num_particles=64, strategies="reinforce")
    values = jax.vmap(lambda k: bound.value({}, k, y))(jax.random.split(KEY, 400))
    assert values.mean() < exact + 4.5 * values.std() / 20
