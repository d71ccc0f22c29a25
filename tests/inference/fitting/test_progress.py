"""Progress without a terminal: lines now and then, and at the end."""

import sys

import jax
import numpy as np
import optax
from _fit_fakes import Objective

from lapilli import inference
from lapilli.inference.fitting.training._progress import Lines, progress_bar


def test_a_log_gets_a_line_every_half_minute(capsys):
    now = [0.0]
    with Lines(1000, 100, clock=lambda: now[0]) as lines:
        for _ in range(9):
            now[0] += 10.0
            lines.set_postfix_str("value=-3.5")
            lines.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "fit: 400 of 1000 steps, 30 s, 10 steps/s, value=-3.5",
        "fit: 700 of 1000 steps, 60 s, 10 steps/s, value=-3.5",
        "fit: 1000 of 1000 steps, 90 s, 10 steps/s, value=-3.5",
    ]


def test_a_run_in_a_log_writes_no_carriage_returns(capsys):
    inference.fit(
        Objective(), optax.adam(0.1), (np.ones(4, np.float32),), num_steps=20, key=jax.random.key(0)
    )
    said = capsys.readouterr().err
    assert said.startswith("fit: 20 of 20 steps") and "\r" not in said and said.count("\n") == 1


def test_a_terminal_gets_a_bar_and_silence_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(10, 0, is_shown=True) as bar:
        bar.update(10)
    assert "\r" in capsys.readouterr().err
    with progress_bar(10, 0, is_shown=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
