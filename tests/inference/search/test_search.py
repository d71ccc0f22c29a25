"""Searches find larger scores with more evaluations, which they count, and refuse verdicts that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.inference import search

KEY = jax.random.key(0)
NUM = 300


def generate(noise):
    return 2 * noise + 1


def verifier(x):
    """Best at x = 3."""
    return -jnp.square(x - 3.0).sum()


def many(make, num_steps):
    keys = jax.random.split(KEY, NUM)
    starts = jax.random.normal(jax.random.key(1), (NUM, 2))
    return jax.jit(jax.vmap(lambda k, x: make(k, x, num_steps)))(keys, starts)


METHODS = {
    "zero order": lambda k, x, n: search.zero_order(generate, verifier, k, x, num_steps=n),
    "first order": lambda k, x, n: search.first_order(generate, verifier, x, num_steps=n, step=0.2),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_score_rises_with_what_is_spent(name):
    few, more = (many(METHODS[name], n) for n in (2, 30))
    # Compiled as the search is: operation by operation it is rounded otherwise.
    start = jax.jit(jax.vmap(lambda x: verifier(generate(x))))(
        jax.random.normal(jax.random.key(1), (NUM, 2))
    )
    assert (few.score >= start).all() and (more.score >= few.score - 1e-6).mean() > 0.95
    assert more.score.mean() > few.score.mean() > start.mean()
    assert (more.evaluations == 31).all() and (few.generations == 3).all()
    np.testing.assert_allclose(jax.vmap(verifier)(more.sample), more.score, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(generate)(more.start), more.sample, rtol=1e-5)


def test_a_first_order_search_stays_where_noises_are():
    start = jnp.array([0.6, -0.8, 1.0])
    kept = search.first_order(generate, verifier, start, num_steps=10)
    np.testing.assert_allclose(jnp.linalg.norm(kept.start), jnp.linalg.norm(start), rtol=1e-5)
    free = search.first_order(generate, verifier, start, num_steps=60, is_on_shell=False)
    assert free.score > kept.score


def test_a_first_order_search_cannot_leave_a_shell_of_norm_0():
    with pytest.raises(ValueError, match="is 0 everywhere, a norm that the noise would keep"):
        search.first_order(generate, verifier, jnp.zeros(2), num_steps=5)
    traced = jax.jit(lambda x: search.first_order(generate, verifier, x, num_steps=5))(jnp.zeros(2))
    assert traced.num_nan == 5
    free = search.first_order(generate, verifier, jnp.zeros(2), num_steps=40, is_on_shell=False)
    assert free.score > -0.1 and free.num_nan == 0


def test_a_search_over_paths_keeps_the_best_copy():
    renoise = lambda key, x, t: x + t * jax.random.normal(key, x.shape)
    denoise = lambda x, t, s: x * (1 + s) / (1 + t)
    judge = lambda x, s: verifier(x)

    def run(key, x, n):
        return search.over_paths(
            renoise, denoise, judge, key, x, (1.0, 0.5, 0.25, 0.1), num_copies=n
        )

    few, more = many(run, 1), many(run, 16)
    assert more.score.mean() > few.score.mean() + 1
    assert (more.evaluations == 48).all()


def test_verdicts_of_nan_are_counted_and_never_taken():
    """NaN on half of the line: the search goes on elsewhere, and says how often."""
    odd = lambda x: jnp.where(x.sum() > 2.0, jnp.nan, verifier(x))
    found = search.zero_order(generate, odd, KEY, -jnp.ones(2), num_steps=60, step=0.5)
    assert 0 < found.num_nan < 60 and jnp.isfinite(found.score) and found.sample.sum() <= 2.0
    assert search.zero_order(generate, verifier, KEY, -jnp.ones(2), num_steps=60).num_nan == 0


def test_ranks_take_no_scale():
    verdicts = np.array([[1.0, 2.0, 3.0], [300.0, 100.0, 200.0]])
    np.testing.assert_allclose(search.mean_rank(verdicts), [2.0, 1.5, 2.5])
    np.testing.assert_allclose(search.mean_rank(verdicts * [[1], [1e9]]), [2.0, 1.5, 2.5])
    np.testing.assert_allclose(search.mean_rank([[1.0, 1.0, 2.0]]), [1.5, 1.5, 3.0])


def test_what_no_search_can_use_is_named():
    start = jnp.zeros(2)
    with pytest.raises(ValueError, match="num_steps must be an integer >= 1, got 0"):
        search.zero_order(generate, verifier, KEY, start, num_steps=0)
    with pytest.raises(ValueError, match="step must be a positive number, got -1"):
        search.zero_order(generate, verifier, KEY, start, num_steps=1, step=-1.0)
    with pytest.raises(ValueError, match=r"verifier '<lambda>' has shape \(2,\)"):
        search.zero_order(generate, lambda x: x, KEY, start, num_steps=1)
    with pytest.raises(ValueError, match="verdict on the first sample is NaN"):
        search.zero_order(generate, lambda x: jnp.nan, KEY, start, num_steps=1)
    with pytest.raises(ValueError, match="verdict on the first sample is infinite"):
        search.zero_order(generate, lambda x: jnp.inf, KEY, start, num_steps=1)
    with pytest.raises(ValueError, match="verdict is -inf in all of 4 evaluations"):
        search.zero_order(generate, lambda x: -jnp.inf, KEY, start, num_steps=3)
    with pytest.raises(ValueError, match="verdict on the last copies is NaN"):
        search.over_paths(
            lambda k, x, t: x, lambda x, t, s: x, lambda x, s: jnp.nan, KEY, start, (0.5, 0.1), num_copies=2
        )  # fmt: skip
    with pytest.raises(ValueError, match="gradient of the verifier at the start is 0 in all"):
        search.first_order(generate, lambda x: jnp.round(x).sum(), start, num_steps=1)
    with pytest.raises(ValueError, match="gradient of the verifier at the start is NaN"):
        search.first_order(generate, lambda x: jnp.sqrt(x - 1).sum(), start, num_steps=1)
    with pytest.raises(ValueError, match="levels must be two or more that descend"):
        search.over_paths(generate, generate, verifier, KEY, start, (0.1, 0.5), num_copies=2)
    with pytest.raises(ValueError, match=r"have shape \(3,\)"):
        search.mean_rank([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="hold NaN"):
        search.mean_rank([[1.0, np.nan]])
