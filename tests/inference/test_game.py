"""Games: steps of two players against the linear maps that they are, and against loops by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

A, B, C = 0.7, 1.3, 0.4  # lower: A x^2 / 2 + B x y in x; upper: B x y - C y^2 / 2 in y
START = np.array([1.0, -0.5])


@inference.objective(direction="min")
def lower(model, guide):
    x, y = ppl.param("x", 1.0), ppl.param("y", -0.5)
    return A * x**2 / 2 + B * x * y


@inference.objective(direction="max")
def upper(model, guide):
    x, y = ppl.param("x", 1.0), ppl.param("y", -0.5)
    return B * x * y - C * y**2 / 2


def nothing():
    pass


def quadratic(**options):
    players = {"lower": lower(nothing), "upper": upper(nothing)}
    return inference.game(players, **{"params": {"lower": "x"}, **options})


def fitted(game, optimizer, num_steps, **options):
    return inference.fit(
        game, optimizer, num_steps=num_steps, key=jax.random.key(0), progress=False, **options
    )


def moved(rates, num_steps, order, steps):
    """The game's own linear map, step by step."""
    x_step = np.array([[1 - rates[0] * A, -rates[0] * B], [0, 1]])
    y_step = np.array([[1, 0], [rates[1] * B, 1 - rates[1] * C]])
    if order == "simultaneous":
        return np.linalg.matrix_power(x_step + y_step - np.eye(2), num_steps) @ START
    turns = [x_step] * steps[0] + [y_step] * steps[1]
    z = START
    for t in range(num_steps):
        z = turns[t % len(turns)] @ z
    return z


@pytest.mark.parametrize(
    ("order", "steps"),
    [("simultaneous", (1, 1)), ("alternating", (1, 1)), ("alternating", (3, 2))],
)
@pytest.mark.parametrize("num_steps", [1, 47])
def test_gradient_descent_is_the_linear_map_of_the_quadratic_game(order, steps, num_steps):
    game = quadratic(order=order, steps=dict(zip(("lower", "upper"), steps, strict=True)))
    found = fitted(game, {"x": optax.sgd(0.05), "y": optax.sgd(0.2)}, num_steps)
    wanted = moved((0.05, 0.2), num_steps, order, steps)
    np.testing.assert_allclose([found.params["x"], found.params["y"]], wanted, rtol=2e-5)


def test_simultaneous_steps_leave_a_saddle_and_alternating_ones_go_round():
    """In x y the square of the distance grows by 1 + rate^2 a step, or x^2 + y^2 - rate x y stays what it is."""

    def product(model, guide):
        return ppl.param("x", 1.0) * ppl.param("y", 1.0)

    players = {
        "lower": inference.objective(product, direction="min")(nothing),
        "upper": inference.objective(product, direction="max")(nothing),
    }
    ends = {}
    for order in ("simultaneous", "alternating"):
        game = inference.game(players, params={"lower": "x"}, order=order)
        found = fitted(game, optax.sgd(0.1), 600)
        ends[order] = float(found.params["x"]), float(found.params["y"])
    x, y = ends["simultaneous"]
    assert x**2 + y**2 == pytest.approx(2 * 1.01**600, rel=1e-3)
    x, y = ends["alternating"]
    assert x**2 + y**2 - 0.1 * x * y == pytest.approx(1.9, rel=1e-3)


def by_hand(num_steps, rates, turns):
    """Adam with momentum for each player, which counts the player's own steps."""
    players = {"x": optax.adam(rates[0]), "y": optax.adam(rates[1], b1=0.5)}
    values = {"x": jnp.float32(START[0]), "y": jnp.float32(START[1])}
    states = {name: opt.init(values[name]) for name, opt in players.items()}
    for t in range(num_steps):
        name = turns[t % len(turns)]
        x, y = values["x"], values["y"]
        gradient = A * x + B * y if name == "x" else -(B * x - C * y)
        update, states[name] = players[name].update(gradient, states[name])
        values[name] = values[name] + update
    return values


def test_each_player_has_an_optimiser_that_is_held_out_of_turn():
    game = quadratic(steps={"upper": 3})
    found = fitted(game, {"x": optax.adam(0.05), "y": optax.adam(0.02, b1=0.5)}, 50)
    wanted = by_hand(50, (0.05, 0.02), "xyyy")
    for name, value in wanted.items():
        np.testing.assert_allclose(found.params[name], value, rtol=1e-5)
    # One transformation for all is one for each.
    both = fitted(game, optax.adam(0.05), 50)
    alike = {"lower": optax.adam(0.05), "upper": optax.adam(0.05)}
    assert fitted(game, alike, 50).params["y"] == both.params["y"]


def test_default_optimiser_ends_its_cosine_for_each_player():
    game = quadratic(steps={"upper": 3})
    long = fitted(game, None, 4000)
    early = fitted(game, None, 4000, callbacks=[_stop], callback_every=3996)
    last = {name: long.params[name] - early.params[name] for name in "xy"}
    assert all(abs(x) < 1e-5 for x in last.values())
    assert np.hypot(long.params["x"], long.params["y"]) < 0.05


def _stop(info):
    return info.step == 3996


