"""Numbers that stand for arrays of equal elements: an evaluation with a uniform site equals the one with the whole array."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.ppl.evaluation import Forced, evaluate, optimised
from lapilli.ppl.evaluation._same import States, Uniform
from lapilli.ppl.jaxprs._primitive import mark

TABLE = jnp.arange(24.0).reshape(4, 2, 3)
ROWS = jnp.arange(20.0).reshape(5, 4)
LOOKUPS = {
    "rows of a table": lambda k: TABLE[k],
    "numbers of a table": lambda k: TABLE[:, 1, 2][k],
    "a middle axis": lambda k: TABLE[:, k % 2],
    "two indices": lambda k: TABLE[k, k % 2],
    "out of range": lambda k: TABLE[k + 2],
    "out of range, filled": lambda k: jnp.take(TABLE, k + 2, axis=0, mode="fill"),
    "each row its own table": lambda k: jnp.take_along_axis(ROWS, k[:, None], 1)[:, 0],
    "one number a row": lambda k: ROWS[jnp.arange(5), k],
    "log-probability": lambda k: dist.Categorical(logits=ROWS).log_prob(k),
    "one hot": lambda k: jax.nn.one_hot(k, 4) @ ROWS.T,
    "arithmetic": lambda k: jnp.where(k > 1, k * 2.0, -1.0) + ROWS[:, 0] + jnp.ones(5),
    "in a loop": lambda k: jax.lax.scan(lambda c, x: (c + x, c * x), 0, k)[1],
    "in a function": lambda k: jax.jit(lambda k: jnp.cumsum(jax.nn.relu(k - 1.0)) + k[::-1])(k),
}


@pytest.mark.slow_for(
    "a middle axis",
    "arithmetic",
    "each row its own table",
    "log-probability",
    "one hot",
    "rows of a table",
)
@pytest.mark.parametrize("name", LOOKUPS)
def test_one_number_serves_for_all_rows(name):
    k = jnp.zeros(5, int)
    closed = jax.make_jaxpr(lambda: LOOKUPS[name](mark(k, (), (), index=0)))()
    for value in (0, 2, 3):
        (want,) = evaluate(closed, [], {0: Forced(jnp.full(5, value))})
        (got,) = optimised(closed, [], {0: Uniform(jnp.asarray(value))})
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow_for(
    "a middle axis", "arithmetic", "each row its own table", "in a function", "in a loop"
)
@pytest.mark.parametrize("name", LOOKUPS)
def test_numbers_that_are_known_serve_in_all_lanes(name):
    k, numbers = jnp.zeros(5, int), np.arange(4)
    closed = jax.make_jaxpr(lambda: LOOKUPS[name](mark(k, (), (), index=0)))()
    want = [evaluate(closed, [], {0: Forced(jnp.full(5, value))})[0] for value in numbers]
    in_lane = lambda value: optimised(closed, [], {0: Uniform(value, States("k", numbers))})[0]
    np.testing.assert_array_equal(jax.vmap(in_lane)(jnp.asarray(numbers)), np.stack(want))


def test_rows_in_all_lanes_are_the_table_and_so_is_their_derivative():
    """Under a second vmap too, over tables: weights are the derivative."""
    weights, tables = jnp.arange(8.0).reshape(4, 2), jnp.ones((3, 4, 2))
    closed = jax.make_jaxpr(lambda table: table[mark(jnp.zeros((), int), (), (), index=0)])(
        tables[0]
    )

    def total(tables):
        lane = States("k", np.arange(4))
        rows = lambda table, k: optimised(closed, [table], {0: Uniform(k, lane)})[0]
        found = jax.vmap(lambda k: jax.vmap(rows, (0, None))(tables, k))(jnp.arange(4))
        return (found * weights[:, None]).sum()

    text = str(jax.make_jaxpr(jax.grad(total))(tables))
    assert "gather" not in text and "scatter" not in text
    np.testing.assert_array_equal(jax.grad(total)(tables), jnp.stack([weights] * 3))


def test_a_lookup_by_an_enumerated_site_is_the_table():
    """Means of 50 numbers for each of 4 classes and 1,000 rows: nothing is gathered."""
    x = jnp.zeros((1000, 50))

    def model(means):
        with ppl.plate("rows", 1000):
            k = ppl.sample("k", dist.Categorical(jnp.full(4, 0.25)))
            ppl.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)

    def guide(means):
        with ppl.plate("rows", 1000):
            ppl.sample("k", dist.Categorical(logits=ppl.param("logits", jnp.zeros((1000, 4)))))

    bound = inference.elbo(model, guide, strategies={"k": "enum"})
    means = jnp.ones((4, 50))
    params = bound.init(jax.random.key(0), means)
    text = str(jax.make_jaxpr(bound.value_and_grad)(params, jax.random.key(0), means))
    assert "gather" not in text and "scatter" not in text
