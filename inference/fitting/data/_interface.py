"""What the training loop asks of a source of arguments."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ..._arguments import Arguments

UNBOUNDED = int(np.iinfo(np.int32).max)


class Source(abc.ABC):
    """Arguments for each step.

    `load`, on the host, gives the arrays for the next device call and the number of steps they last. `segment`, `batch` and
    `weight` are traced.

    Attributes:
        split: arrays and other leaves of the arguments.
        shapes: of the arrays, for descriptions.
        steps_per_call: the most steps that one device call takes.
        given: the first batch, its data as they were handed over; None where there are no batches.
    """

    split: Arguments
    shapes: list[str]
    given: tuple | None = None
    check_indices: Callable[[int, tuple], None] = staticmethod(lambda number, args: None)
    steps_per_call: int = UNBOUNDED

    @abc.abstractmethod
    def load(self, num_steps: int) -> tuple[PyTree, int]:
        """Arrays for at most `num_steps` steps, and for how many; 0 where there are none."""

    @abc.abstractmethod
    def batch(self, data: object, order: object, index: ArrayLike, step: ArrayLike) -> tuple:
        """The arguments of the `index`-th step of a device call, which is step number `step` of the run."""

    @abc.abstractmethod
    def first(self) -> tuple:
        """Arguments for initialisation and for checks."""

    def segment(self, key: jax.Array, step: ArrayLike) -> tuple[PyTree, PyTree]:
        """A pytree `order` and the number of steps, counted from `step`, for which it is valid."""
        return (), jnp.int32(UNBOUNDED)

    def weight(self, data: list[Array]) -> float:
        """What a step with these arrays counts, in steps."""
        return 1.0

    def get_state(self, num_steps: int) -> PyTree:
        """The `LoaderState` from which step number `num_steps` can be reached; None if only from the start."""
        return None

    def signature(self) -> tuple[int, ...]:
        """Of what `load` gave last, numbers that are the same in all processes of a run."""
        return ()

    def set_index_check(self, check: Callable[[int, tuple], None]) -> None:
        """What is to be called with the number and the arguments of a batch whose integers are beyond those of earlier ones."""
        self.check_indices = check

    @abc.abstractmethod
    def resume(self, state: PyTree, num_steps: int) -> None:
        """Go on with step number `num_steps`, from a `LoaderState` if there is one."""

    def reading(
        self, num_steps: int | None, gives_up: Callable[[], bool]
    ) -> contextlib.AbstractContextManager:
        """Inside, `load` may be called: for steps up to number `num_steps`, and until `gives_up()`."""
        return contextlib.nullcontext()

    def waiting(self) -> contextlib.AbstractContextManager:
        """Inside, the caller waits for the device."""
        return contextlib.nullcontext()
