"""Random paths through a traced program, on which jumps are looked for.

A path runs in the space of one *source*: a site's value with everything else kept; or the parameters, with the noise of keys
and pathwise sites and the values of all other sites kept. Some paths leave the parameters that are given, and some the data. Some
are short: there, steps of a quantiser are found that are smaller than the threshold, because together they make a slope. Some
move only those numbers that one suspected operation reads (`read_together`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import ClosedJaxpr, Jaxpr, Var
from .._types import Key
from ..analysis import Analysed, read_together
from ..evaluation import Forced, evaluate
from ..jaxprs import PARAMS, Jumps, inner_jaxprs, split
from ._bisection import Output, largest_change
from ._jump_search import JumpSearch
from ._moves import any_value, flat, moved, other_data, parts, reaching, resolved
from ._probe_inputs import Inputs, marker_layout
from ._rounded import Copy, copies, evaluate_rounded

MAX_GROUPS = 4
TINY = 1e-11  # of rounding
SLOPE = 1e-2  # of small steps, in relation to the length of a path
THRESHOLD_32 = 1e-3
# How long a path may be in relation to where it starts: 1e-8 and 1e-5 of that are then resolved.
LONGEST, LONGEST_32 = 1e8, 1e2


# What a path's number decides, in such a way that everything meets everything.


def leaves_data(number: Array | np.ndarray) -> PyTree:
    return number // 6 % 3 == 2


def _start(number: Array) -> tuple[Array, Array]:
    """By how much the parameters leave those given, relatively and absolutely: a jump may vanish there, as at weights of zero."""
    kind = number % 6
    return jnp.asarray([0, 0.1, 0, 0, 0, 1.0])[kind], jnp.asarray([0, 0, 1.0, 0, 3.0, 0])[kind]


def _step(number: Array) -> tuple[PyTree, PyTree]:
    """By how much a path in the space of the parameters changes them, relatively and absolutely."""
    kind = number % 4
    return jnp.asarray([0.1, 1.0, 0, 0])[kind], jnp.asarray([0, 0, 1.0, 3.0])[kind]


def _reach(number: Array) -> jax.Array:
    """Two of three paths of a site's value reach far beyond two draws."""
    return jnp.where(number // 18 % 3 > 0, 3.0, 0.0)


def _length(number: Array) -> jax.Array:
    """Short paths are spread evenly, by the golden ratio, over lengths in which steps below the threshold make a slope.

    Not shorter than those in which the rounding of a cast to float32 makes one, by `SLOPE`.
    """
    exponent = 4.2 + 0.7 * (number // 12 * 0.6180339887 % 1)
    return jnp.where(is_short(number), 10.0**-exponent, 1.0)


def is_short(number: PyTree) -> ArrayLike:
    """Every twelfth path."""
    return number % 12 == 3


def is_far(number: PyTree) -> PyTree:
    """Two of six paths start where parameters are no longer like those given."""
    return number % 6 >= 4


def has_loop(jaxpr: Jaxpr, kinds: Collection[str] = ("scan", "while")) -> bool:
    """Whether anything in a program runs several times, in a loop of one of these kinds."""
    return any(
        eqn.primitive.name in kinds or any(has_loop(j, kinds) for j in inner_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


class Job(NamedTuple):
    """A path to be made: program and inputs, `Paths.members`, its key, source, group of outputs, set of numbers, and number."""

    closed: ClosedJaxpr
    inputs: Inputs
    members: dict[str, Any]
    key: jax.Array
    source: jax.Array
    group: jax.Array
    which: jax.Array
    number: jax.Array


class _Ends(NamedTuple):
    """The two ends of a path: parameters in one vector, and values of sites; and what is the same all along."""

    params: tuple[jax.Array, jax.Array]
    values: dict[int, tuple[jax.Array, jax.Array]]
    data: list[PyTree]
    noise: jax.Array
    length: jax.Array


class Paths:
    """Makes paths and bisects them.

    Outputs are the additive terms of the result that may jump, and log-probs of sites whose parameters may. A
    jump of a term counts only if the result jumps with it: pieces of a spline jump at a knot, their sum does
    not. The outputs that count for a source are bisected in a few groups.
    """

    def __init__(
        self,
        program: Analysed,
        sources: list[int | str],
        is_double: bool,
        how: JumpSearch,
        is_rounded: bool,
        is_narrow: bool,
    ) -> None:
        self.num_points, self.is_rounded, self.is_narrow = how.num_points, is_rounded, is_narrow
        self.has_loop = has_loop(program.closed.jaxpr)
        self.threshold = how.threshold if is_double else max(how.threshold, THRESHOLD_32)
        facts = program.facts
        bounds = {i: s.bounds for i, s in program.sites.items() if s.bounds is not None}
        terms = split(program.closed.jaxpr, program.result, facts, bounds)
        jumps: list[tuple[Any, Jumps]] = [(t.variable, facts[t.variable].jumps) for t in terms]
        for i, site in program.sites.items():
            found = facts.parameters[i].jumps
            # A pathwise value follows the parameters; in the space of another site's value it is kept.
            follows: Jumps = {}
            if PARAMS in found and site.strategy.is_pathwise:
                follows[PARAMS] = found[PARAMS]
            jumps.append((program.numbers[i].value, follows))
            jumps.append(
                (program.numbers[i].log_prob, {s: c for s, c in found.items() if s not in follows})
            )
        # Poles of terms that meet in their sum.
        covered = {s for _, found in jumps for s in found}
        whole = facts[program.result].jumps
        jumps.append((program.result, {s: c for s, c in whole.items() if s not in covered}))
        is_term = np.arange(len(jumps)) < len(terms)
        counts = np.array([[s in found for _, found in jumps] for s in sources])
        used = np.flatnonzero(counts.sum(0))
        self.program, self.sources = program, sources
        self.read = [jumps[n][0] for n in used] + [program.result]
        self.terms = {at: terms[n] for at, n in enumerate(used) if n < len(terms)}
        paths = [path for t in self.terms.values() for path in t.paths]
        factors = dict.fromkeys(f.atom for _, fs in paths for f in fs if isinstance(f.atom, Var))
        self.factors = list(factors)
        self._atoms = [*self.read, *self.factors]
        self.is_term, counts = is_term[used], counts[:, used]
        self.groups = np.where(counts, (np.cumsum(counts, 1) - 1) % MAX_GROUPS, -1)
        self.is_double = is_double
        sets = read_together(program, sources)
        self.sizes_of_sets = [masks.sum(1).tolist() for masks in sets]
        # Of each number of a source in which of its sets it is, bit by bit.
        self.members = {
            str(s): np.bitwise_or.reduce(
                masks.astype(np.uint16) << np.arange(len(masks), dtype=np.uint16)[:, None], 0
            )
            for s, masks in zip(sources, sets, strict=True)
            if len(masks) > 1
        }
        self.moves_params = np.array([isinstance(s, str) for s in sources])

    def jump(self, job: Job) -> tuple[jax.Array, jax.Array]:
        """The size of the largest jump, 0 where it is none; whether any output was finite."""
        ends = self._ends(job)
        at = functools.partial(self._at, job, ends)
        counts = jnp.asarray(self.groups)[job.source] == job.group
        threshold = self.threshold
        is_small = (ends.length < 1) & self.is_double
        size, is_finite = largest_change(
            at,
            counts,
            jnp.where(is_small, TINY, threshold),
            is_term=self.is_term,
            num_points=self.num_points,
            is_double=self.is_double,
        )
        # Small steps add up, if every short path meets one.
        is_jump = (size > threshold) | (is_small & (size > jnp.maximum(TINY, SLOPE * ends.length)))
        return jnp.where(is_jump, size, 0.0), is_finite

    def _ends(self, job: Job) -> _Ends:
        """A path's ends, which differ in its source; and the values of all other sites."""
        keys = jax.random.split(job.key, 8)
        number, sites = job.number, self.program.sites
        data = other_data(job.inputs.data, keys[0], leaves_data(number))
        params = moved(flat(job.inputs.params), keys[1], *_start(number))
        length = _length(number)
        far = moved(params, keys[3], *_step(number))
        is_far = jnp.asarray(self.moves_params)[job.source]
        is_far &= _is_moved(job, PARAMS, params)
        far = jnp.where(is_far, params + length * (far - params), params)
        draws = self._draws(job.closed, [*parts(params, job.inputs.params), *data], keys[4])
        values = {i: (x[0], x[0]) for i, x in draws.items()}
        # Rare values of discrete sites may open a branch: all are tried alike in half of the paths.
        for i, (x, _) in values.items():
            other = jnp.where(number // 2 % 2 == 0, x, any_value(sites[i], x, keys[7]))
            values[i] = (other, other)
        for n, source in enumerate(self.sources):
            if isinstance(source, str):
                continue
            _, start, end, third = draws[source]
            if "slope" in sites[source].strategy.calls:
                # Between hard values: start anywhere between two of them.
                share = jnp.where(number % 2 == 0, jax.random.uniform(keys[5]), 0.0)
                start = start + share * (third - start)
            start, end = reaching(sites[source], start, end, _reach(number))
            is_fine = self.is_double and not self.is_narrow
            end = resolved(start, end, LONGEST if is_fine else LONGEST_32)
            end = start + length * (end - start)
            end = jnp.where(_is_moved(job, source, start), end, start)
            here = job.source == n
            kept = values[source][0]
            values[source] = (jnp.where(here, start, kept), jnp.where(here, end, kept))
        noise = keys[6] if self.moves_params.any() else job.inputs.key
        return _Ends((params, far), values, data, noise, length)

    def _draws(
        self, closed: ClosedJaxpr, leaves: list[Array], key: jax.Array
    ) -> dict[int, jax.Array]:
        """Four draws of every site."""
        atoms = [self.program.numbers[i].value for i in self.program.sites]
        draw = lambda key: evaluate(closed, [*leaves, key], {}, atoms)
        draws = jax.vmap(draw)(jax.random.split(key, 4))
        return dict(zip(self.program.sites, draws, strict=True))

    def _at(self, job: Job, ends: _Ends, t: jax.Array) -> list[Output]:
        """The outputs at a point of the path, with their rounding if it counts."""
        narrow = functools.partial(evaluate_rounded, is_narrow=self.is_narrow)
        if not self.is_rounded:
            once: Any = functools.partial(narrow, copy=None) if self.is_narrow else evaluate
            found = once(job.closed, *self._point(job, ends, t), self._atoms)
            return [Output(x) for x in self._outputs(found)]

        def run(copy: Copy) -> list[jax.Array]:
            point = self._point(job, ends, t * copy.factors[-1])
            return self._outputs(narrow(job.closed, *point, self._atoms, copy=copy))

        kind = float if self.is_double else np.float32
        # In a loop what starts an operation costs more than what it computes.
        each = copies(kind, is_narrow=self.is_narrow)
        found = jax.vmap(run)(each) if self.has_loop else jax.lax.map(run, each)
        size = lambda x: jnp.abs(x[1:] - x[0]).max(0)
        return [Output(x[0], jnp.nan_to_num(size(x), nan=jnp.inf, posinf=jnp.inf)) for x in found]

    def _point(self, job: Job, ends: _Ends, t: jax.Array) -> tuple[list[Key], dict[int, Forced]]:
        """Inputs and values of sites at a point of the path."""
        between = lambda a, b: (a + t * (b - a)).astype(a.dtype) if a.dtype != bool else a
        params = parts(between(*ends.params), job.inputs.params)
        is_far = jnp.asarray(self.moves_params)[job.source]
        forced = {}
        for i, (a, b) in ends.values.items():
            site = self.program.sites[i]
            value = between(a, b)
            if site.is_on_sphere:
                value = value / jnp.linalg.norm(value, axis=-1, keepdims=True)
            value = marker_layout(value, site)
            # Where the parameters move, pathwise sites follow.
            follows = self.moves_params.any() and site.strategy.is_pathwise
            mask = jnp.full(value.shape[: len(site.sizes)], ~is_far) if follows else None
            forced[i] = Forced(value, mask)
        return [*params, *ends.data, ends.noise], forced

    def _outputs(self, found: list[jax.Array]) -> list[jax.Array]:
        """What the values of `_atoms` make."""
        factors = dict(zip(self.factors, found[len(self.read) :], strict=True))
        value_of = lambda atom: factors[atom] if isinstance(atom, Var) else atom.val
        outputs = [x.astype(float) for x in found[: len(self.read)]]
        for n, term in self.terms.items():  # what it contributes to the result
            outputs[n] = outputs[n] * term.coefficient(value_of)
        return outputs


def _is_moved(job: Job, source: int | str, x: jax.Array) -> jax.Array:
    """Which numbers of a source are in the path's set, in the shape of `x`."""
    members = job.members.get(str(source))
    if members is None:
        return jnp.ones((), bool)
    return (members >> job.which.astype(members.dtype) & 1).astype(bool).reshape(x.shape)
