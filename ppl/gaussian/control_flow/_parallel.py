"""All steps of a scan filtered at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpyro
import numpyro.handlers
from jaxtyping import PyTree

from ..._compat import Jaxpr, handler_stack, no_handlers
from ...jaxprs import inner_jaxprs
from ...traces import Recorder, Runner, all_steps
from .._chains import NotCollected, filtered
from .._forms import is_certain
from ._maps import joined_results, probed, step_maps
from ._scan import Scan


def is_parallel(scan: Scan) -> bool:
    """Whether all steps are filtered at once.

    Raises:
        ValueError: that is asked for, and impossible.
    """
    emit = scan.outer.emit
    if not emit.parallel or emit.is_dry or emit.smoothing is not None:
        return False
    recorders = [h for h in handler_stack() if isinstance(h, Recorder)]
    is_kept = _is_data_kept(_observed(scan.body.jaxpr))
    if not is_kept or any(r.continues for r in recorders):  # later ones are drawn
        return False
    obstacle = "particles, which are weighed after each step"
    if not any(r.is_stepped for r in recorders):
        try:
            probed(scan, is_made=False)
        except NotCollected as err:
            obstacle = str(err)
        else:
            return True
    raise ValueError(
        f"{scan.outer.label}: parallel=True filters all steps of a ppl.scan at once, which does not go with {obstacle}: a "
        "step is to be an affine map of the state before, by data and parameters alone. Leave parallel=True out: the steps "
        "are then filtered one after the other, with the same result."
    )


def together(scan: Scan) -> list[PyTree]:
    """The results of a scan, with the beliefs of all steps found in parallel."""
    num_carry, start, xs = len(scan.init), scan.start(), scan.slices()
    length = scan.length

    def known(certain: PyTree, x: PyTree) -> PyTree:
        outs, _ = step_maps(scan, certain, x, None)
        return scan.certain(outs[:num_carry]), certain

    # 1. Certain values are carried one after the other; 2. the affine maps of all T steps, [T, ...], are independent of beliefs
    # and made at once; 3. an associative scan over them gives the beliefs before and after each step (`_chains.filtered`).
    init = [jnp.asarray(x) for x in scan.certain(scan.init)]
    certain, before = jax.lax.scan(known, init, xs, length) if init else (init, init)
    maps = jax.vmap(lambda c, x: step_maps(scan, c, x, None)[1], axis_size=length)(before, xs)
    beliefs = None if start is None else filtered(maps, start)
    at = lambda index: jax.tree.map(lambda x: x[index], beliefs)

    def step(now: PyTree) -> list[PyTree]:
        outs, _ = scan.filter_step(scan.outer.inner(), *now)
        return [y for y in outs[num_carry:] if is_certain(y)]

    # 4. With its belief known, each step makes its statements, all steps at once.
    ys = _made_at_once(step, (before, at(slice(-1)), xs), length)
    if scan.is_joined:
        return joined_results(scan, certain, maps, start, ys)
    return scan.results(certain, at(-1), ys)


def _observed(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of observed statements."""
    for eqn in jaxpr.eqns:
        statement = eqn.params.get("statement")
        if statement is not None and statement.is_observed:
            yield statement.name
        for inner in inner_jaxprs(eqn):
            yield from _observed(inner)


def _is_data_kept(names: Iterable[str]) -> bool:
    """Whether the handlers on the stack leave observations their values."""
    stack, names = handler_stack(), set(names)
    is_recorded = any(isinstance(h, Recorder) for h in stack)
    given = [h for h in stack if isinstance(h, numpyro.handlers.substitute)]
    is_given = any(names & (h.data or {}).keys() for h in given)
    is_unknown = is_recorded and any(h.substitute_fn is not None for h in given)
    is_drawn = any(getattr(h, "redraw_observed", False) for h in stack)
    return not (is_given or is_unknown or is_drawn)


def _made_at_once(step: Callable[[PyTree], PyTree], xs: PyTree, length: int) -> PyTree:
    """The results of a step for all steps, and their statements."""
    stack = handler_stack()
    if not stack or any(isinstance(h, Recorder) for h in stack):
        return all_steps(step, xs, length)
    # NumPyro has no statement for steps at once: their log-probs are one factor.
    with no_handlers(), Runner(None) as runner:
        ys = all_steps(step, xs, length)
    numbers = runner.frame.numbers
    log_probs = {n: x["log_prob"].sum() for n, x in numbers.items() if "log_prob" in x}
    numpyro.factor(f"{', '.join(log_probs)}: all steps", sum(log_probs.values()))
    return ys
