"""Error regression against rollouts, training and closed forms; nothing of the future leaks into a prediction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _slow import some_slow

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import ErrorRegression, Gaussian, Layer, Network
from lapilli.models.pv_rnn._regression import shift, window_objective
from lapilli.models.pv_rnn._stream import RegressionWindow

LAYERS = (Layer(5, 2, 2.0), Layer(3, 1, 4.0))
XS = 0.5 * jax.random.normal(jax.random.key(7), (7, 2))
ALL = jnp.ones(2, bool)


def make_network(**options):
    return Network(LAYERS, Gaussian(2, 0.3), key=jax.random.key(1), **options)


def deterministic():
    """A network whose prior, and so each vector made of it, has a scale of exp(-30)."""

    def silent(weights):
        z = weights.from_latent.shape[0]
        prior = (weights.prior.at[:, z:].set(0.0), weights.prior_bias.at[z:].set(-30.0))
        return eqx.tree_at(lambda w: (w.prior, w.prior_bias), weights, prior)

    network = make_network(first_prior="learned", posterior_from_state=False)
    return eqx.tree_at(lambda n: n.weights, network, tuple(map(silent, network.weights)))


@pytest.mark.slow  # a regression of its own is compiled
def test_without_iterations_new_prior_rows_roll_the_prior_out(key):
    """n_it = 0: no observation has any influence, and predictions are the prior's (here without noise)."""
    network = deterministic()
    er = ErrorRegression(network, window=3, num_iterations=0, horizon=2, num_particles=2)
    _, predictions = er.run(er.init(key), XS)
    _, emitted = pv_rnn.rollout(network, None, network.initial_state(), len(XS) + 2, is_start=True)
    for n in (1, 2):
        want = emitted[n : n + len(XS)]
        np.testing.assert_allclose(predictions.emitted[:, n - 1, 0], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predictions.window[-1, :, 0], emitted[4:7], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_window_moves_on(key):
    """Row k + 1 becomes row k; the edge is the state of a long unroll over all vectors that have left the window."""
    network = deterministic()
    er = ErrorRegression(network, window=3, num_iterations=2, w=0.0, num_particles=1)
    stream, h = er.init(key), network.initial_state()
    for t, x in enumerate(XS):
        moved = shift(er, stream, x, ALL)
        for old, new in zip(stream.adaptive, moved.adaptive, strict=True):
            np.testing.assert_array_equal(old[1:], new[:-1])
        np.testing.assert_array_equal(moved.x[:-1], stream.x[1:])
        if t >= 3:
            h = network.advance(h, [jnp.tanh(a[0, : a.shape[1] // 2]) for a in stream.adaptive])
        for a, b in zip(moved.edge, h, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        stream, _ = er.observe(stream, x)
    assert any(np.any(np.abs(a) > 0.01) for a in h)


@pytest.mark.slow  # two objectives under vmap are compiled
def test_window_of_the_whole_sequence_has_the_objective_of_training(key):
    """W = t: value and gradient are those of `pv_rnn.programs` with the same vectors and weights, in the mean over noise."""
    network = make_network()
    er = ErrorRegression(network, window=4, w=[[0.5, 0.5], [0.3, 0.1]])
    vectors = pv_rnn.adaptive_vectors(network, 1, 4, scale=0.5, key=key)
    model, guide = pv_rnn.programs(network, num_sequences=1, num_steps=4)
    weights = pv_rnn.site_weights(network, [[0.5, 0.5], [0.3, 0.1]], num_steps=4)
    offline = inference.elbo(model, guide, kl="analytic", site_weights=weights)
    params = offline.init(key, XS[None, :4], jnp.arange(1))
    params["adaptive"] = vectors
    slots = (jnp.arange(4) == 0, jnp.ones(4, bool))
    args = (
        network,
        RegressionWindow(XS[:4], jnp.ones((4, 2), bool), network.initial_state(), *slots, er.w),
    )
    online, rows = window_objective(er), {"adaptive": tuple(a[0] for a in vectors)}
    one = jax.jit(
        jax.vmap(lambda k: offline.value_and_grad(params, k, XS[None, :4], jnp.arange(1)))
    )
    two = jax.jit(jax.vmap(lambda k: online.value_and_grad(rows, k, *args)))
    v1, g1 = one(jax.random.split(key, 10_000))
    v2, g2 = two(jax.random.split(jax.random.fold_in(key, 1), 10_000))
    assert_same_mean(v1, v2)
    for a, b in zip(g1["adaptive"], g2["adaptive"], strict=True):
        assert_same_mean(a[:, 0], b)


@pytest.mark.slow  # two objectives under vmap are compiled
def test_masked_steps_count_for_nothing(key):
    """A window of 6 with 2 observations has value and gradient of a window of 2."""
    network = make_network()
    rows = pv_rnn.adaptive_vectors(network, 1, 6, scale=0.5, key=key)
    results = []
    for size in (6, 2):
        er = ErrorRegression(network, window=size)
        slots = jnp.arange(size)
        x = jnp.zeros((size, 2)).at[-2:].set(XS[:2])
        bound = window_objective(er)
        params = {"adaptive": tuple(a[0, -size:] for a in rows)}
        places = (slots == size - 2, slots >= size - 2)
        args = (
            network,
            RegressionWindow(x, jnp.ones((size, 2), bool), network.initial_state(), *places, er.w),
        )
        run = jax.jit(jax.vmap(lambda k, b=bound, p=params, a=args: b.value_and_grad(p, k, *a)))
        results.append(run(jax.random.split(jax.random.fold_in(key, size), 10_000)))
    (v6, g6), (v2, g2) = results
    assert_same_mean(v6, v2)
    for a, b in zip(g6["adaptive"], g2["adaptive"], strict=True):
        assert np.all(a[:, :4] == 0)
        assert_same_mean(a[:, 4:], b)


@pytest.fixture(scope="module")
def by_weight():
    """Streams of one sequence under a heavy and a vanishing meta-prior."""
    network, runs = make_network(), {}
    # q can be the prior for every state only where it uses the state as the prior does.
    tied = tuple(
        eqx.tree_at(lambda w: w.posterior, weights, weights.prior) for weights in network.weights
    )
    network = eqx.tree_at(lambda n: n.weights, network, tied)
    # A sequence that the network can produce exactly.
    xs = pv_rnn.rollout(network, jax.random.key(5), network.initial_state(), 7, is_start=True)[1]
    rate = optax.exponential_decay(0.1, 100, 0.3)
    for w in (1e4, 0.0):
        er = ErrorRegression(
            network,
            window=7,
            num_iterations=400,
            w=w,
            num_particles=200,
            optimizer=optax.adam(rate),
        )
        runs[w] = (er, *er.run(er.init(jax.random.key(3)), xs))
    return network, xs, runs


@pytest.mark.slow  # two regressions of 400 iterations
def test_heavy_meta_prior_returns_the_prior(by_weight):
    """The window's law is then that of the prior: same mean of what is emitted, by 200 particles each, at every step."""
    network, _, runs = by_weight
    window = runs[1e4][2].window[-1]
    start = network.initial_state(4000)
    _, emitted = pv_rnn.rollout(network, jax.random.key(0), start, 7, is_start=True)
    assert_same_mean(jnp.swapaxes(window, 0, 1), jnp.swapaxes(emitted, 0, 1))


@pytest.mark.slow  # see above
def test_without_meta_prior_the_window_is_explained(by_weight):
    _, xs, runs = by_weight
    error = {w: float(jnp.mean((runs[w][2].window[-1] - xs[:, None]) ** 2)) for w in runs}
    assert error[0.0] < 0.05 * error[1e4]


@pytest.mark.slow  # see above
def test_weights_are_not_touched(by_weight):
    network, _, runs = by_weight
    for er, *_ in runs.values():
        for a, b in zip(*map(jax.tree.leaves, (network, er.network)), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.slow
def test_predictions_do_not_see_what_they_predict(key):
    """The prediction made at t is the same whatever comes after t."""
    er = ErrorRegression(make_network(), window=3, num_iterations=3, horizon=2, num_particles=4)
    _, one = er.run(er.init(key), XS)
    _, other = er.run(er.init(key), XS.at[4:].add(10.0))
    np.testing.assert_array_equal(one.emitted[:4], other.emitted[:4])
    assert not np.array_equal(one.emitted[4:], other.emitted[4:])


@pytest.mark.slow
def test_a_stream_is_fed_one_by_one_saved_and_resumed(key, tmp_path):
    er = ErrorRegression(make_network(), window=3, num_iterations=3, num_particles=4)
    _, together = er.run(er.init(key), XS)
    stream, singly = er.init(key), []
    for t, x in enumerate(XS):
        if t == 4:
            er.save(tmp_path / "stream.eqx", stream)
            stream = er.load(tmp_path / "stream.eqx")
        stream, prediction = er.observe(stream, x)
        singly.append(prediction.emitted)
    np.testing.assert_allclose(together.emitted, jnp.stack(singly), rtol=1e-4, atol=1e-5)


OTHERS = {
    "network": (
        lambda make: make(Network(LAYERS, Gaussian(2, 0.3), key=jax.random.key(2))),
        "'network': .* in the checkpoint",
    ),
    "weight": (lambda make: make(make_network(), w=2.0), "'w': .* in the checkpoint"),
    "particles": (lambda make: make(make_network(), num_particles=3), "'num_particles': 2 in the"),
    "optimiser": (
        lambda make: make(make_network(), optimizer=optax.adam(0.5)),
        "another computation of one step",
    ),
}


@pytest.mark.fast("network")
@pytest.mark.parametrize("name", OTHERS)
def test_a_stream_belongs_to_its_regression(name, key, tmp_path):
    sizes = {"window": 2, "num_iterations": 1, "num_particles": 2}
    make = lambda network, **options: ErrorRegression(network, **sizes | options)
    path, begun = tmp_path / "stream", make(make_network()).init(key)
    make(make_network()).save(path, begun)
    other, message = OTHERS[name]
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{message}.*resume='chan"):
        other(make).load(path)
    again = other(make).load(path, resume="changed")
    assert jax.tree.all(jax.tree.map(np.array_equal, again, begun))
    with pytest.raises(ValueError, match=r"(?s)another run.*\[2, .*in the checkpoint, .*\[4, "):
        make(make_network(), window=4).load(path, resume="changed")


@pytest.mark.slow  # a regression of its own is compiled
def test_fixed_windows_wait(key):
    er = ErrorRegression(make_network(), window=4, num_iterations=2, grow=False, num_particles=2)
    _, predictions = er.run(er.init(key), XS)
    np.testing.assert_array_equal(predictions.is_ready, np.arange(7) >= 3)
    assert np.all(np.isneginf(predictions.value[:3])) and np.all(np.isfinite(predictions.value[3:]))


@pytest.mark.parametrize("new_row", some_slow(["copy", "zero"], "copy", "zero"))
def test_new_rows(new_row, key):
    er = ErrorRegression(make_network(), window=3, num_iterations=2, new_row=new_row, keep="best")
    stream, _ = er.observe(er.init(key), XS[0])
    moved = shift(er, stream, XS[1], ALL)
    for old, new in zip(stream.adaptive, moved.adaptive, strict=True):
        np.testing.assert_array_equal(new[-1], old[-1] if new_row == "copy" else 0.0)


@pytest.mark.slow  # a regression of its own is compiled
def test_symbols(key):
    network = Network([(5, 1)], pv_rnn.Categorical(3, 2), key=key)
    er = ErrorRegression(network, window=3, num_iterations=2, num_particles=5)
    xs = jax.random.randint(key, (5, 2), 0, 3)
    _, predictions = er.run(er.init(key), xs)
    probs = pv_rnn.mean(network, predictions.emitted)
    assert probs.shape == (5, 1, 2, 3)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    score = pv_rnn.log_score(network, predictions.emitted[:-1, 0], xs[1:])
    # Two dimensions within one particle are independent, across particles not: the mixture is of joint laws.
    logits = predictions.emitted[0, 0].reshape(5, 2, 3)
    joint = jax.nn.log_softmax(logits)[:, jnp.arange(2), xs[1]].sum(1)
    np.testing.assert_allclose(score[0], jax.nn.logsumexp(joint) - np.log(5), rtol=1e-5)
    with pytest.raises(ValueError, match="symbols have no order"):
        pv_rnn.interval(network, predictions.emitted, 0.9, key)


@pytest.mark.slow
def test_random_and_first_rows(key):
    """Rows of N(0, 1) by the stream's key and step; a first row of one's own is that of the first step only."""
    first = (jnp.arange(4.0), jnp.arange(2.0))
    er = ErrorRegression(make_network(), window=3, new_row=pv_rnn.NewRow("normal", first))
    stream = shift(er, er.init(key), XS[0], ALL)
    for row, table in zip(first, stream.adaptive, strict=True):
        np.testing.assert_array_equal(table[-1], row)
    rows = jax.vmap(
        lambda k: jnp.concatenate(
            [a[-1] for a in shift(er, shift(er, er.init(k), XS[0], ALL), XS[1], ALL).adaptive]
        )
    )(jax.random.split(key, 2000))
    assert_unbiased(rows, np.zeros(6))
    assert_unbiased(rows**2, np.ones(6))
    assert_unbiased(rows[:, :1] * rows[:, 1:], np.zeros(5))


@pytest.mark.slow
def test_intervals_hold_their_level(key):
    network = Network([(5, 1)], Gaussian(1, 2.0), key=key)
    lower, upper = pv_rnn.interval(network, jnp.zeros((1, 20_000, 1)), 0.9, key)
    # Standard error of a 5% quantile of N(0, 2) over 20,000 draws: 2 sqrt(.05 .95 / 2e4) / 0.103 = 0.03.
    np.testing.assert_allclose([lower[0, 0], upper[0, 0]], [-3.2897, 3.2897], atol=4.5 * 0.03)


def test_levels_that_are_no_probabilities_are_refused(key):
    for level in (90, 1.0, 0.0, np.nan):
        with pytest.raises(ValueError, match=rf"interval: level must lie in \(0, 1\), got {level}"):
            pv_rnn.interval(make_network(), jnp.zeros((1, 3, 2)), level, key)


def test_symbols_that_are_none_are_refused(key):
    er = ErrorRegression(Network([(5, 1)], pv_rnn.Categorical(3, 2), key=key), window=3)
    for x in ([0, 3], [-1, 0], [0.5, 1.0]):
        with pytest.raises(
            ValueError, match=r"1 seen cells are no symbols of 0 to 2, the first at"
        ):
            er.observe(er.init(key), jnp.array(x))


def test_what_is_no_symbol_has_no_probability(key):
    network = Network([(3, 1)], pv_rnn.Categorical(3, 2), key=key)
    emitted = jnp.zeros((4, 5, 6))
    x = jnp.array([[0, 2], [0, 3], [-1, 0], [0.5, 1]])
    np.testing.assert_allclose(
        pv_rnn.log_score(network, emitted, x), [-2 * np.log(3), *[-np.inf] * 3], rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"log_score: x has shape \(1,\).* must be \(2,\)"):
        pv_rnn.log_score(network, emitted[0], x[0, :1])


@pytest.mark.parametrize("bad", [3.0, -1.0, 0.5, np.nan])
def test_symbols_that_are_none_make_nan_of_all_that_follows(key, bad):
    """Under jit a symbol was rounded, and one out of range had the probability of another."""
    network = Network([(3, 1)], pv_rnn.Categorical(3, 2), key=key)
    er = ErrorRegression(network, window=2, num_iterations=0, num_particles=2)
    emitted = jax.jit(lambda x, seen: er.run(er.init(key), x, seen)[1].emitted)
    xs, seen = jnp.array([[0, 1], [2, bad], [1, 0], [1, 1], [0, 0]]), jnp.ones((5, 2), bool)
    found = emitted(xs, seen)
    assert jnp.isfinite(found[0]).all() and jnp.isnan(found[1:]).all()
    hidden = emitted(xs, seen.at[1, 1].set(False))
    assert jnp.isfinite(hidden).all()
    # A symbol that is one is what it is outside of jit.
    want = er.run(er.init(key), jnp.where(seen.at[1, 1].set(False), xs, 0).astype(int))[1].emitted
    np.testing.assert_allclose(emitted(xs.at[1, 1].set(0.0), seen), want, atol=1e-6)


def test_values_that_are_not_finite_make_nan_of_all_that_follows(key):
    """Also without iterations, where no observation has an influence."""
    er = ErrorRegression(make_network(), window=2, num_iterations=0, num_particles=2)
    emitted = jax.jit(lambda x: er.run(er.init(key), x)[1].emitted)(XS.at[2, 0].set(jnp.inf))
    assert jnp.isfinite(emitted[:2]).all() and jnp.isnan(emitted[2:]).all()


def test_errors(key):
    network = make_network()
    with pytest.raises(
        ValueError, match="window must be >= 1, got 0; .*num_iterations.*new_row.*keep"
    ):
        ErrorRegression(network, window=0, num_iterations=-1, new_row="x", keep="y")  # pyright: ignore
    with pytest.raises(
        ValueError, match=r"new_row.first has shapes \[\(4,\)\]; .*\[\(4,\), \(2,\)\]"
    ):
        ErrorRegression(network, window=2, new_row=pv_rnn.NewRow(first=(jnp.zeros(4),)))
    er = ErrorRegression(network, window=2)
    with pytest.raises(ValueError, match=r"shape \(3,\); \[size\] with size 2"):
        er.observe(er.init(key), jnp.zeros(3))


def test_observations_are_scored_by_their_own_predictions(key):
    """Predictions of a run, [steps, horizon, particles, out], scored every observation by every other one's."""
    network, rng = Network([(3, 1)], pv_rnn.Gaussian(2, 1.0), key=key), np.random.default_rng(0)
    for steps, horizon, particles in ((1, 1, 2), (3, 1, 2), (2, 2, 1)):
        emitted = rng.normal(size=(steps, horizon, particles, 2))
        x = rng.normal(size=(steps, 2))
        found = pv_rnn.log_score(network, emitted[:, 0], x)
        gaps = ((emitted[:, 0] - x[:, None]) ** 2).sum(-1)
        want = np.log(np.exp(-gaps / 2).mean(-1)) - np.log(2 * np.pi)
        np.testing.assert_allclose(found, want, rtol=1e-4)
        for other in (emitted, emitted[0, 0]):
            with pytest.raises(ValueError, match="observations would be scored by the predictions"):
                pv_rnn.log_score(network, other, x)


@pytest.mark.parametrize("w", [-1.0, np.nan, [[1.0], [-0.1]]])
def test_weights_that_are_none_are_refused(key, w):
    network = Network([(3, 1)], pv_rnn.Gaussian(1), key=key)
    with pytest.raises(ValueError, match="ErrorRegression: w must be finite and >= 0, got"):
        ErrorRegression(network, window=2, w=w)
