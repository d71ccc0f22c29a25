"""What the densities of a program without its discrete sites (`ppl.eliminate`) say of single observations.

Observations that meet sites which are summed out have no log-probs of their own, but those of rows that separate are log-probs
of these rows, log p(y_i | v), given the choices v that are left. Steps of a chain do not separate: there is log p(y_t | y_<t, v),
the density of each step given those before it, which is no likelihood that leaving one out could take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ... import ppl
from ...ppl.densities import Eliminated, Summed, as_arrays
from ...ppl.enumeration import Factor, sum_product
from ...ppl.evaluation import Split

Array = jax.Array


def likelihoods(
    program: ppl.Program, args: tuple, trace: ppl.Trace
) -> tuple[dict[str, Array], dict[str, ppl.SiteInfo]]:
    """Log-probs of observed sites, one for each batch element or row, and descriptions of names that are no sites.

    A sum over discrete sites has the name of its observed site, or of all of them joined by "+"; "y_by_rows" where each row holds
    several elements of y. Observations that are scaled have none.
    """
    scaled = scaled_sites(trace.sites)
    is_one = lambda n: trace.sites[n].kind == "observed" and n not in scaled
    of_kind = {n: lp for n, lp in trace.log_probs.items() if is_one(n)}
    if not isinstance(program, Eliminated):
        return of_kind, {}
    if not program.is_summed(*args):
        return {}, {}
    sums = _sums(program, trace)
    rows = {n: lp for n, lp in sums.items() if lp.ndim}
    inside = [n for n in trace.observed if n not in trace.log_probs]
    if why_no_likelihood(program, args, trace) or len(rows) < len(sums) or {*inside} & {*scaled}:
        return of_kind, {}
    if len(sums) > 1:
        return of_kind | rows, {}
    ((label, log_prob),) = rows.items()
    name, info = "+".join(inside), trace.sites[label]
    if name not in trace.sites:
        return of_kind | {name: log_prob}, {name: info}
    known = trace.sites[name]
    is_short = known.is_masked and log_prob.ndim < len(known.dims)  # cells are told by all axes
    if known.dims[: log_prob.ndim] == info.dims and not is_short:
        return of_kind | {name: log_prob}, {}
    name = "_by_".join([name, *map(str, info.dims)])
    return of_kind | {name: log_prob}, {name: info}


def scaled_sites(sites: Mapping[str, ppl.SiteInfo]) -> dict[str, float | str]:
    """Observed sites whose log-probs are scaled -> the factor, as far as it is a number that is known.

    A row that counts ten times has no log-prob that leave-one-out could take: with the factor its predictive density would be
    wrong, and without it the weights of the draws.
    """
    scales = {n: info.scale for n, info in sites.items() if info.kind == "observed"}
    return {n: "an array" if x is None else x for n, x in scales.items() if x != 1}


def why_no_likelihood(program: ppl.Program, args: tuple, trace: ppl.Trace) -> str | None:
    """Why observations that meet eliminated sites have no log-probs by row, or None if they have or there are none."""
    if not isinstance(program, Eliminated):
        return None
    if not program.is_summed(*args):
        return (
            f"with {list(program.sites)} integrated out, observations have the densities given those before them: "
            "groups={'log_predictive'}"
        )
    sums = _sums(program, trace)
    latent = [n for n in trace.choices if n not in trace.log_probs]
    if latent:
        return f"the sums over {list(program.sites)} hold the densities of {latent}, too"
    masked = [n for n in trace.observed if n not in trace.log_probs and trace.sites[n].is_masked]
    if masked and len(sums) > 1:
        return (
            f"{list(program.sites)} are summed out in {len(sums)} separate sums, and of {masked}, which are under a mask, "
            "nothing tells which sum's rows it leaves out. Pass the program the rows that count alone"
        )
    if any(not lp.ndim for lp in sums.values()):
        return (
            f"given the other choices, observations depend on each other through {list(program.sites)}. For steps of a chain "
            "groups={'log_predictive'} has the density of each given those before it"
        )
    return None


def _sums(program: Eliminated, trace: ppl.Trace) -> dict[str, Array]:
    label = program.label
    return {n: lp for n, lp in trace.log_probs.items() if n == label or n.startswith(f"{label} ")}


def one_step_ahead(
    program: ppl.Program, choices: dict[str, Array], args: tuple
) -> dict[str, Array]:
    """Log p(y_t | y_<t, v) of the observations of a hidden chain, by name: arrays [time, *rows].

    Normal states are integrated out statement by statement, and the trace has these densities.

    With the emissions after step t left out, what is left of the sum is log p(y_<=t | v), since the laws of all later states
    sum to one; differences of neighbours are the densities.

    Raises:
        ValueError: there is no such chain; something else meets its states.
    """
    listing, times, why = None, set(), f"{program!r} sums no sites out"
    if isinstance(program, Eliminated):
        made = program.made(*args)
        if not isinstance(made, Summed):
            trace = program.trace(choices, *args)
            return {n: x for n, x in trace.log_probs.items() if trace.sites[n].kind == "observed"}
        listing = made._listing(as_arrays(choices), args, {})
        times, why = _times(listing, program.trace(choices, *args))
    if listing is None or why:
        raise ValueError(
            "to_arviz: group 'log_predictive' is of observations along one hidden Markov chain that ppl.eliminate takes out, but "
            f"{why}. Leave it out of groups=(...)."
        )
    seen = _seen(listing)
    ((time, length),) = times
    # Scales tell the factors apart; they are all one.
    numbers = {n: float(i) for i, n in enumerate(listing.scales)}
    factors, _ = dataclasses.replace(listing, scales=numbers).factors()
    is_seen = [next(iter(f.scales)) in {numbers[n] for n in seen} for f in factors]
    factors = [dataclasses.replace(f, scales=frozenset({1.0})) for f in factors]

    def until(step: Array) -> Array:
        kept = jnp.arange(length) <= step
        parts = [_along(f, time, kept) if s else f for f, s in zip(factors, is_seen, strict=True)]
        (total,) = sum_product(parts, listing.structure.order, listing.layouts)
        return total.array

    totals = jax.lax.map(until, jnp.arange(length))
    steps = jnp.diff(totals, axis=0, prepend=jnp.zeros_like(totals[:1]))
    return {"+".join(seen): steps}


def _seen(listing: Any) -> list[str]:
    """Observed sites whose log-probs depend on summed ones."""
    return [n for n, r in listing.relations.items() if r and listing.infos[n].kind == "observed"]


def _times(listing: Any, trace: ppl.Trace) -> tuple[set[tuple[str, int]], str]:
    """The time axes of observations along chains, by name and length, and why they are not what is needed."""
    infos, labels = listing.infos, listing.structure.labels
    meets, seen = [n for n, r in listing.relations.items() if r], _seen(listing)
    chains = {layout.time for layout in listing.layouts.values() if layout.is_chain}
    steps = {n: [(a, infos[n].batch_shape[i]) for i, a in enumerate(labels[n])] for n in seen}
    times = {n: [pair for pair in pairs if pair[0] in chains] for n, pairs in steps.items()}
    other = [n for n in meets if n not in seen and n not in listing.index]
    if other:
        return set(), f"{other} meet its states, too"
    if any(infos[n].is_masked or listing.scales[n] != 1 or infos[n].scale != 1 for n in meets):
        return set(), f"some of {meets} are masked or scaled"
    found = {pair for pairs in times.values() for pair in pairs}
    if len(found) != 1 or not all(times.values()):
        return set(), f"the observations {seen} are not one for each step of it"
    if sum(trace.sites[n].kind == "factor" for n in trace.log_probs) != 1:
        return set(), "there are several separate sums"
    return found, ""


def _along(factor: Factor, time: str, kept: Array) -> Factor:
    """The factor where `kept`, and 0 (in logs) at the other steps."""
    array = factor.array
    if isinstance(array, Split):
        whole = array.arrays()
        count = len(whole.first)
        column = lambda x, rows: rows.reshape(-1, *(1,) * (x.ndim - 1))  # time is in front
        first = [jnp.where(kept[s], x, 0.0) for s, x in enumerate(whole.first)]
        rest = jnp.where(column(whole.rest, kept[count:]), whole.rest, 0.0)
        return dataclasses.replace(factor, array=dataclasses.replace(whole, first=first, rest=rest))
    at = len(factor.sites) + factor.axes.index(time)
    mask = kept.reshape([-1 if a == at else 1 for a in range(array.ndim)])
    return dataclasses.replace(factor, array=jnp.where(mask, array, 0.0))
