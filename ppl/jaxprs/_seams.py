"""Choices that are continuous because their two branches agree where they meet: `where(x > 0, x, 0.01 * x)`.

Input: an elementwise comparison a > b and two branches, as terms over variables of which nothing is known. Output: whether
the branches are proved equal wherever a = b. On that seam one variable of the comparison, which occurs once in it, is a function
of all the others: `where(u > t, (u - t)**2, 0)` has the seam u = t. The branches are evaluated there at many values of the
others. What they are made of is analytic in each variable, so that they agree everywhere if they agree at random numbers; a
function with a kink is admitted where both of its sides were met.

This saves a search for jumps (`checks/_jumps.py`), which costs seconds of compilation; where there is no proof, there is a
search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

NUM_TRIALS = 128
MIN_TRIALS = 16
MAX_SIZE = 200  # operations looked at
TOLERANCE = 1e-6  # constants of 32 bits; a search finds jumps from 1e-5

Values = np.ndarray


def _logistic(x: Values) -> Values:
    return 1 / (1 + np.exp(-x))


ANALYTIC: Mapping[str, Callable[..., Values]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "logistic": _logistic,
    "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "sinh": np.sinh, "cosh": np.cosh, "atan": np.arctan,
    "square": np.square, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip
KINKED: Mapping[str, Callable[..., Values]] = {
    "abs": np.abs, "sign": np.sign, "max": np.maximum, "min": np.minimum,
}  # fmt: skip
ORDERS = frozenset({"lt", "le", "gt", "ge"})
EQUALITIES = frozenset({"eq", "ne"})


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Expression:
    """How one element of a variable comes about; by identity, so that one variable is one term.

    Attributes:
        operation: a primitive's name; "" of a variable of which nothing is known; "constant".
        operands: its operands.
        number: the constant, or an exponent.
    """

    operation: str = ""
    operands: tuple[Expression, ...] = ()
    number: float = 0.0


def constant_term(value: PyTree) -> Expression:
    """The term of a value that is part of the program."""
    is_number = isinstance(value, int | float | np.number | np.ndarray) and np.isrealobj(value)
    is_number = is_number and np.ndim(value) == 0
    return Expression("constant", number=float(value)) if is_number else Expression()


def term_of(eqn: PyTree, operands: list[Expression]) -> Expression:
    """The term of an equation's only result."""
    name = eqn.primitive.name
    out = eqn.outvars[0].aval
    if name in ANALYTIC or name in KINKED or name in ORDERS | EQUALITIES:
        return Expression(name, tuple(operands))
    if name == "integer_pow":
        return Expression(name, tuple(operands), eqn.params["y"])
    if name == "copy" or (name == "broadcast_in_dim" and not eqn.invars[0].aval.shape):
        return operands[0]  # each element is the number
    if name == "convert_element_type" and jnp.issubdtype(out.dtype, jnp.floating):
        return operands[0]
    return Expression()


def is_idle(choice: Expression, no: Expression, yes: Expression) -> bool:
    """Whether a choice is `where(x == c, c, x)`, also of an infinite c, as in NumPyro's mixtures: it changes derivatives only."""
    if choice.operation not in EQUALITIES:
        return False
    same, other = (yes, no) if choice.operation == "eq" else (no, yes)
    x, c = choice.operands if choice.operands[0] is other else choice.operands[::-1]
    return other is x and c.operation == same.operation == "constant" and c.number == same.number


def agree_on_seam(choice: Expression, no: Expression, yes: Expression) -> bool:
    """Whether `yes` and `no`, of a choice by the comparison `choice`, are proved equal on the seam."""
    if choice.operation not in ORDERS:
        return False
    trial = _RandomValues()
    try:
        with np.errstate(all="ignore"):
            for a, b in (choice.operands, choice.operands[::-1]):
                pieces = list(trial.solutions(a, trial.value(b, {}), b))
                if pieces and all(trial.agree(no, yes, piece, (a, b)) for piece in pieces):
                    return True
    except _Unknown:
        pass
    return False


class _Unknown(Exception):
    """A term that is not looked into."""


