"""Row-wise optimisers: each row as if it were trained alone, absent rows to the bit where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl


@pytest.mark.slow
def test_rows_equal_runs_of_their_own(key):
    """Adam on a table with rows absent now and then: each row takes the steps of an Adam of its own over its own gradients."""
    grads = jax.random.normal(key, (7, 3, 2))
    present = np.array(
        [[1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 1]]
    )
    rows, table = inference.fitting.by_row(optax.adam(0.1)), jnp.ones((3, 2))
    state = rows.init(table)
    for g, seen in zip(grads, present, strict=True):
        before = table
        updates, state = rows.update(g * seen[:, None], state, table)
        table = optax.apply_updates(table, updates)
        assert np.array_equal(before[seen == 0], table[seen == 0])
    for i in range(3):
        single, own = optax.adam(0.1), jnp.ones(2)
        inner = single.init(own)
        for g, seen in zip(grads, present, strict=True):
            if seen[i]:
                updates, inner = single.update(g[i], inner, own)
                own = optax.apply_updates(own, updates)
        np.testing.assert_allclose(table[i], own, rtol=1e-6)


def test_plain_adam_drifts_where_rows_stay(key):
    """The negative: what by_row is there for."""
    plain, table = optax.adam(0.1), jnp.zeros((2, 1))
    state = plain.init(table)
    for seen in (1.0, 0.0, 0.0):
        updates, state = plain.update(jnp.array([[1.0], [seen]]), state, table)
        before, table = table, optax.apply_updates(table, updates)
    assert abs(float(table[1, 0] - before[1, 0])) > 1e-3


@pytest.mark.slow
def test_fit_on_minibatches_moves_the_rows_that_it_read(key):
    """A table of means gathered by index, fitted by minibatches: every row ends at its own optimum."""
    target = jnp.array([-1.0, 0.5, 2.0, 3.0])

    @ppl.model
    def model(x, index):
        table = ppl.param("table", jnp.zeros((4, 1)))
        with ppl.plate("rows", len(index)):
            q = dist.Normal(table[index, 0], 0.1)
            z = ppl.sample("z", dist.Normal(0.0, 10.0), proposal=q)
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    bound = inference.elbo(model, ppl.guide_of(model), kl="analytic")
    fit = inference.fit(
        bound, {"table": inference.fitting.by_row(optax.adam(0.05))}, (target, jnp.arange(4)),
        num_steps=1000, subsample={"rows": 1}, key=key, average=0.95, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(fit.params["table"][:, 0], target * 100 / 101, atol=0.1)


def test_several_leaves_and_refusal():
    rows = inference.fitting.by_row(optax.sgd(1.0))
    tables = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    grads = {"a": jnp.zeros((2, 3)), "b": jnp.array([0.0, 1.0])}
    updates, _ = rows.update(grads, rows.init(tables), tables)
    np.testing.assert_array_equal(updates["b"], [0.0, -1.0])
    with pytest.raises(ValueError, match="without one common leading axis"):
        rows.init({"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
