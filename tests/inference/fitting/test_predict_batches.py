"""Predictions of rows in batches: one draw of what the rows share, and noise of their own for rows of different batches."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
X = np.linspace(-1.0, 1.0, 12, dtype=np.float32)
BATCHES = [X[:5], X[5:10], X[10:]]


def model(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 2.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x, 0.1), obs=y)


def guide(x, y=None):
    ppl.sample("slope", dist.Normal(ppl.param("loc", 1.0), ppl.param("scale", 0.5)))


def local(x, y=None):
    slope = ppl.sample("slope", dist.Normal(0.0, 2.0))
    with ppl.plate("rows", x.shape[0]):
        shift = ppl.sample("shift", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(slope * x + shift, 0.01), obs=y)


def amortised(x, y=None):
    slope = ppl.sample("slope", dist.Normal(ppl.param("loc", 1.0), 0.5))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("shift", dist.Normal(3.0 * x + slope, 0.2))


def fitted(model, guide, x=X):
    y = X + 0.1
    objective = inference.elbo(model, guide)
    params = objective.init(KEY, x, y)
    return inference.fit(
        objective, optax.sgd(0.1), (x, y), num_steps=0, params=params, progress=False
    )


def predicted(fit, batches, num_samples=4000, **options):
    parts = fit.predict_batches(KEY, ((x,) for x in batches), num_samples=num_samples, **options)
    return [part["y"] for part in parts]


def test_batches_share_the_draws_of_what_rows_share():
    """Cov(y_i, y_j) = 0.25 x_i x_j between rows of different batches as within, and 0.01 more on the diagonal."""
    y = np.concatenate(predicted(fitted(model, guide), BATCHES), 1)
    assert y.shape == (4000, 12)
    want = 0.25 * np.outer(X, X) + 0.01 * np.eye(12)
    found = np.cov(y.T)
    # The standard error of a covariance of Normals: sqrt((C_ii C_jj + C_ij^2) / S). 78 comparisons.
    error = np.sqrt((np.outer(np.diag(want), np.diag(want)) + want**2) / 4000)
    assert (np.abs(found - want) < 4.5 * error).all()


def test_rows_of_different_batches_have_noise_of_their_own():
    """The same batch twice: the same slope, other noise."""
    one, two = predicted(fitted(model, guide), [X[:5], X[:5]])
    apart = (one - two) / 0.1 / np.sqrt(2.0)
    assert abs(apart.var() - 1.0) < 4.5 * np.sqrt(2.0 / apart.size)


def test_an_amortised_guide_reads_each_batch_given_the_shared_draws():
    """With shift = 3 x + slope + noise, y = slope x + shift: rows of all batches agree on the slope."""
    y = np.concatenate(predicted(fitted(local, amortised), BATCHES), 1)
    np.testing.assert_allclose(y.mean(0), 1.0 * X + 3.0 * X + 1.0, atol=4.5 * 1.1 / 4000**0.5)
    # The slope of a sample, from the rows of the first batch and from those of the others: noise of 0.2 a row.
    slopes = [((y[:, r] - 3.0 * X[r]) / (1.0 + X[r])).mean(1) for r in (slice(2, 5), slice(5, 12))]
    assert np.corrcoef(*slopes)[0, 1] > 0.85


def test_kept_sites_are_of_the_fit_and_the_model_draws_the_rest():
    fit = fitted(local, amortised)
    y = np.concatenate(predicted(fit, BATCHES, keep=["slope"]), 1)
    np.testing.assert_allclose(y.mean(0), X, atol=4.5 * 1.2 / 4000**0.5)
    assert abs(np.cov(y[:, 0], y[:, 11])[0, 1] - 0.25 * X[0] * X[11]) < 0.1


def test_batches_are_read_one_by_one_and_compiled_once_for_each_shape():
    read, traces = [], []

    def counted(x, y=None):
        traces.append(jnp.shape(x))
        model(x, y)

    fit = fitted(counted, guide)

    def batches():
        for x in BATCHES:
            read.append(len(x))
            yield {"x": x}

    parts = fit.predict_batches(KEY, batches(), num_samples=3)
    assert read == [5]
    before = len(traces)
    assert [len(part["y"][0]) for part in parts] == [5, 5, 2] and read == [5, 5, 2]
    assert traces[before:] == [(5,), (2,)]


def all_rows(x, y=None):
    ppl.sample("slope", dist.Normal(x.mean() + ppl.param("loc", 1.0), 0.5))


def grouped(x, y=None):
    """As many groups as a batch has rows."""
    slope = ppl.sample("slope", dist.Normal(0.0, 2.0))
    with ppl.plate("groups", 5):
        effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(slope * x + effect.sum(), 0.1), obs=y)


def guide_of_groups(x, y=None):
    guide(x)
    with ppl.plate("groups", 5):
        ppl.sample("effect", dist.Normal(ppl.param("at", 0.0), 1.0))


def walk(x, y=None):
    def step(state, xy):
        x, y = xy
        state = ppl.sample("state", dist.Normal(state, 1.0))
        ppl.sample("y", dist.Normal(slope * x + state, 0.1), obs=y)
        return state, None

    slope = ppl.sample("slope", dist.Normal(0.0, 2.0))
    ppl.scan(step, 0.0, (x, y))


def guide_of_steps(x, y=None):
    guide(x)
    step = lambda state, x: (ppl.sample("state", dist.Normal(state, 1.0)), None)
    ppl.scan(step, 0.0, x)


REFUSED = {
    "no batches": (model, guide, [], {}, ValueError, "there are no batches"),
    "a batch that is an array": (model, guide, None, {}, TypeError, "a tuple such as"),
    "global from rows": (model, all_rows, BATCHES, {}, ValueError, "'slope' from the rows at hand"),
    "not kept": (local, amortised, BATCHES, {"keep": "shift"}, ValueError, "'slope' is shared by"),
    "groups": (
        grouped,
        guide_of_groups,
        BATCHES,
        {"keep": "slope"},
        ValueError,
        "'effect' is shared",
    ),
    "steps": (walk, guide_of_steps, BATCHES, {"keep": "slope"}, ValueError, "'state' is shared by"),
    "other structure": (model, guide, "other", {}, ValueError, "Arguments have the structure"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_differ_between_batches_is_refused(name):
    program, its_guide, batches, options, kind, message = REFUSED[name]
    fit = fitted(program, its_guide)
    if batches is None:
        parts = [X]
    elif batches == "other":
        parts = [(X,), (X, X)]
    else:
        parts = [(x,) for x in batches]
    with pytest.raises(kind, match=message):
        list(fit.predict_batches(KEY, parts, num_samples=3, **options))


def test_an_index_without_an_entry_is_told_of_every_batch():
    def indexed(g, y=None):
        effect = ppl.sample("effect", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        with ppl.plate("rows", g.shape[0]):
            ppl.sample("y", dist.Normal(effect[g], 0.1), obs=y)

    def effects(g, y=None):
        ppl.sample("effect", dist.Normal(ppl.param("loc", jnp.arange(3.0)), 0.01).to_event(1))

    g, objective = np.array([0, 1, 2, 1]), inference.elbo(indexed, effects)
    fit = inference.fit(objective, optax.sgd(0.0), (g, X[:4]), num_steps=1, key=KEY, progress=False)
    bad = np.array([0, 1, 5])
    for batches in ([bad], [g[:3], bad], [g[:2], bad]):
        with pytest.raises(ValueError, match=r"holds 5.*3 entries, 0 to 2"):
            predicted(fit, batches, num_samples=3)
    found = predicted(fit, [g[:3], g[2:]], num_samples=50)
    np.testing.assert_allclose(
        np.concatenate([y.mean(0) for y in found]), [0, 1, 2, 2, 1], atol=0.2
    )


def test_a_later_row_without_its_axis_is_told():
    def wide(x, y=None):
        slopes = ppl.sample("slopes", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(x @ slopes, 0.1), obs=y)

    its_guide = lambda x, y=None: ppl.sample(
        "slopes", dist.Normal(ppl.param("at", jnp.ones(3)), 0.1).to_event(1)
    )
    fit, x = fitted(wide, its_guide, np.ones((12, 3), np.float32)), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"batch 1: argument 'x' has the shape \(3,\).*x\[None\]"):
        predicted(fit, [x, x[0]], num_samples=3)
    with pytest.raises(ValueError, match=r"argument 'x' has the shape \(3,\)"):
        predicted(fit, [x[0]], num_samples=3)