def test_values_by_player_and_the_field():
    game = quadratic(steps={"upper": 2})
    found = fitted(game, optax.sgd(0.1), 8)
    values = game.values(found)
    assert {name: len(x) for name, x in values.items()} == {"lower": 3, "upper": 5}
    x, y = START
    assert values["lower"][0] == pytest.approx(A * x**2 / 2 + B * x * y, rel=1e-5)
    field = game.grad(found.objective.init(jax.random.key(0)), jax.random.key(1))
    assert field["x"] == pytest.approx(A * x + B * y, rel=1e-5)
    assert field["y"] == pytest.approx(-(B * x - C * y), rel=1e-5)


def test_a_run_goes_on_from_its_checkpoint_to_the_bit_and_another_order_does_not(tmp_path):
    file = tmp_path / "game"
    game, optimizer = quadratic(steps={"upper": 3}), optax.adam(0.05)
    whole = fitted(game, optimizer, 50)
    fitted(game, optimizer, 30, checkpoint=file)
    resumed = fitted(game, optimizer, 50, checkpoint=file)
    assert resumed.params["x"] == whole.params["x"] and resumed.params["y"] == whole.params["y"]
    with pytest.raises(ValueError, match="Checkpoint"):
        fitted(quadratic(steps={"upper": 2}), optimizer, 60, checkpoint=file)


def test_seeds_are_single_runs():
    game, optimizer = quadratic(steps={"upper": 3}), optax.adam(0.05)
    both = fitted(game, optimizer, 30, num_seeds=2, params={"x": jnp.array([1.0, 0.2]), "y": jnp.array([-0.5, 0.4])})  # fmt: skip
    np.testing.assert_allclose(both.params["x"][0], fitted(game, optimizer, 30).params["x"], rtol=1e-5)  # fmt: skip
    with pytest.raises(ValueError, match="rank no runs"):
        both.best()


def test_saved_fits_are_read_and_parts_compared(tmp_path):
    game = quadratic()
    found = fitted(game, optax.sgd(0.1), 5)
    found.save(tmp_path / "fit")
    assert inference.Fit.load(tmp_path / "fit", game).params["x"] == found.params["x"]
    swapped = inference.game({"lower": lower(nothing), "upper": lower(nothing)}, params={"lower": "x"})  # fmt: skip
    with pytest.raises(ValueError, match="part 2"):
        inference.Fit.load(tmp_path / "fit", swapped)


def test_minibatches_reach_all_players():
    """Mean and log-scale of rows: two players share one likelihood, and find its maximum."""
    y = np.random.default_rng(0).normal(2.0, 0.5, 400).astype(np.float32)

    def model(y):
        loc, scale = ppl.param("loc", 0.0), ppl.param("scale", 1.0, constraint=dist.constraints.positive)  # fmt: skip
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(loc, scale), obs=y)

    likelihood = inference.elbo(model, lambda y: None)
    game = inference.game({"a": likelihood, "b": likelihood}, params={"a": "loc"})
    found = inference.fit(game, None, (y,), num_steps=1500, subsample={"rows": 40}, progress=False)
    assert found.params["loc"] == pytest.approx(y.mean(), abs=0.1)
    found = inference.fit(game, None, (y,), num_steps=1500, params=found.last_params, progress=False)  # fmt: skip
    assert found.params["loc"] == pytest.approx(y.mean(), abs=1e-3)
    assert np.exp(found.params["scale"]) == pytest.approx(y.std(), rel=1e-3)


def test_a_broken_step_names_the_player_and_the_parameter():
    def broken(model, guide):
        return jnp.sqrt(ppl.param("y", -0.5)) + 0 * ppl.param("x", 1.0)

    players = {"lower": lower(nothing), "upper": inference.objective(broken)(nothing)}
    game = inference.game(players, params={"lower": "x"})
    with pytest.raises(inference.fitting.NonFiniteError, match="step 1") as err:
        fitted(game, optax.sgd(0.1), 5)
    assert err.value.parameters == ("y",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": {"lower": "x", "upper": "x"}}, "'x' belongs to .*'y' belongs to nobody"),
        ({"params": {"lower": ["x", "y"]}}, "player 'upper' has no parameter"),
        ({"params": {"lower": "x", "upper": ["y", "w"]}}, "pattern 'w' of 'upper' matches none"),
        ({"params": {"lower": "x", "middle": "y"}}, r"names \['middle'\]"),
        ({"params": {}}, "have no params"),
        ({"steps": {"lower": 0}}, "integer >= 1"),
        ({"order": "simultaneous", "steps": {"lower": 2}}, "move at once"),
    ],
)
def test_players_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        quadratic(**options).init(jax.random.key(0))


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": None},
        {"num_steps": 5, "average": "stationary"},
        {"num_steps": 5, "callbacks": [inference.fitting.EarlyStopping(5)]},
    ],
)
def test_what_waits_for_a_value_to_settle_is_refused(options):
    with pytest.raises(ValueError, match="has no such value"):
        inference.fit(quadratic(), optax.sgd(0.1), progress=False, **options)


def test_a_game_needs_two_and_values_their_turns():
    with pytest.raises(ValueError, match="at least two"):
        inference.game({"one": lower(nothing)}, params={})
    game = quadratic(order="simultaneous")
    with pytest.raises(ValueError, match="told apart by player"):
        game.values(fitted(game, optax.sgd(0.1), 2))
