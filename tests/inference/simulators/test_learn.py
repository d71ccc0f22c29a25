"""Training on rows: weights of networks decay by the rate, nothing else does, and only where the validation rows gain by it."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapilli.inference.simulators import _learn, _side_by_side

KEY = jax.random.key(0)


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_weights_of_networks_decay_by_the_rate_and_nothing_else_does(decay):
    """Without a gradient a weight is multiplied by 1 - decay * rate at each step; biases and arrays of no network stay."""
    net = eqx.nn.MLP(2, 1, 3, 1, key=KEY)
    params = {"net": eqx.filter(net, eqx.is_array), "scale": jnp.ones(2)}
    num_steps = 5
    optimizer = _learn._optimizer(num_steps, decay)
    state, now = optimizer.init(params), params

    @jax.jit
    def step(state, now):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, now), state, now)
        return state, optax.apply_updates(now, updates)

    for _ in range(num_steps):
        state, now = step(state, now)
    rates = optax.cosine_decay_schedule(_learn._RATE, num_steps)
    factor = np.prod([1 - decay * float(rates(i)) for i in range(num_steps)])
    assert np.array_equal(now["scale"], params["scale"])
    for layer, first in zip(now["net"].layers, params["net"].layers, strict=True):
        np.testing.assert_allclose(layer.weight, factor * np.asarray(first.weight), rtol=1e-6)
        assert np.array_equal(layer.bias, first.bias)


def rows(seed, num, noise):
    """A straight line of five inputs with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 5)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] + noise * rng.normal(size=num)).astype(np.float32)}


def learned(num, noise):
    def loss(params, key, rows):
        guess = jax.vmap(eqx.combine(params["net"], static))(rows["x"])
        return (guess - rows["y"]) ** 2

    net = eqx.nn.MLP(5, "scalar", 16, 1, jax.nn.silu, key=KEY)
    arrays, static = eqx.partition(net, eqx.is_array)
    problem = _learn.RowProblem(
        "learn", lambda key: {"net": arrays}, loss, rows(0, num, noise), rows(1, 400, noise)
    )
    return _learn.learn(problem, KEY, num_steps=400, progress=False)


def test_rows_that_are_learned_by_heart_make_weights_decay_for_as_long_as_validation_rows_gain(
    monkeypatch,
):
    few = learned(60, 1.0)
    assert few.decay > 0 and f"decay at {few.decay:g} times the rate" in str(few)
    monkeypatch.setattr(_learn, "_DECAYS", (0.0,))
    plain = learned(60, 1.0)
    least = lambda found: min(loss for _, loss in found.validation)
    assert plain.decay == 0 and plain.kept < 0.75 * 400
    assert least(few) < least(plain)


def test_rows_that_suffice_are_learned_without_decay():
    found = learned(4_000, 0.1)
    assert found.decay == 0 and found.kept > 0.75 * 400 and "decay" not in str(found)


def test_parameters_are_also_looked_at_in_their_mean(monkeypatch):
    """At a rate that never falls the mean of the last looks is nearer to the answer than each, and is what is kept."""
    optimizer = lambda num_steps, decay: optax.adam(3e-2)
    monkeypatch.setattr(_learn, "_optimizer", optimizer)
    found = learned(2_000, 3.0)
    losses = [loss for _, loss in found.validation]
    # After the start and the first look, which is no mean.
    of_params, of_means = losses[2::2], losses[3::2]
    assert len(of_params) == len(of_means) > 10
    assert np.mean(of_means) < np.mean(of_params) and min(losses) == min(of_means)
    values = jax.tree.leaves(found.params)
    assert all(np.isfinite(x).all() for x in values)


def test_trainings_beside_each_other_are_those_alone(monkeypatch):
    """To the bit; and of rows that suffice the training of another decay is given up."""
    threads, train = [], _learn.fit

    def fit(*args, **options):
        run = train(*args, **options)
        threads.append((threading.current_thread() is threading.main_thread(), run.steps))
        return run

    monkeypatch.setattr(_learn, "fit", fit)
    monkeypatch.setattr(_side_by_side, "_has_two_cores", lambda: True)
    few = learned(60, 1.0)
    assert few.decay > 0 and {is_main for is_main, _ in threads} == {True, False}
    del threads[:]
    assert learned(4_000, 0.1).decay == 0
    (beside,) = [steps for is_main, steps in threads if not is_main]
    assert beside <= 400
    monkeypatch.setattr(_side_by_side, "_has_two_cores", lambda: False)
    alone = learned(60, 1.0)
    assert few.decay == alone.decay and few.validation == alone.validation
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, few.params, alone.params)))


def test_after_ctrl_c_no_other_decay_is_tried(monkeypatch):
    runs, train = [], _learn.fit
    monkeypatch.setattr(_side_by_side, "_has_two_cores", lambda: False)

    def fit(*args, callbacks, **options):
        """Ctrl-C after some looks."""

        def looked(info):
            if info.step >= 200:
                raise KeyboardInterrupt
            return callbacks[0](info)

        runs.append(train(*args, callbacks=[looked], **options))
        return runs[-1]

    monkeypatch.setattr(_learn, "fit", fit)
    with pytest.warns(UserWarning, match="Ctrl-C after step 200"):
        found = learned(60, 1.0)
    assert len(runs) == 1 and found.fit.interrupted and found.decay == 0
