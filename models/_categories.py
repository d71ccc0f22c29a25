"""Rows of categories 0 to K - 1: what is none of them is refused, or becomes NaN."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..ppl._compat import is_concrete


def value_error(
    label: str, x: ArrayLike, num_values: int, remedy: str = ""
) -> Float[Array, "*batch"]:
    """0 for each row of values; NaN where one that is known by the run only is no integer from 0 to K - 1.

    JAX reads -1 as the last value, and a fraction as the integer below it: a row would count as another one.

    Args:
        label: whose values they are.
        x: values, [*batch, D].
        num_values: K.
        remedy: what else can be done, for known values.

    Raises:
        ValueError: known values that are none.
    """
    xp = np if is_concrete(x) else jnp  # concrete values stay so while a program is traced
    found = xp.asarray(x)
    found = found.astype(int) if found.dtype == bool else found
    is_known = ((found >= 0) & (found < num_values) & (found == xp.round(found))).all(-1)
    if is_concrete(x) and not is_known.all():
        raise ValueError(
            f"{label}: {(~is_known).sum()} of {is_known.size} rows have values that are no integers from 0 to {num_values - 1}. "
            f"Code the values so{remedy}."
        )
    return jnp.where(is_known, 0.0, jnp.nan)
