"""A look at where the time of some steps of a fit goes."""

from __future__ import annotations

import dataclasses
import os

import jax

from ._callbacks import FitInfo


@dataclasses.dataclass
class Profile:
    """Record some steps with JAX's profiler, whose traces TensorBoard, XProf and Perfetto show; each process writes its own.

    A callback: recording begins when it is called first at step `start` or later, and ends at the first call `num_steps` later or
    with the run; `callback_every` is its grain.

    Args:
        path: folder of the traces.
        start: steps before the recording; the first ones compile.
        num_steps: how many to record, at least 1.

    Raises:
        ValueError: `start` or `num_steps` is impossible.

    Example:
        >>> Profile("traces", start=20, num_steps=10)
        Profile(path='traces', start=20, num_steps=10)
    """

    path: str | os.PathLike
    start: int = 100
    num_steps: int = 100
    _begun: int | None = dataclasses.field(default=None, init=False, repr=False)
    _is_done: bool = dataclasses.field(default=False, init=False, repr=False)

    def __post_init__(self):
        if self.start < 0 or self.num_steps < 1:
            raise ValueError(
                f"Profile: start is {self.start} and num_steps {self.num_steps}; give start >= 0 and num_steps >= 1."
            )

    def __call__(self, info: FitInfo) -> None:
        if self._begun is None and not self._is_done and info.step >= self.start:
            jax.profiler.start_trace(self.path)
            self._begun = info.step
        elif self._begun is not None and info.step >= self._begun + self.num_steps:
            self.close()

    def close(self) -> None:
        """End the recording; `fit` calls it when a run ends."""
        if self._begun is not None:
            jax.profiler.stop_trace()
            self._begun, self._is_done = None, True