class _RandomValues:
    """Random values of variables."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._samples: dict[Expression, Values] = {}

    def value(self, term: Expression, known: dict[Expression, Values]) -> Values:
        """The term's values, with those of some terms given; `known` is added to."""
        if term not in known:
            if len(known) > MAX_SIZE:
                raise _Unknown
            known[term] = self._computed(term, known)
        return known[term]

    def _computed(self, term: Expression, known: dict[Expression, Values]) -> Values:
        if term.operation == "constant":
            return np.full(NUM_TRIALS, term.number)
        if not term.operation:
            return self._sample(term)
        operands = [self.value(t, known) for t in term.operands]
        if term.operation == "integer_pow":
            return operands[0] ** term.number
        if term.operation in ANALYTIC:
            return ANALYTIC[term.operation](*operands)
        if term.operation in KINKED and _meets_both_sides(*operands):
            return KINKED[term.operation](*operands)
        raise _Unknown

    def _sample(self, variable: Expression) -> Values:
        """Random values of a variable, of many magnitudes; in a quarter of the trials all variables are positive."""
        if variable not in self._samples:
            x = self._rng.normal(size=NUM_TRIALS) * 10 ** self._rng.uniform(-2, 3, NUM_TRIALS)
            quarter = NUM_TRIALS // 4
            x[:quarter] = np.abs(x[:quarter]) / 10
            self._samples[variable] = x
        return self._samples[variable]

    def solutions(
        self, a: Expression, value: Values, b: Expression
    ) -> Iterator[dict[Expression, Values]]:
        """Pieces of a = value = b, in each of which one term is given; none if unknown.

        The first variable of `a` from the left that can be solved for is taken.
        """
        if _contains(b, a):
            return
        if not a.operation:
            yield {a: value}
            return
        if a.operation in ("abs", "exp", "log", "neg"):
            roots = {"abs": (value, -value), "exp": (np.log(value),), "log": (np.exp(value),)}
            for root in roots.get(a.operation, (-value,)):
                yield from self.solutions(a.operands[0], root, b)
            return
        if a.operation not in ("add", "sub", "mul", "div"):
            return
        x, y = a.operands
        for unknown, other, is_first in ((x, y, True), (y, x, False)):
            if unknown.operation == "constant" or _contains(other, unknown):
                continue
            # Of a product that is 0 either factor may be: one of them is no function of the other there.
            if a.operation == "mul" and other.operation != "constant":
                continue
            found = list(
                self.solutions(
                    unknown,
                    _inverse(a.operation, is_first, value, self.value(other, {})),
                    Expression("add", (b, other)),
                )
            )
            if found:
                yield from found
                return

    def agree(
        self,
        no: Expression,
        yes: Expression,
        given: dict[Expression, Values],
        seam: tuple[Expression, Expression],
    ) -> bool:
        """Whether both branches are equal where these terms have these values, as far as these are on the seam."""
        a, b, x, y = (self.value(t, dict(given)) for t in (*seam, no, yes))
        is_on = _are_same(a, b)
        is_finite = np.isfinite(x) & np.isfinite(y) & is_on
        is_lost = (np.isfinite(x) != np.isfinite(y)) & is_on
        is_proved = is_finite.sum() >= MIN_TRIALS and _are_same(x, y)[is_finite].all()
        return bool(is_proved and not is_lost.any())


def _are_same(x: Values, y: Values) -> Values:
    return np.abs(x - y) <= TOLERANCE * (1 + np.abs(x) + np.abs(y))


def _meets_both_sides(x: Values, y: Values | float = 0.0) -> bool:
    """Whether x - y has one value (but for rounding), or often enough both signs."""
    side = x - y
    few = min((side > 0).sum(), (side < 0).sum())
    return bool(few >= MIN_TRIALS or _are_same(side, side[0]).all())


def _inverse(operation: str, is_first: bool, value: Values, other: Values) -> Values:
    """The operand with which the operation has this value."""
    if operation == "add":
        return value - other
    if operation == "sub":
        return value + other if is_first else other - value
    if operation == "mul":
        return value / other
    return value * other if is_first else other / value


def _contains(term: Expression, part: Expression) -> bool:
    """Whether a variable of `part` is one of `term`."""
    return bool(_variables(term) & _variables(part))


def _variables(term: Expression) -> set[Expression]:
    found, todo, seen = set(), [term], set()
    while todo:
        t = todo.pop()
        if t in seen:
            continue
        seen.add(t)
        if len(seen) > MAX_SIZE:
            raise _Unknown
        if not t.operation:
            found.add(t)
        todo += t.operands
    return found
