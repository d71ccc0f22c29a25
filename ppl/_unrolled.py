"""Loops whose steps need nothing but the last few sites, evaluated without a loop.

Input: a scan equation in which sites are forced to `Windows`: at step t to one of R values, that of place t mod R. Once sites are
forced, the carry of a Markov chain is known at every step: it is what the step before makes of its own site. The steps of
each place are then evaluated together, as one batch, and a number that depends on few of the R values is computed for these
alone, however many lanes the others have. Outputs stay `Split` by places until an operation needs them whole.

A scan whose carry depends on itself for longer (an accumulator) is left to the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ._axis_rules import ELEMENTWISE
from ._compat import bind, scan_counts
from ._primitive import site_p

Array = jax.Array


class Forced(NamedTuple):
    """A replacement for a site's value: everywhere, or only where `mask` is true (mask broadcasts from the left axes)."""

    value: Array
    mask: Array | None = None


class Windows(NamedTuple):
    """Replacements for the steps of a site in a scan: step t takes `values[t % len(values)]`, of the shape of one step."""

    values: tuple[Array, ...]

    def stacked(self, length: int) -> Forced:
        """The same for a loop: all steps along a leading axis."""
        return Forced(jnp.stack(self.values)[jnp.arange(length) % len(self.values)])


@dataclasses.dataclass(frozen=True)
class Split:
    """An array with a leading time axis: `parts[r]` holds the steps r, r + R, r + 2R, ..."""

    parts: list[Array]

    def whole(self) -> Array:
        """The array."""
        length = sum(p.shape[0] for p in self.parts)
        longest = self.parts[0].shape[0]
        padded = [p if p.shape[0] == longest else jnp.concatenate([p, p[-1:]]) for p in self.parts]
        stacked = jnp.stack(padded, axis=1)
        return stacked.reshape(-1, *stacked.shape[2:])[:length]


def whole(x: Any) -> Any:
    """An operand that may be split, whole."""
    return x.whole() if isinstance(x, Split) else x


def elementwise(eqn: Any, args: list[Any]) -> list[Any] | None:
    """An elementwise equation on split arrays and scalars, part by part; None if it is none."""
    if eqn.primitive.name not in ELEMENTWISE or len(eqn.outvars) > 1:
        return None
    counts = {len(a.parts) for a in args if isinstance(a, Split)}
    if len(counts) != 1 or any(not isinstance(a, Split) and jnp.ndim(a) for a in args):
        return None
    part = lambda a, r: a.parts[r] if isinstance(a, Split) else a
    parts = [bind(eqn, [part(a, r) for a in args])[0] for r in range(counts.pop())]
    return [Split(parts)]


def unrolled_scan(
    eqn: Any, args: list[Any], forced: dict[int, Forced | Windows], run: Callable[..., list[Any]]
) -> list[Any] | None:
    """Evaluate a scan place by place: final carries, then split outputs. None where it needs the loop.

    Args:
        eqn: the scan.
        args: its operands, some of them split.
        forced: replacements of the sites in its body.
        run: `_evaluate._run`.
    """
    length, body = eqn.params["length"], eqn.params["jaxpr"]
    num_consts, num_carry = scan_counts(eqn.params)
    counts = {len(f.values) for f in forced.values() if isinstance(f, Windows)}
    counts |= {len(a.parts) for a in args[num_consts + num_carry :] if isinstance(a, Split)}
    if len(counts) != 1 or eqn.params["reverse"] or eqn.effects:
        return None
    places = counts.pop()
    if length < places:
        return None
    consts = [whole(a) for a in args[:num_consts]]
    init = [whole(a) for a in args[num_consts : num_consts + num_carry]]
    by_place = lambda x: x.parts if isinstance(x, Split) else [x[r::places] for r in range(places)]
    xs = [by_place(a) for a in args[num_consts + num_carry :]]
    sizes = [-(-(length - r) // places) for r in range(places)]
    cut = {i for i, f in forced.items() if isinstance(f, Windows) or f.mask is None}
    needs = _needs(body.jaxpr, num_consts, num_carry, cut)

    def outputs(place: int, known: dict[int, list[Array]], read: list[Any]) -> list[Array]:
        """`read` at all steps of a place, from the carries that are known there."""
        carry = [known[j][place] if j in known else init[j] for j in range(num_carry)]
        fixed = {i: Forced(f.values[place]) for i, f in forced.items() if isinstance(f, Windows)}
        sliced = {
            i: jax.tree.map(lambda x: x[place::places], f)
            for i, f in forced.items()
            if isinstance(f, Forced)
        }

        def step(carry: Any, x: Any, given: Any) -> list[Array]:
            inputs = [*consts, *carry, *x]
            return run(body.jaxpr, body.consts, inputs, {**fixed, **given}, read)

        axes = [0 if j in known else None for j in range(num_carry)]
        here = [x[place] for x in xs]
        return jax.vmap(step, (axes, 0, 0), axis_size=sizes[place])(carry, here, sliced)

    known: dict[int, list[Array]] = {}
    for j in range(num_carry):
        if body.jaxpr.outvars[j] is body.jaxpr.invars[num_consts + j]:  # never changes
            same = jnp.asarray(init[j])
            known[j] = [jnp.broadcast_to(same, (n, *same.shape)) for n in sizes]
    while len(known) < num_carry:
        ready = [j for j in range(num_carry) if j not in known and needs[j] <= known.keys()]
        if not ready:
            return None
        read = [body.jaxpr.outvars[j] for j in ready]
        made = [outputs(r, known, read) for r in range(places)]
        for n, j in enumerate(ready):
            after = [m[n] for m in made]
            first = jnp.asarray(init[j], after[0].dtype)[None]
            known[j] = [
                jnp.concatenate([first, after[-1][: sizes[0] - 1]]),
                *(after[r - 1][: sizes[r]] for r in range(1, places)),
            ]
    out = [outputs(r, known, body.jaxpr.outvars) for r in range(places)]
    last = (length - 1) % places
    carries = [out[last][j][-1] for j in range(num_carry)]
    return [*carries, *(Split([o[n] for o in out]) for n in range(num_carry, len(out[0])))]


def _needs(jaxpr: Any, num_consts: int, num_carry: int, cut: set[int]) -> list[set[int]]:
    """For each carry that leaves the body, the carries that enter it on which it depends with sites forced."""
    carries = jaxpr.invars[num_consts : num_consts + num_carry]
    needs = []
    for out in jaxpr.outvars[:num_carry]:
        live = set() if isinstance(out, Literal) else {out}
        for eqn in reversed(jaxpr.eqns):
            is_cut = eqn.primitive is site_p and eqn.params["index"] in cut
            if is_cut or live.isdisjoint(eqn.outvars):
                continue
            live.update(v for v in eqn.invars if not isinstance(v, Literal))
        needs.append({j for j, v in enumerate(carries) if v in live})
    return needs
