"""Parameters of laws beyond what the laws are defined for: numbers of the program once, the others on draws of the prior.

At such a parameter a law may have a finite density (Bernoulli at a probability of 1.3), or NaN, which chains take for a place
that cannot be: the posterior is then that of another prior, cut to where the law is one. What is proved to be inside (by ranges,
draws having those of their supports) costs a trace at most, and nothing is computed. Where a program draws vectors that sum to
one, those among its probabilities are taken for such: rows of transitions are picked by states, and no range knows a sum.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, PyTree
from numpyro.distributions import constraints

from ...ppl._compat import ClosedJaxpr, Tracer, Var, is_concrete
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Key, Message
from ...ppl.distributions import base_of, is_masked, of_elements
from ...ppl.evaluation import evaluate
from ...ppl.jaxprs import Analysis, Range, mark, range_of_support
from ...ppl.language import Program
from ...ppl.traces import LOOK, StatementLook, stand_ins
from .._arguments import Arguments
from .._depends import depends
from .._host_keys import default_key

_DRAWS, _FEWEST, _WORK = 200, 20, 2e7  # draws of the prior; times numbers of the arguments
_MOST = 3e7  # numbers of the arguments
_REFUSED = 0.05  # of the draws
_ROUNDING = 1e-6  # of what has two ends, or a total of one
_REMEDY = (
    "Make it of what cannot leave these: a law that is positive (HalfNormal, LogNormal) or between 0 and 1 (Beta), or "
    "jax.nn.softplus, jnp.exp, jax.nn.sigmoid, jax.nn.softmax of what is there"
)


class ParameterNumbers(NamedTuple):
    """What is kept of one statement; 0 in the first two where nothing is wrong.

    Attributes:
        beyond: 1 + the number of a parameter that is beyond the closure of where it may be.
        wrong: 1 + the number of one that is where it may not be, ends included.
        value: an entry of the latter.
        share: of its entries that are like that.
    """

    beyond: Array
    wrong: Array
    value: Array
    share: Array


@dataclasses.dataclass
class Suspects:
    """A look at a run for statements whose parameters are computed, and are no draw that lies inside anyway.

    Attributes:
        known: arguments, by `id`, which are compared by name elsewhere.
        names: of these statements.
    """

    known: Collection[int]
    names: set[str] = dataclasses.field(default_factory=set)
    _drawn: dict[int, Message] = dataclasses.field(default_factory=dict)
    _last: Message | None = None

    def met(self, msg: Message) -> None:
        """StatementLook at one statement; the one before has its value by now."""
        if (last := self._last) is not None:
            self._drawn[id(last["value"])] = last  # keeps the value, so that no other has its id
        self._last = msg
        for p in _parameters(msg["fn"]):
            law = self._drawn.get(id(p.value))
            is_known = id(p.value) in self.known or (law is not None and p.holds(law["fn"]))
            if p.is_open and not is_known:
                self.names.add(msg["name"])


def check_parameters(method: str, program: Program, args: tuple, suspects: Collection[str]) -> None:
    """Refuse parameters beyond what their laws are defined for, and tell of those that few draws of the prior bring there.

    Raises:
        ValueError: with site, parameter and value, or the share of the draws.
    """
    split = Arguments(args)
    arrays = split.arrays(args)
    is_small = sum(int(np.size(x)) for x in arrays) <= _MOST
    if not suspects or not is_small or not is_concrete(arrays) or not all(map(_is_near, arrays)):
        return
    run = _MarkedRun.of(program, split, arrays, suspects)
    if not is_concrete(run.closed.consts):  # of a trace around the call
        return
    unproved = lambda atom: run.facts[atom].range != Range(0.0, 0.0, False, False)
    known = [s for s in run.sites if not s.moves and unproved(s.numbers.wrong)]
    drawn = [s for s in run.sites if s.moves and unproved(s.numbers.beyond)]
    for site, numbers in run.at_once(known):
        if (worst := _worst(numbers, numbers.wrong)) is not None:
            label, value, share = site.labels[worst[0]], *worst[1:]
            raise ValueError(
                f"{method}: site '{site.name}' of {program!r}: {label} is {value:g} ({share:.0%} of its entries are not right), "
                "where the law has no density. Correct what it is computed from."
            )
    if not drawn:
        return
    for site, numbers in run.on_draws(drawn):
        if (worst := _worst(numbers, numbers.beyond)) is None:
            continue
        label, value = site.labels[worst[0]], worst[1]
        bad = numbers.beyond.reshape(len(numbers.beyond), -1).any(1).mean()
        what = (
            f"{method}: site '{site.name}' of {program!r}: {label} is not so in {bad:.1%} of {len(numbers.beyond)} draws of the "
            f"prior, {value:g} in one of them, and there the law is none"
        )
        if bad > _REFUSED:
            raise ValueError(f"{what}. {_REMEDY}.")
        warnings.warn(
            f"{what}: the prior is taken as cut to where it is one. {_REMEDY}.", stacklevel=4
        )


class _Parameter(NamedTuple):
    """One number, or array, that has to lie somewhere."""

    law: str
    name: str
    constraint: Any
    value: Any

    @property
    def is_open(self) -> bool:
        """Whether nobody knows yet; what is known NumPyro has compared, but for the ends of an interval."""
        if isinstance(self.value, Tracer) or not isinstance(self.constraint, _Below):
            return isinstance(self.value, Tracer)
        return isinstance(self.constraint.end, Tracer) or bool(np.any(self.breaks(is_strict=True)))

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.name} of {self.law} ({_allowed(self.constraint)})"

    def holds(self, law: dist.Distribution) -> bool:
        """Whether the draws of a law are all where the parameter may be."""
        if of_elements(law.support) is self.constraint:
            return True
        found, ends = range_of_support(law.support), _ends(self.constraint)
        return ends is not None and ends[0] <= found.low and found.high <= ends[1]

    def breaks(self, *, is_strict: bool) -> Any:
        """Which of its entries are not where they may be: ends included, or beyond the ends alone."""
        if isinstance(self.constraint, _Below):
            low, high = self.value, self.constraint.end
            return low >= high if is_strict else low > high
        x, own = jnp.asarray(self.value), self.constraint
        if own is constraints.simplex:
            total = jnp.abs(x.sum(-1) - 1) > _ROUNDING * (10 + x.shape[-1])
            return (x < -_ROUNDING).any(-1) | total
        if own in _ORDERED:
            return (jnp.diff(x) < 0).any(-1)
        if own in _TRIANGULAR or own is constraints.positive_definite:
            # Of draws rounding may make one that is none, which whoever needs a root of it sees.
            if not is_strict:
                return jnp.zeros((), bool)
            is_root = own in _TRIANGULAR
            return (jnp.diagonal(x, axis1=-2, axis2=-1) <= 0).any(-1) if is_root else _indefinite(x)
        low, high = _ends(own) or (0.0, np.inf)
        slack = _ROUNDING if np.isfinite([low, high]).all() else 0.0
        is_open = isinstance(own, _OPEN) and not isinstance(own, constraints.greater_than_eq)
        found = []
        if np.isfinite(low):
            found.append(x <= low if is_strict and is_open else x < low - slack)
        if np.isfinite(high):
            found.append(x > high + slack)
        return found[0] if len(found) == 1 else found[0] | found[1]


class _Below(NamedTuple):
    """The constraint of the lower end of an interval."""

    end: Any


_ORDERED = (constraints.ordered_vector, constraints.positive_ordered_vector)
_TRIANGULAR = (constraints.lower_cholesky, constraints.scaled_unit_lower_cholesky)
_OTHERS = (constraints.simplex, constraints.positive_definite, *_ORDERED, *_TRIANGULAR)
_OPEN = constraints.greater_than


def _parameters(fn: dist.Distribution) -> Iterator[_Parameter]:
    """Parameters that have to lie somewhere, of a law and of those that it is made of; none under a mask."""
    law: Any = base_of(fn)
    if is_masked(fn) or not isinstance(law, dist.Distribution):
        return
    if isinstance(law, dist.Uniform):
        yield _Parameter("Uniform", "low", _Below(law.high), law.low)
    for name, constraint in law.arg_constraints.items():
        own, value = of_elements(constraint), vars(law).get(name)
        if value is not None and (_ends(own) or any(own is c for c in _OTHERS)):
            yield _Parameter(type(law).__name__, name, own, value)
    parts = [getattr(law, n, None) for n in ("base_dist", "mixing_distribution", "component_distribution")]  # fmt: skip
    for part in [*parts, *(getattr(law, "component_distributions", None) or ())]:
        if isinstance(part, dist.Distribution):
            yield from _parameters(part)


def _ends(constraint: Any) -> tuple[float, float] | None:
    """The least and the largest number that it allows, if these are known."""
    if isinstance(constraint, _Below) or constraints.is_dependent(constraint):
        return None
    low, high = (getattr(constraint, n, None) for n in ("lower_bound", "upper_bound"))
    if low is None and high is None:
        return None
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    if isinstance(low, Tracer) or isinstance(high, Tracer) or np.ndim(low) or np.ndim(high):
        return None
    return float(low), float(high)


def _allowed(constraint: Any) -> str:
    """Where it allows numbers, in words."""
    if isinstance(constraint, _Below):
        return "below its upper end"
    if constraint is constraints.simplex:
        return "from 0 to 1, with the sum 1"
    if constraint is constraints.positive_definite:
        return "symmetric and positive definite"
    if constraint in _TRIANGULAR:
        return "with a positive diagonal"
    if (ends := _ends(constraint)) is None:
        return "in order"
    low, high = ends
    if np.isfinite([low, high]).all():
        return f"from {low:g} to {high:g}"
    return "positive" if low == 0 else f"from {low:g}" if np.isfinite(low) else f"up to {high:g}"


def _indefinite(x: Array) -> Array:
    """By more than rounding: of a matrix of single precision."""
    size = jnp.abs(x).max((-2, -1)) * 1e-5 * x.shape[-1]
    skew = jnp.abs(x - jnp.swapaxes(x, -2, -1)).max((-2, -1)) > 10 * size
    return skew | (jnp.linalg.eigvalsh(x)[..., 0] < -size)


def _numbers(msg: Message, has_simplex: bool) -> ParameterNumbers:
    """See `ParameterNumbers`; of all its parameters the last that is wrong."""
    beyond, wrong = jnp.zeros((), int), jnp.zeros((), int)
    value = share = jnp.zeros(())
    for number, p in enumerate(_parameters(msg["fn"]), 1):
        if p.is_open:
            # As numbers, since ranges are known of those.
            if not (has_simplex and p.constraint is constraints.simplex):
                is_beyond = jnp.asarray(p.breaks(is_strict=False), int).max(initial=0)
                beyond = jnp.maximum(beyond, number * is_beyond)
            bad = jnp.asarray(p.breaks(is_strict=True))
            entries = jnp.asarray(p.value, float)
            # Of a vector or a matrix its first entry stands for it.
            for _ in range(getattr(p.constraint, "event_dim", 0)):
                entries = entries[..., 0]
            entries = jnp.broadcast_to(entries, bad.shape)
            wrong = jnp.maximum(wrong, number * jnp.asarray(bad, int).max(initial=0))
            first = entries.ravel()[jnp.argmax(bad.ravel())]
            value = jnp.where(bad.any(), first, value)
            share = jnp.where(bad.any(), bad.mean(), share)
    return ParameterNumbers(beyond, wrong, value, share)


class _Site(NamedTuple):
    """A statement of a traced run: the atoms of its numbers, and whether its parameters move with a draw."""

    name: str
    labels: dict[int, str]
    numbers: ParameterNumbers
    moves: bool


class _MarkedRun(NamedTuple):
    """A traced run whose draws have markers."""

    closed: ClosedJaxpr
    facts: Analysis
    sites: list[_Site]
    arrays: list[PyTree]

    @classmethod
    def of(
        cls, program: Program, split: Arguments, arrays: list[PyTree], names: Collection[str]
    ) -> _MarkedRun:
        """Of those statements."""
        labels: dict[str, dict[int, str]] = {}
        ranges: dict[int, tuple[Range, frozenset[int]]] = {}
        has_simplex = False

        def met(msg: Message) -> ParameterNumbers:
            if msg["name"] not in names:
                zero = jnp.zeros((), int)
                return ParameterNumbers(zero, zero, jnp.zeros(()), jnp.zeros(()))
            labels[msg["name"]] = {i: p.label for i, p in enumerate(_parameters(msg["fn"]), 1)}
            return _numbers(msg, has_simplex)

        def drawn(msg: Message, value: Array) -> Array:
            nonlocal has_simplex
            has_simplex |= of_elements(msg["fn"].support) is constraints.simplex
            number = len(ranges)
            ranges[number] = (range_of_support(msg["fn"].support), frozenset([number]))
            return mark(value, [], [], index=number)

        def run(key: Key, arrays: list[Array]) -> dict[str, ParameterNumbers]:
            token = LOOK.set(StatementLook(met, drawn))
            try:
                return dict(program.simulate(key, *split.join(arrays)).seen)
            finally:
                LOOK.reset(token)

        with stand_ins():
            closed, shapes = jax.make_jaxpr(run, return_shape=True)(default_key(), arrays)
        found = jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
        moved = depends(closed.jaxpr, [True, *[False] * len(arrays)])
        moves = jax.tree.unflatten(jax.tree.structure(shapes), moved)
        facts = Analysis(closed, [False] * len(closed.jaxpr.invars), ranges)
        sites = [_Site(n, x, found[n], moves[n].wrong) for n, x in labels.items() if n in found]
        return cls(closed, facts, sites, arrays)

    def at_once(self, sites: Sequence[_Site]) -> list[tuple[_Site, ParameterNumbers]]:
        """Their numbers, which move with no draw."""
        if not sites:
            return []
        run = shared_jit(lambda arrays: self._numbers(sites, default_key(), arrays))
        with jax.ensure_compile_time_eval():  # within a trace, too
            return list(zip(sites, jax.device_get(run(self.arrays)), strict=True))

    def on_draws(self, sites: Sequence[_Site]) -> list[tuple[_Site, ParameterNumbers]]:
        """Their numbers [draws, ...] at draws of the prior."""
        size = max(1, sum(int(np.size(x)) for x in self.arrays))
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(default_key(), int(np.clip(_WORK / size, _FEWEST, _DRAWS)))
        batch = int(np.clip(1e6 / size, 1, len(keys)))
        run = shared_jit(
            lambda keys, arrays: jax.lax.map(
                lambda key: self._numbers(sites, key, arrays), keys, batch_size=batch
            )
        )
        with jax.ensure_compile_time_eval():
            return list(zip(sites, jax.device_get(run(keys, self.arrays)), strict=True))

    def _numbers(
        self, sites: Sequence[_Site], key: Key, arrays: list[Array]
    ) -> list[ParameterNumbers]:
        read = cast("list[Var]", [x for site in sites for x in site.numbers])
        found = evaluate(self.closed, [key, *arrays], {}, read)
        return [ParameterNumbers(*found[i : i + 4]) for i in range(0, len(found), 4)]


def _worst(numbers: ParameterNumbers, which: Array) -> tuple[int, float, float] | None:
    """Number, entry and share of a parameter that is wrong; None if none is."""
    at = np.flatnonzero(np.ravel(which))
    if not len(at):
        return None
    first = int(at[0])
    return int(np.ravel(which)[first]), float(np.ravel(numbers.value)[first]), float(np.ravel(numbers.share)[first])  # fmt: skip


def _is_near(array: ArrayLike) -> bool:
    """Whether an array is in this machine's memory, on one device."""
    return not isinstance(array, np.memmap) and (
        not isinstance(array, jax.Array) or len(array.devices()) == 1
    )
