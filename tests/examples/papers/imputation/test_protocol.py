"""The protocol of imputation: data sets, problems, peers, scores, training of one member, and export."""

import jax.numpy as jnp
import numpy as np
import pytest
from _examples import load_example

from lapilli.models import imputation

protocol = load_example("papers/imputation/protocol")
FILLERS, GRUD = protocol.FILLERS, protocol.GRUD
scores = protocol.problem.__globals__["scores"]

SIZES = {
    "JapaneseVowels": ((270, 370), 29, 12, 9),
    "JapaneseVowels_eq": ((270, 370), 25, 12, 9),
    "ItalyPowerDemand": ((67, 1029), 24, 1, 2),
    "BasicMotions": ((40, 40), 100, 6, 4),
}


@pytest.mark.parametrize("name", SIZES)
def test_data_sets_have_their_sizes(name):
    sizes, num_steps, num_channels, num_classes = SIZES[name]
    for data, size in zip(protocol.load(name), sizes, strict=True):
        assert data.values.shape == (size, num_steps, num_channels)
        assert set(np.unique(data.labels)) == set(range(num_classes))
        assert (data.observed == data.valid[..., None]).all()
    lengths = protocol.load(name)[0].valid.sum(1)
    assert (lengths.min(), lengths.max()) == (
        (7, 26) if name == "JapaneseVowels" else (num_steps,) * 2
    )


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no data set 'Vowels'; choose from"):
        protocol.load("Vowels")
    with pytest.raises(ValueError, match="no mechanism 'odd'"):
        protocol.problem("ItalyPowerDemand", "odd", 0.5, 0)


@pytest.fixture(scope="module")
def task():
    return protocol.problem("ItalyPowerDemand", "mnar", 0.5, 0)


def test_hidden_truth_reaches_no_learner(task):
    train, test = protocol.load("ItalyPowerDemand")
    for data in (task.train, task.valid, task.test):
        assert not np.asarray(data.values)[~np.asarray(data.observed)].any()
    seen = np.concatenate(
        [np.asarray(d.values)[np.asarray(d.observed)] for d in (task.train, task.valid)]
    )
    assert abs(seen.mean()) < 1e-5 and abs(seen.std() - 1) < 1e-5  # units of observed cells only
    whole = imputation.standardise(train)
    truth = whole.apply(test).values
    np.testing.assert_allclose(task.truth, truth)
    shown = ~task.hidden
    np.testing.assert_allclose(task.units.undo(task.test.values)[shown], truth[shown], atol=1e-5)


def test_problems_depend_on_the_seed_alone(task):
    again, other = (protocol.problem("ItalyPowerDemand", "mnar", 0.5, seed) for seed in (0, 1))
    np.testing.assert_array_equal(task.hidden, again.hidden)
    np.testing.assert_array_equal(task.valid.labels, again.valid.labels)
    assert (task.hidden != other.hidden).any()
    assert len(task.valid.labels) == 14 and len(task.train.labels) == 53


@pytest.mark.slow_for("mice")
@pytest.mark.parametrize("name", FILLERS)
def test_fillers_keep_observed_cells_and_fill_the_others(name, task):
    filled = FILLERS[name](task.train, task.test)
    for data, values in zip((task.train, task.test), filled, strict=True):
        seen = np.asarray(data.observed)
        np.testing.assert_allclose(values[seen], np.asarray(data.values)[seen], rtol=1e-5)
        assert np.isfinite(values).all()


def test_fillers_of_a_series_by_hand():
    data = imputation.series(np.array([np.nan, 1.0, np.nan, np.nan, 4.0, np.nan]).reshape(1, 6, 1))
    by_hand = {"zero": [0, 1, 0, 0, 4, 0], "locf": [0, 1, 1, 1, 4, 4], "interp": [1, 1, 2, 3, 4, 4]}
    for name, expected in by_hand.items():
        np.testing.assert_allclose(FILLERS[name](data, data)[0][0, :, 0], expected)


