"""Ranges: which real numbers an array of a traced program can hold.

Input: an equation and the ranges of its operands. Output: the range of each result, an interval that holds every element
whatever the sites and parameters are. An infinite end is never attained, since an array that becomes infinite is followed by
other means (`_continuity.py`). What has no rule may be any real number. Booleans are the numbers 0 and 1, so that a comparison
whose outcome is certain has the range {0} or {1}.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions import constraints

from .._compat import Equation, Tracer
from ..distributions import of_elements
from ._axis_rules import shape_of

MAX_SIZE = 1_000_000  # of a constant whose smallest and largest element are looked up


class Range(NamedTuple):
    """An interval of real numbers; `above`, `below`: its ends are not attained."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = True
    below: bool = True

    @property
    def is_positive(self) -> bool:
        return self.low > 0 or (self.low == 0 and self.above)

    @property
    def is_nonzero(self) -> bool:
        return self.is_positive or self.negative.is_positive

    @property
    def is_number(self) -> bool:
        return self.low == self.high

    @property
    def negative(self) -> Range:
        return Range(-self.high, -self.low, self.below, self.above)

    def is_within(self, low: float, high: float) -> bool:
        """Whether it lies inside the open interval (low, high)."""
        return (self.low > low or (self.low == low and self.above)) and (
            self.high < high or (self.high == high and self.below)
        )


REALS = Range()
POSITIVE = Range(0.0)
NONNEGATIVE = Range(0.0, above=False)
UNIT = Range(0.0, 1.0)
BITS = Range(0.0, 1.0, False, False)


def number(value: float) -> Range:
    """The range of a constant."""
    return Range(value, value, False, False)


def union(ranges: Iterable[Range]) -> Range:
    """The smallest range that holds all of them."""
    return functools.reduce(_union, ranges)


def _union(a: Range, b: Range) -> Range:
    low = min((a.low, a.above), (b.low, b.above))
    high = max((a.high, not a.below), (b.high, not b.below))
    return Range(low[0], high[0], low[1], not high[1])


def widened(old: Range, new: Range) -> Range:
    """A range that holds both, and after few repetitions everything that a loop can lead to."""
    both = _union(old, new)
    return Range(
        both.low if both.low == old.low else -math.inf,
        both.high if both.high == old.high else math.inf,
        both.above if both.low == old.low else True,
        both.below if both.high == old.high else True,
    )


def range_of_constant(value: PyTree) -> Range:
    """The range of a value that is known when the program is traced."""
    if isinstance(value, Tracer) or not hasattr(value, "dtype"):
        is_plain = isinstance(value, bool | int | float) and math.isfinite(value)
        return number(float(value)) if is_plain else REALS
    is_number = jnp.issubdtype(value.dtype, jnp.number) or value.dtype == jnp.bool_
    is_real = is_number and not jnp.issubdtype(value.dtype, jnp.complexfloating)
    if not is_real or not 0 < np.size(value) <= MAX_SIZE:
        return REALS
    array = np.asarray(value)
    low, high = float(array.min()), float(array.max())
    return Range(low, high, False, False) if math.isfinite(low + high) else REALS


def range_of_support(support: PyTree) -> Range:
    """The range of the draws of a law with density on `support`, whose edges have no mass."""
    support = of_elements(support)
    if support is constraints.simplex:
        return Range(0.0, 1.0, True, False)  # one component alone is 1
    if any(support is c for c in (constraints.positive, constraints.softplus_positive)):
        return POSITIVE
    if support is constraints.boolean:
        return BITS
    bounds = {n: getattr(support, n, None) for n in ("lower_bound", "upper_bound")}
    known = {n: range_of_constant(x) for n, x in bounds.items() if x is not None}
    if not known:
        return REALS
    edge = bool(getattr(support, "is_discrete", False))
    low, high = known.get("lower_bound", REALS).low, known.get("upper_bound", REALS).high
    return Range(low, high, not edge or low == -math.inf, not edge or high == math.inf)


# Arithmetic.


def _add(a: Range, b: Range) -> Range:
    return Range(a.low + b.low, a.high + b.high, a.above or b.above, a.below or b.below)


def _sub(a: Range, b: Range) -> Range:
    return _add(a, b.negative)


def _mul(a: Range, b: Range) -> Range:
    products = [
        _product(x, y)
        for x in ((a.low, a.above), (a.high, a.below))
        for y in ((b.low, b.above), (b.high, b.below))
    ]
    low = min(products)
    high = max((value, not is_open) for value, is_open in products)
    # Zero is attained inside of an interval, whatever its ends are.
    if low[0] == 0 and not (a.is_nonzero and b.is_nonzero):
        low = (0.0, False)
    if high[0] == 0 and not (a.is_nonzero and b.is_nonzero):
        high = (0.0, True)
    return Range(low[0], high[0], low[1], not high[1])


def _product(x: tuple[float, bool], y: tuple[float, bool]) -> tuple[float, bool]:
    """The product of two ends, and whether it is not attained."""
    value = 0.0 if x[0] == 0 or y[0] == 0 else x[0] * y[0]
    if value == 0:
        return value, not ((x[0] == 0 and not x[1]) or (y[0] == 0 and not y[1]))
    return value, x[1] or y[1]


