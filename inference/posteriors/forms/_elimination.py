"""What of a program's latent sites is summed or integrated out, exactly, before anything is approximated.

Discrete sites are summed out, since nothing else here could draw them. A normal site goes if all that depends on it is observed
or goes as well: what is left then has no site whose law would be a joint one where it had been one row's. Whether the means are
affine, `ppl.eliminate` proves; where it refuses all such sites together they are tried one by one, the last statement first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .... import ppl
from ..._arguments import Arguments, simulated
from ..._depends import depends
from ...inputs import check_branches

_NORMAL = ("Normal", "MultivariateNormal")
CHEAP, DEAR = 1e4, 1e6  # work of an evaluation that is spent at once, and where chains need it
_MOST_TRIED = 12  # sites that are tried one by one


def without_discrete(
    method: str, program: ppl.Program, trace: ppl.Trace, args: tuple
) -> tuple[ppl.Program, PyTree]:
    """The program with its discrete latent sites summed out, and their names.

    Raises:
        ValueError: they cannot be, or a continuous site stands in a branch; `method` is who asks.
    """
    names = [n for n, x in trace.choices.items() if not jnp.issubdtype(x.dtype, jnp.floating)]
    if not names:
        return program, ()
    check_branches(method, trace)
    try:
        summed = ppl.eliminate(program, names)
        simulated(summed, args)
    except ValueError as err:
        raise ValueError(
            f"{method}: the discrete sites {names} of {program!r} cannot be summed out ({err}), and chains of continuous values "
            "cannot move them. Use inference.smc, or write a guide and choose strategies: inference.fit(inference.elbo(model, "
            "guide, strategies='auto'), args=...)."
        ) from err
    return summed, tuple(names)


def without_normal(
    program: ppl.Program, args: tuple, *, most_work: float, only_moving: bool
) -> tuple[ppl.Program, tuple[str, ...]]:
    """The program with the normal sites integrated out for which that is exact, accepted and cheap, and their names.

    Args:
        program: the program.
        args: its arguments.
        most_work: observed numbers times the square of those that are believed jointly, which each evaluation costs.
        only_moving: whether to take only sites whose law moves with other latent values: there chains meet funnels and long
            correlations, and sites of a fixed prior are no trouble for them.
    """
    trace = simulated(program, args)
    heard = readers_of(program, trace, args)
    in_order = [n for n in trace.sites if n in trace.choices and _is_normal(trace, n)]
    candidates = _closed(trace, heard, in_order)
    if only_moving:
        candidates = [n for n in candidates if is_moved(heard, n)]
    if not candidates:
        return program, ()
    tried = [candidates, *([n] for n in reversed(candidates[-_MOST_TRIED:]) if len(candidates) > 1)]
    best, kept = program, []
    for names in tried:
        names = [*names, *kept]
        if kept == candidates or not all(heard[n] <= _observed(trace) | set(names) for n in names):
            continue
        if _work(trace, names) > most_work:
            continue
        if (found := _accepted(program, names, args)) is not None:
            best, kept = found, names
    return best, tuple(kept)


def is_moved(heard: Mapping[str, set[str]], name: str) -> bool:
    """Whether a site's law depends on the value of another latent one."""
    return any(name in sites for other, sites in heard.items() if other != name)


def _accepted(program: ppl.Program, names: list[str], args: tuple) -> ppl.Program | None:
    """The program without these sites, or None where `ppl.eliminate` refuses them."""
    try:
        found = ppl.eliminate(program, names)
        simulated(found, args)
    except (ValueError, TypeError, NotImplementedError):
        return None
    return found


def _work(trace: ppl.Trace, names: list[str]) -> float:
    """Observed numbers times the square of the numbers that are believed jointly, less where rows separate."""
    joint = sum(_size(trace, n) for n in names)
    seen = [
        math.prod((*trace.sites[n].batch_shape, *trace.sites[n].event_shape))
        for n in _observed(trace)
    ]
    return float(sum(seen)) * joint**2


def _size(trace: ppl.Trace, name: str) -> int:
    """Numbers of a site at one step of the scans around it."""
    info = trace.sites[name]
    steps = math.prod(r.size for r in info.regions if r.kind == "scan")
    return math.prod(trace.choices[name].shape) // max(steps, 1)


def _is_normal(trace: ppl.Trace, name: str) -> bool:
    info = trace.sites[name]
    return info.distribution in _NORMAL and not info.is_imputed and not info.is_masked


def _observed(trace: ppl.Trace) -> set[str]:
    return {n for n, s in trace.sites.items() if s.kind == "observed" and s.distribution in _NORMAL}


def _closed(trace: ppl.Trace, heard: Mapping[str, set[str]], names: list[str]) -> list[str]:
    """Those sites on which only normal observations and others of them depend."""
    while True:
        allowed = _observed(trace) | set(names)
        kept = [n for n in names if heard[n] <= allowed]
        if kept == names:
            return names
        names = kept


def readers_of(program: ppl.Program, trace: ppl.Trace, args: tuple) -> dict[str, set[str]]:
    """Latent site -> the sites whose log-probs may depend on its value, itself included."""
    split = Arguments(args)
    names = list(trace.choices)

    def log_probs(values: list[Array], arrays: list[Array]) -> dict[str, PyTree]:
        return program.trace(dict(zip(names, values, strict=True)), *split.join(arrays)).log_probs

    values = [trace.choices[n] for n in names]
    closed, out = jax.make_jaxpr(log_probs, return_shape=True)(values, split.arrays(args))
    rest = [False] * (len(closed.jaxpr.invars) - len(names))
    found = {}
    for number, name in enumerate(names):
        marks = depends(closed.jaxpr, [i == number for i in range(len(names))] + rest)
        reads = jax.tree.unflatten(jax.tree.structure(out), marks)
        found[name] = {n for n, is_read in reads.items() if is_read}
    return found