@pytest.mark.slow
def test_methods_that_ran_elsewhere_are_scored_as_peers_are(task):
    """Series filled there get the same classifier and the same temperature, probabilities the same scores."""
    size = len(task.train.values)
    whole = imputation.Series(
        *(np.concatenate(p) for p in zip(task.train, task.valid, strict=True))
    )
    filled = np.concatenate(FILLERS["interp"](whole, task.test))
    labels = np.concatenate([task.valid.labels, task.test.labels])
    answer = {"net.filled": filled, "sure.probs": np.eye(2)[labels].astype(np.float32)}
    seconds = {"net.seconds": np.array(3.0), "sure.seconds": np.array(4.0)}
    found = protocol.outside_peers(task, answer | seconds)
    peer = protocol.peers(task, fillers=("interp",))["interp"]
    assert found["net"] | {"seconds": 0} == pytest.approx(peer | {"seconds": 0})
    assert peer["calibrated_nll"] != peer["nll"] and peer["temperature"] != 1
    assert found["sure"]["accuracy"] == 1 and "mae" not in found["sure"]
    assert found["sure"]["seconds"] == 4 and size + len(labels) == len(filled)


@pytest.mark.slow  # classifiers of nine classes on 300 and 600 features
def test_linear_peers_reach_the_floors():
    """JapaneseVowels_eq, MAR at one half: interpolation with a linear classifier was measured at 0.941 and 0.38."""
    task = protocol.problem("JapaneseVowels_eq", "mar", 0.5, 0)
    found = protocol.peers(task, fillers=("zero", "interp"))
    assert found["interp"]["accuracy"] == pytest.approx(0.941, abs=0.025)
    assert found["interp"]["mae"] == pytest.approx(0.38, abs=0.03)
    assert found["zero"]["mae"] > 2 * found["interp"]["mae"] > 0
    assert {"interp+mask", "forest", "mask"} < set(found)


@pytest.mark.slow
def test_gru_d_is_its_formula_and_does_not_read_hidden_cells(key):
    """One channel of three steps, the second hidden, by hand; a padded step and hidden values change nothing."""
    network = GRUD(1, 2, 3, key=key)
    x, times = jnp.array([[0.7], [9.0], [-0.4]]), jnp.array([0.0, 1.0, 2.5])
    seen, valid = jnp.array([[True], [False], [True]]), jnp.ones(3, bool)
    h, last, last_time = jnp.zeros(3), jnp.zeros(1), jnp.zeros(1)
    for t in range(3):
        delta = times[t] - last_time
        decayed = jnp.exp(-jnp.maximum(network.input_weight * delta + network.input_bias, 0)) * last
        value = x[t] if seen[t, 0] else decayed
        h = jnp.exp(-jnp.maximum(network.state_decay(delta), 0)) * h
        h = network.cell(jnp.concatenate([value, seen[t].astype(float)]), h)
        if seen[t, 0]:
            last, last_time = x[t], times[t][None]
    want = network.head(h)
    found = network(x, seen, times, valid)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_array_equal(network(x.at[1].set(-5.0), seen, times, valid), found)
    grown = lambda a: jnp.concatenate([a, a[-1:]])
    padded = network(grown(x), grown(seen), grown(times), valid=jnp.append(valid, False))
    np.testing.assert_allclose(padded, found, rtol=1e-6)


@pytest.mark.slow  # compiles a training step
def test_gru_d_learns(task, key):
    recipe = protocol.Recipe({"num_hidden": 16}, num_steps=200, check_every=50)
    found = protocol.recurrent_peer(task, recipe, key)
    assert found["accuracy"] > 0.6 and found["nll"] < np.log(2)