def _reciprocal(a: Range) -> Range:
    if not a.is_nonzero:
        return REALS
    if not a.is_positive:
        return _reciprocal(a.negative).negative
    inverse = lambda x: math.inf if x == 0 else 1 / x
    return Range(inverse(a.high), inverse(a.low), a.below, a.above)


def _max(a: Range, b: Range) -> Range:
    low = max((a.low, a.above), (b.low, b.above))
    high = max((a.high, not a.below), (b.high, not b.below))
    return Range(low[0], high[0], low[1], not high[1])


def _min(a: Range, b: Range) -> Range:
    return _max(a.negative, b.negative).negative


def _abs(a: Range) -> Range:
    if a.low >= 0:
        return a
    if a.high <= 0:
        return a.negative
    largest = max((-a.low, not a.above), (a.high, not a.below))
    return Range(0.0, largest[0], False, not largest[1])


def _power(a: Range, n: int) -> Range:
    if n < 0:
        return _reciprocal(_power(a, -n))
    if n == 0:
        return number(1.0)
    if n % 2 == 0:
        a = _abs(a)
    return Range(_safe(lambda x: x**n, a.low), _safe(lambda x: x**n, a.high), a.above, a.below)


def _pow(a: Range, b: Range) -> Range:
    if b.is_number and b.low == round(b.low):
        return _power(a, int(b.low))
    if a.is_positive:
        return POSITIVE
    return NONNEGATIVE if a.low >= 0 else REALS


def _times(a: Range, count: int) -> Range:
    """The sum of `count` numbers."""
    return _mul(a, number(float(count))) if count else number(0.0)


def _safe(fn: Callable[[float], float], x: float) -> float:
    """A function at an end of a range; infinite beyond the numbers that fit."""
    try:
        return fn(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf
    except ValueError:
        return math.nan


def _rising(fn: Callable[[float], float], low: float, high: float) -> Callable[[Range], Range]:
    """The rule of a function that rises from `low` at -inf (or the start of its domain) to `high`, attained only where finite."""

    def rule(a: Range) -> Range:
        ends = (_safe(fn, a.low), _safe(fn, a.high))
        if any(math.isnan(x) for x in ends):
            return Range(low, high, False, False) if math.isfinite(low) else REALS
        above = a.above or ends[0] == low
        return Range(ends[0], ends[1], above, a.below or ends[1] == high)

    return rule


def _logistic(x: float) -> float:
    return 0.0 if x == -math.inf else 1 / (1 + math.exp(-x))


def _exp(x: float) -> float:
    return 0.0 if x == -math.inf else math.exp(x)


def _log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


UNARY: dict[str, Callable[[Range], Range]] = {
    "neg": lambda a: a.negative,
    "abs": _abs,
    "exp": _rising(_exp, 0.0, math.inf),
    "exp2": _rising(lambda x: _exp(x * math.log(2)), 0.0, math.inf),
    "expm1": _rising(lambda x: _exp(x) - 1, -1.0, math.inf),
    "log": lambda a: _rising(_log, -math.inf, math.inf)(a) if a.low >= 0 else REALS,
    "log1p": lambda a: (
        _rising(lambda x: _log(1 + x), -math.inf, math.inf)(a) if a.low >= -1 else REALS
    ),
    "sqrt": lambda a: _rising(math.sqrt, 0.0, math.inf)(a)._replace(above=a.is_positive) if a.low >= 0 else NONNEGATIVE,
    "rsqrt": lambda a: POSITIVE,
    "logistic": _rising(_logistic, 0.0, 1.0),
    "tanh": _rising(math.tanh, -1.0, 1.0),
    "erf": _rising(math.erf, -1.0, 1.0),
    "erfc": lambda a: Range(0.0, 2.0),
    "atan": _rising(math.atan, -math.pi / 2, math.pi / 2),
    "acos": lambda a: Range(0.0, math.pi, False, False),
    "asin": lambda a: Range(-math.pi / 2, math.pi / 2, False, False),
    "sin": lambda a: Range(-1.0, 1.0, False, False),
    "cos": lambda a: Range(-1.0, 1.0, False, False),
    "cosh": lambda a: Range(1.0, above=False),
    "sign": lambda a: number(1.0) if a.is_positive else Range(-1.0, 1.0, False, False),
    "square": lambda a: _power(a, 2),
    "one_minus_square": lambda a: _sub(number(1.0), _power(a, 2)),
    "reciprocal": _reciprocal,
    "not": lambda a: _sub(number(1.0), a) if a in (number(0.0), number(1.0)) else BITS,
    "is_finite": lambda a: BITS,
}  # fmt: skip
BINARY: dict[str, Callable[[Range, Range], Range]] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": lambda a, b: _mul(a, _reciprocal(b)),
    "max": _max,
    "min": _min,
    "pow": _pow,
    "and": _min,
    "or": _max,
}
# Results hold elements of the operands, and nothing else.
CARRIED = frozenset(
    """
    broadcast_in_dim broadcast_to concatenate copy copy_p device_put dynamic_slice dynamic_update_slice gather
    cummax cummin optimization_barrier pad real reduce_and reduce_max reduce_min reduce_or reshape rev scatter
    sharding_constraint slice split squeeze stack stop_gradient tile transpose unstack
    """.split()
)
# Of the operands, the first ones only are values; the others say where.
PLACED = {"dynamic_slice": 1, "gather": 1, "dynamic_update_slice": 2}


