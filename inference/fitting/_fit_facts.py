"""What is printed of a fit: its last values, why it ended, its arguments by name."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import PyTree

from ...ppl.language import parted

StopReason = Literal["num_steps", "settled", "callback", "interrupt", "data", "error"]
ENDS: dict[StopReason, str] = {
    "num_steps": "all that were asked for",
    "settled": "until the value had settled",
    "callback": "ended by a callback",
    "interrupt": "ended by Ctrl-C",
    "data": "until the data ended",
    "error": "ended by an error",
}
AVERAGED = "params are the running average; the last iterate is last_params"


def last_values(history: np.ndarray) -> str:
    """The value at the last step and the mean over the last tenth; of several seeds the range of these means."""
    values = np.asarray(history, float)
    if not len(values):
        return "none, no step was taken"
    window = max(1, len(values) // 10)
    means = values[-window:].mean(0)
    if means.ndim:
        return f"{means.min():.6g} to {means.max():.6g} nats over seeds, each the mean of the last {window} steps"
    return f"{values[-1]:.6g} nats at the last step; mean of the last {window}: {means:.6g} nats"


def named_args(args: tuple | None) -> tuple | dict[str, PyTree] | None:
    """Arguments by name where some were given by name, those given by position then as "[0]", "[1]", ..."""
    if args is None:
        return None
    positional, keywords = parted(args)
    if not keywords:
        return positional
    return {**{f"[{i}]": x for i, x in enumerate(positional)}, **keywords}