@pytest.mark.slow  # compiles a training step
def test_a_member_trains_and_is_scored(tmp_path, key):
    task = protocol.problem("ItalyPowerDemand", "mnar", 0.5, 0)
    switches = {"num_hidden": 8, "num_latents": 2, "missingness": "self_masking"}
    recipe = protocol.Recipe(switches, num_particles=3, num_steps=60, check_every=20)
    trained = protocol.train(task, recipe, key)
    assert trained.history[-10:].mean() > trained.history[:10].mean() + 5
    assert [step for step, _ in trained.validation] == [20, 40, 60]
    scores, found = protocol.evaluate(task, trained, key, num_particles=8)
    assert set(scores) >= {"accuracy", "nll", "ece", "mae", "crps", "coverage", "ess", "seconds"}
    assert 1 <= scores["ess"] <= 8 and not found.is_collapsed
    path = tmp_path / "imputed.nc"
    tree = imputation.to_arviz(found, task.test, key, truth=task.test_truth, path=path)
    x = tree["posterior_predictive"]["x"]
    assert x.dims == ("chain", "draw", "series", "time", "channel") and x.shape[1:3] == (8, 1029)
    np.testing.assert_array_equal(np.isnan(x.values[0, 0]), task.test.observed)
    assert path.exists()
    # Equally weighted draws have the weighted mean up to the noise of 8 stratified draws.
    hidden = ~np.asarray(task.test.observed)
    gap = (np.asarray(x.mean(("chain", "draw")))[hidden] - found.mean[hidden]).mean()
    assert abs(gap) < 0.02


RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 200)
PROBS = np.exp(RNG.normal(size=(200, 4)) + 1.5 * np.eye(4)[LABELS])
PROBS = np.round(PROBS / PROBS.sum(1, keepdims=True), 2)
PROBS /= PROBS.sum(1, keepdims=True)


def test_scores_of_classes_by_hand():
    found = scores.classification(PROBS, LABELS)
    one_hot = np.eye(4)[LABELS]

    def area(score, positive):
        """Share of pairs in the right order; ties count half."""
        above = score[positive][:, None] - score[~positive]
        return ((above > 0) + 0.5 * (above == 0)).mean()

    def precision(score, positive):
        """Mean over positives of the precision at their score."""
        return np.mean([positive[score >= s].mean() for s in score[positive]])

    over_classes = lambda of: np.mean([of(PROBS[:, c], LABELS == c) for c in range(4)])
    expected = {
        "accuracy": (PROBS.argmax(1) == LABELS).mean(),
        "macro_auroc": over_classes(area),
        "macro_auprc": over_classes(precision),
        "nll": -np.log(np.maximum(PROBS[np.arange(200), LABELS], 1e-12)).mean(),
        "brier": ((PROBS - one_hot) ** 2).sum(1).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_two_classes_are_scored_from_both_sides():
    probs, labels = RNG.dirichlet(np.ones(2), 200), LABELS % 2
    found = scores.classification(probs, labels)
    other = scores.classification(probs[:, ::-1], 1 - labels)
    assert found == pytest.approx(other)


def test_classes_without_series_are_refused():
    with pytest.raises(ValueError, match=r"no series has the classes \[1, 3\] of 4"):
        scores.classification(PROBS[:2], np.array([0, 2]))
    # Scores without curves are defined.
    assert scores.calibration(np.eye(4)[[0, 2]], np.array([0, 2]))["brier"] == 0


def test_temperature_undoes_what_was_done_to_calibrated_probabilities():
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(3), 20_000)
    labels = (rng.random(20_000)[:, None] > true.cumsum(-1)).sum(-1)
    blurred = scores.tempered(true, 2.5)
    np.testing.assert_allclose(blurred.sum(-1), 1.0)
    # The curvature of the loss in log T is about 0.7: a standard error of 0.01.
    assert scores.temperature(blurred, labels) == pytest.approx(1 / 2.5, rel=0.05)
    np.testing.assert_allclose(scores.tempered(blurred, 1 / 2.5), true, rtol=1e-6, atol=1e-9)
    few = scores.temperature(np.tile([0.9, 0.1], (10, 1)), np.zeros(10, int))
    assert 0.4 < few < 0.95  # ten right of ten do not make certainty


def test_ranking_of_constants_is_chance():
    assert (
        scores.classification(np.full((6, 2), 0.5), np.array([0, 1, 0, 1, 1, 1]))["macro_auroc"]
        == 0.5
    )
