"""Steps of a scan as affine maps of what is handed on, put together for statements that read the states of all steps."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._compat import no_handlers
from .._arranged import Shaped, unflat
from .._chains import Affine, NotCollected, Step, joined
from .._forms import Beyond, Form, is_certain
from .._refusals import MAX_NUMBERS
from ..beliefs import Belief, no_belief
from ._scan import PUT_TOGETHER, Scan

Array = jax.Array


def step_maps(
    scan: Scan, certain: Sequence[PyTree], x: Sequence[PyTree], made: dict[str, Array] | None
) -> tuple[list[PyTree], Step]:
    """A step as affine maps of what is handed to it."""
    collect = scan.outer.emit.collector
    assert collect is not None  # `integrate` and `propose` set it
    collector = collect(scan.outer, sum(v.size for v in scan.handed_on()), made)
    values, kept = scan.open_step(collector, certain)
    if collector.belief is None:
        collector.belief = no_belief(scan.rows)
    outs = scan.step(collector, values, kept, scan.given(x))
    num_carry = len(scan.init)
    read = [outs[num_carry + i] for i, _ in read_results(scan)]
    return outs, collector.step(scan.forms(outs[:num_carry], kept), read)


def read_results(scan: Scan) -> list[tuple[int, Shaped]]:
    """The uncertain stacked results that a statement reads: their number, and what they are in a step."""
    num_carry = len(scan.init)
    avals = [v.aval for v in scan.body.jaxpr.outvars[num_carry:]]
    each = zip(avals, scan.y_kinds, scan.reads[num_carry:], strict=True)
    return [
        (i, Shaped(aval.shape, aval.dtype, kind))
        for i, (aval, kind, is_read) in enumerate(each)
        if is_read and isinstance(kind, tuple)
    ]


def probed(scan: Scan, *, is_made: bool) -> Step:
    """The shapes of a step's maps.

    Raises:
        NotCollected: there are none.
    """

    def run() -> Step:
        certain, x = scan.certain(scan.init), [scan.first(x) for x in scan.xs]
        x = [a if is_certain(b) else None for a, b in zip(x, scan.xs, strict=True)]
        inner = scan.outer.inner(is_dry=True)
        if is_made:
            scan.filter_step(inner, certain, None, x)
        return step_maps(scan, certain, x, inner.made if is_made else None)[1]

    with no_handlers():
        return jax.eval_shape(run)


def why_lost(scan: Scan) -> Beyond | None:
    """Why stacked results cannot be read; None: they can, or are not."""
    if not read_results(scan):
        return None
    remedy = "Make the statement inside of the step, one for each (ppl.scan over the data)"
    if scan.outer.emit.approximation == "ukf":
        return Beyond(PUT_TOGETHER, f"{remedy}.")
    try:
        maps = probed(scan, is_made=True)
    except NotCollected as err:
        return Beyond(f"{PUT_TOGETHER}, with {err}", f"{remedy}.")
    # A step maps `handed` numbers and its own noise, columns - handed numbers, to the next: over T steps, what was handed to the
    # first and T times the noise.
    handed, columns = maps.new.matrix.shape[-2:]
    length = scan.length
    number = handed + length * (columns - handed)
    if number <= MAX_NUMBERS:
        return None
    return Beyond(
        PUT_TOGETHER,
        f"{remedy}: read afterwards, {number} numbers are believed jointly, and at most {MAX_NUMBERS} can be.",
    )


def joined_results(
    scan: Scan, certain: PyTree, maps: Step, start: Belief | None, ys: Sequence[PyTree]
) -> list[PyTree]:
    """The results, in a basis of what is handed to the first step and of the noise of all."""
    outer = scan.outer
    start = no_belief(scan.rows) if start is None else start
    belief, last, read = joined(maps, start)
    outer.has_changed, outer.belief = True, belief
    values, kept = scan.values(certain, _forms_of(last, scan.handed_on()))
    outer.replace(kept)
    forms = _forms_of(read, [shaped for _, shaped in read_results(scan)], num_lead=1)
    return [*values, *scan.stacked(ys, forms)]


def _forms_of(numbers: Affine, values: Sequence[Shaped], num_lead: int = 0) -> list[Form]:
    """The forms of values that, one after the other, are these numbers; `num_lead`: axes in front of the rows."""
    # numbers.matrix [*rows, n, columns] -> coefs [columns, *rows, n]; a value takes its entries of n.
    coefs, start, found = jnp.moveaxis(numbers.matrix, -1, 0), 0, []
    for value in values:
        stop = start + value.size
        const = unflat(numbers.const[..., start:stop], value.rows, value.shape)
        slope = unflat(coefs[..., start:stop], value.rows, value.shape)
        rows = tuple(a + num_lead for a in value.rows)
        found.append(Form(const.astype(value.dtype), slope.astype(value.dtype), rows))
        start = stop
    return found
