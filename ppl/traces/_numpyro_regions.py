"""Loops and branches where no recorder of ours is at work: NumPyro's, or JAX's where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpyro
from jax import lax
from jaxtyping import Array, PyTree

from .._compat import handler_stack, numpyro_cond, numpyro_scan
from ._in_step import first_step


def scan_of_numpyro(
    step: Callable[..., PyTree],
    init: Array | float | tuple[list[Array], PyTree],
    xs: PyTree,
    length: int,
) -> tuple[PyTree, PyTree]:
    """`scan` where no recorder is on the stack."""
    if not handler_stack():
        return lax.scan(step, init, xs, length)
    step = _with_params_outside(step, init, first_step(xs))
    return numpyro_scan(step, init, xs, length)


def cond_of_numpyro(
    pred: object, true_fn: Callable[..., PyTree], false_fn: Callable[..., PyTree], operands: PyTree
) -> Any:
    """`cond` where no recorder is on the stack.

    Raises:
        ValueError: the branches have unlike sites, which NumPyro does not take.
    """
    if not handler_stack():
        return lax.cond(pred, true_fn, false_fn, *operands)
    true_fn, false_fn = (_with_params_outside(fn, *operands) for fn in (true_fn, false_fn))
    try:
        return numpyro_cond(pred, lambda x: true_fn(*x), lambda x: false_fn(*x), operands)
    except TypeError as err:
        raise ValueError(
            "ppl.cond under NumPyro's own inference needs the same sites, of the same distributions, in both "
            "branches. Sample them in both, or use our inference, which takes different ones."
        ) from err


def _with_params_outside(body: Callable[..., PyTree], *example: PyTree) -> Callable[..., PyTree]:
    """`body` with its parameters declared around it: NumPyro does not see them inside its control flow."""
    with (
        numpyro.handlers.block(),
        numpyro.handlers.trace() as sites,
        numpyro.handlers.seed(rng_seed=0),
    ):
        body(*example)
    params: PyTree = {
        name: numpyro.param(
            name,
            site["args"][0] if site["args"] else (lambda _, v=site["value"]: v),
            **site["kwargs"],
        )
        for name, site in sites.items()
        if site["type"] == "param"
    }
    if not params:
        return body
    # Substituted, and hidden from NumPyro's trace of the body, which would declare them again.
    substituted = numpyro.handlers.substitute(body, data=params)
    return numpyro.handlers.block(substituted, hide=list(params))
