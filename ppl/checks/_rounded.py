"""A traced program run with its rounding drawn anew: how far the values of a program depend on the rounding of its operations.

Monte Carlo arithmetic: each result that is rounded is moved by a random part of its last digits, and a few such runs beside the
plain one show by how much rounding moves a value. What is left of two nearly equal numbers is then seen to be rounding
(`log(a - b)`, `log(p) - log1p(-p)` beside 1), while `where(z > 0, a, b)` is the same on either side of 0. A result that is exact
is not moved, so that what it decides is not either: whole numbers that are counted, products with 0, differences of neighbours.
An adaptive solver of differential equations gets another tolerance, and so takes other steps: its error is rounding, too.

Reference: Parker, Monte Carlo Arithmetic (1997); Jezequel and Chesneaux, CADNA (2008).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, PyTree

from .._compat import CALLS, ClosedJaxpr, Equation, Var, bind, while_counts
from .._types import Key
from ..evaluation import Evaluator, Forced
from ..jaxprs import called, tolerances_of

Array = jax.Array
# By how many halves of a unit in the last place a result is moved at most: functions of JAX are wrong by a few units, those that
# are series or continued fractions by more.
UNITS, SERIES_UNITS = 16.0, 256.0
TIGHTER = 0.75  # by which a solver's tolerance is smaller at most
NUM_COPIES = 4
NUM_FACTORS = 4096

# Results that are elements of the operands, or whole numbers, or bits.
EXACT = frozenset(
    """
    abs all_gather argmax argmin bitcast_convert_type broadcast_in_dim broadcast_to ceil clamp concatenate conj copy copy_p
    cummax cummin device_put dynamic_slice dynamic_update_slice expand_dims floor gather imag iota max min neg nextafter
    optimization_barrier pad pmax pmin real reduce_max reduce_min reduce_window_max reduce_window_min rem reshape rev round
    scatter scatter-max scatter-min select_n sign slice sort split squeeze stack stop_gradient tile top_k transpose unstack
    """.split()
)
SERIES = frozenset(
    """
    bessel_i0e bessel_i1e digamma erf_inv igamma igamma_grad_a igammac lgamma polygamma random_gamma random_gamma_grad
    regularized_incomplete_beta zeta
    """.split()
)
# Positive numbers may make 0.
VANISHING = frozenset("div exp exp2 erfc integer_pow logistic mul pow square".split())
ALGEBRAIC = frozenset("mul div square sqrt rsqrt cbrt integer_pow reciprocal".split())


class Copy(NamedTuple):
    """One run: factors beside 1 of rounded results, and numbers beside 0 for what underflows; 1 and 0 in the plain run."""

    factors: Array
    least: Array


def copies(dtype: DTypeLike, *, is_narrow: bool = False) -> Copy:
    """The plain run, and those whose rounding is drawn; `is_narrow`: see `evaluate_rounded`."""
    info, rng = jnp.finfo(dtype), np.random.default_rng(0)
    tiny = float(jnp.finfo(np.float32 if is_narrow else dtype).tiny)
    # Factors 1 + UNITS eps / 2 * u, u in [-1, 1], of NUM_COPIES runs; run 0 is the plain one, u = 0.
    share = rng.uniform(-1, 1, (NUM_COPIES + 1, NUM_FACTORS))
    share[0] = 0
    factors, least = 1 + UNITS * float(info.eps) / 2 * share, UNITS * tiny * abs(share)
    return Copy(jnp.asarray(factors, dtype), jnp.asarray(least, dtype))


def evaluate_rounded(
    closed: ClosedJaxpr,
    inputs: Sequence[Key],
    forced: Mapping[int, Forced],
    read: Sequence[Var] | None = None,
    *,
    copy: Copy | None,
    is_narrow: bool = False,
) -> list[Array]:
    """`evaluate` with the rounding of a run, the given values rounded, too; None: as JAX rounds.

    `is_narrow`: a program of double precision has all of its digits, and overflows where single precision does.
    """
    if copy is not None:
        inputs = [_moved(x, copy, n) for n, x in enumerate(inputs)]
        forced = {i: f._replace(value=_moved(f.value, copy, 31 * i)) for i, f in forced.items()}
    run = _Rounded(closed, inputs, forced, copy, is_narrow)
    return [jnp.asarray(x) for x in run.outputs(read)]


class _Rounded(Evaluator):
    """One evaluation of a program whose results are moved within their rounding; arguments as of `evaluate_rounded`."""

    def __init__(
        self,
        closed: ClosedJaxpr,
        inputs: PyTree,
        forced: PyTree,
        copy: Copy | None,
        is_narrow: bool,
        count: int = 0,
    ) -> None:
        super().__init__(closed, inputs, forced)
        self.copy, self.is_narrow, self.count = copy, is_narrow, count
        self.tolerances: set[int] = set()  # ids of equations, see `tolerances_of`

    def inner(
        self, body: ClosedJaxpr, inputs: list[PyTree], forced: Mapping[int, Forced]
    ) -> list[Array]:
        self.count += 1
        run = _Rounded(body, list(inputs), forced, self.copy, self.is_narrow, 131 * self.count)
        run.tolerances = self.tolerances
        return [jnp.asarray(x) for x in run.outputs()]

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        name = eqn.primitive.name
        if name in CALLS:
            self.tolerances |= {id(e) for e in tolerances_of(eqn)}
            return self.inner(called(eqn), args, self.forced)
        if name in ("scan", "cond"):
            return {"scan": self.scan, "cond": self.cond}[name](eqn, args)
        if name == "while":
            return self.loop(eqn, args)
        found = super().results(eqn, args)
        if name in EXACT or not any(map(_is_float, args)):
            return found
        found = [_in_single_range(x) if self.is_narrow and _is_float(x) else x for x in found]
        if self.copy is None:
            return found
        self.count += 1
        move = functools.partial(self.moved, self.copy, eqn, args)
        return [move(x, n) if _is_float(x) else x for n, x in enumerate(found)]

    def moved(self, copy: Copy, eqn: Equation, args: list[PyTree], x: Array, which: int) -> PyTree:
        """A result, moved where it is not exact."""
        name = eqn.primitive.name
        if id(eqn) in self.tolerances:
            return x * (1 - TIGHTER * jnp.abs(_share(copy, self.count))).astype(x.dtype)
        times = SERIES_UNITS / UNITS if name in SERIES else 1.0
        factor = _factors(copy, x, 31 * self.count + which, times)
        moved = jnp.where(_is_rounded(eqn, args, x), x * factor, x)
        if name not in VANISHING:
            return moved
        least = _numbers(copy.least, x, 31 * self.count + which).astype(x.dtype)
        return jnp.where(_is_underflow(eqn, args, x), least, moved)

    def loop(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        num_test, num_body = while_counts(eqn.params)
        test, body, state = np.split(np.arange(len(args)), [num_test, num_test + num_body])
        consts = lambda which: [args[i] for i in which]
        run = lambda name, which, state: self.inner(
            eqn.params[name], [*consts(which), *state], self.forced
        )
        return jax.lax.while_loop(
            lambda s: run("cond_jaxpr", test, s)[0],
            lambda s: run("body_jaxpr", body, s),
            [jnp.asarray(x) for x in consts(state)],
        )


def _in_single_range(x: Array) -> Array:
    """`x` with infinity and 0 where numbers of single precision end."""
    info = jnp.finfo(jnp.result_type(x))
    return jax.lax.reduce_precision(x, min(8, info.nexp), info.nmant)


def _is_float(x: PyTree) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _is_rounded(eqn: Equation, args: list[PyTree], x: Array) -> Array:
    """Which entries of a result are not exact."""
    name = eqn.primitive.name
    floats = [jnp.asarray(a) for a in args if _is_float(a)]
    if name == "convert_element_type":
        return x.astype(floats[0].dtype) != floats[0]
    if name in ("add", "sub", "add_any"):
        return _sum_is_rounded(*floats, x, -1.0 if name == "sub" else 1.0)
    if name in ALGEBRAIC:
        # Of half the digits only: no product of rounded numbers, but by accident.
        return _is_long(x)
    if name in ("reduce_sum", "cumsum", "cumlogsumexp", "cumprod", "reduce_prod"):
        count = _is_long(floats[0]).astype(x.dtype)
        if name in ("reduce_sum", "reduce_prod"):
            return jnp.sum(count, tuple(eqn.params["axes"])) > 0
        return jax.lax.cumsum(count, eqn.params["axis"], eqn.params["reverse"]) > 0
    # An entry of a product is rounded where some pair has a long factor and one that is not 0: two products of indicators.
    if name == "dot_general" and len(floats) == 2:
        ones = [[_is_long(a), a != 0] for a in floats]
        parts = [
            bind(eqn, [ones[0][n].astype(floats[0].dtype), ones[1][1 - n].astype(floats[1].dtype)])
            for n in range(2)
        ]
        return (parts[0][0] + parts[1][0]) > 0
    shapes = {a.shape for a in floats} - {()}
    if shapes <= {x.shape}:  # element by element
        is_long = functools.reduce(jnp.logical_or, map(_is_long, floats))
        return jnp.broadcast_to(is_long, x.shape)
    return functools.reduce(jnp.logical_or, [_is_long(a).any() for a in floats])


@functools.partial(jax.jit, static_argnums=3)
def _sum_is_rounded(a: Array, b: Array, total: Array, sign: float) -> Array:
    """Whether a + sign b is not `total` (Knuth's two sums)."""
    b = sign * b
    back = total - a
    return (a - (total - back)) + (b - back) != 0


@jax.jit
def _is_long(x: Array) -> Array:
    """Whether a number has digits in the second half of its mantissa; data and constants of single precision have none."""
    x = jnp.asarray(x)
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant // 2) != x


def _is_underflow(eqn: Equation, args: list[PyTree], x: Array) -> Array:
    """Which entries of a result are 0 for want of smaller numbers."""
    if eqn.primitive.name not in ("mul", "div"):
        return (x == 0) & _is_long(args[0])
    is_nonzero = [a != 0 for a in args]
    return functools.reduce(jnp.logical_and, is_nonzero, x == 0)


def _moved(x: Key, copy: Copy, salt: int) -> PyTree:
    """A given number, moved."""
    if not _is_float(x):
        return x
    return jnp.where(_is_long(x), x * _factors(copy, x, salt), x)


def _factors(copy: Copy, x: Array, salt: int, times: float = 1.0) -> Array:
    """Factors for the numbers of `x`, as far from 1 as rounding in its precision."""
    dtype, own = jnp.result_type(x), copy.factors.dtype
    if dtype != own:
        times *= float(jnp.finfo(dtype).eps) / float(jnp.finfo(own).eps)
    if times == 1:
        return _numbers(copy.factors, x, salt)
    return (1 + times * (_numbers(copy.factors, x, salt) - 1)).astype(dtype)


def _share(copy: Copy, salt: int) -> Array:
    """A number between -1 and 1; 0 in the plain run."""
    factor = _numbers(copy.factors, 0.0, salt)
    return (factor - 1) / (UNITS * jnp.finfo(factor.dtype).eps / 2)


def _numbers(row: Array, x: ArrayLike, salt: int) -> Array:
    """Numbers of a row in the shape of `x`, from a place that the salt decides."""
    size = math.prod(jnp.shape(x))
    start = salt * 7919 % (NUM_FACTORS // 2)
    if start + size > NUM_FACTORS:
        row, start = jnp.tile(row, -(-size // NUM_FACTORS)), 0
    return row[start : start + size].reshape(jnp.shape(x))
