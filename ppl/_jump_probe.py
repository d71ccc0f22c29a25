"""How far a traced program jumps in the values of its sites, or in its parameters: random segments, bisected.

A segment lies in the space of one *source*: a site's value, or the parameters (at fixed noise of a random key). It is halved
toward the larger change until its ends are neighbouring floating-point numbers. A continuous program then changes by
rounding only; a jump stays.

One function is compiled for all sources, since compiling is nearly all of the search's time. For the same reason Gamma variates,
whose rejection sampler compiles slowly, are drawn by an approximation: a probe needs typical values, not exact ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from ._additive import split
from ._analyse import Analysed
from ._evaluate import Forced, evaluate
from ._quick_gamma import without_rejection
from ._upstream import axis_order

NUM_SEGMENTS = 64
NUM_BISECTIONS = 64
MAX_GROUPS = 8
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


def jump_sizes(
    sources: Collection[int | str], program: Analysed, inputs: list[Any]
) -> dict[int | str, float]:
    """Largest jump of an output of the program, relative to 1 + |value|, in each source.

    Args:
        sources: sites by index; addresses of random keys, for which the parameters move.
        program: analysed on concrete inputs.
        inputs: leaves of the parameters, then the key.

    Returns:
        source -> size; infinite where no output was finite.
    """
    probe = _Probe(program, list(sources))
    counts = [_num_segments(program, source, inputs) for source in sources]
    source = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(n) for n in counts])
    keys = jax.random.split(jax.random.key(0), len(number))

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def run(consts: list[Any], inputs: list[Any]) -> tuple[jax.Array, jax.Array]:
        """Data are operands: XLA would fold what it can compute from constants, slowly."""
        closed = ClosedJaxpr(program.closed.jaxpr, consts)
        one = lambda job: probe.jump(_Segment(closed, inputs, *job))
        return jax.lax.map(one, (keys, source, number), batch_size=8)

    sizes, finite = jax.tree.map(np.asarray, run(program.closed.consts, inputs))
    return {
        s: float(sizes[source == n].max()) if finite[source == n].any() else float("inf")
        for n, s in enumerate(sources)
    }


def _num_segments(program: Analysed, source: int | str, inputs: list[Any]) -> int:
    """Fewer segments in a larger space."""
    if isinstance(source, int):
        num_elements = math.prod(program.sites[source].sizes)
    else:
        num_elements = sum(x.size for x in inputs[:-1])
    return int(np.clip(4096 // max(num_elements, 1), 8, NUM_SEGMENTS))


class _Segment(NamedTuple):
    """A segment to be made: program and inputs, its own key, the number of its source, its number for this source."""

    closed: ClosedJaxpr
    inputs: list[Any]
    key: jax.Array
    source: jax.Array
    number: jax.Array


class _Point(NamedTuple):
    """Where outputs are evaluated: leaves of the parameters, and the values of the sites among the sources."""

    leaves: list[jax.Array]
    values: dict[int, jax.Array]


class _Probe:
    """Bisects segments.

    Outputs are the additive terms of the result that may jump, and log-probs of sites whose parameters may. A
    jump of a term counts only if the result jumps with it: pieces of a spline jump at a knot, their sum does
    not. The outputs that count for a source are bisected in a few groups.
    """

    def __init__(self, program: Analysed, sources: list[int | str]) -> None:
        facts = program.facts
        terms = [t.variable for t in split(program.closed.jaxpr, program.result, facts)]
        jumps = [(v, facts[v].jumps) for v in terms]
        jumps += [(program.numbers[i].log_prob, facts.parameters[i].jumps) for i in program.sites]
        is_term = np.arange(len(jumps)) < len(terms)
        counts = np.array([[s in found for _, found in jumps] for s in sources])
        used = np.flatnonzero(counts.sum(0))
        self.program, self.sources = program, sources
        self.read = [jumps[n][0] for n in used] + [program.result]
        self.is_term, counts = is_term[used], counts[:, used]
        self.groups = np.where(counts, (np.cumsum(counts, 1) - 1) % MAX_GROUPS, -1)

    def jump(self, segment: _Segment) -> tuple[jax.Array, jax.Array]:
        """Largest change that bisection could not remove; whether any output was finite."""
        k1, k2 = jax.random.split(segment.key)
        a, b, rest = self._ends(segment, k1)
        noise = segment.inputs[-1]
        is_key = np.array([isinstance(s, str) for s in self.sources])
        if is_key.any():  # the noise of a random key is part of what is tried
            noise = jnp.where(jnp.asarray(is_key)[segment.source], k2, noise)
        at = functools.partial(self._at, segment.closed, noise, rest)
        ends = jax.vmap(at)(jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b))
        fa, fb = ([x[i] for x in ends] for i in (0, 1))
        groups = jnp.asarray(self.groups)[segment.source]
        one = lambda group: self._bisect(at, (a, b, fa, fb), groups == group)
        sizes, finite = jax.vmap(one)(jnp.arange(self.groups.max() + 1))
        return sizes.max(), finite.any()

    def _bisect(self, at: Any, state: Any, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Halve toward the larger change of the outputs that count."""
        start = state[2]

        def change(x: list[jax.Array], y: list[jax.Array]) -> jax.Array:
            """Largest change, on the scale that the outputs have at the segment's start."""
            return jnp.max(jnp.where(counts, jnp.stack(_changes(x, y, start)[:-1]), 0.0))

        def halve(_: Any, state: Any) -> Any:
            a, b, fa, fb = state
            m = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
            fm = at(m)
            left = change(fa, fm) >= change(fm, fb)
            choose = lambda x, y: jax.tree.map(lambda u, v: jnp.where(left, u, v), x, y)
            return (*choose((a, m), (m, b)), *choose((fa, fm), (fm, fb)))

        _, _, fa, fb = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, state)
        changes = jnp.stack(_changes(fa, fb, fa))
        # Terms may jump against each other: compare the result's own jump with theirs.
        in_result = jnp.abs(fb[-1] - fa[-1])
        absolute = jnp.stack([_largest(jnp.abs(y - x), x, y) for x, y in zip(fa, fb, strict=True)])
        cancels = in_result <= 1e-6 * absolute[:-1] + 1e-12 * jnp.abs(fa[-1])
        sizes = jnp.where(counts & ~(self.is_term & cancels), changes[:-1], 0.0)
        finite = jnp.stack([jnp.isfinite(x).any() for x in fa[:-1]])
        return sizes.max(), (finite & counts).any()

    def _ends(
        self, segment: _Segment, key: jax.Array
    ) -> tuple[_Point, _Point, dict[int, jax.Array]]:
        """The ends of a segment, which differ in its source; and the values of all other sites."""
        k1, k2, k3, k4 = jax.random.split(key, 4)
        number, sites = segment.number, self.program.sites
        # Every other segment leaves the given parameters: a jump may vanish there, as at zero-initialised weights.
        leaves = _moved(segment.inputs[:-1], k1, jnp.where(number % 2 == 1, 0.1, 0.0))
        far = _moved(leaves, k2, jnp.where(number % 4 < 2, 0.1, 1.0))
        draws = self._draws(segment.closed, leaves, k3)
        rest = {i: x[0] for i, x in draws.items()}
        values = {i: rest.pop(i) for i in self.sources if isinstance(i, int)}
        a, b = _Point(leaves, dict(values)), _Point(leaves, dict(values))
        for n, source in enumerate(self.sources):
            here = segment.source == n
            if isinstance(source, str):
                moved = [jnp.where(here, x, y) for x, y in zip(far, b.leaves, strict=True)]
                b = b._replace(leaves=moved)
                continue
            _, start, end, third = draws[source]
            if sites[source].strategy.is_relaxed:
                # Between hard values: start anywhere between two of them.
                share = jnp.where(number % 2 == 0, jax.random.uniform(k4), 0.0)
                start = start + share * (third - start)
            if sites[source].is_unbounded:  # every third segment reaches far beyond two draws
                reach = jnp.where(number % 3 == 2, 3.0, 0.0)
                start, end = start - reach * (end - start), end + reach * (end - start)
            a.values[source] = jnp.where(here, start, values[source])
            b.values[source] = jnp.where(here, end, values[source])
        return a, b, rest

    def _draws(
        self, closed: ClosedJaxpr, leaves: list[Any], key: jax.Array
    ) -> dict[int, jax.Array]:
        """Four draws of every site."""
        atoms = [self.program.numbers[i].value for i in self.program.sites]
        quick = without_rejection(closed)
        draw = lambda key: evaluate(quick, [*leaves, key], {}, atoms)
        draws = jax.vmap(draw)(jax.random.split(key, 4))
        return dict(zip(self.program.sites, draws, strict=True))

    def _at(
        self, closed: ClosedJaxpr, noise: jax.Array, rest: dict[int, jax.Array], point: _Point
    ) -> list[jax.Array]:
        """The outputs at a point."""
        values = rest | point.values
        order = {i: np.argsort(axis_order(self.program.sites[i])) for i in values}
        forced = {i: Forced(_marker_layout(x, order[i])) for i, x in values.items()}
        read = evaluate(closed, [*point.leaves, noise], forced, self.read)
        return [x.astype(float) for x in read]


def _moved(leaves: list[Any], key: jax.Array, scale: jax.Array) -> list[Any]:
    """Parameters with relative noise, which keeps the sign of those that must be positive (mostly); zeros get absolute noise."""
    keys = jax.random.split(key, len(leaves) + 1)[1:]
    return [
        x + (scale * jnp.where(x == 0, 1.0, x) * jax.random.normal(k, x.shape)).astype(x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]


def _largest(size: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Largest size among elements that are finite at both ends: a change to infinity is loud."""
    return jnp.max(jnp.where(jnp.isfinite(x) & jnp.isfinite(y), size, 0.0), initial=0.0)


def _changes(x: list[jax.Array], y: list[jax.Array], scale: list[jax.Array]) -> list[jax.Array]:
    """Largest change of each output relative to 1 + |scale|."""
    parts = zip(x, y, scale, strict=True)
    return [
        _largest(jnp.abs(b - a) / (1 + jnp.nan_to_num(jnp.abs(s), posinf=0.0)), a, b)
        for a, b, s in parts
    ]


def _marker_layout(value: jax.Array, order: np.ndarray) -> jax.Array:
    return jnp.transpose(value, [*map(int, order), *range(len(order), value.ndim)])
