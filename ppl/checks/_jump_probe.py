"""How far a traced program jumps along random paths, bisected.

A path runs in the space of one *source*: a site's value with everything else kept; or the parameters, with the noise of keys
and pathwise sites and the values of all other sites kept. It is looked at on a grid, and from the step with the largest change
on halved toward the larger change until its ends are neighbouring floating-point numbers. A continuous program then changes by
rounding only; a jump stays.

What can be found: a jump of more than the threshold (`JumpSearch`) of 1 + |value| that some of the paths cross alone in one step
of the grid. Some paths leave the parameters that are given, and some the data. Some are short: there, steps of a
quantiser are found that are smaller than the threshold, because together they make a slope.

One function is compiled for all sources, since compiling is nearly all of the search's time. For the same reason its random
numbers are quick ones (`_quick_keys.py`, `_quick_draws.py`): a probe needs typical values, not exact ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import ClosedJaxpr, Jaxpr, Var
from ..analysis import Analysed, axis_order
from ..evaluation import Forced, evaluate
from ..jaxprs import PARAMS, REALS, Jumps, inner_jaxprs, shape_of, split
from ..strategies import StrategySite
from ._jump_search import JumpSearch
from ._quick_draws import quick_normal, with_quick_draws
from ._quick_keys import QUICK

IMPLS = (QUICK, "threefry2x32")  # the second one serves every sampler
BATCH = 8
DEFAULT = JumpSearch()
NUM_BISECTIONS = 64
SHARES = np.array([0.5, 0.3, 0.7, 0.4, 0.0])  # where a step is divided, after so many losses
MAX_GROUPS = 4
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
TINY = 1e-11  # of rounding
SLOPE = 1e-2  # of small steps, in relation to the length of a path
THRESHOLD_32 = 1e-3
# How long a path may be in relation to where it starts: 1e-8 and 1e-5 of that are then resolved.
LONGEST, LONGEST_32 = 1e8, 1e2


class Found(NamedTuple):
    """The largest jumps in one source: at the data given, at other data; infinite where nothing was finite."""

    here: float
    elsewhere: float


class Inputs(NamedTuple):
    """Leaves of the inputs of a program to be searched: parameters, data (arrays among the arguments), random key."""

    params: list[Any]
    data: list[Any]
    key: Any

    @property
    def leaves(self) -> list[Any]:
        """In the order of the program's inputs."""
        return [*self.params, *self.data, self.key]


def inputs_of(params: list[Any], data: list[Any], closed: ClosedJaxpr) -> Inputs:
    """The inputs of a traced program as arrays of the types that it was traced with; its last one is the key."""
    types: list[Any] = [v.aval.dtype for v in closed.jaxpr.invars]  # pyright: ignore[reportAttributeAccessIssue]
    leaves = [jnp.asarray(x, dtype) for x, dtype in zip([*params, *data], types, strict=False)]
    keys = (jax.random.key(0, impl=impl) for impl in IMPLS)
    key = next(k for k in keys if k.dtype == types[-1])
    return Inputs(leaves[: len(params)], leaves[len(params) :], key)


def with_quick_key[Traced](trace: Callable[[jax.Array], Traced]) -> Traced:
    """What `trace` makes with a key of quick random numbers, or with one that serves every sampler."""
    try:
        return trace(jax.random.key(0, impl=IMPLS[0]))
    except NotImplementedError:  # a sampler for one kind of random numbers only
        return trace(jax.random.key(0, impl=IMPLS[1]))