def ranges_of(eqn: Equation, operands: Sequence[Range]) -> list[Range]:
    """The ranges of an equation's results, from those of its operands."""
    name, outs = eqn.primitive.name, eqn.outvars
    if name in ("sort", "optimization_barrier") and len(operands) == len(outs):
        return list(operands)
    if name == "top_k":
        return [operands[0], REALS]
    if not outs or (len(outs) != 1 and name not in CARRIED):
        return [REALS] * len(outs)
    return [_range(name, eqn, operands)] * len(outs)


def _range(name: str, eqn: PyTree, operands: Sequence[Range]) -> Range:
    dtype: Any = getattr(eqn.outvars[0].aval, "dtype", None)
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        return REALS
    if name in UNARY:
        return UNARY[name](operands[0])
    if name in BINARY:
        if name in ("and", "or") and dtype != jnp.bool_:
            return REALS
        return BINARY[name](operands[0], operands[1])
    if name in CARRIED:
        return union(operands[: PLACED.get(name, len(operands))])
    return _OTHERS.get(name, lambda *_: REALS)(eqn, operands)


def _converted(eqn: Equation, operands: Sequence[Range]) -> Range:
    kind, a = eqn.params["new_dtype"], operands[0]
    if kind == jnp.bool_:
        return number(1.0) if a.is_nonzero else number(0.0) if a == number(0.0) else BITS
    if jnp.issubdtype(kind, jnp.integer):
        if a.is_number:
            return number(float(math.trunc(a.low)))
        return Range(
            math.floor(a.low) if math.isfinite(a.low) else a.low,
            math.ceil(a.high) if math.isfinite(a.high) else a.high,
            not math.isfinite(a.low),
            not math.isfinite(a.high),
        )
    return a


def _compared(eqn: Equation, operands: Sequence[Range]) -> Range:
    """1 or 0 where the ranges decide."""
    name = eqn.primitive.name
    a, b = operands[:2]
    if name in ("gt", "ge"):
        a, b, name = b, a, {"gt": "lt", "ge": "le"}[name]
    if name in ("eq", "ne"):
        apart = _is_below(a, b) or _is_below(b, a)
        return number(float(name == "ne")) if apart else BITS
    if name == "lt":
        return number(1.0) if _is_below(a, b) else number(0.0) if b.high <= a.low else BITS
    return number(1.0) if a.high <= b.low else number(0.0) if _is_below(b, a) else BITS


def _is_below(a: Range, b: Range) -> bool:
    """Whether a < b is certain."""
    return a.high < b.low or (a.high == b.low and math.isfinite(a.high) and (a.below or b.above))


def _selected(eqn: Equation, operands: Sequence[Range]) -> Range:
    which = operands[0]
    return operands[1 + int(which.low)] if which.is_number else union(operands[1:])


def _summed(eqn: Equation, operands: Sequence[Range]) -> Range:
    out = math.prod(shape_of(eqn.outvars[0]))
    return _times(operands[0], math.prod(shape_of(eqn.invars[0])) // max(out, 1))


def _cumulated(eqn: Equation, operands: Sequence[Range]) -> Range:
    count = shape_of(eqn.invars[0])[eqn.params["axis"]]
    return _union(operands[0], _times(operands[0], count))


def _multiplied(eqn: Equation, operands: Sequence[Range]) -> Range:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    count = math.prod(shape_of(eqn.invars[0])[a] for a in contracted)
    return _times(_mul(operands[0], operands[1]), count)


def _all_multiplied(eqn: Equation, operands: Sequence[Range]) -> Range:
    return _pow(operands[0], REALS)


def _clamped(eqn: Equation, operands: Sequence[Range]) -> Range:
    low, x, high = operands
    return _max(low, _min(x, high))


_OTHERS: dict[str, Callable[[PyTree, Sequence[Range]], Range]] = {
    **dict.fromkeys("eq ne lt le gt ge".split(), _compared),
    "clamp": _clamped,
    "convert_element_type": _converted,
    "cumsum": _cumulated,
    "dot_general": _multiplied,
    "integer_pow": lambda eqn, operands: _power(operands[0], eqn.params["y"]),
    "iota": lambda eqn, _: Range(
        0.0, max(0.0, shape_of(eqn.outvars[0])[eqn.params["dimension"]] - 1.0), False, False
    ),
    "random_gamma": lambda eqn, _: REALS if eqn.params["log_space"] else POSITIVE,
    "reduce_prod": _all_multiplied,
    "cumprod": _all_multiplied,
    "reduce_sum": _summed,
    "select_n": _selected,
}
