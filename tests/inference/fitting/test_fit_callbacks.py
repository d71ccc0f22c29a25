"""fit: callbacks, early stopping, logging, Ctrl-C."""

import os
import signal
import threading

import jax
import numpy as np
import optax
import pytest
from _fit_fakes import Objective

from lapilli.inference.fitting._fit import fit
from lapilli.inference.fitting.training._callbacks import EarlyStopping, FitInfo, LogEvery
from lapilli.inference.fitting.training._keep_best import KeepBest

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)


@pytest.fixture(autouse=True)
def _interruptible():
    """A run started in the background by a shell ignores SIGINT; these tests press Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(**options):
    options = {"num_steps": 30, "key": jax.random.key(0), "progress": False} | options
    return fit(Objective(), optax.sgd(1e-3), (X,), callback_every=10, **options)


def info(values, direction="max", step=None):
    values = np.asarray(values, float)
    step = len(values) if step is None else step
    return FitInfo(step, 10, {}, {}, values, 0, direction, 0.0)


def test_callbacks_see_the_run_at_the_end_of_each_interval():
    seen = []
    result = run(callbacks=[seen.append], num_steps=25)
    assert [record.step for record in seen] == [10, 20, 25]
    assert [len(record.values) for record in seen] == [10, 20, 25]
    assert seen[0].params["loc"] != seen[-1].params["loc"] == result.params["loc"]
    assert seen[-1].state["count"] == 25 and seen[-1].direction == "max"
    np.testing.assert_array_equal(seen[-1].values, result.history["value"])
    with pytest.raises(ValueError, match="read-only"):
        seen[0].values[0] = 0


@pytest.mark.parametrize("answer", [True, "stop"], ids=str)
def test_a_callback_can_stop_the_run(answer):
    result = run(callbacks=[lambda record: record.step >= 20 and answer])
    assert result.steps == 20 and result.stop_reason == "callback" and not result.interrupted


def test_an_answer_that_means_nothing_is_refused():
    with pytest.raises(TypeError, match="returned 'halt' at step 10.*True or 'stop'"):
        run(callbacks=[lambda record: "halt"])


def test_early_stopping_ends_a_flat_run():
    # Stepping towards the optimum first, then nowhere.
    tx = optax.sgd(lambda count: jax.numpy.where(count < 20, 0.02, 0.0))
    stop = EarlyStopping(patience=30, window=10, min_delta=10.0)
    result = fit(
        Objective(noisy=False),
        tx,
        (X,),
        num_steps=1000,
        key=jax.random.key(1),
        callbacks=[stop],
        callback_every=10,
        progress=False,
    )
    assert 40 <= result.steps <= 60


@pytest.mark.parametrize(
    ("values", "direction", "stops"),
    [
        ([0, 1, 2, 3, 4, 5], "max", False),
        ([0, 1, 2, 3, 4, 5], "min", True),
        ([0, 5, 5, 5, 5, 5], "max", True),
        ([0, 5, 5, 5], "max", False),
        ([0, 5, np.nan, 5, np.inf, 5], "max", True),
        ([], "max", False),
        ([[0, 0], [1, 5], [2, 5], [3, 5], [4, 5]], "max", False),
    ],
    ids=["rising", "falling", "flat", "patient", "skipped", "empty", "one-seed-rises"],
)
def test_early_stopping_counts_windows_without_improvement(values, direction, stops):
    stop = EarlyStopping(patience=3, window=1, min_delta=0.5)
    assert stop(info(values, direction)) is stops


def test_early_stopping_checks_its_arguments():
    with pytest.raises(ValueError, match="patience >= 1"):
        EarlyStopping(patience=0)


def test_log_every_prints_when_it_has_crossed_its_interval():
    lines = []
    log = LogEvery(20, lines.append)
    for step in (10, 20, 30, 40):
        log(info(np.ones(step)))
    assert lines == ["step 20: value 1 nats (0.0 s)", "step 40: value 1 nats (0.0 s)"]
    with pytest.raises(ValueError, match="num_steps >= 1"):
        LogEvery(0)


def test_ctrl_c_returns_what_there_is():
    press = lambda record: os.kill(os.getpid(), signal.SIGINT) if record.step == 20 else None
    with pytest.warns(UserWarning, match="Ctrl-C after step 20.*fit.interrupted.*checkpoint=PATH"):
        result = run(callbacks=[press])
    assert result.interrupted and result.stop_reason == "interrupt"
    assert result.steps == 20 and len(result.history["value"]) == 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_between_device_calls_is_prompt():
    press = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    press.start()
    with pytest.warns(UserWarning, match="Ctrl-C after step"):
        result = fit(
            Objective(),
            optax.sgd(1e-6),
            (X,),
            num_steps=3_000_000,
            key=jax.random.key(0),
            progress=False,
        )
    assert result.interrupted and 0 < result.steps < 3_000_000


def test_a_second_ctrl_c_ends_the_program():
    def press(record):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[press])


def test_an_interrupt_raised_by_a_callback_returns_what_there_is(tmp_path):
    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="goes on at this step from '.*run.npz'"):
        assert run(callbacks=[interrupt], checkpoint=tmp_path / "run.npz").interrupted


def test_the_parameters_with_the_least_validation_loss_are_kept():
    """The loss falls until `loc` passes that of step 20: what is kept is what a run of 20 steps ends with."""
    known = run(num_steps=20).params["loc"]
    best = KeepBest(lambda params, key: (params["loc"] - known) ** 2, jax.random.key(0))
    result = run(callbacks=[best], num_steps=40)
    assert [step for step, _ in best.losses] == [10, 20, 30, 40]
    np.testing.assert_allclose(best.params["loc"], known, rtol=1e-6)
    assert result.params["loc"] != best.params["loc"]


@pytest.mark.parametrize(
    "losses", [[np.nan, 3.0, 1.0, np.nan, 2.0], [3.0, np.nan, 1.0, 1.0, np.inf]]
)
def test_looks_without_a_number_are_passed_over(losses):
    best = KeepBest(lambda params, key: losses[params["step"]], None)
    for step in range(5):
        best(FitInfo(step, 1, {"step": step}, {}, np.zeros(step), 0, "max", 0.0))
    assert best.params["step"] == 2


def test_a_validation_loss_that_is_no_number_is_refused():
    record = FitInfo(10, 10, {}, {}, np.zeros(10), 0, "max", 0.0)
    with pytest.raises(ValueError, match=r"the loss has shape \(2,\) at step 10, .* Return one"):
        KeepBest(lambda params, key: np.zeros(2), None)(record)
    best = KeepBest(lambda params, key: np.nan, None)
    best(record)
    with pytest.raises(ValueError, match="none of 1 looks had a loss that is a number"):
        best.params  # noqa: B018


@pytest.mark.parametrize(
    ("losses", "last"),
    [([3.0, 1.0, 2.0, 0.5, 0.6, 0.5, 0.7, 0.1], 50), ([np.nan] * 8, 20), ([8 - i for i in range(8)], 70)],
    ids=["least, then none less", "never a number", "always less"],
)  # fmt: skip
def test_a_run_ends_when_no_look_is_better_for_as_long_as_patience(losses, last):
    best = KeepBest(lambda params, key: losses[params["step"] // 10], None, patience=20)
    for step in range(0, 80, 10):
        if best(FitInfo(step, 10, {"step": step}, {}, np.zeros(step), 0, "max", 0.0)):
            break
    assert step == last


def test_patience_ends_the_fit_itself():
    best = KeepBest(lambda params, key: 1.0, None, patience=20)
    result = run(callbacks=[best], num_steps=60)
    assert result.steps == 30 and result.stop_reason == "callback"
    with pytest.raises(ValueError, match="KeepBest: patience must be an integer >= 1"):
        KeepBest(lambda params, key: 1.0, None, patience=0)