class Probe:
    """A compiled search: `probe(inputs)` gives source -> what was found.

    Args:
        sources: sites by index; a name stands for the parameters.
        program: the program, analysed with its data as inputs.
        is_double: whether it computes in float64.
        how: how finely.
    """

    def __init__(
        self,
        sources: Collection[int | str],
        program: Analysed,
        *,
        is_double: bool,
        how: JumpSearch = DEFAULT,
    ) -> None:
        self.sources, self.is_double, self.how = list(sources), is_double, how
        self.program = program
        self._paths = _Paths(program, self.sources, is_double, how)
        self._work = work_of(program.closed.jaxpr)

        @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
        def run(consts: list[Any], inputs: Any, jobs: Any) -> tuple[jax.Array, jax.Array]:
            """Data are operands: XLA would fold what it can compute from constants, slowly."""
            closed = with_quick_draws(ClosedJaxpr(program.closed.jaxpr, consts))
            one = lambda job: self._paths.jump(_Job(closed, Inputs(*inputs), *job))
            return jax.lax.map(one, jobs, batch_size=BATCH)

        self._run = run

    def __call__(self, inputs: Inputs) -> dict[int | str, Found]:
        if not self._paths.groups.size:  # in this precision nothing is suspected
            return dict.fromkeys(self.sources, Found(0.0, 0.0))
        source, group, number = self._jobs(inputs)
        keys = jax.random.split(inputs.key, len(number))
        parts = (inputs.params, inputs.data, inputs.key)
        jobs = (keys, source, group, number)
        sizes, finite = jax.tree.map(np.asarray, self._run(self.program.closed.consts, parts, jobs))

        def largest(mine: Any) -> float:
            return float(sizes[mine].max(initial=0.0)) if finite[mine].any() else math.inf

        there = _leaves_data(number) & bool(inputs.data)
        return {
            s: Found(
                largest((source == n) & ~there),
                float(sizes[(source == n) & there].max(initial=0.0)),
            )
            for n, s in enumerate(self.sources)
        }

    def _jobs(self, inputs: Inputs) -> tuple[np.ndarray, ...]:
        """Source, group and number of each path."""
        num_groups = self._paths.groups.max(1) + 1
        how = self.how
        most = how.budget / (num_groups.sum() * 2 * how.num_points * self._work)
        jobs = []
        for n, source in enumerate(self.sources):
            many = how.paths(_num_elements(self.program, source, inputs)) // num_groups[n]
            count = int(max(min(many, most), how.min_paths))
            jobs += itertools.product([n], range(num_groups[n]), range(count))
        # Those alike run together, since they take equally many steps.
        jobs.sort(key=lambda job: (bool(_is_short(job[2])), job))
        jobs += jobs[-1:] * (-len(jobs) % BATCH)  # a rest would be compiled by itself
        return tuple(np.array(jobs).T)


def work_of(jaxpr: Jaxpr) -> float:
    """How many numbers one evaluation computes."""
    total = 0.0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        inner = sum(work_of(j) for j in inner_jaxprs(eqn))
        total += times * inner or sum(math.prod(shape_of(v)) for v in eqn.outvars)
    return total


def _num_elements(program: Analysed, source: int | str, inputs: Inputs) -> int:
    """The dimension of the space in which the paths of a source run."""
    if isinstance(source, int):
        return math.prod(program.sites[source].sizes)
    return sum(x.size for x in inputs.params)


# What a path's number decides, in such a way that everything meets everything.


def _leaves_data(number: Any) -> Any:
    return number // 6 % 3 == 2


def _start(number: Any) -> tuple[Any, Any]:
    """By how much the parameters leave those given, relatively and absolutely: a jump may vanish there, as at weights of zero."""
    kind = number % 6
    return jnp.asarray([0, 0.1, 0, 0, 0, 1.0])[kind], jnp.asarray([0, 0, 1.0, 0, 3.0, 0])[kind]


def _step(number: Any) -> tuple[Any, Any]:
    """By how much a path in the space of the parameters changes them, relatively and absolutely."""
    kind = number % 4
    return jnp.asarray([0.1, 1.0, 0, 0])[kind], jnp.asarray([0, 0, 1.0, 3.0])[kind]


