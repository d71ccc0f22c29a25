"""Jobs that run two at a time give what they give alone; what nobody asks for is given up, and Ctrl-C loses no result."""

import contextlib
import os
import signal
import threading
import time

import jax
import pytest
from numpyro import handlers

from lapilli.inference.simulators import _side_by_side
from lapilli.inference.simulators._side_by_side import in_turn


@pytest.fixture(autouse=True, params=[True, False], ids=["two cores", "one core"])
def is_beside(request, monkeypatch):
    monkeypatch.setattr(_side_by_side, "_has_two_cores", lambda: request.param)
    return request.param


def jobs(ran, num=4):
    """Each writes down its number and its thread, and gives its number."""

    def job(number, turn):
        ran.append((number, threading.current_thread() is threading.main_thread()))
        turn.compiled.set()
        return number

    return [lambda turn, number=number: job(number, turn) for number in range(num)]


def test_results_come_in_their_order_and_every_second_job_has_a_thread_of_its_own(is_beside):
    ran = []
    assert list(in_turn(jobs(ran, 5), "name")) == [0, 1, 2, 3, 4]
    # The last one has nobody beside it.
    in_main = [True, not is_beside, True, not is_beside, True]
    assert sorted(ran) == list(enumerate(in_main))


def test_a_job_that_nobody_asks_for_is_told_so(is_beside):
    told, begun = [], threading.Event()

    def first(turn):
        turn.compiled.set()
        assert not is_beside or begun.wait(20)
        return "first"

    def second(turn):
        begun.set()
        told.append(turn.unwanted.wait(20))

    with contextlib.closing(in_turn([first, second], "name")) as results:
        assert next(results) == "first"
    assert told == [True] * is_beside


def test_a_job_begins_once_the_one_before_it_has_compiled(is_beside):
    ran = []

    def first(turn):
        time.sleep(0.2)
        ran.append("compiled")
        turn.compiled.set()

    list(in_turn([first, lambda turn: ran.append("second")], "name"))
    assert ran == ["compiled", "second"]
    # One that never says so is waited for to its end.
    assert list(in_turn([lambda turn: 1, lambda turn: 2], "name")) == [1, 2]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_job_fails_where_it_is_asked_for(failing):
    ran = []
    four = jobs(ran)

    def fails(turn):
        raise ZeroDivisionError("of the job")

    four[failing] = fails
    results = in_turn(four, "name")
    for number in range(failing):
        assert next(results) == number
    with pytest.raises(ZeroDivisionError, match="of the job"):
        next(results)
    assert [number for number, _ in ran] == list(range(failing))


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.default_matmul_precision("float32"),
        lambda: jax.default_device(jax.devices()[0]),
        lambda: handlers.seed(rng_seed=0),
    ],
    ids=["x64", "matmul", "device", "handler"],
)
def test_settings_of_the_calling_thread_alone_hold_for_all_jobs(setting):
    ran = []
    with setting():
        assert list(in_turn(jobs(ran), "name")) == [0, 1, 2, 3]
    assert all(is_main for _, is_main in ran)


@pytest.fixture
def hears_ctrl_c():
    """A worker of pytest-xdist does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("is_beside", [True], indirect=True)
def test_ctrl_c_while_a_result_is_waited_for_ends_the_results_with_a_warning():
    told = []

    def second(turn):
        time.sleep(0.3)  # the main thread waits by then
        os.kill(os.getpid(), signal.SIGINT)
        told.append(turn.unwanted.wait(20))

    results = in_turn([lambda turn: 1, second, lambda turn: 3], "learn")
    assert next(results) == 1
    with pytest.warns(UserWarning, match="learn: Ctrl-C before the next training had ended"):
        assert list(results) == []
    assert told == [True]
