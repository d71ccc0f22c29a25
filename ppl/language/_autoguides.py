"""NumPyro's autoguides, which learn the sites of their model, and so their parameters, at their first call."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.handlers
from jaxtyping import Array, PyTree
from numpyro.infer.autoguide import AutoGuide

from .._quiet import quiet
from .._types import Key, ModelFn
from ._keywords import parted, told_of_not_finite

# One for all autoguides, since those of an AutoGuideList are guides of their own; held while a model is traced, outside of JAX.
_setting_up = threading.RLock()
_NUM_LOOKS = 10  # draws of the prior, when NumPyro has found no place to start from


def set_up(program: ModelFn, key: Key, args: PyTree) -> None:
    """Let an autoguide meet its model; outside of any transformation, whose tracers it would keep.

    Raises:
        ValueError: there is no place to start from; the message names the site.
    """
    if not isinstance(program.fn, AutoGuide):
        return
    with _setting_up:  # a guide is no longer new before it is ready
        if is_new(program):
            _meet_model(program, key, args)


def _meet_model(program: Any, key: Key, args: PyTree) -> None:
    positional, keywords = parted(args)
    try:
        # There is no place to start where NumPyro warns of values out of the support.
        with (
            numpyro.handlers.block(),
            quiet("Out-of-support"),
            jax.numpy_rank_promotion("allow"),  # NumPyro draws several starts at once
        ):
            # A guide of the library's own need not be run for that.
            meet = getattr(program.fn, "meet", program.fn)
            numpyro.handlers.seed(meet, rng_seed=key)(*positional, **keywords)
    except (RuntimeError, ValueError) as err:  # NumPyro's, which name no site
        reason = why_not_finite(type(program)(program.fn.model), args)
        if reason is None:
            raise
        raise ValueError(f"{type(program.fn).__name__} finds no place to start: {reason}") from err


def why_not_finite(model: Any, args: PyTree) -> str | None:
    """The first site that has no finite log-density where the prior draws, and what is wrong with it."""
    for key in jax.random.split(jax.random.key(0), _NUM_LOOKS):
        try:
            with quiet():  # NumPyro's, of what is said here
                trace = model.simulate(key, *args)
        except ValueError as err:
            return str(err) + told_of_not_finite(args)
        if (found := what_is_not_finite(trace, args)) is not None:
            return found
    return None


def what_is_not_finite(trace: Any, args: PyTree) -> str | None:
    """The first site of a trace that has no finite log-density, and what is wrong with it."""
    for name, log_prob in trace.log_probs.items():
        values = jnp.asarray(trace.observed.get(name, 0.0))
        if bool(jnp.isfinite(log_prob).all()):
            continue
        if bool(jnp.isnan(log_prob).any() or jnp.isnan(values).any()):
            return f"the log-density of site '{name}' is no number." + told_of_not_finite(args)
        remedy = (
            "An observation outside of its law's support, or of probability 0 there, needs another law; a simulator, whose data "
            "are a point mass, needs inference.sleep."
            if name not in trace.choices
            else "A draw of it is outside of its law's support: correct the law's parameters, e.g. the order of its bounds."
        )
        return (
            f"the log-density of site '{name}' is {float(log_prob.min()):g} at a point that was tried"
            f"{_cells(trace.observed.get(name), log_prob, trace.sites[name].distribution)}. {remedy}"
        )
    return None


def _cells(values: Array | None, log_prob: Array, law: str) -> str:
    """How many observations have no density, and the first of them; "" where densities are not one for each."""
    if values is None or jnp.shape(values) != log_prob.shape or not log_prob.ndim:
        return ""
    lost = jnp.argwhere(~jnp.isfinite(log_prob))
    first = values[tuple(lost[0].tolist())]
    return f", where {len(lost)} of {log_prob.size} values have no density under {law}, the first {first:g}"


def check_set_up(program: ModelFn) -> None:
    """Refuse an autoguide that has not met its model.

    Raises:
        ValueError: naming the guide and the remedy.
    """
    if is_new(program):
        name = type(program.fn).__name__
        raise ValueError(
            f"{name}: the autoguide has not met its model: its sites are not known and its parameters have not been made. "
            "Call objective.init(key, *args) (or program.init) once, outside of jit, and pass the parameters that it returns."
        )


def is_new(program: ModelFn) -> bool:
    return isinstance(program.fn, AutoGuide) and program.fn.prototype_trace is None