def _reach(number: Any) -> jax.Array:
    """Two of three paths of a site's value reach far beyond two draws."""
    return jnp.where(number // 18 % 3 > 0, 3.0, 0.0)


def _length(number: Any) -> jax.Array:
    """Short paths are spread evenly, by the golden ratio, over lengths in which steps below the threshold make a slope.

    Not shorter than those in which the rounding of a cast to float32 makes one, by `SLOPE`.
    """
    exponent = 4.2 + 0.7 * (number // 12 * 0.6180339887 % 1)
    return jnp.where(_is_short(number), 10.0**-exponent, 1.0)


def _is_short(number: Any) -> Any:
    """Every twelfth path."""
    return number % 12 == 3


class _Job(NamedTuple):
    """A path to be made: program and inputs, its own key, its source, its group of outputs, its number among those alike."""

    closed: ClosedJaxpr
    inputs: Inputs
    key: jax.Array
    source: jax.Array
    group: jax.Array
    number: jax.Array


class _State(NamedTuple):
    """On the way along a path: the step [a, b] in which a jump is looked for, and the outputs there."""

    n: Any
    num_lost: Any
    largest: jax.Array
    a: jax.Array
    b: jax.Array
    fa: list[jax.Array]
    fb: list[jax.Array]
    start: list[jax.Array]
    last: list[jax.Array]
    is_finite: jax.Array


class _Ends(NamedTuple):
    """The two ends of a path: parameters and values of sites; and what is the same all along."""

    params: tuple[list[Any], list[Any]]
    values: dict[int, tuple[jax.Array, jax.Array]]
    data: list[Any]
    noise: jax.Array
    length: jax.Array


class _Paths:
    """Makes paths and bisects them.

    Outputs are the additive terms of the result that may jump, and log-probs of sites whose parameters may. A
    jump of a term counts only if the result jumps with it: pieces of a spline jump at a knot, their sum does
    not. The outputs that count for a source are bisected in a few groups.
    """

    def __init__(
        self, program: Analysed, sources: list[int | str], is_double: bool, how: JumpSearch
    ) -> None:
        self.num_points = how.num_points
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
        self.is_term, counts = is_term[used], counts[:, used]
        self.groups = np.where(counts, (np.cumsum(counts, 1) - 1) % MAX_GROUPS, -1)
        self.is_double = is_double
        self.moves_params = np.array([isinstance(s, str) for s in sources])

    def jump(self, job: _Job) -> tuple[jax.Array, jax.Array]:
        """The size of the largest jump, 0 where it is none; whether any output was finite."""
        ends = self._ends(job)
        at = functools.partial(self._at, job, ends)
        counts = jnp.asarray(self.groups)[job.source] == job.group
        threshold = self.threshold
        is_short = (ends.length < 1) & self.is_double
        size, is_finite = self._follow(at, counts, jnp.where(is_short, TINY, threshold))
        # Small steps add up, if every short path meets one.
        is_jump = (size > threshold) | (is_short & (size > jnp.maximum(TINY, SLOPE * ends.length)))
        return jnp.where(is_jump, size, 0.0), is_finite

    def _follow(
        self, at: Callable[[jax.Array], list[jax.Array]], counts: jax.Array, enough: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The change that is left of the largest step of a grid after halving; whether an output that counts was finite.

        Halving goes toward the larger change of the outputs that count, until it is not above `enough`. Grid and halving are one
        loop, so that the program is compiled once.
        """
        num_points = self.num_points

        def change(x: list[jax.Array], y: list[jax.Array], scale: list[jax.Array]) -> jax.Array:
            """Largest change of the outputs that count, on a scale that is the same for all that are compared."""
            return jnp.max(jnp.where(counts, jnp.stack(_changes(x, y, scale)[:-1]), 0.0))

        def middle(s: _State) -> jax.Array:
            return s.a + jnp.asarray(SHARES)[s.num_lost] * (s.b - s.a)

        def goes_on(s: _State) -> jax.Array:
            m = middle(s)
            is_open = (s.n <= num_points + NUM_BISECTIONS) & (s.a < m) & (m < s.b)
            is_open &= (s.num_lost < len(SHARES) - 1) & (change(s.fa, s.fb, s.fa) > enough)
            return (s.n <= num_points) | is_open

        def go(s: _State) -> _State:
            on_grid = s.n <= num_points
            t = jnp.where(on_grid, s.n / num_points, middle(s))
            f = at(t)
            start = _choose(s.n == 0, f, s.start)
            last = _choose(s.n == 0, f, s.last)
            size = change(last, f, start)
            is_largest = on_grid & ((size > s.largest) | (s.n <= 1))
            # At a pole the value is lost; try beside it.
            lost = ~on_grid & (counts & jnp.stack(_are_lost(s.fa, f, s.fb))[:-1]).any()
            left = ~on_grid & ~lost & (change(s.fa, f, start) >= change(f, s.fb, start))
            right = ~on_grid & ~lost & ~left
            return _State(
                n=s.n + 1,
                num_lost=jnp.where(lost, s.num_lost + 1, 0),
                largest=jnp.where(on_grid, jnp.maximum(size, s.largest), s.largest),
                a=jnp.where(is_largest, t - 1 / num_points, jnp.where(right, t, s.a)),
                b=jnp.where(is_largest | left, t, s.b),
                fa=_choose(is_largest, last, _choose(right, f, s.fa)),
                fb=_choose(is_largest | left, f, s.fb),
                start=start,
                last=f,
                is_finite=s.is_finite | (counts & jnp.stack(_is_finite(f))[:-1]).any(),
            )

        shapes = jax.eval_shape(at, jnp.zeros(()))
        empty = [jnp.zeros(x.shape, x.dtype) for x in shapes]
        zero = jnp.zeros(())
        state = _State(0, 0, zero, zero, zero, empty, empty, empty, empty, jnp.zeros((), bool))
        s = jax.lax.while_loop(goes_on, go, state)
        changes = jnp.stack(_changes(s.fa, s.fb, s.fa))
        # Terms may jump against each other: compare the result's own jump with theirs.
        in_result = jnp.abs(s.fb[-1] - s.fa[-1])
        absolute = jnp.stack(
            [_largest(jnp.abs(y - x), x, y) for x, y in zip(s.fa, s.fb, strict=True)]
        )
        small, rounding = (1e-6, 1e-12) if self.is_double else (1e-2, 1e-5)
        cancels = in_result <= small * absolute[:-1] + rounding * jnp.abs(s.fa[-1])
        size = jnp.where(counts & ~(self.is_term & cancels), changes[:-1], 0.0).max()
        # Finite on both sides of a region without values: no jump that anything crosses unseen.
        is_apart = (s.num_lost == len(SHARES) - 1) & (s.b - s.a > 1e-9)
        return jnp.where(is_apart, 0.0, size), s.is_finite

    def _ends(self, job: _Job) -> _Ends:
        """A path's ends, which differ in its source; and the values of all other sites."""
        keys = jax.random.split(job.key, 8)
        number, sites = job.number, self.program.sites
        data = _other_data(job.inputs.data, keys[0], _leaves_data(number))
        params = moved(job.inputs.params, keys[1], *_start(number))
        length = _length(number)
        far = moved(params, keys[3], *_step(number))
        is_far = jnp.asarray(self.moves_params)[job.source]
        far = [
            jnp.where(is_far, x + length * (y - x), x).astype(x.dtype)
            for x, y in zip(params, far, strict=True)
        ]
        draws = self._draws(job.closed, [*params, *data], keys[4])
        values = {i: (x[0], x[0]) for i, x in draws.items()}
        # Rare values of discrete sites may open a branch: all are tried alike in half of the paths.
        for i, (x, _) in values.items():
            other = jnp.where(number // 2 % 2 == 0, x, _any_value(sites[i], x, keys[7]))
            values[i] = (other, other)
        for n, source in enumerate(self.sources):
            if isinstance(source, str):
                continue
            _, start, end, third = draws[source]
            if "slope" in sites[source].strategy.calls:
                # Between hard values: start anywhere between two of them.
                share = jnp.where(number % 2 == 0, jax.random.uniform(keys[5]), 0.0)
                start = start + share * (third - start)
            start, end = _reaching(sites[source], start, end, _reach(number))
            end = _resolved(start, end, LONGEST if self.is_double else LONGEST_32)
            end = start + length * (end - start)
            here = job.source == n
            kept = values[source][0]
            values[source] = (jnp.where(here, start, kept), jnp.where(here, end, kept))
        noise = keys[6] if self.moves_params.any() else job.inputs.key
        return _Ends((params, far), values, data, noise, length)

    def _draws(
        self, closed: ClosedJaxpr, leaves: list[Any], key: jax.Array
    ) -> dict[int, jax.Array]:
        """Four draws of every site."""
        atoms = [self.program.numbers[i].value for i in self.program.sites]
        draw = lambda key: evaluate(closed, [*leaves, key], {}, atoms)
        draws = jax.vmap(draw)(jax.random.split(key, 4))
        return dict(zip(self.program.sites, draws, strict=True))

    def _at(self, job: _Job, ends: _Ends, t: jax.Array) -> list[jax.Array]:
        """The outputs at a point of the path."""
        between = lambda a, b: (a + t * (b - a)).astype(a.dtype) if a.dtype != bool else a
        params = [between(a, b) for a, b in zip(*ends.params, strict=True)]
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
        leaves = [*params, *ends.data, ends.noise]
        found = evaluate(job.closed, leaves, forced, [*self.read, *self.factors])
        factors = dict(zip(self.factors, found[len(self.read) :], strict=True))
        value_of = lambda atom: factors[atom] if isinstance(atom, Var) else atom.val
        outputs = [x.astype(float) for x in found[: len(self.read)]]
        for n, term in self.terms.items():  # what it contributes to the result
            outputs[n] = outputs[n] * term.coefficient(value_of)
        return outputs


def _reaching(
    site: StrategySite, start: jax.Array, end: jax.Array, reach: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A path longer by `reach` times its length on both sides, or nearly up to the ends of an interval."""
    if site.is_unbounded:
        return start - reach * (end - start), end + reach * (end - start)
    if start.ndim > len(site.sizes) or site.range == REALS:  # a set of vectors, or an unknown one
        return start, end
    low, high = jnp.minimum(start, end), jnp.maximum(start, end)
    length = reach * (high - low)
    low = (
        low - length
        if math.isinf(site.range.low)
        else site.range.low + (low - site.range.low) / (1 + reach)
    )
    high = (
        high + length
        if math.isinf(site.range.high)
        else site.range.high - (site.range.high - high) / (1 + reach)
    )
    is_far = reach > 0
    return jnp.where(is_far, low, start), jnp.where(is_far, high, end)


def _resolved(start: jax.Array, end: jax.Array, longest: float) -> jax.Array:
    """The end of a path, nearer where the path is so long that its smallest steps are leaps (the draws of a heavy tail)."""
    if not jnp.issubdtype(start.dtype, jnp.floating):
        return end
    step = jnp.where(jnp.isfinite(end), end - start, 0.0)
    length, size = (jnp.abs(x).max(initial=0.0) for x in (step, start))
    most = longest * (1 + size)
    return jnp.where(length > most, start + most / length * step, end).astype(end.dtype)


def marker_layout(value: jax.Array, site: StrategySite) -> jax.Array:
    """A site's value with its axes in the order of its marker."""
    order = np.argsort(axis_order(site))
    return jnp.transpose(value, [*map(int, order), *range(len(order), value.ndim)])


def _any_value(site: StrategySite, x: jax.Array, key: jax.Array) -> jax.Array:
    """A value of a discrete site with few values, all with the same probability; else `x`."""
    key = jax.random.fold_in(key, site.index)
    if site.is_one_hot:
        hot = jax.random.randint(key, x.shape[:-1], 0, x.shape[-1])
        return jax.nn.one_hot(hot, x.shape[-1], dtype=x.dtype)
    if site.bounds is None or not site.is_discrete:
        return x
    return jax.random.randint(key, x.shape, site.bounds[0], site.bounds[1] + 1).astype(x.dtype)


def _choose(first: jax.Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda u, v: jnp.where(first, u, v), x, y)


def moved(leaves: list[Any], key: jax.Array, relative: jax.Array, absolute: jax.Array) -> list[Any]:
    """Parameters with noise: relative noise keeps the sign of those that must be positive (mostly), and is absolute at zero."""
    noise = _drawn(quick_normal, key, leaves)
    by = [
        (relative * jnp.where(x == 0, 1.0, x) + absolute) * n
        for x, n in zip(leaves, noise, strict=True)
    ]
    return [x + b.astype(x.dtype) for x, b in zip(leaves, by, strict=True)]


def _other_data(data: list[Any], key: jax.Array, leaves: jax.Array) -> list[Any]:
    """Arrays of the same kind with other contents, where they leave those given."""
    k1, k2, k3 = jax.random.split(key, 3)
    is_real = [jnp.issubdtype(x.dtype, jnp.floating) for x in data]
    normals = iter(
        _drawn(quick_normal, k1, [x for x, real in zip(data, is_real, strict=True) if real])
    )
    draw_digits = lambda key, shape: jax.random.randint(key, shape, 0, 6)
    digits = iter(
        _drawn(draw_digits, k2, [x for x, real in zip(data, is_real, strict=True) if not real])
    )
    kinds = jax.random.randint(k3, (len(data), 2), 0, 3)
    out = []
    for x, real, (kind, spread) in zip(data, is_real, kinds, strict=True):
        if not real:
            digit = next(digits)
            other = digit % 2 == 0 if x.dtype == bool else digit.astype(x.dtype)
        else:
            noise = next(normals)
            near = x * (1 + noise) + jnp.where(kind == 0, noise, 0.0)
            fresh = jnp.where(jnp.isnan(x), jnp.nan, noise * jnp.asarray([0.3, 1.0, 3.0])[spread])
            other = jnp.where(kind == 2, fresh, near).astype(x.dtype)
        out.append(jnp.where(leaves, other, x))
    return out


def _drawn(draw: Callable[..., jax.Array], key: jax.Array, like: list[Any]) -> list[jax.Array]:
    """Random arrays of these shapes, by one call: each call of a sampler takes a tenth of a second to compile."""
    sizes = [x.size for x in like]
    parts = jnp.split(draw(key, (sum(sizes),)), np.cumsum(sizes)[:-1]) if like else []
    return [part.reshape(x.shape) for part, x in zip(parts, like, strict=True)]


def _is_finite(outputs: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).any() for x in outputs]


def _are_lost(a: list[jax.Array], m: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    """Whether a value between two finite ones is not finite."""
    lost = lambda x, y, z: (jnp.isfinite(x) & jnp.isfinite(z) & ~jnp.isfinite(y)).any()
    return [lost(x, y, z) for x, y, z in zip(a, m, b, strict=True)]


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
