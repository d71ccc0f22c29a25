"""fit: steps, signs, compilation, parameters, groups, averaging, seeds, argument checks."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from _fit_fakes import Objective, Params

from lapilli.inference.fitting._fit import fit

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
EXACT_LOC, EXACT_SCALE = X.sum() / 13, 13**-0.5
SGD = optax.sgd(1e-3)


def run(objective=None, optimizer=SGD, args=(X,), **options):
    options = {"num_steps": 5, "key": jax.random.key(0), "progress": False} | options
    return fit(objective or Objective(), optimizer, args, **options)


def assert_tree_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def assert_tree_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("direction", ["max", "min"])
def test_fit_reaches_the_exact_posterior_in_both_directions(direction):
    result = run(
        Objective(noisy=False, direction=direction),
        {"loc": optax.sgd(0.05), "log_scale": "frozen"},
        num_steps=200,
    )
    np.testing.assert_allclose(result.params["loc"], EXACT_LOC, rtol=1e-5)
    values = result.history["value"]
    assert values[0] < values[-1] if direction == "max" else values[0] > values[-1]


@pytest.mark.slow
def test_steps_equal_a_loop_written_by_hand():
    objective, tx = Objective(), optax.adam(1e-2)
    result = run(objective, tx, num_steps=7)
    key_init, _, key_steps, _ = jax.random.split(jax.random.key(0), 4)
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), objective.init(key_init, X))
    state, values = tx.init(params), []
    for step in range(7):
        value, grads = jax.value_and_grad(objective.value)(
            params, jax.random.fold_in(key_steps, step), X
        )
        updates, state = tx.update(jax.tree.map(jnp.negative, grads), state, params)
        params = optax.apply_updates(params, updates)
        values.append(value)
    assert_tree_close(result.params, params)
    np.testing.assert_allclose(result.history["value"], values, rtol=1e-5)
    assert isinstance(result.params, Params)
    assert result.state["count"] == 7 and result.steps == 7 and result.num_skipped == 0
    np.testing.assert_allclose(result.state["total"], np.sum(values), rtol=1e-5)


def test_step_is_traced_once_in_spite_of_weak_types_and_calls_of_different_length():
    objective = Objective()
    lengths = []
    run(
        objective,
        num_steps=57,
        callbacks=[lambda info: lengths.append(info.num_new)],
        callback_every=25,
    )
    assert lengths == [25, 25, 7]
    assert objective.num_traces == [1]


@pytest.mark.slow
def test_history_is_a_numpy_array_in_nats_with_the_objectives_sign():
    up, down = run(), run(Objective(direction="min"))
    assert isinstance(up.history["value"], np.ndarray) and up.history["value"].shape == (5,)
    np.testing.assert_allclose(up.history["value"], -down.history["value"], rtol=1e-6)


def test_no_steps_are_taken_from_given_parameters_only():
    start = {"loc": 0.0, "log_scale": 0.5}
    result = run(params=start, num_steps=0)
    assert result.history["value"].shape == (0,) and result.stop_reason == "num_steps"
    assert result.params["log_scale"] == 0.5
    with pytest.raises(ValueError, match="num_steps=0 takes no step.*params="):
        run(num_steps=0)


@pytest.mark.slow
def test_raw_and_typed_keys_give_the_same_fit():
    assert_tree_equal(run(key=jax.random.PRNGKey(3)).params, run(key=jax.random.key(3)).params)


def test_given_parameters_are_the_start_and_stay_usable():
    start = {"loc": jnp.float32(1.5), "log_scale": -1}
    result = run(params=start, num_steps=0)
    assert isinstance(result.params, Params)
    assert result.params["loc"] == 1.5 and result.params["log_scale"].dtype == jnp.zeros(()).dtype
    run(params=result.params, num_steps=3)
    assert result.params["loc"] == 1.5  # not given away to the compiled loop


def test_optimiser_sees_the_loss():
    tx = optax.chain(optax.sgd(1e-3), optax.contrib.reduce_on_plateau(patience=2))
    assert run(optimizer=tx).steps == 5


def test_static_arguments_stay_python():
    class Static(Objective):
        def step(self, params, state, key, x, size, fn):
            assert isinstance(size, int)
            return super().step(params, state, key, fn(x))

    assert run(Static(), args=(X, 12, jnp.sin)).steps == 5


# Groups


def test_frozen_parameters_stay_equal_to_the_bit_and_the_others_move():
    params = {"loc": 1.0, "log_scale": -0.0}
    result = run(optimizer={"loc": optax.adam(1e-2), "log_*": "frozen"}, params=params)
    assert np.signbit(result.params["log_scale"])  # not even -0.0 became 0.0
    assert result.params["log_scale"] == 0.0 and result.params["loc"] != 1.0


@pytest.mark.slow
def test_groups_have_their_own_optimisers():
    result = run(optimizer={"loc": optax.sgd(1e-3), "log_scale": optax.sgd(0.0)}, num_steps=1)
    both = run(num_steps=1)
    assert result.params["loc"] == both.params["loc"]
    assert result.params["log_scale"] == 0.0 != both.params["log_scale"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"loc": SGD}, r"'log_scale' matches no pattern.*Parameters: \['log_scale', 'loc'\]"),
        ({"*": SGD, "bias*": SGD}, r"pattern 'bias\*' matches no parameter.*Parameters"),
        ({"*": SGD, "loc": SGD}, r"'loc' matches several patterns: \['\*', 'loc'\]"),
        ({"*": "frozen"}, "every parameter is frozen"),
    ],
    ids=["unmatched", "idle", "twice", "all-frozen"],
)
def test_groups_must_match_every_parameter_once(groups, message):
    with pytest.raises(ValueError, match=message):
        run(optimizer=groups)


# Averaging


@pytest.mark.parametrize("average", ["polyak", 0.5], ids=str)
def test_average_is_the_normalised_weighted_mean_of_the_iterates(average):
    iterates = []
    result = run(
        optimizer=optax.adam(0.1),
        average=average,
        callbacks=[lambda info: iterates.append(float(info.params["loc"]))],
        callback_every=1,
    )
    weights = np.ones(5) if average == "polyak" else 0.5 ** np.arange(4, -1, -1)
    np.testing.assert_allclose(
        result.params["loc"], np.average(iterates, weights=weights), rtol=1e-5
    )
    np.testing.assert_allclose(result.last_params["loc"], iterates[-1])


def test_average_keeps_frozen_parameters():
    result = run(
        optimizer={"loc": SGD, "log_scale": "frozen"},
        average=0.9,
        params={"loc": 1.0, "log_scale": 0.25},
    )
    assert result.params["log_scale"] == 0.25


# Seeds


@pytest.mark.slow
def test_each_seed_equals_a_single_run_with_its_key():
    objective = Objective()
    result = run(objective, optax.adam(1e-2), num_seeds=3, subsample={"rows": 4}, num_steps=9)
    assert objective.num_traces == [1]
    assert result.params["loc"].shape == (3,) and result.history["value"].shape == (9, 3)
    for number, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        single = run(optimizer=optax.adam(1e-2), key=key, subsample={"rows": 4}, num_steps=9)
        mine = result.seed(number)
        assert_tree_close(mine.params, single.params)
        assert_tree_close(mine.state, single.state)
        np.testing.assert_allclose(mine.history["value"], single.history["value"], rtol=1e-5)


@pytest.mark.parametrize("direction", ["max", "min"])
def test_best_picks_the_seed_with_the_best_final_mean(direction):
    start = {"loc": np.array([9.0, 1.5, -5.0], np.float32), "log_scale": np.float32(-1)}
    result = run(
        Objective(noisy=False, direction=direction), optax.sgd(1e-6), params=start, num_seeds=3
    )
    best = result.best(window=2)
    np.testing.assert_allclose(best.params["loc"], 1.5, atol=1e-3)
    assert best.num_seeds is None and best.guide.params is best.params
    assert best.best() is best


@pytest.mark.slow
def test_a_fit_with_seeds_has_no_single_guide():
    result = run(num_seeds=2)
    with pytest.raises(ValueError, match="2 runs, so there is no single guide.*fit.best"):
        result.guide  # noqa: B018
    with pytest.raises(IndexError, match="Seed 2 is out of range"):
        result.seed(2)
    with pytest.raises(ValueError, match="'window' is 6"):
        result.best(window=6)
    with pytest.raises(ValueError, match="no seed axis"):
        run().seed(0)


# Checks of arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": -1}, ValueError, "'num_steps' must be an integer of at least 0; got -1"),
        ({"num_steps": 1.5}, ValueError, "'num_steps' must be an integer"),
        ({"key": 0}, TypeError, "PRNG key.*jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, r"PRNG key.*shape \(2,\)"),
        ({"optimizer": 1e-3}, TypeError, "'optimizer' must be an optax transformation.*0.001"),
        (
            {"optimizer": numpyro.optim.Adam(1e-3)},
            TypeError,
            "optax transformation.*of numpyro.optim",
        ),
        ({"optimizer": {"*": "frosen"}}, TypeError, "'optimizer' must be.*'frosen'"),
        ({"optimizer": {}}, TypeError, "'optimizer' is an empty dict"),
        (
            {"objective": Objective().value},
            TypeError,
            "'objective' must be an objective.*elbo.*AbstractObjective",
        ),
        ({"args": X}, TypeError, r"'args' must hold.*\(x,\).*ndarray"),
        ({"args": [X, X]}, TypeError, "batch 0 is a ndarray.*must be a tuple"),
        ({"callbacks": print}, TypeError, "'callbacks' must be a sequence of callables"),
        ({"mesh": 2}, TypeError, "'mesh' must be a jax.sharding.Mesh"),
        (
            {"average": "ema"},
            TypeError,
            "'average' must be None, 'polyak', 'stationary' or a decay",
        ),
        ({"average": 1.0}, ValueError, "'average' is 1.0.*between 0 and 1"),
        ({"num_seeds": 0}, ValueError, "'num_seeds' must be an integer of at least 1"),
        ({"checkpoint_every": 0}, ValueError, "'checkpoint_every' must be"),
        ({"on_nonfinite": "ignore"}, ValueError, "'on_nonfinite' must be 'raise' or 'skip'"),
        ({"params": {"loc": 1.0}}, ValueError, r"missing \['log_scale'\], unknown \[\]"),
        (
            {"params": {"loc": np.ones(2), "log_scale": 0.0}},
            ValueError,
            r"'loc' has \['float..\[2\]'\], but the objective needs \['float..\[\]'\]",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match="(?s)" + message):
        run(**options)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ValueError, match="(?s)'callback_every'.*'num_seeds'.*'num_steps'"):
        run(num_steps=-1, num_seeds=0, callback_every=0)


@pytest.mark.parametrize("what", ["structure", "shapes or dtypes"])
def test_a_state_that_changes_is_refused(what):
    class Changing(Objective):
        def step(self, *args):
            value, grads, state = super().step(*args)
            return (
                value,
                grads,
                {"structure": {}, "shapes or dtypes": state | {"total": jnp.ones(2)}}[what],
            )

    with pytest.raises(TypeError, match=f"changed the {what} of 'state'"):
        run(Changing())


def test_an_objective_without_parameters_is_refused():
    class Empty(Objective):
        def init(self, key, *args):
            return Params()

    with pytest.raises(ValueError, match="no parameters"):
        run(Empty())


def test_progress_bar_shows_the_value_and_silence_is_silent(capsys):
    run(progress=True)
    shown = capsys.readouterr().err
    assert "5 of 5" in shown and "value=" in shown
    run(progress=False)
    assert capsys.readouterr() == ("", "")
