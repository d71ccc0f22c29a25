"""Scoring a program at the choices of another one's trace: densities that are ratios only if both count the same cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._compat import is_concrete
from ._program import ChoiceMismatch, Program, _arrays, as_program
from ._trace import Trace

Array = jax.Array


def score(
    program: Program | Callable[..., Any],
    trace: Trace | Mapping[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Trace:
    """The trace of `program` at the choices of another program's trace (a guide's), without its auxiliary sites.

    `trace` may also be a dict of choices.

    Raises:
        ValueError: the guide misses a latent site of the program, proposes one that the program does not
            have, proposes missing cells with a density in the seen ones too, or has auxiliary sites whose marginal is not
            known.
    """
    if not isinstance(trace, Trace):
        return as_program(program)._score(_arrays(trace), *args, **kwargs)
    if trace.scored is not None and trace.scored.is_run_of(program, args, kwargs):
        return trace.scored.trace
    choices = trace.shared_choices
    random = [name for name in choices if trace.sites[name].distribution != "Delta"]
    if trace.auxiliary and random:
        raise ValueError(
            f"The guide has auxiliary sites {sorted(trace.auxiliary)} beside random sites {random}, so "
            "its density of the model's sites is a marginal that log q(z, u) does not give, and the "
            "bound would not be one. Estimate the marginal with ppl.marginal(guide, keep=[...]), make the "
            "model's sites deterministic (Delta) given the auxiliary ones, or drop the auxiliary sites."
        )
    try:
        scored = as_program(program)._score(choices, *args, **kwargs)
        return with_proposed_cells(scored, trace)
    except ChoiceMismatch as err:
        parts = []
        if err.missing:
            parts.append(
                f"it misses the latent site(s) {err.missing}; propose them in the guide, or condition the "
                "model on them"
            )
        if err.extra:
            parts.append(
                f"it proposes {err.extra}, which are not latent in the model; remove them, or mark them "
                "as auxiliary with "
                "infer={'is_auxiliary': True}"
            )
        raise ValueError(f"The guide does not match {program!r}: {'; '.join(parts)}.") from err


def with_proposed_cells(model: Trace, guide: Trace) -> Trace:
    """The model's trace after `check_proposed_cells`, whose number it holds in the log-probs of the proposed cells."""
    penalty = check_proposed_cells(model, guide)
    if is_concrete(penalty):
        return model
    log_probs = {n: x + penalty if n in guide.cells else x for n, x in model.log_probs.items()}
    return dataclasses.replace(model, log_probs=log_probs)


def check_proposed_cells(model: Trace, guide: Trace) -> Array:
    """Refuse a guide's proposal of missing cells whose density counts other cells than the model's: p / q would not be a weight.

    Args:
        model: a run of the model.
        guide: the run of the guide whose choices it scores.

    Returns:
        A number to add to the log-weight: zero, or NaN if masks differ whose values are not known yet (under jit).

    Raises:
        ValueError: the guide does not know the mask, or another one.
    """
    penalty: Any = np.zeros(())
    for name, info in model.sites.items():
        if not info.is_imputed or name not in guide.sites:
            continue
        if not guide.sites[name].is_masked:
            raise ValueError(
                f"Site '{name}': the guide proposes missing cells, but its density counts the seen cells too, which the model's "
                f"does not, so that log p - log q would be no log-weight. Tell the guide the mask: ppl.sample('{name}', q, "
                "obs_mask=mask)."
            )
        if name in model.cells and name in guide.cells:
            is_same = _same_cells(model.cells[name], guide.cells[name])
            if is_concrete(is_same) and not is_same:
                raise ValueError(
                    f"Site '{name}': the guide's obs_mask is not the model's, so that their densities count different cells and "
                    "log p - log q would be no log-weight. Hand both the same mask."
                )
            if not is_concrete(is_same):
                penalty = penalty + jnp.where(is_same, 0.0, jnp.nan)
    return penalty


def _same_cells(one: Any, other: Any) -> Any:
    """Whether two masks, each over the leading axes of a value, say the same."""
    ndim = max(one.ndim, other.ndim)
    one, other = (x.reshape(x.shape + (1,) * (ndim - x.ndim)) for x in (one, other))
    try:
        jnp.broadcast_shapes(one.shape, other.shape)
    except ValueError:
        return np.asarray(False)
    return (one == other).all()
