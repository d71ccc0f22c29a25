"""ppl.distributions.Chosen: one of several laws in each row."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import ppl

LOCS = np.array([[0.0, 1.0], [2.0, -1.0], [5.0, 0.5]], np.float32)  # three laws in R^2
K = np.array([2, 0, 1, 2])
X = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


def laws():
    return dist.Normal(jnp.asarray(LOCS)[:, None], 0.5).to_event(1)


@pytest.mark.slow
def test_each_row_has_the_law_of_its_index():
    law, rows = ppl.distributions.Chosen(laws(), K), dist.Normal(LOCS[K], 0.5).to_event(1)
    assert (law.batch_shape, law.event_shape) == ((4,), (2,))
    for value in (X, np.stack([X, X + 1])):  # also draws in front
        np.testing.assert_allclose(law.log_prob(value), rows.log_prob(value), rtol=1e-6)
    np.testing.assert_array_equal(law.mean, rows.mean)
    np.testing.assert_array_equal(law.variance, rows.variance)
    drawn = law.sample(jax.random.key(0), (2000,))
    assert drawn.shape == (2000, 4, 2)
    # |z| < 4.5 in 8 coordinates
    assert np.abs((drawn.mean(0) - LOCS[K]) * np.sqrt(2000) / 0.5).max() < 4.5


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_without_a_law_gives_nan(index):
    law = ppl.distributions.Chosen(
        dist.Normal(jnp.zeros(2), 1.0), np.array(index), validate_args=False
    )
    assert np.isnan(law.log_prob(0.0))


@pytest.mark.parametrize("locs", [np.float32(0), np.zeros((3, 2), np.float32)], ids=["no laws", "other rows"])  # fmt: skip
def test_laws_that_do_not_fit_the_index_are_refused(locs):
    with pytest.raises(ValueError, match="Chosen.*batch shape.*index shape \\(4,\\).*number of laws"):  # fmt: skip
        ppl.distributions.Chosen(dist.Normal(locs, 1.0), K)


@pytest.mark.fast("mvd")
@pytest.mark.parametrize("strategy", ["enum", "mvd"])
def test_a_chosen_law_has_the_gradient_of_one_that_is_computed_in_each_row(strategy, key):
    """Two sites decide the index; the same key draws the same values in both programs."""

    def found(law):
        def cost(p):
            with ppl.plate("rows", 4):
                one = ppl.sample("one", dist.Bernoulli(p["one"]))
                two = ppl.sample("two", dist.Bernoulli(p["two"] * (1 - 0.5 * one)))
            return law(p["locs"], one + two).log_prob(X).sum()

        bound = ppl.expectation(cost, strategies={"*": strategy})
        params = {"one": jnp.full(4, 0.4), "two": jnp.full(4, 0.7), "locs": jnp.asarray(LOCS)}
        return bound.value_and_grad(params, key)

    chosen = found(
        lambda locs, k: ppl.distributions.Chosen(dist.Normal(locs[:, None], 0.5).to_event(1), k)
    )
    computed = found(lambda locs, k: dist.Normal(locs[k], 0.5).to_event(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), chosen, computed)  # fmt: skip
