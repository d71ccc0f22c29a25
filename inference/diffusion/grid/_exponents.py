"""Exponents given as arrays: numbers for models, and tables over the times of the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ....ppl._compat import is_concrete
from .._composition import Exponent

FORMS = (
    "[models], [steps + 1] for one model, [steps + 1, models], or [steps + 1, 1] for all of them"
)


@dataclasses.dataclass(frozen=True, eq=False)
class ExponentTable:
    """An exponent of the noising time, linear between the times of a table.

    Args:
        times: [times], descending.
        values: [times].
    """

    times: Float[Array, " times"]
    values: Float[Array, " times"]

    def __call__(self, t: Array) -> Array:
        """The exponent at one time."""
        return jnp.interp(t, self.times[::-1], self.values[::-1])


def as_exponents(exponents: Any, times: PyTree, num_models: int) -> list[Exponent]:
    """One exponent for each model, a number or a function of the noising time.

    Args:
        exponents: as given to `fkc`.
        times: noising times of the steps, descending.
        num_models: number of models.
    """
    if not isinstance(exponents, Sequence) and (callable(exponents) or np.ndim(exponents) == 0):
        shared: Any = exponents
        return [shared] * num_models
    if isinstance(exponents, Sequence):
        if len(exponents) != num_models:
            raise ValueError(
                f"fkc: {len(exponents)} exponents for {num_models} models. Give one number for all, or one for each."
            )
        columns: list[Any] = [w if callable(w) or np.ndim(w) == 0 else _array(w) for w in exponents]
    else:
        columns = _columns(_array(exponents), len(times), num_models)
    return [_checked(w, times, index) for index, w in enumerate(columns)]


def _array(values: PyTree) -> PyTree:
    """The values as a NumPy array where they are known: entries of JAX's arrays are traced under jit."""
    return np.asarray(values) if is_concrete(values) else values


def _columns(table: np.ndarray, num_times: int, num_models: int) -> list[PyTree]:
    shape = table.shape
    if shape == (num_models,):
        return list(table)
    if shape == (num_times,) and num_models == 1:
        return [table]
    if len(shape) == 2 and shape[0] == num_times and shape[1] in (1, num_models):
        return [table[:, i if shape[1] > 1 else 0] for i in range(num_models)]
    raise ValueError(
        f"fkc: exponents have shape {shape}, for {num_models} models and {num_times} times (steps + 1). Give an array of shape "
        f"{FORMS}."
    )


def _checked(w: Any, times: PyTree, index: int) -> Any:
    """A number, a function, or a table made of an array with a value for each time."""
    if callable(w) or np.ndim(w) == 0:
        return w
    if w.shape != (len(times),):
        raise ValueError(
            f"fkc: the exponent of model {index} has shape {w.shape}, and there are {len(times)} times (steps + 1). Give a value "
            "for each time, one number, or a function of the time."
        )
    if is_concrete(w) and not np.isfinite(np.asarray(w)).all():
        raise ValueError(
            f"fkc: the exponent of model {index} is not finite at {int((~np.isfinite(np.asarray(w))).sum())} times. Give finite "
            "values."
        )
    with jax.ensure_compile_time_eval():
        return ExponentTable(jnp.asarray(times, float), jnp.asarray(w, float))
