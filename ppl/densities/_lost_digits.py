"""Why a density or a moment of integrated sites is not a number, in words, where somebody looks at it first.

What rounding has made a tenth of is NaN (`gaussian/`). Compiled code cannot say more; outside of it the program is run once more
in double precision, by draws of its prior and its posterior, which give the condition number that single precision has met.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import is_concrete
from .._shared_jit import shared_jit
from ..language import Program

Array = jax.Array
_NUM = 400  # draws of prior and posterior
_MOST = 100  # numbers whose directions are looked at; of more each by itself


def has_nan(found: PyTree) -> bool:
    """Whether any number that is known here is NaN."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(found) if is_concrete(x)]
    return any(bool(np.isnan(x).any()) for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact))


def warn_of_nan(
    program: Any,
    what: str,
    found: PyTree,
    choices: Mapping[str, PyTree],
    args: PyTree,
    kwargs: PyTree,
) -> None:
    """Say why numbers are NaN that an elimination has found, if any are."""
    if has_nan(found) and (why := lost_digits(program, choices, args, kwargs)):
        warnings.warn(f"{program.label}: {what} holds NaN.{why}", UserWarning, stacklevel=3)


def lost_digits(
    program: Any, choices: Mapping[str, PyTree], args: PyTree, kwargs: Mapping[str, PyTree]
) -> str:
    """A sentence on the condition number at which single precision has lost the digits of integrated sites; "" of other programs.

    Args:
        program: any program.
        choices: of the sites that are left.
        args: the program's arguments.
        kwargs: its keyword arguments.
    """
    if not hasattr(program, "integrated") or not (names := program.integrated(*args, **kwargs)):
        return ""
    sites = ", ".join(f"'{name}'" for name in names)
    if jax.config.jax_enable_x64:
        return (
            f" Of {sites} rounding has made a tenth of a scale or more, in double precision already, or NaN is in the data. Look "
            "for columns that are one, and take narrower priors."
        )
    try:
        condition = _condition_number(program, names, choices, args, kwargs)
    except Exception:  # the caller has something to say without it
        condition = None
    if condition is None:
        return f" So it is in double precision: look for NaN in the data, or for scales of {sites} that are 0."
    return (
        f" Single precision has no digits left of {sites}, whose condition number (widest prior scale to narrowest posterior "
        f"one) is {condition:.0e}. Use double precision, jax.config.update('jax_enable_x64', True), or narrower priors."
    )


def _condition_number(
    program: Any,
    names: tuple[str, ...],
    choices: Mapping[str, PyTree],
    args: PyTree,
    kwargs: Mapping[str, PyTree],
) -> float | None:
    """By singular values of draws in double precision, in units of prior scales; None where these are not finite, either."""
    with jax.enable_x64(True):
        choices, args, kwargs = jax.tree.map(_wide, (dict(choices), args, dict(kwargs)))

        # Draws of prior and posterior, with one key for both.
        def both(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            whole: Program = program.program
            before = whole.generate(key, choices, *args, **kwargs)[0].choices
            after = program.posterior(key, choices, *args, **kwargs)
            return {n: before[n] for n in names}, {n: after[n] for n in names}

        drawn = shared_jit(jax.vmap(both), is_brief=True)(jax.random.split(jax.random.key(0), _NUM))
        prior, posterior = (
            np.concatenate([np.reshape(x[n], (_NUM, -1)) for n in names], 1) for x in drawn
        )
    if not (np.isfinite(prior).all() and np.isfinite(posterior).all()):
        return None
    # In units of the prior, so that a site measured in thousands does not count as wide.
    unit = prior.std(0)
    prior, posterior = ((x - x.mean(0)) / np.where(unit > 0, unit, 1) for x in (prior, posterior))
    sizes = [x.std(0) for x in (prior, posterior)]
    if prior.shape[1] <= _MOST:
        # Singular values of centred draws over sqrt(N) are the scales along principal axes.
        sizes = [np.linalg.svd(x / _NUM**0.5, compute_uv=False) for x in (prior, posterior)]
    least = sizes[1][sizes[1] > 0]
    return float(sizes[0].max() / least.min()) if least.size else None


def _wide(x: PyTree) -> PyTree:
    return (
        np.asarray(x, np.float64)
        if getattr(x, "dtype", None) in (np.float32, jnp.bfloat16, np.float16)
        else x
    )
