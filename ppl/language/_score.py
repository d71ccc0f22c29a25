"""Drawing from a program inside of an expectation, and scoring another one at the choices.

Densities are ratios only if both count the same things: that is what is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from .._compat import is_concrete
from .._types import Args
from ..traces import (
    Inclusion,
    Trace,
    check_match,
    check_reach,
    check_supports,
    running_engine,
    with_penalties,
)
from ._choices import ChoiceMismatch, arrays
from ._program import Program, as_program

Array = jax.Array


def detached(program: Program | Callable[..., PyTree]) -> Program:
    """The program at its present parameters, which count as constants: no gradient passes through its draws and densities.

    `q = ppl.draw(ppl.detached(guide), *args)` is a draw, held fixed; `ppl.score(guide, q, *args)` is the guide's density there,
    with its gradient in the parameters. `jax.lax.stop_gradient` of a number that was computed from a draw cuts this number only:
    what else the draw enters still moves with the parameters.

    Args:
        program: a program, or a function of sample statements; inside an objective, one that it is given.
    """
    program = as_program(program)
    return (
        program.bind(jax.tree.map(jax.lax.stop_gradient, program.params))
        if program.params
        else program
    )


def draw(program: Program | Callable[..., PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
    """Run `program` inside `ppl.expectation`; each draw gets its gradient strategy.

    Args:
        program: a program, or a function of sample statements.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        The trace: choices, log_probs, log_density, retval.

    Raises:
        RuntimeError: called outside an expectation or objective.
    """
    if running_engine() is None:
        raise RuntimeError(
            "ppl.draw has no randomness of its own: call it inside ppl.expectation or an objective. "
            "Elsewhere use program.simulate(key, *args)."
        )
    return as_program(program)._draw(*args, **kwargs)


def score(
    program: Program | Callable[..., PyTree],
    trace: Trace | Mapping[str, PyTree],
    *args: PyTree,
    **kwargs: PyTree,
) -> Trace:
    """The trace of `program` at the choices of another program's trace (a guide's), without its auxiliary sites.

    `trace` may also be a dict of choices, of which nothing but their values is then checked.

    Args:
        program: a program, or a function of sample statements.
        trace: of the guide, by `ppl.draw`; or site name -> value.
        *args: the program's arguments.
        **kwargs: its keyword arguments.

    Raises:
        ValueError: the guide misses a latent site of the program, proposes one that the program does not
            have, proposes missing cells with a density in the seen ones too, has auxiliary sites whose marginal is not
            known, observed sites or factors, scales or subsamples a site in another way than the program, or certainly draws
            outside of a site's support.
    """
    return score_at(program, trace, args, kwargs)


def score_at(
    program: Program | Callable[..., PyTree],
    trace: Trace | Mapping[str, PyTree],
    args: Args,
    kwargs: Mapping[str, PyTree] | None = None,
    supports: Collection[Inclusion] = ("inside",),
) -> Trace:
    """`score`, for a weight that needs these inclusions of the supports (`traces/_match.py`)."""
    kwargs = dict(kwargs or {})
    if not isinstance(trace, Trace):
        return as_program(program)._score(arrays(trace), *args, **kwargs)
    # A guide written at the model's statements has run the model already: only supports are left to compare.
    if trace.scored is not None and trace.scored.is_run_of(program, args, kwargs):
        model = trace.scored.trace
        check_supports(model.sites, trace.sites, list(trace.choices), supports)
        return with_penalties(model, check_reach(model, trace, list(trace.choices), supports))
    choices = trace.shared_choices
    # With auxiliary u the weight needs q(z), of which log q(z, u) is no part unless z is a function of u.
    random = [name for name in choices if trace.sites[name].distribution != "Delta"]
    if trace.auxiliary and random:
        raise ValueError(
            f"The guide has auxiliary sites {sorted(trace.auxiliary)} beside random sites {random}, so "
            "its density of the model's sites is a marginal that log q(z, u) does not give, and the "
            "bound would not be one. Estimate the marginal with ppl.marginal(guide, keep=[...]), make the "
            "model's sites deterministic (Delta) given the auxiliary ones, or drop the auxiliary sites."
        )
    try:
        # A name that one side lacks is told as what the guide misses and what it has too much.
        scored = as_program(program)._score(choices, *args, **kwargs)
        return matched(scored, trace, supports)
    except ChoiceMismatch as err:
        parts = []
        if err.missing:
            parts.append(f"it {misses(err.missing)}")
        if err.extra:
            parts.append(
                f"it proposes {err.extra}, which are not latent in the model; remove them, or mark them "
                "as auxiliary with "
                "infer={'is_auxiliary': True}"
            )
        raise ValueError(f"The guide does not match {program!r}: {'; '.join(parts)}.") from err


def misses(names: Collection[str]) -> str:
    """A message on latent sites that a guide does not draw: what happened and what to do."""
    return (
        f"misses the latent site(s) {list(names)}; if they are data, pass them (a statement whose obs is None is latent), else "
        "propose them in the guide, or condition the model on them"
    )


def matched(model: Trace, guide: Trace, supports: Collection[Inclusion]) -> Trace:
    """The model's trace after `check_match` and `check_proposed_cells`, whose numbers it holds in the log-probs concerned."""
    penalties = check_match(model, guide, supports)
    penalty = check_proposed_cells(model, guide)
    if not is_concrete(penalty):
        penalties |= {n: penalties.get(n, 0.0) + penalty for n in guide.cells}
    return with_penalties(model, penalties)


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


def _same_cells(one: Array | np.ndarray, other: Array | np.ndarray) -> ArrayLike:
    """Whether two masks, each over the leading axes of a value, say the same."""
    ndim = max(one.ndim, other.ndim)
    one, other = (x.reshape(x.shape + (1,) * (ndim - x.ndim)) for x in (one, other))
    try:
        jnp.broadcast_shapes(one.shape, other.shape)
    except ValueError:
        return np.asarray(False)
    return (one == other).all()
